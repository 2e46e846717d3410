"""HTTP/1.1 on the wire: bytes in, events out; values in, bytes out. No I/O here.

    ServerWire   reads requests, writes responses        one object per connection
    ClientWire   writes requests, reads responses

Reading: `receive(bytes)` as they come (b"" for the end of the stream), then `next_event()` until it says
NEED_DATA. A message is its head, pieces of its body (bytes, never empty) and EndOfMessage. Writing: head,
data, end; each returns the bytes to send. When both halves are done and `reusable`, `next_cycle()` starts
the next exchange; what had arrived early is kept. Nothing is read ahead of the message under way, so
pipelined requests wait their turn as bytes.

Law: what is read is framed by the gate's word alone, and what is written can be read in one way only.

Three layers make a message: `gate` decides whether a head is HTTP at all, a `HeadParser` turns its bytes
into a value, and `framing` cuts the body. Only the middle one is a library, and only it is exchangeable:
h11 or httptools (`parsers`), and neither ever sees a byte that the gate has refused or that is part of a body.

A ProtocolViolation is final: the wire raises the same one for ever after and is never reusable.
"""

from __future__ import annotations

from typing import Final

import attrs

from zerver.core.values import value
from zerver.errors import ProtocolViolation
from zerver.http import gate
from zerver.http.framing import BodyWriter, written
from zerver.http.gate import Framing, HeadLimits
from zerver.http.messages import NO_HEADERS, Headers, RawField, RequestHead, ResponseHead
from zerver.http.outgoing import Written
from zerver.http.parsers import HeadParser, head_parser
from zerver.http.prewritten import FRAMING_FIELDS, Prewritten, status_line
from zerver.http.reading import DEFAULT_HEAD_LIMITS, ClientEvent, Mark, MessageReader, ServerEvent

_NOT_FRAMED: Final = Framing()


def _checked(headers: Headers) -> list[RawField]:
    """The fields to send, without those that frame the message."""
    gate.check_outgoing_fields(headers.raw)
    return [field for field in headers.raw if field[0] not in FRAMING_FIELDS]


# ---- server -----------------------------------------------------------------------------------

_KNOWN_BYTES: Final = 2 * 1024  # of a head that is kept; thousands of clients may be connected


@attrs.define
class _KnownHead:
    """The last head that was judged. raw: as it came. lines: the fields of that, from the end of the request line on.
    host: as the gate is told of it. framing, head: what all of it means.
    """

    raw: bytes
    lines: bytes
    host: bytes | None
    framing: Framing
    head: RequestHead


class ServerWire:
    """The server's end of one connection."""

    def __init__(self, limits: HeadLimits = DEFAULT_HEAD_LIMITS, parser: HeadParser | None = None) -> None:
        self._limits = limits
        self._parser = parser or head_parser()
        self._reader = MessageReader(limits)
        self._writer = BodyWriter()
        self._head: RequestHead | None = None
        self.answers_head_only = False  # the request was HEAD
        self._framing = _NOT_FRAMED
        self._keep_alive = False
        self._known: _KnownHead | None = None
        self._most_known = min(_KNOWN_BYTES, limits.start_line, limits.head)  # so that no limit can be over

    # reading

    def receive(self, data: bytes) -> None:
        """What the stream gave; b"" says that the peer has closed."""
        self._reader.receive(data)

    def next_event(self) -> ServerEvent:
        """The next event. Raises ProtocolViolation, whose status is the answer to give before closing."""
        reader, known = self._reader, self._known
        if reader.violation is not None:
            raise reader.violation
        try:
            if reader.body is not None:
                return reader.next_of_body(reader.body)
            if known is None or not (reader.take(known.raw) or self._take_similar(known)):
                raw = reader.next_head()
                if isinstance(raw, Mark):
                    return raw
                known = self._judge(raw)
        except ProtocolViolation as violation:
            raise reader.fail(violation) from None
        self._framing, self._head = known.framing, known.head
        self.answers_head_only = known.head.method == "HEAD"
        reader.start_body(known.framing)
        return known.head

    def _take_similar(self, known: _KnownHead) -> bool:
        """Take what differs from the known head in its first line alone, and know that; whether there is such a head.

        A client says nearly the same in each of its requests. A verdict depends on the bytes alone: fields that have
        been judged and parsed need not be again, when the very same bytes stand below another request line.
        """
        line = self._reader.line_above(known.lines)
        if line is None or len(line) + len(known.lines) > self._most_known:
            return False
        judged = gate.check_request_line(line, known.host)
        if judged is None:
            return False
        method, target = judged
        known.raw = line + known.lines
        known.head = RequestHead(method.decode("ascii"), target.decode("ascii"), known.head.headers)
        return self._reader.take(known.raw)

    def _judge(self, raw: bytes) -> _KnownHead:
        framing = gate.check_request_head(raw, self._limits)
        head = self._parser.request(raw)
        host = head.headers.get("host")
        lines = raw[raw.find(b"\r\n") :]
        known = _KnownHead(raw, lines, None if host is None else host.encode("latin-1"), framing, head)
        if len(raw) <= self._most_known and head.http_version == "1.1":
            self._known = known
        return known

    def pass_empty_body(self) -> bool:
        """Give out EndOfMessage unseen, if the head says that there is no body; whether it does."""
        reader = self._reader
        if self._framing.length == 0 and reader.body is not None:
            reader.over = True
        return reader.over

    def take_body(self, limit: int) -> bytes | None:
        """The whole body, when its length was announced, is within the limit, and all of it has come; EndOfMessage is
        given out unseen then.
        """
        length, reader = self._framing.length, self._reader
        if length == 0:
            return b"" if self.pass_empty_body() else None
        if length is None or length > limit or reader.over or reader.body is None:
            return None
        return reader.take_sized(length)

    @property
    def body_length(self) -> int | None:
        """What the head under way announced: bytes, or None for chunked."""
        return self._framing.length

    @property
    def request_complete(self) -> bool:
        """Whether EndOfMessage of the request has been given out."""
        return self._reader.over

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits to be told to go on: it asked, and no byte of its body has come."""
        return self._framing.expects_continue and not self._reader.over and not self._reader.has_rest

    @property
    def has_rest(self) -> bool:
        """Whether bytes beyond what next_event() gave out are at hand."""
        return self._reader.has_rest

    def take_rest(self) -> bytes:
        """The bytes after this message, for whoever takes the connection over (101 Switching Protocols)."""
        return self._reader.take_rest()

    # writing

    def send_informational(self, status: int, headers: Headers = NO_HEADERS) -> bytes:
        """An interim head: 100 Continue, 103 Early Hints, or 101 before the connection changes hands."""
        if not 100 <= status < 200 or self._writer.started:
            raise RuntimeError("an interim response is 1xx and comes before the response")
        gate.check_outgoing_fields(headers.raw)
        if status == 100:
            self._framing = attrs.evolve(self._framing, expects_continue=False)
        return status_line(status) + written(headers.raw) + b"\r\n"

    def send_head(
        self, status: int, headers: Headers, length: int | None, *, close: bool = False, date: bytes = b""
    ) -> bytes:
        """The response's head, framed by the wire. length: of the body in bytes, None when it is not known. date: a
        line to write, unless headers have a Date.

        Content-Length, Transfer-Encoding and Connection in headers are replaced; `Connection: close` there
        is honoured. HEAD, 204 and 304 get no body, whatever send_data() is given. Raises ValueError for a
        field that cannot be sent.
        """
        lines, until_close = self._head_lines(status, headers, length, close, date)
        silent = status in (204, 304) or self.answers_head_only
        self._writer.start(length, until_close=until_close, silent=silent)
        return b"".join(lines)

    def send_whole(
        self, status: int, headers: Headers, body: bytes, length: int, *, close: bool = False, date: bytes = b""
    ) -> bytes:
        """A response whose body is at hand: what send_head(), send_data() and send_end() would give, in one piece.

        length: that of the body, or what a HEAD is told of it. Raises ValueError as `send_head`.
        """
        lines, _ = self._head_lines(status, headers, length, close, date)
        if not (status in (204, 304) or self.answers_head_only):
            if len(body) != length:
                raise ValueError(f"a body of {len(body)} bytes cannot be sent as one of {length}")
            lines.append(body)
        self._writer.skip()
        return b"".join(lines)

    def _head_lines(
        self, status: int, headers: Headers, length: int | None, close: bool, date: bytes
    ) -> tuple[list[bytes], bool]:
        """The lines of the head; and whether the body ends with the connection."""
        if not 200 <= status <= 999:
            raise ValueError(f"not a final status: {status}")
        if length is not None and length < 0:
            raise ValueError(f"not a length: {length}")
        lines = [status_line(status), date]
        if isinstance(headers, Prewritten):
            lines.append(headers.lines)
        else:
            close = _write_checked(headers, lines) or close
        until_close = False
        if status in (204, 304):
            pass  # no body, and nothing that would announce one
        elif length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        elif self._head is None or self._head.http_version != "1.0":
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            until_close = True
        self._keep_alive = self.may_keep_alive and not close and not until_close
        if not self._keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return lines, until_close

    def send_data(self, data: bytes) -> bytes:
        """A piece of the body. Raises ValueError when it exceeds the announced length."""
        return self._writer.data(data)

    def send_end(self, trailers: Headers = NO_HEADERS) -> bytes:
        """The end of the response. Raises ValueError when the announced length was not reached."""
        return self._writer.end(trailers)

    # life cycle

    @property
    def may_keep_alive(self) -> bool:
        """Whether the peer allows another exchange.

        HTTP/1.0 peers never do: h11 refuses their keep-alive too.
        """
        return self._head is not None and self._framing.keep_alive and self._reader.violation is None

    @property
    def closing(self) -> bool:
        """Whether the response's head has said that the connection ends with it."""
        return not self._keep_alive and self._writer.started

    @property
    def sends_body(self) -> bool:
        """Whether the response under way has a body: not after HEAD, and not with 204 or 304."""
        return self._writer.takes_data

    @property
    def reusable(self) -> bool:
        """Whether next_cycle() may be called: both messages complete, and nobody said close."""
        reader = self._reader
        return self._keep_alive and reader.over and self._writer.over and reader.violation is None

    def next_cycle(self) -> None:
        """Start the next exchange. Raises RuntimeError unless reusable."""
        if not self.next_cycle_nowait():
            raise RuntimeError("the connection is not reusable")

    def next_cycle_nowait(self) -> bool:
        """The same, if the connection is reusable yet; whether it was."""
        if not self.reusable:
            return False
        self._reader.next_message()
        self._writer.renew()
        self._head, self._framing = None, _NOT_FRAMED
        self._keep_alive = self.answers_head_only = False
        return True


def _write_checked(headers: Headers, lines: list[bytes]) -> bool:
    """Append the fields to the lines, of which the second is the Date unless they have one. Whether they say close."""
    gate.check_outgoing_fields(headers.raw)
    close = False
    for field in headers.raw:
        name = field[0]
        if name not in FRAMING_FIELDS:
            lines.append(b"%b: %b\r\n" % field)
            if name == b"date":
                lines[1] = b""
        elif name == b"connection":
            close = close or "close" in headers.tokens("connection")
    return close


# ---- client -----------------------------------------------------------------------------------


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
        self._framing = _NOT_FRAMED
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
            if head.status >= 200 and len(raw) <= _KNOWN_BYTES:
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
