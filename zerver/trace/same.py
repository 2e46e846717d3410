"""Sameness: whether two records of two runs of the same code say the same.

Law: equal is the same; and so are two things that only identity tells apart: calls and nodes of one name, effects that
ask for the same, errors that say the same, functions of one code. Times are not compared. Of what it compares it calls
nothing but `==`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from zerver.core.calls import Call
from zerver.core.effects import Effect
from zerver.core.saga import Entry
from zerver.core.timeline import DEFECT, FAULT, STEP, Record

_DEEPEST = 50


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
    if isinstance(one, BaseException):
        return str(one) == str(other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key], deep) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(other) and all(same(a, b, deep) for a, b in zip(one, other, strict=True))
    code = getattr(one, "__code__", None)
    if code is not None:
        return bool(code == other.__code__)
    return _same_fields(one, other, deep)


def _same_fields(one: Any, other: Any, deep: int) -> bool:
    if attrs.has(type(one)):
        names = [field.name for field in attrs.fields(type(one)) if field.eq or not _has_eq(one)]
        return all(same(getattr(one, name), getattr(other, name), deep) for name in names)
    if isinstance(one, float):
        return one != one and other != other  # nan
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
