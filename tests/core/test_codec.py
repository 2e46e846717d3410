"""The codec: what goes out comes back, and every problem of an input is named with its place."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core.codec import convert, decode_json, encode_json, to_builtins
from zerver.errors import InvalidData


class Colour(enum.Enum):
    RED = "red"


@attrs.frozen
class Item:
    sku: str
    count: Annotated[int, msgspec.Meta(ge=1)]


@attrs.frozen
class Order:
    id: uuid.UUID
    at: datetime.datetime
    total: decimal.Decimal
    colour: Colour
    items: list[Item]
    note: str | None = None


aware = st.datetimes(timezones=st.just(datetime.UTC), min_value=datetime.datetime(1970, 1, 1))
orders = st.builds(
    Order,
    id=st.uuids(),
    at=aware,
    total=st.decimals(allow_nan=False, allow_infinity=False),
    colour=st.sampled_from(Colour),
    items=st.lists(st.builds(Item, sku=st.text(), count=st.integers(1, 2**62)), max_size=3),
    note=st.one_of(st.none(), st.text()),
)


@given(orders)
def test_what_goes_out_comes_back(order: Order) -> None:
    assert decode_json(encode_json(order), Order) == order


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "at", "items", "sku"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def problems(data: bytes, type_: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidData) as caught:
        decode_json(data, type_)
    return sorted(caught.value.problems)


def test_every_problem_is_named_with_its_place() -> None:
    data = b'{"id": "x", "total": "1", "colour": "blue", "items": [{"sku": 1, "count": 0}, {"count": 2}], "at": 5}'
    found = problems(data, Order)
    assert [where for where, _ in found] == [
        "body.at",
        "body.colour",
        "body.id",
        "body.items[0].count",
        "body.items[0].sku",
        "body.items[1].sku",
    ]
    told = dict(found)
    assert told["body.items[0].sku"] == "expected `str`, got `int`"
    assert told["body.items[1].sku"] == "is missing"
    assert told["body.items[0].count"] == "expected `int` >= 1"


@attrs.frozen
class Parcel:
    lines: list[Item]
    kind: Literal["a", "b"]
    size: int | str
    by_name: dict[str, Item]
    inner: Parcel | None = None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"7", {"body": "expected `object`, got `int`"}),
        (b"null", {"body": "expected `object`, got `null`"}),
        (b"[]", {"body": "expected `object`, got `array`"}),
        (
            b'{"lines": [7, {"sku": 1, "count": 1}], "kind": "c", "size": [], "by_name": {"x": []}}',
            {
                "body.lines[0]": "expected `object`, got `int`",
                "body.lines[1].sku": "expected `str`, got `int`",
                "body.kind": "invalid enum value 'c'",
                "body.size": "expected `int | str`, got `array`",
                "body.by_name[x]": "expected `object`, got `array`",
            },
        ),
        (
            b'{"lines": {}, "kind": "a", "size": 1, "by_name": "x", "inner": {"lines": "xy"}}',
            {
                "body.lines": "expected `array`, got `object`",
                "body.by_name": "expected `object`, got `str`",
                "body.inner.lines": "expected `array`, got `str`",
                "body.inner.kind": "is missing",
                "body.inner.size": "is missing",
                "body.inner.by_name": "is missing",
            },
        ),
    ],
)
def test_a_container_of_another_kind_is_one_problem_and_says_so(data: bytes, expected: dict[str, str]) -> None:
    assert dict(problems(data, Parcel)) == expected


@pytest.mark.parametrize("data", [b"", b"{", b"nope", b'{"a": 1} x', b"\xff"])
def test_what_is_not_json(data: bytes) -> None:
    ((where, what),) = problems(data, dict)
    assert where == "body"
    assert what.startswith("is not JSON")


@given(anything)
def test_no_input_is_half_accepted(value: Any) -> None:
    data = msgspec.json.encode(value)
    found = problems(data, Order)  # nothing of this shape is an order
    assert found
    assert all(where.startswith("body") and what for where, what in found)


def test_a_nesting_that_no_stack_holds_is_a_problem_and_not_a_crash() -> None:
    assert problems(b"[" * 100_000, list)[0][1].startswith("is not JSON")


def test_what_cannot_be_encoded() -> None:
    for value in (object(), {1, "a", b"x", object()}, lambda: None):
        with pytest.raises(InvalidData):
            encode_json(value)
    assert to_builtins({"a": Colour.RED, "b": Item("x", 1), "c": Colour}) == {
        "a": "red",
        "b": {"sku": "x", "count": 1},
        "c": repr(Colour),
    }


def test_text_is_read_as_what_it_is_meant_to_be() -> None:
    assert convert("5", int, "query page", text=True) == 5
    assert convert("true", bool, "query all", text=True) is True
    for text, type_ in (("x", int), ("5.5", int), ("maybe", bool)):
        with pytest.raises(InvalidData) as caught:
            convert(text, type_, "query page", text=True)
        assert caught.value.problems[0][0] == "query page"
    with pytest.raises(InvalidData):
        convert("5", int, "body")
