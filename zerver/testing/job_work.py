"""Laws about what workers do with jobs: the second part of `zerver.testing.check_jobs`.

Law: a job has one worker at a time, and what that one says of it, and no other, becomes of it.
"""

from __future__ import annotations

import time
from functools import partial

import attrs
import trio

from zerver.core.jobs import run_id_for
from zerver.errors import LeaseLost
from zerver.jobs.port import MOST_RESCUES, SUSPECT, JobStore, Order, QueueRule, Verdict
from zerver.testing.job_case import DONE, LATER_NS, LONG, Case, ids_of, name
from zerver.testing.laws import Laws, require

#: Seconds within which who waits is told; a second of them is a poll.
_SOON = 20.0

law: Laws[Case] = Laws()


# ---- taking ---------------------------------------------------------------------------------


@law("jobs are taken by priority, then by time, then as they were ordered; as many as are asked for")
async def _turn(case: Case) -> None:
    now = time.time_ns()
    orders = {
        "late": case.new(priority="batch"),
        "first": case.new(priority="interactive"),
        "second": case.new(priority="interactive"),
        "third": case.new(priority="default"),
        "future": case.new(priority="interactive", at_unix_ns=now + LATER_NS),
    }
    for order in orders.values():
        await case.store.order([order])
    owner = await case.worker()
    taken = [*await case.take(owner, 3), *await case.take(owner, 3)]
    due = [orders[which].job_id for which in ("first", "second", "third", "late")]
    require(ids_of(taken) == due, f"{ids_of(taken)} were taken; {due} were due")
    for job in taken:
        said = (job.state, job.owner, job.fence, job.attempt, job.began_unix_ns > 0)
        require(said == ("running", owner, 1, 1, True), f"it was taken as {job!r}")
    require(await case.take(owner, 0) == [], "none were asked for")


@law("jobs are taken of the queues that are asked for, in one order over all of them")
async def _queues(case: Case) -> None:
    names = [name("queue") for _ in range(3)]
    due = []
    for number in range(6):
        job_id = await case.order(queue=names[number % 3])
        due += [job_id] if number % 3 else []
    rules = [QueueRule(names[2]), QueueRule(names[1]), QueueRule(name("empty"))]
    taken = await case.store.take(await case.worker(), rules, 10)
    require(ids_of(taken) == due, f"{ids_of(taken)} were taken; {due} were due")
    require(await case.store.take(await case.worker(), [], 10) == [], "of no queue, and yet there were some")


@law("a job does not begin before its time, and does when it has come")
async def _its_time(case: Case) -> None:
    later = await case.order(at_unix_ns=time.time_ns() + LATER_NS)
    past = await case.order(at_unix_ns=1)
    require((await case.state(later), await case.state(past)) == ("scheduled", "available"), "they are in other states")
    require(ids_of(await case.take()) == [past], "another one was taken")
    soon = await case.order(at_unix_ns=time.time_ns() + 50_000_000)
    owner = await case.worker()
    with trio.fail_after(_SOON):
        while not (taken := await case.take(owner)):
            await case.store.wait()
    require(ids_of(taken) == [soon], "another one was taken when the time had come")


@law("jobs that many take at once are taken once, and none is left")
async def _at_once(case: Case) -> None:
    ids = await case.store.order([case.new() for _ in range(300)])
    taken: list[str] = []

    async def one(store: JobStore) -> None:
        owner, nothing = await case.worker("taker", store), 0
        while nothing < 3:
            jobs = await store.take(owner, [QueueRule(case.queue)], 7)
            nothing = 0 if jobs else nothing + 1
            taken.extend(job.job_id for job in jobs)
            held = await store.settle([(job.job_id, job.fence, DONE) for job in jobs])
            require(all(held), "a verdict was refused of a job that nobody else had")

    async with case.others(2) as stores, trio.open_nursery() as nursery:
        for store in (case.store, *stores, *stores):
            nursery.start_soon(one, store)
    require(sorted(taken) == sorted(ids), f"{len(taken)} takes of {len(set(taken))} jobs, of {len(ids)}")


@law("no more jobs of a queue run at once than its limit, whoever takes")
async def _limit(case: Case) -> None:
    await case.store.order([case.new() for _ in range(40)])
    await _many_take(case, QueueRule(case.queue, limit=3), lambda taken: len(taken) == 3)


@law("no more jobs of one tenant run at once than the queue's limit for each, whoever takes")
async def _per_tenant(case: Case) -> None:
    await case.store.order([case.new(tenant=tenant) for tenant in ("a",) * 20 + ("b",) * 5 + ("c",)])
    rule = QueueRule(case.queue, per_tenant=2)
    await _many_take(case, rule, lambda taken: sorted(job.tenant for job in taken) == ["a", "a", "b", "b", "c"])


@law("both limits hold together")
async def _both_limits(case: Case) -> None:
    await case.store.order([case.new(tenant=tenant) for tenant in ("a",) * 9 + ("b",) * 9])
    rule = QueueRule(case.queue, limit=3, per_tenant=2)
    await _many_take(case, rule, lambda taken: sorted(job.tenant for job in taken) == ["a", "a", "b"])


async def _many_take(case: Case, rule: QueueRule, is_right: object) -> None:
    """Take from several processes at once, until nothing is to be had; and again when one has ended."""
    for _ in range(2):
        taken: list[object] = []

        async def one(store: JobStore, taken: list[object]) -> None:
            owner = await case.worker("taker", store)
            for _ in range(3):
                taken.extend(await store.take(owner, [rule], 5))

        async with case.others(2) as stores, trio.open_nursery() as nursery:
            for store in (case.store, *stores):
                nursery.start_soon(one, store, taken)
        tenants = [getattr(job, "tenant", "") for job in taken]
        require(callable(is_right) and bool(is_right(taken)), f"{len(taken)} run, of tenants {sorted(tenants)}")
        for job in taken:
            await case.settle(job)  # type: ignore[arg-type]  # they are jobs
        await case.store.order([case.new(tenant=tenant) for tenant in ("a", "b", "b", "c")])


# ---- leases ---------------------------------------------------------------------------------


@law("jobs of a worker that lives are its own; those of one that does not may be taken again")
async def _rescue(case: Case) -> None:
    lives, dies = await case.worker("lives"), await case.worker("dies")
    await case.order()
    kept = await case.one(lives)
    lost_id = await case.order()
    lost = await case.one(dies)
    require(await case.died(name("nobody")) == [], "jobs were rescued whose workers live")
    rescued = await case.died(dies)
    require(ids_of(rescued) == [lost_id], f"{ids_of(rescued)} were rescued")
    said = (rescued[0].state, rescued[0].rescues, rescued[0].attempt, rescued[0].settled)
    require(said == ("available", 1, 0, 0), f"it was rescued as {rescued[0]!r}")
    again = await case.one(lives)
    require(again.fence > lost.fence and again.attempt == 1, f"it was taken again as {again!r}")
    require(await case.settle(kept), "the verdict of the one that lives was refused")


@law("what a worker says of a job that was taken from it is refused")
async def _fencing(case: Case) -> None:
    zombie, heir = await case.worker("zombie"), await case.worker("heir")
    job_id = await case.order()
    old = await case.one(zombie)
    for taken_again in (False, True):
        if taken_again:
            await case.one(heir)
        else:
            await case.died(zombie)
            await case.store.renew(zombie, LONG)  # it was only asleep
        require(not await case.settle(old), "the verdict of a former worker was taken")
        try:
            await case.store.began(job_id, old.fence, "run")
        except LeaseLost:
            continue
        raise AssertionError("a former worker may begin")
    require(await case.state(job_id) == "running", "a former worker has changed its state")


@law(f"a job that has taken {MOST_RESCUES} workers down with it is dead")
async def _poison(case: Case) -> None:
    job_id = await case.order()
    for number in range(1, MOST_RESCUES + 1):
        owner = await case.worker()
        await case.one(owner)
        (rescued,) = await case.died(owner)
        due = "dead" if number == MOST_RESCUES else "available"
        require((rescued.state, rescued.rescues) == (due, number), f"after {number} it is {rescued!r}")
    job = await case.job(job_id)
    require(job.error != "" and job.ended_unix_ns > 0, "nothing says why, or when")
    require(await case.take() == [], "it was taken again")


@law("a worker has one suspect at a time, and any others beside it; after one rescue a job is none")
async def _suspects(case: Case) -> None:
    one, two = await case.worker("one"), await case.worker("two")
    suspects = await case.store.order([case.new() for _ in range(3)])
    for number in range(SUSPECT):
        dies = await case.worker()
        require(ids_of(await case.take(dies)) == suspects, f"after {number} rescues they were not taken together")
        require(ids_of(await case.died(dies)) == suspects, "others were rescued")
    fresh = await case.store.order([case.new() for _ in range(2)])
    taken = await case.take(one)
    require(ids_of(taken) == [suspects[0], *fresh], f"{ids_of(taken)} were taken of {suspects} and {fresh}")
    require(await case.take(one) == [], "a second one was taken before the first is settled")
    (of_two,) = await case.take(two)
    require(of_two.job_id == suspects[1], "another worker did not take the next one")
    await case.settle(taken[0])
    require(ids_of(await case.take(one)) == suspects[2:], "the last one was not taken")


@law("a suspect keeps no others waiting while it is paused, or its queue is full")
async def _suspects_held_up(case: Case) -> None:
    paused, limited = name("queue"), name("queue")
    rules = [QueueRule(paused), QueueRule(limited, limit=2, per_tenant=1), QueueRule(case.queue)]
    ids = [
        await case.order(queue=queue, tenant=tenant)
        for queue, tenant in ((paused, ""), (limited, "busy"), (limited, "idle"), (case.queue, ""))
    ]
    for _ in range(SUSPECT):
        dies = await case.worker()
        await case.store.take(dies, [QueueRule(rule.name) for rule in rules], 10)
        await case.died(dies)
    await case.store.pause(paused, True)
    busy = await case.order(queue=limited, tenant="busy", priority="interactive")
    found = [ids_of(await case.store.take(await case.worker(), rules, 1)) for _ in range(4)]
    require(found == [[busy], [ids[2]], [ids[3]], []], f"{found} were taken")


# ---- verdicts -------------------------------------------------------------------------------


@law("a verdict becomes the job's: done, dead, cancelled, or to be tried again")
async def _verdicts(case: Case) -> None:
    later = time.time_ns() + LATER_NS
    await case.store.order([case.new() for _ in range(4)])
    done, again, dead, cancelled = await case.take()
    verdicts = [
        Verdict("done", result='{"x": 1}'),
        Verdict("scheduled", later, error="down"),
        Verdict("dead", error="hopeless"),
        Verdict("cancelled", error="not wanted"),
    ]
    jobs = (done, again, dead, cancelled)
    held = await case.store.settle([(job.job_id, job.fence, said) for job, said in zip(jobs, verdicts, strict=True)])
    require(held == [True] * 4, f"{held} was the answer")
    for job, said in zip(jobs, verdicts, strict=True):
        now = await case.job(job.job_id)
        require((now.state, now.result, now.error) == (said.state, said.result, said.error), f"{said} made {now!r}")
        require((now.owner, now.attempt, now.settled) == ("", 1, 1), f"{said} made {now!r}")
        require((now.ended_unix_ns > 0) == (said.state != "scheduled"), f"it ended at {now.ended_unix_ns}")
    require((await case.job(again.job_id)).at_unix_ns == later, "it is to begin at another time")
    require(await case.take() == [], "one of them was taken again at once")


@law("an attempt that does not count is not counted")
async def _uncounted(case: Case) -> None:
    await case.order()
    for number in range(1, 4):
        job = await case.one()
        require((job.attempt, job.settled, job.fence) == (1, number - 1, number), f"time {number}: it is {job!r}")
        await case.settle(job, Verdict("scheduled", 1, counts=False))
    await case.settle(await case.one(), Verdict("scheduled", 1))
    require((await case.one()).attempt == 2, "one that counts was not counted")


@law("what was put back before its run began begins with the same run; what was cut in its run, with the next one")
async def _ran(case: Case) -> None:
    job_id = await case.order()
    for ran, counts, number in ((False, False, 1), (False, True, 1), (True, False, 2), (False, False, 2)):
        job = await case.one()
        await case.settle(job, Verdict("scheduled", 1, counts=counts, ran=ran))
        again = await case.job(job_id)
        require(again.settled == number - 1, f"after ran={ran} {again.settled} runs of it have ended, not {number - 1}")
    job = await case.one()
    require(job.run_id == run_id_for(job_id, 2), f"it began as {job.run_id!r}")
    require(job.attempt == 2, f"it was begun for the {job.attempt}. time that counts")


@law("a verdict that is given again changes nothing; another's is told apart from its neighbours")
async def _again(case: Case) -> None:
    await case.store.order([case.new() for _ in range(3)])
    first, second, third = await case.take()
    said = [
        (first.job_id, first.fence, DONE),
        (second.job_id, second.fence + 1, DONE),
        (name("nobody"), 1, DONE),
        (third.job_id, third.fence, Verdict("dead", error="no")),
    ]
    require(await case.store.settle(said) == [True, False, False, True], "the answers are other ones")
    require(await case.settle(third, DONE), "a verdict that was given again was refused")
    states = [await case.state(job.job_id) for job in (first, second, third)]
    require(states == ["done", "running", "dead"], f"the states are {states}")
    require(await case.store.settle([]) == [], "no verdicts gave answers")


@law("verdicts of many tasks at once are each taken once")
async def _settled_at_once(case: Case) -> None:
    await case.store.order([case.new() for _ in range(60)])
    jobs = await case.take()
    held: list[bool] = []

    async def one(number: int) -> None:
        job = jobs[number]
        fence = job.fence + (number % 10 == 0)
        found = await case.store.settle([(job.job_id, fence, Verdict("done", result=str(number)))])
        require(found == [number % 10 != 0], f"job {number} got {found}")
        held.extend(found)

    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(one, number)
    for number, job in enumerate(jobs):
        now = await case.job(job.job_id)
        due = ("done", str(number)) if number % 10 else ("running", None)
        require((now.state, now.result) == due, f"job {number} is {now!r}")


# ---- successors -----------------------------------------------------------------------------


@law("a successor waits for the job before it, and gets its result for a body if it has none")
async def _chain(case: Case) -> None:
    last, own = case.new(awaits=1), case.new(awaits=1, body="7")
    await case.store.order([last, own, case.new(releases=last.job_id), case.new(releases=own.job_id)])
    require(await case.state(last.job_id) == "waiting", "it does not wait")
    one, two = await case.take()
    await case.settle(one, Verdict("scheduled", 1))
    require(await case.state(last.job_id) == "waiting", "it does not wait any more, and nobody was done")
    one = await case.one()
    await case.settle(one, Verdict("done", result='"r"'))
    require([await case.settle(one), await case.settle(two)] == [True, True], "a verdict was refused")
    bodies = {job.job_id: job.body for job in await case.take()}
    require(bodies == {last.job_id: '"r"', own.job_id: "7"}, f"the bodies are {bodies}")


@law("who waits for several begins when all are done, with their results in their order")
async def _fan_out(case: Case) -> None:
    for number in (2, 20):
        last = case.new(awaits=number)
        members = [case.new(releases=last.job_id, place=number - place) for place in range(number)]
        await case.store.order([last, *members])
        jobs = await case.take()
        require(len(jobs) == number, f"{len(jobs)} were taken of {number}")
        for job in jobs[: number // 2]:
            await case.settle(job, Verdict("done", result=f'"{job.seq}"'))
            await case.settle(job, Verdict("done", result='"again"'))
        require(await case.state(last.job_id) == "waiting", "it began before all were done")
        async with case.others(2) as stores, trio.open_nursery() as nursery:
            for place, job in enumerate(jobs[number // 2 :]):
                verdict = Verdict("done", result=f'"{job.seq}"' if place else None)
                store = (case.store, *stores)[place % 3]
                nursery.start_soon(store.settle, [(job.job_id, job.fence, verdict)])
        results = [f'"{job.seq}"' if place != number // 2 else "null" for place, job in enumerate(jobs)]
        found = await case.one()
        require(found.job_id == last.job_id, "another one began")
        require(found.body == f"[{','.join(reversed(results))}]", f"its body is {found.body}")
        await case.settle(found)


@law("who waits for a job that is dead waits until it is done after all")
async def _dead_member(case: Case) -> None:
    last = case.new(awaits=1)
    member = case.new(releases=last.job_id)
    await case.store.order([last, member])
    await case.settle(await case.one(), Verdict("dead", error="no"))
    require(await case.state(last.job_id) == "waiting", "it does not wait for one that is dead")
    await case.store.retry(attrs.evolve(case.all, ids=(member.job_id,)))
    await case.settle(await case.one(), Verdict("done", result="5"))
    job = await case.one()
    require((job.job_id, job.body) == (last.job_id, "5"), f"it is {job!r}")


# ---- runs that go on without a worker -------------------------------------------------------


@law("a parked job is nobody's, until the run it was begun with ends")
async def _parked(case: Case) -> None:
    job_id, run_id = await case.order(), name("run")
    owner = await case.worker()
    job = await case.one(owner)
    await case.store.began(job_id, job.fence, run_id)
    await case.settle(job, Verdict("parked"))
    parked = await case.job(job_id)
    require((parked.state, parked.owner, parked.run_id) == ("parked", "", run_id), f"it is {parked!r}")
    require(await case.died(owner) == [] and await case.take() == [], "it was rescued, or taken")
    require(not await case.store.unpark(name("run"), DONE), "a run that nobody began was found")
    require(await case.store.unpark(run_id, Verdict("done", result="3")), "its run was not found")
    now = await case.job(job_id)
    require((now.state, now.result, now.settled) == ("done", "3", 1), f"it is {now!r}")
    require(not await case.store.unpark(run_id, DONE), "its run ended twice")


@law("a run that another worker carried on settles its job, whoever has it by then; and once")
async def _carried_on(case: Case) -> None:
    for taken_again in (False, True):
        job_id, run_id, dies = await case.order(), name("run"), await case.worker("dies")
        job = await case.one(dies)
        await case.store.began(job_id, job.fence, run_id)
        await case.died(dies)
        holder = await case.one() if taken_again else job
        require(await case.store.unpark(run_id, Verdict("scheduled", 1, error="failed")), "its run was not found")
        require(not await case.settle(holder), "who had the job by then could settle it too")
        require(not await case.store.unpark(run_id, DONE), "the run ended twice")
        again = await case.one()
        require((again.job_id, again.settled, again.error) == (job_id, 1, "failed"), f"it is {again!r}")
        await case.settle(again)


@law("progress is what a running job last said")
async def _progress(case: Case) -> None:
    job_id = await case.order()
    await case.store.progress(job_id, 1, 9, "too early")
    require((await case.job(job_id)).note == "", "one that does not run has progress")
    job = await case.one()
    for done in (1, 2):
        await case.store.progress(job_id, done, 9, f"note {done}")
    now = await case.job(job_id)
    require((now.done, now.total, now.note) == (2, 9, "note 2"), f"it is {now!r}")
    await case.settle(job)
    await case.store.progress(name("nobody"), 1, 1, "")


# ---- waiting --------------------------------------------------------------------------------


@law("who waits is told of an order, made here or in another process, also just before it waited")
async def _told(case: Case) -> None:
    owner = await case.worker()
    async with case.others(1) as (other,):
        for store in (case.store, other):
            for before in (True, False):
                require(await case.take(owner) == [], "there was something to take already")
                with trio.fail_after(_SOON):
                    async with trio.open_nursery() as nursery:
                        if before:
                            await store.order([case.new()])
                        nursery.start_soon(case.store.wait)
                        if not before:
                            for _ in range(5):
                                await trio.lowlevel.checkpoint()
                            await store.order([case.new()])
                require(len(await case.take(owner)) == 1, "there was nothing to take")


@law("who waits is told when a job may begin by somebody's hand, or by another that was done")
async def _told_of_others(case: Case) -> None:
    last = case.new(awaits=1)
    await case.store.order([last, case.new(releases=last.job_id)])
    job = await case.one()
    dead = await case.order()
    await case.settle(await case.one(), Verdict("dead", error="no"))
    owner, only = await case.worker(), attrs.evolve(case.all, ids=(dead,))
    async with case.others(1) as (other,):
        causes = (
            partial(other.settle, [(job.job_id, job.fence, DONE)]),
            partial(other.retry, only),
            partial(_paused_and_not, case, other),
        )
        for cause in causes:
            require(await case.take(owner) == [], "there was something to take already")
            with trio.fail_after(_SOON):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(case.store.wait)
                    nursery.start_soon(cause)
            require(len(await case.take(owner)) == 1, "there was nothing to take")


@law("who waits is told when a suspect is settled that kept another one from its worker")
async def _told_of_suspects(case: Case) -> None:
    owner = await case.worker()
    await case.store.order([case.new(), case.new()])
    for _ in range(SUSPECT):
        dies = await case.worker()
        await case.take(dies)
        await case.died(dies)
    job = await case.one(owner)
    require(await case.take(owner) == [], "the second one was taken beside the first")
    with trio.fail_after(_SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(case.store.wait)
            nursery.start_soon(case.settle, job)
    await case.one(owner)


async def _paused_and_not(case: Case, store: JobStore) -> None:
    await store.pause(case.queue, True)
    await store.order([Order(name("job"), "flow", case.queue)])
    await store.pause(case.queue, False)
