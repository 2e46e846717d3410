"""An app behind hypercorn, for real and in memory: its lifespan, its requests, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import trio

from zerver import App, Capability, Done, Flow, step
from zerver.asgi import AsgiApplication, asgi
from zerver.errors import DefinitionError, ExchangeFailed
from zerver.http import Body, open_http_client
from zerver.runtime import Result

ROOT = Path(__file__).parent.parent

PROGRAM = """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import trio

from zerver import INJECTED, App, Capability, Done, Flow, step
from zerver.asgi import asgi
from zerver.http import Body, Event, file, http_client, sse, stream

class Log:
    pass

@asynccontextmanager
async def open_log():
    print("opened", flush=True)
    yield Log()
    print("closed", flush=True)

async def ticks():
    for number in range(3):
        yield Event(str(number))

async def endless():
    try:
        while True:
            yield b"x"
            await trio.sleep(0.01)
    finally:
        print("left", flush=True)

@step
def echo(body: Annotated[bytes, Body()]) -> Done:
    return Done({"bytes": len(body)})

@step
def events() -> Done:
    return Done(sse(ticks))

@step
def this() -> Done:
    return Done(file(__file__, content_type="text/x-python"))

@step
def forever() -> Done:
    return Done(stream(endless))

@step
def broken() -> Done:
    raise ValueError("a bug")

app = App(capabilities=[Capability(name="log", resources={Log: open_log})])
for method, path, what in (("POST", "/echo", echo), ("GET", "/events", events), ("GET", "/file", this),
                           ("GET", "/forever", forever), ("GET", "/broken", broken)):
    app.route(method, path, Flow(path, [what]))
application = asgi(app)
"""


@asynccontextmanager
async def hypercorn(folder: Path, worker: str = "trio") -> AsyncGenerator[tuple[trio.Process, str, list[str]], None]:
    """A real one, on a free port. What it prints is in the list when the block ends."""
    (folder / "shop_asgi.py").write_text(PROGRAM)
    printed: list[str] = []
    command = [sys.executable, "-m", "hypercorn", "-k", worker, "-b", "127.0.0.1:0", "shop_asgi:application"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PYTHONUNBUFFERED": "1"}
    options: dict[str, Any] = {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "check": False}
    options["stderr"] = subprocess.STDOUT
    address = trio.Event()
    url = ""

    async def listen(process: trio.Process) -> None:
        nonlocal url
        if process.stdout is None:
            raise AssertionError("no pipe")
        rest = ""
        async for data in process.stdout:
            *lines, rest = (rest + data.decode()).split("\n")
            printed.extend(lines)
            for line in lines:
                if "Running on http://" in line:
                    url = "http://" + line.partition("http://")[2].split()[0]
                    address.set()
        address.set()

    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            process = await nursery.start(partial(trio.run_process, command, **options))
            nursery.start_soon(listen, process)
            try:
                await address.wait()
                yield process, url, printed
            finally:
                process.terminate()


async def test_under_hypercorn(tmp_path: Path) -> None:
    async with hypercorn(tmp_path) as (process, url, printed), open_http_client(allow_private=True) as http:
        reply = await http.request("POST", f"{url}/echo", body=b"x" * 200_000)
        assert (reply.status, reply.body) == (200, b'{"bytes":200000}')
        assert reply.headers["x-request-id"].startswith("req_")
        assert (await http.request("POST", f"{url}/echo", body=b"x" * 1_100_000)).status == 413
        assert (await http.request("GET", f"{url}/events")).body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
        whole = await http.request("GET", f"{url}/file")
        assert whole.body.decode() == PROGRAM
        unchanged = {"If-None-Match": whole.headers["etag"]}
        assert (await http.request("GET", f"{url}/file", headers=unchanged)).status == 304
        head = await http.request("HEAD", f"{url}/file")
        assert (head.body, head.headers["content-length"]) == (b"", str(len(PROGRAM)))
        part = await http.request("GET", f"{url}/file", headers={"Range": "bytes=1-4"})
        assert (part.status, part.body.decode()) == (206, PROGRAM[1:5])
        assert (await http.request("GET", f"{url}/broken")).status == 500
        assert (await http.request("GET", f"{url}/none")).status == 404
        async with http.stream("GET", f"{url}/forever") as response:
            assert await anext(response) == b"x"
        while "left" not in printed:
            await trio.sleep(0.01)  # the client's leaving takes its way through two processes
    assert process.returncode == 0
    assert [line for line in printed if line in ("opened", "closed")] == ["opened", "closed"]


async def test_under_a_worker_that_is_not_trio(tmp_path: Path) -> None:
    async with hypercorn(tmp_path, "asyncio") as (_, _, printed):
        pass
    assert any("hypercorn -k trio" in line for line in printed)


# ---- in memory ------------------------------------------------------------------------------


class Server:
    """The other side of the lifespan, and of single requests."""

    def __init__(self, application: AsgiApplication) -> None:
        self.application = application
        self.said: list[dict[str, Any]] = []
        self.end = trio.Event()
        self.settled = trio.Event()
        self._asked = False

    async def live(self) -> None:
        await self.application({"type": "lifespan"}, self._receive, self._send)

    async def ask(self, method: str, path: str, body: bytes = b"") -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return waiting.pop() if waiting else await trio.sleep_forever()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": [(b"host", b"a")], "query_string": b""}
        await self.application(scope, receive, send)
        return sent

    async def _receive(self) -> dict[str, Any]:
        if self._asked:
            await self.end.wait()
            return {"type": "lifespan.shutdown"}
        self._asked = True
        return {"type": "lifespan.startup"}

    async def _send(self, message: Any) -> None:
        self.said.append(message)
        self.settled.set()


@step
def double(body: Annotated[int, Body()]) -> Done:
    return Done(body * 2)


def app_of(**options: Any) -> App:
    app = App(**options)
    app.route("POST", "/double", Flow("double", [double]))
    return app


async def test_a_life(nursery: trio.Nursery) -> None:
    runs: list[Result] = []
    server = Server(asgi(app_of(), observers=[runs.append]))
    with pytest.raises(RuntimeError, match="lifespan"):
        await server.ask("POST", "/double", b"21")
    nursery.start_soon(server.live)
    await server.settled.wait()
    sent = await server.ask("POST", "/double", b"21")
    assert (sent[0]["status"], sent[1]["body"]) == (200, b"42")
    server.end.set()
    await trio.testing.wait_all_tasks_blocked()
    assert [message["type"] for message in server.said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert [(result.status, result.timeline.answered) for result in runs] == [("done", 200)]
    with pytest.raises(RuntimeError, match="lifespan"):
        await server.ask("POST", "/double", b"21")


@pytest.mark.parametrize("when", ["startup", "shutdown"])
async def test_a_resource_that_fails_is_told_to_the_server(nursery: trio.Nursery, when: str) -> None:
    @asynccontextmanager
    async def open_it() -> AsyncGenerator[int, None]:
        if when == "startup":
            raise ExchangeFailed("no database")
        yield 1
        raise ExchangeFailed("no database")

    server = Server(asgi(app_of(capabilities=[Capability(name="it", resources={int: open_it})])))
    server.end.set()
    await server.live()
    assert server.said[-1] == {"type": f"lifespan.{when}.failed", "message": "ExchangeFailed: no database"}


def test_an_app_that_cannot_work_is_refused_at_once() -> None:
    app = app_of()
    app.route("POST", "/double", Flow("again", [double]))
    with pytest.raises(DefinitionError, match="twice"):
        asgi(app)


async def test_other_scopes() -> None:
    server = Server(asgi(app_of()))

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    await server.application({"type": "websocket"}, receive, server._send)
    assert server.said[0]["type"] == "websocket.close"
    with pytest.raises(NotImplementedError):
        await server.application({"type": "smoke.signal"}, receive, server._send)
