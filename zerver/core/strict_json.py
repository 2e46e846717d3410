"""JSON, strictly: what a text must be before anything is made of it, and what reading it may cost. Pure.

Law: the verdict is about the text alone, whatever type it is read into: what one reader skips as unknown, another
reads. What is refused is ProtocolViolation, 400: nesting deeper than 64, a name twice in one object, numbers that no
double holds; and what is only written to be costly: thousands of numbers that are hard to read, brackets by the hundred
thousand with nothing in them. One look costs time linear in the text, and no byte is looked at in Python, only in C:
measured, 1.6 µs for a body of 120 bytes; reading and judging 1 MiB took 1 to 35 ms, and 45 at the very worst.
json.loads with a hook for pairs took twice as long for the good ones, and knows no depth.

Bodies of requests and replies of services that are called are read so: either may be written by a stranger.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate, islice
from typing import Final

import msgspec

from zerver.core.codec import encode_json
from zerver.errors import ProtocolViolation

#: How deep arrays and objects may nest (400). Steps, encoders and logs walk values by recursion.
MAX_DEPTH: Final = 64

#: How many numbers may be hard to read (400): see `_check_numbers`.
MAX_HARD_NUMBERS: Final = 1_000

#: How many arrays and objects there may be, if there is more than an array for each four bytes, or an object for each
#: five (400): 1 MiB of `[[[0]]],` becomes half a million lists in 50 MB, and the loop stands still for 0.1 s; objects
#: take half as long again. A column of `[0],` is within, and so is one of `{"a":0},`.
MAX_HOLLOW: Final = 100_000


def check_text(body: bytes) -> None:
    """Raise ProtocolViolation for JSON that is deeper, or costlier to read, than any that is meant well.

    Cheap, and to be called before the text is decoded. Text that is no JSON may pass.
    """
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:  # few bodies have so many
        _check_structure(body)
    if len(body) >= _ROOM and body.count(b"e") + body.count(b"E") > MAX_HARD_NUMBERS:
        _check_numbers(body)


def check_value(body: bytes, value: object = None) -> None:
    """Raise ProtocolViolation for what is no JSON, is out of any range, or gives a name twice in one object.

    value: what the text says, if it has been read already, and whole: into builtins.

    msgspec takes the last of two members with one name; a proxy may have judged by the first. Written again from what
    was read, the text has lost the colons of every member that was dropped, and no others: so colons are counted.
    """
    try:
        read = msgspec.json.decode(body) if value is None else value
        written = encode_json(read) if b":" in body else b""
    except RecursionError:
        raise ProtocolViolation("the body is not JSON that can be read: it is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as error:  # ValueError: a string that is not UTF-8
        what = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ProtocolViolation(f"the body is not JSON: {what}") from None
    colons = body.count(b":")
    if b"\\u003" in body:  # a colon may be written as an escape; it is an escape after an even number of backslashes
        escapes = body.replace(b"\\\\", b"")
        colons += escapes.count(b"\\u003a") + escapes.count(b"\\u003A")
    if written.count(b":") != colons:
        raise ProtocolViolation("the body is not JSON that can be trusted: an object has one name twice")


def says_no_more(body: bytes, value: object) -> bool:
    """Whether a text has no member that is not in the value read from it: none twice, and none that was passed over.
    To be asked of values that fill nothing in: then it is what `check_value` finds out, at a third of the cost. A text
    with escapes for colons is always said to have more.
    """
    return b"\\u003" not in body and encode_json(value).count(b":") == body.count(b":")


# ---- arrays and objects ----------------------------------------------------------------------------------

_OPEN, _CLOSE = b"\x01", b"\xff"  # as signed bytes: 1 and -1
_STEPS: Final = bytes.maketrans(b"[{]}", _OPEN + _OPEN + _CLOSE + _CLOSE)
_NO_STRUCTURE: Final = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_NO_OBJECTS: Final = bytes(byte for byte in range(256) if byte not in b'{"')


def _check_structure(body: bytes) -> None:
    size = len(body)
    if b"\\" in body:  # no escape may look like the end of a string
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    steps = _outside_of_strings(body.translate(_STEPS, _NO_STRUCTURE))
    if len(steps) > 2 * MAX_HOLLOW:
        made = steps.count(_OPEN)
        objects = len(_outside_of_strings(body.translate(None, _NO_OBJECTS))) if made > MAX_HOLLOW else 0
        if made > MAX_HOLLOW and (made - MAX_DEPTH) * 4 + objects > size:  # those around a long list are not of it
            raise ProtocolViolation(f"the body has more than {MAX_HOLLOW} arrays and objects, and little in them")
    # Taking out the innermost pairs takes one off the depth. What is wide is gone after a few times, and adding up,
    # which costs 20 times as much for each byte, is for the rest.
    removed = 0
    while len(steps) > MAX_DEPTH - removed:
        rest = steps.replace(_OPEN + _CLOSE, b"")
        if len(rest) > len(steps) // 2:
            break
        steps, removed = rest, removed + 1
    if max(accumulate(memoryview(steps).cast("b")), default=0) + removed > MAX_DEPTH:
        raise ProtocolViolation(f"the body is not JSON that can be read: it nests deeper than {MAX_DEPTH}")


def _outside_of_strings(skeleton: bytes) -> bytes:
    """Without quotes and what is between them."""
    outside = skeleton.replace(b'""', b"")
    if b'"' in outside:  # brackets inside of strings: every second piece between quotes is structure
        outside = b"".join(skeleton.split(b'"')[::2])
    return outside


# ---- numbers --------------------------------------------------------------------------------

#: The end of a number with an exponent of three digits, at the ends of a double's range or after 20 digits.
_HARD: Final = re.compile(
    rb"[eE](?:[+-]?+0*+(?:2[7-9]|[3-9][0-9]|[1-9][0-9]{2,}+)|(?<=[0-9.]{20}[eE])[+-]?+0*+[12][0-9])[0-9]"
)
_ROOM: Final = MAX_HARD_NUMBERS * len(b"1e308,")  # the least in which there are too many

#: A text of fewer bytes can be too deep, and costly in no other way.
HARMLESS: Final = min(_ROOM, 4 * MAX_HOLLOW)


def _check_numbers(body: bytes) -> None:
    """Raise ProtocolViolation for more than 1,000 numbers that take 2 to 8 µs each, where others take 20 ns.

    msgspec reads what its table of powers cannot decide by long division: 1 MiB of `1e308,` held the loop for 1.4 s.
    No table of measurements looks so. What looks so inside of strings is counted, too.
    """
    found = islice(_HARD.finditer(body), MAX_HARD_NUMBERS + 1)
    if sum(1 for _ in found) > MAX_HARD_NUMBERS:
        raise ProtocolViolation(f"the body has more than {MAX_HARD_NUMBERS} numbers at the ends of what a double holds")


# ---- garbage --------------------------------------------------------------------------------

_LARGE: Final = 16 * 1024  # bytes of text, of which no more than 8,192 containers are made


def collected_later(body: bytes) -> AbstractContextManager[None]:
    """The garbage collector waits while a large text is read.

    What is being read is no garbage, yet with each 700 new lists some of those before are looked at, again and again:
    1 MiB of `[],` took 80 ms, of which 65 were the collector's. Once, at the end, is enough.
    """
    return _AT_ONCE if len(body) < _LARGE or not gc.isenabled() else _uncollected()


_AT_ONCE: Final = nullcontext()


@contextmanager
def _uncollected() -> Generator[None, None, None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
