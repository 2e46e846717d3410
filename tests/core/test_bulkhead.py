"""The adaptive limit finds what a simulated target can do, and its bounds hold whatever it is told."""

from __future__ import annotations

import heapq
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core.bulkhead import Adaptive, AdaptiveLimit, correlation
from zerver.errors import DefinitionError


def limits_of(capacity: int, service: float, load: float, seed: int, *, seconds: int = 300, jitter: bool = False,
              initial: int = 20) -> list[int]:  # fmt: skip
    """The limit, second by second, before a target of `capacity` servers that is asked `load` times a second."""
    rng, limit = Random(seed), AdaptiveLimit(Adaptive(initial=initial))
    now, number, seen = 0.0, 0, list[int]()
    waiting = in_flight = busy = 0
    standing: list[tuple[float, int]] = []
    events: list[tuple[float, int, tuple[float, int] | None]] = [(rng.expovariate(load), 0, None)]

    def serve(attempt: tuple[float, int]) -> None:
        nonlocal busy, number
        busy, number = busy + 1, number + 1
        heapq.heappush(events, (now + (rng.expovariate(1 / service) if jitter else service), number, attempt))

    while now < seconds:
        now, _, attempt = heapq.heappop(events)
        if attempt is None:
            waiting, number = min(1000, waiting + 1), number + 1
            heapq.heappush(events, (now + rng.expovariate(load), number, None))
        else:
            busy -= 1
            limit.record(attempt[0], now, attempt[1], in_flight >= limit.limit)
            in_flight -= 1
            if standing:
                serve(standing.pop(0))
        while waiting and in_flight < limit.limit:
            waiting, in_flight = waiting - 1, in_flight + 1
            if busy < capacity:
                serve((now, in_flight))
            else:
                standing.append((now, in_flight))
        while len(seen) < int(now):
            seen.append(limit.limit)
    return seen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [60, 200])
def test_a_target_that_serves_five_at_once_is_found_out(load: float, seed: int) -> None:
    """The range is Vector's, for the same capacity: a mean limit from 4 to 12."""
    settled = limits_of(5, 0.1, load, seed)[60:]
    assert 4 <= sum(settled) / len(settled) <= 12
    assert max(settled) <= 20


@pytest.mark.parametrize("seed", range(2))
def test_a_larger_one_is_found_out_too(seed: int) -> None:
    settled = limits_of(50, 0.1, 1000, seed, seconds=200)[80:]
    assert 40 <= sum(settled) / len(settled) <= 70


def test_answers_that_vary_do_not_make_it_run_away() -> None:
    settled = limits_of(5, 0.1, 100, 1, jitter=True)[60:]
    assert 4 <= sum(settled) / len(settled) <= 30


def test_what_is_not_used_does_not_grow() -> None:
    assert set(limits_of(50, 0.1, 20, 1, seconds=100)) == {20}


def fed(limit: AdaptiveLimit, began: float, took: float, in_flight: int = 20, count: int = 60) -> None:
    for _ in range(count):
        limit.record(began, began + took, in_flight, in_flight >= limit.limit)


def test_samples_from_before_the_last_move_are_thrown_away() -> None:
    limit = AdaptiveLimit(Adaptive())
    fed(limit, 0.0, 0.1)
    fed(limit, 1.0, 0.1)
    assert limit.limit == 21
    for number in range(2, 50):  # all of them began before it was moved, at 1.1
        assert not limit.record(1.05, float(number), 20, True)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 100), st.integers(1, 300), st.booleans()), max_size=300))
def test_its_bounds_hold(told: list[tuple[float, float, int, bool]]) -> None:
    limit, now = AdaptiveLimit(Adaptive(initial=5, floor=3, ceiling=9, samples=2, window=0.1)), 0.0
    for wait, took, in_flight, full in told:
        now += wait
        before = limit.limit
        moved = limit.record(now - took, now, in_flight, full)
        assert 3 <= limit.limit <= 9
        assert moved == (limit.limit != before)
        assert abs(limit.limit - before) <= 2


def test_a_rule_in_no_order_is_refused() -> None:
    with pytest.raises(DefinitionError, match="order"):
        Adaptive(initial=1)
    with pytest.raises(DefinitionError, match="never moves"):
        Adaptive(samples=0)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=50))
def test_a_correlation_is_between_one_and_one(pairs: list[tuple[float, float]]) -> None:
    one, other = [x for x, _ in pairs], [y for _, y in pairs]
    assert -1.0 <= correlation(one, other) <= 1.0
    assert correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1.0)
    assert correlation([1.0, 1.0], [1.0, 2.0]) == 0.0
