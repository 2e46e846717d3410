"""One request and its answer, over one lease of the pool.

Law: it always knows how far it is: whether a byte may be out, whether one has come back, whether the answer is
whole. From that, and nothing else, follow the error it raises, whether it may try once more, and whether the
connection lives on.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import nullcontext
from typing import Final, cast

import trio

from zerver.core.priorities import Priority
from zerver.core.values import value
from zerver.errors import ConnectFailed, ExchangeFailed, ProtocolViolation
from zerver.http.bodies import close_body
from zerver.http.client_wire import ClientWire
from zerver.http.dial import Quiet
from zerver.http.gate import HeadLimits
from zerver.http.messages import ResponseHead
from zerver.http.outgoing import READS, Body, Origin, Outgoing
from zerver.http.pool import Lease, Pool
from zerver.http.reading import EndOfMessage, Mark
from zerver.http.streams import Outlet, PeerGone, descriptor_of

#: Seconds that the other side is told it has beyond our own deadline. Without them its 504 and our timeout would race,
#: and what we know of a request that we cut ourselves is more than what a 504 says.
_GRACE = 0.05

_READ_SIZE: Final = 64 * 1024  # bytes
_DISPOSE_SECONDS: Final = 5.0  # that a body's iterator may take to close

_UNBOUNDED: Final = cast("trio.CancelScope", nullcontext())  # which it is, as far as `with` can tell


@value
class Terms:
    """deadline: in Trio's time. limit: bytes of the answer's body. priority: the class in which it waits for a
    connection. until: when, as the other side is told, nobody waits any more: inf for never, None for the deadline that
    is in force when it is sent.
    """

    deadline: float
    limit: int | None
    priority: Priority = "default"
    until: float | None = math.inf


class Connection:
    """One connection: its stream, and our end of the wire.

    Of a bare TCP stream one system call reads and one writes (see `streams`).
    """

    def __init__(self, stream: trio.abc.Stream, limits: HeadLimits) -> None:
        self.stream = stream
        self.wire = ClientWire(limits)
        self.outlet = Outlet(stream, math.inf)
        self._descriptor = descriptor_of(stream)
        self._quiet = Quiet(stream)

    async def receive(self) -> bytes:
        """The next bytes; b"" when the peer has closed. Raises PeerGone when the connection broke."""
        try:
            while self._descriptor >= 0:
                await trio.lowlevel.wait_readable(self._descriptor)
                try:
                    return os.read(self._descriptor, _READ_SIZE)
                except BlockingIOError:  # the kernel may wake us for a packet that it then throws away
                    continue
            return bytes(await self.stream.receive_some(_READ_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise PeerGone("the connection broke") from error

    def is_silent(self) -> bool:
        """Whether nothing has arrived that nobody asked for. A closed connection is not silent."""
        return self._quiet.look()

    async def is_read_up(self) -> bool:
        """Whether nothing lies between socket and wire."""
        return self._descriptor >= 0 or await self._quiet.is_read_up()

    async def close(self) -> None:
        """Close at once, without ceremony: whoever has something left to say has said it, or will not be heard."""
        self._descriptor = -1
        self.outlet.close()
        try:
            await trio.aclose_forcefully(self.stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it had gone before


class RoundTrip:
    """Open with `begin`, read with `next_piece` or `rest`, and `end` in every case; or do all of that with `whole`.

    nursery: where a body is sent that does not fit into one write.
    """

    def __init__(
        self,
        pool: Pool[Connection],
        connect: Callable[[Origin], Awaitable[Connection]],
        request: Outgoing,
        terms: Terms,
    ) -> None:
        self.nursery: trio.Nursery | None = None
        self._pool = pool
        self._connect = connect
        self._request = request
        self._terms = terms
        self._limit = math.inf if terms.limit is None else terms.limit
        self._lease: Lease[Connection] | None = None
        self._sender: Sender | None = None
        self._sending = False  # at least one byte may be out
        self._sent = False  # all of it is, and there was no sender
        self._heard = False  # of the answer, at least one byte has come
        self._over = False  # the answer is whole
        self._read = 0  # bytes of its body

    # ---- from the request to the head of the answer -------------------------------------------

    @property
    def needs_nursery(self) -> bool:
        """Whether the body is sent beside the reading of the answer.

        A peer that answers before it has read all of a large body would else wait for us while we wait for it.
        """
        body = self._request.body
        return not isinstance(body, bytes) or len(body) > Outlet.PIECE

    async def begin(self) -> ResponseHead:
        """Send the request; the head of the answer. The body may still be on its way."""
        with self._in_time():
            return await self._ask()
        raise self._late()

    async def whole(self) -> tuple[ResponseHead, bytes]:
        """Send the request; the whole answer. It is ended then, however it went."""
        try:
            with self._in_time():
                return await self._ask(), await self._rest()
            raise self._late()
        finally:
            await self.end()

    def _in_time(self) -> trio.CancelScope:
        deadline = self._terms.deadline
        return _UNBOUNDED if deadline == math.inf else trio.CancelScope(deadline=deadline)

    async def _ask(self) -> ResponseHead:
        origin = self._request.origin
        lease = self._lease = await self._pool.acquire(origin, self._terms.priority)
        connection = lease.connection
        if connection is None:
            connection = lease.connection = await self._connect(origin)
        head = await self._ask_on(connection)
        if head is None and lease.reused and self._request.repeatable:
            # It hung up before it heard us. Once more, on a connection that cannot be stale.
            await self._renew(lease)
            connection = await self._connect_again(lease)
            head = await self._ask_on(connection)
            if head is not None and self._request.method not in READS and _is_no_answer(head.status):
                # It may have heard us after all, and gone while it was at work. "I cannot now" speaks of the second
                # time alone, and callers take it for a definite no.
                raise self._failed(f"the peer closed the connection, and answered {head.status} when asked again")
        if head is None:
            raise self._failed("the peer closed the connection before it answered")
        if (connection.wire.body_length or 0) > self._limit:
            raise self._too_large()
        return head

    async def _renew(self, lease: Lease[Connection]) -> None:
        if self._sender is not None and self.nursery is not None:
            self._sender.cancel()
            await self._sender.wait_ended()
        await self._pool.renew(lease)

    async def _connect_again(self, lease: Lease[Connection]) -> Connection:
        try:
            connection = lease.connection = await self._connect(lease.origin)
        except ConnectFailed as error:
            raise self._failed(f"sent in vain on a connection that was closed, and then: {error}") from error
        return connection

    async def _ask_on(self, connection: Connection) -> ResponseHead | None:
        """Send the request, read the head. None when the peer has gone without a word."""
        await trio.lowlevel.checkpoint_if_cancelled()  # what nobody wants any more is not sent
        await self._send(connection)
        wire = connection.wire
        while True:
            try:
                data = await connection.receive()
            except PeerGone as error:
                if self._heard:
                    raise self._failed("the connection broke in the middle of a head") from error
                return None
            if data:
                self._heard = True
            wire.receive(data)
            event = wire.next_event()
            if isinstance(event, ResponseHead):
                return event
            if event is not Mark.NEED_DATA:
                if self._heard:
                    raise self._failed("the peer closed the connection in the middle of a head")
                return None

    async def _send(self, connection: Connection) -> None:
        """Send the request, or begin to. A peer that stops listening is no error here: what it had to say about that is
        for the reader of the answer.
        """
        request, wire = self._request, connection.wire
        head = request.to_send(self._left_ms())
        self._sending, self._sent = True, False
        if self.nursery is not None:
            self._sender = Sender(connection, wire.send_head(head, request.length), request.body)
            self.nursery.start_soon(self._sender.run)
        elif isinstance(request.body, bytes):
            try:  # one write; one packet, if it fits
                if rest := connection.outlet.send_nowait(wire.send_whole(head, request.body)):
                    await connection.outlet.send(rest)
                self._sent = True
            except PeerGone:
                pass

    def _left_ms(self) -> int | None:
        """Milliseconds until nobody waits for the answer any more; None for never, or if nobody is to be told."""
        until = self._terms.until
        if until is None:
            until = trio.current_effective_deadline()
        return None if until == math.inf else int(max(0.0, until - trio.current_time() + _GRACE) * 1000)

    # ---- the body of the answer ---------------------------------------------------------------

    async def next_piece(self) -> bytes:
        """The next bytes of the body; b"" at its end."""
        with self._in_time():
            return await self._piece()
        raise self._late()

    async def rest(self) -> bytes:
        """The rest of the body."""
        with self._in_time():
            return await self._rest()
        raise self._late()

    async def _rest(self) -> bytes:
        if not self._read and self._lease is not None and self._lease.connection is not None:
            body = self._lease.connection.wire.take_body()
            if body is not None:  # it came together with the head, as most do
                self._over = True
                return body
        pieces: list[bytes] = []
        while piece := await self._piece():
            pieces.append(piece)
        return b"".join(pieces)

    async def _piece(self) -> bytes:
        if self._over:
            return b""
        if self._lease is None or self._lease.connection is None:
            raise self._failed("the answer is read outside of its block")
        connection = self._lease.connection
        while True:
            event = connection.wire.next_event()
            if isinstance(event, bytes):
                self._read += len(event)
                if self._read > self._limit:
                    raise self._too_large()
                return event
            if isinstance(event, EndOfMessage):
                self._over = True
                return b""
            if event is not Mark.NEED_DATA:
                raise self._failed("the peer closed the connection in the middle of its answer")
            try:
                connection.wire.receive(await connection.receive())
            except PeerGone as error:
                raise self._failed("the connection broke in the middle of the answer") from error

    # ---- the end ------------------------------------------------------------------------------

    async def end(self) -> None:
        """Give the lease back, with a connection that is fit for another exchange or with none."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        connection, keep = lease.connection, False
        try:
            if connection is not None and self._is_whole(connection.wire):
                keep = connection.wire.next_cycle_nowait() and await connection.is_read_up()
        finally:
            if self._sender is not None:
                self._sender.cancel()
            await self._pool.give_back(lease, keep=keep)

    def _is_whole(self, wire: ClientWire) -> bool:
        """Whether the exchange is over on both sides."""
        sent = self._sent if self._sender is None else self._sender.sent
        return sent and (self._over or (not self._read and _is_over(wire)))

    # ---- what went wrong ----------------------------------------------------------------------

    def _failed(self, what: str) -> ExchangeFailed:
        return ExchangeFailed(f"{self._request.method} {self._request.origin}: {what}")

    def _too_large(self) -> ProtocolViolation:
        return ProtocolViolation(f"{self._request.origin}: the body of the answer is over {self._limit} bytes", 502)

    def _late(self) -> ConnectFailed | ExchangeFailed:
        if self._sending:
            return self._failed("its time was up before the answer was whole")
        return ConnectFailed(f"{self._request.origin}: its time was up before anything was sent")


def _is_no_answer(status: int) -> bool:
    """Whether a status speaks of the moment, and not of what was asked for."""
    return status == 429 or status >= 500


def _is_over(wire: ClientWire) -> bool:
    """Whether an answer of which nobody has read anything has no body to be read."""
    try:
        return isinstance(wire.next_event(), EndOfMessage)
    except ProtocolViolation:
        return False


class Sender:
    """Sends one request, of which not all can be at hand or under way at once, in a task of its own, until `cancel`.

    sent: whether all of it is out.
    """

    def __init__(self, connection: Connection, start: bytes, body: Body) -> None:
        self.sent = False
        self._wire = connection.wire
        self._outlet = connection.outlet
        self._start = start
        self._body = body
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Send all of it, unless the peer is gone."""
        try:
            with self._scope:
                await self._outlet.send(self._start)
                if isinstance(self._body, bytes):
                    await self._outlet.send(self._wire.send_data(self._body) + self._wire.send_end())
                else:
                    await self._send_pieces(self._body)
                self.sent = True
        except PeerGone:
            pass
        finally:
            self._ended.set()

    def cancel(self) -> None:
        self._scope.cancel()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    async def _send_pieces(self, body: AsyncIterable[bytes]) -> None:
        pieces = aiter(body)
        try:
            async for piece in pieces:
                await self._outlet.send(self._wire.send_data(piece))
            await self._outlet.send(self._wire.send_end())
        finally:
            with trio.move_on_after(_DISPOSE_SECONDS, shield=True):
                await close_body(pieces)
