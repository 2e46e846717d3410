"""Shapes: which fields a class has, and whether it shows itself in its own way.

Law: a class is looked at once, and nothing of it is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, cast

import attrs
import msgspec

Kind = Literal["attrs", "dataclass", "struct", "namedtuple", "plain"]


@attrs.frozen
class Shape:
    """fields: attribute names, in order. compared: those that make two of them different. quiet: those that its repr
    leaves out. own_repr: somebody wrote one for it.
    """

    kind: Kind
    fields: tuple[str, ...] = ()
    compared: frozenset[str] = frozenset()
    quiet: frozenset[str] = frozenset()
    own_repr: bool = False


def _shape_of(cls: type) -> Shape:
    if attrs.has(cls):
        fields: Any = attrs.fields(cast("Any", cls))
        quiet = frozenset(field.name for field in fields if field.repr is False)
        strange = any(callable(field.repr) for field in fields)
        compared = frozenset(field.name for field in fields if field.eq)
        own_repr = strange or not _is_generated(cls, "<attrs")
        return Shape("attrs", tuple(field.name for field in fields), compared, quiet, own_repr)
    if dataclasses.is_dataclass(cls):
        found = dataclasses.fields(cls)
        quiet = frozenset(field.name for field in found if not field.repr)
        names, compared = tuple(f.name for f in found), frozenset(f.name for f in found if f.compare)
        return Shape("dataclass", names, compared, quiet, not _is_generated(cls, dataclasses.__file__))
    if issubclass(cls, msgspec.Struct):
        names = cls.__struct_fields__
        return Shape("struct", names, frozenset(names), own_repr=cls.__repr__ is not msgspec.Struct.__repr__)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        names = tuple(getattr(cls, "_fields", ()))
        return Shape("namedtuple", names, frozenset(names))
    return Shape("plain", own_repr=cls.__repr__ is not object.__repr__)


#: The shape of a class. "plain": nobody has declared its fields.
shape_of = cast("Callable[[type[Any]], Shape]", lru_cache(maxsize=2048)(_shape_of))


def _is_generated(cls: type, file: str) -> bool:
    code = getattr(cls.__repr__, "__code__", None)
    return code is not None and code.co_filename.startswith(file)
