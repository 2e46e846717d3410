"""Rows as values: from a database's tuples to the type that a step asked for.

Law: columns are matched to an attrs class by name, each of them and no other; a value that does not fit its field is
an error that names row and column, never a silent cast. A plain type takes rows of one column.

What databases cannot keep comes back as what it was: 0 and 1 as a bool, ISO 8601 text as a date, text as a Decimal, a
UUID or an enum. Text for a field of bytes is refused: a decoder of JSON would take it for base64.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import attrs

from zerver.core.codec import convert
from zerver.errors import InvalidData, StatementError
from zerver.sql.driver import Rows

Row: TypeAlias = tuple[object, ...]
RowsMaker: TypeAlias = Callable[[Sequence[Row]], list[Any]]
Mend: TypeAlias = Callable[[object], object]


def as_values(type_: Any, rows: Rows) -> list[Any]:
    """Every row as a `type_`.

    Raises StatementError: code "COLUMNS" when the columns cannot be its fields, "TYPE" when a value cannot.
    """
    make = _maker(type_, rows.columns)
    try:
        return make(rows.rows)
    except InvalidData as error:
        raise StatementError(
            f"a row does not fit {_label(type_)}: {error}\n  cast it in the statement, or change the type", "TYPE"
        ) from error


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
    mend = _mend(type_)
    return lambda rows: _converted([mend(row[0]) if mend else row[0] for row in rows], type_)


def _class_maker(type_: Any, columns: tuple[str, ...]) -> RowsMaker:
    _check_columns(type_, columns)
    hints = typing.get_type_hints(attrs.resolve_types(type_), include_extras=True)
    mends = [(column, mend) for column in columns if (mend := _mend(hints.get(column)))]

    def make(rows: Sequence[Row]) -> list[Any]:
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        for column, mend in mends:
            for row in named:
                row[column] = mend(row[column])
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
    made: list[Any] = convert(values, list[type_], "row")
    return made


# ---- what a column needs before it can be converted -----------------------------------------


def _mend(hint: Any) -> Mend | None:
    """What to do to each value of a column first, or None: most columns need nothing."""
    kinds = {typing.get_origin(part) or part for part in _parts(hint)}
    if bool in kinds and not kinds & {int, float}:
        return lambda value: bool(value) if type(value) is int and value in (0, 1) else value
    if bytes in kinds and str not in kinds:
        return lambda value: _Text(value) if isinstance(value, str) else value
    return None


def _parts(hint: Any) -> list[Any]:
    """The members of a union, or the one type; without what Annotated says about it."""
    if typing.get_origin(hint) is typing.Annotated:
        return _parts(typing.get_args(hint)[0])
    if _is_union(hint):
        return [part for member in typing.get_args(hint) for part in _parts(member)]
    return [hint]
