"""Plain: a value for people, as JSON that hides how it was written down.

Law: never fails and never grows without bound. An attrs object is an object with its fields, a date its ISO text, bytes
the text they are; what is secret is the mask, and what was cut says so.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import islice
from typing import Any, Final

from zerver.core.effects import Effect, EffectKind
from zerver.trace.failures import said, shown
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.inert import MASK, Cut, Masked, NamedType, Opaque, content, short_name
from zerver.trace.shapes import shape_of

_DEEPEST: Final = 40

#: Larger whole numbers are texts: readers of JSON take numbers for doubles.
_EXACT: Final = 1 << 53


def plain(
    value: object,
    text: Callable[[str], str] = str,
    *,
    hidden: Hidden = NOTHING_HIDDEN,
    most: int = 20_000,
) -> Any:
    """The value as JSON for people to read. text: masks a text, as `veil.text` does. hidden: names of fields that are
    not shown. most: about how many parts and characters are shown.
    """
    return _Plain(text, hidden, most).node(value, 0)


class _Plain:
    def __init__(self, text: Callable[[str], str], hidden: Hidden, most: int) -> None:
        self.text = text
        self.hidden = hidden
        self.left = most

    def node(self, value: Any, deep: int) -> Any:
        self.left -= 1
        if value is None or value is True or value is False:
            return value
        if isinstance(value, Masked):
            return MASK
        if isinstance(value, Enum):
            return self.node(value.value, deep + 1)
        if isinstance(value, str):
            return self.string(str.__str__(value))
        if isinstance(value, int):
            return self.number(int.__int__(value))
        if isinstance(value, float):
            return self.number(value) if value - value == 0 else repr(float(value))
        if isinstance(value, bytes | bytearray):
            return self.octets(bytes(value))
        if isinstance(value, datetime.date | datetime.time):
            return self.text(value.isoformat())
        if isinstance(value, uuid.UUID | decimal.Decimal | datetime.timedelta):
            return self.string(said(str, value))
        if deep > _DEEPEST or self.left <= 0:
            return "…"
        return self.compound(value, deep + 1)

    def number(self, value: int | float) -> Any:
        """A number, unless it is a secret: masked as its digits are."""
        if isinstance(value, int) and not -_EXACT < value < _EXACT:
            return self.string(hex(value) if value.bit_length() > 8192 else str(value))
        digits = repr(value)
        return value if self.text(digits) == digits else MASK

    def string(self, value: str) -> str:
        value = self.text(value)
        if len(value) > max(self.left, 64):
            value = value[: max(self.left, 64)] + "…"
        self.left -= len(value)
        return value.encode("utf-8", "backslashreplace").decode()

    def octets(self, value: bytes) -> str:
        try:
            return self.string(value.decode())
        except UnicodeDecodeError:
            return self.string(value[: max(self.left, 64)].hex())

    def compound(self, value: Any, deep: int) -> Any:
        if isinstance(value, Opaque):
            held = content(value)
            return self.fields(held.fields, deep) if held.fields or not held.text else self.string(held.text)
        if isinstance(value, Cut):
            return self.string(repr(value))
        if isinstance(value, NamedType | type):
            return short_name(value.__name__)
        if isinstance(value, BaseException):
            return self.string(f"{type(value).__name__}: {said(str, value)}")
        if isinstance(value, Effect):
            return self.string(f"{value.kind.name}({', '.join(map(shown, value.args[:20]))})")
        if isinstance(value, EffectKind):
            return value.name
        names = shape_of(type(value)).fields
        if names:
            return self.fields({name: getattr(value, name, None) for name in names}, deep)
        try:
            if isinstance(value, Mapping):
                return self.fields(value, deep)
            if isinstance(value, list | tuple | set | frozenset):
                return self.items(value, deep)
        except Exception:  # a collection of a user's, whose reading fails
            return shown(type(value))
        return self.string(shown(value))

    def items(self, value: Any, deep: int) -> list[Any]:
        listed = list(islice(value, max(self.left, 0)))
        if (
            isinstance(value, tuple)
            and len(listed) == 2
            and isinstance(listed[0], str)
            and self.hidden.hides(listed[0])
        ):
            return [listed[0], MASK]
        written = []
        for item in listed:
            if self.left <= 0:
                break
            written.append(self.node(item, deep))
        return written if len(written) == len(value) else [*written, f"… {len(value) - len(written)} more"]

    def fields(self, value: Mapping[Any, Any], deep: int) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for key, item in value.items():
            if self.left <= 0:
                written["…"] = f"{len(value) - len(written)} more"
                break
            name = self.string(key if isinstance(key, str) else shown(key))
            written[name] = MASK if item is not None and self.hidden.hides(name) else self.node(item, deep)
        return written
