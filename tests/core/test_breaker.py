"""The breaker against a model that keeps every call; its states, what moves between them, and what it holds back."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver import BreakerPolicy
from zerver.core.breaker import Breaker
from zerver.core.priorities import PRIORITIES, Priority

POLICY = BreakerPolicy(window=10.0, min_calls=4, failure_ratio=0.5, pause=2.0, pause_cap=5.0, probes=2)


def lucky() -> float:
    """A draw that no chance below 1 refuses."""
    return 0.99


def unlucky() -> float:
    return 0.0


def allow(breaker: Breaker, now: float, priority: Priority = "default") -> int:
    return breaker.allow(now, priority, lucky)


@given(st.lists(st.tuples(st.floats(0, 4), st.booleans(), st.booleans()), max_size=60))
def test_it_opens_when_the_window_says_so_and_not_before(calls: list[tuple[float, bool, bool]]) -> None:
    breaker, now, kept = Breaker(POLICY), 0.0, list[tuple[int, bool, bool]]()
    for wait, failed, slow in calls:
        now += wait
        era = allow(breaker, now)
        assert era
        breaker.record(era, failed, slow, now, 0.0)
        bucket = int(now * (10 / POLICY.window))
        kept = [(b, f, s) for b, f, s in [*kept, (bucket, failed, slow)] if b > bucket - 10]
        failures, slows = sum(f for _, f, _ in kept), sum(s for _, _, s in kept)
        trips = len(kept) >= POLICY.min_calls and (failures >= len(kept) * 0.5 or slows >= len(kept) * 0.8)
        assert (breaker.state == "open") == trips
        if trips:
            return


def opened(draw: float = 0.0) -> Breaker:
    breaker = Breaker(POLICY)
    for _ in range(4):
        breaker.record(allow(breaker, 0.0), True, False, 0.0, draw)
    assert breaker.state == "open"
    return breaker


def test_its_pause_is_drawn_from_half_of_it_up() -> None:
    assert not allow(opened(0.0), 0.99)
    assert allow(opened(0.0), 1.0)
    assert not allow(opened(0.9), 1.89)
    assert allow(opened(0.9), 1.9)
    assert opened().would_refuse(0.9)
    assert not opened().would_refuse(1.0)


def test_half_open_lets_some_through_and_closes_after_as_many_successes() -> None:
    breaker = opened()
    eras = [allow(breaker, 1.0) for _ in range(4)]
    assert [bool(era) for era in eras] == [True, True, False, False]
    breaker.record(eras[0], False, False, 1.0, 0.0)
    assert breaker.state == "half-open"
    era = allow(breaker, 1.0)
    breaker.record(era, False, False, 1.0, 0.0)
    assert breaker.state == "closed"
    for _ in range(3):  # what was counted before is forgotten
        breaker.record(allow(breaker, 1.0), True, False, 1.0, 0.0)
    assert breaker.state == "closed"


def test_a_cancelled_probe_gives_its_place_back() -> None:
    breaker = opened()
    eras = [allow(breaker, 1.0) for _ in range(3)]
    assert not eras[2]
    breaker.forget(eras[0])
    assert allow(breaker, 1.0)


def test_a_relapse_doubles_the_pause_up_to_its_cap() -> None:
    breaker, now = opened(), 1.0
    for pause in (4.0, 5.0, 5.0):
        breaker.record(allow(breaker, now), True, False, now, 0.0)
        assert not allow(breaker, now + pause / 2 - 0.01)
        now += pause / 2
    assert allow(breaker, now)


def test_what_was_allowed_in_another_state_proves_nothing() -> None:
    breaker = Breaker(POLICY)
    stale = allow(breaker, 0.0)
    for _ in range(4):
        breaker.record(allow(breaker, 0.0), True, False, 0.0, 0.0)
    probe = allow(breaker, 1.0)
    breaker.record(stale, True, False, 1.0, 0.0)
    breaker.forget(stale)
    assert breaker.state == "half-open"
    breaker.record(probe, False, False, 1.0, 0.0)
    assert breaker.state == "half-open"


def test_who_did_not_ask_is_counted_while_it_is_closed_and_proves_nothing_else() -> None:
    """A rollback goes ahead whatever the breaker says."""
    breaker = Breaker(POLICY)
    for _ in range(4):
        breaker.record(0, True, False, 0.0, 0.0)
    assert breaker.state == "open"
    breaker.record(0, False, False, 0.5, 0.0)
    assert breaker.state == "open"
    assert allow(breaker, 1.0)
    for _ in range(5):
        breaker.record(0, True, False, 1.0, 0.0)
    breaker.record(0, False, False, 1.0, 0.0)
    assert breaker.state == "half-open"
    assert allow(breaker, 1.0)
    assert not allow(breaker, 1.0)


def test_slow_answers_open_it_unless_it_may_be_slow() -> None:
    for ratio, state in ((0.8, "open"), (None, "closed")):
        breaker = Breaker(BreakerPolicy(slow_ratio=ratio))
        for number in range(20):
            breaker.record(allow(breaker, 1.0), False, number >= 4, 1.0, 0.0)
        assert breaker.state == state


# ---- held back ------------------------------------------------------------------------------


def failing(share: float) -> Breaker:
    breaker = Breaker(BreakerPolicy(failure_ratio=2.0))  # never opens
    for number in range(100):
        breaker.record(allow(breaker, 1.0), number < 100 * share, False, 1.0, 0.0)
    return breaker


@pytest.mark.parametrize(
    ("share", "held"), [(0.05, ()), (0.15, ("batch",)), (0.4, ("batch", "default")), (0.6, PRIORITIES)]
)
def test_the_lower_the_class_the_sooner_it_is_held_back(share: float, held: tuple[Priority, ...]) -> None:
    for priority in PRIORITIES:
        assert bool(failing(share).allow(1.0, priority, unlucky)) is (priority not in held)


def test_never_more_than_nine_in_ten_are_held_back() -> None:
    breaker, rng = failing(1.0), Random(1)
    allowed = sum(bool(breaker.allow(2.0, "batch", rng.random)) for _ in range(2000))
    assert 150 <= allowed <= 250
    assert breaker.throttled == 2000 - allowed


def test_few_calls_hold_back_nobody() -> None:
    breaker = Breaker(BreakerPolicy(failure_ratio=2.0))
    for _ in range(19):
        breaker.record(allow(breaker, 1.0), True, False, 1.0, 0.0)
    assert breaker.allow(1.0, "batch", unlucky)


def test_what_has_left_the_window_holds_back_nobody() -> None:
    breaker = failing(1.0)
    assert not breaker.allow(1.0, "interactive", unlucky)
    assert breaker.allow(12.0, "interactive", unlucky)


def test_after_an_outage_it_fills_up_over_five_seconds() -> None:
    rng = Random(2)
    breaker = opened()
    for _ in range(2):
        breaker.record(allow(breaker, 1.0), False, False, 1.0, 0.0)
    assert breaker.state == "closed"
    assert allow(breaker, 1.0)
    assert allow(breaker, 1.0)  # as many at once as there are probes go through
    shares = []
    for now in (1.0, 3.5, 5.9, 6.1):
        eras = [breaker.allow(now, "default", rng.random) for _ in range(1000)]
        shares.append(sum(map(bool, eras)) / 1000)
        for era in filter(None, eras):
            breaker.forget(era)
    assert shares == [
        pytest.approx(0.1, abs=0.04), pytest.approx(0.55, abs=0.06), pytest.approx(0.98, abs=0.02), 1.0
    ]  # fmt: skip


def test_who_calls_one_at_a_time_feels_nothing_of_the_ramp() -> None:
    breaker = opened()
    for number in range(50):
        era = breaker.allow(1.0 + number / 10, "default", unlucky)
        assert era
        breaker.record(era, False, False, 1.0 + number / 10, 0.0)
