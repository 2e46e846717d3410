"""An open runtime: what it refuses to open, what it is told, and that leaving it leaves nothing behind."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver import (
    INJECTED,
    AdmissionPolicy,
    App,
    Capability,
    Done,
    Fail,
    Flow,
    IdempotencyKey,
    Slot,
    effect,
    step,
)
from zerver.effects import clock, random, sql
from zerver.errors import (
    DeadlinePassed,
    DefinitionError,
    InvalidData,
    RunCancelled,
    RunDefect,
    RunFailed,
    RunRefused,
)
from zerver.http import Body, Query
from zerver.runtime import Result, open_runtime
from zerver.testing import scripted

Name = Annotated[str, Slot("name")]


@step
def greet(name: Name) -> Done:
    return Done(f"hello {name}")


@step
async def nap() -> None:
    await clock.sleep(10)


@step
async def ask_database() -> Done:
    return Done(await sql.fetch_value(int, "select 1"))


GREET = Flow("greet", [greet], takes=[Name])
NAP = Flow("nap", [nap])


# ---- opening --------------------------------------------------------------------------------


async def test_an_app_that_cannot_work_does_not_open() -> None:
    app = App()
    app.route("GET", "/x", Flow("x", [ask_database]))
    with pytest.raises(DefinitionError, match=r"asks for 'sql.fetch_value', but nothing handles it"):
        async with open_runtime(app):
            raise AssertionError("not reached")
    async with open_runtime(app, handlers=scripted({sql.fetch_value: 1})):
        pass


async def test_a_flow_that_no_route_names_is_checked_when_it_is_run() -> None:
    async with open_runtime(App()) as runtime:
        with pytest.raises(DefinitionError, match="nothing handles it"):
            await runtime.run(Flow("x", [ask_database]))
        assert runtime.statistics().ended == 0


class Pool:
    def __init__(self) -> None:
        self.open = True


@effect(kind="pool.ask", access="read")
async def ask_pool(*, pool: Pool = INJECTED) -> bool:
    await trio.lowlevel.checkpoint()
    return pool.open


@step
async def use_pool() -> Done:
    return Done(await ask_pool())


def with_pool(log: list[Pool]) -> App:
    @asynccontextmanager
    async def open_pool() -> AsyncIterator[Pool]:
        log.append(Pool())
        try:
            yield log[-1]
        finally:
            log[-1].open = False

    return App(capabilities=[Capability(name="pool", resources={Pool: open_pool})])


async def test_resources_live_as_long_as_the_runtime() -> None:
    pools: list[Pool] = []
    async with open_runtime(with_pool(pools)) as runtime:
        assert (await runtime.run(Flow("f", [use_pool]))).value is True
        assert runtime.resources[Pool] is pools[0]
    assert [pool.open for pool in pools] == [False]


async def test_runs_end_before_their_resources_close(autojump_clock: MockClock) -> None:
    pools: list[Pool] = []
    seen: list[bool] = []

    @effect(kind="pool.undo", access="write")
    async def undo(_: str, *, pool: Pool = INJECTED) -> None:
        seen.append(pool.open)

    @effect(kind="pool.do", access="write")
    async def do(*, key: IdempotencyKey = INJECTED) -> str:
        return "done"

    @step
    async def work() -> None:
        await do().compensate(undo)
        await clock.sleep(60)

    async with trio.open_nursery() as nursery:
        async with open_runtime(with_pool(pools)) as runtime:
            nursery.start_soon(runtime.run, Flow("f", [work]))
            await trio.sleep(1)
        assert trio.current_time() == pytest.approx(1)
    assert seen == [True]


async def test_an_error_of_the_body_comes_out_bare() -> None:
    pools: list[Pool] = []
    with pytest.raises(ZeroDivisionError):
        async with open_runtime(with_pool(pools)):
            raise ZeroDivisionError
    assert not pools[0].open


# ---- inputs ---------------------------------------------------------------------------------


async def test_slots_and_parts_are_given_by_name() -> None:
    @step
    def add(left: Annotated[int, Query()], body: Annotated[int, Body()], also: Annotated[int, Query()] = 5) -> Done:
        return Done(left + body + also)

    async with open_runtime(App()) as runtime:
        assert (await runtime.run(GREET, given={"name": "you"})).value == "hello you"
        flow = Flow("add", [add])
        assert (await runtime.run(flow, 10, given={"left": 1})).value == 16
        with pytest.raises(InvalidData) as caught:
            await runtime.run(flow)
        assert [where for where, _ in caught.value.problems] == ["query left", "body body"]
        with pytest.raises(InvalidData, match="slot name: is taken by the flow"):
            await runtime.run(GREET)
        with pytest.raises(DefinitionError, match="priority 'urgent' is unknown"):
            await runtime.run(GREET, given={"name": "you"}, priority="urgent")  # type: ignore[arg-type]  # the mistake
        assert runtime.statistics().ended == 2


async def test_a_run_is_a_checkpoint() -> None:
    async with open_runtime(App()) as runtime:
        with trio.CancelScope() as scope:
            scope.cancel()
            await runtime.run(GREET, given={"name": "you"})
        assert scope.cancelled_caught


async def test_what_a_run_is_called(autojump_clock: MockClock) -> None:
    async with open_runtime(App(), seed=1) as one, open_runtime(App(), seed=1) as two:
        first = await one.run(GREET, given={"name": "a"}, tenant="acme", priority="batch")
        again = await two.run(GREET, given={"name": "a"})
    assert first.run_id == again.run_id
    assert first.run_id.startswith("req_")
    assert (first.timeline.tenant, first.timeline.priority, first.timeline.flow) == ("acme", "batch", "greet")


async def test_a_seed_repeats_chance() -> None:
    @step
    async def draw() -> Done:
        return Done((await random.uniform(), await random.uuid()))

    drawn = []
    for seed in (1, 1, 2):
        async with open_runtime(App(), seed=seed) as runtime:
            drawn.append((await runtime.run(Flow("draw", [draw]))).value)
    assert drawn[0] == drawn[1] != drawn[2]


# ---- deadlines, cancelling, draining --------------------------------------------------------


@pytest.mark.parametrize(("flows", "callers", "expected"), [(3, None, 3), (3, 2.0, 2), (3, 60, 3), (None, 4, 4)])
async def test_the_shorter_deadline_holds(
    autojump_clock: MockClock, flows: float | None, callers: float | None, expected: float
) -> None:
    async with open_runtime(App()) as runtime:
        result = await runtime.run(Flow("nap", [nap], deadline=flows), deadline=callers)
    assert (result.status, trio.current_time()) == ("deadline", pytest.approx(expected))


async def test_signals_and_cancels_for_nobody_are_told_so() -> None:
    async with open_runtime(App()) as runtime:
        assert not await runtime.signal("req_0", "x")
        assert not runtime.cancel_nowait("req_0", "x")


async def collect(results: list[Result], call: Callable[[], Any]) -> None:
    results.append(await call())


async def test_drain_refuses_waits_and_then_cancels(autojump_clock: MockClock) -> None:
    results: list[Result] = []
    async with open_runtime(App()) as runtime, trio.open_nursery() as nursery:
        for seconds in (2, 60):
            nursery.start_soon(collect, results, partial(runtime.run, Flow(f"sleep{seconds}", [sleeper(seconds)])))
        await trio.sleep(1)
        nursery.start_soon(runtime.drain, 5)
        await trio.sleep(1)
        refused = await runtime.run(GREET, given={"name": "you"})
        assert (refused.status, runtime.statistics().admission.draining) == ("refused", True)
    assert [(result.status, result.reason) for result in results] == [
        ("done", ""),
        ("cancelled", "the runtime is draining"),
    ]
    assert trio.current_time() == pytest.approx(6)


def sleeper(seconds: float) -> Any:
    @step
    async def sleep() -> None:
        await clock.sleep(seconds)

    return sleep


async def test_who_waits_is_refused_when_the_runtime_drains(autojump_clock: MockClock) -> None:
    results: list[Result] = []
    async with open_runtime(App(admission=AdmissionPolicy(running=1))) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(collect, results, lambda: runtime.run(NAP))
        await trio.sleep(1)
        nursery.start_soon(collect, results, lambda: runtime.run(NAP))
        await trio.sleep(1)
        await runtime.drain(60)
    assert [result.status for result in results] == ["refused", "done"]


# ---- observers and results ------------------------------------------------------------------


async def test_observers_are_told_of_every_run_and_cannot_fail_it(autojump_clock: MockClock) -> None:
    seen: list[str] = []

    def broken(result: Result) -> None:
        raise ZeroDivisionError

    async with open_runtime(App(), observers=[broken, lambda result: seen.append(result.status)]) as runtime:
        assert (await runtime.run(GREET, given={"name": "you"})).ok
        await runtime.run(NAP, deadline=1)
        with trio.move_on_after(1):
            await runtime.run(NAP)
        await runtime.drain(0)
        await runtime.run(NAP)
        assert seen == ["done", "deadline", "cancelled", "refused"]
        assert (runtime.statistics().ended, runtime.statistics().observer_errors) == (4, 4)


async def test_unwrap_makes_an_exception_of_what_was_not_done(autojump_clock: MockClock) -> None:
    @step
    def fail() -> Fail:
        return Fail.not_found("cart", "c1")

    @step
    def break_() -> Done:
        return Done(1 // 0)

    async with open_runtime(App()) as runtime:
        assert (await runtime.run(GREET, given={"name": "you"})).unwrap() == "hello you"
        with pytest.raises(RunFailed, match=r"failed: not_found: cart c1"):
            (await runtime.run(Flow("fail", [fail]))).unwrap()
        with pytest.raises(RunDefect) as caught:
            (await runtime.run(Flow("break", [break_]))).unwrap()
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        with pytest.raises(DeadlinePassed):
            (await runtime.run(NAP, deadline=1)).unwrap()
        results: list[Result] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, results, lambda: runtime.run(NAP))
            await trio.sleep(1)
            await runtime.drain(0)
        with pytest.raises(RunCancelled, match="the runtime is draining"):
            results[0].unwrap()
        with pytest.raises(RunRefused, match="draining") as refused:
            (await runtime.run(NAP)).unwrap()
        assert refused.value.retry_after == 1.0


PATIENT = AdmissionPolicy(running=1, default=attrs.evolve(AdmissionPolicy().default, patience=60.0))


async def test_times_add_up(autojump_clock: MockClock) -> None:
    async with open_runtime(App(admission=PATIENT)) as runtime:
        results: list[Result] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, results, lambda: runtime.run(NAP))
            nursery.start_soon(collect, results, lambda: runtime.run(NAP))
    for result in results:
        spent, records = result.timeline.accounts, result.timeline.records
        assert spent.total == records[-1][1] - records[0][1]
        assert spent.io == pytest.approx(10e9)
    assert {round(result.timeline.accounts.admission / 1e9) for result in results} == {0, 10}


async def test_a_caller_that_leaves_the_queue_was_here(autojump_clock: MockClock) -> None:
    seen: list[Result] = []
    async with open_runtime(App(admission=PATIENT), observers=[seen.append]) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run, Flow("holds", [nap]))
        await wait_all_tasks_blocked()
        with trio.move_on_after(1.0):
            await runtime.run(Flow("queued", [nap]))
        assert [(result.timeline.flow, result.status) for result in seen] == [("queued", "cancelled")]
        assert runtime.statistics().admission.queued == 0
        assert seen[0].timeline.accounts.total == seen[0].timeline.records[-1][1] - seen[0].timeline.records[0][1]
        nursery.cancel_scope.cancel()


@step
def quick() -> Done:
    return Done(None)


@pytest.mark.parametrize("deadline", [1e300, float("inf"), 1e12])
async def test_a_deadline_that_nobody_lives_to_see_is_none(deadline: float) -> None:
    async with open_runtime(App()) as runtime:
        assert (await runtime.run(Flow("quick", [quick]), deadline=deadline)).ok


async def test_a_deadline_that_is_no_number_is_refused_and_leaves_no_ticket() -> None:
    async with open_runtime(App()) as runtime:
        with pytest.raises(DefinitionError, match="deadline=nan is no time"):
            await runtime.run(Flow("quick", [quick]), deadline=float("nan"))
        assert runtime.statistics().admission.running == 0
