"""Steps take turns by class: who goes first, when a run breathes, what overran, what stood and what starved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from zerver import AdmissionPolicy, App, Flow, Slot, parallel, step
from zerver.core import timeline as t
from zerver.core.classes import DEFAULT
from zerver.core.load import Load
from zerver.core.plan import compile_plan
from zerver.core.priorities import Priority
from zerver.core.turns import BUDGETS
from zerver.effects import clock
from zerver.runtime import Result, Runtime, open_runtime
from zerver.runtime.turns import Turns
from zerver.testing import cancel_sweep
from zerver.trace.replaying.replay import replay
from zerver.trace.text import format_timeline

One = Annotated[str, Slot("one")]


def burn(ms: float) -> None:
    """What a step does that computes: the clock is the only one there is."""
    mock = trio.lowlevel.current_clock()
    assert isinstance(mock, MockClock)
    mock.jump(ms / 1_000)


def work(name: str, ms: float, seen: list[str] | None = None) -> Any:
    @step(name=name)
    def compute() -> None:
        burn(ms)
        if seen is not None:
            seen.append(name)

    return compute


@step
async def nap() -> None:
    await clock.sleep(1)


def rest(seconds: float) -> Any:
    @step
    async def sleep() -> None:
        await clock.sleep(seconds)

    return sleep


def kinds(result: Result) -> list[str]:
    return [kind for kind, *_ in result.timeline.records]


async def ran(runtime: Runtime, flow: Flow, results: list[Result], priority: Priority | None = None) -> None:
    results.append(await runtime.run(flow, priority=priority))


async def test_alone_a_run_waits_for_nothing(autojump_clock: MockClock) -> None:
    async with open_runtime(App()) as runtime:
        result = await runtime.run(Flow("f", [work("a", 1), nap, work("b", 1)]))
        assert t.TURN not in kinds(result)
        assert result.timeline.accounts.turn == 0
        assert runtime.statistics().turns.seconds == pytest.approx(0.002)


async def test_however_much_it_computes_alone_it_waits_for_nothing_if_the_loop_has_looked_in_between(
    autojump_clock: MockClock,
) -> None:
    async with open_runtime(App()) as runtime:
        for ms in (0.9, 2.5, 4.9):
            stages = [stage for n in range(10) for stage in (work(f"s{n}", ms), rest(1 + n / 10))]
            result = await runtime.run(Flow("f", stages, priority="batch"))
            assert t.TURN not in kinds(result)


async def test_after_three_milliseconds_the_highest_class_goes_first(autojump_clock: MockClock) -> None:
    seen: list[str] = []
    results: list[Result] = []
    async with open_runtime(App()) as runtime, trio.open_nursery() as nursery:
        for number in range(4):
            for priority in ("batch", "interactive", "default"):
                flow = Flow(f"{priority}{number}", [nap, work(priority, 2, seen)], priority=priority)
                nursery.start_soon(ran, runtime, flow, results)
    waited = seen[2:]  # two go before 3 ms are over, in whatever order Trio has them
    assert waited[0] == "interactive"
    assert sorted(waited, key=lambda name: name == "batch") == waited, "5 % of so little are no turn"
    assert all(result.status == "done" for result in results)
    assert max(result.timeline.accounts.turn for result in results) >= 10_000_000
    assert sum(kinds(result).count(t.TURN) for result in results) >= 8


async def test_batch_work_breathes_at_five_milliseconds_and_lets_others_in(autojump_clock: MockClock) -> None:
    seen: list[str] = []
    results: list[Result] = []
    batch = Flow("batch", [nap, *(work(f"b{n}", 2, seen) for n in range(6))], priority="batch")
    quick = Flow("quick", [nap, work("quick", 0.1, seen)], priority="interactive")
    async with open_runtime(App()) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(ran, runtime, batch, results)
        nursery.start_soon(ran, runtime, quick, results)
    assert seen.index("quick") <= 3, "at the latest when the first slice was over"
    long = next(result for result in results if result.timeline.flow == "batch")
    assert kinds(long).count(t.BREATH) == 1
    assert replay(compile_plan(batch), long.timeline).same


async def test_who_comes_during_a_long_turn_goes_before_a_long_turn_of_a_lower_class(
    autojump_clock: MockClock,
) -> None:
    """Whose turn is next is settled after the look at I/O, or a batch turn more would stand before the interactive."""
    for _ in range(10):  # in which order Trio runs those who are woken at once is a matter of chance
        seen: list[str] = []
        async with open_runtime(App()) as runtime, trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(runtime.run, Flow("batch", [nap, work("batch", 5, seen)], priority="batch"))
            for after in (1.003, 1.008):
                quick = Flow("quick", [rest(after), work("quick", 0.1, seen)], priority="interactive")
                nursery.start_soon(runtime.run, quick)
        assert seen == ["batch", "quick", "batch", "quick", "batch"]


async def test_the_loop_lives_while_a_run_breathes(autojump_clock: MockClock) -> None:
    async with open_runtime(App()) as runtime:
        began = trio.current_time()
        with trio.move_on_after(0.02) as scope:
            result = await runtime.run(Flow("f", [work(f"s{n}", 4) for n in range(100)], priority="batch"))
            pytest.fail(f"{result.status}")
        assert scope.cancelled_caught
        assert trio.current_time() - began < 0.04


async def test_past_its_deadline_no_step_begins(autojump_clock: MockClock) -> None:
    seen: list[str] = []
    flow = Flow("f", [work(f"s{n}", 30, seen) for n in range(10)], deadline=0.1)
    async with open_runtime(App()) as runtime:
        result = await runtime.run(flow)
    assert (result.status, len(seen)) == ("deadline", 4)
    assert replay(compile_plan(flow), result.timeline).same


async def test_a_run_that_breathes_can_be_cancelled_and_replayed(autojump_clock: MockClock) -> None:
    flow = Flow("f", [nap, parallel(work("a", 30), nap), work("b", 30), nap], priority="batch")
    results: list[Result] = []
    async with open_runtime(App(), observers=[results.append]) as runtime, trio.open_nursery() as nursery:
        ids = await nursery.start(_started, runtime, flow)
        await trio.sleep(1.5)
        runtime.cancel_nowait(ids, "enough")
    assert results[0].status == "cancelled"
    assert replay(compile_plan(flow), results[0].timeline).same


async def _started(runtime: Runtime, flow: Flow, *, task_status: trio.TaskStatus[str]) -> None:
    await runtime.run(flow, task_status=task_status)


# ---- overruns -------------------------------------------------------------------------------


async def test_an_overrun_is_recorded_with_its_place_and_demotes_its_flow(autojump_clock: MockClock) -> None:
    flow = Flow("rogue", [work("quick", 1), work("heavy", 40)], priority="interactive")
    async with open_runtime(App()) as runtime:
        results = [await runtime.run(flow) for _ in range(4)]
        turns = runtime.statistics().turns
        (told,) = turns.overruns
        assert (told.flow, told.step, told.count, told.longest) == ("rogue", "heavy", 4, pytest.approx(0.04))
        assert (turns.demoted, runtime.turns.demoted("rogue")) == (("rogue",), 1)
        await trio.sleep(61)
        assert runtime.turns.demoted("rogue") == 0
    (record,) = (record for record in results[0].timeline.records if record[0] == t.OVERRUN)
    assert (record[2], record[3].took, record[3].budget) == ("heavy", 40_000_000, BUDGETS[0])
    text = format_timeline(results[0].timeline)
    assert "OVERRUN step heavy took 40ms of 3ms, defined at runtime/test_turns.py:" in text
    assert replay(compile_plan(flow), results[0].timeline).same


async def test_several_steps_that_keep_to_their_time_are_no_overrun(autojump_clock: MockClock) -> None:
    async with open_runtime(App()) as runtime:
        await runtime.run(Flow("f", [work(f"s{n}", 2.9) for n in range(9)], priority="interactive"))
        assert runtime.statistics().turns.overruns == ()


# ---- load -----------------------------------------------------------------------------------


def unopened(waits: Callable[[int], bool] | None = None) -> Turns:
    return Turns(lambda: round(trio.current_time() * 1e9), None, waits)


async def test_an_idle_loop_starves_the_levels_that_wait_for_tickets(autojump_clock: MockClock) -> None:
    pressed = [2]
    turns = unopened(lambda level: level >= pressed[0])
    turns.notice()
    turns._sleeps.before_io_wait(1.0)
    autojump_clock.jump(0.03)
    turns._sleeps.after_io_wait(1.0)
    pressed[0] = 1
    turns._sleeps.before_io_wait(0.0)
    turns._sleeps.after_io_wait(0.0)
    turns._sleeps.before_io_wait(1.0)
    autojump_clock.jump(0.02)
    turns._sleeps.after_io_wait(1.0)
    load = turns.load(100_000_000)
    assert load.starved == (0.0, pytest.approx(0.02), pytest.approx(0.05))
    turns.close()


async def test_the_guaranteed_share_of_a_lower_class_starves_nobody(autojump_clock: MockClock) -> None:
    """The second design that failed: counted as starvation, it made the limit run away."""
    async with open_runtime(App()) as runtime:
        turns = runtime.turns
        turns.tell, turns.waits = None, lambda level: True
        batch = Flow("batch", [work("b", 5)], priority="batch")
        turns.notice()
        await runtime.run(batch)
        assert turns.load(100_000_000).starved[:2] == (0.0, 0.0), "5 % of the tick is its own"
        for _ in range(10):
            await runtime.run(batch)
        assert turns.load(100_000_000).starved[1] == pytest.approx(0.045)
        turns.waits = None


async def test_work_that_stood_through_a_tick_is_told(autojump_clock: MockClock) -> None:
    loads: list[Load] = []
    async with open_runtime(App()) as runtime:
        runtime.turns.tell = loads.append
        async with trio.open_nursery() as nursery:
            flow = Flow("f", [nap, work("a", 10), nap])
            for _ in range(30):
                nursery.start_soon(runtime.run, flow)
        await trio.sleep(1)
        await runtime.run(flow)
    standing = [load.standing for load in loads]
    assert max(level for _, level, _ in standing) > 0.005, "a turn counts for 1 ms as long as none was measured"
    assert all(interactive == 0.0 for interactive, _, _ in standing)
    assert standing[-1] == (0.0, 0.0, 0.0)


async def test_nothing_ticks_while_nothing_is_to_be_done(autojump_clock: MockClock) -> None:
    loads: list[Load] = []
    async with open_runtime(App()) as runtime:
        runtime.turns.tell = loads.append
        for _ in range(3):
            await runtime.run(Flow("f", [work("a", 1)]))
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf"), "a timer is nobody's"
        await trio.sleep(1_000)
        assert len(loads) == 1, "at the beginning; the tick under way is told when somebody comes"


async def test_ticks_go_on_while_runs_wait_for_tickets_and_no_turn_comes(autojump_clock: MockClock) -> None:
    loads: list[Load] = []
    policy = AdmissionPolicy(running=1, default=attrs.evolve(DEFAULT, patience=60.0))
    async with open_runtime(App(admission=policy)) as runtime, trio.open_nursery() as nursery:
        runtime.turns.tell = loads.append
        for _ in range(2):
            nursery.start_soon(runtime.run, Flow("f", [nap], deadline=60.0))
    assert 10 <= len(loads) <= 13


# ---- cancelled at every moment --------------------------------------------------------------


async def _crowd() -> None:
    async with open_runtime(App(), seed=1) as runtime, trio.open_nursery() as nursery:
        for number, priority in enumerate(("batch", "interactive", "default")):
            stages = [nap, work("a", 4), parallel(work("b", 4), nap), work("c", 4)]
            nursery.start_soon(runtime.run, Flow(f"f{number}", stages, priority=priority))


def test_whoever_is_cancelled_while_it_waits_leaves_the_baton() -> None:
    report = cancel_sweep(_crowd)
    assert report.delivered
    assert any("turns.py" in place or "wait" in place for place in report.places)
