"""The `zerver` command as a process: run to its end, or kept serving."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "zerver.cli"]

#: An app with a route that answers, one that waits for as long as it may, and one that is rolled back after it.
SHOP = """
from zerver import App, Done, Flow, effect, step
from zerver.effects import clock


@effect(kind="stock.take", access="write")
async def take() -> None:
    print("taken", flush=True)


@effect(kind="stock.give", access="write")
async def give() -> None:
    print("given back", flush=True)


@step
def hello() -> Done:
    return Done("hello")


@step
async def buy() -> Done:
    await take().compensate(lambda _: give())
    await clock.sleep(0.2)
    return Done("bought")


@step
async def wait() -> Done:
    await take().compensate(lambda _: give())
    await clock.sleep(1000)
    return Done()


app = App("shop")
app.route("GET", "/", Flow("hello", [hello], deadline=1.5, priority="interactive"))
app.route("POST", "/buy", Flow("buy", [buy]))
app.route("POST", "/wait", Flow("wait", [wait]))
other = App("other")
nothing = 5
"""

#: An app whose flow cannot work.
BROKEN = """
from typing import Annotated
from zerver import App, Done, Flow, Slot, step
from zerver.http import Path


@step
def show(id: Annotated[int, Path()]) -> Done:
    return Done(id)


app = App()
app.route("GET", "/items", Flow("show", [show]))
"""


@attrs.frozen
class Ended:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


def environment(**said: str) -> dict[str, str]:
    """Of a process: as it would be for a newcomer, but without a page and a trace file unless they are said."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ZERVER_")}
    return ours | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "ZERVER_PAGE": "off", "ZERVER_TRACE_DB": ""} | said


def zerver(folder: Path, *arguments: str, **modules: str) -> Ended:
    """Run the command in a folder with these modules, to its end."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Server:
    """A `zerver serve` under way. address: the URL that it printed."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.address = ""
        self._out = b""

    async def line(self) -> str:
        """The next line that it prints."""
        stream = self.process.stdout
        while stream is not None and b"\n" not in self._out:
            data = await stream.receive_some()
            if not data:
                raise EOFError(f"it ended after {self._out!r}")
            self._out += data
        line, _, self._out = self._out.partition(b"\n")
        return line.decode()

    async def rest(self) -> str:
        """What it prints until it ends."""
        stream = self.process.stdout
        while stream is not None and (data := await stream.receive_some()):
            self._out += data
        return self._out.decode()

    async def err_line(self) -> str:
        """The next line that it prints to stderr."""
        stream, line = self.process.stderr, b""
        while stream is not None and not line.endswith(b"\n"):
            data = await stream.receive_some(1)
            if not data:
                raise EOFError(f"it ended after {line!r}")
            line += data
        return line.decode().removesuffix("\n")

    async def err(self) -> str:
        stream = self.process.stderr
        return "" if stream is None else b"".join([bytes(data) async for data in stream]).decode()

    async def connect(self) -> trio.SocketStream:
        if self.address.startswith("unix:"):
            return await trio.open_unix_socket(self.address.removeprefix("unix:"))
        host, _, port = self.address.partition("://")[2].rpartition(":")
        return await trio.open_tcp_stream(host, int(port))

    async def say(self, stream: trio.SocketStream, line: str) -> None:
        await stream.send_all(f"{line} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    async def ask(self, line: str) -> str:
        """The whole answer to one request."""
        async with await self.connect() as stream:
            await self.say(stream, line)
            return b"".join([bytes(data) async for data in stream]).decode()


@asynccontextmanager
async def serving(
    folder: Path,
    *options: str,
    source: str = SHOP,
    place: Sequence[str] = ("--port", "0"),
    said: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """The shop, served by a process of its own, which is killed if the block leaves it running. said: its environment's
    variables, beside the usual ones.
    """
    (folder / "shop.py").write_text(source)
    async with started(folder, "serve", "shop:app", *place, *options, said=said) as (server, announced):
        if not announced.startswith(("listening on http", "listening on unix:")):
            raise AssertionError(f"it printed {announced!r} when it was to say where it listens")
        server.address = announced.removeprefix("listening on ")
        yield server


@asynccontextmanager
async def started(
    folder: Path, *arguments: str, said: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Server, str]]:
    """The command under way, and its first line; it is killed if the block leaves it running."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(**(said or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        server = Server(process)
        yield server, await server.line()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()
