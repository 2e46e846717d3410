"""The sum promise: processes that share a tenant never run more of it, nor begin it oftener, than one process would."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zerver.core.admission import Admission
from zerver.core.classes import DEFAULT, AdmissionPolicy
from zerver.core.load import Neighbours, Usage
from zerver.core.priorities import PRIORITIES, Priority
from zerver.core.quotas import Bucket
from zerver.core.tenants import Tenant, Tenants
from zerver.core.tickets import Ticket, Waiting
from zerver.runtime.neighbours import Neighbourhood, SharedNeighbours, open_neighbourhood

TENANTS = Tenants(
    {
        "capped": Tenant(runs=3),
        "rated": Tenant(rate=2.0, burst=5),
        "both": Tenant(rate=5.0, burst=8, runs=4),
        "free": Tenant(),
    }
)
NAMES = tuple(TENANTS.named)


@contextmanager
def hood_of(rows: int) -> Iterator[Neighbourhood]:
    fd = open_neighbourhood(rows)
    try:
        with Neighbourhood(fd) as hood:
            yield hood
    finally:
        os.close(fd)


# ---- whatever happens, one thing after the other --------------------------------------------


class Machine(RuleBasedStateMachine):
    """Two to four processes, in which runs arrive, wait, leave and go away; each dies now and then."""

    @initialize(count=st.integers(2, 4), running=st.sampled_from([1, 2, 50]), queued=st.sampled_from([2, 100]))
    def open(self, count: int, running: int, queued: int) -> None:
        self.stack = ExitStack()
        self.hood = self.stack.enter_context(hood_of(count))
        self.policy = AdmissionPolicy(running=running, queued=queued)
        self.now = 100.0
        self.processes = [self.process(row) for row in range(count)]
        self.running: list[list[Ticket]] = [[] for _ in range(count)]
        self.waiting: list[list[Waiting]] = [[] for _ in range(count)]
        # What one process alone would have left: whoever is let in takes a token, and gives it back if it never runs.
        self.left = {
            name: Bucket(tenant.rate, tenant.bucket, self.now)
            for name, tenant in TENANTS.named.items()
            if tenant.rate is not None
        }

    def process(self, row: int) -> Admission:
        return Admission(self.policy, TENANTS, SharedNeighbours(self.hood, row, lambda: self.now))

    def let_in(self, name: str) -> None:
        if name in self.left:
            bucket = self.left[name]
            bucket.full(self.now)  # the tokens that have come back by now
            bucket.tokens -= 1.0
            assert bucket.tokens >= -1e-5, f"{name} is over its rate"

    def told(self, row: int) -> None:
        for entry, answer in self.processes[row].answers(self.now):
            self.waiting[row].remove(entry)
            if isinstance(answer, Ticket):
                self.running[row].append(answer)
            else:
                self.gone(entry.tenant)

    def gone(self, name: str) -> None:
        if name in self.left:
            self.left[name].full(self.now)
            self.left[name].give_back()

    @rule(
        row=st.integers(0, 3), name=st.sampled_from(NAMES), priority=st.sampled_from(PRIORITIES),
        seconds=st.sampled_from([0.0, 0.05, 3.0, float("inf")]), count=st.integers(1, 6),
    )  # fmt: skip
    def arrive(self, row: int, name: str, priority: Priority, seconds: float, count: int) -> None:
        row %= len(self.processes)
        for _ in range(count):
            answer = self.processes[row].arrive(priority, name, self.now, self.now + seconds)
            if isinstance(answer, Ticket):
                self.running[row].append(answer)
            elif isinstance(answer, Waiting):
                self.waiting[row].append(answer)
            self.told(row)  # its own oldest may have made room for it, and gives its token back first
            if isinstance(answer, Ticket | Waiting):
                self.let_in(name)

    @rule(row=st.integers(0, 3), which=st.integers(0, 100), cpu=st.sampled_from([None, 0.0, 0.01]))
    def leave(self, row: int, which: int, cpu: float | None) -> None:
        row %= len(self.processes)
        if self.running[row]:
            self.processes[row].leave(self.running[row].pop(which % len(self.running[row])), self.now, cpu)
            self.told(row)

    @rule(row=st.integers(0, 3), which=st.integers(0, 100))
    def abandon(self, row: int, which: int) -> None:
        row %= len(self.processes)
        if self.waiting[row]:
            entry = self.waiting[row].pop(which % len(self.waiting[row]))
            self.processes[row].abandon(entry, self.now)
            self.gone(entry.tenant)
            self.told(row)

    @rule(row=st.integers(0, 3), which=st.integers(0, 100), seconds=st.sampled_from([0.0, 5.0]))
    def park(self, row: int, which: int, seconds: float) -> None:
        """Held for a while by nobody: the seat is another's, and the run still the tenant's."""
        row %= len(self.processes)
        if self.running[row]:
            ticket = self.running[row][which % len(self.running[row])]
            self.processes[row].park(ticket, self.now)
            self.told(row)
            self.wait(seconds)
            self.processes[row].resume(ticket, self.now)

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.7, 3.0, 3600.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for row in range(len(self.processes)):
            self.told(row)

    @precondition(lambda self: not any(self.left[name].refill(self.now) for name in self.left))
    @rule(row=st.integers(0, 3))
    def die(self, row: int) -> None:
        """What a process knew of a rate dies with it, if nobody has looked; so here it dies when all are whole."""
        row %= len(self.processes)
        self.hood.clear(row)
        self.running[row], self.waiting[row] = [], []
        self.processes[row] = self.process(row)

    @invariant()
    def caps_are_kept(self) -> None:
        if not hasattr(self, "processes"):
            return
        for name, tenant in TENANTS.named.items():
            here = [
                sum(one.tenant == name for one in (*self.running[row], *self.waiting[row]))
                for row in range(len(self.processes))
            ]
            assert sum(here) <= (tenant.runs or 10_000)

    @invariant()
    def nobody_counts_what_is_gone(self) -> None:
        if not hasattr(self, "processes"):
            return
        for name in NAMES:
            for row, process in enumerate(self.processes):
                others = sum(
                    one.tenant == name
                    for other in range(len(self.processes))
                    if other != row
                    for one in (*self.running[other], *self.waiting[other])
                )
                assert process._neighbours is not None
                assert process._neighbours.elsewhere(name).running == others

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0, 60.0, 86_400.0])),
        min_size=1, max_size=150,
    ),
    st.sampled_from([0.1, 3.0, 1000.0]),
    st.sampled_from([1.0, 4.5, 50.0]),
)  # fmt: skip
def test_a_rate_over_four_processes_is_that_of_one(
    arrivals: list[tuple[int, float]], rate: float, burst: float
) -> None:
    """Not above it, and not below it either: whoever comes to a worker that has not seen it for a day is welcome."""
    now = 1000.0
    tenants = Tenants({"acme": Tenant(rate=rate, burst=burst)})
    alone = Admission(AdmissionPolicy(running=1000), tenants)
    with hood_of(4) as hood:
        four = [
            Admission(AdmissionPolicy(running=1000), tenants, SharedNeighbours(hood, row, lambda: now))
            for row in range(4)
        ]
        for row, seconds in arrivals:
            now += seconds
            answers = [one.arrive("default", "acme", now) for one in (alone, four[row])]
            assert isinstance(answers[0], Ticket) == isinstance(answers[1], Ticket)
            quotas = [one.quota("acme", now) for one in (alone, four[row])]
            assert quotas[0] is not None
            assert quotas[1] is not None
            assert quotas[0].reset == pytest.approx(quotas[1].reset, abs=1e-6)


# ---- several at once ------------------------------------------------------------------------


class Player:
    """Somebody whose every word to the neighbours waits until it is let."""

    def __init__(self, act: Callable[[Neighbours], object], inner: Neighbours) -> None:
        self.done = False
        self.result: object = None
        self._act = act
        self._inner = inner
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Up to its next word, and no further."""
        self._go.release()
        self._stopped.acquire()
        if self.done:
            self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.result = self._act(self)
        except BaseException as error:
            self.result = error
        finally:
            self.done = True
            self._stopped.release()

    def publish(self, tenant: str, running: int, refill: float, cost: float) -> None:
        self._pause()
        self._inner.publish(tenant, running, refill, cost)

    def elsewhere(self, tenant: str) -> Usage:
        self._pause()
        return self._inner.elsewhere(tenant)

    def _pause(self) -> None:
        self._stopped.release()
        self._go.acquire()


def play(players: Sequence[Player], choose: Callable[[int], int]) -> None:
    """Let them go on by turns until all are done. choose: which of so many is next."""
    while alive := [player for player in players if not player.done]:
        alive[choose(len(alive)) if len(alive) > 1 else 0].step()
    for player in players:
        if isinstance(player.result, BaseException):
            raise player.result


def all_orders(game: Callable[[Callable[[int], int]], None], most: int = 5_000) -> int:
    """Play a game in every order there is. How many there were."""
    orders, prefix = 0, list[int]()
    while True:
        taken: list[tuple[int, int]] = []

        def choose(count: int, prefix: list[int] = prefix, taken: list[tuple[int, int]] = taken) -> int:
            choice = prefix[len(taken)] if len(taken) < len(prefix) else 0
            taken.append((choice, count))
            return choice

        game(choose)
        orders += 1
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return orders
        assert orders < most, "more than anybody would wait for"
        prefix = [choice for choice, _ in taken[:-1]] + [taken[-1][0] + 1]


@attrs.frozen
class Table:
    """Processes that share tenants, each with runs of its own already."""

    tenants: Tenants
    held: tuple[int, ...]
    seats: int = 100

    def play(self, choose: Callable[[int], int]) -> tuple[int, int]:
        """Let one run of acme arrive in each of them at once, and afterwards two more in each. How many were let in at
        first, and then.
        """
        with hood_of(len(self.held)) as hood:
            real = [SharedNeighbours(hood, row, lambda: 100.0) for row in range(len(self.held))]
            policy = AdmissionPolicy(running=self.seats, default=attrs.evolve(DEFAULT, patience=9.0))
            processes = [Admission(policy, self.tenants, one) for one in real]
            for process, count in zip(processes, self.held, strict=True):
                for _ in range(count):
                    assert isinstance(process.arrive("default", "acme", 100.0), Ticket)

            def arrive(process: Admission) -> Callable[[Neighbours], object]:
                def act(neighbours: Neighbours) -> object:
                    process._neighbours = neighbours
                    return process.arrive("default", "acme", 100.0)

                return act

            players = [Player(arrive(process), one) for process, one in zip(processes, real, strict=True)]
            play(players, choose)
            answers = [player.result for player in players]
            for process, one in zip(processes, real, strict=True):
                process._neighbours = one
            again = [process.arrive("default", "acme", 100.0) for process in processes * 2]
            return count_in(answers), count_in(again)


def count_in(answers: Sequence[object]) -> int:
    return sum(isinstance(answer, Ticket | Waiting) for answer in answers)


@pytest.mark.parametrize("seats", [100, 1])
@pytest.mark.parametrize(("runs", "held"), [(1, (0, 0)), (2, (1, 0)), (2, (0, 0)), (3, (0, 1))])
def test_two_who_come_at_once_keep_a_cap_in_every_order(runs: int, held: tuple[int, ...], seats: int) -> None:
    table, left = Table(Tenants({"acme": Tenant(runs=runs)}), held, seats), runs - sum(held)
    let_in = set[int]()

    def game(choose: Callable[[int], int]) -> None:
        first, then = table.play(choose)
        let_in.add(first)
        assert first + then == left, "who lost has left nothing behind, and what is free can be had"

    assert all_orders(game) > 10
    assert max(let_in) == min(2, left)


@pytest.mark.parametrize(("burst", "held"), [(1, (0, 0)), (2, (1, 0)), (2, (0, 0)), (4, (2, 1))])
def test_two_who_come_at_once_keep_a_rate_in_every_order(burst: int, held: tuple[int, ...]) -> None:
    table, left = Table(Tenants({"acme": Tenant(rate=1e-6, burst=burst)}), held), burst - sum(held)
    let_in = set[int]()

    def game(choose: Callable[[int], int]) -> None:
        first, then = table.play(choose)
        let_in.add(first)
        assert first + then <= left, "each knows of the other's token"

    assert all_orders(game) > 10
    assert max(let_in) == min(2, left)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(3, 4), st.integers(1, 4), st.sampled_from([(0,) * 4, (1, 0, 0, 0)]))
def test_any_number_who_come_at_once_keep_both_bounds(
    data: st.DataObject, count: int, most: int, held: tuple[int, ...]
) -> None:
    for tenant in (Tenant(runs=most), Tenant(rate=1e-6, burst=most), Tenant(rate=1e-6, burst=most, runs=most)):
        table = Table(Tenants({"acme": tenant}), held[:count])
        first, then = table.play(lambda alive: data.draw(st.integers(0, alive - 1)))
        assert sum(held) + first + then <= most


def test_who_leaves_while_another_comes_is_counted_out_at_once() -> None:
    """The other may come too early for the seat, but never has to wait for a third to come."""

    def game(choose: Callable[[int], int]) -> None:
        with hood_of(2) as hood:
            one, two = (SharedNeighbours(hood, row, lambda: 100.0) for row in range(2))
            here, there = (Admission(tenants=Tenants({"acme": Tenant(runs=1)}), neighbours=side) for side in (one, two))
            ticket = here.arrive("default", "acme", 100.0)
            assert isinstance(ticket, Ticket)

            def leave(neighbours: Neighbours) -> None:
                here._neighbours = neighbours
                here.leave(ticket, 101.0, 0.01)

            def arrive(neighbours: Neighbours) -> object:
                there._neighbours = neighbours
                return there.arrive("default", "acme", 101.0)

            players = [Player(leave, one), Player(arrive, two)]
            play(players, choose)
            there._neighbours = two
            if not isinstance(players[1].result, Ticket):
                assert isinstance(there.arrive("default", "acme", 101.0), Ticket)

    assert all_orders(game) >= 3
