"""Proves that any value is written and read back, that none costs more than it may, and that secrets stay inside."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from base64 import b64encode
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

import attrs
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zerver.core.effects import IdempotencyKey
from zerver.core.policy import Policy
from zerver.core.secret import Secret
from zerver.effects import http, sql
from zerver.errors import (
    ConnectionLost,
    EffectError,
    EffectTimeout,
    InvalidData,
    JoinFailed,
    StatementError,
    TraceError,
)
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden, Secrets
from zerver.trace.inert import MASK, Cut, MaskedInt, NamedType, Opaque
from zerver.trace.plain import plain
from zerver.trace.recording.revive import _READERS, Decoder
from zerver.trace.recording.skeleton import bare_step
from zerver.trace.recording.values import Encoder
from zerver.trace.recording.vocabulary import NO_VOCABULARY, Vocabulary
from zerver.trace.same import same

FEW = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


class Colour(enum.Enum):
    RED = "red"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Email(str):
    __slots__ = ()


class Pair(NamedTuple):
    left: int
    right: object


class Packed(msgspec.Struct):
    n: int


@dataclasses.dataclass
class Kept:
    n: int
    note: str = dataclasses.field(default="", repr=False)


@attrs.frozen
class Cart:
    id: str
    items: tuple[str, ...] = ()
    internal: int = attrs.field(default=0, repr=False)


@attrs.frozen(cache_hash=True)
class Guarded:
    """Refuses what is no number, and counts how often it was made."""

    n: int = attrs.field(validator=attrs.validators.instance_of(int))

    def __attrs_post_init__(self) -> None:
        if self.n < 0:
            raise ValueError("below 0")


class Plain:
    def __init__(self, n: int) -> None:
        self.n = n


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Boom(LookupError):
    """An error of a user's."""


class Loop(Mapping[str, int]):
    """A mapping that cannot be read."""

    def __getitem__(self, key: str) -> int:
        raise RuntimeError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("no")

    def __len__(self) -> int:
        return 1


KNOWN = Vocabulary.of(Colour, Rights, Email, Pair, Packed, Kept, Cart, Guarded, Boom)


def written(
    value: object, *, secret: tuple[object, ...] = (), hidden: Hidden = NOTHING_HIDDEN, most: int = 64 * 1024
) -> tuple[bytes, Encoder]:
    encoder = Encoder(Secrets(secret), hidden, most, 1 << 24)
    tree = encoder.refer(value)
    return msgspec.json.encode([tree, encoder.values, encoder.asked.kinds]), encoder


def read(body: bytes, vocabulary: Vocabulary = KNOWN) -> Any:
    tree, values, kinds = msgspec.json.decode(body)
    return Decoder(vocabulary, values, kinds, bare_step).node(tree)


def again(value: object, vocabulary: Vocabulary = KNOWN) -> Any:
    return read(written(value)[0], vocabulary)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.uuids(), st.dates(), st.times(),
    st.datetimes(timezones=st.sampled_from([None, datetime.UTC])), st.timedeltas(),
    st.decimals(allow_nan=False), st.sampled_from([Colour.RED, Rights.READ, Rights.READ | Rights.WRITE]),
    st.characters(categories=["Cs"]),
)  # fmt: skip
KEYS = st.one_of(st.text(), st.integers(), st.tuples(st.integers(), st.text()), st.just("$"))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(KEYS, inner),
        st.frozensets(st.integers(), max_size=1), st.sets(st.text(), max_size=1), st.builds(Cart, st.text()),
        st.builds(Pair, st.integers(), inner),
        st.builds(Kept, st.integers()), st.builds(Packed, st.integers(-(2**60), 2**60)),
    ),
    max_leaves=12,
)  # fmt: skip


@FEW
@given(VALUES)
def test_any_value_is_read_back_as_it_was(value: object) -> None:
    found = again(value)
    assert same(value, found)
    assert repr(found) == repr(value)


@FEW
@given(VALUES)
def test_without_a_vocabulary_a_value_still_shows_itself(value: object) -> None:
    found = again(value, NO_VOCABULARY)
    assert repr(found) == repr(value)
    assert same(found, value)
    assert same(value, found)
    assert same(found, again(value, NO_VOCABULARY))


@FEW
@given(VALUES)
def test_what_was_read_is_written_as_it_was(value: object) -> None:
    body, _ = written(value)
    assert written(read(body, NO_VOCABULARY))[0] == written(read(body, NO_VOCABULARY))[0]
    assert repr(read(written(read(body, NO_VOCABULARY))[0], NO_VOCABULARY)) == repr(value)


@FEW
@given(VALUES, st.integers(100, 2_000))
def test_no_value_takes_more_than_it_may(value: object, most: int) -> None:
    body, _ = written([value, "x" * 5_000, list(range(5_000)), {n: n for n in range(5_000)}], most=most)
    assert len(body) < 12 * most + 4_000
    read(body)


@FEW
@given(VALUES)
def test_people_are_shown_json(value: object) -> None:
    msgspec.json.encode(plain(value))
    msgspec.json.encode(plain(again(value, NO_VOCABULARY)))


# ---- single things ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        float("inf"), -0.0, 2**63, -(2**200), Email("a@b"), MappingProxyType({"a": 1}), bytearray(b"\xff"), Cart, int,
        decimal.Decimal("NaN"), Policy(retries=2), collections.OrderedDict(a=1), [1, [2, [3]]], IdempotencyKey("k"),
    ],
)  # fmt: skip
def test_strange_ones_are_the_same_again(value: object) -> None:
    found = again(value)
    assert same(found, value) or found == dict(value)  # type: ignore[call-overload]  # a mapping is read as a dict


def test_nan_is_nan() -> None:
    assert math.isnan(again(float("nan")))


@pytest.mark.parametrize("value", [Odd(), Loop(), object(), lambda: 1, open, Plain(3), type("X", (), {})(), range(9)])
def test_what_nobody_can_write_is_opaque_and_no_error(value: object) -> None:
    found = again(value)
    assert repr(found)
    assert same(found, again(value))


def test_a_plain_object_keeps_its_attributes() -> None:
    found = again(Plain(3))
    assert isinstance(found, Opaque)
    assert found.n == 3
    assert same(found, Plain(3))
    assert not same(found, Plain(4))


def test_an_opaque_shows_itself_as_attrs_does() -> None:
    found = again(Cart("c", ("a",), 7), NO_VOCABULARY)
    assert isinstance(found, Opaque)
    assert repr(found) == "Cart(id='c', items=('a',))"
    assert (found.id, found.internal) == ("c", 7)
    assert found == again(Cart("c", ("a",), 7), NO_VOCABULARY)
    assert found != again(Cart("c", ("a",), 8), NO_VOCABULARY)
    with pytest.raises(AttributeError, match="recorded Cart has no 'price'"):
        _ = found.price


def test_cycles_and_depths_are_cut() -> None:
    loop: list[Any] = [1]
    loop += [loop, loop]
    deep: Any = None
    for _ in range(100_000):
        deep = (deep,)
    for value in (loop, deep, {"a": loop, "b": deep}):
        body, encoder = written(value)
        assert len(body) < 200_000
        assert not encoder.namer.blind
        read(body)


def test_a_large_text_is_its_beginning() -> None:
    found = again("x" * 100_000)
    assert isinstance(found, Cut)
    assert (found.type, found.size) == ("str", 100_000)
    assert same(found, "x" * 100_000)
    assert not same(found, "y" * 100_000)


def test_a_class_is_made_without_its_init() -> None:
    body, _ = written(Guarded(3))
    hostile = body.replace(b'"n":3', b'"n":"three"')
    found = read(hostile)
    assert isinstance(found, Guarded)
    assert repr(found) == "Guarded(n='three')", "nothing of the class's own code has run"
    assert hash(read(body)) == hash(Guarded(3))


def test_a_field_that_came_later_has_its_default() -> None:
    body, _ = written(Cart("c"))
    found = read(body.replace(b',"internal":0', b""))
    assert found == Cart("c")


# ---- errors and effects ----------------------------------------------------------------------


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


ERRORS: list[Exception] = [
    EffectError("a.b", "no", StatementError("unique", "CODE")),
    EffectTimeout("a.b", "timed out after 1s"),
    JoinFailed("join.race", "all failed", [EffectError("x", "y")]),
    ConnectionLost("gone"),
    InvalidData([("body.x", "is missing")]),
    ValueError("v"), KeyError("k"), OSError(2, "no such file", "/x"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ExceptionGroup("several", [ValueError(1)]),
    Boom("b"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("vocabulary", [KNOWN, NO_VOCABULARY], ids=["known", "unknown"])
def test_errors_say_the_same_and_are_caught_as_before(error: Exception, vocabulary: Vocabulary) -> None:
    found = again(raised(error), vocabulary)
    assert str(found) == str(error)
    assert type(found).__name__ == type(error).__name__
    assert same(found, error)
    assert same(error, found)
    nearest = next(c for c in type(error).__mro__ if c.__module__ in ("builtins", "zerver.errors"))
    assert isinstance(found, nearest) or isinstance(error, ExceptionGroup)
    if isinstance(error, EffectError):
        assert (found.kind, found.reason) == (error.kind, error.reason)
        assert same(found.cause, error.cause)
    if isinstance(error, StatementError):
        assert found.code == error.code


def test_an_effect_asks_for_the_same() -> None:
    effect = http.get("http://near/prices?a=1").with_policy(timeout=1.0, retries=2).optional()
    found = again(effect)
    assert same(effect, found)
    assert (found.target, found.operation) == ("near", "read /prices")
    assert again(sql.fetch_one(Cart, "select 1"), NO_VOCABULARY).args[0] == NamedType("tests.trace.test_values:Cart")


# ---- secrets ---------------------------------------------------------------------------------

TOKEN = 'tök_41"11/22\\33'
FORMS = [
    TOKEN.encode(), repr(TOKEN)[1:-1].encode(), msgspec.json.encode(TOKEN)[1:-1], quote(TOKEN).encode(),
    quote(TOKEN, safe="").encode(), b64encode(TOKEN.encode()).rstrip(b"="), TOKEN.encode().hex().encode(),
]  # fmt: skip


@attrs.frozen
class Login:
    user: str
    password: str | bytes | None
    n: int = 0


CARRIERS: list[Any] = [
    TOKEN,
    TOKEN.encode(),
    [TOKEN],
    {"a": {TOKEN: 1}},
    {f"x{TOKEN}y"},
    Login(TOKEN, None),
    Plain(TOKEN),  # type: ignore[arg-type]  # a holder of anything
    Email(TOKEN),
    EffectError("a", f"no {TOKEN}", ValueError(TOKEN)),
    ValueError({"deep": TOKEN}),
    http.get(f"http://x/?q={quote(TOKEN, safe='')}"),
    http.post("http://x/", json={"t": TOKEN}),
    http.get("http://x/", headers={"X-Any": b64encode(TOKEN.encode()).decode()}),
    b"\xff" + TOKEN.encode() + b"\xfe",
    (repr(TOKEN), quote(TOKEN)),
    "x" * 63_990 + TOKEN + "y" * 100_000,
    Secret(TOKEN),
    again(Cart(TOKEN), NO_VOCABULARY),
]


@pytest.mark.parametrize("value", CARRIERS, ids=lambda value: type(value).__name__)
def test_a_known_secret_is_in_no_byte(value: object) -> None:
    body, _ = written(value, secret=(TOKEN,))
    for form in FORMS:
        assert form not in body
    read(body)
    shown = msgspec.json.encode(plain(read(body), Secrets([TOKEN]).text))
    for form in FORMS:
        assert form not in shown


NAMED: list[Any] = [
    {"password": TOKEN},
    {"Pass_Word": TOKEN},
    Login("ann", TOKEN),
    Login("ann", TOKEN.encode()),
    [("password", TOKEN)],
    {"deep": [{"password": {"is": [TOKEN]}}]},
    http.post("http://x/", json={"password": TOKEN}),
    http.get(f"http://x/?a=1&password={quote(TOKEN, safe='')}&b=2"),
    http.get("http://x/", headers={"Authorization": f"Bearer {b64encode(TOKEN.encode()).decode()}"}),
    http.Reply(200, {"set-cookie": b64encode(TOKEN.encode()).decode()}, msgspec.json.encode({"password": TOKEN})),
    Plain(Login("ann", TOKEN)),  # type: ignore[arg-type]  # a holder of anything
    [*range(50_000), {"password": TOKEN}],
]


@pytest.mark.parametrize("value", NAMED, ids=lambda value: type(value).__name__)
def test_a_hidden_name_hides_what_it_names(value: object) -> None:
    hidden = Hidden(frozenset({"password", "pass-word"}))
    body, encoder = written(value, hidden=hidden)
    assert encoder.namer.found
    for form in FORMS:
        assert form not in body
    if TOKEN in str(encoder.namer.found):
        elsewhere, _ = written(["again", TOKEN], secret=tuple(encoder.namer.found))
        assert not any(form in elsewhere for form in FORMS)


def test_placeholders_keep_the_type_that_code_expects() -> None:
    hidden = Hidden(frozenset({"user", "password", "n"}))
    found = read(written(Login("ann", b"x", 5), hidden=hidden)[0], Vocabulary.of(Login))
    assert type(found) is Login
    assert found.user == MASK
    assert isinstance(found.password, bytes)
    assert isinstance(found.n, int)
    assert isinstance(found.n, MaskedInt)
    assert f"{found.n} {found.n!r}" == f"{MASK} {MASK}"
    assert read(written({"user": None}, hidden=hidden)[0]) == {"user": None}
    assert plain(found) == {"user": MASK, "password": MASK, "n": MASK}
    assert same(found, Login("bob", b"y", 6))


def test_a_scheme_is_kept_in_front_of_credentials() -> None:
    found = read(written({"Authorization": "Bearer abcdef"})[0])
    assert found == {"Authorization": f"Bearer {MASK}"}
    scheme, _, token = found["Authorization"].partition(" ")
    assert (scheme, token) == ("Bearer", MASK)


def test_text_with_a_mask_in_it_is_the_same_as_what_it_masks() -> None:
    assert same(f"token {MASK} of {MASK}", "token 1 of 2")
    assert same(f"token {MASK}".encode(), b"token 1")
    assert not same(f"token {MASK} of {MASK}", "token 1 or 2")
    assert same({"a": MASK}, {"a": "x"})
    assert not same({"a": MASK, "b": 1}, {"a": "x", "b": 2})


# ---- hostile ---------------------------------------------------------------------------------

TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 1 << 70), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["is", "items", "fields", "type", "name"]), inner),
        st.builds(
            lambda tag, rest: {"$": tag, **rest},
            st.sampled_from([*_READERS, 0, -1, True]),
            st.dictionaries(
                st.sampled_from(["is", "items", "fields", "type", "name", "text", "args", "size", "head", "of", "rule",
                                 "members", "kind", "policy", "undo", "base", "at", "repr", "b64", "form"]),
                st.one_of(inner, st.sampled_from(["builtins:OSError", "zerver.errors:JoinFailed", "os:system",
                                                  "zerver.core.decisions:Fail", "zerver.core.joins:JoinRule"])),
            ),
        ),
    ),
    max_leaves=10,
)  # fmt: skip


KIND = {"name": "a", "access": "read", "target": "", "operation": ""}


@settings(FEW, max_examples=400)
@given(TREES)
def test_hostile_trees_are_values_or_errors(tree: Any) -> None:
    try:
        found = Decoder(KNOWN, [1], [{"name": "a", "access": "read", "target": "", "operation": ""}], bare_step).node(
            tree
        )
    except (TraceError, ValueError, TypeError, KeyError, ArithmeticError, AttributeError, LookupError):
        return  # decode_run makes a TraceError of all of these
    repr(found)
    plain(found)


def test_values_that_refer_to_one_another_cannot_grow_without_bound() -> None:
    laughs: list[Any] = ["ha" * 100, *([{"$": n}] * 10 for n in range(12))]
    with pytest.raises(TraceError, match="more than anybody could show"):
        Decoder(KNOWN, laughs, [], bare_step)
    with pytest.raises(TraceError, match="not there"):
        Decoder(KNOWN, [{"$": 0}], [], bare_step)


def test_nothing_is_imported_for_a_name() -> None:
    found = read(msgspec.json.encode([{"$": "object", "type": "this:Zen", "fields": {"x": 1}}, [], []]))
    assert isinstance(found, Opaque)
    assert read(msgspec.json.encode([{"$": "class", "name": "os:system"}, [], []])) == NamedType("os:system")
    with pytest.raises(TraceError, match="only recorded"):
        read(msgspec.json.encode([{"$": "function", "name": "os:system"}, [], []]))("true")


def test_large_values_are_cheap_for_people_too() -> None:
    shown = plain({"a": list(range(1_000_000)), "b": uuid.UUID(int=1)}, most=100)
    assert len(msgspec.json.encode(shown)) < 2_000


@attrs.define(eq=False)
class Knot:
    """Refers to others, and they to it."""

    name: str
    others: list[Knot] = attrs.field(factory=list, repr=False)
    left: Knot | None = attrs.field(default=None, repr=False)
    right: Knot | None = attrs.field(default=None, repr=False)


def test_objects_that_refer_to_each_other_have_an_end() -> None:
    knots = [Knot(f"knot {at}") for at in range(30)]
    for at, knot in enumerate(knots):
        knot.left, knot.right, knot.others = knots[at - 1], knots[(at + 7) % 30], knots
    body, _ = written(knots[0], most=4096)
    assert len(body) < 16 * 4096
    assert "knot 0" in str(body)


def test_of_a_connection_only_its_secrets_are_looked_for() -> None:
    class Line:
        __module__ = "zerver.http.connection"

        def __init__(self) -> None:
            self.server = self
            self.head = [(b"authorization", b"Bearer abcdefghi")]

    body, encoder = written(["abcdefghi", Line()])
    assert "Bearer" not in str(body)
    assert encoder.namer.found
