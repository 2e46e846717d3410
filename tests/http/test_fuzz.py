"""Mutated requests: no two ways of reading them differ, and none is answered 500. `scripts/fuzz http` throws more."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.fuzzers.http import ANSWERS, BLOCK, PARSERS, REQUESTS, TOKENS, cut, difference, fuzz, read_response
from zerver.http.messages import RequestHead
from zerver.http.parsers import H11Parser


@pytest.mark.parametrize("block", range(4))
def test_a_short_run_finds_nothing(block: int) -> None:
    assert fuzz(20, block, BLOCK) == []


def test_a_block_is_the_same_every_time() -> None:
    def thrown(seed: int) -> list[bytes]:
        random = Random(f"{seed}/0")
        return cut(random.choice(REQUESTS), random)

    assert thrown(1) == thrown(1)


def test_a_difference_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loose(H11Parser):
        """It forgets an empty field."""

        def request(self, raw: bytes) -> RequestHead:
            return super().request(raw.replace(b"\r\nX:\r\n", b"\r\n"))

    monkeypatch.setitem(PARSERS, "h11", Loose())
    assert fuzz(1, 0, 500)


PIECES = st.lists(st.sampled_from([*REQUESTS, *TOKENS]) | st.binary(max_size=8), max_size=8)


@settings(deadline=None, max_examples=300)
@given(PIECES.map(b"".join), st.integers(0, 1000))
def test_whatever_requests_are_made_of_they_are_read_alike(data: bytes, seed: int) -> None:
    assert difference(data, Random(seed)) is None


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*ANSWERS, *TOKENS]), max_size=6).map(b"".join), st.integers(0, 1000))
def test_whatever_responses_are_made_of_they_are_read_alike(data: bytes, seed: int) -> None:
    assert difference(data, Random(seed), read_response) is None
