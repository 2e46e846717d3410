"""The edge behind another server: one request of an ASGI server, answered by a handler of ours.

Law: a handler sees no difference. The other server owns the socket, the parsing and the limits on heads; what is ours
stays ours: the body is read when it is asked for, under the same limits; a client that leaves is noticed while somebody
watches; each piece of an answer has a deadline; and nothing is sent that could not be sent on a wire of our own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import trio

from zerver.errors import ExchangeFailed, InternalError, ProtocolViolation
from zerver.http import gate
from zerver.http.bodies import dispose, pour
from zerver.http.connection import Service, ask
from zerver.http.exchange import Exchange, Limits
from zerver.http.messages import Deferred, Headers, RequestHead, Response, Writer
from zerver.http.streams import PeerGone
from zerver.runtime.groups import unwrapped

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
SendMessage: TypeAlias = Callable[[Message], Awaitable[None]]

#: What frames a message is the other server's business.
_FRAMING: Final = frozenset((b"transfer-encoding", b"connection", b"keep-alive", b"upgrade"))
_BODILESS: Final = (204, 304)
_PATH: Final = "/!$&'()*+,;=:@~"  # what a path may have in it as it is (RFC 3986 §3.3)


async def serve_scope(service: Service, scope: Scope, receive: Receive, send: SendMessage) -> None:
    """Answer one request: the `http` scope of ASGI. Raises nothing but cancellation."""
    answering = Answering(service, scope, send)
    try:
        with unwrapped():
            async with trio.open_nursery() as nursery:
                await answering.run(receive, nursery)
                nursery.cancel_scope.cancel()  # a wait for the client that nobody needs any more
    except PeerGone:
        pass  # there is nobody left to tell


class Answering:
    """One request on its way to its answer."""

    def __init__(self, service: Service, scope: Scope, send: SendMessage) -> None:
        self._service = service
        self._scope = scope
        self._send = send
        self._head_only = scope["method"] == "HEAD"

    async def run(self, receive: Receive, nursery: trio.Nursery) -> None:
        limits = self._service.limits
        try:
            head = head_of(self._scope)
            _ = head.segments
        except ProtocolViolation as violation:
            await self._answer(self._service.refuse(violation))
            return
        exchange = ScopeExchange(head, self._scope, limits, receive, nursery)
        response = await ask(self._service, exchange)
        try:
            with trio.CancelScope() as scope:
                exchange.watch_answer(scope.cancel)
                await self._answer(response)
            if scope.cancelled_caught:
                raise PeerGone("the client left during its answer")
        finally:
            if not isinstance(response.body, bytes):
                await dispose(response.body, limits.cleanup_seconds, self._service.report)

    async def _answer(self, response: Response) -> None:
        try:
            start = _start(response, self._head_only)
        except Exception as defect:  # a status or a header that cannot be sent
            response = self._service.stumble(defect)
            start = _start(response, self._head_only)
        await self._push(start)
        if self._head_only or response.status in _BODILESS:
            await self._push_piece(b"", more=False)
        elif isinstance(response.body, bytes):
            await self._push_piece(response.body, more=False)
        else:
            await self._pour(response.body)

    async def _pour(self, body: AsyncIterator[bytes] | Writer | Deferred) -> None:
        if isinstance(body, Deferred):
            raise InternalError(f"{body!r} was not opened")
        try:
            await pour(body, self._push_piece)
        except PeerGone:
            raise
        except Exception as defect:
            # Half an answer is out; not ending it is the only way left to say that it is half.
            self._service.report(defect)
            raise PeerGone("the answer broke off") from defect
        await self._push_piece(b"", more=False)

    async def _push_piece(self, piece: bytes, *, more: bool = True) -> None:
        if piece or not more:
            await self._push({"type": "http.response.body", "body": piece, "more_body": more})

    async def _push(self, message: Message) -> None:
        try:
            with trio.move_on_after(self._service.limits.write_seconds):
                await self._send(message)
                return
        except OSError as error:  # what servers raise for a client that has left (ASGI 2.4)
            raise PeerGone("the client closed the connection") from error
        raise PeerGone("the client took no data in time")


class ScopeExchange(Exchange):
    """A request that another server has read."""

    def __init__(
        self, head: RequestHead, scope: Mapping[str, Any], limits: Limits, receive: Receive, nursery: trio.Nursery
    ) -> None:
        client = scope.get("client")
        super().__init__(head, client[0] if client else "", scope.get("scheme", "http"), limits)
        self._receive = receive
        self._nursery = nursery
        self._on_gone: Callable[[], None] | None = None
        self._kept: Message | None = None  # what the watch has read of the body
        self._body_over = self.gone = self._watching = False
        self._arrived = trio.Event()  # the watch has something, or has ended

    @property
    def body_length(self) -> int | None:
        length = self.head.headers.get("content-length")
        if length is None:
            return None if "transfer-encoding" in self.head.headers else 0
        return int(length) if length.isascii() and length.isdigit() else None

    def watch_disconnect(self, on_gone: Callable[[], None]) -> None:
        if not self._ended:
            self._watch(on_gone)

    def watch_answer(self, on_gone: Callable[[], None]) -> None:
        """The same, while the answer is sent. What is left of the body is passed over then."""
        self._kept = None
        self._watch(on_gone)

    def end(self) -> None:
        super().end()
        self._on_gone = None

    def _watch(self, on_gone: Callable[[], None]) -> None:
        if self.gone:
            on_gone()
            return
        self._on_gone = on_gone
        if not self._watching and self._kept is None:
            self._watching, self._arrived = True, trio.Event()
            self._nursery.start_soon(self._read_behind)

    async def _read_behind(self) -> None:
        """Wait for the client to leave. A piece of the body that comes first is kept, and nothing is read behind it."""
        try:
            while not self.gone:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    self._notice_end()
                elif not self._body_over and not self._ended:
                    self._kept = message
                    self._arrived.set()
                    if message.get("more_body", False):
                        return
        finally:
            self._watching = False
            self._arrived.set()

    def _notice_end(self) -> None:
        self.gone = True
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()

    async def _fetch(self) -> bytes | None:
        while not self._body_over:
            message = await self._next_message()
            if message["type"] == "http.disconnect":
                self._notice_end()
                raise ExchangeFailed("the client left before its body was complete")
            self._body_over = not message.get("more_body", False)
            if piece := bytes(message.get("body", b"")):
                return piece
        if self._on_gone is not None:
            self._watch(self._on_gone)
        return None

    async def _next_message(self) -> Message:
        if self._kept is None and self._watching:
            await self._arrived.wait()  # the watch has a receive under way, whose message is ours
        kept, self._kept = self._kept, None
        if kept is not None:
            return kept
        return {"type": "http.disconnect"} if self.gone else await self._receive()


def head_of(scope: Mapping[str, Any]) -> RequestHead:
    """The head of a scope. Raises ProtocolViolation for what is no request, as far as a scope can tell."""
    raw = scope.get("raw_path") or quote(scope["path"], safe=_PATH).encode()  # not every server gives the raw one
    query = scope.get("query_string", b"")
    target = raw.partition(b"?")[0] + (b"?" + query if query else b"")
    try:
        start = f"{scope['method']} {target.decode('ascii')}"
        gate.check_outgoing_request(start.encode("ascii"))
    except (UnicodeError, ValueError):
        raise ProtocolViolation("the target is not one") from None
    fields = tuple((bytes(name).lower(), bytes(value)) for name, value in scope["headers"])
    return RequestHead(scope["method"], target.decode("ascii"), Headers(fields), scope.get("http_version", "1.1"))


def _start(response: Response, head_only: bool) -> Message:
    """Raises ValueError for what cannot be sent."""
    if not 200 <= response.status <= 999:
        raise ValueError(f"not a final status: {response.status}")
    gate.check_outgoing_fields(response.headers.raw)
    fields = [field for field in response.headers.raw if field[0] not in _FRAMING]
    if isinstance(response.body, bytes) and response.status not in _BODILESS:
        said = response.headers.get("content-length") if head_only else None
        fields = [field for field in fields if field[0] != b"content-length"]
        fields.append((b"content-length", (said or str(len(response.body))).encode("ascii")))
    return {"type": "http.response.start", "status": response.status, "headers": fields}
