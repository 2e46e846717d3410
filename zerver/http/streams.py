"""Both directions of one stream, each with the one thing that a plain stream lacks.

Law: one task reads at a time and one writes; no byte is lost or read twice, however a watch or a read ends.

Reading: a read may be pending while nobody waits for it, so that a leaving peer is noticed, and what it
brings is kept for the next reader. Writing: a deadline for each piece, armed only if the peer keeps us waiting.

A bare TCP stream is read and written by its descriptor: one system call each, when the kernel is ready. What Trio's
methods add to that, for streams that several tasks may use, is half of what a small request costs.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import trio

from zerver.http.hangups import Hangups

_READ_SIZE = 64 * 1024


def descriptor_of(stream: object) -> int:
    """Of the socket that is all there is to a stream; -1 for TLS, for streams in memory, and on Windows.

    Asked once, since whoever has an Inlet and an Outlet owns the stream: nobody else closes it, and before it does, it
    says so to both. From then on the number may be another connection's, and a task that was woken to read may run yet.
    """
    return stream.socket.fileno() if isinstance(stream, trio.SocketStream) and os.name == "posix" else -1


class PeerGone(Exception):
    """The peer has left or does not take its answer.

    Nothing more can be said on this stream. Internal to the room.
    """


class Inlet:
    """Reads a stream, one read at a time.

    A read that `watch` started is never cancelled because a response is done: that would cost a task for
    every request, and on some streams the bytes. The next `receive` waits for its result instead.
    """

    def __init__(
        self, stream: trio.abc.ReceiveStream, report: Callable[[Exception], None], hangups: Hangups | None = None
    ) -> None:
        self.gone = False  # the peer has closed its sending side, or the connection broke; all it sent has been read
        self.nursery: trio.Nursery | None = None
        self._left = False  # the same, but there may be something to read
        self._hangups = hangups
        self._alarm = -1  # the descriptor that hangups keep watch on
        self._stream = stream
        self._descriptor = descriptor_of(stream)
        self._report = report
        self._on_gone: Callable[[], None] | None = None
        self._pending: trio.Event | None = None  # set when the read behind has ended
        self._kept = b""
        self._expects = False

    @property
    def needs_nursery(self) -> bool:
        """Whether only a read behind can tell that the peer goes."""
        return self._hangups is None or self._descriptor < 0

    def expect(self) -> None:
        """Something has probably come by now: the next `receive` looks before it waits."""
        self._expects = True

    def receive(self) -> Awaitable[bytes]:
        """The next bytes, at most 64 KiB; b"" once the peer is gone."""
        # No coroutine of its own: a wake of the task goes through each of them.
        return self._read() if self._pending is None and not self._kept else self._take_kept()

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call on_gone once when the peer goes.

        Where no Hangups can tell, reads one piece behind the reader's back, if none is waiting already.
        """
        if self._left:
            on_gone()
            return
        self._on_gone = on_gone
        descriptor, hangups = self._descriptor, self._hangups
        if self._alarm < 0 <= descriptor and hangups is not None and hangups.add(descriptor, self._notice_hangup):
            self._alarm = descriptor
        self.keep_watching()

    def keep_watching(self) -> None:
        """Go on with a watch whose read has brought bytes, now that they have been received."""
        if self._alarm >= 0 or self._on_gone is None or self._pending is not None or self._kept or self.nursery is None:
            return
        self._pending = trio.Event()
        self.nursery.start_soon(self._read_behind, self._pending)

    def forget(self) -> None:
        """End the watch. A read that is pending stays."""
        self._on_gone = None

    def close(self) -> None:
        """No more of it: the stream is about to be closed."""
        self._descriptor = -1
        if self._hangups is not None and self._alarm >= 0:
            self._hangups.discard(self._alarm, self._notice_hangup)

    async def _read_behind(self, ended: trio.Event) -> None:
        try:
            self._kept = await self._read()
        finally:
            self._pending = None
            ended.set()

    async def _take_kept(self) -> bytes:
        if self._pending is not None:
            await self._pending.wait()
        if not self._kept:
            return await self._read()
        await trio.lowlevel.checkpoint()  # whoever pipelines waits for nothing else, and others want their turn
        kept, self._kept = self._kept, b""
        return kept

    async def _read(self) -> bytes:
        if self.gone:
            await trio.lowlevel.checkpoint()
            return b""
        data: bytes | None = None
        try:
            if self._descriptor < 0:
                data = bytes(await self._stream.receive_some(_READ_SIZE))
            while data is None:
                # Wait first: a client sends when it has our answer, so an attempt to read before that would fail.
                if not self._expects:
                    await trio.lowlevel.wait_readable(self._descriptor)
                self._expects = False
                try:
                    data = os.read(self._descriptor, _READ_SIZE)
                except BlockingIOError:  # the kernel may wake us for a packet that it then throws away
                    continue
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            data = b""  # a reset is a way of leaving
        except Exception as defect:  # a stream that breaks the rules of streams must not break the connection's
            self._report(defect)
            data = b""
        if not data:
            self.gone = True
            self._notice_hangup()
        return data

    def _notice_hangup(self) -> None:
        self._left = True
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is None:
            return
        try:
            on_gone()
        except Exception as defect:
            self._report(defect)


class Outlet:
    """Writes a stream. seconds: how long the peer may take for one piece; sent pieces are at most 64 KiB."""

    PIECE = 64 * 1024  # so that the deadline asks for progress, whatever the size of the answer

    def __init__(self, stream: trio.abc.SendStream, seconds: float) -> None:
        self._stream = stream
        self._descriptor = descriptor_of(stream)
        self._seconds = seconds

    def close(self) -> None:
        """No more of it: the stream is about to be closed."""
        self._descriptor = -1

    async def send_soon(self, data: bytes | memoryview) -> None:
        """Like `send`, but a checkpoint only if the peer's buffer is full, as it seldom is for a first answer."""
        if rest := self.send_nowait(data):
            await self.send(rest)

    def send_nowait(self, data: bytes | memoryview) -> bytes | memoryview:
        """Send what the kernel takes at once, and return the rest: what is left to `send`. Raises PeerGone."""
        if self._descriptor < 0:
            return data
        try:
            written = os.write(self._descriptor, data)
        except BlockingIOError:
            return data
        except OSError as error:
            raise PeerGone("the peer closed the connection") from error
        # No copy of the rest: thousands may be slow to read one large answer.
        return b"" if written == len(data) else memoryview(data)[written:]

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of it. Raises PeerGone when the peer has left, or has taken no piece for too long."""
        if not data:
            return
        if len(data) <= self.PIECE:
            await self._send_piece(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), self.PIECE):
            await self._send_piece(view[start : start + self.PIECE])

    async def _send_piece(self, data: bytes | memoryview) -> None:
        try:
            with trio.move_on_after(self._seconds):
                await self._stream.send_all(data)
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerGone("the peer closed the connection") from error
        raise PeerGone("the peer took no data in time")
