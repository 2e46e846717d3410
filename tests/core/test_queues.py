"""Queues by class: the higher class first, first come first served inside one, and nobody starves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core.priorities import PRIORITIES, RANK, Priority
from zerver.core.queues import ClassQueues

classes = st.sampled_from(PRIORITIES)


@given(st.lists(st.one_of(classes, st.just("pop"), st.just("leave")), max_size=200))
def test_everybody_is_served_once_in_order_of_arrival_within_a_class(events: list[str]) -> None:
    queues: ClassQueues[int] = ClassQueues()
    there: dict[Priority, list[int]] = {priority: [] for priority in PRIORITIES}
    for number, event in enumerate(events):
        if event == "pop":
            if not len(queues):
                with pytest.raises(IndexError):
                    queues.pop()
                continue
            served = queues.pop()
            line = next(line for line in there.values() if served in line)
            assert line.pop(0) == served
        elif event == "leave":
            line = next((line for line in there.values() if line), None)
            if line is not None:
                left = line.pop()
                queues.remove(left, next(priority for priority in PRIORITIES if there[priority] is line))
        else:
            priority = next(priority for priority in PRIORITIES if priority == event)
            queues.add(number, priority)
            there[priority].append(number)
        assert queues.counts == tuple(len(there[priority]) for priority in PRIORITIES)
        assert len(queues) == len(list(queues)) == sum(queues.counts)


def crowd(*there: Priority) -> ClassQueues[tuple[Priority, int]]:
    queues: ClassQueues[tuple[Priority, int]] = ClassQueues()
    for priority in there:
        for number in range(400):
            queues.add((priority, number), priority)
    return queues


def test_when_all_wait_each_class_gets_its_share() -> None:
    queues = crowd("batch", "default", "interactive")
    served = [queues.pop()[0] for _ in range(400)]
    assert served[0] == "interactive"
    counts = [served.count(priority) for priority in PRIORITIES]
    assert counts[2] == pytest.approx(20, abs=1)
    assert counts[1] == pytest.approx(100, abs=5)
    assert counts[0] == pytest.approx(280, abs=6)


def test_of_any_twenty_one_places_one_is_batchs() -> None:
    queues = crowd("interactive", "batch")
    served = [queues.pop()[0] for _ in range(300)]
    gaps = [i for i, priority in enumerate(served) if priority == "batch"]
    assert max(b - a for a, b in pairwise(gaps)) <= 21


def test_alone_a_class_gets_everything_and_saves_nothing_up() -> None:
    queues = crowd("batch")
    assert [queues.pop()[1] for _ in range(100)] == list(range(100))
    for number in range(10):
        queues.add(("interactive", number), "interactive")
    assert [queues.pop()[0] for _ in range(10)] == ["interactive"] * 10


@given(st.lists(classes, min_size=1, max_size=40), classes)
def test_ahead_of_counts_ones_own_class_and_those_above(there: list[Priority], who: Priority) -> None:
    queues: ClassQueues[int] = ClassQueues()
    for number, priority in enumerate(there):
        queues.add(number, priority)
    assert queues.ahead_of(who) == sum(RANK[priority] <= RANK[who] for priority in there)
