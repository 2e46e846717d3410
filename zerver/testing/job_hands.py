"""Laws about what people do with jobs, schedules, and calls that are cancelled: the last part of `check_jobs`.

Law: what is done by hand is done to the jobs that are meant, and to no others; what was cancelled was not done.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from zerver.core.jobs import run_id_for
from zerver.jobs.port import SUSPECT, JobStore, QueueRule, ScheduleState, Verdict, Wanted
from zerver.testing.job_case import DONE, LATER_NS, LONG, Case, ids_of, name
from zerver.testing.laws import Laws, cut_after, require

#: After how many turns of the loop calls are cancelled.
_STEPS = (*(3 * tuple(range(6))), *range(6, 60, 6))

law: Laws[Case] = Laws()


# ---- looking --------------------------------------------------------------------------------


@law("a search finds the jobs that are meant, the newest first, from any one on")
async def _search(case: Case) -> None:
    prefix = name("pre")
    orders = [
        case.new(job_id=f"{prefix}-1", flow="one", tenant="a"),
        case.new(job_id=f"{prefix}-2", flow="two", tenant="a"),
        case.new(job_id=f"{prefix}%3", flow="two", tenant="b", at_unix_ns=time.time_ns() + LATER_NS),
    ]
    ids = await case.store.order(orders)
    await case.settle((await case.take(count=1))[0], Verdict("dead", error="100% Ünlucky_"))
    only = case.all
    finds = {
        only: [2, 1, 0],
        Wanted(prefix=prefix): [2, 1, 0],
        Wanted(prefix=f"{prefix}%"): [2],
        Wanted(ids=(ids[1], ids[2], name("no"))): [2, 1],
        attrs.evolve(only, flows=("two",)): [2, 1],
        attrs.evolve(only, tenants=("a",), flows=("two", "one")): [1, 0],
        attrs.evolve(only, states=("dead",)): [0],
        attrs.evolve(only, states=("available", "scheduled")): [2, 1],
        attrs.evolve(only, text="% Ün"): [0],
        attrs.evolve(only, text="ün"): [],
        attrs.evolve(only, text="_y"): [],
        Wanted(queues=(name("no"),)): [],
    }
    for wanted, due in finds.items():
        found = ids_of(await case.store.search(wanted))
        require(found == [ids[place] for place in due], f"{wanted} found {found}")
    first = await case.store.search(only, 2)
    rest = await case.store.search(only, 2, first[-1].seq)
    require(ids_of([*first, *rest]) == ids[::-1], "a search that goes on has left some out, or found some twice")


@law("the queues say what is in them, since when it waits, and whether they are paused")
async def _queues(case: Case) -> None:
    await case.store.order([case.new(), case.new(), case.new(at_unix_ns=time.time_ns() + LATER_NS)])
    await case.take(count=1, limit=4, per_tenant=2)
    paused = name("queue")
    await case.store.pause(paused, True)
    async with case.others(1) as (other,):
        for store in (case.store, other):
            found = {state.rule.name: state for state in await store.queues()}
            ours = found[case.queue]
            counts = {state: number for state, number in ours.counts.items() if number}
            require(counts == {"available": 1, "running": 1, "scheduled": 1}, f"the counts are {counts}")
            require(ours.rule == QueueRule(case.queue, 4, 2) and not ours.paused, f"it is {ours!r}")
            due = min(job.at_unix_ns for job in await store.search(attrs.evolve(case.all, states=("available",))))
            require(ours.oldest_unix_ns == due, f"the first one waits since {ours.oldest_unix_ns}, not {due}")
            require(found[paused].paused and found[paused].oldest_unix_ns == 0, f"it is {found[paused]!r}")
    await case.store.pause(paused, False)


@law("why a job has not begun is a sentence that names the reason; one that has begun has none")
async def _why(case: Case) -> None:
    suspect = await case.order()
    for _ in range(SUSPECT):
        dies = await case.worker()
        await case.one(dies)
        await case.died(dies)
    require("died" in await case.store.why(suspect), "it does not say that a worker has died with it")
    await case.settle(await case.one())
    last = case.new(awaits=2)
    await case.store.order([last, case.new(tenant="acme"), case.new(tenant="acme"), case.new(tenant="acme")])
    later = await case.order(at_unix_ns=time.time_ns() + LATER_NS)
    (running,) = await case.take(count=1)
    waits = (await case.store.search(attrs.evolve(case.all, states=("available",))))[0].job_id
    reasons = {last.job_id: "2 jobs", later: "begin at", waits: "turn", name("none"): "no such"}
    for job_id, word in reasons.items():
        why = await case.store.why(job_id)
        require(word in why, f"{why!r} does not say {word!r}")
    require(await case.store.why(running.job_id) == "", "a reason why one has not begun that has")
    for rule, word in ((QueueRule(case.queue, 1), "1 is its limit"), (QueueRule(case.queue, None, 1), "acme")):
        await case.store.take(await case.worker(), [rule], 5)
        why = await case.store.why(waits)
        require(word in why, f"{why!r} does not say {word!r}")
    await case.store.pause(case.queue, True)
    require("paused" in await case.store.why(waits), "it does not say that the queue is paused")


# ---- changing -------------------------------------------------------------------------------


@law("nothing of a paused queue begins, until it is not paused any more; others go on")
async def _pause(case: Case) -> None:
    await case.order()
    other = await case.order(queue=name("queue"))
    await case.store.pause(case.queue, True)
    rules = [QueueRule(case.queue, limit=5), QueueRule((await case.job(other)).queue)]
    for rule in (rules[0], QueueRule(case.queue), QueueRule(case.queue, per_tenant=1)):
        require(await case.store.take(await case.worker(), [rule], 5) == [], "a job of a paused queue began")
    require(ids_of(await case.store.take(await case.worker(), rules, 5)) == [other], "another queue was held up")
    await case.store.pause(case.queue, False)
    require(len(await case.take()) == 1, "it does not begin after the pause")


@law("what is retried begins now, with all its attempts again")
async def _retry(case: Case) -> None:
    ids = await case.store.order([case.new() for _ in range(5)])
    dead, cancelled, later, done, running = await case.take()
    for job, verdict in (
        (dead, Verdict("dead", error="no")),
        (cancelled, Verdict("cancelled", error="no")),
        (later, Verdict("scheduled", time.time_ns() + LATER_NS, error="no")),
        (done, DONE),
    ):
        await case.settle(job, verdict)
    require(await case.store.retry(case.all) == 3, "another number was retried")
    taken = await case.take()
    require(ids_of(taken) == ids[:3], f"{ids_of(taken)} began")
    for job in taken:
        require((job.attempt, job.rescues, job.error, job.ended_unix_ns) == (1, 0, "", 0), f"it began as {job!r}")
        require(job.settled == 1, "its runs are numbered from the beginning again")
    require(await case.settle(running), "one that runs was taken from its worker")


@law("of jobs with one unique text the newest alone can be retried")
async def _retry_unique(case: Case) -> None:
    text = name("unique")
    for _ in range(2):
        await case.order(unique=text)
        await case.settle(await case.one(), Verdict("dead", error="no"))
    old, new = (job.job_id for job in reversed(await case.store.search(case.all)))
    require(await case.store.retry(case.all) == 1, "another number was retried")
    require(ids_of(await case.take()) == [new] and await case.state(old) == "dead", "another one was retried")
    require(await case.order(unique=text) == new, "there is no room for the one that was retried")


@law("a job that is cancelled never begins; one that runs is its worker's to end, who is told")
async def _cancel(case: Case) -> None:
    last, owner = case.new(awaits=1), await case.worker()
    orders = [last, case.new(at_unix_ns=time.time_ns() + LATER_NS), case.new(), case.new(), case.new()]
    ids = await case.store.order(orders)
    again, done = await case.take(owner, 2)
    require(await case.store.cancelled(owner) == {}, "some are cancelled that nobody cancelled")
    require(await case.store.cancel(case.all, "enough") == 5, "another number was cancelled")
    require(await case.store.cancel(case.all, "twice") == 0, "they were cancelled twice")
    told = await case.store.cancelled(owner)
    require(told == {again.job_id: "enough", done.job_id: "enough"}, f"{told} are to be ended by their worker")
    require(await case.take() == [], "one that was cancelled began")
    for job_id in (ids[0], ids[1], ids[4]):
        job = await case.job(job_id)
        require((job.state, job.error) == ("cancelled", "enough"), f"it is {job!r}")
        require(job.ended_unix_ns > 0, "it has not ended")
    await case.settle(again, Verdict("scheduled", 1, error="cut"))
    await case.settle(done, DONE)
    states = [await case.state(job.job_id) for job in (again, done)]
    require(states == ["cancelled", "done"], f"they became {states}")
    why = (await case.job(again.job_id)).error
    require(why == "enough", f"the reason that was given is lost: its error is {why!r}")
    require(await case.store.cancelled(owner) == {}, "they are to be ended, and have ended")


@law("a job that was cancelled and whose worker died is cancelled; so is one that would be parked")
async def _cancel_and_rescue(case: Case) -> None:
    owner, only = await case.worker(), await case.order()
    await case.one(owner)
    await case.store.cancel(case.all, "enough")
    await case.died(owner)
    job = await case.job(only)
    require((job.state, job.error) == ("cancelled", "enough"), f"it is {job!r}")
    await case.order()
    parking = await case.one()
    await case.store.cancel(case.all, "enough")
    await case.settle(parking, Verdict("parked"))
    require(await case.state(parking.job_id) == "cancelled", "it was parked")


@law("what is deleted is final, and its result nobody waits for")
async def _delete(case: Case) -> None:
    last = case.new(awaits=2)
    members = [case.new(releases=last.job_id, place=place) for place in (0, 1)]
    await case.store.order([last, *members])
    first, second = await case.take()
    await case.settle(first, Verdict("done", result="1"))
    require(await case.store.delete(case.all) == 0, "one was deleted that is needed")
    require(await case.store.prune(time.time_ns() + LATER_NS) >= 0, "less than none were pruned")
    await case.settle(second, Verdict("done", result="2"))
    job = await case.one()
    require(job.body == "[1,2]", f"its body is {job.body}")
    require(await case.store.delete(case.all) == 2, "the ones that are over were not deleted")
    require(await case.store.find(first.job_id) is None and await case.state(last.job_id) == "running", "other ones")


@law("what is pruned has ended long ago, and is done or cancelled")
async def _prune(case: Case) -> None:
    while await case.store.prune(time.time_ns() + LATER_NS):
        pass
    await case.store.order([case.new() for _ in range(5)])
    done, cancelled, dead, running, other = await case.take()
    for job, verdict in ((done, DONE), (cancelled, Verdict("cancelled")), (dead, Verdict("dead")), (other, DONE)):
        await case.settle(job, verdict)
    require(await case.store.prune((await case.job(done.job_id)).ended_unix_ns) == 0, "one that is not old is gone")
    pruned = [await case.store.prune(time.time_ns() + LATER_NS, 2) for _ in range(3)]
    require(pruned == [2, 1, 0], f"{pruned} were pruned of 3, two at once")
    left = ids_of(await case.store.search(case.all))
    require(left == [running.job_id, dead.job_id], f"{left} are left")


# ---- schedules ------------------------------------------------------------------------------


@law("a schedule is due when it was first said, until it fires or is another one")
async def _due(case: Case) -> None:
    plan = name("schedule")
    async with case.others(1) as (other,):
        require(await case.store.due(plan, "* *", 500) == 500, "it is due at another time")
        require(await other.due(plan, "* *", 700) == 500, "who asks later has moved it")
        require(await other.due(plan, "0 *", 800) == 800, "another spec has not moved it")
        require(await case.store.due(plan, "0 *", 900) == 800, "it was moved back")
        listed = [one for one in await case.store.schedules() if one.name == plan]
        require(listed == [ScheduleState(plan, "0 *", 800)], f"{listed} are listed")


@law("of all who fire one schedule one does, and its orders are there once")
async def _fire(case: Case) -> None:
    plan = name("schedule")
    await case.store.due(plan, "* *", 1)
    require(not await case.store.fire(plan, 2, 3, [case.new()]), "one fired that was not due then")
    require(not await case.store.fire(name("schedule"), 1, 2, [case.new()]), "one fired that is not there")
    async with case.others(2) as stores:
        for at in range(1, 6):
            fired: list[bool] = []

            async def one(store: JobStore, at: int, fired: list[bool]) -> None:
                fired.append(await store.fire(plan, at, at + 1, [case.new(origin=f"cron {at}")]))

            async with trio.open_nursery() as nursery:
                for store in (case.store, *stores):
                    nursery.start_soon(one, store, at, fired)
            require(sorted(fired) == [False, False, True], f"{fired.count(True)} have fired")
    origins = [job.origin for job in await case.take()]
    require(origins == [f"cron {at}" for at in range(1, 6)], f"{origins} were ordered")
    require(await case.store.fire(plan, 6, 7, []), "one without orders did not fire")


# ---- cancellation ---------------------------------------------------------------------------


@law("an order that raised Cancelled was not made; one that returned was")
async def _cut_orders(case: Case) -> None:
    for steps in _STEPS:
        order = case.new()
        ended = await cut_after(partial(case.store.order, [order]), steps)
        found = await case.store.find(order.job_id)
        require((found is not None) == (ended == "done"), f"after {steps} turns it was {ended}, and there is {found!r}")


@law("a take that raised Cancelled has taken nothing")
async def _cut_takes(case: Case) -> None:
    owner = await case.worker()
    for steps in _STEPS:
        job_id = await case.order()
        taken = partial(case.store.take, owner, [QueueRule(case.queue)], 5)
        ended = await cut_after(taken, steps)
        state = await case.state(job_id)
        require(
            state == ("running" if ended == "done" else "available"), f"after {steps} turns it was {ended}: {state}"
        )
        await case.store.cancel(attrs.evolve(case.all, states=("available",)), "over")


@law("a verdict whose call raised Cancelled was not given")
async def _cut_verdicts(case: Case) -> None:
    for steps in _STEPS:
        await case.order()
        job = await case.one()
        ended = await cut_after(partial(case.store.settle, [(job.job_id, job.fence, DONE)]), steps)
        state = await case.state(job.job_id)
        require(state == ("done" if ended == "done" else "running"), f"after {steps} turns it was {ended}, and {state}")


@law("every verb is a checkpoint: who is cancelled before a call does nothing")
async def _checkpoints(case: Case) -> None:
    store, owner = case.store, await case.worker()
    job_id = await case.order()
    job = await case.one(owner)
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        partial(store.order, [case.new()]),
        partial(store.order, []),
        partial(store.renew, owner, LONG),
        partial(store.take, owner, [QueueRule(case.queue)], 1),
        partial(store.take, owner, [], 1),
        store.rescue,
        partial(store.began, job_id, job.fence, "run"),
        partial(store.settle, [(job_id, job.fence, DONE)]),
        partial(store.settle, []),
        partial(store.unpark, "run", DONE),
        partial(store.progress, job_id, 1, 1, ""),
        store.wait,
        partial(store.find, job_id),
        partial(store.search, case.all),
        partial(store.retry, case.all),
        partial(store.cancel, case.all, "cut"),
        partial(store.cancelled, owner),
        partial(store.delete, case.all),
        partial(store.pause, case.queue, True),
        store.queues,
        partial(store.why, job_id),
        partial(store.prune, 1),
        partial(store.due, name("schedule"), "* *", 1),
        partial(store.fire, name("schedule"), 1, 2, [case.new()]),
    )
    for call in calls:
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        require(scope.cancelled_caught, f"{call} is no checkpoint")
    now = await case.job(job_id)
    require((now.state, now.settled, now.done) == ("running", 0, 0), f"it is {now!r}")
    require(now.run_id == run_id_for(job_id, 1), f"its run is {now.run_id!r}")
    require(isinstance(store.statistics()["ordered"], int), "the statistics do not count orders")
