"""Latencies: percentiles of the last minute, each ten seconds alike, in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core.latencies import MIN_SAMPLES, Latencies


def test_percentiles_need_a_hundred_samples() -> None:
    latencies = Latencies()
    for number in range(99):
        latencies.add(float(number), 0.0)
    assert latencies.percentile(0.5, 0.0) is None
    latencies.add(99.0, 0.0)
    assert latencies.percentile(0.95, 0.0) == 95.0
    assert latencies.percentile(1.0, 0.0) == 99.0


@given(st.lists(st.floats(0, 10), min_size=MIN_SAMPLES, max_size=250), st.floats(0, 1))
def test_a_percentile_is_a_sample_with_that_share_below_it(samples: list[float], q: float) -> None:
    latencies = Latencies()
    for seconds in samples:
        latencies.add(seconds, 5.0)
    ordered = sorted(samples)
    assert latencies.percentile(q, 6.0) == ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def test_only_the_last_minute_counts() -> None:
    latencies = Latencies()
    for number in range(200):
        latencies.add(1.0, number / 10)
    for number in range(200):
        latencies.add(2.0, 70.0 + number / 10)
    assert latencies.percentile(0.0, 100.0) == 2.0
    assert latencies.percentile(0.5, 200.0) is None


def test_a_burst_is_thinned_out_and_still_told_truly() -> None:
    latencies = Latencies()
    for number in range(100_000):
        latencies.add((number * 7919 % 1000) / 1000, number / 20_000)
    assert len(latencies.samples(5.0)) <= 256
    p50 = latencies.percentile(0.5, 5.0)
    assert p50 == pytest.approx(0.5, abs=0.1)


def test_what_is_usual_moves_slowly() -> None:
    latencies, now = Latencies(), 0.0
    for _ in range(6000):
        now += 0.01
        latencies.add(0.1, now)
    assert latencies.usual_p99 == pytest.approx(0.1)
    for _ in range(1000):
        now += 0.01
        latencies.add(1.0, now)
    assert 0.1 < latencies.usual_p99 < 0.3
    for _ in range(30_000):
        now += 0.01
        latencies.add(1.0, now)
    assert latencies.usual_p99 > 0.9


def test_that_all_is_slow_is_known_after_a_few_answers() -> None:
    latencies, now = Latencies(), 0.0
    for number in range(6000):
        now += 0.01
        latencies.add(10.0 if number % 50 == 0 else 0.1, now)
        assert not latencies.slow_lately  # one in fifty is not all of it
    for number in range(30):
        assert latencies.slow_lately == (number > 21)
        latencies.add(0.3, now + 0.01 * number)
    for _ in range(30):
        latencies.add(0.1, now + 0.4)
    assert not latencies.slow_lately


def test_what_was_cut_counts_only_among_the_slowest() -> None:
    latencies = Latencies()
    latencies.add_cut(9.0, 0.0)  # nobody knows yet what is slow
    for number in range(200):
        latencies.add(number / 200, 0.0)
    before = latencies.samples(2.0)[:]
    latencies.add_cut(0.5, 2.0)
    latencies.add_cut(0.99, 2.0)
    assert latencies.samples(4.0) == sorted([*before, 0.99])


def test_the_share_of_what_is_slower() -> None:
    latencies = Latencies()
    assert latencies.share_over(1.0, 0.0) is None
    for number in range(200):
        latencies.add(float(number), 0.0)
    assert latencies.share_over(149.0, 2.0) == 0.25
    assert latencies.share_over(199.0, 2.0) == 0.0
    assert latencies.share_over(-1.0, 2.0) == 1.0
