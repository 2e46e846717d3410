"""Lines written beforehand: checked and put into bytes once, for answers that are given thousands of times a second.

Law: nothing gets here that the wire would refuse, and nothing that is the wire's own word: no framing, and no Date.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import attrs

from zerver.http import gate
from zerver.http.framing import written
from zerver.http.messages import PHRASES, Headers, HeadersLike, RawField

#: Fields that say where a message ends. Only the wire writes them.
FRAMING_FIELDS: Final = frozenset((b"content-length", b"transfer-encoding", b"connection"))

_STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode("ascii")) for status, phrase in PHRASES.items()
}


def status_line(status: int) -> bytes:
    """The first line of an answer. The phrase may be empty, the blank before it may not (RFC 9112 §4)."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


@attrs.frozen
class Prewritten(Headers):
    """Fields that have been checked and written already. lines: as they go on the wire. Made by `of` and `extended`."""

    lines: bytes = b""

    @classmethod
    def of(cls, fields: HeadersLike) -> Prewritten:
        """Raises ValueError for a field that cannot be sent, or is the wire's."""
        return _prewritten(Headers.of(fields).raw, (), b"")

    def extended(self, name: bytes, value: bytes) -> Prewritten:
        """These and one more field, its name in lower case. Raises as `of`."""
        return _prewritten(((name, value),), self.raw, self.lines)

    def stamped(self, request_id: bytes) -> Prewritten:
        """These and an X-Request-Id of the server's own making, which is therefore not checked."""
        lines = b"%bx-request-id: %b\r\n" % (self.lines, request_id)
        return Prewritten((*self.raw, (b"x-request-id", request_id)), lines)


@lru_cache(maxsize=256)
def of_content_type(fields: tuple[RawField, ...]) -> Prewritten | None:
    """These, written; None for what is more or less than a Content-Type that can be sent."""
    if len(fields) != 1 or fields[0][0] != b"content-type":
        return None
    try:
        return _prewritten(fields, (), b"")
    except ValueError:
        return None


def _prewritten(fields: tuple[RawField, ...], before: tuple[RawField, ...], lines: bytes) -> Prewritten:
    gate.check_outgoing_fields(fields)
    for name, _ in fields:
        if name in FRAMING_FIELDS or name == b"date":
            raise ValueError(f"not a field to be written beforehand: {name.decode()}")
    return Prewritten(before + fields, lines + written(fields))


def check_sendable(status: int, headers: Headers) -> None:
    """Raise ValueError for an answer whose status or fields the wire would refuse."""
    if not 200 <= status <= 999:
        raise ValueError(f"not a final status: {status}")
    if not isinstance(headers, Prewritten):
        gate.check_outgoing_fields(headers.raw)
