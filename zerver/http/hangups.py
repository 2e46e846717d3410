"""Which clients have hung up: one epoll beside Trio's, for all connections of a server.

Law: a connection is added once, when somebody first wants to know, and costs nothing from then on: the kernel keeps
watch, edge-triggered, for the end of the stream alone. A read that is left pending tells as much, but it takes a task
for each request that is watched, a seventh of what such a request costs, and sees nothing behind pipelined bytes.

Linux only. Elsewhere, and for TLS, whose end is inside the stream, `Inlet` reads behind.
"""

from __future__ import annotations

import select
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio


class Hangups:
    """Tells connections that their peer has closed its sending side, or is gone. Made by `open_hangups`."""

    def __init__(self, epoll: select.epoll) -> None:
        self._told: dict[int, Callable[[], None]] = {}  # by descriptor; they do not raise
        self._epoll = epoll

    def add(self, descriptor: int, on_hangup: Callable[[], None]) -> bool:
        """Call on_hangup, from another task, when the peer goes; soon, if it has gone already.

        False when the kernel watches no more descriptors for this user.
        """
        try:
            self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLET)
        except OSError:
            return False
        self._told[descriptor] = on_hangup
        return True

    def discard(self, descriptor: int, on_hangup: Callable[[], None]) -> None:
        """Forget it. The kernel does so when a socket is closed; by then, its number may be another connection's."""
        if self._told.get(descriptor) == on_hangup:
            del self._told[descriptor]

    async def _run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, _ in self._epoll.poll(0):
                on_hangup = self._told.get(descriptor)
                if on_hangup is not None:
                    on_hangup()


@asynccontextmanager
async def open_hangups() -> AsyncIterator[Hangups | None]:
    """Hangups, and the task that listens to them; None where there is no such thing."""
    if sys.platform != "linux":
        yield None
        return
    with select.epoll() as epoll:
        hangups = Hangups(epoll)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hangups._run)
            yield hangups
            nursery.cancel_scope.cancel()
