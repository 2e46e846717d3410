"""The HTTP/1.1 client: one request, one whole answer or one honest error.

Law: the error says what is known. ConnectFailed: not a byte of the request was sent. ExchangeFailed: some
may have been, and no whole answer came. ProtocolViolation: what came is not HTTP, or over a limit. A
connection whose exchange was cut, by whatever, is closed; one that served a whole exchange, and is silent, is
used again.

It follows redirects only where it is asked to (`redirects=`), speaks to no proxies (and reads no proxy
variables), keeps no cookies and decodes no compressed bodies: each would send something, or send it somewhere,
that nobody has written down in the flow. It speaks HTTP/1.1 and nothing else. It refuses addresses outside the
public Internet unless told otherwise.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Final

import attrs
import trio

from zerver.core.priorities import Priority
from zerver.effects.http import Exchange, Reply
from zerver.errors import ConnectFailed
from zerver.http.dial import Dial, TcpDialer
from zerver.http.gate import HeadLimits
from zerver.http.messages import Headers, HeadersLike, ResponseHead
from zerver.http.outgoing import Body, Origin, Outgoing, outgoing
from zerver.http.pool import Pool, PoolStatistics
from zerver.http.reading import DEFAULT_HEAD_LIMITS
from zerver.http.redirects import next_hop
from zerver.http.roundtrip import Connection, RoundTrip, Terms
from zerver.runtime.groups import open_body_nursery

DEFAULT_TIMEOUT: Final = 30.0  # seconds
DEFAULT_BODY_LIMIT: Final = 8 * 1024 * 1024

_NO_NURSERY: Final = nullcontext()


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
        self._limits = limits
        self._tell_deadline = tell_deadline
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
        redirects: int = 0,
        priority: Priority = "default",
    ) -> Reply:
        """One exchange; the whole answer, whatever its status.

        headers: win over what the client would send itself. body: bytes, or an async iterable of bytes, sent chunked.
        key: names this write over all its attempts; sent as Idempotency-Key. timeout: seconds for all of it, the wait
        for a connection included; None leaves it to the caller's cancel scope. limit: bytes of the answer's body.
        redirects: how many a read may follow, each to an address that is checked like the first; another origin
        gets none of `headers` but Accept*, Range and User-Agent. One more than that is the answer.
        priority: the class in which it waits for a connection.

        A connection that the peer closed before a byte of the answer is replaced once, if the request may be
        repeated: GET, HEAD and OPTIONS, or with an Idempotency-Key. A write that is answered with 429 or 5xx then is
        an ExchangeFailed: that answer says nothing of the first time.

        Raises ConnectFailed (AddressRefused), ExchangeFailed, ProtocolViolation; DefinitionError, before anything is
        sent, for a URL, method or header that cannot be sent.
        """
        asked = outgoing(method, url, headers, body, key)
        return await self._answer(asked, redirects, self._terms(timeout, limit, priority))

    def perform(
        self, exchange: Exchange, told: Mapping[str, str], key: str | None, priority: Priority
    ) -> Awaitable[Reply]:
        """As `request`, for an effect. told: fields that differ from call to call; the exchange's own win over them.

        It may take as long as the scopes around it say. Where they say nothing, 30 s: a dead peer must not hold a run
        for ever.
        """
        # Trio is asked, and not the run: a server that drains and the program around it have scopes of their own.
        until, deadline = trio.current_effective_deadline(), math.inf
        if until == math.inf:
            until = deadline = trio.current_time() + DEFAULT_TIMEOUT
        terms = Terms(deadline, exchange.limit, priority, until if self._tell_deadline else math.inf)
        asked = outgoing(exchange.method, exchange.url, exchange.headers, exchange.body, key, told)
        return self._answer(asked, exchange.redirects, terms)

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
        priority: Priority = "default",
    ) -> AbstractAsyncContextManager[ClientResponse]:
        """`async with client.stream("GET", url) as response: async for chunk in response: ...`

        As `request`, but the block begins when the head is there. timeout: for all of it, to the last chunk;
        it ends the client's own waits, and never cuts what the block itself does. Leaving the block before the end
        of the answer closes the connection.
        """
        return self._stream(outgoing(method, url, headers, body, key), self._terms(timeout, limit, priority))

    @property
    def serves_at_once(self) -> int:
        """How many exchanges with one origin it can perform at once. Effects whose handlers use it wait for a place
        before their attempts begin, and not here, in the middle of one.
        """
        return self._limits.per_origin

    def statistics(self) -> PoolStatistics:
        """The connections at this moment."""
        return self.pool.statistics()

    async def connect(self, origin: Origin) -> Connection:
        """A new connection, in no pool. Raises ConnectFailed."""
        seconds = self._limits.connect_seconds
        with trio.move_on_after(seconds):
            return Connection(await self._dial(origin), self._limits.head)
        raise ConnectFailed(f"{origin}: no connection within {seconds:g} s")

    def _terms(self, timeout: float | None, limit: int | None, priority: Priority) -> Terms:
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        return Terms(deadline, limit, priority, None if self._tell_deadline else math.inf)

    async def _answer(self, asked: Outgoing, redirects: int, terms: Terms) -> Reply:
        while True:
            trip = RoundTrip(self.pool, self.connect, asked, terms)
            if trip.needs_nursery:
                async with open_body_nursery() as trip.nursery:
                    head, body = await trip.whole()
            else:
                head, body = await trip.whole()
            hop = next_hop(asked, head) if redirects > 0 else None
            if hop is None:
                return Reply(head.status, dict(head.joined), body)
            asked, redirects = hop, redirects - 1

    @asynccontextmanager
    async def _stream(self, asked: Outgoing, terms: Terms) -> AsyncGenerator[ClientResponse, None]:
        trip = RoundTrip(self.pool, self.connect, asked, terms)
        async with open_body_nursery() if trip.needs_nursery else _NO_NURSERY as trip.nursery:
            try:
                yield ClientResponse(await trip.begin(), trip)
            finally:
                await trip.end()


class ClientResponse:
    """An answer whose head is there. Iterate over it once for its body, in pieces as they come."""

    def __init__(self, head: ResponseHead, trip: RoundTrip) -> None:
        self.status = head.status
        self.headers: Headers = head.headers
        self._trip = trip

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._trip.next_piece()
        if not piece:
            raise StopAsyncIteration
        return piece

    async def read(self) -> bytes:
        """The rest of the body. Raises ExchangeFailed, ProtocolViolation."""
        return await self._trip.rest()
