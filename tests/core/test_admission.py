"""Admission: seats and queues are bounded, shares are as the weights say, hopeless work is refused at once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver import AdmissionPolicy
from zerver.core.admission import WEIGHTS, Admission, Refusal, Waiting
from zerver.core.priorities import PRIORITIES, Priority

INF = float("inf")


def fill(admission: Admission, **waiting: int) -> None:
    """Queue that many of each class."""
    for priority, count in waiting.items():
        for _ in range(count):
            assert isinstance(admission.arrive(priority, 0.0, INF), Waiting)  # type: ignore[arg-type]  # a class's name


def served(admission: Admission, count: int) -> Counter[str]:
    """Who gets the next seats, each given back at once."""
    told: Counter[str] = Counter()
    for _ in range(count):
        granted = admission.grant(0.0)
        assert granted is not None
        told[granted[0].priority] += 1
        admission.leave()
    return told


def full(running: int = 1, queued: int = 10_000) -> Admission:
    admission = Admission(AdmissionPolicy(running=running + 1, queued=queued))
    for _ in range(running + 1):
        assert admission.arrive("default", 0.0, INF) is None
    admission.leave()  # one seat is free, but only after somebody has queued
    admission.running += 1
    return admission


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("arrive"), st.sampled_from(PRIORITIES), st.floats(0, 20)),
            st.tuples(st.sampled_from(["leave", "grant", "abandon"]), st.just("default"), st.just(0.0)),
        ),
        max_size=60,
    )
)
def test_seats_and_queues_are_bounded_whatever_happens(events: list[tuple[str, Priority, float]]) -> None:
    admission, waiting, running, now = Admission(AdmissionPolicy(running=3, queued=4)), list[Waiting](), 0, 0.0
    for event, priority, seconds in events:
        now += 0.5
        if event == "arrive":
            answer = admission.arrive(priority, now, now + seconds)
            if answer is None:
                running += 1
                assert not waiting, "nobody overtakes those who wait"
            elif isinstance(answer, Waiting):
                waiting.append(answer)
        elif event == "leave" and running:
            admission.leave()
            running -= 1
        elif event == "abandon" and waiting:
            admission.abandon(waiting.pop())
        elif event == "grant":
            granted = admission.grant(now)
            assert (granted is None) == (running == 3 or not waiting)
            if granted is not None:
                entry, refusal = granted
                oldest = next(one for one in waiting if one.priority == entry.priority)
                assert entry is oldest
                waiting.remove(entry)
                assert (refusal is not None) == (now >= entry.deadline)
                running += refusal is None
        assert admission.running == running <= 3
        assert admission.queued == len(waiting) <= 4


def test_seats_are_shared_by_weight() -> None:
    admission = full()
    fill(admission, interactive=900, default=900, batch=900)
    admission.running -= 1
    told = served(admission, 800)
    assert told == {"interactive": 500, "default": 250, "batch": 50} or all(
        abs(told[priority] - 800 * WEIGHTS[priority] / 80) <= 1 for priority in PRIORITIES
    )


def test_an_idle_class_earns_no_credit() -> None:
    admission = full()
    admission.running -= 1
    fill_and_serve = 5_000
    for _ in range(fill_and_serve):
        admission.running += 1
        fill(admission, interactive=1)
        admission.running -= 1
        served(admission, 1)
    admission.running += 1
    fill(admission, batch=100, interactive=100)
    admission.running -= 1
    told = served(admission, 55)
    assert told["interactive"] >= 49, "batch had wanted nothing, and gets no more than its share now"


def test_work_that_cannot_meet_its_deadline_is_refused_at_once() -> None:
    admission = full()
    fill(admission, default=1)
    admission.running -= 1
    admission.grant(100.0)  # it waited for 100 seconds
    answer = admission.arrive("interactive", 100.0, 101.0)
    assert answer == Refusal("deadline too close")


def test_a_bad_minute_is_forgotten() -> None:
    admission = Admission(AdmissionPolicy(running=1, queued=10))
    assert admission.arrive("default", 0.0, INF) is None
    fill(admission, default=1)
    admission.leave()
    admission.grant(60.0)
    assert isinstance(admission.arrive("default", 60.0, 61.0), Refusal)
    for _ in range(20):  # seats are free again: nobody waits any more
        admission.leave()
        assert admission.arrive("default", 60.0, 61.0) is None
    assert isinstance(admission.arrive("default", 60.0, 61.0), Waiting)


def test_what_is_refused() -> None:
    admission = Admission(AdmissionPolicy(running=1, queued=0))
    assert admission.arrive("default", 0.0, INF) is None
    assert admission.arrive("default", 0.0, INF) == Refusal("queue full")
    assert admission.arrive("batch", 0.0, INF) == Refusal("queue full", status=429)
    admission.draining = True
    assert admission.arrive("default", 0.0, INF) == Refusal("draining")
    with pytest.raises(ValueError):
        admission.abandon(Waiting("default", 0.0, INF))
    with pytest.raises(ValueError):
        AdmissionPolicy(running=0)
