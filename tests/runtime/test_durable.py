"""A durable run is on the disk before it does anything that matters; without the disk it does nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
import trio
import trio.lowlevel

from tests.runtime.dying import (
    SHOP,
    Other,
    Paid,
    Watched,
    Witness,
    World,
    after_crash,
    charge,
    look,
    pay,
    pay_more,
    rate,
    run_once,
    statuses,
    tell,
)
from zerver import (
    App,
    Done,
    Flow,
    IdempotencyKey,
    Slot,
    effect,
    join,
    step,
)
from zerver.core import timeline as t
from zerver.errors import DefinitionError, JournalUnavailable, LeaseLost
from zerver.journal import open_memory_journal
from zerver.runtime import Result, Runtime, open_runtime
from zerver.runtime.journal import Entry, Journal, Page, StoredRun

# ---- what is on the disk, and when ----------------------------------------------------------


async def test_a_run_that_writes_nothing_is_not_in_the_journal(autojump_clock: object) -> None:
    @step
    async def see() -> Done:
        return Done(await rate())

    witness, result = await run_once(Flow("look", [see], durability="sync"))
    assert result.value == 3
    assert witness.disk.runs == {}


async def test_a_run_of_two_writes_waits_for_the_disk_three_times(autojump_clock: object) -> None:
    """Each write is announced before it starts, together with what came of the one before."""
    witness, _ = await run_once(SHOP)
    assert [moment.where for moment in witness.moments] == [
        "before opening", "after opening", "before charge", "after charge",
        "before page 7 ", "after page 7 ", "before charge", "after charge",
        "before page 11 done", "after page 11 done",
    ]  # fmt: skip


async def test_what_is_async_is_written_behind_and_nobody_waits(autojump_clock: object) -> None:
    flow = Flow("shop", [look, pay, wait_long, tell], durability="async")
    witness = Witness()
    async with trio.open_nursery() as nursery, witness.open(flow) as runtime:
        nursery.start_soon(runtime.run, flow)
        await trio.sleep(1)
        assert statuses(witness.disk) == [""]
        assert t.COMMITTED.encode() in b"".join(next(iter(witness.disk.runs.values())).stored().lines)
        await trio.sleep(100)
        assert statuses(witness.disk) == ["done"]
    assert not [moment for moment in witness.moments if "page" in moment.where or "opening" in moment.where]


async def test_an_async_run_that_is_over_at_once_costs_no_entry(autojump_clock: object) -> None:
    flow = Flow("shop", [look, pay, pay_more, tell], durability="async")
    witness, result = await run_once(flow)
    assert result.ok
    assert witness.disk.runs == {}


async def test_an_async_run_that_has_died_is_closed_and_not_carried_on(autojump_clock: object) -> None:
    flow = Flow("shop", [look, pay, wait_long, tell], durability="async")
    witness = Witness()
    async with trio.open_nursery() as nursery, witness.open(flow) as runtime:
        nursery.start_soon(runtime.run, flow)
        await trio.sleep(1)
        witness.saw("later")
        nursery.cancel_scope.cancel()
    later = await after_crash(witness.moments[-1], flow)
    assert statuses(later.disk) == ["unresolved"]
    assert later.world.calls == witness.moments[-1].world.calls


@step
async def wait_long(paid: Paid) -> Other:
    return str(await join.settle(rate(), slowly())) + paid


@effect(kind="bank.slowly", access="read")
async def slowly() -> None:
    await trio.sleep(100)


# ---- the journal is away, or another worker has the run -------------------------------------


class Broken(Watched):
    """A journal that raises at some of its writes. raises: at which, counted from 0, and what."""

    def __init__(self, journal: Journal, witness: Witness, raises: Mapping[int, Exception]) -> None:
        super().__init__(journal, witness)
        self.raises = raises
        self.count = -1

    async def write(self, entry: Entry) -> None:
        self.count += 1
        error = self.raises.get(self.count)
        if error is not None:
            await trio.lowlevel.checkpoint()
            raise error
        await super().write(entry)


@asynccontextmanager
async def open_broken(flow: Flow, raises: Mapping[int, Exception], witness: Witness) -> AsyncIterator[Runtime]:
    async with (
        open_memory_journal(witness.disk) as journal,
        open_runtime(
            App(), handlers=witness.handlers(), journal=Broken(journal, witness, raises), flows=[flow]
        ) as runtime,
    ):
        yield runtime


async def test_a_journal_that_is_away_from_the_start_lets_nothing_happen(autojump_clock: object) -> None:
    witness = Witness()
    away = JournalUnavailable("the disk is full")
    async with open_broken(SHOP, dict.fromkeys(range(20), away), witness) as runtime:
        result = await runtime.run(SHOP)
    assert result.status == "cancelled"
    assert result.reason == "it could not be written down: the disk is full"
    assert not witness.world.calls
    assert witness.disk.runs == {}


@step
async def look_twice(paid: Paid) -> None:
    assert paid
    await slowly()


#: Its second write is another page than what came of the first one.
SLOW_SHOP = Flow("shop", [look, pay, look_twice, pay_more, tell], durability="sync")


@pytest.mark.parametrize(("flow", "at"), [(SHOP, 1), (SLOW_SHOP, 1), (SLOW_SHOP, 2)])
async def test_a_journal_that_goes_away_ends_the_run_which_is_undone_and_told_later(
    flow: Flow, at: int, autojump_clock: object
) -> None:
    witness = Witness()
    away = dict.fromkeys(range(at, at + 2), JournalUnavailable("the disk is full"))
    async with open_broken(flow, away, witness) as runtime:
        result = await runtime.run(flow)
        assert result.status == "cancelled"
        assert not result.unresolved
        assert not witness.world.undone, "it was undone before the journal knew"
        await trio.sleep(30)
        assert statuses(witness.disk) == ["cancelled"]
    assert len(witness.world.undone) == len(witness.world.done) == 1


async def test_a_journal_that_does_not_answer_is_waited_for_less_than_a_second(autojump_clock: object) -> None:
    witness = Witness()
    flow = Flow("shop", [look, pay, pay_more, tell], durability="sync")

    class Silent(Watched):
        async def write(self, entry: Entry) -> None:
            await trio.sleep_forever()

    async with (
        open_memory_journal() as journal,
        open_runtime(App(), handlers=witness.handlers(), journal=Silent(journal, witness)) as runtime,
    ):
        began = trio.current_time()
        result = await runtime.run(flow)
        assert trio.current_time() - began < 1
    assert result.status == "cancelled"
    assert not witness.world.calls


async def test_an_answer_that_comes_too_late_is_none(autojump_clock: object) -> None:
    """The page was written, after a second: the run had been called over by then, is undone, and that once."""

    class Late(Watched):
        async def write(self, entry: Entry) -> None:
            if isinstance(entry, Page) and entry.first == 7:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)
            await super().write(entry)

    witness = Witness()
    async with (
        open_memory_journal(witness.disk) as journal,
        open_runtime(App(), handlers=witness.handlers(), journal=Late(journal, witness), flows=[SHOP]) as runtime,
    ):
        result = await runtime.run(SHOP)
        assert (result.status, result.reason) == ("cancelled", "the journal could not be reached")
        assert not witness.world.undone
        await trio.sleep(30)
    assert statuses(witness.disk) == ["cancelled"]
    assert len(witness.world.undone) == len(witness.world.done) == 1
    assert witness.world.calls.total() == 2


async def test_an_end_that_could_not_be_written_is_not_answered_as_done(autojump_clock: object) -> None:
    witness = Witness()
    async with open_broken(SHOP, {2: JournalUnavailable("the disk is full")}, witness) as runtime:
        result = await runtime.run(SHOP)
        assert result.status == "cancelled"
        await trio.sleep(10)
        assert statuses(witness.disk) == ["done"]


@pytest.mark.parametrize(("flow", "at"), [(SHOP, 1), (SHOP, 2), (SLOW_SHOP, 1), (SLOW_SHOP, 2)])
async def test_a_run_that_another_worker_has_stops_where_it_is(flow: Flow, at: int, autojump_clock: object) -> None:
    witness = Witness()
    async with open_broken(flow, {at: LeaseLost("taken over")}, witness) as runtime:
        result = await runtime.run(flow)
    assert result.status == "cancelled"
    assert result.reason == "another worker carries it on"
    assert not witness.world.undone
    assert witness.world.calls.total() == (2 if flow is SHOP and at == 2 else 1)
    assert statuses(witness.disk) == [""]


async def test_a_worker_that_stood_still_touches_nothing_any_more(autojump_clock: object) -> None:
    """Its lease lapses in the midst of a write; another one carries the run on; the first one wakes up."""
    zombie, world = Witness(), World()
    zombie.world = world
    asleep, woken = trio.Event(), trio.Event()
    sleepy = zombie.handlers()
    charges = sleepy["bank.charge"]

    async def stands_still(cents: int, *, key: IdempotencyKey) -> str:
        made = await charges(cents, key=key)
        asleep.set()
        await woken.wait()
        return str(made)

    sleepy["bank.charge"] = stands_still
    results: list[Result] = []
    async with (
        open_memory_journal(zombie.disk) as journal,
        open_runtime(App(), handlers=sleepy, journal=Frozen(journal, zombie), flows=[SHOP]) as runtime,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            results.append(await runtime.run(SHOP))

        nursery.start_soon(ask)
        await asleep.wait()
        successor = Witness(zombie.disk, world)
        async with successor.open(SHOP):
            await trio.sleep(60)
        assert statuses(zombie.disk) == ["done"]
        calls = world.calls.copy()
        woken.set()
    assert results[0].reason == "another worker carries it on"
    assert world.calls == calls
    assert world.undone == set()


class Frozen(Watched):
    """The journal of a worker that says but once that it lives."""

    def __init__(self, journal: Journal, witness: Witness) -> None:
        super().__init__(journal, witness)
        self.renewed = False
        self.renew, self.claim = self._renew, self._claim

    async def _renew(self, owner: str, lease_seconds: float) -> None:
        if not self.renewed:
            self.renewed = True
            await self._journal.renew(owner, lease_seconds)

    async def _claim(self, owner: str, count: int) -> list[StoredRun]:
        await trio.sleep(60)
        return []


# ---- definitions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"durability": "always"}, "durability='always' is unknown"),
        ({"durability": "sync", "on_crash": "weep"}, "on_crash='weep' is unknown"),
        ({"on_crash": "compensate"}, "on_crash='compensate' with durability='off'"),
        ({"durability": "async", "on_crash": "compensate"}, "nobody could know what to undo"),
    ],
)
def test_nonsense_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        Flow("shop", [look, pay, pay_more, tell], **how)


async def test_a_durable_flow_without_a_journal_is_refused_by_name(autojump_clock: object) -> None:
    async with open_runtime(App()) as runtime:
        with pytest.raises(DefinitionError, match=r"flow 'shop' has durability='sync', but there is no journal"):
            await runtime.run(SHOP)
    app = App()
    app.route("POST", "/shop", SHOP)
    with pytest.raises(DefinitionError, match="journal="):
        async with open_runtime(app, handlers=Witness().handlers()):
            pytest.fail("it was opened")


Card = Annotated[str, Slot("card", secret=True)]


async def test_secrets_are_not_kept_in_the_clear(autojump_clock: object) -> None:
    @step
    async def ask() -> Card:
        return await charge(1)

    @step
    def end(card: Card) -> Done:
        return Done()

    @step
    def nothing() -> Done:
        return Done()

    flow = Flow("shop", [ask, end], durability="sync")
    witness = Witness()
    async with witness.open() as runtime:
        with pytest.raises(DefinitionError, match="secret slot 'card'"):
            await runtime.run(flow)
    app = App()
    app.route("POST", "/shop", Flow("large", [nothing], degrade=flow))
    async with open_memory_journal() as journal:
        with pytest.raises(DefinitionError, match="secret slot 'card'"):
            async with open_runtime(app, journal=journal, handlers=witness.handlers()):
                pytest.fail("it was opened")
