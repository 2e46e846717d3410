"""What a runtime and its loop are doing now is read as their statistics say."""

from __future__ import annotations

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.trace import shop
from zerver import Flow, Target
from zerver.core.app import App, Capability
from zerver.runtime import open_runtime
from zerver.trace.recorder import RecorderStatistics
from zerver.trace.telemetry.gauges import EVERY, LoopLag, recorder_families, runtime_families
from zerver.trace.telemetry.metrics import Metrics


async def test_a_runtime_is_told_by_class_and_by_target(autojump_clock: MockClock) -> None:
    app = App(capabilities=[Capability(name="world", handlers=shop.WORLD)], targets={"payments": Target(bulkhead=2)})
    async with open_runtime(app, handlers=shop.WORLD) as runtime, trio.open_nursery() as nursery:
        metrics = Metrics()
        metrics.watch(lambda: runtime_families(runtime.statistics()))
        nursery.start_soon(runtime.run, Flow("approval", [shop.ask_boss, shop.use]))
        nursery.start_soon(runtime.run, shop.CHECKOUT)
        await trio.sleep(0.005)
        snapshot = metrics.snapshot()
        assert snapshot.value("zerver.runs.running", "default") == 1
        assert snapshot.value("zerver.runs.parked") == 1
        assert snapshot.value("zerver.runs.queued", "batch") == 0
        assert snapshot.value("zerver.runs.limit", "interactive") >= 1
        assert snapshot.value("zerver.target.breaker", "payments", "closed") == 1
        assert snapshot.value("zerver.target.breaker", "payments", "open") == 0
        assert snapshot.value("zerver.target.attempts", "payments") == 1
        assert snapshot.value("zerver.target.bulkhead.limit", "payments") == 2
        assert snapshot.value("zerver.target.bulkhead.used", "payments") == 1
        assert snapshot.value("zerver.draining") == 0
        await runtime.drain(0)
        assert metrics.snapshot().value("zerver.draining") == 1


async def test_targets_that_have_series_are_bounded(autojump_clock: MockClock) -> None:
    async with open_runtime(App()) as runtime:
        for n in range(300):
            runtime.interpreter.targets.get(f"host {n}")
        found = {family.instrument.name: family for family in runtime_families(runtime.statistics())}
    assert len(found["zerver.target.attempts"].points) == 100


async def test_runs_that_somebody_must_look_at_are_told(autojump_clock: MockClock) -> None:
    async with open_runtime(App()) as runtime:
        said = attrs.evolve(
            runtime.statistics(),
            stuck={"req_1": "no way on", "req_2": "nor here"},
            open_unresolved=3,
            set_aside=4,
            open_parked=7,
        )
    metrics = Metrics()
    metrics.watch(lambda: runtime_families(said))
    snapshot = metrics.snapshot()
    assert snapshot.value("zerver.journal.stuck") == 2
    assert snapshot.value("zerver.journal.unresolved") == 3
    assert snapshot.value("zerver.journal.parked") == 7
    assert snapshot.value("zerver.runs.set_aside") == 4
    assert snapshot.value("zerver.runs.recovered") == 0


def test_what_a_recorder_dropped_is_told() -> None:
    (family,) = recorder_families(RecorderStatistics(5, 1, 3, 0))
    assert [(point.labels, getattr(point, "value", None)) for point in family.points] == [((), 3.0)]


def test_the_worst_lag_is_that_of_the_last_ten_seconds_and_not_for_ever() -> None:
    lag = LoopLag()
    lag.note(0.5, 100.0)
    lag.note(0.001, 100.1)
    assert (lag.seconds(), lag.worst()) == (0.001, 0.5)
    lag.note(0.002, 112.0)
    assert lag.worst() == 0.5
    lag.note(0.001, 123.0)
    assert lag.worst() == 0.002
    lag.note(0.0, 500.0)
    assert lag.worst() == 0.0


async def test_a_loop_that_is_in_time_has_no_lag(autojump_clock: MockClock) -> None:
    lag = LoopLag()
    with trio.move_on_after(5):
        await lag.watch()
    assert lag.worst() < 1e-6


async def test_a_loop_that_was_held_says_so_when_it_comes_back(mock_clock: MockClock, nursery: trio.Nursery) -> None:
    lag = LoopLag()
    nursery.start_soon(lag.watch)
    await wait_all_tasks_blocked()
    mock_clock.jump(3.0 + EVERY)  # as if one call had taken so long
    await wait_all_tasks_blocked()
    assert lag.seconds() == pytest.approx(3.0)
    assert [getattr(point, "value", None) for family in lag.families() for point in family.points] == [lag.worst()]
    nursery.cancel_scope.cancel()
