"""Rows become the values that were asked for, or an error that names row and column; nothing is cast in silence."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any

import attrs
import msgspec
import pytest

from zerver.errors import StatementError
from zerver.sql import Rows
from zerver.sql.rows import as_values


class Tier(enum.Enum):
    GOLD = "gold"


@attrs.frozen
class User:
    id: int
    name: str
    nick: str | None = None
    active: bool | None = None


def one(type_: Any, *columns: tuple[str, object]) -> Any:
    (value,) = as_values(type_, Rows(tuple(name for name, _ in columns), [tuple(value for _, value in columns)]))
    return value


def refusal(type_: Any, *columns: tuple[str, object]) -> StatementError:
    with pytest.raises(StatementError) as raised:
        one(type_, *columns)
    return raised.value


def test_columns_are_matched_by_name_in_any_order_and_defaults_may_be_left_out() -> None:
    assert one(User, ("name", "Ada"), ("id", 1)) == User(1, "Ada")
    assert one(User, ("active", 1), ("nick", None), ("name", "Ada"), ("id", 1)) == User(1, "Ada", None, True)


def test_a_field_without_a_column_and_a_column_without_a_field_are_both_named() -> None:
    error = refusal(User, ("id", 1), ("count(*)", 3))
    assert error.code == "COLUMNS"
    assert str(error) == (
        "the statement has no column for name; it has a column that is no field: count(*): it does not fit User\n"
        "  name the columns as the fields are named: select price as cents"
    )


def test_two_columns_of_one_name_are_refused_because_one_would_hide_the_other() -> None:
    rows = Rows(("id", "name", "id"), [(1, "Ada", 2)])
    with pytest.raises(StatementError, match="two columns called id"):
        as_values(User, rows)


def test_columns_are_checked_even_when_there_are_no_rows() -> None:
    with pytest.raises(StatementError, match="no column for name"):
        as_values(User, Rows(("id",), []))
    assert as_values(User, Rows(("id", "name"), [])) == []


def test_a_plain_type_takes_one_column_of_any_name() -> None:
    assert one(int, ("count(*)", 3)) == 3
    assert one(int | None, ("max(id)", None)) is None
    error = refusal(int | None, ("a", 1), ("b", 2))
    assert error.code == "COLUMNS"
    assert str(error).startswith("int | None is one column, but the statement gives 2: a, b\n")


@pytest.mark.parametrize(
    ("type_", "kept", "value"),
    [
        (bool, 0, False),
        (bool, 1, True),
        (bool | None, None, None),
        (float, 3, 3.0),
        (bytes, b"\x00\xff", b"\x00\xff"),
        (str, "null", "null"),
        (str | None, "null", "null"),
        (int | str, 1, 1),
        (bool | int, 1, 1),
        (object, b"any", b"any"),
        (Tier, "gold", Tier.GOLD),
        (decimal.Decimal, "10.10", decimal.Decimal("10.10")),
        (uuid.UUID, "12345678-1234-5678-1234-567812345678", uuid.UUID("12345678-1234-5678-1234-567812345678")),
        (datetime.date, "2031-05-06", datetime.date(2031, 5, 6)),
        (datetime.time, "07:08:09", datetime.time(7, 8, 9)),
        (datetime.datetime, "2031-05-06 07:08:09", datetime.datetime(2031, 5, 6, 7, 8, 9)),
        (
            datetime.datetime,
            "2031-05-06T07:08:09+00:00",
            datetime.datetime(2031, 5, 6, 7, 8, 9, tzinfo=datetime.UTC),
        ),
        (Annotated[int, msgspec.Meta(gt=0)], 5, 5),
    ],
)
def test_what_a_database_cannot_keep_comes_back_as_what_it_was(type_: Any, kept: object, value: object) -> None:
    back = one(type_, ("x", kept))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("type_", "kept"),
    [
        (int, "5"),
        (int, 1.5),
        (int, None),
        (int | None, "null"),
        (str, 5),
        (str, b"x"),
        (bytes, "eHg="),
        (bool, 2),
        (bool, "true"),
        (datetime.datetime, 0),
        (datetime.date, "yesterday"),
        (Tier, "silver"),
        (Annotated[int, msgspec.Meta(gt=0)], 0),
    ],
)
def test_nothing_is_cast_in_silence(type_: Any, kept: object) -> None:
    error = refusal(type_, ("x", kept))
    assert error.code == "TYPE"
    assert "cast it in the statement" in str(error)


def test_the_error_names_the_row_and_the_column() -> None:
    rows = Rows(("id", "name"), [(1, "Ada"), (2, None)])
    with pytest.raises(StatementError) as raised:
        as_values(User, rows)
    assert str(raised.value).splitlines()[0] == "row[1].name does not fit User: expected `str`, got `null`"


def test_a_validator_of_the_class_has_its_say() -> None:
    @attrs.frozen
    class Price:
        cents: int = attrs.field(validator=attrs.validators.ge(0))

    assert one(Price, ("cents", 0)) == Price(0)
    assert refusal(Price, ("cents", -1)).code == "TYPE"
