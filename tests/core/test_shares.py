"""Fair queueing: shares get what their weights say, corrected by what runs did cost; classes get what they are owed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerver.core.shares import DEBT, Credits, FairQueue, Share

COSTS = st.floats(0.001, 0.05)


def queue_of(*lengths: int, weights: tuple[float, ...] | None = None) -> tuple[FairQueue[object], list[Share[object]]]:
    """A queue with so many items of cost 0.01 for each share."""
    queue: FairQueue[object] = FairQueue()
    shares: list[Share[object]] = [Share(weight) for weight in weights or [1.0] * len(lengths)]
    for number, (share, length) in enumerate(zip(shares, lengths, strict=True)):
        for place in range(length):
            queue.push(share, (number, place), 0.01)
    return queue, shares


# ---- between tenants ------------------------------------------------------------------------


@given(st.lists(st.tuples(COSTS, COSTS, COSTS), min_size=60, max_size=60), st.integers(20, 150))
def test_backlogged_shares_are_served_by_weight(costs: list[tuple[float, float, float]], turns: int) -> None:
    weights = (1.0, 2.0, 4.0)
    queue: FairQueue[tuple[int, float]] = FairQueue()
    shares: list[Share[tuple[int, float]]] = [Share(weight) for weight in weights]
    served = [0.0, 0.0, 0.0]
    for row in costs:
        for number, cost in enumerate(row):
            queue.push(shares[number], (number, cost), cost)
    for _ in range(turns):
        number, cost = queue.pop()
        served[number] += cost
        if not all(share.line for share in shares):
            break
        relative = [got / weight for got, weight in zip(served, weights, strict=True)]
        # The bound of the paper: no two shares are further apart than one run of each, over its weight.
        for one in range(3):
            for other in range(3):
                assert abs(relative[one] - relative[other]) <= 0.05 / weights[one] + 0.05 / weights[other] + 1e-9


@given(st.integers(50, 300))
def test_costs_are_corrected_when_runs_have_ended(turns: int) -> None:
    """Everything is taken for 10 ms; the runs of one tenant take 40."""
    queue, shares = queue_of(400, 400)
    spent = [0.0, 0.0]
    for _ in range(turns):
        number, _ = queue.pop()  # type: ignore[misc]  # a pair, as queue_of made it
        actual = (0.01, 0.04)[number]
        spent[number] += actual
        queue.charge(shares[number], actual - 0.01)
    assert abs(spent[0] - spent[1]) <= 0.05 + 1e-9


def test_a_pause_earns_nothing_and_costs_nothing() -> None:
    queue, shares = queue_of(100, 0)
    for _ in range(50):
        queue.pop()
    for place in range(50):
        queue.push(shares[1], (1, place), 0.01)
    told = Counter(queue.pop()[0] for _ in range(40))  # type: ignore[index]  # a pair
    assert abs(told[0] - told[1]) <= 1


def test_a_debt_is_forgiven_beyond_a_second() -> None:
    queue, shares = queue_of(3, 300)
    queue.charge(shares[0], 3600.0)
    assert shares[0].tag == pytest.approx(DEBT)
    told = [queue.pop()[0] for _ in range(103)]  # type: ignore[index]  # a pair
    assert 0 in told[100:]


def test_within_a_share_the_oldest_goes_first_or_the_newest() -> None:
    queue, _ = queue_of(4)
    assert [queue.pop(), queue.pop(newest=True), queue.pop()] == [(0, 0), (0, 3), (0, 1)]


def test_who_runs_much_already_lets_others_go_first() -> None:
    queue, shares = queue_of(3, 3)
    shares[0].running = 5
    assert [queue.pop(most=5)[0] for _ in range(3)] == [1, 1, 1]  # type: ignore[index]  # a pair
    assert queue.pop(most=5) == (0, 0), "nobody else waits: no seat stays empty for fairness's sake"
    assert (len(queue), queue.pop(most=5)) == (2, (0, 1))
    with pytest.raises(IndexError):
        FairQueue[object]().pop()


def test_what_is_ahead_and_who_is_over() -> None:
    queue, shares = queue_of(10, 2, 0, weights=(1.0, 1.0, 2.0))
    assert queue.ahead(shares[0]) == pytest.approx(0.12), "never more than all that waits"
    assert queue.ahead(shares[1]) == pytest.approx(0.04), "its own line, and as much of the other's"
    assert queue.ahead(shares[2]) == 0.0
    assert [queue.over(share) for share in shares] == [True, False, False]
    alone, own = queue_of(10)
    assert not alone.over(own[0]), "who is alone takes nothing from anybody"


def test_weights_can_change_while_work_waits() -> None:
    queue, shares = queue_of(100, 100)
    queue.reweigh(shares[0], 3.0)
    told = Counter(queue.pop()[0] for _ in range(80))  # type: ignore[index]  # a pair
    assert abs(told[0] - 60) <= 2
    while queue:
        queue.pop()
    assert (queue.weight, queue.backlog) == (0.0, 0.0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "pop", "remove", "charge"]), st.integers(0, 4), st.floats(-0.01, 0.05)),
        max_size=200,
    )
)
def test_nothing_is_lost_and_nothing_is_left(events: list[tuple[str, int, float]]) -> None:
    queue: FairQueue[int] = FairQueue()
    shares: list[Share[int]] = [Share(1.0 + number) for number in range(5)]
    waiting: dict[int, tuple[int, float]] = {}
    for serial, (event, number, cost) in enumerate(events):
        if event == "push":
            waiting[serial] = (number, abs(cost) + 0.001)
            queue.push(shares[number], serial, abs(cost) + 0.001)
        elif event == "charge":
            queue.charge(shares[number], cost)
        elif waiting and event == "pop":
            del waiting[queue.pop()]
        elif waiting and event == "remove":
            gone = list(waiting)[number % len(waiting)]
            del waiting[gone]
            queue.remove(gone)
        assert len(queue) == len(waiting)
        assert queue.oldest == next(iter(waiting), None)
        assert queue.backlog == pytest.approx(sum(cost for _, cost in waiting.values()))
        assert queue.weight == pytest.approx(sum(1.0 + number for number in {one for one, _ in waiting.values()}))
        assert len(queue._heap) <= 64 + 2 * 5 + 1
    for _ in range(len(waiting)):
        del waiting[queue.pop()]
    assert not waiting
    assert all(queue.settled(share) for share in shares)
    with pytest.raises(KeyError):
        queue.remove(0)


# ---- between classes ------------------------------------------------------------------------


def serve(credits_: Credits, heads: list[float | None], turns: int) -> Counter[int]:
    """Costs spent by class, while each of those with a head always waits."""
    spent: Counter[int] = Counter()
    for _ in range(turns):
        rank = credits_.choose(heads)
        credits_.spend(rank, heads[rank] or 0.0, [head is not None for head in heads])
        spent[rank] += round((heads[rank] or 0.0) * 1e6)
    return spent


@given(st.tuples(COSTS, COSTS, COSTS))
@settings(max_examples=30, deadline=None)
def test_classes_that_wait_get_what_they_are_guaranteed(heads: tuple[float, float, float]) -> None:
    spent = serve(Credits((0.50, 0.25, 0.05)), [*heads], 2000)
    total = sum(spent.values())
    whole = 0.01 + 1e6 * sum(heads) / total  # runs are not cut: the last of each may be counted whole or not at all
    assert spent[0] / total == pytest.approx(0.70, abs=whole)
    assert spent[1] / total == pytest.approx(0.25, abs=whole)
    assert spent[2] / total == pytest.approx(0.05, abs=whole)


def test_what_a_class_does_not_want_goes_to_the_highest_that_waits() -> None:
    spent = serve(Credits((0.50, 0.25, 0.05)), [None, 0.01, 0.01], 1000)
    assert spent[2] / sum(spent.values()) == pytest.approx(0.05, abs=0.01)
    assert Credits((0.5, 0.25, 0.05)).choose([None, None, None]) == -1


def test_a_run_that_costs_more_than_can_be_saved_goes_too_and_leaves_a_debt() -> None:
    spent = serve(Credits((0.50, 0.25, 0.05)), [0.001, None, 0.5], 20_000)
    assert spent[2] / sum(spent.values()) == pytest.approx(0.05, abs=0.02)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 10.0), st.tuples(*[st.booleans()] * 3)), max_size=100),
)
def test_credit_is_bounded_and_gone_when_nobody_waits(events: list[tuple[int, float, tuple[bool, ...]]]) -> None:
    shares = (0.50, 0.25, 0.05)
    credits_ = Credits(shares, cap=1.0)
    for rank, cost, waits in events:
        credits_.spend(rank, cost, waits)
        assert all(owed <= share + 1e-12 for owed, share in zip(credits_.owed, shares, strict=True))
        for other in range(3):
            if not waits[other]:
                credits_.forget(other)
                assert credits_.owed[other] == 0.0


def test_an_idle_class_saves_nothing_up() -> None:
    credits_ = Credits((0.50, 0.25, 0.05))
    for _ in range(1000):
        credits_.spend(0, 0.01, [True, False, False])
    assert credits_.choose([0.01, None, 0.01]) == 0
