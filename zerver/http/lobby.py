"""The lobby: where connections wait that have not sent a whole head yet.

Law: a stranger costs a task from its first whole head on, and not before. Until then it is a socket, a deadline and
the bytes that came; one task listens to all who are here, and another sends them away in time. 5,000 silent or
dripping connections are therefore no more work than 5,000 entries in a table, and none of it can stop the loop: after
every few sockets it rests. What is heard here is judged by the same gate as everywhere (`gate.py`);
who has said something that is no head is sent in as well, to be told so by its connection.

A head comes in one packet as good as always, or in a few full ones. Who drips it, in pieces smaller than any packet on
its way must be, is not listened to at every byte: the kernel keeps what came, and it is looked for 50 times a second.
That is all a slow client loses.

Linux, TCP without TLS and Unix sockets. Elsewhere, and for TLS, whose handshake is a conversation already, a connection
has its task from the start.
"""

from __future__ import annotations

import math
import os
import select
import socket
import sys
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

import trio

from zerver.errors import ProtocolViolation
from zerver.http.exchange import Limits
from zerver.http.gate import find_head_end

_READ_SIZE: Final = 16 * 1024
_SMALL: Final = 256  # bytes; half of what the smallest path of the internet carries in a packet (RFC 9293 §3.7.1)
_LOOK_SECONDS: Final = 0.02
_CLOCK_SECONDS: Final = 0.05  # deadlines are kept as exactly as that, and many at a time
_HEARD_AT_ONCE: Final = 7  # sockets, at 7 µs each, before the loop may rest
_DISMISSED_AT_ONCE: Final = 2  # the same, at 35 µs each: they get an answer, or are closed
_REST_SECONDS: Final = 0.001  # to sleep, not to yield: without it, what others have sent waits in the kernel meanwhile
_MOST_REFUSED: Final = 1000  # who are given time to read why; the others' answer may be lost with their connection


class Host(Protocol):
    """Whose lobby it is: the server."""

    def send_in(self, stream: trio.SocketStream, heard: bytes) -> None:
        """Serve this connection from now on; heard: what it has said so far."""
        ...

    def farewell(self) -> bytes:
        """The answer to a head that did not arrive in time."""
        ...

    def see_off(self) -> None:
        """A connection has left from the lobby; its socket is closed."""
        ...


class _Guest:
    __slots__ = ("deadline", "epoll", "heard", "searched", "stream")

    def __init__(self, stream: trio.SocketStream, deadline: float) -> None:
        self.stream = stream
        self.deadline = deadline
        self.heard = bytearray()
        self.searched = 0  # bytes of it that hold no end of a head
        self.epoll: select.epoll | None = None  # that it is registered with


_Room = OrderedDict[int, _Guest]  # by descriptor; in the order of their deadlines, since all are given the same time


class Lobby:
    """Made by `open_lobby`."""

    def __init__(self, host: Host, limits: Limits, prompt: select.epoll, coarse: select.epoll) -> None:
        self._host = host
        self._limits = limits
        self._prompt = prompt  # listened to
        self._coarse = coarse  # looked at from time to time: who drips
        self._drips = 0  # how many do
        self._silent: _Room = OrderedDict()
        self._begun: _Room = OrderedDict()
        self._leaving: _Room = OrderedDict()  # told that they are late, and given time to read it
        self._refused: deque[tuple[float, socket.socket]] = deque()  # as they came; when to close them
        self._woken = trio.Event()
        self._next = math.inf  # when it is looked for drips and deadlines, unless woken

    @property
    def silent(self) -> int:
        """How many have not said anything yet."""
        return len(self._silent)

    @property
    def begun(self) -> int:
        """How many have said a part of a head, or have been told that they are too slow."""
        return len(self._begun) + len(self._leaving)

    def enter(self, stream: trio.SocketStream) -> None:
        """A new connection. Its descriptor is non-blocking, as Trio's are."""
        descriptor = stream.socket.fileno()
        guest = _Guest(stream, trio.current_time() + self._limits.head_seconds)
        self._silent[descriptor] = guest
        self._hear(descriptor, guest)  # the first request is often there already
        if descriptor not in self._silent and descriptor not in self._begun:
            return
        self._look_by(guest.deadline)
        if guest.epoll is None:
            self._attend(descriptor, guest, self._prompt)

    def see_out(self, refused: socket.socket) -> bool:
        """Close a connection that has been answered as it came, once it has had time to read that; whether there is
        room for it. Closed at once, it would be reset by its own request, and its client find a broken pipe.
        """
        if len(self._refused) >= _MOST_REFUSED:
            return False
        with suppress(OSError):
            refused.shutdown(socket.SHUT_WR)
        deadline = trio.current_time() + self._limits.linger_seconds
        self._refused.append((deadline, refused))
        self._look_by(deadline)
        return True

    def close(self) -> None:
        """Nobody waits here any more: who is silent is sent away, who has begun is sent in, to have its last answer."""
        for descriptor, guest in list(self._silent.items()):
            self._send_away(self._silent, descriptor, guest)
        for descriptor, guest in list(self._begun.items()):
            self._send_in(self._begun, descriptor, guest)

    def _end(self) -> None:
        for room in (self._silent, self._begun, self._leaving):
            for descriptor, guest in list(room.items()):
                self._send_away(room, descriptor, guest)
        while self._refused:
            self._refused.popleft()[1].close()

    # ---- listening ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._prompt.fileno())
            self._hear_some(self._prompt)

    async def _look(self) -> None:
        """Look for drips and for deadlines, as long as anybody is here."""
        while True:
            self._woken = trio.Event()
            self._next = self._next_look()
            with trio.CancelScope(deadline=self._next):
                await self._woken.wait()
            for _ in range(0, self._drips, _HEARD_AT_ONCE):  # each is heard once, whoever drips faster
                if not self._hear_some(self._coarse):
                    break
                await trio.sleep(_REST_SECONDS)
            for room in (self._silent, self._begun, self._leaving):
                while self._dismiss_some(room):  # noqa: ASYNC110 - it is work with rests, and waits for nothing
                    await trio.sleep(_REST_SECONDS)
            while self._close_some():  # noqa: ASYNC110 - the same
                await trio.sleep(_REST_SECONDS)

    def _look_by(self, deadline: float) -> None:
        if deadline < self._next:
            self._next = deadline
            self._woken.set()

    def _next_look(self) -> float:
        now = trio.current_time()
        if self._drips:
            return now + _LOOK_SECONDS
        deadlines = [next(iter(room.values())).deadline for room in (self._silent, self._begun, self._leaving) if room]
        if self._refused:
            deadlines.append(self._refused[0][0])
        return max(now + _CLOCK_SECONDS, min(deadlines, default=math.inf))

    def _hear_some(self, epoll: select.epoll) -> bool:
        """Hear those who have something to say, but not too many. Whether there may be more."""
        ready = epoll.poll(0, _HEARD_AT_ONCE)
        for descriptor, _ in ready:
            guest = self._begun.get(descriptor) or self._silent.get(descriptor)
            if guest is not None:
                self._hear(descriptor, guest)
        return len(ready) == _HEARD_AT_ONCE

    def _hear(self, descriptor: int, guest: _Guest) -> None:
        room = self._begun if guest.heard else self._silent
        try:
            data = os.read(descriptor, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a reset is a way of leaving
        if not data:
            self._send_away(room, descriptor, guest)
            return
        guest.heard += data
        try:
            is_open = find_head_end(guest.heard, guest.searched, self._limits.head) < 0
        except ProtocolViolation:
            is_open = False  # the connection will find the same, and answer it
        if not is_open:
            self._send_in(room, descriptor, guest)
            return
        guest.searched = len(guest.heard)
        if room is self._silent:  # from the first byte on, the whole head has a deadline
            guest.deadline = trio.current_time() + self._limits.head_seconds
            self._begun[descriptor] = self._silent.pop(descriptor)
        if len(data) < _SMALL and guest.epoll is not self._coarse:
            self._attend(descriptor, guest, self._coarse)

    def _attend(self, descriptor: int, guest: _Guest, epoll: select.epoll) -> None:
        if guest.epoll is not None:
            guest.epoll.unregister(descriptor)
            guest.epoll = None
        try:
            epoll.register(descriptor, select.EPOLLIN)  # the end of the stream is input, too
        except OSError:  # the kernel watches no more descriptors for this user
            self._send_in(self._begun if guest.heard else self._silent, descriptor, guest)
            return
        guest.epoll = epoll
        if epoll is self._coarse:
            self._drips += 1
            if self._drips == 1:
                self._woken.set()

    # ---- leaving ------------------------------------------------------------------------------

    def _send_in(self, room: _Room, descriptor: int, guest: _Guest) -> None:
        self._forget(room, descriptor, guest)
        self._host.send_in(guest.stream, bytes(guest.heard))

    def _send_away(self, room: _Room, descriptor: int, guest: _Guest) -> None:
        if room is self._leaving:
            del room[descriptor]
        else:
            self._forget(room, descriptor, guest)
        guest.stream.socket.close()
        self._host.see_off()

    def _forget(self, room: _Room, descriptor: int, guest: _Guest) -> None:
        del room[descriptor]
        if guest.epoll is not None:
            guest.epoll.unregister(descriptor)
            self._drips -= guest.epoll is self._coarse

    def _dismiss_some(self, room: _Room) -> bool:
        """Send those away whose time is up, but not too many. Whether there may be more."""
        now = trio.current_time()
        for _ in range(_DISMISSED_AT_ONCE):
            if not room:
                return False
            descriptor, guest = next(iter(room.items()))
            if guest.deadline > now:
                return False
            if room is self._begun:
                self._tell_late(descriptor, guest, now)
            else:
                self._send_away(room, descriptor, guest)
        return True

    def _close_some(self) -> bool:
        """Close those who were refused, but not too many. Whether there may be more."""
        now = trio.current_time()
        for _ in range(_HEARD_AT_ONCE):
            if not self._refused or self._refused[0][0] > now:
                return False
            self._refused.popleft()[1].close()
        return True

    def _tell_late(self, descriptor: int, guest: _Guest, now: float) -> None:
        """Answer, and close in a way that lets the peer read it, as `Connection` does when it lingers."""
        self._forget(self._begun, descriptor, guest)
        self._leaving[descriptor] = guest
        guest.deadline = now + self._limits.linger_seconds
        with suppress(OSError):  # it has left, or does not read: then there is nobody to tell
            os.write(descriptor, self._host.farewell())
            guest.stream.socket.shutdown(socket.SHUT_WR)
        self._look_by(guest.deadline)


@asynccontextmanager
async def open_lobby(host: Host, limits: Limits) -> AsyncIterator[Lobby | None]:
    """A lobby, and the tasks that attend to it; None where there is no such thing. Left, all who wait are cut off."""
    if sys.platform != "linux":
        yield None
        return
    with select.epoll() as prompt, select.epoll() as coarse:
        lobby = Lobby(host, limits, prompt, coarse)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lobby._listen)
                nursery.start_soon(lobby._look)
                yield lobby
                nursery.cancel_scope.cancel()
        finally:
            lobby._end()
