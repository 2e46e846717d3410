"""No class that waits starves, the highest goes first unless a lower one has earned it, and what stood is told."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from zerver.core.priorities import GUARANTEES
from zerver.core.turns import BUDGETS, CREDIT_CAP, PACES, SLICES, TurnQueue, Waiter

MS = 1_000_000
FEW = settings(max_examples=60, deadline=None)
COSTS = st.integers(1, 30).map(lambda ms: ms * MS)


def served(costs: Sequence[int], turns: int, classes: Sequence[int] = (0, 1, 2)) -> list[int]:
    """What each class was given (ns), if somebody of each of them waits all the time."""
    queue, given_to = TurnQueue(), [0, 0, 0]
    for rank in classes:
        for _ in range(2):
            queue.add(Waiter(rank, costs[rank], None))
    for _ in range(turns):
        entry = queue.next()
        assert entry is not None
        queue.add(Waiter(entry.rank, costs[entry.rank], None))
        queue.charge(entry.rank, costs[entry.rank])
        given_to[entry.rank] += costs[entry.rank]
    return given_to


@FEW
@given(st.tuples(COSTS, COSTS, COSTS), st.sampled_from([(0, 1, 2), (0, 2), (1, 2), (0, 1)]))
def test_a_class_that_waits_gets_what_it_is_guaranteed(costs: tuple[int, ...], classes: tuple[int, ...]) -> None:
    given_to = served(costs, 1_000, classes)
    total = sum(given_to)
    for rank in classes:
        assert given_to[rank] >= GUARANTEES[rank] * total - CREDIT_CAP - 2 * max(costs), (rank, given_to)


@FEW
@given(st.tuples(COSTS, COSTS, COSTS))
def test_what_nobody_has_earned_goes_by_priority(costs: tuple[int, ...]) -> None:
    interactive, default, batch = served(costs, 1_000)
    slack = CREDIT_CAP + 2 * max(costs)
    total = interactive + default + batch
    assert default <= GUARANTEES[1] * total + slack
    assert batch <= GUARANTEES[2] * total + slack


class _Model:
    """The queue as a list: who came first, of whom."""

    def __init__(self) -> None:
        self.queue = TurnQueue()
        self.entries: list[Waiter] = []


@FEW
@given(st.lists(st.tuples(st.sampled_from(["add", "withdraw", "next"]), st.integers(0, 2), COSTS), max_size=80))
def test_within_a_class_it_is_first_come_first_served(script: list[tuple[str, int, int]]) -> None:
    model = _Model()
    for what, rank, cost in script:
        if what == "add":
            entry = Waiter(rank, cost, None)
            model.entries.append(entry)
            model.queue.add(entry)
        elif what == "withdraw" and model.entries:
            entry = model.entries.pop(cost % len(model.entries))
            model.queue.withdraw(entry)
            model.queue.withdraw(entry)
        elif what == "next":
            chosen = model.queue.next()
            assert (chosen is None) == (not model.entries)
            if chosen is not None:
                assert chosen is next(entry for entry in model.entries if entry.rank == chosen.rank)
                model.entries.remove(chosen)
                model.queue.charge(chosen.rank, cost)
        assert model.queue.waiting == len(model.entries)
        assert [model.queue.count(rank) for rank in range(3)] == [
            sum(entry.rank == rank for entry in model.entries) for rank in range(3)
        ]


def test_standing_work_is_the_least_of_the_tick() -> None:
    queue = TurnQueue()
    first, second, batch = Waiter(0, 2.0, None), Waiter(0, 3.0, None), Waiter(2, 10.0, None)
    for entry in (first, second, batch):
        queue.add(entry)
    assert queue.standing() == (0.0, 0.0, 0.0), "it did not stand there all the time"
    assert queue.standing() == (5.0, 5.0, 15.0)
    queue.withdraw(second)
    queue.add(Waiter(1, 7.0, None))
    assert queue.standing() == (2.0, 2.0, 12.0)
    assert queue.standing() == (2.0, 9.0, 19.0)


def test_an_idle_class_saves_nothing_up() -> None:
    queue = TurnQueue()
    queue.add(Waiter(2, 5 * MS, None))
    queue.add(Waiter(0, MS, None))
    queue.charge(0, 1_000 * MS)
    taken = queue.next()
    assert taken is not None
    assert taken.rank == 2
    queue.add(Waiter(2, 5 * MS, None))
    again = queue.next()
    assert again is not None
    assert again.rank == 0, "its credit ended with its queue"


def test_a_demoted_run_has_the_slices_of_the_lower_class_and_the_budget_of_its_own() -> None:
    pace = PACES["interactive"][1]
    assert (pace.rank, pace.slice_ns, pace.budget_ns) == (1, SLICES[1], BUDGETS[0])
    assert PACES["batch"][1] is PACES["batch"][0]
