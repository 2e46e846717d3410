"""A durable run that is parked is put down: nobody has it, and whoever is there when its signal comes takes it up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import trio

from tests.runtime.dying import Paid, Witness, after_crash, charged, look, pay, statuses
from zerver import App, Deadline, Done, Fail, Flow, Pause, Slot, parallel, step
from zerver.core import timeline as t
from zerver.core.plan import compile_plan
from zerver.core.stages import Stage
from zerver.errors import RunParked
from zerver.journal import Disk, open_sqlite_journal
from zerver.runtime import Result, Runtime, open_runtime
from zerver.runtime.crash import PARKED_SITES, VARIABLE
from zerver.testing import cancel_sweep
from zerver.trace import format_timeline, replay
from zerver.trace.recording import decode_run, encode_run

ROOT = Path(__file__).parents[2]
DAY = 86_400.0
LEASE = 3600.0  # seconds: what is due is found at its time all the same

Said = Annotated[str, Slot("said")]
Again = Annotated[str, Slot("again")]

Durable = Literal["sync", "async"]
BOTH = pytest.mark.parametrize("durability", ["sync", "async"])


@step
async def ask(paid: Paid) -> Said | Pause:
    return Pause("go", expires=DAY)


@step
async def pay_more(said: Said) -> Again:
    return await charged(7)


@step
def tell(said: Said, again: Again) -> Done:
    return Done((said, again))


STAGES: list[Stage] = [look, pay, ask, pay_more, tell]


def shop(durability: Durable = "sync", **more: Any) -> Flow:
    return Flow("shop", STAGES, durability=durability, **more)


@asynccontextmanager
async def workers(flow: Flow, witness: Witness | None = None) -> AsyncIterator[tuple[Runtime, Runtime, Witness]]:
    """Two workers on one disk, in one world."""
    one = witness or Witness()
    two = Witness(one.disk, one.world)
    two.ended = one.ended
    async with one.open(flow, lease=LEASE) as first, two.open(flow, lease=LEASE) as second:
        yield first, second, one


def owners(result: Result) -> list[str]:
    return [detail for kind, _, _, detail in result.timeline.records if kind == t.RESUMED]


# ---- putting down, taking up ----------------------------------------------------------------


@BOTH
async def test_a_parked_run_is_put_down_and_taken_up_where_its_signal_comes(
    durability: Durable, autojump_clock: object
) -> None:
    async with workers(shop(durability)) as (first, second, witness):
        parked = await first.run(shop(durability))
        assert (parked.status, parked.ok, parked.sealed) == ("parked", False, False)
        (continuation,) = parked.continuations
        assert (continuation.signal, continuation.number) == ("go", 1)
        with pytest.raises(RunParked, match="is parked: it waits for 'go'"):
            parked.unwrap()
        seen = first.statistics()
        assert (seen.running, seen.admission.running, seen.admission.parked) == (0, 0, 0)
        assert [run.owner for run in witness.disk.runs.values()] == [""]
        assert witness.ended == []
        await trio.sleep(DAY / 2)
        assert await second.signal(parked.run_id, "go", "the boss")
        await trio.sleep(1)
        (result,) = witness.ended
        assert result.value == ("the boss", "ch_7")
        assert second.clerk is not None
        assert owners(result) == [second.clerk.owner]
        assert statuses(witness.disk) == ["done"]
        assert witness.world.calls.total() == 2


@BOTH
async def test_another_worker_takes_up_what_is_due(durability: Durable, autojump_clock: object) -> None:
    flow = shop(durability)
    witness = Witness()
    async with witness.open(flow) as first:
        parked = await first.run(flow)
    later = Witness(witness.disk, witness.world)
    async with later.open(flow, lease=LEASE):
        began = trio.current_time()
        while not later.ended:
            await trio.sleep(60)
    assert later.ended[0].run_id == parked.run_id
    assert later.ended[0].cause == Fail("expired", "go")
    assert trio.current_time() - began == pytest.approx(DAY, abs=120)
    assert len(later.world.undone) == 1


async def test_it_expires_at_its_time_and_takes_its_own_branch(autojump_clock: object) -> None:
    @step
    async def wait(paid: Paid) -> Said | Pause:
        return Pause("go", expires=100, expired="nobody came")

    flow = Flow("shop", [look, pay, wait, pay_more, tell], durability="sync")
    async with workers(flow) as (first, _, witness):
        parked = await first.run(flow)
        began = trio.current_time()
        while not witness.ended:
            await trio.sleep(0.01)
        assert trio.current_time() - began == pytest.approx(100, abs=0.5)
        assert witness.ended[0].value == ("nobody came", "ch_7")
        assert not await first.signal(parked.run_id, "go", "too late")


async def test_one_of_all_who_signal_is_taken(autojump_clock: object) -> None:
    taken: list[int] = []
    async with workers(shop()) as (first, second, witness):
        parked = await first.run(shop())

        async def give(runtime: Runtime, number: int) -> None:
            if await runtime.signal(parked.run_id, "go", str(number)):
                taken.append(number)

        assert not await first.signal(parked.run_id, "stop")
        assert not await first.signal("req_none", "go")
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(give, (first, second)[number % 2], number)
        await trio.sleep(1)
        assert len(taken) == 1
        assert witness.ended[0].value == (str(taken[0]), "ch_7")
        assert not await second.signal(parked.run_id, "go", "11")
        assert witness.world.calls.total() == 2


async def test_a_signal_for_one_pause_does_not_end_the_next(autojump_clock: object) -> None:
    @step
    async def twice() -> Said | Pause:
        return Pause("go", 100, resume=lambda first: Pause("go", 100, resume=lambda second: f"{first}{second}"))

    @step
    def end(said: Said) -> Done:
        return Done(said)

    flow = Flow("twice", [twice, end], durability="sync")
    async with workers(flow) as (first, second, witness):
        parked = await first.run(flow)
        assert await second.signal(parked.run_id, "go", "a", 1)
        await trio.sleep(1)
        assert not await second.signal(parked.run_id, "go", "x", 1)
        assert await first.signal(parked.run_id, "go", "b", 2)
        await trio.sleep(1)
        assert witness.ended[0].value == "ab"
        assert len(owners(witness.ended[0])) == 2


async def test_two_pauses_at_once_whichever_comes_first(autojump_clock: object) -> None:
    @step
    def one() -> Said | Pause:
        return Pause("one", 100)

    @step
    def two() -> Again | Pause:
        return Pause("two", 200)

    flow = Flow("both", [parallel(one, two), tell], durability="sync")
    async with workers(flow) as (first, second, witness):
        parked = await first.run(flow)
        assert [(one.signal, one.number) for one in parked.continuations] == [("one", 1), ("two", 2)]
        assert await first.signal(parked.run_id, "two", "2")
        assert await second.signal(parked.run_id, "one", "1")
        await trio.sleep(10)
        assert witness.ended[0].value == ("1", "2")
        parked = await first.run(flow)
        assert await second.signal(parked.run_id, "two", "2")
        await trio.sleep(200)
        assert witness.ended[1].cause == Fail("expired", "one")


# ---- time -----------------------------------------------------------------------------------


async def test_days_that_it_was_put_down_are_not_the_runs(autojump_clock: object) -> None:
    seen: list[float] = []

    @step
    async def note(said: Said, deadline: Deadline) -> Again:
        seen.append(deadline.remaining)
        return await charged(7)

    inner = Flow("inner", [ask, note], takes=[Paid], gives=[Said, Again], deadline=2.0)
    flow = Flow("shop", [look, pay, inner, tell], deadline=3.0, durability="sync")
    async with workers(flow) as (first, second, witness):
        parked = await first.run(flow)
        await trio.sleep(DAY / 3)
        await second.signal(parked.run_id, "go", "yes")
        await trio.sleep(1)
        (result,) = witness.ended
        assert result.value == ("yes", "ch_7")
        assert seen[0] == pytest.approx(2.0, abs=0.1)
        accounts = result.timeline.accounts
        assert accounts.parked == pytest.approx(DAY / 3 * 1e9, rel=1e-3)
        assert accounts.total - accounts.parked < 1e9


async def test_after_days_its_deadline_goes_on(autojump_clock: object) -> None:
    @step
    async def slowly(said: Said) -> Done:
        from zerver.effects import clock

        await clock.sleep(100)
        return Done(said)

    flow = Flow("slow", [look, pay, ask, slowly], deadline=5.0, durability="sync")
    async with workers(flow) as (first, second, witness):
        parked = await first.run(flow)
        await trio.sleep(DAY / 2)
        began = trio.current_time()
        await second.signal(parked.run_id, "go", "yes")
        while not witness.ended:
            await trio.sleep(0.1)
        assert witness.ended[0].status == "deadline"
        assert trio.current_time() - began == pytest.approx(5.0, abs=0.5)
        assert len(witness.world.undone) == 1


async def test_the_timeline_is_one_and_tells_who_went_on(autojump_clock: object) -> None:
    async with workers(shop()) as (first, second, witness):
        parked = await first.run(shop())
        await trio.sleep(600)
        await second.signal(parked.run_id, "go", "yes")
        await trio.sleep(1)
    text = format_timeline(witness.ended[0].timeline)
    assert "⏸ waits for 'go', for 24h00m at most" in text
    assert second.clerk is not None
    assert f"▶ taken up by {second.clerk.owner}" in text
    assert "▶ 'go' came after 10m" in text
    assert "parked 600" in text


async def test_a_run_of_two_processes_is_recorded_and_replayed_as_one(autojump_clock: object) -> None:
    async with workers(shop()) as (first, second, witness):
        parked = await first.run(shop())
        await trio.sleep(600)
        await second.signal(parked.run_id, "go", "yes")
        await trio.sleep(1)
    (result,) = witness.ended
    assert replay(compile_plan(shop()), result.timeline).same
    kept = decode_run(encode_run(result, began_unix_ns=0))
    assert replay(compile_plan(shop()), kept.timeline).same
    assert format_timeline(kept.timeline) == format_timeline(result.timeline)


# ---- crashes, and what is no crash ----------------------------------------------------------


@pytest.mark.parametrize("on_crash", ["resume", "compensate"])
async def test_to_be_put_down_is_no_crash(on_crash: Any, autojump_clock: object) -> None:
    flow = shop(on_crash=on_crash)
    async with workers(flow) as (first, second, witness):
        parked = await first.run(flow)
        await second.signal(parked.run_id, "go", "yes")
        await trio.sleep(1)
        assert witness.ended[0].value == ("yes", "ch_7")
        assert first.statistics().recovered + second.statistics().recovered == 0


async def test_a_run_that_dies_at_any_moment_around_its_pause_ends_as_it_would_have(autojump_clock: object) -> None:
    witness = Witness()
    async with witness.open(shop()) as runtime:
        parked = await runtime.run(shop())
        witness.saw("before the signal")
        await runtime.signal(parked.run_id, "go", "yes")
        witness.saw("after the signal")
        await trio.sleep(1)
        assert witness.ended[0].value == ("yes", "ch_7")
    for moment in witness.moments:
        later = Witness(moment.disk, moment.world)
        if not moment.disk.runs:
            continue
        async with later.open(shop()) as runtime:
            await trio.sleep(60)
            await runtime.signal(parked.run_id, "go", "yes")
            await trio.sleep(60)
            assert runtime.statistics().running == 0
        assert statuses(later.disk) == ["done"], moment.where
        assert not later.ended or later.ended[0].value == ("yes", "ch_7"), moment.where
        assert len(later.world.done) == 2
        assert all(count <= 2 for count in later.world.calls.values())


async def test_an_async_run_that_dies_after_it_was_taken_up_is_closed(autojump_clock: object) -> None:
    @step
    async def last(said: Said) -> Again:
        from zerver.effects import clock

        await clock.sleep(1000)
        return await charged(7)

    flow = Flow("shop", [look, pay, ask, last, tell], durability="async")
    witness = Witness()
    async with witness.open(flow) as runtime:
        parked = await runtime.run(flow)
        witness.saw("parked")
        await runtime.signal(parked.run_id, "go", "yes")
        await trio.sleep(10)
        witness.saw("taken up")
        await runtime.drain(2000)
    moments = {moment.where: moment for moment in witness.moments}
    assert statuses((await after_crash(moments["taken up"], flow)).disk) == ["unresolved"]
    assert statuses((await after_crash(moments["parked"], flow)).disk) == [""]


async def test_a_run_that_cannot_be_put_down_is_over(autojump_clock: object) -> None:
    from tests.runtime.test_durable import Broken
    from zerver.errors import JournalUnavailable
    from zerver.journal import open_memory_journal

    @step
    def wait() -> Said | Pause:
        return Pause("go", 10)

    for durability in ("sync", "async"):
        flow = Flow("wait", [wait], gives=[Said], durability=durability)
        witness = Witness()
        async with open_memory_journal(witness.disk) as journal:
            broken = Broken(journal, witness, {0: JournalUnavailable("away")})
            async with open_runtime(App(), journal=broken) as runtime:
                result = await runtime.run(flow)
        assert result.status == "cancelled"
        assert "away" in result.reason
        assert witness.disk.runs == {}


@BOTH
def test_whoever_is_cancelled_at_any_time_leaves_nothing_half_done(durability: Durable) -> None:
    """Over putting down and taking up. The journal is cut with it, so the next process has the last word."""
    seen: set[tuple[str, int]] = set()
    witnesses: list[Witness] = []
    flow = shop(durability)

    async def program() -> None:
        witnesses.append(Witness())
        async with witnesses[-1].open(flow) as runtime:
            parked = await runtime.run(flow)
            await trio.sleep(1)
            await runtime.signal(parked.run_id, "go", "yes")
            await trio.sleep(1)

    async def check() -> None:
        later = Witness(witnesses[-1].disk, witnesses[-1].world)
        async with later.open(flow) as runtime:
            await trio.sleep(25)
            for run_id in later.disk.runs:
                await runtime.signal(run_id, "go", "yes")
            await trio.sleep(25)
            assert runtime.statistics().running == 0
        (status,) = statuses(later.disk) or ["none"]
        seen.add((status, len(set(later.world.done) - later.world.undone)))

    cancel_sweep(program, check=check)
    ends = {("none", 0), ("cancelled", 0), ("done", 2)}
    assert {("none", 0), ("done", 2)} <= seen
    if durability == "sync":
        assert seen <= ends
    else:  # its last moments are not known, and then it is said to be unresolved
        assert {status for status, _ in seen} <= {"none", "cancelled", "done", "unresolved"}


# ---- real processes and files ---------------------------------------------------------------


@pytest.mark.parametrize("site", [*PARKED_SITES, "write.after", "claim.before", "claim.after", "end.before"])
def test_dying_here_loses_nothing_and_does_nothing_twice(site: str, tmp_path: Path) -> None:
    optimized = ["-O"] if not __debug__ else []
    ran = subprocess.run(
        [sys.executable, *optimized, "-m", "tests.runtime.crashing_parked", site, str(tmp_path)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != VARIABLE},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    deaths, _, _ = ran.stdout.partition(" ")
    assert int(deaths) >= 1


async def test_two_workers_on_one_file_take_up_each_others_runs(tmp_path: Path) -> None:
    ended: list[Result] = []
    got = trio.Event()

    def note(result: Result) -> None:
        ended.append(result)
        got.set()

    witness = Witness(Disk())
    path = tmp_path / "journal.db"
    handlers = witness.handlers()
    async with (
        open_sqlite_journal(path) as one,
        open_sqlite_journal(path) as two,
        open_runtime(App(), handlers=handlers, journal=one, flows=[shop()], observers=[note]) as first,
        open_runtime(App(), handlers=handlers, journal=two, flows=[shop()], observers=[note]) as second,
    ):
        for runtime, other in ((first, second), (second, first)):
            got = trio.Event()
            parked = await runtime.run(shop())
            assert await other.signal(parked.run_id, "go", "yes")
            assert not await runtime.signal(parked.run_id, "go", "yes")
            await got.wait()
            assert ended[-1].value == ("yes", "ch_7")
            assert other.clerk is not None
            assert owners(ended[-1]) == [other.clerk.owner]
