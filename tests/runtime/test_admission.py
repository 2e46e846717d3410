"""A ticket is given at once when there is a seat; who waits is answered in time, may leave, and costs no timer else."""

from __future__ import annotations

from random import Random

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.core.classes import BATCH, DEFAULT, INTERACTIVE, AdmissionPolicy
from zerver.core.concurrency import Seats
from zerver.core.load import Load
from zerver.core.priorities import Priority
from zerver.core.tenants import NOBODY, Tenant, Tenants
from zerver.core.tickets import Refusal, Ticket
from zerver.core.work import Work
from zerver.runtime.admission import AdmissionActor

INF = float("inf")


def actor(running: int | Seats = 1, queued: int = 10, **tenants: Tenant) -> AdmissionActor:
    """Patient enough for tests in which the clock does not stand still."""
    policy = AdmissionPolicy(
        running=running,
        queued=queued,
        interactive=attrs.evolve(INTERACTIVE, patience=60.0),
        default=attrs.evolve(DEFAULT, patience=60.0),
        batch=attrs.evolve(BATCH, patience=60.0),
    )
    return AdmissionActor(policy, Tenants(tenants), rng=Random(1))


async def held(
    admission: AdmissionActor, priority: Priority = "default", tenant: str = NOBODY, deadline: float = INF
) -> Ticket:
    ticket = await admission.acquire(priority, tenant, deadline)
    assert isinstance(ticket, Ticket)
    return ticket


async def refused(
    admission: AdmissionActor, priority: Priority = "default", tenant: str = NOBODY, deadline: float = INF
) -> Refusal:
    refusal = await admission.acquire(priority, tenant, deadline)
    assert isinstance(refusal, Refusal)
    return refusal


async def in_line(
    admission: AdmissionActor, nursery: trio.Nursery, served: list[str], *names: tuple[str, Priority]
) -> None:
    """Each waits for a ticket, writes its name, and leaves."""

    async def one(name: str, priority: Priority) -> None:
        answer = await admission.acquire(priority)
        served.append(name if isinstance(answer, Ticket) else f"{name}: {answer.reason}")
        if isinstance(answer, Ticket):
            admission.release(answer)

    for name, priority in names:
        nursery.start_soon(one, name, priority)
        await wait_all_tasks_blocked()


# ---- tickets --------------------------------------------------------------------------------


async def test_a_free_seat_is_given_without_a_checkpoint() -> None:
    admission = actor()
    with trio.CancelScope() as scope:
        scope.cancel()
        ticket = await held(admission, "interactive", "acme")
    assert not scope.cancelled_caught
    assert (ticket.tenant, ticket.priority, ticket.rule) == ("acme", "interactive", Tenant())
    assert admission.statistics().running == 1
    admission.release(ticket)
    assert admission.statistics().running == 0
    with pytest.raises(ValueError, match="given back"):
        admission.release(ticket)


async def test_within_a_class_first_come_is_first_served(nursery: trio.Nursery) -> None:
    admission, served = actor(), list[str]()
    ticket = await held(admission)
    await in_line(admission, nursery, served, ("a", "default"), ("b", "default"), ("c", "default"))
    assert (served, admission.statistics().queued) == ([], 3)
    admission.release(ticket)
    await wait_all_tasks_blocked()
    assert served == ["a", "b", "c"]
    assert admission.statistics().running == 0


async def test_the_interactive_are_served_before_the_batch(nursery: trio.Nursery) -> None:
    admission, served = actor(), list[str]()
    ticket = await held(admission)
    await in_line(
        admission, nursery, served, ("b1", "batch"), ("b2", "batch"), ("i1", "interactive"), ("i2", "interactive")
    )
    admission.release(ticket)
    await wait_all_tasks_blocked()
    assert served == ["i1", "i2", "b1", "b2"]


async def test_what_runs_cost_is_learnt() -> None:
    admission, work = actor(), Work()
    for _ in range(3):
        ticket = await admission.acquire("default", NOBODY, INF, work)
        assert isinstance(ticket, Ticket)
        admission.release(ticket, 0.004)
    assert work.cpu == pytest.approx(0.004)


async def test_limits_that_rise_serve_who_waits(nursery: trio.Nursery) -> None:
    admission, served = actor(Seats()), list[str]()
    tickets = [await held(admission) for _ in range(40)]
    await in_line(admission, nursery, served, ("a", "default"), ("b", "default"))
    assert [admission.waits(level) for level in range(3)] == [False, True, True]
    admission.tell(Load((0.0, 0.0, 0.0), (0.0, 0.1, 0.1), 0.1))
    await wait_all_tasks_blocked()
    assert sorted(served) == ["a", "b"]
    assert not admission.waits(2)
    for ticket in tickets:
        admission.release(ticket)


# ---- waiting comes to an end ----------------------------------------------------------------


@pytest.mark.parametrize(("priority", "patience"), [("interactive", 0.05), ("default", 0.25), ("batch", 10.0)])
async def test_who_waits_is_answered_though_no_seat_comes_free(
    autojump_clock: MockClock, priority: Priority, patience: float
) -> None:
    admission = AdmissionActor(AdmissionPolicy(running=1))
    ticket = await held(admission, priority)
    began = trio.current_time()
    refusal = await refused(admission, priority)
    assert trio.current_time() - began == pytest.approx(patience)
    assert (refusal.reason, refusal.status) == ("waited too long", 429 if priority == "batch" else 503)
    assert (admission.statistics().queued, admission.statistics().reasons) == (0, {"waited too long": 1})
    admission.release(ticket)


async def test_a_deadline_ends_the_wait(autojump_clock: MockClock) -> None:
    admission = actor()
    ticket = await held(admission)
    refusal = await refused(admission, deadline=trio.current_time() + 5)
    assert trio.current_time() == pytest.approx(5)
    assert refusal.reason == "deadline passed while waiting"
    admission.release(ticket)


async def test_an_idle_runtime_leaves_the_clock_alone(autojump_clock: MockClock) -> None:
    """With an autojump clock, any timer that admission kept would be the next thing to happen."""
    admission = AdmissionActor(AdmissionPolicy(running=1))
    ticket = await held(admission)
    await refused(admission)
    admission.release(ticket)
    admission.release(await held(admission))
    before = trio.current_time()
    with trio.move_on_after(1000):
        await trio.sleep_forever()
    assert trio.current_time() == before + 1000
    assert trio.lowlevel.current_statistics().seconds_to_next_deadline == INF


async def test_who_leaves_gives_up_the_place_and_owes_nothing(nursery: trio.Nursery) -> None:
    admission, served = actor(), list[str]()
    ticket = await held(admission)
    with trio.CancelScope() as scope:
        nursery.start_soon(_cancel_soon, scope)
        await admission.acquire("default")
    assert scope.cancelled_caught
    assert admission.statistics().queued == 0
    await in_line(admission, nursery, served, ("a", "default"))
    admission.release(ticket)
    await wait_all_tasks_blocked()
    assert served == ["a"]
    assert admission.statistics().running == 0


async def _cancel_soon(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize("order", ["ticket first", "cancelled first"])
async def test_a_ticket_and_a_cancellation_in_the_same_breath(nursery: trio.Nursery, order: str) -> None:
    """Either the caller has the ticket, and gives it back, or it never had one: no seat is lost between the two."""
    admission, got = actor(), list[object]()
    ticket = await held(admission)
    scope = trio.CancelScope()

    async def one() -> None:
        with scope:
            answer = await admission.acquire("default")
            got.append(answer)
            assert isinstance(answer, Ticket)
            admission.release(answer)

    nursery.start_soon(one)
    await wait_all_tasks_blocked()
    if order == "ticket first":
        admission.release(ticket)
        scope.cancel()
    else:
        scope.cancel()
        admission.release(ticket)
    await wait_all_tasks_blocked()
    assert (len(got), scope.cancelled_caught) == ((1, False) if order == "ticket first" else (0, True))
    assert (admission.statistics().running, admission.statistics().queued) == (0, 0)


async def test_a_ticket_and_the_end_of_patience_in_the_same_breath(autojump_clock: MockClock) -> None:
    admission, got = AdmissionActor(AdmissionPolicy(running=1)), list[object]()
    ticket = await held(admission)

    async def one() -> None:
        got.append(await admission.acquire("default"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        await trio.sleep(0.25)
        admission.release(ticket)
    seen = admission.statistics()
    assert seen.admitted + seen.refused == 2
    assert seen.running == sum(isinstance(answer, Ticket) for answer in got)
    assert seen.queued == 0


class Hurried(trio.abc.Clock):
    """A clock of a process that is stopped for a while between any two looks at it."""

    def __init__(self) -> None:
        self.now = self.pause = 0.0

    def start_clock(self) -> None: ...

    def current_time(self) -> float:
        self.now += self.pause
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        self.now = max(self.now, min(deadline, 1e9))
        return 0.0


def test_a_process_that_is_stopped_while_somebody_begins_to_wait_answers_all_the_same() -> None:
    """A collection of garbage is enough: the patience of the newest and of all others is over when it looks again."""
    clock, answers = Hurried(), list[str]()
    admission = AdmissionActor(AdmissionPolicy(running=1))

    async def wait() -> None:
        answer = await admission.acquire("interactive")
        assert isinstance(answer, Refusal)
        answers.append(answer.reason)

    async def main() -> None:
        ticket = await held(admission)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.lowlevel.checkpoint()
            clock.pause = INTERACTIVE.patience
            nursery.start_soon(wait)
        admission.release(ticket)

    trio.run(main, clock=clock)
    assert answers == ["waited too long"] * 2
    assert (admission.statistics().running, admission.statistics().queued) == (0, 0)


async def test_no_seat_is_lost_in_any_crowd(autojump_clock: MockClock) -> None:
    """Hundreds come, some wait too long, some go away, the rest run; in the end nothing is left."""
    admission, chance = AdmissionActor(AdmissionPolicy(running=5)), Random(7)
    outcomes: list[str] = []

    async def one(number: int) -> None:
        await trio.sleep(chance.random())
        with trio.move_on_after(chance.choice([0.01, 0.1, 5.0])):
            priority = chance.choice(["interactive", "default", "batch"])
            answer = await admission.acquire(priority, f"t{number % 7}", trio.current_time() + chance.random())  # type: ignore[arg-type]  # a class
            if isinstance(answer, Refusal):
                outcomes.append(answer.reason)
                return
            try:
                await trio.sleep(chance.random() / 10)
                outcomes.append("ran")
            finally:
                admission.release(answer, 0.001)

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(one, number)
    seen = admission.statistics()
    assert (seen.running, seen.queued) == (0, 0)
    assert {"ran", "waited too long"} < set(outcomes)
    assert len(outcomes) < 500, "some went away"
    await admission.wait_idle()


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(("priority", "status"), [("batch", 429), ("interactive", 503)])
async def test_a_full_queue_refuses(nursery: trio.Nursery, priority: Priority, status: int) -> None:
    admission = actor(queued=1)
    ticket = await held(admission)
    await in_line(admission, nursery, [], ("a", "default"))
    refusal = await refused(admission, priority)
    assert (refusal.reason, refusal.status) == ("queue full", status)
    assert admission.statistics().refused == 1
    admission.release(ticket)


async def test_the_newest_of_a_tenant_takes_the_place_of_its_oldest(nursery: trio.Nursery) -> None:
    admission, served = actor(queued=2), list[str]()
    ticket = await held(admission)
    await in_line(admission, nursery, served, ("a", "default"), ("b", "default"), ("c", "default"))
    assert served == ["a: queue full"]
    admission.release(ticket)
    await wait_all_tasks_blocked()
    assert served == ["a: queue full", "b", "c"]


async def test_a_tenant_over_its_rate_learns_when_to_come_back(autojump_clock: MockClock) -> None:
    admission = actor(running=5, acme=Tenant(rate=0.5, burst=1))
    ticket = await held(admission, tenant="acme")
    refusal = await refused(admission, tenant="acme")
    assert (refusal.reason, refusal.status) == ("tenant over its rate", 429)
    assert refusal.quota == admission.quota("acme") == ticket.quota(trio.current_time())
    assert refusal.quota is not None
    assert (refusal.quota.limit, refusal.quota.remaining, refusal.quota.reset) == (1, 0, 2.0)
    assert refusal.retry_after is not None
    await trio.sleep(refusal.retry_after)
    admission.release(await held(admission, tenant="acme"))
    assert admission.quota("other") is None


async def test_tenants_can_be_replaced_at_any_time() -> None:
    admission = actor(running=5, acme=Tenant(runs=1))
    ticket = await held(admission, tenant="acme")
    assert (await refused(admission, tenant="acme")).reason == "tenant over its runs"
    admission.tenants = Tenants({"acme": Tenant(runs=2)})
    second = await held(admission, tenant="acme")
    admission.tenants = Tenants()
    assert admission.tenants == Tenants()
    for one in (ticket, second):
        admission.release(one)
    assert admission.statistics().running == 0


# ---- beside, and draining -------------------------------------------------------------------


async def test_what_runs_in_place_of_the_refused_is_bounded_too() -> None:
    admission = AdmissionActor(AdmissionPolicy(running=1, queued=0, degraded=1), rng=Random(1))
    ticket = await held(admission)
    refusal = await refused(admission)
    instead = admission.degrade(NOBODY, "default", refusal)
    assert instead is not None
    assert admission.degrade(NOBODY, "default", refusal) is None
    assert (admission.statistics().running, admission.statistics().degraded) == (1, 1)
    admission.release(instead, 0.001)
    admission.release(ticket)
    assert admission.statistics().degraded == 0
    admission.drain()
    assert admission.degrade(NOBODY, "default", await refused(admission)) is None


async def test_draining_refuses_new_runs_and_waits_for_the_old(nursery: trio.Nursery) -> None:
    admission, served = actor(), list[str]()
    ticket = await held(admission)
    await in_line(admission, nursery, served, ("a", "default"), ("b", "batch"))
    admission.drain()
    assert await refused(admission) == Refusal("draining", 503, 1.0)
    await wait_all_tasks_blocked()
    assert sorted(served) == ["a: draining", "b: draining"]
    done = trio.Event()

    async def wait() -> None:
        await admission.wait_idle()
        done.set()

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    assert not done.is_set()
    admission.release(ticket)
    await done.wait()
    await admission.wait_idle()  # at once, when it is idle already
