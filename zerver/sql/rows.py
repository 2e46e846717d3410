"""Rows as values: from a database's tuples to the type that a step asked for.

Law: columns are matched to an attrs class by name, and a value that does not fit its field is an error that names the
column, never a silent cast. A plain type takes rows of one column.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import attrs

from zerver.core.codec import convert
from zerver.errors import InvalidData, StatementError
from zerver.sql.driver import Rows

RowMaker = Callable[[tuple[object, ...]], Any]


def as_values(type_: Any, rows: Rows) -> list[Any]:
    """Every row as a `type_`. Raises StatementError when the columns cannot be its fields."""
    make = _maker(type_, rows.columns)
    return [make(row) for row in rows.rows]


@lru_cache(maxsize=1024)
def _maker(type_: Any, columns: tuple[str, ...]) -> RowMaker:
    if attrs.has(type_):
        return _class_maker(type_, columns)
    if len(columns) != 1:
        raise StatementError(
            f"a {type_.__name__} is one column, but the statement gives {len(columns)}: {', '.join(columns)}",
            "COLUMNS",
        )
    return lambda row: _converted(row[0], type_, columns[0])


def _class_maker(type_: Any, columns: tuple[str, ...]) -> RowMaker:
    fields = {field.name for field in attrs.fields(type_)}
    needed = {field.name for field in attrs.fields(type_) if field.default is attrs.NOTHING}
    missing, strange = needed - set(columns), set(columns) - fields
    if missing or strange:
        what = (
            f"has no column for {', '.join(sorted(missing))}"
            if missing
            else f"has columns {', '.join(sorted(strange))}"
        )
        raise StatementError(
            f"the statement {what}, which does not fit {type_.__name__}\n"
            "  name the columns as the fields are named: select price as cents",
            "COLUMNS",
        )
    return lambda row: _converted(dict(zip(columns, row, strict=True)), type_, "row")


def _converted(value: object, type_: Any, where: str) -> Any:
    try:
        return convert(value, type_, where, text=True)  # SQLite keeps bool as 0 and 1, and dates as text
    except InvalidData as error:
        raise StatementError(f"a row does not fit {type_.__name__}: {error}", "TYPE") from error
