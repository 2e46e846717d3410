"""HTTP/1.1 on the wire, as a server has it: bytes in, events out; values in, bytes out. No I/O here.

    ServerWire   reads requests, writes responses        one object per connection
    ClientWire   the other end, in `client_wire.py`, to be used in the same way

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

import attrs

from zerver.errors import ProtocolViolation
from zerver.http import gate
from zerver.http.framing import BodyWriter, written
from zerver.http.gate import Framing, HeadLimits
from zerver.http.messages import NO_HEADERS, Headers, RequestHead
from zerver.http.parsers import HeadParser, head_parser
from zerver.http.prewritten import FRAMING_FIELDS, Prewritten, status_line
from zerver.http.reading import DEFAULT_HEAD_LIMITS, KNOWN_BYTES, NOT_FRAMED, Mark, MessageReader, ServerEvent


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
        self._framing = NOT_FRAMED
        self._keep_alive = False
        self._known: _KnownHead | None = None
        self._most_known = min(KNOWN_BYTES, limits.start_line, limits.head)  # so that no limit can be over

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

    def keeps(self, fields: Headers) -> bool:
        """Whether these are the fields of the head that is kept: they may be those of the next request, too."""
        return self._known is not None and self._known.head.headers is fields

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
        self._head, self._framing = None, NOT_FRAMED
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
