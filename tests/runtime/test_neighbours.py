"""What one process publishes the others sum up: at once, whole, never backwards, and without those that have died."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zerver.core.admission import Admission
from zerver.core.load import Neighbours, Usage
from zerver.core.tenants import Tenant, Tenants
from zerver.core.tickets import Ticket
from zerver.runtime import neighbours
from zerver.runtime.neighbours import WAYS, Neighbourhood, SharedNeighbours, open_neighbourhood

ROOT = Path(__file__).parents[2]


@contextmanager
def hood_of(rows: int) -> Iterator[Neighbourhood]:
    fd = open_neighbourhood(rows)
    try:
        with Neighbourhood(fd) as hood:
            yield hood
    finally:
        os.close(fd)


def colliding(hood: Neighbourhood, count: int) -> list[str]:
    """Names that share one bucket."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        digest = blake2b(f"t{number}".encode(), digest_size=16, key=hood.secret).digest()
        if int.from_bytes(digest[:8], sys.byteorder) % neighbours.BUCKETS == 7:
            found.append(f"t{number}")
        number += 1
    return found


# ---- what is read is what was said ----------------------------------------------------------


def test_each_sees_the_others_and_not_itself() -> None:
    with hood_of(3) as hood:
        now = 1000.0
        one, two, three = (SharedNeighbours(hood, row, lambda: now) for row in range(3))
        one.publish("acme", 1, 1.0, 0.0)
        one.publish("acme", 2, 2.0, 0.5)
        two.publish("acme", 3, 5.0, 0.0)
        two.publish("acme", 3, 4.0, 1.0)
        two.publish("other", 9, 9.0, 0.0)
        assert one.elsewhere("acme") == Usage(3, 4.0, 1.0)
        assert two.elsewhere("acme") == Usage(2, 2.0, 0.5)
        assert three.elsewhere("acme") == Usage(5, 4.0, 1.5)
        assert three.elsewhere("nobody") == Usage(0, 0.0, 0.0)
        now = 1003.0
        assert (one.elsewhere("acme").refill, two.elsewhere("acme").refill) == (1.0, 0.0)
        protocol: Neighbours = three  # the type checkers' proof
        assert protocol.elsewhere("other").running == 9


@pytest.mark.parametrize("name", ["", "\0", "x" * 1_000_000, "\udcff", "a/../b\r\n", "ünïcode"])
def test_no_name_does_harm(name: str) -> None:
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0), SharedNeighbours(hood, 1)
        one.publish(name, 1, 0.0, 0.0)
        assert two.elsewhere(name).running == 1
        assert two.elsewhere(name + "'").running == 0


def test_what_was_spent_before_the_first_word_does_not_count() -> None:
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0), SharedNeighbours(hood, 1)
        one.publish("acme", 2, 0.0, 70.0)
        assert two.elsewhere("acme") == Usage(2, 0.0, 0.0)


def test_a_claim_that_is_taken_back_leaves_nothing() -> None:
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0, lambda: 7.0), SharedNeighbours(hood, 1, lambda: 7.0)
        for _ in range(3):
            one.publish("acme", 1, 2.0, 0.0)
            assert two.elsewhere("acme") == Usage(1, 2.0, 0.0)
            one.publish("acme", 0, 0.0, 0.0)
            assert two.elsewhere("acme") == Usage(0, 0.0, 0.0)


def test_a_cost_that_starts_again_goes_on() -> None:
    """Admission forgets tenants that are idle, and counts from zero when they come back."""
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0), SharedNeighbours(hood, 1)
        for begun in (1, 2, 3):
            one.publish("acme", 1, 0.0, 0.25 * (begun - 1))
            one.publish("acme", 0, 0.0, 0.25 * begun)
        assert two.elsewhere("acme") == Usage(0, 0.0, 0.75)
        one.publish("acme", 1, 0.0, 0.0)
        assert two.elsewhere("acme") == Usage(1, 0.0, 0.75)
        one.publish("acme", 0, 0.0, 0.5)
        one.publish("acme", 1, 0.0, 0.0)
        assert two.elsewhere("acme") == Usage(1, 0.0, 1.25)


def test_admissions_that_share_hold_a_cap_and_a_rate_together() -> None:
    tenants = Tenants({"capped": Tenant(runs=3), "rated": Tenant(rate=0.001, burst=10)})
    with hood_of(2) as hood:
        both = [Admission(tenants=tenants, neighbours=SharedNeighbours(hood, row)) for row in range(2)]

        def begin(one: Admission, tenant: str) -> Ticket | None:
            answer = one.arrive("default", tenant, 0.0)
            return answer if isinstance(answer, Ticket) else None

        held = [(one, ticket) for one in both * 3 if (ticket := begin(one, "capped")) is not None]
        assert len(held) == 3
        one, ticket = held[0]
        one.leave(ticket, 1.0)
        assert begin(both[1], "capped") is not None
        assert begin(both[0], "capped") is None
        assert sum(begin(one, "rated") is not None for one in both * 20) == 10


# ---- death ----------------------------------------------------------------------------------


def test_who_died_runs_nothing_but_has_spent_what_it_has() -> None:
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0), SharedNeighbours(hood, 1)
        two.publish("acme", 1, 0.0, 0.0)
        two.publish("acme", 5, 0.0, 2.0)
        assert one.elsewhere("acme") == Usage(5, 0.0, 2.0)
        hood.clear(1)
        assert one.elsewhere("acme") == Usage(0, 0.0, 2.0)
        again = SharedNeighbours(hood, 1)
        again.publish("acme", 1, 0.0, 0.0)
        again.publish("acme", 1, 0.0, 0.5)
        assert one.elsewhere("acme") == Usage(1, 0.0, 2.5)


def test_who_dies_while_an_entry_changes_hands_is_cleared_up_after() -> None:
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0), SharedNeighbours(hood, 1)
        two.publish("acme", 5, 0.0, 0.0)
        assert one.elsewhere("acme").running == 5
        (sequence,) = [at for at in range(8, 8 + 2 * neighbours.BUCKETS) if hood.words[at]]
        hood.words[sequence] += 1  # as it is in the midst of it
        assert one.elsewhere("acme").running == 5
        hood.clear(1)
        assert hood.words[sequence] % 2 == 0
        assert one.elsewhere("acme") == Usage(0, 0.0, 0.0)


# ---- bounds ---------------------------------------------------------------------------------


def test_a_full_bucket_forgets_who_was_silent_the_longest() -> None:
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0), SharedNeighbours(hood, 1)
        first, second, *names = colliding(hood, WAYS + 1)
        one.publish(first, 1, 0.0, 0.0)  # stays: it has a run under way
        one.publish(second, 1, 0.0, 0.0)
        one.publish(second, 0, 0.0, 4.0)
        assert two.elsewhere(second) == Usage(0, 0.0, 4.0)
        for name in names:
            one.publish(name, 1, 0.0, 0.0)
            one.publish(name, 0, 0.0, 0.0)
        assert one.statistics().forgotten == 1
        assert two.elsewhere(second) == Usage(0, 0.0, 4.0)
        assert two.elsewhere(first).running == 1
        one.publish(second, 1, 0.0, 5.0)  # it comes back, with the difference and not with all it ever did
        assert two.elsewhere(second) == Usage(1, 0.0, 5.0)


def test_who_has_its_whole_rate_left_is_forgotten_before_who_has_not() -> None:
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0, lambda: 5.0), SharedNeighbours(hood, 1, lambda: 5.0)
        spent, *names = colliding(hood, WAYS + 1)
        one.publish(spent, 0, 60.0, 0.0)
        for name in names:
            one.publish(name, 0, 0.0, 0.0)
        assert (one.statistics().forgotten, two.elsewhere(spent).refill) == (1, 60.0)


def test_a_bucket_full_of_runs_is_crowded_and_recovers() -> None:
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0), SharedNeighbours(hood, 1)
        *names, last = colliding(hood, WAYS + 1)
        for name in names:
            one.publish(name, 1, 0.0, 0.0)
        one.publish(last, 1, 0.0, 0.0)
        assert (one.statistics().crowded, two.elsewhere(last).running) == (1, 0)
        one.publish(names[0], 0, 0.0, 0.0)
        one.publish(last, 2, 0.0, 0.0)
        assert two.elsewhere(last).running == 2
        two.publish(last, 1, 0.0, 0.0)  # a row of its own has room of its own
        assert one.elsewhere(last).running == 1


def test_a_flood_of_names_is_bounded_and_leaves_those_with_runs_alone() -> None:
    with hood_of(2) as hood:
        one, two = SharedNeighbours(hood, 0), SharedNeighbours(hood, 1)
        one.publish("acme", 1, 0.0, 0.0)
        for number in range(20_000):
            one.publish(f"t{number}", 1, 0.0, 0.0)
            one.publish(f"t{number}", 0, 0.0, 0.0)
        assert one.statistics().tenants <= neighbours.BUCKETS * WAYS
        assert two.elsewhere("acme").running == 1
        assert two.elsewhere("t19999") == Usage(0, 0.0, 0.0)


def test_a_file_of_another_kind_is_refused() -> None:
    with ExitStack() as stack:
        fd = os.memfd_create("other") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, fd)
        os.truncate(fd, 4096)
        with pytest.raises(ValueError, match="no file of neighbours"):
            Neighbourhood(fd)


def test_a_row_that_is_not_there_is_refused() -> None:
    with hood_of(2) as hood, pytest.raises(ValueError, match="there are 2 rows, and no row 2"):
        SharedNeighbours(hood, 2)


@given(rows=st.integers(1, 64))
@settings(max_examples=10, deadline=None)
def test_rows_do_not_overlap(rows: int) -> None:
    with hood_of(rows) as hood:
        starts = {start for row in range(rows) for start in hood.entries(neighbours.BUCKETS - 1, row)}
        assert len(starts) == rows * WAYS
        assert max(starts) + 5 == len(hood.words)
        assert hood.sequences(neighbours.BUCKETS) == hood.entries(0, 0)[0]


# ---- any order of things --------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Three processes that begin and end runs of a few tenants, and die; a model that adds up."""

    NAMES = ("a", "b", "c")

    @initialize()
    def open(self) -> None:
        self.stack = ExitStack()
        self.hood = self.stack.enter_context(hood_of(3))
        self.now = 50.0
        self.handles = [self.handle(row) for row in range(3)]
        self.mine = [{name: [0, 0.0, 0.0] for name in self.NAMES} for _ in range(3)]  # runs, full, cost
        self.ever = [dict.fromkeys(self.NAMES, 0.0) for _ in range(3)]  # spent in this row, by whoever had it
        self.origin = [[dict.fromkeys(self.NAMES, 0.0) for _ in range(3)] for _ in range(3)]

    def handle(self, row: int) -> SharedNeighbours:
        return SharedNeighbours(self.hood, row, lambda: self.now)

    @rule(row=st.integers(0, 2), name=st.sampled_from(NAMES), refill=st.sampled_from([0.0, 1.0, 8.0]))
    def begin(self, row: int, name: str, refill: float) -> None:
        self.mine[row][name][0] += 1
        self.mine[row][name][1] = self.now + refill
        self.publish(row, name)

    @rule(row=st.integers(0, 2), name=st.sampled_from(NAMES), cost=st.sampled_from([0.25, 1.0]))
    def end(self, row: int, name: str, cost: float) -> None:
        if self.mine[row][name][0]:
            self.mine[row][name][0] -= 1
            self.mine[row][name][2] += cost
            self.ever[row][name] += cost
            self.publish(row, name)

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(row=st.integers(0, 2))
    def die(self, row: int) -> None:
        self.look()  # what nobody has read before the death, nobody can know of
        self.hood.clear(row)
        self.mine[row] = {name: [0, 0.0, 0.0] for name in self.NAMES}
        self.handles[row] = self.handle(row)
        for other in range(3):  # the new one knows only of what the living have said
            for name in self.NAMES:
                self.origin[row][other][name] = self.ever[other][name] - self.mine[other][name][2]

    def publish(self, row: int, name: str) -> None:
        running, full, cost = self.mine[row][name]
        self.handles[row].publish(name, int(running), max(0.0, full - self.now), cost)

    @invariant()
    def look(self) -> None:
        if not hasattr(self, "handles"):
            return
        for row in range(3):
            others = [other for other in range(3) if other != row]
            for name in self.NAMES:
                told = self.handles[row].elsewhere(name)
                assert told.running == sum(self.mine[other][name][0] for other in others)
                assert told.refill == max(0.0, *(self.mine[other][name][1] - self.now for other in others))
                assert told.cost == sum(self.ever[other][name] - self.origin[row][other][name] for other in others)

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


# ---- two processes --------------------------------------------------------------------------

CHILD = """
import sys
from zerver.runtime.neighbours import Neighbourhood, SharedNeighbours
hood = Neighbourhood(int(sys.argv[1]))
mine = SharedNeighbours(hood, 1)
"""


@contextmanager
def neighbour(fd: int, program: str, *extra: int) -> Iterator[subprocess.Popen[str]]:
    """Another process in row 1, which runs a program."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD + program, *map(str, (fd, *extra))],
        pass_fds=(fd, *extra), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_another_process_is_seen_until_it_is_killed() -> None:
    fd = open_neighbourhood(2)
    program = 'mine.publish("acme", 3, 0.0, 0.0); print(flush=True); input()'
    with Neighbourhood(fd) as hood, neighbour(fd, program) as process:
        os.close(fd)
        ours = SharedNeighbours(hood, 0)
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        assert ours.elsewhere("acme") == Usage(3, 0.0, 0.0)
        process.kill()
        process.wait()
        hood.clear(1)
        assert ours.elsewhere("acme") == Usage(0, 0.0, 0.0)


def take_turns(mine: SharedNeighbours, page: memoryview, times: int) -> None:
    """Count on a page that only one may touch at once, and who may is found by claiming and looking."""
    for _ in range(times):
        while True:
            mine.publish("acme", 1, 0.0, 0.0)
            if mine.elsewhere("acme").running == 0:
                break
            mine.publish("acme", 0, 0.0, 0.0)
        before = page[0]
        for _ in range(20):
            pass
        page[0] = before + 1
        mine.publish("acme", 0, 0.0, 0.0)


def test_a_cap_over_two_processes_holds_when_each_claims_first_and_looks_then() -> None:
    fd, page_fd, times = open_neighbourhood(2), open_neighbourhood(1), 1500
    program = f"""
from tests.runtime.test_neighbours import take_turns
page = Neighbourhood(int(sys.argv[2]))
print(flush=True)
input()
take_turns(mine, page.words[4:5], {times})
print(flush=True)
"""
    with Neighbourhood(fd) as hood, Neighbourhood(page_fd) as page, neighbour(fd, program, page_fd) as process:
        ours = SharedNeighbours(hood, 0)
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        with page.words[4:5] as counted:
            take_turns(ours, counted, times)
            process.stdout.readline()
            assert counted[0] == 2 * times
    os.close(fd)
    os.close(page_fd)


def test_nobody_reads_one_tenant_for_another_while_entries_change_hands() -> None:
    fd = open_neighbourhood(2)
    program = """
from tests.runtime.test_neighbours import colliding
names = colliding(hood, 12)
print(flush=True)
while True:
    for number, name in enumerate(names, 1):
        mine.publish(name, number, 0.0, 0.0)
        mine.publish(name, 0, 0.0, 0.0)
"""
    with Neighbourhood(fd) as hood, neighbour(fd, program) as process:
        ours = SharedNeighbours(hood, 0)
        names = colliding(hood, 12)
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(2000):
            for number, name in enumerate(names, 1):
                assert ours.elsewhere(name).running in (0, number)
    os.close(fd)
