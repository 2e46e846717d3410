"""A flow that is put down at each of its pauses, and taken up by another worker each time, comes to the same as one
that is kept in memory.

Precedent: Restate's test mode in which an invocation is suspended at every await.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.runtime.dying import Witness, charged, rate
from zerver import Done, Fail, Flow, Pause, parallel, step
from zerver.core import timeline as t
from zerver.core.stages import Stage
from zerver.effects import clock
from zerver.runtime import Result

#: What becomes of a pause, by how its signal is called: it comes soon, later, or never.
COMES = {"soon": 1.0, "later": 30.0}


def waiting(name: str, fates: list[str], writes: bool) -> Stage:
    """A step that pauses several times, and then asks for something."""

    async def wait() -> Any:
        said: list[object] = []

        def again(value: object = None) -> Any:
            if value is not None:
                said.append(value)
            number = len(said)
            if number < len(fates):
                signal = f"{fates[number]} {name} {number}"
                return Pause(signal, 100.0, resume=again, expired=Fail.conflict(name, "nobody came"))
            return charge()

        async def charge() -> None:
            if writes:
                await charged(len(said) + 20)

        await rate()
        return again() if fates else await charge()

    wait.__annotations__["return"] = None | Pause  # type: ignore[operator]  # a step says what it decides
    return step(name=name)(wait)


@st.composite
def flows(draw: st.DrawFn) -> list[Stage]:
    names = itertools.count()
    fates = st.lists(st.sampled_from(["soon", "soon", "later", "never"]), max_size=3)

    def one() -> Stage:
        return waiting(f"step{next(names)}", draw(fates), draw(st.booleans()))

    stages: list[Stage] = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 3))
        stages.append(one() if count == 1 else parallel(*(one() for _ in range(count))))
    return stages


@step
async def end() -> Done:
    await clock.sleep(0.01)
    return Done("ended")


async def lived(flow: Flow) -> tuple[Result, Witness, int]:
    """The end of a run, with two workers; signals are given to whichever has nothing to do with it."""
    one = Witness()
    two = Witness(one.disk, one.world)
    two.ended = one.ended
    async with (
        one.open(flow, lease=600.0) as first,
        two.open(flow, lease=600.0) as second,
        trio.open_nursery() as tasks,
    ):
        tasks.start_soon(first.run, flow)
        workers = itertools.cycle([second, first])
        took = 0
        for _ in range(600):
            await trio.sleep(1)
            if one.ended:
                break
            run_ids = [*one.disk.runs, *first._runs, *second._runs]
            for run_id in set(run_ids):
                for signal in sorted(_awaited(one, run_id) | _in_memory(first, run_id)):
                    due = COMES.get(signal.partition(" ")[0])
                    if due is not None and trio.current_time() % 60 >= due:
                        owner = first if flow.durability == "off" else next(workers)
                        took += await owner.signal(run_id, signal, signal)
    (result,) = one.ended
    return result, one, took


def _awaited(witness: Witness, run_id: str) -> set[str]:
    run = witness.disk.runs.get(run_id)
    return set() if run is None else {one.signal for one in run.signals.values() if one.value is None}


def _in_memory(runtime: Any, run_id: str) -> set[str]:
    run = runtime._runs.get(run_id)
    return set() if run is None else set(run.awaited)


def _answers(result: Result) -> Counter[str]:
    """What the steps have decided, and which signals have come."""
    return Counter(
        f"{kind} {subject.name} {detail if kind == t.SIGNALLED else ''}"
        for kind, _, subject, detail in result.timeline.records
        if kind in (t.STEP, t.PARKED, t.SIGNALLED)
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(flows())
def test_a_flow_put_down_at_each_pause_comes_to_the_same(stages: list[Stage]) -> None:
    async def check() -> None:
        kept, world, _ = await lived(Flow("f", [*stages, end]))
        for durability in ("sync", "async"):
            flow = Flow("f", [*stages, end], durability=durability)  # type: ignore[arg-type]  # one of them
            put_down, other, _ = await lived(flow)
            assert (put_down.status, put_down.value) == (kept.status, kept.value)
            if kept.ok:
                assert _answers(put_down) == _answers(kept)
            standing = [Counter(set(w.world.done.values())) for w in (world, other) if not w.world.undone]
            assert all(one == standing[0] for one in standing)
            assert len(other.world.undone) == (len(other.world.done) if not kept.ok else 0)
            kinds = [record[0] for record in put_down.timeline.records]
            assert kinds.count(t.RESUMED) >= min(1, kinds.count(t.PARKED))
            assert put_down.timeline.accounts.total - put_down.timeline.accounts.parked < 1e9

    trio.run(check, clock=MockClock(autojump_threshold=0))
