"""A worker runs what was enqueued, settles it by how it ended, and leaves nothing behind when it goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import pytest
import trio

from tests.jobs.working import LEASE, SEND, Mail, an_app, at_work, bare_order, until
from zerver import INJECTED, AdmissionPolicy, App, Done, Fail, Flow, IdempotencyKey, Seats, Slot, effect, step
from zerver.core.decisions import FAIL_KINDS
from zerver.core.tickets import Ticket
from zerver.effects import clock, queue
from zerver.errors import DamagedJournal, DefinitionError, JournalUnavailable
from zerver.jobs import Discard, Snooze, WorkerSettings, enqueue, open_worker, order
from zerver.jobs.capability import desk_of, jobs_capability
from zerver.jobs.memory import JobDisk, MemoryJobs, open_memory_jobs
from zerver.jobs.port import Job, QueueRule, Verdict, Wanted
from zerver.runtime import Result, open_runtime
from zerver.testing import no_leaks
from zerver.testing.scheduler import seeded
from zerver.trace.text import format_timeline

# ---- what becomes of a job ------------------------------------------------------------------


def flow_that(answer: Any, name: str = "job") -> Flow:
    """A flow of one step, which gives this answer, or what this function of the number of its call gives."""
    calls: list[int] = []

    @step
    def act() -> Done | Fail:
        calls.append(1)
        given = answer(len(calls)) if callable(answer) else answer
        if isinstance(given, Exception):
            raise given
        return given  # type: ignore[no-any-return] # as the test says

    return Flow(name, [act])


async def test_a_job_runs_with_its_body_and_keeps_its_result(autojump_clock: object) -> None:
    results: list[Result] = []
    async with at_work(an_app(JobDisk(), SEND), observers=[results.append]) as (runtime, worker):
        job_id = await enqueue(runtime, SEND, Mail("a@b"), tenant="acme")
        job = await until(runtime, job_id, "done")
        assert (job.result, job.tenant, job.attempt) == ('{"sent":"a@b"}', "acme", 1)
        assert worker.statistics().done == 1
    (result,) = results
    assert (result.timeline.label, result.timeline.tenant, result.run_id) == ("job send", "acme", f"job_{job_id}.1")
    assert job.run_id == result.run_id


async def test_the_timeline_tells_which_attempt_of_which_job_it_is(autojump_clock: object) -> None:
    flow = flow_that(Done("it"))
    results: list[Result] = []
    app = an_app(JobDisk(), flow, queue="mail", attempts=4)
    async with open_runtime(app, observers=[results.append]) as runtime:
        job_id = await enqueue(runtime, flow)
        await trio.sleep(3)
        async with open_worker(runtime):
            await until(runtime, job_id, "done")
    lines = format_timeline(results[0].timeline).splitlines()
    assert any(line.endswith("attempt 1 of 4 of a job in queue mail; it waited 3000.0ms") for line in lines), lines


async def test_a_failed_job_is_tried_again_by_another_run_after_its_backoff(autojump_clock: object) -> None:
    flow = flow_that(lambda n: Fail.unavailable("bank") if n < 3 else Done(n))
    results: list[Result] = []
    async with at_work(an_app(JobDisk(), flow), observers=[results.append]) as (runtime, worker):
        job_id = await enqueue(runtime, flow)
        job = await until(runtime, job_id, "scheduled")
        assert job.error == "unavailable: bank"
        assert job.attempt == 1
        job = await until(runtime, job_id, "done")
        assert (job.attempt, job.result, job.error) == (3, "3", "")
        assert worker.statistics().again == 2
    assert [result.run_id for result in results] == [f"job_{job_id}.{n}" for n in (1, 2, 3)]


async def test_a_job_whose_attempts_are_spent_is_dead_and_says_why(autojump_clock: object) -> None:
    flow = flow_that(ZeroDivisionError("nine by none"))
    async with at_work(an_app(JobDisk(), flow, attempts=3)) as (runtime, _):
        job = await until(runtime, await enqueue(runtime, flow), "dead", seconds=1e6)
        assert (job.attempt, job.error) == (3, "ZeroDivisionError: nine by none")


@pytest.mark.parametrize("kind", sorted(FAIL_KINDS))
async def test_a_no_is_final_and_a_not_now_is_not(kind: Any, autojump_clock: object) -> None:
    flow = flow_that(lambda n: Fail(kind, "it") if n == 1 else Done())
    async with at_work(an_app(JobDisk(), flow)) as (runtime, _):
        job = await until(runtime, await enqueue(runtime, flow), "done", "dead")
        again = kind in ("unavailable", "rate_limited", "failed", "conflict")
        assert job.state == ("done" if again else "dead")


async def test_a_body_that_does_not_fit_is_dead_at_once(autojump_clock: object) -> None:
    async with at_work(an_app(JobDisk(), SEND)) as (runtime, _):
        job = await until(runtime, await enqueue(runtime, SEND, {"from": "a"}), "dead")
        assert job.attempt == 1
        assert "body.to" in job.error
        job = await until(runtime, await enqueue(runtime, SEND), "dead")
        assert job.error == "body: is required: enqueue the job with one"


async def test_a_deadline_is_the_runs_and_the_next_attempt_has_it_anew(autojump_clock: object) -> None:
    slow = [30.0, 1.0]

    @step
    async def wait() -> Done:
        await clock.sleep(slow.pop(0))
        return Done()

    flow = Flow("slow", [wait])
    async with at_work(an_app(JobDisk(), flow, deadline=5.0)) as (runtime, _):
        job_id = await enqueue(runtime, flow)
        assert (await until(runtime, job_id, "scheduled")).error == "its deadline passed"
        assert (await until(runtime, job_id, "done")).attempt == 2


async def test_a_snoozed_job_comes_back_and_has_lost_no_attempt(autojump_clock: object) -> None:
    flow = flow_that(lambda n: Done(Snooze(600)) if n < 4 else Done())
    async with at_work(an_app(JobDisk(), flow, attempts=1)) as (runtime, worker):
        began = trio.current_time()
        job = await until(runtime, await enqueue(runtime, flow), "done")
        assert trio.current_time() - began >= 1800
        assert (job.attempt, job.run_id[-2:]) == (1, ".4")
        assert worker.statistics().back == 3


async def test_a_discarded_job_is_cancelled_with_the_reason(autojump_clock: object) -> None:
    flow = flow_that(Done(Discard("the account is gone")))
    async with at_work(an_app(JobDisk(), flow)) as (runtime, _):
        job = await until(runtime, await enqueue(runtime, flow), "cancelled")
        assert job.error == "the account is gone"


async def test_writes_that_nobody_knows_of_are_never_repeated(autojump_clock: object) -> None:
    calls: list[str] = []

    @effect(kind="bank.charge", access="write")
    async def charge() -> None:
        calls.append("charge")
        raise OSError("the line went dead")

    @step
    async def pay() -> Done:
        await charge()
        return Done()

    flow = Flow("pay", [pay])
    async with at_work(an_app(JobDisk(), flow)) as (runtime, _):
        job = await until(runtime, await enqueue(runtime, flow), "dead")
        assert job.error.startswith("it left writes of which nobody knows: bank.charge")
        assert runtime.statistics().unresolved == 1
        await trio.sleep(10_000)
    assert calls == ["charge"]


async def test_a_flow_that_is_not_here_is_left_to_others(autojump_clock: object) -> None:
    disk = JobDisk()
    async with at_work(an_app(disk, SEND), owner="old") as (runtime, _):
        await desk_of(runtime).store.order([bare_order("j1", "new")])
        job = await until(runtime, "j1", "scheduled")
        assert (job.error, job.attempt) == ("there is no flow 'new' here", 0)
        async with at_work(an_app(disk, SEND, flow_that(Done(), "new")), owner="new"):
            assert (await until(runtime, "j1", "done")).settled == 1


# ---- who works, and on how much -------------------------------------------------------------


class Crowd:
    """A flow that counts how many of it run at once, of each tenant."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}

        @effect(kind="crowd.stay", access="read")
        async def stay(name: str) -> None:
            for who in (name, "all"):
                self.now[who] = self.now.get(who, 0) + 1
                self.most[who] = max(self.most.get(who, 0), self.now[who])
            try:
                await trio.sleep(seconds)
            finally:
                for who in (name, "all"):
                    self.now[who] -= 1

        @step
        async def be_there(name: Annotated[str, Slot("name")]) -> Done:
            await stay(name)
            return Done()

        self.flow = Flow("crowd", [be_there], takes=[Annotated[str, Slot("name")]])


async def until_all(runtime: Any, ids: list[str], state: str) -> None:
    for job_id in ids:
        await until(runtime, job_id, state, seconds=1e6)


async def test_no_more_run_than_there_are_seats(autojump_clock: object) -> None:
    crowd = Crowd()
    async with at_work(an_app(JobDisk(), crowd.flow), seats=3) as (runtime, worker):
        ids = await order(runtime, queue.enqueue_many(crowd.flow, [{"name": "x"}] * 20))
        await until(runtime, ids[0], "running")
        assert worker.statistics().running == {"default": 3}
        await until_all(runtime, ids, "done")
    assert crowd.most["all"] == 3


async def test_limits_of_a_queue_and_of_a_tenant_hold_over_all_workers(autojump_clock: object) -> None:
    crowd, disk = Crowd(), JobDisk()
    app = an_app(disk, crowd.flow, queue="mail")
    app.queue("mail", limit=5, per_tenant=2)
    async with at_work(app, owner="one") as (runtime, _), at_work(app, owner="two"):
        ids = []
        for tenant in ("a", "b", "c", "d"):
            for _ in range(6):
                ids.append(await enqueue(runtime, crowd.flow, {"name": tenant}, tenant=tenant))
        await until_all(runtime, ids, "done")
    assert crowd.most["all"] == 5
    assert max(crowd.most[tenant] for tenant in "abcd") == 2


async def test_a_worker_works_on_its_queues_alone(autojump_clock: object) -> None:
    other = flow_that(Done(), "other")
    app = an_app(JobDisk(), SEND)
    app.job(other, queue="other")
    async with at_work(app, queues=["other"]) as (runtime, _):
        left = await enqueue(runtime, SEND, Mail("a"))
        await until(runtime, await enqueue(runtime, other), "done")
        await trio.sleep(100)
        await until(runtime, left, "available", seconds=1)


async def test_a_refused_job_is_put_back_and_comes_again(autojump_clock: object) -> None:
    crowd, disk = Crowd(100.0), JobDisk()
    app = App(
        capabilities=[jobs_capability(lambda: open_memory_jobs(disk), disk.wall_ns)],
        admission=AdmissionPolicy(running=Seats(1, 1)),
    )
    app.job(crowd.flow)
    async with at_work(app) as (runtime, worker):
        ids = await order(runtime, queue.enqueue_many(crowd.flow, [{"name": "x"}] * 4))
        await until_all(runtime, ids, "done")
        statistics = worker.statistics()
        assert statistics.back > 0
        assert statistics.done == 4
        assert statistics.again == 0
        for job_id in ids:
            job = await until(runtime, job_id, "done")
            assert (job.attempt, job.run_id) == (1, f"job_{job_id}.1")
    assert crowd.most["all"] == 1


# ---- cancelling, and ending -----------------------------------------------------------------


class Shop:
    """A flow with a charge that is undone when it is cut."""

    def __init__(self) -> None:
        self.said: list[str] = []

        @effect(kind="bank.charge", access="write")
        async def charge(*, key: IdempotencyKey = INJECTED) -> str:
            self.said.append(f"charge {key.partition(':')[0].rpartition('.')[2]}")
            await trio.lowlevel.checkpoint()
            return "c"

        @effect(kind="bank.refund", access="write")
        async def refund(charged: str, *, key: IdempotencyKey = INJECTED) -> None:
            self.said.append("refund")
            await trio.lowlevel.checkpoint()

        @step
        async def sell() -> Done:
            await charge().compensate(refund)
            await clock.sleep(50)
            return Done("sold")

        self.flow = Flow("sell", [sell])


async def test_a_job_that_is_cancelled_while_it_runs_is_undone(autojump_clock: object) -> None:
    shop, runs = Shop(), list[Result]()
    async with at_work(an_app(JobDisk(), shop.flow), observers=[runs.append]) as (runtime, worker):
        job_id = await enqueue(runtime, shop.flow)
        await until(runtime, job_id, "running")
        await trio.sleep(1)
        assert await desk_of(runtime).store.cancel(Wanted(ids=(job_id,)), "a mistake") == 1
        job = await until(runtime, job_id, "cancelled")
        assert worker.statistics().running == {}
        assert job.error == "a mistake"
        assert [run.ending.reason for run in runs] == ["the job was cancelled: a mistake"]
    assert shop.said == ["charge 1", "refund"]


async def test_drain_lets_jobs_finish(autojump_clock: object) -> None:
    shop = Shop()
    async with at_work(an_app(JobDisk(), shop.flow)) as (runtime, worker):
        job_id = await enqueue(runtime, shop.flow)
        await until(runtime, job_id, "running")
        await worker.drain(100)
        await until(runtime, job_id, "done", seconds=1)
        late = await enqueue(runtime, shop.flow)
        await trio.sleep(100)
        await until(runtime, late, "available", seconds=1)
    assert shop.said == ["charge 1"]


async def test_drain_cuts_and_undoes_what_takes_too_long_and_puts_it_back(autojump_clock: object) -> None:
    shop, disk = Shop(), JobDisk()
    app = an_app(disk, shop.flow, attempts=1)
    async with at_work(app) as (runtime, worker):
        job_id = await enqueue(runtime, shop.flow)
        await until(runtime, job_id, "running")
        await worker.drain(10)
        job = await until(runtime, job_id, "available", seconds=1)
        assert job.attempt == 0
    assert shop.said == ["charge 1", "refund"]
    async with at_work(app, owner="next") as (runtime, _):
        job = await until(runtime, job_id, "done")
        assert (job.attempt, job.rescues, job.result) == (1, 0, '"sold"')
    # What was undone is paid for anew: with the old key the bank would say that it has been.
    assert shop.said == ["charge 1", "refund", "charge 2"]


@pytest.mark.parametrize("after", [0.0, 0.5, 20.0])
async def test_whoever_is_cancelled_around_a_worker_leaves_no_job_behind(after: float, autojump_clock: object) -> None:
    shop, disk = Shop(), JobDisk()
    app = an_app(disk, shop.flow)
    with no_leaks():
        with trio.move_on_after(after + 1):
            async with at_work(app) as (runtime, _):
                for _ in range(40):
                    await enqueue(runtime, shop.flow)
                await trio.sleep_forever()
        assert not disk.of_state("running")
    assert shop.said.count("refund") == sum(said.startswith("charge") for said in shop.said)


async def test_a_body_that_raises_keeps_its_error(autojump_clock: object) -> None:
    with pytest.raises(ZeroDivisionError):
        async with at_work(an_app(JobDisk(), SEND)):
            raise ZeroDivisionError


# ---- the store is away, and workers die -----------------------------------------------------


class Flaky(MemoryJobs):
    """A store that can be away."""

    away = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("take", "settle", "renew", "began", "wait", "rescue", "order", "find", "search") and Flaky.away:

            async def raising(*args: object) -> None:
                await trio.lowlevel.checkpoint()
                raise JournalUnavailable("it is away")

            return raising
        return super().__getattribute__(name)


async def test_a_store_that_is_away_for_a_while_costs_no_job(autojump_clock: object) -> None:
    from contextlib import asynccontextmanager

    disk, shop = JobDisk(), Shop()

    @asynccontextmanager
    async def open_flaky() -> Any:
        yield Flaky(disk)

    app = App(capabilities=[jobs_capability(open_flaky, disk.wall_ns)])
    app.job(shop.flow)
    async with at_work(app, seats=4) as (runtime, worker):
        ids = await order(runtime, queue.enqueue_many(shop.flow, [None] * 12))
        await until(runtime, ids[0], "running")
        for _ in range(3):
            Flaky.away = True
            await trio.sleep(30)
            Flaky.away = False
            await trio.sleep(30)
        await until_all(runtime, ids, "done")
        assert worker.statistics().lost == 0
    assert "refund" not in shop.said
    assert len(shop.said) == 12


async def test_a_job_whose_worker_died_is_begun_again_with_the_same_keys(autojump_clock: object) -> None:
    shop, disk = Shop(), JobDisk()
    app = an_app(disk, shop.flow)
    async with open_runtime(app) as runtime:
        store = desk_of(runtime).store
        job_id = await enqueue(runtime, shop.flow)
        await store.renew("dead", LEASE)
        (job,) = await store.take("dead", [], 1) or await store.take("dead", _rules(app), 1)
        await store.began(job.job_id, job.fence, f"job_{job_id}.1")
        async with open_worker(runtime, WorkerSettings(lease=LEASE)) as worker:
            job = await until(runtime, job_id, "done")
            assert worker.statistics().rescued == 1
    assert (job.rescues, job.attempt, job.run_id) == (1, 1, f"job_{job_id}.1")
    assert shop.said == ["charge 1"]


def _rules(app: App) -> Any:
    from zerver.jobs.worker import queue_rules

    return queue_rules(app, ())


async def test_what_kills_its_workers_is_dead_after_three(autojump_clock: object) -> None:
    disk = JobDisk()
    app = an_app(disk, SEND)
    async with open_runtime(app) as runtime:
        store = desk_of(runtime).store
        job_id = await enqueue(runtime, SEND, Mail("a"))
        for n in range(3):
            await store.renew(f"w{n}", LEASE)
            assert len(await store.take(f"w{n}", _rules(app), 9)) == 1
            await trio.sleep(LEASE + 1)
            await store.rescue()
        async with open_worker(runtime):
            await trio.sleep(1000)
        job = await until(runtime, job_id, "dead", seconds=1)
        assert "died while it ran" in job.error


async def test_a_worker_that_stood_still_lets_go_and_undoes_nothing(autojump_clock: object) -> None:
    """Its jobs are another's by then, with the same keys: a refund here would refund the other's charge."""
    shop, disk = Shop(), JobDisk()
    app = an_app(disk, shop.flow)
    async with at_work(app, owner="frozen") as (runtime, frozen):
        job_id = await enqueue(runtime, shop.flow)
        await until(runtime, job_id, "running")
        await trio.sleep(1)
        disk.lapses["frozen"] = 0.0  # as after a SIGSTOP: nobody has renewed, and it does not know yet
        frozen._living.said -= 100
        async with open_runtime(app) as other, open_worker(other, WorkerSettings(lease=LEASE, owner="other")):
            job = await until(other, job_id, "done")
            assert job.rescues == 1
        assert frozen.statistics().lost == 1
    assert shop.said == ["charge 1", "charge 1"]


@pytest.mark.parametrize("taken", [True, False])
async def test_who_stood_still_asks_whose_a_job_is_before_it_undoes(taken: bool, autojump_clock: object) -> None:
    """Found by a campaign: awake again, past the deadline, it refunded what its successor had charged with the key."""
    shop, disk = Shop(), JobDisk()
    app = an_app(disk, shop.flow, deadline=1.5)
    async with at_work(app, owner="frozen") as (runtime, frozen):
        await enqueue(runtime, shop.flow)
        await trio.sleep(1)
        disk.lapses["frozen"] = 0.0
        frozen._living.said -= 100
        store = desk_of(runtime).store
        if taken:
            await store.rescue()
            await store.renew("heir", LEASE)
            assert len(await store.take("heir", _rules(app), 1)) == 1
        await trio.sleep(2)
        assert shop.said == (["charge 1"] if taken else ["charge 1", "refund"])
        assert frozen.statistics().lost == taken


# ---- a worker that breaks, and what its places leave behind ---------------------------------


class Broken(MemoryJobs):
    """Nothing can be settled in it, ever."""

    async def settle(self, verdicts: Sequence[tuple[str, int, Verdict]]) -> list[bool]:
        raise DamagedJournal("it is broken")


async def test_a_worker_that_breaks_says_so_and_waits_for_nobody(autojump_clock: object) -> None:
    disk = JobDisk()

    @asynccontextmanager
    async def open_broken() -> AsyncIterator[MemoryJobs]:
        yield Broken(disk)

    app = App(capabilities=[jobs_capability(open_broken, disk.wall_ns)])
    app.job(SEND)
    began = trio.current_time()
    with pytest.raises(DamagedJournal, match="it is broken"):
        async with at_work(app, seats=2) as (runtime, _):
            for _ in range(10):
                await enqueue(runtime, SEND, Mail("a"))
            await trio.sleep(1000)
    assert trio.current_time() - began < 100


@effect(kind="lingers", access="read")
async def lingers() -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)


@step
async def linger() -> Done:
    await lingers()
    return Done()


async def test_a_seat_may_be_left_before_the_older_one_of_its_job(autojump_clock: object) -> None:
    flow = Flow("linger", [linger])
    async with at_work(an_app(JobDisk(), flow), seats=2, owner="it") as (runtime, worker):
        job_id, store = await enqueue(runtime, flow), desk_of(runtime).store
        await until(runtime, job_id, "running")
        await store.renew("it", 0.0)  # as if it had stood still
        await trio.sleep(0.01)
        assert len(await store.rescue()) == 1
        await trio.sleep(1)  # it has taken its own job from itself, and waits for the older run
        await worker.drain(0.0)
        job = await until(runtime, job_id, "available", seconds=1)
        assert job.fence > 1
        assert sum(worker.statistics().running.values()) == 0


@step
async def rest() -> Done:
    await clock.sleep(3600.0)
    return Done()


@pytest.mark.parametrize("seed", range(8))
async def test_a_job_that_has_its_ticket_when_it_is_cut_is_cut(seed: int, autojump_clock: object) -> None:
    flow, disk = Flow("rest", [rest]), JobDisk()
    app = App(
        capabilities=[jobs_capability(lambda: open_memory_jobs(disk), disk.wall_ns)],
        admission=AdmissionPolicy(running=Seats(1, 1)),
    )
    app.job(flow)
    with seeded(seed):
        async with at_work(app) as (runtime, worker), trio.open_nursery() as nursery:
            ticket = await runtime.admission.acquire("batch", deadline=trio.current_time() + 3600)
            assert isinstance(ticket, Ticket)
            job_id = await enqueue(runtime, flow)
            await until(runtime, job_id, "running")
            until_then = trio.current_time() + 0.5

            async def make_room() -> None:
                await trio.sleep_until(until_then)
                runtime.admission.release(ticket)

            nursery.start_soon(make_room)
            await worker.drain(until_then - trio.current_time())
            assert trio.current_time() < until_then + 60
            await until(runtime, job_id, "available", seconds=1)


class Late(MemoryJobs):
    """A take cannot be called back: cancelled, it answers all the same."""

    async def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
            return await super().take(owner, rules, count)


@pytest.mark.parametrize("patience", [0.0, 0.5, 60.0])
async def test_what_is_taken_while_the_worker_drains_is_put_back(patience: float, autojump_clock: object) -> None:
    flow, disk = Flow("rest", [rest]), JobDisk()

    @asynccontextmanager
    async def open_late() -> AsyncIterator[MemoryJobs]:
        yield Late(disk)

    app = App(capabilities=[jobs_capability(open_late, disk.wall_ns)])
    app.job(flow)
    async with open_runtime(app) as runtime:
        job_id, began = await enqueue(runtime, flow), trio.current_time()
        async with open_worker(runtime, WorkerSettings(lease=LEASE)) as worker:
            await trio.sleep(0.5)
            await worker.drain(patience)
        assert trio.current_time() < began + 10
        await until(runtime, job_id, "available", seconds=1)


WHOSE: ContextVar[str] = ContextVar("whose", default="nobody")


@effect(kind="signs", access="read")
async def signs() -> str:
    """Who has been here before."""
    before = WHOSE.get()
    WHOSE.set("somebody")
    await trio.lowlevel.checkpoint()
    return before


@step
async def sign() -> Done:
    return Done(await signs())


async def test_what_a_handler_sets_in_its_context_is_not_there_for_the_next_job(autojump_clock: object) -> None:
    flow = Flow("sign", [sign])
    async with at_work(an_app(JobDisk(), flow), seats=1) as (runtime, _):
        for _ in range(10):  # after a few, it takes several at once
            ids = await order(runtime, queue.enqueue_many(flow, [None] * 10))
            assert {(await until(runtime, job_id, "done")).result for job_id in ids} == {'"nobody"'}


# ---- declarations ---------------------------------------------------------------------------


async def test_a_worker_needs_an_app_with_jobs(autojump_clock: object) -> None:
    async with open_runtime(App()) as runtime:
        with pytest.raises(DefinitionError, match="keeps no jobs"):
            async with open_worker(runtime):
                pass


async def test_an_unknown_queue_is_refused(autojump_clock: object) -> None:
    with pytest.raises(DefinitionError, match="queue 'mial' is not declared"):
        async with at_work(an_app(JobDisk(), SEND), queues=["mial"]):
            pass
