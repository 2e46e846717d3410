"""A proxy before PostgreSQL that does to a connection what networks do: it cuts it before a commit has arrived, in its
midst, or before its reply is heard; and it is slow."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Literal

import trio

#: Where a connection is cut: its commit never arrives; half of it does; it does, and nobody hears of it.
Cut = Literal["before", "midway", "after"]

CUTS: tuple[Cut, ...] = ("before", "midway", "after")

#: How a commit stands on the wire; another statement of a journal's has the word in it.
COMMIT = b"commit\0"


class Commits:
    """Finds them on one connection: by the word, and by the name that it was prepared under."""

    def __init__(self) -> None:
        self._names = {COMMIT}

    def find(self, data: bytes) -> int:
        """Where a commit begins to be one; -1 if there is none."""
        at = data.find(COMMIT)
        if at > 0 and data[at - 1 : at] == b"\0":
            name = data[: at - 1].rpartition(b"P")[2][4:]  # after the length of the Parse
            if name:
                self._names.add(b"\0" + name + b"\0")
        return max(data.find(name) for name in self._names)


class Proxy:
    """port: where it listens, on 127.0.0.1. latency: seconds that each piece takes, either way. commits: how many have
    come since `arm`.
    """

    def __init__(self, path: str, port: int) -> None:
        self.port = port
        self.latency = 0.0
        self.commits = 0
        self.cuts = 0
        self._path = path
        self._cut: Cut = "after"
        self._numbers = range(0)

    def arm(self, cut: Cut, numbers: range) -> None:
        """Cut the connections on which these commits come, counted from now."""
        self.commits, self._cut, self._numbers = 0, cut, numbers

    async def serve(self, client: trio.SocketStream) -> None:
        heard = trio.Event()
        deaf = False
        commits = Commits()
        async with client, await trio.open_unix_socket(self._path) as server, trio.open_nursery() as nursery:

            async def forth() -> None:
                nonlocal deaf
                while data := await client.receive_some():
                    await trio.sleep(self.latency)
                    if (at := commits.find(data)) >= 0:
                        self.commits += 1
                        if self.commits in self._numbers:
                            deaf = True
                            self.cuts += 1
                            if self._cut == "after":
                                await server.send_all(data)
                                await heard.wait()
                            elif self._cut == "midway":
                                await server.send_all(data[: at + 3])
                            break
                    await server.send_all(data)
                nursery.cancel_scope.cancel()

            async def back() -> None:
                while data := await server.receive_some():
                    await trio.sleep(self.latency)
                    if deaf:
                        heard.set()
                    else:
                        await client.send_all(data)
                nursery.cancel_scope.cancel()

            nursery.start_soon(forth)
            nursery.start_soon(back)


@asynccontextmanager
async def open_proxy(path: str) -> AsyncGenerator[Proxy, None]:
    """A proxy before the server at this socket."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy = Proxy(path, listener.socket.getsockname()[1])

        async def handle(client: trio.SocketStream) -> None:
            try:
                await proxy.serve(client)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # one side has hung up

        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield proxy
        nursery.cancel_scope.cancel()
