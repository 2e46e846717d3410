"""Draining comes to an end at whatever moment it begins, and leaves no run behind."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import trio
from trio.testing import MockClock

from zerver import AdmissionPolicy, App, Done, Flow, IdempotencyKey, effect, step
from zerver.core.classes import DEFAULT
from zerver.effects import clock
from zerver.runtime import Result, Runtime, open_runtime
from zerver.runtime.executor import finished

YEAR = 365 * 86_400.0

ONE = AdmissionPolicy(running=1, default=attrs.evolve(DEFAULT, patience=60.0))


@step
async def sleep() -> Done:
    await clock.sleep(YEAR)
    return Done(None)


SLEEP = Flow("sleep", [sleep])


async def collect(runtime: Runtime, results: list[Result], **options: float) -> None:
    results.append(await runtime.run(SLEEP, **options))  # type: ignore[arg-type]  # deadline alone


@pytest.mark.parametrize("passes", range(8))
async def test_who_has_just_got_its_ticket_is_cancelled_too(autojump_clock: MockClock, passes: int) -> None:
    """Of a run that waited, the ticket is there before the run is; in which order tasks run is a matter of chance."""
    for _ in range(10):
        results: list[Result] = []
        async with open_runtime(App(admission=ONE)) as runtime, trio.open_nursery() as nursery:
            first = await nursery.start(runtime.run, SLEEP)
            nursery.start_soon(collect, runtime, results)
            await trio.sleep(1)
            assert runtime.statistics().admission.queued == 1
            runtime.cancel_nowait(first, "it makes room")
            for _ in range(passes):
                await trio.lowlevel.checkpoint()
            await runtime.drain(0)
            assert runtime.statistics().running == 0
        assert [result.status for result in results] in (["cancelled"], ["refused"])
        assert trio.current_time() < YEAR


@pytest.mark.parametrize("passes", range(0, 30, 3))
@pytest.mark.parametrize("seconds", [0.0, 5.0, float("inf")])
async def test_it_may_begin_at_any_moment(autojump_clock: MockClock, passes: int, seconds: float) -> None:
    policy = AdmissionPolicy(running=3, queued=4)
    results: list[Result] = []
    async with open_runtime(App(admission=policy)) as runtime, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(partial(collect, runtime, results, deadline=1.0 + number))
        for _ in range(passes):
            await trio.lowlevel.checkpoint()
        with trio.fail_after(30):
            async with trio.open_nursery() as drains:  # whoever asks twice is served twice
                drains.start_soon(runtime.drain, seconds)
                drains.start_soon(runtime.drain, seconds)
        seen = runtime.statistics()
        assert (seen.running, seen.admission.running, seen.admission.queued) == (0, 0, 0)
    assert {result.status for result in results} <= {"refused", "cancelled", "deadline"}
    assert len(results) == 10


async def test_it_waits_for_a_rollback_behind_the_answer(autojump_clock: MockClock) -> None:
    undone: list[float] = []

    @effect(kind="till.undo", access="write")
    async def undo(receipt: str, *, key: IdempotencyKey) -> None:
        await trio.sleep(2)
        undone.append(trio.current_time())

    @effect(kind="till.pay", access="write")
    async def pay(*, key: IdempotencyKey) -> str:
        return "r1"

    @step
    async def buy() -> None:
        await pay().compensate(undo)

    flow = Flow("buy", [buy, sleep], deadline=1.0)
    async with open_runtime(App()) as runtime:
        results: list[Result] = []
        prepared = runtime.prepare(flow)
        result = await finished(runtime.execute(prepared, after=results.append))
        assert (result.status, result.sealed, runtime.statistics().admission.running) == ("deadline", False, 1)
        await runtime.drain(0)
        assert runtime.statistics().admission.running == 0
        assert [one.sealed for one in results] == [True]
    assert undone == [pytest.approx(3.0)]


async def test_leaving_the_block_is_a_drain_even_when_it_is_cancelled(autojump_clock: MockClock) -> None:
    results: list[Result] = []
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_runtime(App(admission=ONE)) as runtime:
                for _ in range(3):
                    nursery.start_soon(collect, runtime, results)
                await trio.sleep(1)
                scope.cancel()
                await trio.sleep(1)
        assert scope.cancelled_caught
    assert sorted(result.status for result in results) == ["cancelled", "refused", "refused"]
