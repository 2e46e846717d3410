"""Members: how many a value had in the text of JSON that it was read from.

Law: counted are the members that a text must have had for this value, each of them once. A text has a colon for each of
its members, and maybe more inside of strings. So where it has just as many as were counted, no object has a name twice,
none has one that was passed over, and nothing nests deeper than the type. A type whose values may hold what no text
said, from a default or from code of a class, is not counted.

Written again, and its colons counted, a value tells the same (`strict_json.says_no_more`), at ten times the cost: what
is known about a type, as that each line of an order has four members, is worked out once.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, TypeAlias, get_origin

import attrs
from msgspec import inspect

from zerver.core.strict_json import MAX_DEPTH

#: The members of a value, those in its members included.
Count: TypeAlias = Callable[[Any], int]

#: Types whose values are one string, number or word each. None is a Decimal: that holds numbers which no double holds,
#: and those are for `strict_json.check_value` to refuse.
_SCALARS: Final = (
    inspect.BoolType,
    inspect.BytesType,
    inspect.DateTimeType,
    inspect.DateType,
    inspect.EnumType,
    inspect.FloatType,
    inspect.IntType,
    inspect.LiteralType,
    inspect.NoneType,
    inspect.StrType,
    inspect.TimeDeltaType,
    inspect.TimeType,
    inspect.UUIDType,
)

#: Code of the class that runs when a value is made, and may put into it what no text said. Validators are such, too.
_HOOKS: Final = ("__attrs_pre_init__", "__attrs_post_init__", "__post_init__")


def is_as_text_says(info: inspect.DataclassType) -> bool:
    """Whether the values of a class hold what the text said, and all that they hold."""
    cls = get_origin(info.cls) or info.cls  # an alias, as Page[int], has no dunder of its class
    fields = attrs.fields(cls) if attrs.has(cls) else ()
    changed = any(field.converter is not None or field.validator is not None for field in fields)
    hooked = any(hasattr(cls, hook) for hook in _HOOKS)
    return not (changed or hooked) and all(field.required for field in info.fields)


def compile_members(info: inspect.Type) -> Count | None:
    """What counts the members of a type's values; None for a type that leaves them open, as Any does, that contains
    itself, or that nests deeper than JSON may.
    """
    count = _count(info, 0)
    return _always(count) if isinstance(count, int) else count


def _count(info: inspect.Type, depth: int) -> int | Count | None:
    """A number, if all values have the same."""
    if isinstance(info, _SCALARS):
        return 0
    if depth == MAX_DEPTH:  # as all those do that contain themselves
        return None
    if isinstance(info, inspect.DataclassType):
        return _of_class(info, depth + 1) if is_as_text_says(info) else None
    if isinstance(info, inspect.UnionType):
        return _of_choice([member for member in info.types if not isinstance(member, inspect.NoneType)], depth)
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        return _of_items(_count(info.item_type, depth + 1))
    if isinstance(info, inspect.DictType):
        return _of_dict(_count(info.value_type, depth + 1))
    return None


def _of_class(info: inspect.DataclassType, depth: int) -> int | Count | None:
    always, varying = len(info.fields), list[tuple[Callable[[Any], Any], Count]]()
    for field in info.fields:
        count = _count(field.type, depth)
        if count is None:
            return None
        if isinstance(count, int):
            always += count
        else:
            varying.append((attrgetter(field.name), count))
    if not varying:
        return always
    if len(varying) == 1:
        get, count_in = varying[0]
        return lambda value: always + count_in(get(value))
    return lambda value: always + sum([count_in(get(value)) for get, count_in in varying])


def _of_choice(members: list[inspect.Type], depth: int) -> int | Count | None:
    """Of a value that may also be None."""
    counts = list[int | Count]()
    for member in members:
        count = _count(member, depth)
        if count is None:  # at the first, or a class that holds itself in two ways would be entered 2 to the 32 times
            return None
        counts.append(count)
    if not any(counts):
        return 0
    if len(counts) > 1:
        return None
    count = counts[0]
    if isinstance(count, int):
        return lambda value: 0 if value is None else count
    return lambda value: 0 if value is None else count(value)


def _of_items(each: int | Count | None) -> int | Count | None:
    if isinstance(each, int):
        return each and (lambda value: each * len(value))
    return each and (lambda value: sum(map(each, value)))


def _of_dict(each: int | Count | None) -> Count | None:
    if isinstance(each, int):
        return lambda value: (1 + each) * len(value)
    return each and (lambda value: len(value) + sum(map(each, value.values())))


def _always(number: int) -> Count:
    return lambda _: number
