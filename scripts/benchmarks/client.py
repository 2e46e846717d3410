"""What does one HTTP request cost? Zerver's client beside httpx2 and httpx, keep-alive GETs of 27 bytes over loopback.

The server is another process that answers without parsing, so that it is the clients that are measured. "cpu" is
the client's processor time, which says more on a machine that others use too. "bare stream" is Trio's own: send the
bytes, read until the answer's last byte; nobody who speaks HTTP can be faster.

    scripts/bench client [--rounds N] [--only TEXT] [--json FILE]
"""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio
from _report import Case, Measure, main

from zerver.http.client import ClientLimits, open_http_client

REQUESTS = 1000
BODY = b"x" * 27
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 27\r\n\r\n" + BODY

Get = Callable[[], Awaitable[bytes]]
Open = Callable[[str], AbstractAsyncContextManager[Get]]


# ---- the server -------------------------------------------------------------------------------


class Answering(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(ANSWER * data.count(b"\r\n\r\n"))


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# ---- the clients ------------------------------------------------------------------------------


@asynccontextmanager
async def zerver_client(url: str) -> Any:
    async with open_http_client(allow_private=True, limits=ClientLimits(per_origin=20)) as client:

        async def get() -> bytes:
            return (await client.request("GET", url)).body

        yield get


@asynccontextmanager
async def bare_stream(url: str) -> Any:
    """One connection for each task: there is nothing to share."""
    port = int(url.rpartition(":")[2].strip("/"))
    idle: list[trio.SocketStream] = []

    async def get() -> bytes:
        stream = idle.pop() if idle else await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        seen = b""
        while len(seen) < len(ANSWER):
            seen += await stream.receive_some()
        idle.append(stream)
        return seen[-27:]

    yield get
    for stream in idle:
        await stream.aclose()


def httpx_client(name: str) -> Open | None:
    try:
        library = importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: it is left out")
        return None

    @asynccontextmanager
    async def client(url: str) -> Any:
        limits = library.Limits(max_connections=20, max_keepalive_connections=20)
        async with library.AsyncClient(limits=limits, trust_env=False) as opened:

            async def get() -> bytes:
                body: bytes = (await opened.get(url)).content
                return body

            yield get

    return client


# ---- measuring --------------------------------------------------------------------------------


def measure(client: Open, url: str, tasks: int, clock: Callable[[], float]) -> Measure:
    """Microseconds for each request, by this clock."""

    async def run() -> float:
        async with client(url) as get:

            async def worker(requests: int) -> None:
                for _ in range(requests):
                    if await get() != BODY:
                        raise RuntimeError("a wrong answer")

            async with trio.open_nursery() as nursery:  # connects, and warms up
                for _ in range(tasks):
                    nursery.start_soon(worker, 2)
            began = clock()
            async with trio.open_nursery() as nursery:
                for _ in range(tasks):
                    nursery.start_soon(worker, REQUESTS // tasks)
            return (clock() - began) / REQUESTS * 1e6

    return lambda: trio.run(run)


def cases(url: str) -> list[Case]:
    clients: dict[str, Open | None] = {
        "zerver": zerver_client,
        "bare stream": bare_stream,
        "httpx2": httpx_client("httpx2"),
        "httpx": httpx_client("httpx"),
    }
    found = {name: client for name, client in clients.items() if client is not None}
    return [
        Case(f"{load}, {unit}", "µs a request", {name: measure(c, url, tasks, clock) for name, c in found.items()})
        for load, tasks in (("one after another", 1), ("20 tasks", 20))
        for unit, clock in (("elapsed", time.perf_counter), ("cpu", time.process_time))
    ]


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        asyncio.run(serve())
    else:
        with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
            try:
                port = server.stdout.readline().strip() if server.stdout else ""
                main(cases(f"http://127.0.0.1:{port}/"), "A keep-alive GET over loopback", ("trio", "httpx2", "httpx"))
            finally:
                server.terminate()
