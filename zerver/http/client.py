"""The HTTP/1.1 client: one request, one whole answer or one honest error.

Law: the error says what is known. ConnectFailed: not a byte of the request was sent. ExchangeFailed: some
may have been, and no whole answer came. ProtocolViolation: what came is not HTTP, or over a limit. A
connection whose exchange was cut, by whatever, is closed; one that served a whole exchange, and is silent, is
used again.

It follows no redirects, speaks to no proxies (and reads no proxy variables), keeps no cookies and decodes no
compressed bodies: each would send something, or send it somewhere, that nobody has written down in the flow. It
speaks HTTP/1.1 and nothing else. It refuses addresses outside the public Internet unless told otherwise.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Final

import attrs
import trio

from zerver.effects.http import Reply
from zerver.errors import ConnectFailed, ExchangeFailed, ProtocolViolation
from zerver.http.dial import Dial, Quiet, TcpDialer
from zerver.http.gate import HeadLimits
from zerver.http.messages import Headers, HeadersLike, RequestHead, ResponseHead
from zerver.http.outgoing import Body, Origin, Outgoing, outgoing
from zerver.http.pool import Lease, Pool, PoolStatistics
from zerver.http.wire import DEFAULT_HEAD_LIMITS, ClientWire, EndOfMessage, Mark
from zerver.runtime.groups import open_body_nursery

DEFAULT_TIMEOUT: Final = 30.0
DEFAULT_BODY_LIMIT: Final = 8 * 1024 * 1024

_PIECE: Final = 64 * 1024  # bytes sent or read at once
_DISPOSE_SECONDS: Final = 5.0  # that a body's iterator may take to close


@attrs.frozen(kw_only=True)
class ClientLimits:
    """per_origin, total: connections, idle ones included. head: what a peer may send as a head, and as trailers.

    idle_seconds: after which an unused connection is closed: less than the 5 s of node and uvicorn, so that it is
    us who close, and no request crosses a goodbye on its way. connect_seconds: for name, TCP and TLS together.
    """

    per_origin: int = 20
    total: int = 200
    idle_seconds: float = 4.0
    connect_seconds: float = 10.0
    head: HeadLimits = DEFAULT_HEAD_LIMITS


DEFAULT_LIMITS: Final = ClientLimits()


@asynccontextmanager
async def open_http_client(
    *,
    allow_private: bool = False,
    limits: ClientLimits = DEFAULT_LIMITS,
    tls: ssl.SSLContext | None = None,
    tell_deadline: bool = False,
    dial: Dial | None = None,
) -> AsyncGenerator[HttpClient, None]:
    """Open a client; leaving the block closes its connections.

    allow_private: also talk to loopback, private, link-local and other addresses outside the public Internet. What
    is checked is each address that a name has resolved to, and that address is connected to.
    tls: by default the system's authorities, hosts verified. tell_deadline: send the milliseconds that are left as
    X-Request-Timeout-Ms. dial: makes the streams instead, for other transports and for tests; it does its own checks.
    """
    client = HttpClient(dial or TcpDialer(allow_private=allow_private, tls=tls), limits, tell_deadline=tell_deadline)
    async with open_body_nursery() as nursery:
        nursery.start_soon(client.pool.reap)
        try:
            yield client
        finally:
            nursery.cancel_scope.cancel()
            await client.pool.aclose()


class HttpClient:
    """Made by `open_http_client`. May be used by any number of tasks."""

    def __init__(self, dial: Dial, limits: ClientLimits, *, tell_deadline: bool) -> None:
        self.limits = limits
        self.tell_deadline = tell_deadline
        self.pool: Pool[Connection] = Pool(
            per_origin=limits.per_origin,
            total=limits.total,
            idle_seconds=limits.idle_seconds,
            is_alive=Connection.is_silent,
            close=Connection.close,
        )
        self._dial = dial

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersLike | None = None,
        body: Body = b"",
        key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        limit: int | None = DEFAULT_BODY_LIMIT,
    ) -> Reply:
        """One exchange; the whole answer, whatever its status.

        headers: win over what the client would send itself. body: bytes, or an async iterable of bytes, sent chunked.
        key: names this write over all its attempts; sent as Idempotency-Key. timeout: seconds for all of it, the wait
        for a connection included; None leaves it to the caller's cancel scope. limit: bytes of the answer's body.

        A connection that the peer closed before a byte of the answer is replaced once, if the request may be
        repeated: GET, HEAD and OPTIONS, or with an Idempotency-Key.

        Raises ConnectFailed (AddressRefused), ExchangeFailed, ProtocolViolation; DefinitionError, before anything is
        sent, for a URL, method or header that cannot be sent.
        """
        async with self.stream(
            method, url, headers=headers, body=body, key=key, timeout=timeout, limit=limit
        ) as response:
            whole = await response.read()
        return Reply(response.status, _joined(response.headers), whole)

    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: HeadersLike | None = None,
        body: Body = b"",
        key: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        limit: int | None = None,
    ) -> AbstractAsyncContextManager[ClientResponse]:
        """`async with client.stream("GET", url) as response: async for chunk in response: ...`

        As `request`, but the block begins when the head is there. timeout: for all of it, to the last chunk; it
        is raised by the client's own waits, and never cuts what the block itself does. Leaving the block before the end of
        the answer closes the connection.
        """
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        return self._stream(outgoing(method, url, headers, body, key), deadline, limit)

    def statistics(self) -> PoolStatistics:
        """The connections at this moment."""
        return self.pool.statistics()

    async def connect(self, origin: Origin) -> Connection:
        """A new connection, in no pool. Raises ConnectFailed."""
        seconds = self.limits.connect_seconds
        with trio.move_on_after(seconds):
            return Connection(await self._dial(origin), self.limits.head)
        raise ConnectFailed(f"{origin}: no connection within {seconds:g} s")

    @asynccontextmanager
    async def _stream(
        self, request: Outgoing, deadline: float, limit: int | None
    ) -> AsyncGenerator[ClientResponse, None]:
        exchange = _Exchange(self, request, deadline, limit)
        # A large body is sent beside the reading of the answer: a peer that answers before it has read all of it would
        # else wait for us while we wait for it.
        async with nullcontext() if _fits_one_write(request) else open_body_nursery() as exchange.nursery:
            try:
                yield await exchange.begin()
            finally:
                await exchange.end()


class Connection:
    """One connection: its stream, and our end of the wire."""

    def __init__(self, stream: trio.abc.Stream, limits: HeadLimits) -> None:
        self.stream = stream
        self.wire = ClientWire(limits)
        self._quiet = Quiet(stream)

    def is_silent(self) -> bool:
        """Whether nothing has arrived that nobody asked for. A closed connection is not silent."""
        return self._quiet.look()

    async def is_read_up(self) -> bool:
        """Whether nothing lies between socket and wire."""
        return await self._quiet.is_read_up()

    async def close(self) -> None:
        """Close at once, without ceremony: whoever has something left to say has said it, or will not be heard."""
        try:
            await trio.aclose_forcefully(self.stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it had gone before


class ClientResponse:
    """An answer whose head is there. Iterate over it once for its body, in pieces as they come."""

    def __init__(self, head: ResponseHead, exchange: _Exchange) -> None:
        self.status = head.status
        self.headers: Headers = head.headers
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._exchange.next_piece()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def read(self) -> bytes:
        """The rest of the body. Raises ExchangeFailed, ProtocolViolation."""
        pieces: list[bytes] = []
        while piece := await self._exchange.next_piece():
            pieces.append(piece)
        return b"".join(pieces)


class _Exchange:
    """One request on its way. Holds a lease; knows what has been sent, and how much of the answer has come."""

    def __init__(self, client: HttpClient, request: Outgoing, deadline: float, limit: int | None) -> None:
        self.nursery: trio.Nursery | None = None
        self._client = client
        self._request = request
        self._deadline = deadline
        self._limit = math.inf if limit is None else limit
        self._lease: Lease[Connection] | None = None
        self._sender: _Sender | None = None
        self._sending = False  # at least one byte may be out
        self._heard = False  # of the answer, at least one byte has come
        self._over = False  # the answer is whole
        self._read = 0  # bytes of its body

    # ---- from the request to the head of the answer -------------------------------------------

    async def begin(self) -> ClientResponse:
        with trio.CancelScope(deadline=self._deadline):
            return ClientResponse(await self._ask(), self)
        raise self._late()

    async def _ask(self) -> ResponseHead:
        origin = self._request.origin
        lease = self._lease = await self._client.pool.acquire(origin)
        if lease.connection is None:
            lease.connection = await self._client.connect(origin)
        head = await self._ask_on(lease.connection)
        if head is None and lease.reused and self._request.repeatable:
            # The peer hung up while we were dialling, so to speak. Once more, on a connection that cannot be stale.
            await self._renew(lease)
            head = await self._ask_on(await self._connect_again(lease))
        if head is None:
            raise self._failed("the peer closed the connection before it answered")
        self._check_announced(head)
        return head

    async def _renew(self, lease: Lease[Connection]) -> None:
        if self._sender is not None:
            await self._sender.stop()
        await self._client.pool.renew(lease)

    async def _connect_again(self, lease: Lease[Connection]) -> Connection:
        try:
            connection = lease.connection = await self._client.connect(lease.origin)
        except ConnectFailed as error:
            raise self._failed(f"sent in vain on a connection that was closed, and then: {error}") from error
        return connection

    async def _ask_on(self, connection: Connection) -> ResponseHead | None:
        """Send the request, read the head. None when the peer has gone without a word."""
        request = self._request
        start = connection.wire.send_head(self._head(), request.length)
        sender = self._sender = _Sender(connection, start, request.body)
        self._sending = True
        if self.nursery is not None:
            self.nursery.start_soon(sender.run)
        else:
            await sender.run()
        return await self._read_head(connection)

    def _head(self) -> RequestHead:
        left = trio.current_effective_deadline() - trio.current_time()
        if not self._client.tell_deadline or left == math.inf:
            return self._request.head
        return self._request.head_with(b"x-request-timeout-ms", b"%d" % max(0.0, left * 1000))

    async def _read_head(self, connection: Connection) -> ResponseHead | None:
        wire = connection.wire
        while True:
            event = wire.next_event()
            if isinstance(event, ResponseHead):
                return event
            if event is not Mark.NEED_DATA:
                if self._heard:
                    raise self._failed("the peer closed the connection in the middle of a head")
                return None
            try:
                data = await connection.stream.receive_some(_PIECE)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                if self._heard:
                    raise self._failed("the connection broke in the middle of a head") from error
                return None
            self._heard = self._heard or bool(data)
            wire.receive(data)

    def _check_announced(self, head: ResponseHead) -> None:
        if self._limit == math.inf or self._request.head.method == "HEAD" or head.status in (204, 304):
            return
        announced = head.headers.get("content-length")
        if announced is not None and int(announced) > self._limit:
            raise self._too_large()

    # ---- the body of the answer ---------------------------------------------------------------

    async def next_piece(self) -> bytes:
        """The next bytes of the body; b"" at its end."""
        with trio.CancelScope(deadline=self._deadline):
            return await self._next_piece()
        raise self._late()

    async def _next_piece(self) -> bytes:
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
                connection.wire.receive(await connection.stream.receive_some(_PIECE))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise self._failed("the connection broke in the middle of the answer") from error

    # ---- the end ------------------------------------------------------------------------------

    async def end(self) -> None:
        """Give the lease back, with a connection that is fit for another exchange or with none."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        keep = False
        try:
            keep = lease.connection is not None and await self._is_fit(lease.connection)
        finally:
            if self._sender is not None:
                self._sender.scope.cancel()
            await self._client.pool.give_back(lease, keep=keep)

    async def _is_fit(self, connection: Connection) -> bool:
        if self._sender is None or not self._sender.sent:
            return False
        if not self._over and not _is_over(connection.wire):
            return False
        if not (connection.wire.reusable and await connection.is_read_up()):
            return False
        connection.wire.next_cycle()
        return True

    # ---- what went wrong ----------------------------------------------------------------------

    def _failed(self, what: str) -> ExchangeFailed:
        return ExchangeFailed(f"{self._request.head.method} {self._request.origin}: {what}")

    def _too_large(self) -> ProtocolViolation:
        return ProtocolViolation(f"{self._request.origin}: the body of the answer is over {self._limit} bytes", 502)

    def _late(self) -> ConnectFailed | ExchangeFailed:
        if self._sending:
            return self._failed("its time was up before the answer was whole")
        return ConnectFailed(f"{self._request.origin}: its time was up before there was a connection")


def _is_over(wire: ClientWire) -> bool:
    """Whether the answer is whole, though nobody has read to its end: it has no body, or none that is left."""
    try:
        return isinstance(wire.next_event(), EndOfMessage)
    except ProtocolViolation:
        return False


class _Sender:
    """Sends one request. sent: whether all of it is out. A peer that stops listening is no error here:

    what it had to say about that is read by whoever reads the answer.
    """

    def __init__(self, connection: Connection, start: bytes, body: Body) -> None:
        self.sent = False
        self.scope = trio.CancelScope()
        self._connection = connection
        self._start = start
        self._body = body
        self._ended = trio.Event()

    async def run(self) -> None:
        try:
            with self.scope:
                await self._send()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._ended.set()

    async def stop(self) -> None:
        self.scope.cancel()
        await self._ended.wait()

    async def _send(self) -> None:
        wire, send_all, body = self._connection.wire, self._connection.stream.send_all, self._body
        if isinstance(body, bytes) and len(body) <= _PIECE:
            await send_all(self._start + wire.send_data(body) + wire.send_end())
        else:
            await send_all(self._start)
            if isinstance(body, bytes):
                for at in range(0, len(body), _PIECE):
                    await send_all(wire.send_data(body[at : at + _PIECE]))
            else:
                await self._send_pieces(body)
            await send_all(wire.send_end())
        self.sent = True
