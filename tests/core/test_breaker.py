"""The breaker against a model that keeps every call; its states and what moves between them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zerver import BreakerPolicy
from zerver.core.breaker import Breaker

POLICY = BreakerPolicy(window=10.0, min_calls=4, failure_ratio=0.5, pause=2.0, pause_cap=5.0, probes=2)


@given(st.lists(st.tuples(st.floats(0, 4), st.booleans()), max_size=60))
def test_it_opens_when_the_window_says_so_and_not_before(calls: list[tuple[float, bool]]) -> None:
    breaker, now, kept = Breaker(POLICY), 0.0, list[tuple[int, bool]]()
    for wait, failed in calls:
        now += wait
        assert breaker.allow(now)
        breaker.record(failed, now, 0.0)
        bucket = int(now * (10 / POLICY.window))
        kept = [(b, f) for b, f in [*kept, (bucket, failed)] if b > bucket - 10]
        failures = sum(f for _, f in kept)
        trips = len(kept) >= POLICY.min_calls and failures >= len(kept) * POLICY.failure_ratio
        assert (breaker.state == "open") == trips
        if trips:
            return


def opened(draw: float = 0.0) -> Breaker:
    breaker = Breaker(POLICY)
    for _ in range(4):
        breaker.record(True, 0.0, draw)
    assert breaker.state == "open"
    return breaker


def test_its_pause_is_drawn_from_half_of_it_up() -> None:
    assert not opened(0.0).allow(0.99)
    assert opened(0.0).allow(1.0)
    assert not opened(0.9).allow(1.89)
    assert opened(0.9).allow(1.9)


def test_half_open_lets_some_through_and_closes_after_as_many_successes() -> None:
    breaker = opened()
    assert [breaker.allow(1.0) for _ in range(4)] == [True, True, False, False]
    breaker.record(False, 1.0, 0.0)
    assert breaker.state == "half-open"
    assert breaker.allow(1.0)
    breaker.record(False, 1.0, 0.0)
    assert breaker.state == "closed"
    for _ in range(3):  # what was counted before is forgotten
        breaker.record(True, 1.0, 0.0)
    assert breaker.state == "closed"


def test_a_cancelled_probe_gives_its_place_back() -> None:
    breaker = opened()
    assert [breaker.allow(1.0) for _ in range(3)] == [True, True, False]
    breaker.forget()
    assert breaker.allow(1.0)


def test_a_relapse_doubles_the_pause_up_to_its_cap() -> None:
    breaker, now = opened(), 1.0
    for pause in (4.0, 5.0, 5.0):
        assert breaker.allow(now)
        breaker.record(True, now, 0.0)
        assert not breaker.allow(now + pause / 2 - 0.01)
        now += pause / 2
    assert breaker.allow(now)
