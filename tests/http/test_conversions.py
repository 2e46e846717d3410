"""Text and JSON become the types a signature asks for; a type that cannot be read is found out before any request."""

from __future__ import annotations

import datetime
import enum
import math
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.errors import DefinitionError, InvalidData, ProtocolViolation
from zerver.http.conversions import check_is_json, compile_json, compile_text, compile_texts, decode_utf8, without_none
from zerver.http.messages import Headers, RequestHead

UTC = datetime.UTC


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Strange:
    pass


@attrs.frozen
class Item:
    sku: str
    count: int


@attrs.frozen
class Basket:
    items: list[Item]
    parent: Basket | None = None


@attrs.frozen
class WithStrange:
    inside: dict[str, list[Strange]]


# ---- text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (str, " as it is ", " as it is "),
        (int, "-7", -7),
        (int, "9" * 30, int("9" * 30)),
        (float, "2.5", 2.5),
        (bool, "true", True),
        (bool, "0", False),
        (Decimal, "0.10", Decimal("0.10")),
        (datetime.datetime, "2024-02-29T12:00:00Z", datetime.datetime(2024, 2, 29, 12, tzinfo=UTC)),
        (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
        (uuid.UUID, "0190f3c4-7b1e-7c33-9d5e-2f6a8b9c0d1e", uuid.UUID("0190f3c4-7b1e-7c33-9d5e-2f6a8b9c0d1e")),
        (Color, "red", Color.RED),
        (Level, "1", Level.LOW),
        (Literal["a", "b"], "b", "b"),
        (Annotated[int, msgspec.Meta(le=10)], "10", 10),
    ],
)
def test_text_becomes_a_value(type_: Any, text: str, value: object) -> None:
    assert compile_text(type_, "query.x", "here")(text) == value


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (int, ""),
        (int, " 1"),
        (int, "1_0"),
        (int, "٣"),
        (int, "9" * 5000),
        (float, "nan"),
        (float, "-inf"),
        (float, "1e999"),
        (Decimal, "NaN"),
        (Decimal, "x"),
        (bool, "yes"),
        (datetime.datetime, "2023-02-29T12:00:00Z"),
        (datetime.datetime, "9" * 40),
        (uuid.UUID, "x"),
        (Color, "RED"),
        (Literal["a"], "b"),
        (Annotated[int, msgspec.Meta(le=10)], "11"),
    ],
)
def test_text_that_is_no_such_value_is_a_problem_with_a_place(type_: Any, text: str) -> None:
    with pytest.raises(InvalidData) as refused:
        compile_text(type_, "query.x", "here")(text)
    [(place, what)] = refused.value.problems
    assert place == "query.x"
    assert "got `str`" not in what


def test_several_texts_become_a_collection() -> None:
    def texts(type_: Any) -> Callable[[list[str]], Any]:
        become = compile_texts(type_, "query.x", "here")
        assert become is not None
        return become

    assert texts(list[str])(["a", "b"]) == ["a", "b"]
    assert texts(list[int])(["1", "2"]) == [1, 2]
    assert texts(tuple[int, ...])(["1"]) == (1,)
    assert texts(tuple[int, str])(["1", "2"]) == (1, "2")
    assert texts(frozenset[Color])(["red", "red"]) == {Color.RED}
    assert texts(Sequence[float])(["1"]) == [1.0]
    assert compile_texts(int, "query.x", "here") is None
    for type_, values, place in [(list[int], ["1", "x"], "query.x[1]"), (list[float], ["1", "nan"], "query.x")]:
        with pytest.raises(InvalidData) as refused:
            texts(type_)(values)
        assert refused.value.problems[0][0] == place


@pytest.mark.parametrize("type_", [bytes, Strange, Item, dict[str, int], list[Strange], complex, int | Strange, None])
def test_a_type_that_text_cannot_become_is_found_out_at_once(type_: Any) -> None:
    with pytest.raises(DefinitionError, match="step 'x'"):
        if compile_texts(type_, "query.x", "step 'x'") is None:
            compile_text(type_, "query.x", "step 'x'")


def test_optional_types_are_read_without_their_none() -> None:
    assert without_none(int | None) is int
    assert without_none(int) is int
    assert without_none(int | str | None) == int | str


TEXT_TYPES = [int, float, bool, Decimal, datetime.datetime, datetime.date, datetime.time, datetime.timedelta, uuid.UUID]


@given(st.sampled_from(TEXT_TYPES), st.text() | st.from_regex(r"[-+0-9.eEPTZ:inaf]{0,40}", fullmatch=True))
def test_any_text_becomes_a_finite_value_or_a_problem(type_: Any, text: str) -> None:
    try:
        value = compile_text(type_, "query.x", "here")(text)
    except InvalidData:
        return
    assert isinstance(value, type_)
    assert not isinstance(value, float | Decimal) or math.isfinite(value)


# ---- JSON -----------------------------------------------------------------------------------


def test_json_becomes_a_value() -> None:
    body = b'{"items": [{"sku": "a", "count": 2}], "parent": {"items": []}}'
    assert compile_json(Basket, "here")(body) == Basket([Item("a", 2)], Basket([]))
    assert compile_json(dict[str, Any], "here")(b'{"a": [null]}') == {"a": [None]}


def test_json_of_another_shape_has_all_its_problems_listed() -> None:
    with pytest.raises(InvalidData) as refused:
        compile_json(Basket, "here")(b'{"items": [{"sku": 1, "count": 2}, {"sku": "a", "count": "x"}, {"sku": "b"}]}')
    assert [place for place, _ in refused.value.problems] == [
        "body.items[0].sku",
        "body.items[1].count",
        "body.items[2].count",
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"items": [',
        b'{"items": 1',  # wrong in shape first, and then no JSON either
        b'{"items": []} x',
        b'{"items": NaN}',
        b"\xff",
        b'{"items": [{"sku": "\xff", "count": 1}]}',
        b'{"items": [], "unknown": "\\ud800"}',
        b"[" * 100_000,
        b'{"items": [], "unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"parent":' * 100_000,
    ],
    ids=range(11),
)
def test_what_is_no_json_is_a_violation_and_no_more(body: bytes) -> None:
    with pytest.raises(ProtocolViolation) as refused:
        compile_json(Basket, "here")(body)
    assert refused.value.status == 400


@pytest.mark.parametrize("type_", [Strange, list[Strange], WithStrange, Item | Basket, "Nowhere"])
def test_a_type_that_json_cannot_become_is_found_out_at_once(type_: Any) -> None:
    with pytest.raises(DefinitionError, match="step 'x'"):
        compile_json(attrs.make_class("Holder", {"a": attrs.field(type=type_)}), "step 'x'")


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(msgspec.json.encode))
def test_any_body_becomes_a_value_a_problem_or_a_violation(body: bytes) -> None:
    try:
        assert isinstance(compile_json(Basket, "here")(body), Basket)
    except (InvalidData, ProtocolViolation):
        pass


@pytest.mark.parametrize(
    ("fields", "accepted"),
    [
        ({"content-type": "application/json"}, True),
        ({"content-type": 'Application/JSON ; Charset="UTF-8"'}, True),
        ({"content-type": "application/problem+json"}, True),
        ({"content-type": "application/json; profile=x; charset=utf-8"}, True),
        ({"content-type": "application/json", "content-encoding": "identity"}, True),
        ({}, True),
        ({"origin": "https://elsewhere"}, False),
        ({"content-type": ""}, False),
        ({"content-type": "text/plain"}, False),
        ({"content-type": "text/json"}, False),
        ({"content-type": "application/x-www-form-urlencoded"}, False),
        ({"content-type": "application/json, text/plain"}, False),
        ({"content-type": "application/jsonp"}, False),
        ({"content-type": "application/json; charset=latin-1"}, False),
        ({"content-type": "application/json", "content-encoding": "gzip"}, False),
    ],
)
def test_only_json_is_taken_for_json(fields: dict[str, str], accepted: bool) -> None:
    head = RequestHead("POST", "/", Headers.of(fields))
    if accepted:
        check_is_json(head)
        return
    with pytest.raises(ProtocolViolation) as refused:
        check_is_json(head)
    assert refused.value.status == 415


def test_text_bodies_are_utf8() -> None:
    assert decode_utf8("é".encode()) == "é"
    with pytest.raises(ProtocolViolation) as refused:
        decode_utf8(b"\xe9")
    assert refused.value.status == 400
