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
