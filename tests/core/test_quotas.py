"""Rates are exact whatever the arrivals, and those who were refused are told to stay away for as long as it needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core.quotas import RETRY_MOST, Bucket, Pushback, Quota

GAPS = st.lists(st.floats(0.0, 3.0), max_size=200)


@given(st.floats(0.5, 50), st.floats(1, 100), GAPS)
def test_no_window_has_more_than_the_burst_and_the_rate(rate: float, size: float, gaps: list[float]) -> None:
    bucket, now = Bucket(rate, size, 0.0), 0.0
    taken: list[float] = []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            taken.append(now)
    for first, since in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= size + rate * (taken[last] - since) + 1e-6


@given(st.floats(0.5, 50), st.floats(1, 100), GAPS)
def test_who_is_refused_is_served_when_it_was_told_to_come_back(rate: float, size: float, gaps: list[float]) -> None:
    bucket, now = Bucket(rate, size, 0.0), 0.0
    for gap in gaps:
        now += gap / 100
        if not bucket.take(now):
            assert bucket.wait(now) > 0
            now += bucket.wait(now) + 1e-9
            assert bucket.take(now)


def test_what_was_not_begun_is_given_back() -> None:
    bucket = Bucket(1.0, 2.0, 0.0)
    assert [bucket.take(0.0), bucket.take(0.0), bucket.take(0.0)] == [True, True, False]
    bucket.give_back()
    assert bucket.take(0.0)
    for _ in range(5):
        bucket.give_back()
    assert bucket.quota(0.0).remaining == 2, "and never more than there can be"


def test_of_two_who_draw_on_one_bucket_the_emptier_view_is_right() -> None:
    one, two = Bucket(1.0, 10.0, 0.0), Bucket(1.0, 10.0, 0.0)
    for _ in range(4):
        one.take(0.0)
    assert two.heed(one.refill(0.0), 0.0)
    assert two.quota(0.0) == Quota(10, 6, 4.0, 10.0)
    assert not one.heed(two.refill(1.0), 1.0), "it says the same"
    assert not one.heed(0.0, 1.0), "who has not looked knows of nothing"
    assert one.quota(1.0).remaining == 7


def test_an_hour_of_use_elsewhere_is_no_debt() -> None:
    """What counts is how empty the bucket is now, not how much was taken while nobody looked."""
    one, two = Bucket(10.0, 10.0, 0.0), Bucket(10.0, 10.0, 0.0)
    for tenth in range(36_000):
        assert one.take(tenth / 10)
    two.heed(one.refill(3600.0), 3600.0)
    assert two.quota(3600.0).remaining == 10


def test_nobody_is_shut_out_for_ever() -> None:
    bucket = Bucket(1.0, 10.0, 0.0)
    assert bucket.heed(1e9, 0.0)
    assert bucket.wait(0.0) == pytest.approx(11.0)
    assert bucket.full(20.0)


def test_a_new_rule_forgives_nothing_and_takes_nothing() -> None:
    bucket = Bucket(1.0, 10.0, 0.0)
    for _ in range(4):
        bucket.take(0.0)
    bucket.retune(2.0, 20.0, 0.0)
    assert bucket.quota(0.0) == Quota(20, 16, 2.0, 10.0)
    bucket.retune(1.0, 2.0, 0.0)
    assert (bucket.quota(0.0).remaining, bucket.tokens) == (0, -2.0)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket(1.0, 1.0, 100.0)
    assert bucket.take(100.0)
    assert not bucket.take(50.0)
    assert not bucket.take(100.5)
    assert bucket.take(101.0)


# ---- pushback -------------------------------------------------------------------------------


def test_it_doubles_while_refusals_keep_coming_and_comes_down_when_they_stop() -> None:
    pushback, now = Pushback(), 0.0
    seen = []
    for _ in range(100):
        for _ in range(1000):
            pushback.refused(now)
        now += 1.0
        seen.append(pushback.retry_after(now, 0.0, 0.0))
    assert seen[0] == 2.0
    assert seen == sorted(seen)
    assert seen[-1] == RETRY_MOST
    for _ in range(32):
        now += RETRY_MOST
        last = pushback.retry_after(now, 0.0, 0.0)
    assert last == 1.0


@given(st.floats(0, 1000), st.floats(0, 1, exclude_max=True), st.integers(0, 200))
def test_it_is_jittered_and_within_bounds(guess: float, draw: float, refused: int) -> None:
    pushback = Pushback()
    for number in range(refused):
        pushback.refused(number / 10)
    seconds = pushback.retry_after(refused / 10, guess, draw)
    assert max(1.0, min(guess, RETRY_MOST)) <= seconds <= 1.5 * RETRY_MOST


def test_what_is_certain_is_told_in_full() -> None:
    assert Pushback().retry_after(0.0, 0.0, 0.5, certain=600.0) == 750.0
    assert Pushback().retry_after(0.0, 0.0, 0.0, certain=float("inf")) == 86_400.0


def test_quiet_is_forgotten_at_once() -> None:
    pushback = Pushback()
    for second in range(60):
        for _ in range(1000):
            pushback.refused(float(second))
    assert pushback.retry_after(10_000.0, 0.0, 0.0) == 1.0
