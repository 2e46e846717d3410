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


class MessageReader:
    """Cuts the incoming bytes into head, body and end, one message at a time."""

    def __init__(self, limits: HeadLimits) -> None:
        self.body: Body | None = None  # None: the next bytes are a head
        self.over = False  # the message under way is complete
        self._limits = limits
        self._buffer = bytearray()
        self._searched = 0
        self._eof = False
        self._violation: ProtocolViolation | None = None

    @property
    def broken(self) -> bool:
        return self._violation is not None

    @property
    def ended(self) -> bool:
        return self._eof

    def receive(self, data: bytes) -> None:
        if data:
            self._buffer += data
        else:
            self._eof = True

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

    def check(self) -> None:
        if self._violation is not None:
            raise self._violation

    def fail(self, violation: ProtocolViolation) -> ProtocolViolation:
        self._violation = violation
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
