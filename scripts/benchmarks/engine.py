"""The engine without HTTP: what a step, an effect, a join, a hedge and a compensation cost beside Trio's own primitives."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import trio
from _report import Case, Measure, main

from zerver import App, Fail, Flow, Slot, effect, join, step
from zerver.core.machine import Machine
from zerver.core.plan import compile_plan
from zerver.runtime import Runtime, open_runtime

STEPS = 100
N = Annotated[int, Slot("n")]


def per_call(times: int, once: Callable[[Runtime], Awaitable[object]], app: App | None = None) -> Measure:
    """Microseconds per call of `once`, in a runtime of its own."""

    async def run() -> float:
        async with open_runtime(app or App()) as runtime:
            began = time.perf_counter()
            for _ in range(times):
                await once(runtime)
            return (time.perf_counter() - began) / times * 1e6

    return lambda: trio.run(run)


def bare(times: int, once: Callable[[], Awaitable[object]]) -> Measure:
    async def run() -> float:
        began = time.perf_counter()
        for _ in range(times):
            await once()
        return (time.perf_counter() - began) / times * 1e6

    return lambda: trio.run(run)


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
    began = time.perf_counter()
    for _ in range(500):
        Machine(plan, "req", clock, []).start()
    return (time.perf_counter() - began) / 500 / STEPS * 1e6


def function_per_step() -> float:
    def add(x: int) -> int:
        return x + 1

    began = time.perf_counter()
    for _ in range(500):
        x = 0
        for _ in range(STEPS):
            x = add(x)
    return (time.perf_counter() - began) / 500 / STEPS * 1e6


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
async def ten_effects() -> N:
    total = 0
    for _ in range(10):
        total += await read().with_policy(timeout=5.0)
    return total


@step
async def one_join() -> N:
    return sum(await join.all(read(), read(), read()))


@step
async def one_hedge() -> N:
    return await join.hedge(read(), after=1.0)


@step
async def ten_compensated() -> N:
    total = 0
    for _ in range(10):
        total += await write().compensate(undo)
    return total


@step
def give_up(n: N) -> Fail:
    return Fail.conflict("bench")


TEN_EFFECTS = Flow("ten_effects", [ten_effects], gives=[N], deadline=60.0)
ONE_JOIN = Flow("one_join", [one_join], gives=[N], deadline=60.0)
ONE_HEDGE = Flow("one_hedge", [one_hedge], gives=[N], deadline=60.0)
ROLLBACK = Flow("rollback", [ten_compensated, give_up], deadline=60.0)


async def trio_ten_effects() -> None:
    with trio.move_on_after(60.0):
        for _ in range(10):
            with trio.move_on_after(5.0):
                await trio.lowlevel.checkpoint()


async def trio_join() -> None:
    with trio.move_on_after(60.0):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(trio.lowlevel.checkpoint)


async def trio_hedge() -> None:
    with trio.move_on_after(60.0):
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

            nursery.start_soon(first)
            nursery.start_soon(trio.sleep, 1.0)


async def trio_rollback() -> None:
    with trio.move_on_after(60.0):
        for _ in range(10):
            await trio.lowlevel.checkpoint()
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 10.0):
        for _ in range(10):
            with trio.move_on_after(2.0):
                await trio.lowlevel.checkpoint()


CASES = [
    Case("a pure step", "µs", {"zerver": machine_per_step, "a Python call": function_per_step}),
    Case(
        "ten effects, each with a timeout, in a run with a deadline",
        "µs",
        {
            "zerver": per_call(500, lambda runtime: runtime.run(TEN_EFFECTS)),
            "two nested move_on_after, checkpoint": bare(500, trio_ten_effects),
        },
    ),
    Case(
        "a join of three",
        "µs",
        {
            "zerver": per_call(1000, lambda runtime: runtime.run(ONE_JOIN)),
            "a nursery with three children": bare(1000, trio_join),
        },
    ),
    Case(
        "a hedge that is not needed",
        "µs",
        {
            "zerver": per_call(1000, lambda runtime: runtime.run(ONE_HEDGE)),
            "a nursery, a timer and a cancel": bare(1000, trio_hedge),
        },
    ),
    Case(
        "ten writes and their rollback",
        "µs",
        {
            "zerver": per_call(300, lambda runtime: runtime.run(ROLLBACK)),
            "the same checkpoints and scopes": bare(300, trio_rollback),
        },
    ),
]

if __name__ == "__main__":
    main(CASES, __doc__ or "")
