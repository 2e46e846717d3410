"""What JSON may cost is bounded before it is read: numbers that are hard, depth, and what the collector looks at."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core.strict_json import MAX_DEPTH, MAX_HARD_NUMBERS, MAX_HOLLOW, check_text
from zerver.errors import ProtocolViolation
from zerver.http.conversions import compile_json

READERS = {"anything": compile_json(Any, "here"), "a type": compile_json(list[float], "here")}

HARD = [
    *("1e308", "-1.7976931348623157e308", "1E+300", "5e-324", "2.2250738585072011e-308", "1e-400", "1e0000300"),
    *("0.0000000000000000001e297", "1.23456789012345678901e-150", "12345678901234567890.5E+0120"),
]
EASY = ["1e22", "1e99", "1.2345678901234567e-120", "1e269", "1.5", "0.1e-7", "123456789012345678901234567890.5e99"]


def listed(number: str, times: int) -> bytes:
    return f"[{','.join([number] * times)}]".encode()


@pytest.mark.parametrize("number", HARD)
@pytest.mark.parametrize("reader", READERS)
def test_a_thousand_numbers_may_be_hard_to_read(number: str, reader: str) -> None:
    """msgspec takes 2 to 8 µs for each of them: 1 MiB of `1e308,` held the loop for 1.4 s."""
    assert READERS[reader](listed(number, MAX_HARD_NUMBERS)) == [float(number)] * MAX_HARD_NUMBERS
    with pytest.raises(ProtocolViolation, match="more than 1000 numbers") as refused:
        READERS[reader](listed(number, MAX_HARD_NUMBERS + 1))
    assert refused.value.status == 400


@pytest.mark.parametrize("number", EASY)
def test_any_number_of_others_is_read(number: str) -> None:
    assert READERS["anything"](listed(number, 5_000)) == [float(number)] * 5_000


def test_letters_are_no_numbers() -> None:
    for text in ("e" * 9_000, "there are 300 eggs; e 308 " * 2_000, "e-3 " * 5_000):
        assert READERS["anything"](b'"' + text.encode() + b'"') == text


def depth_of(document: bytes) -> int:
    """Counted by hand; no strings."""
    depth = most = 0
    for byte in document:
        depth += (byte in b"[{") - (byte in b"]}")
        most = max(most, depth)
    return most


NESTS = st.recursive(
    st.just(b"[]"),
    lambda inner: st.one_of(
        st.tuples(inner, st.integers(1, 70)).map(lambda made: b"[" + b",".join([made[0]] * made[1]) + b"]"),
        st.tuples(inner, st.integers(1, 40)).map(lambda made: b"[" * made[1] + made[0] + b"]" * made[1]),
        st.tuples(inner, inner).map(lambda two: b'{"a":' + two[0] + b',"b":' + two[1] + b"}"),
    ),
    max_leaves=5,
).filter(lambda document: len(document) < 50_000)


@given(NESTS)
def test_depth_is_exact_whatever_the_shape(document: bytes) -> None:
    if depth_of(document) > MAX_DEPTH:
        with pytest.raises(ProtocolViolation, match="deeper"):
            check_text(document)
    else:
        check_text(document)


def test_brackets_with_little_in_them_are_bounded() -> None:
    """1 MiB of them became half a million lists, and held the loop for a quarter of a second."""
    for unit in (b"[],", b"{},"):
        hollow = b"[" + unit * (MAX_HOLLOW - 1)
        check_text(hollow + b"0]")
        with pytest.raises(ProtocolViolation, match="little in them") as refused:
            check_text(hollow + unit + b"0]")
        assert refused.value.status == 400
    for full in (b"[0],", b'{"a":[]},', b'"[",', b'"\\"[[[[[",', b'"\\\\[[[[",'):
        check_text(b"[" + full * 2 * MAX_HOLLOW + b"0]")


# ---- the collector --------------------------------------------------------------------------


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """The generations that are collected, in order."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_a_large_body_is_looked_at_once_by_the_collector(collections: list[int]) -> None:
    value = READERS["anything"](b"[" + b"[]," * 90_000 + b"0]")
    assert gc.isenabled()
    assert len(value) == 90_001
    assert len(collections) <= 2


def test_the_collector_is_left_as_it_was() -> None:
    for body in (b"[" + b"[]," * 10_000 + b"}", b'{"a":1,' + b'"b":2,' * 10_000 + b'"c":3}'):
        with pytest.raises(ProtocolViolation):
            READERS["anything"](body)
        assert gc.isenabled()
    gc.disable()
    try:
        READERS["anything"](listed("[]", 10_000))
        assert not gc.isenabled()
    finally:
        gc.enable()
