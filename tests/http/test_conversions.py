"""Text and JSON become the types a signature asks for; a type that cannot be read is found out before any request."""

from __future__ import annotations

import datetime
import enum
import json
import math
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar

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
        (Decimal, "sNaN"),
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


# ---- JSON, strictly -------------------------------------------------------------------------

READERS = {"anything": compile_json(Any, "here"), "a class": compile_json(Basket, "here")}  # `unknown` is skipped by it
BIG = b"1" * 4300


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """Basket-shaped JSON of this depth, the outermost object included."""
    return b'{"items": [], "unknown": ' + opening * (depth - 1) + b"0" + closing * (depth - 1) + b"}"


def member(value: bytes) -> bytes:
    return b'{"items": [], "unknown": ' + value + b"}"


STRICT = {
    "64 deep": (nested(64), True),
    "65 deep": (nested(65), False),
    "64 objects deep": (nested(64, b'{"a": ', b"}"), True),
    "65 objects deep": (nested(65, b'{"a": ', b"}"), False),
    "1,000 deep": (nested(1000), False),
    "wide and flat": (member(b"[" + b"[], " * 1000 + b"{}]"), True),
    "brackets in strings": (member(b"[" + b'"[{", ' * 1000 + b'"]"]'), True),
    "closing brackets in strings hide nothing": (member(b'["]]]]]]", ' * 64 + b"0" + b"]" * 64), False),
    "nor do escaped quotes": (member(b'["\\"]]]", ' * 64 + b"0" + b"]" * 64), False),
    "nor escaped backslashes": (member(b'["\\\\", "]]", ' * 64 + b"0" + b"]" * 64), False),
    "escapes in wide lists": (member(b"[" + b'"\\"[\\\\", ' * 1000 + b"0]"), True),
    "4,300 digits": (member(BIG), True),
    "4,301 digits": (member(BIG + b"1"), False),
    "4,301 digits, negative": (member(b"-" + BIG + b"1"), False),
    "100,000 digits": (member(b"1" * 100_000), False),
    "NaN": (member(b"NaN"), False),
    "Infinity": (member(b"Infinity"), False),
    "-Infinity": (member(b"-Infinity"), False),
    "larger than any float": (member(b"1e400"), False),
    "a name twice": (b'{"items": [], "items": []}', False),
    "an unknown name twice": (b'{"items": [], "x": 1, "x": 1}', False),
    "a name twice, deep": (member(b'[{"a": [{"b": 1, "b": {}}]}]'), False),
    "a name twice, once escaped": (member(b'{"a": 1, "\\u0061": 2}'), False),
    "a name twice, with a colon for each that is lost": (member(b'{"a": "\\u003a", "b": 1, "b": 2}'), False),
    "a name twice, and a colon that is none": (member(b'{"a": "\\\\u003a", "b": 1, "b": 2}'), False),
    "one name in two objects": (member(b'[{"a": 1}, {"a": 2}, {"b": {"b": 1}}]'), True),
    "colons in strings": (member(b'{"at": "10:00:00", "::": ":"}'), True),
    "escaped colons": (member(b'"\\u003a\\u003A\\\\u003a\\\\\\u003a:"'), True),
    "what a class skips is UTF-8 too": (member(b'"\xff"'), False),
}


@pytest.mark.parametrize(("body", "accepted"), STRICT.values(), ids=STRICT)
def test_the_verdict_on_json_is_about_the_text_alone(body: bytes, accepted: bool) -> None:
    for read in READERS.values():
        if accepted:
            read(body)
            continue
        with pytest.raises(ProtocolViolation) as refused:
            read(body)
        assert refused.value.status == 400


def test_what_is_wrong_with_the_text_comes_before_what_is_wrong_with_the_shape() -> None:
    for body in (b'{"items": 5, "items": 5}', b'{"items": ' + b"[" * 65 + b"]" * 65 + b"}", b'{"items": 1e400}'):
        with pytest.raises(ProtocolViolation):
            compile_json(Basket, "here")(body)


def escaped(text: str) -> str:
    """The string in JSON, each character as an escape."""
    return '"' + "".join(f"\\u{ord(character):04x}" for character in text) + '"'


TEXT = st.text(st.sampled_from('a:[]{}"\\\u00e9\n'), max_size=4)
#: JSON as text, in which names may repeat.
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.integers(), TEXT).map(json.dumps),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(st.tuples(TEXT.map(json.dumps) | TEXT.map(escaped), inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f"{name} :{value}" for name, value in pairs) + "}"
        ),
    ),
)


def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("twins")
    return dict(pairs)


@given(DOCUMENTS)
def test_a_name_given_twice_is_found_wherever_it_is(text: str) -> None:
    try:
        expected = json.loads(text, object_pairs_hook=refuse_twins)
    except ValueError:
        with pytest.raises(ProtocolViolation):
            READERS["anything"](text.encode())
    else:
        assert READERS["anything"](text.encode()) == expected


@attrs.define
class Pair:
    a: Any
    b: list[str]


@attrs.define
class Clock:
    at: datetime.time  # which is written with more colons than it may be read from
    b: Annotated[int, msgspec.Meta(gt=0)] = 1  # and this may be left out


PAIRS = st.lists(st.tuples(st.sampled_from(['"a"', '"b"', '"c"', '"\\u0061"']), st.sampled_from(["[]", '[":"]', "{}"])))


@pytest.mark.parametrize("type_", [Pair, dict[str, Any], list[Pair | None]])
@given(pairs=PAIRS)
def test_a_name_given_twice_is_found_by_every_type(type_: Any, pairs: list[tuple[str, str]]) -> None:
    text = "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
    text = f"[{text},null]" if type_ not in (Pair, dict[str, Any]) else text
    names = [json.loads(name) for name, _ in pairs]
    with suppress(InvalidData):
        try:
            compile_json(type_, "here")(text.encode())
        except ProtocolViolation:
            assert len(set(names)) < len(names)
        else:
            assert len(set(names)) == len(names)


def test_what_a_type_fills_in_hides_no_name_given_twice() -> None:
    read = compile_json(Clock, "here")
    assert read(b'{"at": "10:20:00"}') == Clock(datetime.time(10, 20))
    with pytest.raises(ProtocolViolation, match="one name twice"):
        read(b'{"at": "10:20:00", "at": "10:20:00"}')
    with pytest.raises(ProtocolViolation):
        compile_json(Pair, "here")(b'{"a": ' + b"9" * 5000 + b', "b": []}')


Kind = TypeVar("Kind")


@attrs.define(slots=False)
class Wrapped(Generic[Kind]):
    a: Kind

    def __attrs_post_init__(self) -> None:
        self.more = 1


@attrs.define(slots=False)
class Prepared:
    a: Any

    def __attrs_pre_init__(self) -> None:
        self.more = 1


@attrs.define(slots=False)
class Judged:
    a: Any = attrs.field()

    @a.validator
    def _judge(self, attribute: object, value: object) -> None:
        self.more = 1


@pytest.mark.parametrize("type_", [Wrapped[int], list[Wrapped[int]], Prepared, Judged])
def test_what_code_of_a_class_puts_into_it_hides_no_name_given_twice(type_: Any) -> None:
    text = b'[{"a": 1, "a": 2}]' if type_ == list[Wrapped[int]] else b'{"a": 1, "a": 2}'
    with pytest.raises(ProtocolViolation, match="one name twice"):
        compile_json(type_, "here")(text)


@given(st.integers(1, 130), st.lists(st.sampled_from(["[", '{"a":', '["]", ', '{"\\\\\\"":']), max_size=130))
def test_depth_is_counted_exactly(width: int, openings: list[str]) -> None:
    closings = "".join("]" if opening.startswith("[") else "}" for opening in reversed(openings))
    body = ("[" + "[], " * width + "".join(openings) + "0" + closings + "]").encode()
    try:
        READERS["anything"](body)
    except ProtocolViolation:
        assert len(openings) + 1 > 64
    else:
        assert len(openings) + 1 <= 64


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 4301])
def test_a_number_that_no_double_holds_is_refused_by_a_type_that_holds_it(number: bytes) -> None:
    for type_, body in ((dict[str, Decimal], b'{"amount": %b}'), (list[Decimal], b"[%b]")):
        with pytest.raises(ProtocolViolation):
            compile_json(type_, "here")(body % number)


@attrs.define
class Bill:
    name: str
    amounts: list[Decimal | None]


@pytest.mark.parametrize("number", ["NaN", "sNaN", "-nan7", " inf ", "Infinity", "\\u004ean"])
def test_a_decimal_of_a_body_is_finite(number: str) -> None:
    read = compile_json(list[Bill], "here")
    assert read(b'[{"name": "NaN", "amounts": ["0.10", null, 3]}]')[0].amounts == [Decimal("0.10"), None, Decimal(3)]
    with pytest.raises(InvalidData) as refused:
        read(b'[{"name": "Ada", "amounts": [null, "%b", "Inf"]}]' % number.encode())
    assert refused.value.problems == tuple((f"body[0].amounts[{at}]", "is not a finite number") for at in (1, 2))


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
