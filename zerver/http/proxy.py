"""The reverse proxy: a step that lets another server answer, and passes both bodies on as they come.

Law: what belongs to a connection stays on it (RFC 9110 §7.6.1), and what says where a request came from is said by us
alone: the client's own `X-Forwarded-*` and `Forwarded` go no further. The other server's answer is sent as it is, of
whatever status; no answer is 502, none in time 504.

It follows no redirects, retries nothing that may have arrived, and rewrites neither paths, nor cookies, nor bodies.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import trio

from zerver.core.decisions import Done
from zerver.core.effects import INJECTED, CallInfo, effect
from zerver.core.steps import Step, step
from zerver.errors import DefinitionError, ExchangeFailed
from zerver.http.capability import downstream
from zerver.http.client import ClientResponse, HttpClient
from zerver.http.exchange import Exchange
from zerver.http.messages import Headers, Response
from zerver.http.outgoing import read_url
from zerver.http.relay import SAFE_METHODS, Passage, Relay

#: A body of a known length up to this is read first and sent with its length: not every server reads chunks.
_WHOLE: Final = 1024 * 1024

#: Seconds between two pieces of an answer, after which it is taken for dead.
_STALL: Final = 60.0

_OF_THE_CONNECTION: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"transfer-encoding", b"upgrade")
)  # fmt: skip
_OURS: Final = frozenset(
    (b"host", b"content-length", b"expect", b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
     b"x-forwarded-prefix", b"x-forwarded-port", b"x-real-ip", b"x-request-timeout-ms", b"x-request-id",
     b"traceparent")
)  # fmt: skip


def proxy(base_url: str, *, body_limit: int | None = None) -> Step[..., Any]:
    """A step that has a request answered by the server at `base_url`, which its whole path and query are added to.

        legacy = Flow("legacy", [verify, proxy("http://10.0.0.7:9000")], deadline=10.0)
        app.route("GET", "/v1/{rest:path}", legacy)

    It is one effect: a read for GET, HEAD, OPTIONS and TRACE, else a write without a key, which is never repeated. The
    app needs `http_client()`, with allow_private=True for a server of your own network. The other server is told who
    asked (X-Forwarded-For, -Host, -Proto), for which run (X-Request-Id), by which span (traceparent; the caller's
    tracestate goes along as it came) and how long we wait (X-Request-Timeout-Ms).

    The flow's deadline holds until the head of the answer is there; after it, a minute between two pieces. body_limit:
    bytes of the request's body; by default the server's own limit.

    Raises DefinitionError for a URL that no client could use, or that has a query.
    """
    origin, target = read_url(base_url)
    if "?" in target or "#" in base_url:
        raise DefinitionError(f"proxy({base_url!r}): the URL has a query", "leave it out; the request has its own")
    base, name = base_url.rstrip("/"), f"proxy {origin.authority}"

    @effect(kind="proxy.read", access="read", target=name)
    async def read(passage: Passage, *, http: HttpClient = INJECTED, info: CallInfo = INJECTED) -> Response:
        return await passage.relay(partial(_answer, http, base, passage, info, body_limit))

    @effect(kind="proxy.write", access="write", target=name)
    async def write(passage: Passage, *, http: HttpClient = INJECTED, info: CallInfo = INJECTED) -> Response:
        return await passage.relay(partial(_answer, http, base, passage, info, body_limit))

    @step(name=name, effects=(read, write))
    async def pass_on(passage: Passage) -> Done:
        return Done(await (read if passage.head.method in SAFE_METHODS else write)(passage))

    return pass_on


async def _answer(
    http: HttpClient, base: str, passage: Passage, info: CallInfo, limit: int | None, relay: Relay
) -> None:
    head, exchange = passage.head, passage.exchange
    upload = _Upload(exchange, limit)
    length = exchange.body_length
    body = upload if length is None or length > _WHOLE else await exchange.read_body(limit)
    url = base + head.path + (f"?{head.query}" if head.query else "")
    async with http.stream(head.method, url, headers=_request_fields(passage, info), body=body, timeout=None) as reply:
        await upload.stop()
        relay.start(reply.status, _end_to_end(reply.headers))
        while piece := await _next_piece(reply):
            await relay.send(piece)
    await relay.send(b"", more=False)


async def _next_piece(reply: ClientResponse) -> bytes:
    with trio.move_on_after(_STALL):
        return await anext(reply, b"")
    raise ExchangeFailed(f"the other server has sent nothing for {_STALL:g} s")


def _request_fields(passage: Passage, info: CallInfo) -> Headers:
    caller = passage.caller
    said = [*downstream(info).items(), ("x-forwarded-proto", caller.scheme), ("x-forwarded-host", caller.host)]
    if caller.client and caller.client != "unix":
        said.append(("x-forwarded-for", caller.client))
    kept = [field for field in _end_to_end(passage.head.headers).raw if field[0] not in _OURS]
    return Headers((*kept, *Headers.of(said).raw))


def _end_to_end(headers: Headers) -> Headers:
    """Without the fields of one connection, and those that it names."""
    dropped = _OF_THE_CONNECTION | {token.encode("latin-1") for token in headers.tokens("connection")}
    return Headers(tuple(field for field in headers.raw if field[0] not in dropped))


class _Upload(AsyncIterator[bytes]):
    """A request's body on its way to the other server, until that begins to answer.

    From then on our own client is answered, and what it has not sent is its connection's business.
    """

    def __init__(self, exchange: Exchange, limit: int | None) -> None:
        self._exchange = exchange
        self._limit = limit
        self._scope = trio.CancelScope()
        self._stopped = False
        self._idle = trio.Event()
        self._idle.set()

    async def stop(self) -> None:
        """Read no more. Returns when nobody reads."""
        self._stopped = True
        self._scope.cancel()
        await self._idle.wait()

    async def __anext__(self) -> bytes:
        if not self._stopped:
            self._idle = trio.Event()
            try:
                with trio.CancelScope() as self._scope:
                    if piece := await self._exchange.next_piece(self._limit):
                        return piece
                    raise StopAsyncIteration
            finally:
                self._idle.set()
        # What was sent is no whole request, and must not look like one. The client ends this wait.
        await trio.sleep_forever()
        raise StopAsyncIteration
