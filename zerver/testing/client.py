"""A client for an app, in memory: real HTTP/1.1 on both sides, and no socket.

Law: only the network is left out. A request goes through the server's own connection, wire, gate, router, extractors
and renderer, into a run of the real runtime; so what a test sees here is what a client would see. A connection carries
one request. There are no cookies and no redirects: what was answered is shown, and nothing is done about it.

It waits for nothing but Trio, so it works under a mock clock; leaving is cancelling, or leaving `open_request`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

import attrs
import trio
from trio.testing import memory_stream_pair

from zerver.core.app import App
from zerver.core.codec import decode_json, encode_json
from zerver.edge import open_edge
from zerver.errors import DefinitionError, ExchangeFailed
from zerver.http.client_wire import ClientWire
from zerver.http.connection import Connection, Service
from zerver.http.exchange import DEFAULT_LIMITS, Limits
from zerver.http.messages import Headers, HeadersLike, RequestHead, ResponseHead
from zerver.http.reading import EndOfMessage, Mark
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.journal import Journal
from zerver.runtime.opening import open_runtime
from zerver.runtime.result import Result
from zerver.runtime.run import Runtime
from zerver.runtime.telling import Observer

T = TypeVar("T")

_HOST = "app.test"  # RFC 2606: a name that is nobody's
_PEER = "127.0.0.1"
_PIECE = 64 * 1024


@attrs.frozen
class Reply:
    """What the app answered. run: the run that made it, or None when there was none, as for a 404."""

    status: int
    headers: Headers
    body: bytes
    run: Result | None = None

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type_: type[T]) -> T: ...
    def json(self, type_: Any = Any) -> Any:
        """The body decoded as JSON, into a type if one is given. Raises InvalidData."""
        return decode_json(self.body, type_, where="reply")


class OpenRequest:
    """A request that has been sent, and whose answer may be read. Made by `Client.open_request`."""

    def __init__(self, client: Client, stream: trio.abc.Stream, wire: ClientWire) -> None:
        self._client = client
        self._stream = stream
        self._wire = wire
        self._head: ResponseHead | None = None

    async def head(self) -> ResponseHead:
        """The head of the answer, as soon as it is there. Raises ExchangeFailed when the app closes without one."""
        while self._head is None:
            event = await self._event()
            if isinstance(event, ResponseHead):
                self._head = event
        return self._head

    def pieces(self) -> AsyncIterator[bytes]:
        """The body, piece by piece as it comes. Raises ExchangeFailed when it breaks off."""
        return _Pieces(self)

    async def reply(self) -> Reply:
        """The whole answer. Raises ExchangeFailed when the app closes before its end."""
        head = await self.head()
        body = b"".join([piece async for piece in self.pieces()])
        return self._client._replied(head, body)

    async def _event(self) -> object:
        while (event := self._wire.next_event()) is Mark.NEED_DATA:
            self._wire.receive(bytes(await self._stream.receive_some(_PIECE)))
        if event in (Mark.PEER_CLOSED, Mark.PEER_CUT):
            self._client._raise_defect()
            raise ExchangeFailed("the app closed the connection before its answer was complete")
        return event


class _Pieces(AsyncIterator[bytes]):
    """No async generator, so that a loop over it may simply be left."""

    def __init__(self, request: OpenRequest) -> None:
        self._request = request

    async def __anext__(self) -> bytes:
        await self._request.head()
        while not isinstance(event := await self._request._event(), bytes):
            if isinstance(event, EndOfMessage):
                raise StopAsyncIteration
        return event


class Client:
    """Asks an app. Made by `client`.

    runs: the Result of every run that has ended, in order, runs beside HTTP included. runtime: the app's, open.
    """

    def __init__(
        self,
        runtime: Runtime,
        service: Service,
        nursery: trio.Nursery,
        runs: list[Result],
        defects: list[Exception],
    ) -> None:
        self.runs = runs
        self.runtime = runtime
        self._service = service
        self._nursery = nursery
        self._defects = defects
        self._served = 0
        self._idle = trio.Event()
        self._idle.set()

    async def request(
        self, method: str, target: str, *, json: object = None, body: bytes | None = None, headers: HeadersLike = ()
    ) -> Reply:
        """Send a request and read the whole answer.

        target: path and query, percent-encoded. json: a value to encode, which is not None; body: bytes as they are.
        Cancelled while it waits, the client has left.

        Raises ExchangeFailed when the app closes without a whole answer, and what the edge itself raised (an `on_error`
        that raises, a body that cannot be sent) unless the client was opened with `on_defect=`.
        """
        async with self.open_request(method, target, json=json, body=body, headers=headers) as request:
            return await request.reply()

    async def get(self, target: str, *, headers: HeadersLike = ()) -> Reply:
        """As `request`."""
        return await self.request("GET", target, headers=headers)

    async def head(self, target: str, *, headers: HeadersLike = ()) -> Reply:
        """As `request`."""
        return await self.request("HEAD", target, headers=headers)

    async def post(
        self, target: str, *, json: object = None, body: bytes | None = None, headers: HeadersLike = ()
    ) -> Reply:
        """As `request`."""
        return await self.request("POST", target, json=json, body=body, headers=headers)

    async def put(
        self, target: str, *, json: object = None, body: bytes | None = None, headers: HeadersLike = ()
    ) -> Reply:
        """As `request`."""
        return await self.request("PUT", target, json=json, body=body, headers=headers)

    async def patch(
        self, target: str, *, json: object = None, body: bytes | None = None, headers: HeadersLike = ()
    ) -> Reply:
        """As `request`."""
        return await self.request("PATCH", target, json=json, body=body, headers=headers)

    async def delete(self, target: str, *, headers: HeadersLike = ()) -> Reply:
        """As `request`."""
        return await self.request("DELETE", target, headers=headers)

    @asynccontextmanager
    async def open_request(
        self, method: str, target: str, *, json: object = None, body: bytes | None = None, headers: HeadersLike = ()
    ) -> AsyncGenerator[OpenRequest, None]:
        """Send a request; read its answer inside the block, or leave the block and be gone. Arguments: as `request`."""
        if json is not None and body is not None:
            raise DefinitionError(f"{method} {target} was given json= and body=", "give one of them")
        fields = Headers.of(headers)
        if json is not None:
            body = encode_json(json)
            if "content-type" not in fields:
                fields = fields.adding("content-type", "application/json")
        if "host" not in fields:
            fields = Headers(((b"host", _HOST.encode()), *fields.raw))
        wire, data = ClientWire(), body or b""
        sent = wire.send_head(RequestHead(method, target, fields), len(data)) + wire.send_data(data) + wire.send_end()
        async with self.open_connection() as stream:
            await stream.send_all(sent)
            yield OpenRequest(self, stream, wire)

    @asynccontextmanager
    async def open_connection(self) -> AsyncGenerator[trio.abc.Stream, None]:
        """A bare connection to the app, for bytes that are no well-formed request; closed when the block is left."""
        ours, theirs = memory_stream_pair()
        self._served += 1
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        self._nursery.start_soon(self._serve, theirs)
        try:
            yield ours
        finally:
            await trio.aclose_forcefully(ours)

    async def wait_idle(self) -> None:
        """Wait until the app has done with every connection: after leaving in the middle, until the run has ended."""
        await self._idle.wait()

    async def _serve(self, stream: trio.abc.Stream) -> None:
        try:
            await Connection(stream, self._service, _PEER).run()
        finally:
            self._served -= 1
            if not self._served:
                self._idle.set()

    def _replied(self, head: ResponseHead, body: bytes) -> Reply:
        self._raise_defect()
        run_id = head.headers.get("x-request-id")
        return Reply(head.status, head.headers, body, next((r for r in self.runs if r.run_id == run_id), None))

    def _raise_defect(self) -> None:
        if self._defects:
            raise self._defects.pop(0)


@asynccontextmanager
async def client(
    app: App,
    *,
    handlers: Mapping[str, Callable[..., Any]] | None = None,
    seed: int | None = None,
    observers: tuple[Observer, ...] = (),
    limits: Limits = DEFAULT_LIMITS,
    on_defect: Callable[[Exception], None] | None = None,
    journal: Journal | None = None,
) -> AsyncGenerator[Client, None]:
    """Open an app and a client of it. Left, requests under way are cut, and their runs rolled back.

        async with client(app, handlers=scripted({payments.charge: Charge("c_1")}), seed=1) as c:
            reply = await c.post("/v2/checkout", json={"cart_id": "cart_1"})

    handlers, seed, observers, journal: as `open_runtime`. limits: as `serve`. on_defect: told of exceptions of the edge
    itself; without it, the request that caused one raises it.

    Raises DefinitionError when the app cannot work.
    """
    runs: list[Result] = []
    defects: list[Exception] = []
    report = on_defect or defects.append
    async with (
        open_runtime(
            app, observers=(runs.append, *observers), handlers=handlers, seed=seed, journal=journal
        ) as runtime,
        open_edge(app, runtime, on_defect=report) as edge,
        open_body_nursery() as nursery,
    ):
        service = Service(edge.handle, limits, report)
        yield Client(runtime, service, nursery, runs, defects)
        nursery.cancel_scope.cancel()
