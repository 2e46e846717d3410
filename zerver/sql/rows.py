"""Rows as values: from a database's tuples to the type that a step asked for.

Law: columns are matched to an attrs class by name, each of them and no other; a value that does not fit its field is
an error that names row and column, never a silent cast. A plain type takes rows of one column.

What databases cannot keep comes back as what it was: 0 and 1 as a bool, ISO 8601 text as a date, text as a Decimal, a
UUID or an enum. Nothing else is converted: "5" is no int, 5 is no str, and text is no base64.
"""

from __future__ import annotations

import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import attrs
import msgspec

from zerver.errors import StatementError
from zerver.sql.driver import Rows

Row: TypeAlias = tuple[object, ...]
RowsMaker: TypeAlias = Callable[[Sequence[Row]], list[Any]]


def as_values(type_: Any, rows: Rows) -> list[Any]:
    """Every row as a `type_`.

    Raises StatementError: code "COLUMNS" when the columns cannot be its fields, "TYPE" when a value cannot.
    """
    return _maker(type_, rows.columns)(rows.rows)


def _label(type_: Any) -> str:
    return type_.__name__ if isinstance(type_, type) else str(type_)  # `int | None` is no class, and has no name


# ---- one maker for each type and its columns ------------------------------------------------


@lru_cache(maxsize=1024)
def _maker(type_: Any, columns: tuple[str, ...]) -> RowsMaker:
    return _class_maker(type_, columns) if attrs.has(type_) else _plain_maker(type_, columns)


def _plain_maker(type_: Any, columns: tuple[str, ...]) -> RowsMaker:
    if len(columns) != 1:
        raise StatementError(
            f"{_label(type_)} is one column, but the statement gives {len(columns)}: {', '.join(columns)}\n"
            "  select one column, or give an attrs class with a field for each",
            "COLUMNS",
        )
    if _is_flag(type_):
        return lambda rows: _converted([_flag(row[0]) for row in rows], type_)
    return lambda rows: _converted([row[0] for row in rows], type_)


def _class_maker(type_: Any, columns: tuple[str, ...]) -> RowsMaker:
    _check_columns(type_, columns)
    hints = typing.get_type_hints(type_)
    flags = [column for column in columns if _is_flag(hints[column])]

    def make(rows: Sequence[Row]) -> list[Any]:
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        for column in flags:
            for row in named:
                row[column] = _flag(row[column])
        return _converted(named, type_)

    return make


def _check_columns(type_: Any, columns: tuple[str, ...]) -> None:
    fields = attrs.fields(type_)
    missing = {field.name for field in fields if field.default is attrs.NOTHING} - set(columns)
    strange = set(columns) - {field.name for field in fields}
    doubled = [column for column, count in Counter(columns).items() if count > 1]
    faults = [
        f"{what} {', '.join(sorted(names))}"
        for what, names in (
            ("has no column for", missing),
            ("has a column that is no field:", strange),
            ("has two columns called", doubled),
        )
        if names
    ]
    if faults:
        raise StatementError(
            f"the statement {'; it '.join(faults)}: it does not fit {_label(type_)}\n"
            "  name the columns as the fields are named: select price as cents",
            "COLUMNS",
        )


def _converted(values: list[Any], type_: Any) -> list[Any]:
    try:
        return msgspec.convert(values, list[type_], builtin_types=(bytes,))  # or it would decode base64
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$")  # as "Expected `int`, got `str` - at `$[0].price`"
        raise StatementError(
            f"row{place.rstrip('`')} does not fit {_label(type_)}: {what[:1].lower()}{what[1:]}\n"
            "  cast it in the statement, or change the type",
            "TYPE",
        ) from error


# ---- bools, which SQLite keeps as 0 and 1 ---------------------------------------------------


def _is_flag(hint: Any) -> bool:
    """Whether a 0 or a 1 can only be meant as a bool."""
    kinds = set(_members(hint))
    return bool in kinds and not kinds & {int, float}


def _members(hint: Any) -> Iterator[Any]:
    """The types in a union, or the one type."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        for member in typing.get_args(hint):
            yield from _members(member)
    else:
        yield hint


def _flag(value: object) -> object:
    return bool(value) if type(value) is int and value in (0, 1) else value
