"""The engine without HTTP: what steps, effects, joins, hedges and rollbacks cost beside Trio's own primitives, and
steps per second beside LangGraph, Burr, pydantic-graph and DBOS. Takes a minute.

Microseconds are of this thread's CPU time: these cases wait for nobody, so that what else the machine does is not in
them. A figure is the least of several tries, as what disturbs one only adds to it. Steps per second are of time that
passes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import trio
from _engines import PACKAGES, opened
from _report import Case, Measure, main

from zerver import App, Fail, Flow, Slot, effect, join, step
from zerver.core import timeline as t
from zerver.core.machine import Machine
from zerver.core.plan import compile_plan
from zerver.core.tickets import Ticket
from zerver.core.work import Work
from zerver.runtime import Result, open_runtime
from zerver.runtime.admission import AdmissionActor
from zerver.runtime.executor import finished

STEPS = 100
TRIES = 5  # of one figure
AGAIN = 20  # effects, joins or hedges of one run, where the figure is per effect and not per run
N = Annotated[int, Slot("n")]
M = Annotated[int, Slot("m")]


def least(measure: Measure) -> Measure:
    """The least of several tries."""
    return lambda: min(measure() for _ in range(TRIES))


def per_run(times: int, flow: Flow, parts: int = 1) -> Measure:
    """Microseconds per run of a flow, in a runtime of its own, divided by the parts that the run has."""

    async def run() -> float:
        async with open_runtime(App()) as runtime:
            prepared = runtime.prepare(flow)
            await finished(runtime.execute(prepared))  # whatever is looked up once
            began = time.thread_time()
            for _ in range(times):
                answer = runtime.execute(prepared)  # as an edge does; `runtime.run` adds a checkpoint
                if not isinstance(answer, Result):
                    await answer
            return (time.thread_time() - began) / times / parts * 1e6

    return least(lambda: trio.run(run))


def bare(times: int, once: Callable[[], Awaitable[object]], parts: int = 1) -> Measure:
    """The same for a coroutine function on Trio alone."""

    async def run() -> float:
        began = time.thread_time()
        for _ in range(times):
            await once()
        return (time.thread_time() - began) / times / parts * 1e6

    return least(lambda: trio.run(run))


# ---- pure steps -----------------------------------------------------------------------------


def pure_flow() -> Flow:
    aliases: list[Any] = [Annotated[int, Slot(f"s{i}")] for i in range(STEPS)]

    def make(i: int) -> Any:
        def first() -> int:
            return 1

        def later(x: int) -> int:
            return x + 1

        function: Any = later if i else first
        function.__annotations__ = {"x": aliases[i - 1], "return": aliases[i]} if i else {"return": aliases[i]}
        return step(name=f"s{i}")(function)

    return Flow("pure", [make(i) for i in range(STEPS)], gives=[aliases[-1]])


def machine_per_step() -> float:
    plan, clock = compile_plan(pure_flow()), time.perf_counter_ns
    began = time.thread_time()
    for _ in range(500):
        Machine(plan, "req", clock, []).start()
    return (time.thread_time() - began) / 500 / STEPS * 1e6


def function_per_step() -> float:
    def add(x: int) -> int:
        return x + 1

    began = time.thread_time()
    for _ in range(500):
        x = 0
        for _ in range(STEPS):
            x = add(x)
    return (time.thread_time() - began) / 500 / STEPS * 1e6


# ---- effects --------------------------------------------------------------------------------


@effect(kind="bench.read", access="read")
async def read() -> int:
    await trio.lowlevel.checkpoint()
    return 1


@effect(kind="bench.write", access="write")
async def write() -> int:
    await trio.lowlevel.checkpoint()
    return 1


@effect(kind="bench.undo", access="write")
async def undo(value: int) -> None:
    await trio.lowlevel.checkpoint()


@step
def first() -> N:
    return 1


@step
async def second(n: N) -> M:
    return await read().with_policy(timeout=5.0)


@step
def third(m: M) -> None:
    return None


@step
async def effects() -> N:
    total = 0
    for _ in range(AGAIN):
        total += await read().with_policy(timeout=5.0)
    return total


@step
async def joins() -> N:
    total = 0
    for _ in range(AGAIN):
        total += sum(await join.all(read(), read(), read()))
    return total


@step
async def hedges() -> N:
    total = 0
    for _ in range(AGAIN):
        total += await join.hedge(read(), after=1.0)
    return total


@step
async def ten_compensated() -> N:
    total = 0
    for _ in range(10):
        total += await write().compensate(undo)
    return total


@step
def give_up(n: N) -> Fail:
    return Fail.conflict("bench")


THREE_STEPS = Flow("three_steps", [first, second, third], deadline=60.0)
EFFECTS = Flow("effects", [effects], gives=[N], deadline=60.0)
JOINS = Flow("joins", [joins], gives=[N], deadline=60.0)
HEDGES = Flow("hedges", [hedges], gives=[N], deadline=60.0)
ROLLBACK = Flow("rollback", [ten_compensated, give_up], deadline=60.0)

# What Trio alone needs for the same promises: a scope for the run's deadline, one for each timeout, a nursery for
# whatever runs at once. No records, keys, retries, breakers or statistics.


async def trio_one_effect() -> None:
    with trio.move_on_after(60.0), trio.move_on_after(5.0):
        await trio.lowlevel.checkpoint()


async def trio_effects() -> None:
    with trio.move_on_after(60.0):
        for _ in range(AGAIN):
            with trio.move_on_after(5.0):
                await trio.lowlevel.checkpoint()


async def trio_joins() -> None:
    with trio.move_on_after(60.0):
        for _ in range(AGAIN):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(trio.lowlevel.checkpoint)


async def trio_hedges() -> None:
    with trio.move_on_after(60.0):
        for _ in range(AGAIN):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 1.0)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()


async def trio_rollback() -> None:
    with trio.move_on_after(60.0):
        for _ in range(10):
            await trio.lowlevel.checkpoint()
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 10.0):
        for _ in range(10):
            with trio.move_on_after(5.0):
                await trio.lowlevel.checkpoint()


# ---- around a run ---------------------------------------------------------------------------

TICKETS = 5_000


def admission() -> float:
    """Microseconds for a ticket and its release, as a run does it."""

    async def run() -> float:
        clock, work, actor = trio.lowlevel.current_clock().current_time, Work(), AdmissionActor()
        began = time.thread_time()
        for _ in range(TICKETS):
            now = clock()
            ticket = actor.arrive("default", "acme", now, float("inf"), work)
            if not isinstance(ticket, Ticket):  # to wait for one would be to measure something else, and for minutes
                raise TypeError(f"{ticket!r} instead of a ticket")
            actor.release(ticket, 0.0001, 0.0, now)  # who runs it knows what time it is
        return (time.thread_time() - began) / TICKETS * 1e6

    return trio.run(run)


def semaphore() -> float:
    """The same for one of Trio's semaphores."""

    async def run() -> float:
        counted = trio.Semaphore(400)
        began = time.thread_time()
        for _ in range(TICKETS):
            counted.acquire_nowait()
            counted.release()
        return (time.thread_time() - began) / TICKETS * 1e6

    return trio.run(run)


def record() -> float:
    """Microseconds for as many records as a run of three steps and an effect makes."""
    clock = time.perf_counter_ns
    began = time.thread_time()
    for _ in range(1000):
        records: list[t.Record] = []
        for _ in range(10):
            records.append((t.STEP, clock(), record, (began, None)))
    return (time.thread_time() - began) / 1000 * 1e6


CASES = [
    Case("a pure step", "µs", {"zerver": least(machine_per_step), "a Python call": least(function_per_step)}),
    Case(
        "a run of three steps, one with an effect with a timeout",
        "µs",
        {"zerver": per_run(500, THREE_STEPS), "two nested move_on_after, checkpoint": bare(500, trio_one_effect)},
    ),
    Case(
        f"an effect with a timeout, {AGAIN} in a run with a deadline",
        "µs",
        {
            "zerver": per_run(100, EFFECTS, AGAIN),
            "two nested move_on_after, checkpoint": bare(2000, trio_one_effect),
            "the outer move_on_after opened once": bare(100, trio_effects, AGAIN),
        },
    ),
    Case(
        f"a join of three, {AGAIN} in a run",
        "µs",
        {"zerver": per_run(50, JOINS, AGAIN), "a nursery with three children": bare(50, trio_joins, AGAIN)},
    ),
    Case(
        f"a hedge that is not needed, {AGAIN} in a run",
        "µs",
        {"zerver": per_run(50, HEDGES, AGAIN), "a nursery, a timer and a cancel": bare(50, trio_hedges, AGAIN)},
    ),
    Case(
        "a run of ten writes, and their rollback",
        "µs",
        {"zerver": per_run(200, ROLLBACK), "the same checkpoints and scopes": bare(200, trio_rollback)},
    ),
    Case(
        "admission, when nobody waits",
        "µs",
        {"zerver": least(admission), "a semaphore, without its checkpoint": least(semaphore)},
    ),
    # The timeline cannot be switched off, so there is no run without it to compare with: only its share of one.
    Case(
        "ten records, the timeline of a three-step run",
        "µs",
        {"zerver": least(record), "that run, these included": per_run(500, THREE_STEPS)},
    ),
]

if __name__ == "__main__":
    with opened() as others:
        main([*CASES, *others], __doc__ or "", PACKAGES)
