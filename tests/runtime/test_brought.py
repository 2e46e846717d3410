"""What came of a write is on the disk before anything else of its run can be seen, and is not left lying about while
the run waits for something else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.runtime.dying import FLOWS, Watched, Witness, charge, charged, no_more, post, refund, statuses
from zerver import App, Flow, IdempotencyKey, Pause, effect, join, parallel, step
from zerver.core import timeline as t
from zerver.core.stages import Stage
from zerver.errors import JournalUnavailable, LeaseLost
from zerver.journal import Disk, open_memory_journal
from zerver.journal.lines import Lines
from zerver.runtime import Result, open_runtime
from zerver.runtime.journal import Entry, Journal, Page
from zerver.testing import cancel_sweep


@effect(kind="bank.slowly", access="read")
async def slowly(seconds: float = 100.0) -> str:
    await trio.sleep(seconds)
    return "seen"


class Strange:
    """No field of it is declared: nobody could read it again."""


@effect(kind="bank.strange", access="write")
async def strange() -> object:
    await trio.lowlevel.checkpoint()
    return Strange()


@effect(kind="bank.oddly", access="read")
async def oddly() -> object:
    return Strange()  # at once: nobody has the time to bring anything meanwhile


def told(disk: Disk) -> list[str]:
    """The calls whose outcome is on the disk."""
    reader = Lines().reader()
    timelines = [reader.read(run.stored()) for run in disk.runs.values()]
    return [
        f"{call.step}:{call.ordinal}" for one in timelines for kind, _, call, _ in one.records if kind == t.COMMITTED
    ]


# ---- nobody waits, and it is there all the same ---------------------------------------------


@step
async def buy() -> None:
    await charged(1)


@step
async def see() -> None:
    await slowly()


@step
async def see_briefly() -> None:
    await slowly(0.03)


@step
async def see_both() -> None:
    await join.all(slowly(), slowly(50.0))


@step
async def buy_beside() -> None:
    await join.settle(charged(1), slowly())


WAITING: dict[str, list[Stage]] = {
    "a read": [buy, see],
    "a join": [buy, see_both],
    "a member of its join": [buy_beside],
    "another line": [parallel(buy, see)],
}


@pytest.mark.parametrize("name", WAITING)
async def test_it_is_brought_while_the_run_waits(name: str, autojump_clock: object) -> None:
    witness, flow = Witness(), Flow("shop", WAITING[name], durability="sync")
    async with witness.open(flow) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run, flow)
        await trio.sleep(1)
        assert len(told(witness.disk)) == 1
    assert statuses(witness.disk) == ["done"]


async def test_it_is_brought_while_a_step_computes_in_a_thread() -> None:
    """In real time, since a mock clock knows no threads."""
    witness, go_on = Witness(), threading.Event()
    is_told: list[bool] = []

    @step(offload="thread")
    def heavy() -> None:
        is_told.append(go_on.wait(60))

    class Telling(Watched):
        async def write(self, entry: Entry) -> None:
            await super().write(entry)
            if told(witness.disk):
                go_on.set()

    async with (
        open_memory_journal(witness.disk) as journal,
        open_runtime(App(), handlers=witness.handlers(), journal=Telling(journal, witness)) as runtime,
    ):
        await runtime.run(Flow("shop", [buy, heavy], durability="sync"))
    assert is_told == [True]


async def test_it_is_brought_though_who_would_have_taken_it_along_is_cut(autojump_clock: object) -> None:
    """The charge of one line is answered just as the intent of another one goes to the disk, and that is not waited for
    any more: in whatever order the two are woken.
    """

    @step
    async def left() -> None:
        await slowly(0.025)
        await join.race(slowly(0.001), charged(2))

    @step
    async def right() -> None:
        await charged(1)
        await slowly()

    class Slow(Watched):
        async def write(self, entry: Entry) -> None:
            await trio.sleep(0.005)
            await super().write(entry)

    flow = Flow("shop", [parallel(left, right)], durability="sync")
    for _ in range(10):
        witness = Witness()
        async with (
            open_memory_journal(witness.disk) as journal,
            open_runtime(App(), handlers=witness.handlers(), journal=Slow(journal, witness)) as runtime,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(runtime.run, flow)
            await trio.sleep(1)
            assert witness.world.calls.total() == 1
            assert len(told(witness.disk)) == 1


# ---- when it cannot be brought --------------------------------------------------------------


class Mute(Watched):
    """Pages of the first second get no answer."""

    async def write(self, entry: Entry) -> None:
        if isinstance(entry, Page) and trio.current_time() < 1:
            await self.hear_nothing()
        await super().write(entry)

    async def hear_nothing(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.5)
        raise JournalUnavailable("mute")


class MuteAndManifold(Mute):
    async def hear_nothing(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)


async def run_mutely(mute: type[Mute], witness: Witness, flow: Flow) -> Result:
    async with (
        open_memory_journal(witness.disk) as journal,
        open_runtime(App(), handlers=witness.handlers(), journal=mute(journal, witness), flows=[flow]) as runtime,
    ):
        result = await runtime.run(flow)
        await trio.sleep(60)
        return result


async def test_what_came_of_another_line_is_known_when_the_journal_is_back(autojump_clock: object) -> None:
    """It came while a page got no answer, and nobody could be asked for it: it would be unresolved else."""

    @step
    async def left() -> None:
        await charge(1).compensate(refund)

    @step
    async def right() -> None:
        await slowly(0.015)
        await charged(2)

    witness = Witness()
    result = await run_mutely(Mute, witness, Flow("shop", [parallel(left, right)], durability="sync"))
    assert result.reason == "the journal could not be reached"
    assert statuses(witness.disk) == ["cancelled"]
    assert len(witness.world.undone) == len(witness.world.done) == 1


async def test_a_journal_with_nurseries_is_away_and_no_deadline_has_passed(autojump_clock: object) -> None:
    @step
    async def post_twice() -> None:
        await post("one")
        await post("two")

    result = await run_mutely(MuteAndManifold, Witness(), Flow("shop", [post_twice], durability="sync"))
    assert (result.status, result.reason) == ("cancelled", "the journal could not be reached")


class Lost(Watched):
    """The lease lapses, and whoever asks for what has become of the run is told that it is another worker's."""

    def __init__(self, journal: Journal, witness: Witness) -> None:
        super().__init__(journal, witness)
        self.is_known = trio.Event()
        self._renew, self.renew = journal.renew, self._renew_late
        self._late_at = trio.current_time() + 0.03

    async def _renew_late(self, owner: str, lease_seconds: float) -> None:
        if trio.current_time() > self._late_at - 0.03:
            await trio.sleep_until(self._late_at)
        await self._renew(owner, lease_seconds)

    async def write(self, entry: Entry) -> None:
        if isinstance(entry, Page) and (self.is_known.is_set() or not entry.lines):
            self.is_known.set()
            await trio.lowlevel.checkpoint()
            raise LeaseLost("taken over")
        await super().write(entry)


@step
def park() -> Pause:
    return Pause("go", expires=100)


@pytest.mark.parametrize("last", [no_more, park])
async def test_a_run_that_is_lost_as_it_goes_on_is_neither_undone_nor_parked(
    last: Stage, autojump_clock: object
) -> None:
    """In whatever order it and the clerk are woken."""

    @step
    async def go_on_when_it_is_known() -> None:
        await oddly()

    flow = Flow("shop", [parallel(buy, go_on_when_it_is_known), last], durability="sync")
    for _ in range(10):
        witness = Witness()
        async with open_memory_journal(witness.disk) as journal:
            lost = Lost(journal, witness)
            handlers = {**witness.handlers(), "bank.oddly": lost.is_known.wait}
            async with open_runtime(App(), handlers=handlers, journal=lost, lease=0.03) as runtime:
                result = await runtime.run(flow)
        assert (result.reason, witness.world.undone) == ("another worker carries it on", set())


# ---- before anything can be seen ------------------------------------------------------------


def observed(witness: Witness, kind: str, seen: Callable[[str], None]) -> dict[str, Callable[..., Any]]:
    """The handlers of a world; `seen` is called with the place of each call of this kind before it is performed."""
    handlers = witness.handlers()
    real = handlers[kind]

    async def handle(*args: Any, key: IdempotencyKey) -> Any:
        seen(key.partition(":")[2])
        return await real(*args, key=key)

    return {**handlers, kind: handle}


async def run(witness: Witness, flow: Flow, handlers: dict[str, Callable[..., Any]]) -> Result:
    async with (
        open_memory_journal(witness.disk) as journal,
        open_runtime(App(), handlers=handlers, journal=journal) as runtime,
    ):
        return await runtime.run(flow)


BEFORE = {
    "one after the other": {"pay:1": set(), "pay_more:1": {"pay:1"}},
    "a read in between": {"pay:1": set(), "pay_more:1": {"pay:1"}},
    "at once": {"left:1": set(), "right:1": set(), "right:2": {"right:1"}},
    "joins undone": {"all_of_it:1.0": set(), "all_of_it:1.2": set(), "hedged:1.0": {"all_of_it:1.0", "all_of_it:1.2"}},
}


@pytest.mark.parametrize("name", BEFORE)
async def test_no_write_starts_before_what_came_of_earlier_ones_of_its_line_is_there(
    name: str, autojump_clock: object
) -> None:
    witness, seen = Witness(), dict[str, set[str]]()

    def look_at_the_disk(place: str) -> None:
        seen.setdefault(place, set(told(witness.disk)))

    flow = Flow("shop", FLOWS[name], durability="sync")
    await run(witness, flow, observed(witness, "bank.charge", look_at_the_disk))
    assert seen.keys() == BEFORE[name].keys()
    assert all(due <= seen[place] for place, due in BEFORE[name].items()), seen


@step
async def race_it() -> None:
    await join.race(slowly(0.015), charged(1))


@step
async def race_it_hedged() -> None:
    await join.race(slowly(0.015), join.hedge(charged(1), after=0.01, limit=2))


@pytest.mark.parametrize("raced", [race_it, race_it_hedged])
async def test_no_read_starts_before_it_is_there_that_an_earlier_write_was_cut(
    raced: Stage, autojump_clock: object
) -> None:
    witness, seen = Witness(), list[int]()

    async def on_oddly() -> None:
        reader = Lines().reader()
        (timeline,) = [reader.read(one.stored()) for one in witness.disk.runs.values()]
        seen.append([kind for kind, *_ in timeline.records].count(t.DOUBTED))

    @step
    async def look() -> None:
        await oddly()

    flow = Flow("shop", [raced, look], durability="sync")
    await run(witness, flow, {**witness.handlers(), "bank.oddly": on_oddly})
    assert seen == [1]


async def test_nothing_is_undone_before_what_is_to_be_undone_is_there(autojump_clock: object) -> None:
    witness, seen = Witness(), list[list[str]]()
    flow = Flow("shop", [buy, no_more], durability="sync")
    await run(witness, flow, observed(witness, "bank.refund", lambda _: seen.append(told(witness.disk))))
    assert seen == [["buy:1"]]
    assert len(witness.world.undone) == 1


async def test_what_cannot_be_kept_is_a_defect_before_the_next_step(autojump_clock: object) -> None:
    witness, stepped = Witness(), list[int]()

    @step
    async def ask() -> None:
        await strange()

    @step
    def go_on() -> None:
        stepped.append(1)

    result = await run(witness, Flow("shop", [buy, ask, go_on], durability="sync"), witness.handlers())
    assert result.status == "defect"
    assert "could not be read again" in str(result.ending.cause)
    assert not stepped
    assert len(witness.world.undone) == 1


async def test_what_can_be_kept_is_there_before_it_is_undone(autojump_clock: object) -> None:
    """Though what came later cannot."""
    witness, seen = Witness(), list[list[str]]()

    @step
    async def ask() -> None:
        await oddly()
        await charged(2)

    flow = Flow("shop", [buy, ask], durability="sync")
    result = await run(witness, flow, observed(witness, "bank.refund", lambda _: seen.append(told(witness.disk))))
    assert result.status == "defect"
    assert seen == [["buy:1"]]


@step
async def buy_more() -> None:
    await join.settle(charged(2), slowly(0.05))


@step
async def buy_at_last() -> None:
    await charged(3)


def test_cut_at_any_moment_it_is_undone_or_carried_on_and_nothing_is_left_over() -> None:
    flow = Flow("shop", [buy, parallel(buy_more, see_briefly), buy_at_last], durability="sync")
    witnesses: list[Witness] = [Witness()]

    async def whole() -> None:
        witness = witnesses[0] = Witness()
        async with witness.open(flow, seed=1) as runtime:
            await runtime.run(flow)

    async def check() -> None:
        """The next process finds nothing that it cannot bring to an end."""
        disk, world = witnesses[0].disk, witnesses[0].world
        async with Witness(disk, world).open(flow) as runtime:
            await trio.sleep(30)
            assert runtime.statistics().stuck == {}
        ends, stand = statuses(disk), len(world.done.keys() - world.undone)
        assert (ends, stand) in (([], 0), (["cancelled"], 0), (["done"], 3))

    assert cancel_sweep(whole, check=check).delivered


# ---- what it costs --------------------------------------------------------------------------


async def test_a_hedged_read_waits_for_no_disk_when_nothing_was_written(autojump_clock: object) -> None:
    @step
    async def see_in_a_hurry() -> None:
        await join.hedge(slowly(0.1), after=0.05, limit=2)

    witness = Witness()
    result = await run(witness, Flow("shop", [see_in_a_hurry], durability="sync"), witness.handlers())
    assert [kind for kind, *_ in result.timeline.records].count("hedged") == 1
    assert witness.disk.runs == {}


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_a_run_of_n_writes_waits_for_the_disk_n_plus_one_times(count: int, autojump_clock: object) -> None:
    @step
    async def charge_often() -> None:
        for cents in range(count):
            await charged(cents)

    witness = Witness()
    async with open_memory_journal(witness.disk) as journal:
        async with open_runtime(App(), handlers=witness.handlers(), journal=journal) as runtime:
            await runtime.run(Flow("shop", [charge_often], durability="sync"))
        assert journal.statistics().written == count + 1
