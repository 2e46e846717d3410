"""Sameness: whether two records of two runs of the same code say the same.

Law: equal is the same; and so are two things that only identity tells apart: calls and nodes of one name, effects that
ask for the same, errors that say the same, functions of one code. Times are not compared. Of what it compares it calls
nothing but `==`.

A recorded thing may stand for a live one: a stand-in is the same as what has its class and says the same, a placeholder
is the same as anything that a secret may have been, and a text with masks in it is the same as any that agrees with the
rest. What was cut is the same as what begins so. In doubt it is the same: a difference that nobody can show is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal
from enum import Enum
from typing import Any

from zerver.core.calls import Call
from zerver.core.effects import Effect, EffectKind
from zerver.core.saga import Entry
from zerver.core.timeline import DEFECT, FAULT, STEP, Record
from zerver.trace.failures import said, shown
from zerver.trace.inert import (
    MASK,
    PLACEHOLDERS,
    Cut,
    Masked,
    NamedMember,
    NamedType,
    Opaque,
    content,
    is_inert,
    is_inert_error,
    type_name,
)
from zerver.trace.shapes import shape_of

_DEEPEST = 50
_MASK_BYTES: bytes = PLACEHOLDERS["bytes"]
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")

_STAND_INS = (Masked, Opaque, Cut, NamedType, NamedMember)


def same_record(one: Record, other: Record) -> bool:
    """Whether two records say the same, their times apart."""
    if one[0] != other[0] or _named(one[2]) != _named(other[2]):
        return False
    if isinstance(one[2], Call) and not same(one[2].effect, other[2].effect):
        return False
    if one[0] in (STEP, DEFECT, FAULT):
        return same(one[3][1], other[3][1])  # (began, answer)
    return same(one[3], other[3])


def same(one: Any, other: Any, deep: int = 0) -> bool:
    """Whether two values of two runs are the same."""
    if one is other:
        return True
    if _is_mask(one) or _is_mask(other):
        return True
    if isinstance(one, _STAND_INS):
        return _stands_for(one, other, deep)
    if isinstance(other, _STAND_INS):
        return _stands_for(other, one, deep)
    if isinstance(one, str | bytes) and isinstance(other, str | bytes):
        return _same_text(one, other)
    if isinstance(one, BaseException) and isinstance(other, BaseException):
        return _same_error(one, other)
    if type(one) is not type(other) or deep > _DEEPEST:
        return False
    try:
        if bool(one == other):
            return True
    except Exception:  # __eq__ is user code; whoever cannot say is compared by what it is made of
        pass
    deep += 1
    if isinstance(one, Call | Entry):
        return _named(one) == _named(other)
    if isinstance(one, Effect):
        parts = (one.kind.name, one.args, one.kwargs, one.form, one.policy)
        return same(parts, (other.kind.name, other.args, other.kwargs, other.form, other.policy), deep)
    if isinstance(one, EffectKind):
        return bool(one.name == other.name)
    if isinstance(one, Mapping):
        return _same_mapping(one, other, deep)
    if isinstance(one, Sequence):
        return len(one) == len(other) and all(same(a, b, deep) for a, b in zip(one, other, strict=True))
    if isinstance(one, Set):
        return _same_set(one, other, deep)
    code = getattr(one, "__code__", None)
    if code is not None:
        return _same_function(one, other)
    return _same_fields(one, other, deep)


def _is_mask(value: Any) -> bool:
    return isinstance(value, str) and str.__str__(value) == MASK


def _same_mapping(one: Mapping[Any, Any], other: Mapping[Any, Any], deep: int) -> bool:
    if one.keys() == other.keys():
        return all(same(one[key], other[key], deep) for key in one)
    return _has_mask(one) and len(one) == len(other)  # a key was masked, and which one it is now nobody can say


def _same_set(one: Set[Any], other: Set[Any], deep: int) -> bool:
    """Sets whose members are not equal: there may be masks among them, or objects without an `__eq__`."""
    if _has_mask(one) or _has_mask(other):
        return True
    left = list(other - one) if len(one) == len(other) <= _DEEPEST else None
    if left is None:
        return False
    for item in one - other:
        found = next((i for i, candidate in enumerate(left) if same(item, candidate, deep)), None)
        if found is None:
            return False
        del left[found]
    return True


def _has_mask(items: Any) -> bool:
    return any(isinstance(item, Masked) or (isinstance(item, str) and MASK in item) for item in items)


def _same_fields(one: Any, other: Any, deep: int) -> bool:
    shape = shape_of(type(one))
    if shape.kind != "plain":
        names = [name for name in shape.fields if name in shape.compared or not _has_eq(one)]
        return all(same(getattr(one, name, None), getattr(other, name, None), deep) for name in names)
    if isinstance(one, float | Decimal):
        return shown(one) == shown(other) != "" and "nan" in shown(one).lower()
    if _has_eq(one):
        return False  # it knows what equal means, and has said no
    return same(getattr(one, "__dict__", None), getattr(other, "__dict__", None), deep)


def _has_eq(value: object) -> bool:
    return type(value).__eq__ is not object.__eq__


def _named(subject: Any) -> tuple[Any, ...]:
    if isinstance(subject, Entry):
        subject = subject.call
    if isinstance(subject, Call):
        return ("call", subject.step, subject.ordinal)
    return ("node", subject if isinstance(subject, str) else subject.name)


# ---- what was recorded, and what is live ----------------------------------------------------


def _stands_for(recorded: Any, live: Any, deep: int) -> bool:
    """Whether a stand-in says what the other one, live or recorded, says."""
    if isinstance(recorded, Masked):
        return True
    if isinstance(live, Masked):
        return True
    if isinstance(recorded, Cut):
        return _begins(recorded, live)
    if isinstance(live, Cut):
        return _begins(live, recorded)
    if isinstance(recorded, NamedType):
        return recorded.name == (live.name if isinstance(live, NamedType) else _name_of(live))
    if isinstance(recorded, NamedMember):
        return _same_member(recorded, live, deep)
    if isinstance(recorded, Opaque):
        return _same_opaque(recorded, live, deep)
    return False


def _same_opaque(recorded: Opaque, live: Any, deep: int) -> bool:
    if deep > _DEEPEST:
        return False
    held = content(recorded)
    if isinstance(live, Opaque):
        its = content(live)
        same_text = _same_text(_ADDRESS.sub("", held.text), _ADDRESS.sub("", its.text))
        return held.type == its.type and same_text and same(dict(held.fields), dict(its.fields), deep + 1)
    if held.type != type_name(type(live)):
        return False
    if held.declared:
        return all(same(value, getattr(live, name, None), deep + 1) for name, value in held.fields.items())
    if held.fields:
        return same(dict(held.fields), getattr(live, "__dict__", None), deep + 1)
    return _same_text(_ADDRESS.sub("", held.text), _ADDRESS.sub("", shown(live)))


def _same_member(recorded: NamedMember, live: Any, deep: int) -> bool:
    if isinstance(live, NamedMember):
        return (recorded.type, recorded.name) == (live.type, live.name)
    return isinstance(live, Enum) and recorded.type == type_name(type(live)) and recorded.name == live.name


def _name_of(live: Any) -> str:
    return type_name(live) if isinstance(live, type) else ""


def _begins(cut: Cut, live: Any) -> bool:
    """Whether the other one may be what was cut: its class is the same, and it begins so."""
    if isinstance(live, Cut):
        return cut.type.rpartition(":")[2] == live.type.rpartition(":")[2]
    head: str | bytes = cut.head
    if isinstance(live, bytes | bytearray):
        head, live = cut.head.encode(), bytes(live)
    if isinstance(live, str | bytes):
        return _same_text(head, live[: len(head)])
    return cut.type == "item" or cut.type.rpartition(":")[2] == type(live).__qualname__


def _same_text(one: str | bytes, other: str | bytes) -> bool:
    """Equal, or equal but for what is masked in one of them."""
    if one == other:
        return True
    if isinstance(one, str) and isinstance(other, str):
        return _fits(one, other, MASK) or _fits(other, one, MASK)
    if isinstance(one, bytes) and isinstance(other, bytes):
        return _fits(one, other, _MASK_BYTES) or _fits(other, one, _MASK_BYTES)
    return False


def _fits(masked: Any, text: Any, mask: Any) -> bool:
    """Whether the text is what stands around the masks, with anything in their places: in one pass, leftmost first."""
    first, *rest = masked.split(mask)
    if not rest or not text.startswith(first):
        return False
    at, last = len(first), rest[-1]
    for piece in rest[:-1]:
        found = text.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return len(text) - len(last) >= at and bool(text.endswith(last))


def _same_error(one: BaseException, other: BaseException) -> bool:
    if type(one) is not type(other) and type_name(type(one)) != type_name(type(other)):
        return False
    if type(one) is not type(other) and not (is_inert_error(one) or is_inert_error(other)):
        return False
    return _same_text(said(str, one), said(str, other))


def _same_function(one: Any, other: Any) -> bool:
    if is_inert(one) or is_inert(other):
        return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
    return bool(one.__code__ == other.__code__)
