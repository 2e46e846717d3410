"""One request as its handler sees it: a head, a body that is read when asked for, a peer that may leave.

Law: this is all that the HTTP edge shows to whoever answers requests, and it knows no routes, runs or flows. Nothing of
a body is read before it is asked for; what is wrong with it is one error, the same at each attempt, and the client's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import attrs
import trio

from zerver.errors import ExchangeFailed, HttpError, ProtocolViolation
from zerver.http.gate import HeadLimits
from zerver.http.messages import Headers, RequestHead, Response
from zerver.http.reading import DEFAULT_HEAD_LIMITS, EndOfMessage, Mark
from zerver.http.streams import Inlet, Outlet, PeerGone
from zerver.http.wire import ServerWire

T = TypeVar("T")


@attrs.frozen
class Limits:
    """What a client may take of the server. Sizes in bytes, times in seconds.

    - head: see HeadLimits; 414 and 431.
    - body: 413, before any of it is read if Content-Length tells.
    - head_seconds: from a head's first byte to its last, 408; also how long a new connection may be silent, and how
      long a TLS handshake may take.
    - idle_seconds: between requests; then the connection is closed without a word.
    - body_grace_seconds, body_rate: a body may take the grace, plus a second for each body_rate bytes; 408.
    - write_seconds: for the peer to take 64 KiB or less; then the connection is cut.
    - drain, linger_seconds: how much of what nobody read is thrown away before closing, and for how long.
    - cleanup_seconds: how long a response's iterator may take to close.
    - connections: how many may be open at once; 503 to those over it, as soon as they connect.
    - lag_seconds: how long the loop may look away from its sockets; if it does so again and again, 503 to those who
      connect. memory: of the process, resident; None is no limit. 503 to those who connect when 95 % of it is in use,
      or 90 % of the files that the system allows.
    """

    head: HeadLimits = DEFAULT_HEAD_LIMITS
    body: int = 1024 * 1024
    head_seconds: float = 10.0
    idle_seconds: float = 60.0
    body_grace_seconds: float = 10.0
    body_rate: int = 1000
    write_seconds: float = 30.0
    drain: int = 64 * 1024
    linger_seconds: float = 2.0
    cleanup_seconds: float = 5.0
    connections: int = 10_000
    lag_seconds: float = 0.1
    memory: int | None = None


DEFAULT_LIMITS: Final = Limits()


@attrs.define
class Channel:
    """The parts of a connection that an exchange works with. kept: see `Exchange.of_fields`: the fields, by whom
    something was made of them, and what.
    """

    wire: ServerWire
    inlet: Inlet
    outlet: Outlet
    limits: Limits
    peer: str
    scheme: str
    kept: tuple[Headers, object, Any] | None = None


class Exchange(ABC):
    """One request. Valid until its handler returns.

    head: the request's head; its path is known to decode. peer: the other end's IP address, "unix" on a Unix socket,
    or "". scheme: of the connection, "http" or "https". What a proxy says of either is for `Trust` to judge.
    """

    # Of the class, until a body is read: most requests have none, and those that are refused are not asked for it.
    _pieces: list[bytes] | None = None
    _size = 0
    _waited = 0.0  # seconds, for the client to send its body
    _failure: HttpError | None = None
    _ended = False
    _complete = False
    _piecewise = False

    def __init__(self, head: RequestHead, peer: str, scheme: str, limits: Limits) -> None:
        self.head = head
        self.peer = peer
        self.scheme = scheme
        self.limits = limits

    async def read_body(self, limit: int | None = None) -> bytes:
        """The whole body. It is read now and not before: a request that is refused costs its head only.

        limit: in bytes; by default Limits.body. May be called again, also after it was cancelled.

        Raises ProtocolViolation (413 over the limit, 408 too slow, 400 malformed) or ExchangeFailed (the
        client left half way). A handler may let these pass: the connection answers with their status, and
        closes. RuntimeError when `next_piece` has taken some of it.
        """
        if self._piecewise:
            raise RuntimeError("the body has been read piece by piece")
        pieces = self._pieces = self._pieces or []
        while (piece := await self._next(limit)) is not None:
            pieces.append(piece)
        pieces[:] = [b"".join(pieces)]
        return pieces[0]

    def read_body_nowait(self) -> bytes | None:
        """The same, if all of it has come, which that of most requests has when its head has. None when it has not, or
        when something is wrong with it: `read_body` says what.
        """
        if self._pieces is not None or self._piecewise or self._ended or self._failure is not None:
            return None
        body = self._take_whole()
        if body is not None:
            self._pieces, self._size, self._complete = [body], len(body), True
        return body

    async def next_piece(self, limit: int | None = None) -> bytes:
        """The next bytes of the body; b"" at its end. None is kept, and no more is read than is asked for.

        limit: of the whole, as in `read_body`; and as that else. No async generator, so that it may simply be left.
        """
        self._piecewise = True
        while self._pieces:
            if piece := self._pieces.pop(0):
                return piece
        return await self._next(limit) or b""

    def of_fields(self, make: Callable[[Exchange], T]) -> T:
        """What this makes of the head's fields, with peer and scheme, and of nothing else of the request.

        A client says the same in each of its requests. On a connection of our own what was made is kept while the bytes
        of the fields stay what they are, and the same function asks. Raises what `make` raises.
        """
        return make(self)

    @property
    @abstractmethod
    def body_length(self) -> int | None:
        """What the head announces, in bytes; None when it says nothing."""

    @abstractmethod
    def watch_disconnect(self, on_gone: Callable[[], None]) -> None:
        """Call on_gone, once and synchronously, when the client goes; at once if it has gone already.

        Closing the sending side counts as going (`connection.py` says why).

        It is called in another task, and not after the handler has returned. Until this is called nobody watches,
        and nothing is paid for it. Where the kernel cannot tell (`hangups.py`), bytes of a further request are kept
        for later, and nothing is read behind them, so a client that pipelines is not seen leaving.
        """

    def end(self) -> None:
        """The handler has returned: what the stream brings from now on belongs to the next request."""
        self._ended = True

    @property
    def failed(self) -> bool:
        """Whether the body was over its limit, too slow, or none: what follows on the connection is not read."""
        return self._failure is not None

    def owns(self, error: BaseException) -> bool:
        """Whether the error came out of this exchange, and so is the client's doing and not the handler's."""
        return error is self._failure

    def _take_whole(self) -> bytes | None:
        """The whole body, if it is here and within the limit."""
        return None

    @abstractmethod
    async def _fetch(self) -> bytes | None:
        """The next piece of the body from the client; None at its end. Raises PeerGone or HttpError."""

    async def _next(self, limit: int | None) -> bytes | None:
        limit = self.limits.body if limit is None else limit
        if self._ended:
            raise RuntimeError("the exchange is over: its handler has returned")
        if self._failure is not None:
            raise self._failure
        try:
            if max(self.body_length or 0, self._size) > limit:
                raise ProtocolViolation("the body is over the limit", status=413)
            piece = None if self._complete else await self._fetch_in_time()
            self._complete = piece is None
            self._size += len(piece or b"")
            if self._size > limit:
                raise ProtocolViolation("the body is over the limit", status=413)
        except HttpError as failure:
            self._failure = failure
            raise
        except PeerGone as gone:
            self._failure = ExchangeFailed(str(gone))
            raise self._failure from gone
        return piece

    async def _fetch_in_time(self) -> bytes | None:
        """Only the time that is waited for the client counts: not what a slow reader of the body takes."""
        limits, began = self.limits, trio.current_time()
        left = limits.body_grace_seconds + self._size / limits.body_rate - self._waited
        try:
            with trio.CancelScope(deadline=began + left):
                return await self._fetch()
        finally:
            self._waited += trio.current_time() - began
        raise ProtocolViolation("the body did not arrive in time", status=408)


class WireExchange(Exchange):
    """A request on a connection of our own."""

    def __init__(self, head: RequestHead, channel: Channel) -> None:
        super().__init__(head, channel.peer, channel.scheme, channel.limits)
        self._channel = channel

    @property
    def body_length(self) -> int | None:
        return self._channel.wire.body_length

    def of_fields(self, make: Callable[[Exchange], T]) -> T:
        channel, fields = self._channel, self.head.headers  # one object, while their bytes are the same: see the wire
        kept = channel.kept
        if kept is not None and kept[0] is fields and kept[1] is make:
            made: T = kept[2]
            return made
        made = make(self)
        if channel.wire.keeps(fields):
            channel.kept = (fields, make, made)
        return made

    def watch_disconnect(self, on_gone: Callable[[], None]) -> None:
        if not self._ended:
            self._channel.inlet.watch(on_gone)

    def end(self) -> None:
        self._ended = True
        self._channel.inlet.forget()

    def _take_whole(self) -> bytes | None:
        channel = self._channel
        body = channel.wire.take_body(self.limits.body)
        if body is not None:
            channel.inlet.keep_watching()
        return body

    async def _fetch(self) -> bytes | None:
        wire, inlet = self._channel.wire, self._channel.inlet
        if wire.request_complete:
            return None
        if wire.expects_continue and not self._size:  # later, the client has long begun
            await self._channel.outlet.send(wire.send_informational(100))
        while (event := wire.next_event()) is Mark.NEED_DATA:
            wire.receive(await inlet.receive())
        if isinstance(event, bytes):
            return event
        if isinstance(event, EndOfMessage):
            inlet.keep_watching()
            return None
        raise ExchangeFailed("the client left before its body was complete")


Handler = Callable[[Exchange], Awaitable[Response]]
"""Answers one request. What it raises is a defect (500), but for the errors of its own exchange."""
