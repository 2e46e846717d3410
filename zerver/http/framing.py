"""Where a body ends, read or written: by count, by chunks, or with the connection (RFC 9112 §6.3). No I/O.

Law: one decoder says where a body ends, whatever parser has read its head; and what is written is what was announced.

No parser library does this here. A gate that has to find each chunk line to check it has found the data
too, and one decoder cannot disagree with itself. h11 takes any text as chunk extension and blanks after a
size, and reports neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from zerver.errors import ProtocolViolation
from zerver.http.gate import TOKEN, VALUE, Framing, HeadLimits, check_outgoing_fields, find_line_end
from zerver.http.messages import NO_HEADERS, Headers, RawField

_HEX = frozenset(b"0123456789abcdefABCDEF")
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e]|\\[\t\x20-\x7e])*+"'
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16}+)((?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + _QUOTED + rb"))?+)*+)")
_TRAILER = re.compile(rb"(" + TOKEN + rb"):(" + VALUE + rb")")


# ---- reading ----------------------------------------------------------------------------------


class Body(Protocol):
    """Takes a message's body off the front of a buffer. `read` returns b"" when it wants more, or is done."""

    done: bool
    trailers: Headers
    ends_with_stream: bool

    def read(self, buffer: bytearray) -> bytes: ...


def body_of(framing: Framing, limits: HeadLimits) -> Body:
    """The decoder for the body that a head announced."""
    if framing.length == 0:
        return _EMPTY
    if framing.until_close:
        return UnboundedBody()
    return ChunkedBody(limits) if framing.length is None else SizedBody(framing.length)


class SizedBody:
    """Content-Length: count down."""

    trailers = NO_HEADERS
    ends_with_stream = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def read(self, buffer: bytearray) -> bytes:
        if len(buffer) <= self._left:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(buffer[: self._left])
            del buffer[: self._left]
        self._left -= len(data)
        self.done = self._left == 0
        return data


_EMPTY = SizedBody(0)  # done, so nobody reads it, and all can share it


class UnboundedBody:
    """A response that ends when the connection does."""

    trailers = NO_HEADERS
    ends_with_stream = True
    done = False

    def read(self, buffer: bytearray) -> bytes:
        data = bytes(buffer)
        buffer.clear()
        return data


class ChunkedBody:
    """The chunked coding (RFC 9112 §7.1), in full strictness.

    Extensions are checked, bounded and dropped; trailers are bounded, and those that came too late are
    dropped. One call decodes all chunks in the buffer, so a body of one-byte chunks costs one regex each
    and no event; a line that comes byte by byte is searched once.
    """

    ends_with_stream = False

    # Go's net/http had no bound here: a client could send endless extensions for no data (CVE-2023-39326).
    MAX_EXTENSIONS = 4 * 1024

    # Fields that frame, route or authenticate must come before the body, or not at all (RFC 9110 §6.5.1).
    UNTRUSTED = frozenset(
        b"transfer-encoding content-length host connection te trailer expect authorization"
        b" proxy-authorization cookie set-cookie content-encoding content-type content-range"
        b" cache-control".split()
    )

    def __init__(self, limits: HeadLimits) -> None:
        self.done = False
        self.trailers = NO_HEADERS
        self._limits = limits
        # A plain function, not a bound method: that would be a reference cycle for each request.
        self._read_part: Callable[[ChunkedBody, bytearray, int], int] = ChunkedBody._read_size
        self._left = 0
        self._searched = 0  # bytes of the open line that hold no end
        self._extensions = 0
        self._trailers: list[RawField] = []
        self._trailer_bytes = 0
        self._data: list[bytes] = []

    def read(self, buffer: bytearray) -> bytes:
        at = 0
        while not self.done:
            after = self._read_part(self, buffer, at)
            if after < 0:
                self._searched = len(buffer) - at
                break
            at, self._searched = after, 0
        del buffer[:at]
        data = b"".join(self._data)
        self._data.clear()
        return data

    # Each part returns the position after what it consumed, or -1 if it needs more than the buffer holds.

    def _read_size(self, buffer: bytearray, at: int) -> int:
        end = find_line_end(
            buffer, at, 16 + self.MAX_EXTENSIONS, 400, "chunk extensions are over the limit", self._searched
        )
        if at < len(buffer) and buffer[at] not in _HEX:
            raise ProtocolViolation("the chunk size is malformed")
        if end < 0:
            return -1
        matched = _CHUNK_LINE.fullmatch(buffer, at, end)
        if matched is None:
            raise ProtocolViolation("the chunk size is malformed")
        self._extensions += len(matched[2])
        if self._extensions > self.MAX_EXTENSIONS:
            raise ProtocolViolation("chunk extensions are over the limit")
        self._left = int(matched[1], 16)
        self._read_part = ChunkedBody._read_data if self._left else ChunkedBody._read_trailer
        return end + 2

    def _read_data(self, buffer: bytearray, at: int) -> int:
        data = bytes(buffer[at : at + self._left])
        if not data:
            return -1
        self._data.append(data)
        self._left -= len(data)
        if self._left == 0:
            self._read_part = ChunkedBody._read_data_end
        return at + len(data)

    def _read_data_end(self, buffer: bytearray, at: int) -> int:
        found = buffer[at : at + 2]
        if not b"\r\n".startswith(found):
            raise ProtocolViolation("a chunk is longer than its size says")
        if len(found) < 2:
            return -1
        self._read_part = ChunkedBody._read_size
        return at + 2

    def _read_trailer(self, buffer: bytearray, at: int) -> int:
        end = find_line_end(buffer, at, self._limits.field, 431, "a trailer is over the limit", self._searched)
        if end < 0:
            return -1
        if end == at:
            self.trailers = Headers(tuple(self._trailers))
            self.done = True
            return end + 2
        matched = _TRAILER.fullmatch(buffer, at, end)
        if matched is None:
            raise ProtocolViolation("a trailer is malformed")
        name = bytes(matched[1]).lower()
        self._trailer_bytes += end + 2 - at
        if len(self._trailers) >= self._limits.fields or self._trailer_bytes > self._limits.head:
            raise ProtocolViolation("too many trailers", status=431)
        if name not in self.UNTRUSTED:
            self._trailers.append((name, bytes(matched[2]).strip(b" \t")))
        return end + 2


# ---- writing ----------------------------------------------------------------------------------


class BodyWriter:
    """Frames what is written and refuses what would break the framing: one writer, whatever parser reads."""

    def __init__(self) -> None:
        self.over = False
        self._wrap: Callable[[BodyWriter, bytes], bytes] | None = None  # None: no head has been written yet
        self._left = 0

    @property
    def started(self) -> bool:
        return self._wrap is not None

    @property
    def takes_data(self) -> bool:
        return self.started and self._wrap is not BodyWriter._dropped

    def start(self, length: int | None, *, until_close: bool = False, silent: bool = False) -> None:
        """A head has been written. length: that it announced, None for chunked.

        Silent: the message has no body, whatever its head says (HEAD, 204, 304).
        """
        if self._wrap is not None:
            raise RuntimeError("a head has already been written in this cycle")
        if silent:
            self._wrap = BodyWriter._dropped
        elif until_close:
            self._wrap = BodyWriter._bare
        elif length is None:
            self._wrap = BodyWriter._chunk
        else:
            self._wrap = BodyWriter._counted
            self._left = length

    def skip(self) -> None:
        """A whole message has been written elsewhere: head, body and end."""
        if self._wrap is not None:
            raise RuntimeError("a head has already been written in this cycle")
        self._wrap = BodyWriter._dropped
        self.over = True

    def renew(self) -> None:
        """The next cycle: no head has been written yet."""
        self.over = False
        self._wrap = None

    def data(self, data: bytes) -> bytes:
        if self._wrap is None or self.over:
            raise RuntimeError("body data outside a message")
        return self._wrap(self, data) if data else b""  # an empty chunk would end the body

    def end(self, trailers: Headers) -> bytes:
        if self._wrap is None or self.over:
            raise RuntimeError("the end of a message that is not under way")
        if self._left:
            raise ValueError(f"the body is {self._left} bytes shorter than its Content-Length")
        self.over = True
        if self._wrap is not BodyWriter._chunk:
            return b""
        check_outgoing_fields(trailers.raw)
        return b"0\r\n" + written(trailers.raw) + b"\r\n"

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"the body is {-self._left} bytes longer than its Content-Length")
        return data

    def _chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    def _bare(self, data: bytes) -> bytes:
        return data

    def _dropped(self, data: bytes) -> bytes:
        return b""


def written(fields: tuple[RawField, ...] | list[RawField]) -> bytes:
    """Fields as they go on the wire, without the blank line."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])
