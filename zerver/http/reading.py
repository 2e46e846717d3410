"""Messages cut out of incoming bytes: the half that a server's and a client's end of a connection have in common.

Law: nothing is read ahead of the message under way; what has come early is kept, and is the next one's. What was
refused once is refused for ever. No I/O, and no parser: heads are given out as the bytes that they are.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs

from zerver.errors import ProtocolViolation
from zerver.http import gate
from zerver.http.framing import Body, body_of
from zerver.http.gate import Framing, HeadLimits
from zerver.http.messages import NO_HEADERS, Headers, RequestHead, ResponseHead


class Mark(enum.Enum):
    """Events that carry nothing."""

    NEED_DATA = "receive() more first"
    PAUSED = "this message is over; next_cycle() starts the next"
    PEER_CLOSED = "the peer closed where no message was under way"
    PEER_CUT = "the peer closed in the middle of a message"


@attrs.frozen
class EndOfMessage:
    """The message is complete. trailers: of a chunked body, those that may come after it."""

    trailers: Headers = NO_HEADERS


_END: Final = EndOfMessage()
ServerEvent = RequestHead | bytes | EndOfMessage | Mark
ClientEvent = ResponseHead | bytes | EndOfMessage | Mark

DEFAULT_HEAD_LIMITS: Final = HeadLimits()

#: Of a message whose head has not come.
NOT_FRAMED: Final = Framing()

#: Bytes of a head that an end of a connection keeps; thousands of them may be there at once.
KNOWN_BYTES: Final = 2 * 1024


class MessageReader:
    """Cuts the incoming bytes into head, body and end, one message at a time."""

    def __init__(self, limits: HeadLimits) -> None:
        self.body: Body | None = None  # None: the next bytes are a head
        self.over = False  # the message under way is complete
        self._limits = limits
        self._buffer = bytearray()
        self._searched = 0
        self._eof = False
        self.violation: ProtocolViolation | None = None  # what was wrong; the same for ever

    @property
    def ended(self) -> bool:
        return self._eof

    def receive(self, data: bytes) -> None:
        if data:
            self._buffer += data
        else:
            self._eof = True

    def take(self, raw: bytes) -> bool:
        """Take these bytes off the start of the buffer; whether they are there."""
        if not self._buffer.startswith(raw):
            return False
        del self._buffer[: len(raw)]
        self._searched = 0
        return True

    def line_above(self, lines: bytes) -> bytes | None:
        """What stands in the buffer above these bytes, if it ends with them."""
        return bytes(self._buffer[: -len(lines)]) if self._buffer.endswith(lines) else None

    def next_head(self) -> bytes | Mark:
        """The raw head at the start of the buffer."""
        end = gate.find_head_end(self._buffer, self._searched, self._limits)
        if end < 0:
            self._searched = len(self._buffer)
            if not self._eof:
                return Mark.NEED_DATA
            return Mark.PEER_CUT if self._buffer else Mark.PEER_CLOSED
        raw = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._searched = 0
        return raw

    def start_body(self, framing: Framing) -> None:
        self.body = body_of(framing, self._limits)

    def next_of_body(self, body: Body) -> bytes | EndOfMessage | Mark:
        if self.over:
            return Mark.PAUSED
        if not body.done and (data := body.read(self._buffer)):
            return data
        if body.done or (self._eof and body.ends_with_stream):
            self.over = True
            return EndOfMessage(body.trailers) if body.trailers.raw else _END
        return Mark.PEER_CUT if self._eof else Mark.NEED_DATA

    def take_sized(self, length: int) -> bytes | None:
        """The next so many bytes, and with them the message; None when they have not all come. Of a body of which
        nothing has been given out.
        """
        buffer = self._buffer
        if len(buffer) < length:
            return None
        data = bytes(buffer) if len(buffer) == length else bytes(buffer[:length])
        del buffer[:length]
        self.over = True
        return data

    def fail(self, violation: ProtocolViolation) -> ProtocolViolation:
        self.violation = violation
        return violation

    def next_message(self) -> None:
        self.body = None
        self.over = False

    def take_rest(self) -> bytes:
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    @property
    def has_rest(self) -> bool:
        return bool(self._buffer)
