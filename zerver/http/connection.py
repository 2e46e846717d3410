"""The life of one connection: read a head, ask the handler, write the answer, again.

Law: one task runs it, and every wait has an end. Nothing is read ahead of the request under way, so pipelining costs a
client its own time only. After an error answer no further request of the connection is read. Whatever happens, the
stream is closed, and `run` raises nothing but cancellation: a defect goes to `on_defect`. An answer that is made here
carries an `X-Request-Id`, as those of runs do; a client's mistake is not logged, a defect once, with that id.

A client that has closed its sending side counts as gone, as it does to other servers: on TCP "I have sent
all" and "I have left" look the same, and the second is by far the more frequent. If nobody watches for it
to go, it still gets its answer.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from typing import Final

import attrs
import trio

from zerver.errors import InternalError, ProtocolViolation
from zerver.http.alarms import Alarms
from zerver.http.bodies import dispose, finish, pour
from zerver.http.brakes import Brake
from zerver.http.exchange import DEFAULT_LIMITS, Channel, Exchange, Handler, Limits, WireExchange
from zerver.http.hangups import Hangups
from zerver.http.messages import NO_HEADERS, Deferred, Headers, RequestHead, Response, Writer
from zerver.http.parsers import HeadParser, head_parser
from zerver.http.reading import EndOfMessage, Mark, ServerEvent
from zerver.http.response import problem
from zerver.http.streams import Inlet, Outlet, PeerGone
from zerver.http.wire import ServerWire
from zerver.runtime.crash import crash_point
from zerver.runtime.groups import unwrapped

_log = logging.getLogger(__name__)


def late_head() -> ProtocolViolation:
    """What is wrong when a head took too long."""
    return ProtocolViolation("the head did not arrive in time", status=408)


def log_defect(defect: Exception) -> None:
    """The default of `on_defect`: the traceback, to the logger `zerver.http.connection`."""
    _log.error("defect while serving a request", exc_info=defect)


def random_id() -> str:
    """The default of `new_id`: like those of runs."""
    return f"req_{secrets.token_hex(12)}"


@attrs.frozen
class Service:
    """What all connections of a server share. on_defect gets every exception that is nobody's answer. new_id: makes
    the X-Request-Id of answers that no handler has made.
    """

    handler: Handler
    limits: Limits = DEFAULT_LIMITS
    on_defect: Callable[[Exception], None] = log_defect
    parser: HeadParser = attrs.field(factory=head_parser)
    new_id: Callable[[], str] = random_id
    brake: Brake = attrs.field(factory=Brake)

    def refuse(self, violation: ProtocolViolation) -> Response:
        """What the client hears of its mistake. The connection ends with it. No log line: strangers could write it."""
        answer = problem(violation.status, detail=str(violation))
        headers = answer.headers.adding("x-request-id", self.new_id()).adding("connection", "close")
        return Response(answer.status, headers, answer.body)

    def stumble(self, defect: Exception, instead: Response | None = None) -> Response:
        """What the client hears of a bug: that there is one. What it was is in the report. instead: of this answer,
        which could not be sent, and whose X-Request-Id stays: it may be that of a run.
        """
        request_id = (instead and _id_of(instead)) or self.new_id()
        defect.add_note(f"while serving {request_id}")
        self.report(defect)
        return Response(500, _DEFECT_FIELDS.adding("x-request-id", request_id), _DEFECT_BODY)

    def report(self, defect: Exception) -> None:
        try:
            self.on_defect(defect)
        except Exception:
            _log.exception("on_defect raised")


class Connection:
    """One client's connection. peer: its address, for the handler to see. hangups, alarms: of its server, if it has
    one. heard: what has been read of the stream already.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        service: Service,
        peer: str = "",
        hangups: Hangups | None = None,
        heard: bytes = b"",
        alarms: Alarms | None = None,
    ) -> None:
        self.requests = 0  # answered so far
        self._refusals = 0  # the last answers that were such
        self._refused_with = NO_HEADERS  # the fields of the last of these
        self._stream = stream
        self._service = service
        self._limits = service.limits
        self._wire = ServerWire(service.limits.head, service.parser)
        if heard:
            self._wire.receive(heard)
        self._inlet = Inlet(stream, service.report, hangups)
        self._outlet = Outlet(stream, service.limits.write_seconds)
        scheme = "https" if isinstance(stream, trio.SSLStream) else "http"
        self._channel = Channel(self._wire, self._inlet, self._outlet, service.limits, peer, scheme)
        self._closing = False
        self._alarms = alarms or Alarms()
        self._is_alone = alarms is None  # then its alarms are its own
        self._waiting = trio.CancelScope()  # around all waits for a head: to make one for each costs more than a wait
        self._is_cut_short = False
        self._held: trio.lowlevel.Task | None = None  # while nothing is read
        self._idle = False
        self._writer: Writer | None = None  # of the answer under way

    @property
    def idle(self) -> bool:
        """Whether no request is under way, not even the first byte of one."""
        return self._idle

    def close_soon(self) -> None:
        """Close now if idle; else after the request under way, whose answer says `Connection: close`."""
        self._closing = True
        if self._idle:
            self._cut_short()
        if self._writer is not None:
            self._writer.end_soon()

    async def run(self) -> None:
        """Serve the connection to its end. Always closes the stream; raises nothing but cancellation."""
        try:
            if not (self._is_alone or self._inlet.needs_nursery):
                await self._serve_and_close()
                return
            with unwrapped():
                async with trio.open_nursery() as nursery:
                    self._inlet.nursery = nursery
                    if self._is_alone:
                        nursery.start_soon(self._alarms.run)
                    await self._serve_and_close()
                    nursery.cancel_scope.cancel()  # a read that is pending for nobody, and the alarms
        finally:
            self._inlet.nursery = None
            self._inlet.close()
            self._outlet.close()
            await self._cut()

    def ring(self) -> None:
        """See `Sleeper`: it has been held, or has waited for a head, long enough."""
        held, self._held = self._held, None
        if held is None:
            self._cut_short()
        else:
            trio.lowlevel.reschedule(held)

    def _cut_short(self) -> None:
        self._is_cut_short = True  # as the scope's `cancel_called`, which looks at the clock
        self._waiting.cancel()

    async def _cut(self) -> None:
        try:
            if isinstance(self._stream, trio.SocketStream):
                self._stream.socket.close()  # all that its `aclose` does, but for a checkpoint
            else:
                await trio.aclose_forcefully(self._stream)
        except Exception as defect:
            self._service.report(defect)

    async def _serve_and_close(self) -> None:
        try:
            if await self._serve():
                await self._linger()
            if not isinstance(self._stream, trio.SocketStream):  # that one is closed without a word
                with trio.move_on_after(self._limits.linger_seconds):
                    await self._stream.aclose()
        except PeerGone:
            pass  # there is nobody left to tell
        except Exception as defect:
            self._service.report(defect)

    # ---- the loop -----------------------------------------------------------------------------

    async def _serve(self) -> bool:
        """All requests of the connection. True when the peer may still be sending what nobody will read."""
        late: RequestHead | None = None
        try:
            with self._waiting:
                while late is None:
                    head = await self._read_head()
                    if head is None:
                        return False
                    if self._is_cut_short:  # the head came while its wait was being cut
                        late, self._closing = head, True
                    elif not await self._answer(head):
                        return self._may_bring_more
            if late is not None:
                await self._answer(late)
                return self._may_bring_more
            if self._wire.has_rest:
                raise late_head()
        except ProtocolViolation as violation:
            if (rest := self._send_nowait(self._service.refuse(violation))) is not None:
                await rest
            return True
        return False

    async def _answer(self, head: RequestHead) -> bool:
        """Answer one request. Whether another may follow; then the rest of this one has been read, if it is small."""
        wire, exchange = self._wire, WireExchange(head, self._channel)
        try:
            if "%" in head.target:
                _ = head.segments  # a bad escape is refused here, never found by a router
            wire.pass_empty_body()  # a request without one is complete
            response = await ask(self._service, exchange)
        except ProtocolViolation as violation:
            response = self._service.refuse(violation)
        if exchange.failed:
            self._closing = True
        crash_point("ack.before")
        if (rest := self._send_nowait(response)) is not None:
            await rest
        crash_point("ack.after")
        self.requests += 1
        if response.refusal or self._refusals:
            self._count_refusal(response)
        if wire.next_cycle_nowait():
            return True
        if wire.closing or not await self._read_unread():
            return False
        wire.next_cycle()
        return True

    def _count_refusal(self, response: Response) -> None:
        self._refusals = self._refusals + 1 if response.refusal else 0
        self._refused_with = response.headers

    @property
    def _may_bring_more(self) -> bool:
        return self._wire.may_keep_alive or not self._wire.request_complete

    async def _read_head(self) -> RequestHead | None:
        """The next head, or None when there will be none. When the time of a wait is up, the connection's is too."""
        wire, alarms, limits = self._wire, self._alarms, self._limits
        event: ServerEvent = Mark.NEED_DATA
        if self._refusals >= Brake.AFTER and not self._closing:
            await self._hold_back()
        if wire.has_rest:
            if self.requests:
                await trio.lowlevel.checkpoint()  # whoever pipelines waits for nothing else; others want their turn
            event = wire.next_event()
        elif self._closing:
            return None
        else:
            self._idle = True
        silence = limits.idle_seconds if self._idle and self.requests else limits.head_seconds
        alarms.set(self, silence)
        try:
            while event is Mark.NEED_DATA:
                wire.receive(await self._inlet.receive())
                event = wire.next_event()
                if self._idle and event is Mark.NEED_DATA:  # from the first byte on, the whole head has a deadline
                    self._idle = False
                    alarms.take_back(self, silence)
                    silence = limits.head_seconds
                    alarms.set(self, silence)
        finally:
            self._idle = False
            alarms.take_back(self, silence)
        return event if isinstance(event, RequestHead) else None

    async def _hold_back(self) -> None:
        """Read nothing until the client may try again: what it says meanwhile, its kernel and ours keep."""
        brake = self._service.brake
        seconds = brake.seconds(self._refused_with.get("retry-after"))
        if seconds <= 0:
            return
        self._idle = not self._wire.has_rest
        self._held = trio.lowlevel.current_task()
        self._alarms.set(self, seconds)
        brake.held += 1
        try:
            await trio.lowlevel.wait_task_rescheduled(_let_go)
        finally:
            brake.held -= 1
            self._alarms.take_back(self, seconds)
            self._held = None
            self._idle = False
        self._inlet.expect()  # it has asked again long since

    async def _read_unread(self) -> bool:
        """Throw away a body that nobody asked for. False when it is not worth the wait."""
        allowance = self._limits.drain
        with trio.move_on_after(self._limits.linger_seconds):
            while allowance >= 0:
                try:
                    event = self._wire.next_event()
                except ProtocolViolation:
                    return False  # the answer is out; there is no second one
                if isinstance(event, bytes):
                    allowance -= len(event)
                elif event is Mark.NEED_DATA:
                    self._wire.receive(await self._inlet.receive())
                else:
                    return isinstance(event, EndOfMessage)
        return False

    async def _linger(self) -> None:
        """Close in a way that lets the peer read the last answer.

        Closing a socket with unread input sends a reset, and a reset makes the peer's kernel throw away
        what it has not read yet: our answer. So: say that we are done, and read on a little (RFC 9112 §9.6;
        nginx calls it lingering_close).
        """
        allowance = self._limits.drain
        with trio.move_on_after(self._limits.linger_seconds):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                try:
                    await self._stream.send_eof()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
            while allowance > 0 and (data := await self._inlet.receive()):
                allowance -= len(data)

    # ---- the answer ---------------------------------------------------------------------------

    def _send_nowait(self, response: Response) -> Awaitable[None] | None:
        """Send an answer, of which there may be a rest to wait for. Raises PeerGone."""
        body = response.body
        if not isinstance(body, bytes):
            return self._send_opened(response, body)
        if len(body) > Outlet.PIECE:
            return self._send_large(response, body)
        rest = self._outlet.send_nowait(self._whole(response, body))  # one write; one packet, if it fits
        return self._outlet.send(rest) if rest else None

    async def _send_opened(self, response: Response, body: AsyncIterator[bytes] | Writer | Deferred) -> None:
        if isinstance(body, Deferred):
            raise InternalError(f"{body!r} was not opened")
        try:
            await self._send_pieces(response, body)
        finally:
            await dispose(body, self._limits.cleanup_seconds, self._service.report)

    async def _send_large(self, response: Response, body: bytes) -> None:
        try:
            start = self._start(response, self._told_length(response, body))
        except Exception as defect:
            await self._outlet.send_soon(self._whole(self._service.stumble(defect, response), _DEFECT_BODY))
            return
        await self._outlet.send_soon(start)
        await self._outlet.send_soon(self._wire.send_data(body))
        self._wire.send_end()

    def _whole(self, response: Response, body: bytes) -> bytes:
        """The whole answer; that of a defect, if it has a status or a header that cannot be sent."""
        wire, date = self._wire, _date_at(int(time.time()))
        close = self._closing if wire.request_complete else self._ends_with()
        try:
            length = self._told_length(response, body) if wire.answers_head_only else len(body)
            return wire.send_whole(response.status, response.headers, body, length, close=close, date=date)
        except Exception as defect:
            fields = self._service.stumble(defect, response).headers
            return wire.send_whole(500, fields, _DEFECT_BODY, len(_DEFECT_BODY), close=True, date=date)

    def _told_length(self, response: Response, body: bytes) -> int:
        """What a Content-Length says of a body that is at hand: a HEAD may be told of another."""
        declared = _declared_length(response) if self._wire.answers_head_only else None
        return len(body) if declared is None else declared

    async def _send_pieces(self, response: Response, body: AsyncIterator[bytes] | Writer) -> None:
        try:
            start = self._start(response, _declared_length(response))
        except Exception as defect:
            await self._outlet.send_soon(self._whole(self._service.stumble(defect, response), _DEFECT_BODY))
            return
        with trio.CancelScope() as scope:
            try:
                await self._outlet.send(start)
                self._inlet.watch(scope.cancel)  # a stream may be silent for hours: nothing else would notice
                if self._wire.sends_body:
                    await self._pour(body)
                await self._outlet.send(self._wire.send_end())
            except PeerGone:
                raise
            except Exception as defect:
                # Half an answer is out. Cutting the connection is the only way left to say that it is half.
                self._service.report(defect)
                raise PeerGone("the answer broke off") from defect
            finally:
                self._inlet.forget()
        if scope.cancelled_caught:
            raise PeerGone("the client left during its answer")

    async def _pour(self, body: AsyncIterator[bytes] | Writer) -> None:
        if isinstance(body, Writer):
            self._writer = body
            if self._closing:
                body.end_soon()
        try:
            await pour(body, self._send_piece)
        finally:
            self._writer = None

    async def _send_piece(self, piece: bytes) -> None:
        await self._outlet.send(self._wire.send_data(piece))

    def _start(self, response: Response, length: int | None) -> bytes:
        """The head of the answer, as bytes. Raises for what cannot be sent; then nothing has begun."""
        date = _date_at(int(time.time()))
        return self._wire.send_head(response.status, response.headers, length, close=self._ends_with(), date=date)

    def _ends_with(self) -> bool:
        """Whether the connection ends with the answer that is about to begin."""
        wire = self._wire
        if self._closing or wire.request_complete:
            return self._closing
        return wire.expects_continue or (wire.body_length or 0) > self._limits.drain


async def ask(service: Service, exchange: Exchange) -> Response:
    """The handler's answer with its body opened, or one in its stead. Raises PeerGone when the client has left."""
    try:
        response: object = await service.handler(exchange)
        if isinstance(response, Response) and isinstance(response.body, bytes):
            return response
        return await finish(_check_response(response), exchange.head)
    except Exception as error:
        if not exchange.owns(error):
            return service.stumble(error)
        if not isinstance(error, ProtocolViolation):
            raise PeerGone("the client left before its body was complete") from error
        return service.refuse(error)
    finally:
        exchange.end()


def _let_go(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


def _check_response(response: object) -> Response:
    if not isinstance(response, Response):
        raise TypeError(f"the handler returned {type(response).__name__}, not Response")
    body = response.body
    if not isinstance(body, (bytes, Writer, Deferred)) and not hasattr(body, "__aiter__"):
        raise TypeError(f"a body is bytes or an async iterator, not {type(body).__name__}")
    return response


def _declared_length(response: Response) -> int | None:
    declared = response.headers.get("content-length")
    return None if declared is None else int(declared)


def _id_of(response: Response) -> str | None:
    """Its X-Request-Id, if that can be sent again."""
    said = response.headers.get("x-request-id")
    return said if said is not None and said.isascii() and said.isprintable() else None


_DEFECT_BODY: Final = b'{"type":"about:blank","title":"Internal Server Error","status":500}'
_DEFECT_FIELDS: Final = Headers.of({"content-type": "application/problem+json", "connection": "close"})


@lru_cache(maxsize=1)
def _date_at(second: int) -> bytes:
    """The line, with an IMF-fixdate (RFC 9110 §5.6.7). It has a resolution of a second, so it is made once a second."""
    return b"date: %b\r\n" % formatdate(second, usegmt=True).encode("ascii")
