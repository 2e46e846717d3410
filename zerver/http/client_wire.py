"""HTTP/1.1 on the wire, as a client has it: bytes in, events out; values in, bytes out. No I/O here.

    ClientWire   writes requests, reads responses        one object per connection

Law: as that of `wire.py`, where the other end is, and how both are used. Nobody is sent what we would refuse ourselves,
and nobody is believed to answer what was not asked.
"""

from __future__ import annotations

from typing import Final

from zerver.core.values import value
from zerver.errors import ProtocolViolation
from zerver.http import gate
from zerver.http.framing import BodyWriter, written
from zerver.http.gate import Framing, HeadLimits
from zerver.http.messages import NO_HEADERS, Headers, RawField, RequestHead, ResponseHead
from zerver.http.outgoing import Written
from zerver.http.parsers import HeadParser, head_parser
from zerver.http.prewritten import FRAMING_FIELDS
from zerver.http.reading import DEFAULT_HEAD_LIMITS, KNOWN_BYTES, NOT_FRAMED, ClientEvent, Mark, MessageReader


@value
class _KnownAnswer:
    """The last head that was judged. raw: as it came. framing, head: what it means to a request with this method."""

    raw: bytes
    method: str
    framing: Framing
    head: ResponseHead


class ClientWire:
    """The client's end of one connection."""

    # A peer may send interim heads for as long as it likes; we listen to this many.
    MAX_INFORMATIONAL = 16

    def __init__(self, limits: HeadLimits = DEFAULT_HEAD_LIMITS, parser: HeadParser | None = None) -> None:
        self._limits = limits
        self._parser = parser or head_parser()
        self._reader = MessageReader(limits)
        self._writer = BodyWriter()
        self._method = ""
        self._keep_alive = False
        self._upgrade_asked = False
        self._informational = 0
        self._framing = NOT_FRAMED
        self._known: _KnownAnswer | None = None

    # writing

    def send_head(self, head: RequestHead | Written, length: int | None = 0) -> bytes:
        """The request's head, framed by the wire. length: of the body in bytes, None for chunked.

        Content-Length and Transfer-Encoding in head are replaced; of Connection, `close` and `upgrade` are
        kept. Raises ValueError for what cannot be sent: a method, target or field that would read
        differently on the other side, or no Host, or more than one.
        """
        raw = self._head_lines(head, length)
        self._writer.start(length)
        return raw

    def send_whole(self, head: RequestHead | Written, body: bytes) -> bytes:
        """A request whose body is at hand: what send_head(), send_data() and send_end() would give, in one piece."""
        raw = self._head_lines(head, len(body))
        self._writer.skip()
        return raw + body

    def _head_lines(self, head: RequestHead | Written, length: int | None) -> bytes:
        close = upgrade = False
        if isinstance(head, Written):
            lines = head.lines
        else:
            connection = head.headers.tokens("connection")
            close, upgrade = "close" in connection, "upgrade" in connection
            lines = _first_line(head) + written(_checked(head.headers))
        if length is None:
            lines += b"transfer-encoding: chunked\r\n"
        elif length or head.method not in _BODILESS:
            lines += b"content-length: %d\r\n" % length
        if close:
            lines += b"connection: close\r\n"
        if upgrade:
            lines += b"connection: upgrade\r\n"
        lines += b"\r\n"
        if not isinstance(head, Written):
            try:
                gate.check_request_head(lines, _UNLIMITED)  # nobody shall be sent what we would refuse ourselves
            except ProtocolViolation as violation:
                raise ValueError(f"not a request that can be sent: {violation}") from None
        self._method = head.method
        self._keep_alive = not close
        self._upgrade_asked = upgrade
        return lines

    def send_data(self, data: bytes) -> bytes:
        """A piece of the body. Raises ValueError when it exceeds the announced length."""
        return self._writer.data(data)

    def send_end(self, trailers: Headers = NO_HEADERS) -> bytes:
        """The end of the request. Raises ValueError when the announced length was not reached."""
        return self._writer.end(trailers)

    # reading

    def receive(self, data: bytes) -> None:
        """What the stream gave; b"" says that the peer has closed."""
        self._reader.receive(data)

    def next_event(self) -> ClientEvent:
        """The next event; interim heads (1xx but 101) are passed over. Raises ProtocolViolation.

        PEER_CLOSED means that the peer closed before any byte of a response; PEER_CUT, after some.
        """
        reader = self._reader
        if reader.violation is not None:
            raise reader.violation
        try:
            if reader.body is not None:
                return reader.next_of_body(reader.body)
            return self._next_response()
        except ProtocolViolation as violation:
            raise reader.fail(violation) from None

    def _next_response(self) -> ResponseHead | Mark:
        reader, known = self._reader, self._known
        # A verdict depends on the bytes and the method alone, and a service answers much alike.
        if known is not None and known.method == self._method and self._writer.started and reader.take(known.raw):
            return self._begin(known.framing, known.head)
        while True:
            raw = reader.next_head()
            if isinstance(raw, Mark):
                return raw
            if not self._writer.started:
                raise ProtocolViolation("a response to no request")
            framing = gate.check_response_head(raw, self._method, self._limits)
            head = self._parser.response(raw)
            if head.status >= 200 and len(raw) <= KNOWN_BYTES:
                self._known = _KnownAnswer(raw, self._method, framing, head)
            if head.status >= 200 or (head.status == 101 and self._upgrade_asked):
                return self._begin(framing, head)
            self._informational += 1
            if head.status == 101 or self._informational > self.MAX_INFORMATIONAL:
                raise ProtocolViolation("an interim response that nobody asked for")

    def _begin(self, framing: Framing, head: ResponseHead) -> ResponseHead:
        self._keep_alive = self._keep_alive and framing.keep_alive and head.status != 101
        self._framing = framing
        self._reader.start_body(framing)
        return head

    @property
    def body_length(self) -> int | None:
        """What the head under way announced: bytes, 0 where there can be no body; None where it does not say."""
        return self._framing.length

    def take_body(self) -> bytes | None:
        """The whole body, if its length was announced and all of it has come; EndOfMessage is given out unseen then. Of
        a body of which nothing has been given out.
        """
        length = self._framing.length
        return None if length is None or self._reader.over else self._reader.take_sized(length)

    @property
    def has_rest(self) -> bool:
        """Whether bytes beyond what next_event() gave out are at hand: if idle, a reason to close."""
        return self._reader.has_rest

    def take_rest(self) -> bytes:
        """The bytes after this message, for whoever takes the connection over (101 Switching Protocols)."""
        return self._reader.take_rest()

    # life cycle

    @property
    def reusable(self) -> bool:
        """Whether next_cycle() may be called.

        Both messages whole, nobody said close, nothing unasked came.
        """
        reader = self._reader
        clean = reader.violation is None and not (reader.ended or reader.has_rest)
        return self._keep_alive and reader.over and self._writer.over and clean

    def next_cycle(self) -> None:
        """Start the next exchange. Raises RuntimeError unless reusable."""
        if not self.next_cycle_nowait():
            raise RuntimeError("the connection is not reusable")

    def next_cycle_nowait(self) -> bool:
        """The same, if the connection is reusable; whether it was."""
        if not self.reusable:
            return False
        self._reader.next_message()
        self._writer.renew()
        self._informational = 0
        return True


#: Methods of requests that say nothing of a body when they have none.
_BODILESS: Final = frozenset(("GET", "HEAD", "OPTIONS", "DELETE", "TRACE"))

_UNLIMITED: Final = HeadLimits(start_line=2**31, field=2**31, head=2**31, fields=2**31)


def _first_line(head: RequestHead) -> bytes:
    start = f"{head.method} {head.target}".encode("latin-1")
    gate.check_outgoing_request(start)
    return start + b" HTTP/1.1\r\n"


def _checked(headers: Headers) -> list[RawField]:
    """The fields to send, without those that frame the message."""
    gate.check_outgoing_fields(headers.raw)
    return [field for field in headers.raw if field[0] not in FRAMING_FIELDS]
