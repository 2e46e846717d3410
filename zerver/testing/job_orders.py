"""Laws about orders: the first part of `zerver.testing.check_jobs`.

Law: what is asked for is there once, whole, and as it was said.
"""

from __future__ import annotations

import time

import attrs
import trio

from zerver.errors import DefinitionError
from zerver.jobs.port import JobStore, Verdict
from zerver.testing.job_case import DONE, LATER_NS, LONG, Case, ids_of, name
from zerver.testing.laws import Laws, require

law: Laws[Case] = Laws()


# ---- orders ---------------------------------------------------------------------------------


@law("what was ordered comes back as it was, and another process sees it at once")
async def _comes_back(case: Case) -> None:
    order = case.new(
        flow="flöw 'x'; --",
        body='{"a": "✓ \\u0000 \\"quoted\\""}',
        tenant="täntɘ",
        priority="interactive",
        attempts=7,
        unique=name("unique"),
        origin="cron nightly",
        parent="00-abc",
    )
    require(await case.store.order([order]) == [order.job_id], "another id came back")
    async with case.others(1) as (other,):
        for store in (case.store, other):
            job = await store.find(order.job_id)
            require(job is not None, "it is not there")
            for field in ("flow", "queue", "body", "tenant", "priority", "attempts", "unique", "origin", "parent"):
                found, due = getattr(job, field), getattr(order, field)
                require(found == due, f"its {field} came back as {found!r}, not {due!r}")
            require(job is not None and (job.state, job.attempt, job.fence) == ("available", 0, 0), f"it is {job!r}")
        require(await other.find(name("job")) is None, "a job that was never ordered is there")


@law("orders that are made together are in the store together or not at all")
async def _together(case: Case) -> None:
    good = case.new()
    for wrong in (case.new(attempts=0), case.new(unique="u", releases="s"), good, case.new(priority="urgent")):
        try:
            await case.store.order([good, wrong])
        except DefinitionError:
            require(await case.store.find(good.job_id) is None, f"an order is there whose neighbour was {wrong!r}")
        else:
            raise AssertionError(f"{wrong!r} was taken")
    require(await case.store.order([]) == [], "no orders gave ids")


@law("ordering twice is ordering once")
async def _twice(case: Case) -> None:
    orders = [case.new() for _ in range(3)]
    ids = [order.job_id for order in orders]
    for given in (orders[:2], orders, orders):
        found = await case.store.order(given)
        require(found == ids[: len(given)], f"{found} came back for {ids[: len(given)]}")
    taken = ids_of(await case.take())
    require(taken == ids, f"{taken} were taken for {ids}")
    require(await case.store.order(orders) == ids, "other ids came back for jobs that run")
    require(await case.take() == [], "what was ordered again was taken again")


@law("orders by the thousand go in at once, in their order")
async def _bulk(case: Case) -> None:
    orders = [case.new(body=str(number)) for number in range(2500)]
    require(await case.store.order(orders) == [order.job_id for order in orders], "the ids are in another order")
    owner = await case.worker()
    taken = [job for _ in range(5) for job in await case.take(owner, 500)]
    require([job.body for job in taken] == [order.body for order in orders], "they are not all there, in their order")
    held = await case.store.settle([(job.job_id, job.fence, DONE) for job in taken])
    require(held == [True] * 2500, f"{held.count(True)} of 2500 verdicts were taken")


@law("of jobs with one unique text there is one that is not over")
async def _unique(case: Case) -> None:
    text = name("unique")
    first, second, third = case.new(unique=text), case.new(unique=text), case.new(unique=text)
    found = await case.store.order([first, second, case.new(unique=name("other"))])
    require(found[:2] == [first.job_id] * 2 and found[2] != first.job_id, f"{found} came back")
    require(await case.store.order([second]) == [first.job_id], "a second one was taken while the first had not begun")
    job = next(job for job in await case.take() if job.job_id == first.job_id)
    require(await case.store.order([second]) == [first.job_id], "a second one was taken while the first ran")
    await case.settle(job, Verdict("scheduled", time.time_ns() + LATER_NS))
    require(await case.store.order([second]) == [first.job_id], "a second one was taken while the first waited")
    await case.store.cancel(attrs.evolve(case.all, ids=(first.job_id,)), "enough")
    require(await case.store.order([third]) == [third.job_id], "the next one was not taken when the first was over")
    require(await case.store.find(second.job_id) is None, "one that was not taken is there")


@law("of jobs with one unique text there is one in its seconds, though it be over")
async def _unique_seconds(case: Case) -> None:
    text = name("unique")
    job_id = await case.order(unique=text, unique_seconds=LONG)
    await case.settle(await case.one())
    require(await case.order(unique=text) == job_id, "a second one was taken within the seconds of the first")
    await case.store.prune(time.time_ns() + LATER_NS)
    require(await case.order(unique=text) == job_id, "one was forgotten whose seconds are not over")


@law("unique orders at once, from several processes: one is taken, and all are told which")
async def _unique_at_once(case: Case) -> None:
    async with case.others(3) as stores:
        for _ in range(5):
            text = name("unique")
            found: list[str] = []

            async def one(store: JobStore, text: str, found: list[str]) -> None:
                found.extend(await store.order([case.new(unique=text)]))

            async with trio.open_nursery() as nursery:
                for store in (*stores, *stores):
                    nursery.start_soon(one, store, text, found)
            require(len(found) == 6 and len(set(found)) == 1, f"{len(set(found))} jobs stand for one text")
    require(len(await case.take()) == 5, "there are more jobs than texts")
