"""A run that is put down can be cancelled, whoever has put it down: it is taken up, and undone in reverse."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.runtime.dying import Witness, charged, statuses
from tests.runtime.test_parked import BOTH, DAY, LEASE, Again, Durable, Said, owners, shop, workers
from zerver import App, Done, Fail, Flow, Pause, parallel, step
from zerver.core import timeline as t
from zerver.errors import JournalUnavailable
from zerver.journal import open_memory_journal, open_postgres_journal, open_sqlite_journal
from zerver.runtime import Result, open_runtime
from zerver.runtime.journal import Entry, Journal
from zerver.runtime.judging import judge


@step
async def pay_first() -> None:
    await charged(1)


@step
async def pay_second() -> None:
    await charged(2)


@step
def end() -> Done:
    return Done("never")


@step
def wait() -> Pause | None:
    return Pause("go", DAY)


def twice(durability: Durable = "sync") -> Flow:
    return Flow("twice", [pay_first, pay_second, wait, end], durability=durability)


@BOTH
@pytest.mark.parametrize("by", [0, 1])
async def test_what_it_has_done_is_undone_in_reverse(durability: Durable, by: int, autojump_clock: object) -> None:
    flow = twice(durability)
    async with workers(flow) as (*runtimes, witness):
        parked = await runtimes[0].run(flow)
        assert await runtimes[by].cancel(parked.run_id, "the customer has gone")
        await trio.sleep(1)
        (result,) = witness.ended
        assert (result.status, result.ending.reason) == ("cancelled", "the customer has gone")
        assert not result.unresolved
        assert statuses(witness.disk) == ["cancelled"]
        entries = [subject for kind, _, subject, _ in result.timeline.records if kind == t.UNDO]
        assert [entry.call.effect.args for entry in entries] == [(2,), (1,)]
        clerk = runtimes[by].clerk
        assert clerk is not None
        assert owners(result) == [clerk.owner]
        assert len(witness.world.undone) == 2
        assert not await runtimes[by].cancel(parked.run_id, "again")
        assert not await runtimes[by].signal(parked.run_id, "go")


async def test_one_that_another_process_has_put_down_is_undone_by_whoever_looks(autojump_clock: object) -> None:
    witness = Witness()
    async with witness.open(twice()) as runtime:
        parked = await runtime.run(twice())
        async with open_memory_journal(witness.disk) as journal:  # as `zerver sagas cancel` does
            assert await journal.cancel(parked.run_id, journal.notation.seal(b'"by hand"'))
        await trio.sleep(10)
        assert witness.ended[0].ending.reason == "by hand"
    assert statuses(witness.disk) == ["cancelled"]


async def test_what_would_become_of_it_is_that_it_is_undone(autojump_clock: object) -> None:
    witness = Witness()
    async with witness.open(twice()) as runtime:
        parked = await runtime.run(twice())
        successor = runtime.successor
        assert successor is not None
        assert await successor.wakes.cancel(parked.run_id, "enough")  # and nobody has taken it up yet
        async with open_memory_journal(witness.disk) as journal:
            stored = await journal.read(parked.run_id)
        assert stored is not None
        assert judge(stored, successor.versions, successor.reader).fate == "compensated"


async def test_the_first_that_comes_stands(autojump_clock: object) -> None:
    async with workers(twice()) as (first, second, witness):
        signalled, cancelled = await first.run(twice()), await first.run(twice())
        assert second.successor is not None
        assert await second.successor.wakes.give(signalled.run_id, "go", None)  # and nobody has taken it up yet
        assert not await first.cancel(signalled.run_id, "too late")
        assert await second.successor.wakes.cancel(cancelled.run_id, "enough")
        assert not await first.signal(cancelled.run_id, "go")
        await trio.sleep(LEASE)
        assert sorted(result.status for result in witness.ended) == ["cancelled", "done"]
        expired = await first.run(twice())
        witness.disk.runs[expired.run_id].wakes_unix_ns = 1  # it is due, and nobody has looked
        assert not await first.cancel(expired.run_id, "too late")


async def test_one_under_way_is_cut_here_and_not_from_elsewhere(autojump_clock: object) -> None:
    async with workers(shop()) as (first, second, witness):

        async def run() -> None:
            await first.run(shop())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.sleep(0.015)
            (run_id,) = witness.disk.runs
            assert not await second.cancel(run_id, "from elsewhere")
            assert await first.cancel(run_id, "from here")
        assert witness.ended[0].ending.reason == "from here"
        assert not await first.cancel("req_none", "nobody")


async def test_without_a_journal_a_parked_run_is_cancelled_in_memory(autojump_clock: object) -> None:
    async with open_runtime(App(), handlers=Witness().handlers()) as runtime, trio.open_nursery() as nursery:
        run_id: str = await nursery.start(partial(runtime.run, Flow("waits", [wait, end])))
        await trio.sleep(1)
        assert await runtime.cancel(run_id, "enough")
        assert not await runtime.cancel("req_none", "enough")


async def test_at_whatever_moment_it_is_cancelled_it_ends_as_was_said(autojump_clock: object) -> None:
    for turns in range(40):
        async with workers(twice()) as (first, _, witness):

            async def run(runtime: Any = first) -> None:
                await runtime.run(twice())

            said = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await trio.sleep(0.04)  # both charges are made by then
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                said = await first.cancel(next(iter(witness.disk.runs)), "enough")
            await trio.sleep(5)
            assert said
            assert [result.status for result in witness.ended] == ["cancelled"], turns
            assert len(witness.world.undone) == 2


@step
def sold_out() -> Fail:
    return Fail.conflict("stock")


async def test_one_whose_end_is_decided_is_not_cancelled_any_more(autojump_clock: object) -> None:
    flow = Flow("sold_out", [pay_first, sold_out], durability="sync")
    async with workers(flow) as (first, _, witness):

        async def run() -> None:
            await first.run(flow)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while not any(moment.where == "before refund" for moment in witness.moments):
                await trio.sleep(0.001)
            (run_id,) = witness.disk.runs
            assert not await first.cancel(run_id, "too late")
            assert first.cancel_nowait(run_id, "too late")  # it is under way
        assert [(result.status, result.reason) for result in witness.ended] == [("failed", "")]
        assert len(witness.world.undone) == 1


async def test_whoever_asks_again_while_it_is_undone_hears_that_it_is_cancelled(autojump_clock: object) -> None:
    async with workers(twice()) as (first, second, witness):
        parked = await first.run(twice())
        witness.moments.clear()
        assert await first.cancel(parked.run_id, "enough")
        while not any(moment.where == "before refund" for moment in witness.moments):
            await trio.sleep(0.001)
        assert await first.cancel(parked.run_id, "again")
        assert await second.cancel(parked.run_id, "and again")  # it is under way, and not here
        await trio.sleep(1)
        assert [result.ending.reason for result in witness.ended] == ["enough"]


@BOTH
async def test_one_that_is_being_put_down_is_cancelled_or_signalled_and_never_both(
    durability: Durable, autojump_clock: object
) -> None:
    flow = twice(durability)
    async with workers(flow) as (first, second, witness):
        assert first.clerk is not None
        journal: Any = first.clerk.journal
        write = journal.write

        async def write_slowly(entry: Entry) -> None:
            await write(entry)
            with trio.CancelScope(shield=True):
                await trio.sleep(0.5)  # it is on the disk, and the answer is on its way

        async def run() -> None:
            await first.run(flow)

        said: list[bool] = []

        async def cancel() -> None:
            said.append(await first.cancel(run_id, "enough"))

        journal.write = write_slowly
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while not any(run.is_put_down for run in witness.disk.runs.values()):
                await trio.sleep(0.01)
            (run_id,) = witness.disk.runs
            nursery.start_soon(cancel)
            await trio.sleep(0.01)
            taken = await second.signal(run_id, "go")
        await trio.sleep(5)
        assert said == [not taken]
        assert [result.status for result in witness.ended] == (["done"] if taken else ["cancelled"])


async def test_a_worker_that_dies_while_it_undoes_leaves_it_to_the_next(autojump_clock: object) -> None:
    witness = Witness()
    async with witness.open(twice()) as first:
        parked = await first.run(twice())
        witness.moments.clear()
        assert await first.cancel(parked.run_id, "enough")
        await trio.sleep(1)
    assert witness.moments
    for moment in witness.moments:
        heir = Witness(moment.disk, moment.world)
        async with heir.open(twice()):
            await trio.sleep(60)
        assert statuses(heir.disk) == ["cancelled"], moment.where
        assert len(heir.world.undone) == 2
        assert all(result.ending.reason == "enough" for result in heir.ended)  # none: the end was on the disk


async def test_while_the_journal_is_away_nobody_can_say(autojump_clock: object) -> None:
    async with workers(twice()) as (first, _, witness):
        parked = await first.run(twice())
        assert first.clerk is not None

        async def away(run_id: str, reason: bytes) -> bool:
            raise JournalUnavailable("away")

        journal: Any = first.clerk.journal
        journal.cancel = away
        with pytest.raises(JournalUnavailable):
            await first.cancel(parked.run_id, "enough")
        del journal.cancel
        assert await first.cancel(parked.run_id, "enough")
        await trio.sleep(1)
        assert statuses(witness.disk) == ["cancelled"]


async def test_whoever_heard_no_answer_asks_again_and_hears_that_it_is_cancelled(autojump_clock: object) -> None:
    async with workers(twice()) as (first, _, witness):
        parked = await first.run(twice())
        assert first.clerk is not None
        journal: Any = first.clerk.journal
        real = journal.cancel

        async def unheard(run_id: str, reason: bytes) -> bool:
            assert await real(run_id, reason)
            raise JournalUnavailable("the answer was lost")

        journal.cancel = unheard
        with pytest.raises(JournalUnavailable):
            await first.cancel(parked.run_id, "enough")
        del journal.cancel
        assert await first.cancel(parked.run_id, "again")
        await trio.sleep(1)
        assert [result.ending.reason for result in witness.ended] == ["enough"]
        assert not await first.cancel(parked.run_id, "it is over")


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
async def test_on_every_journal(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    opened: dict[str, Callable[[], AbstractAsyncContextManager[Journal]]] = {
        "memory": open_memory_journal,
        "sqlite": lambda: open_sqlite_journal(tmp_path / "runs.journal"),
        "postgres": lambda: open_postgres_journal(request.getfixturevalue("conninfo"), patience=20.0),
    }
    ended: list[Result] = []
    over = trio.Event()

    def observe(result: Result) -> None:
        ended.append(result)
        over.set()

    witness = Witness()
    with trio.fail_after(60):
        async with (
            opened[kind]() as journal,
            open_runtime(
                App(), handlers=witness.handlers(), journal=journal, flows=[twice()], observers=[observe]
            ) as runtime,
        ):
            parked = await runtime.run(twice())
            assert await journal.parked() == 1
            assert await runtime.cancel(parked.run_id, "enough")
            await over.wait()
            stored = None
            while stored is None or not stored.status:
                stored = await journal.read(parked.run_id)
            assert (stored.status, await journal.parked()) == ("cancelled", 0)
    assert ended[0].ending.reason == "enough"
    assert len(witness.world.undone) == 2


# ---- a second pause -------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("by", [0, 1])
async def test_a_signal_that_comes_while_another_is_handled_wakes_the_run_at_once(
    durability: Durable, by: int, autojump_clock: object
) -> None:
    @step
    def one() -> Said | Pause:
        return Pause("one", DAY)

    @step
    async def pay_for_one(said: Said) -> None:
        await charged(5)

    @step
    def two() -> Again | Pause:
        return Pause("two", DAY)

    @step
    def both(said: Said, again: Again) -> Done:
        return Done((said, again))

    lines = parallel(Flow("first", [one, pay_for_one], gives=[Said]), two)
    flow = Flow("both", [lines, both], durability=durability)
    async with workers(flow) as (*runtimes, witness):
        parked = await runtimes[0].run(flow)
        assert await runtimes[0].signal(parked.run_id, "one", "1")
        await trio.sleep(0.005)  # it is carried on: its charge takes 0.02 s
        assert witness.disk.runs[parked.run_id].owner
        assert await runtimes[by].signal(parked.run_id, "two", "2")
        await trio.sleep(1)
        assert [result.value for result in witness.ended] == [("1", "2")]


# ---- counted --------------------------------------------------------------------------------


async def test_parked_runs_are_counted_seldom(autojump_clock: object) -> None:
    async with workers(twice()) as (first, _, witness):
        await trio.sleep(1)
        assert first.statistics().open_parked == 0
        parked = await first.run(twice())
        await first.run(twice())
        assert first.statistics().open_parked == 0
        await trio.sleep(LEASE)
        assert first.statistics().open_parked == 2
        await first.cancel(parked.run_id, "enough")
        await trio.sleep(LEASE)
        assert first.statistics().open_parked == 1
        assert len(witness.ended) == 1
