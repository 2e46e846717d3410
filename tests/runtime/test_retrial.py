"""What is unresolved is tried again, and what is stuck is set aside, said aloud, and carried on when it can be."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.runtime.dying import (
    SHOP,
    Moment,
    Other,
    Paid,
    Rate,
    Witness,
    charged,
    look,
    no_more,
    pay,
    pay_more,
    post,
    run_once,
    statuses,
    tell,
)
from zerver import App, Flow, Pause, step
from zerver.core import timeline as t
from zerver.errors import CannotRetry, DefinitionError, Rejected
from zerver.journal import Disk, open_memory_journal, open_postgres_journal, open_sqlite_journal
from zerver.runtime import Alarm, Result, Runtime, open_runtime
from zerver.runtime.journal import RESOLVED, UNRESOLVED, Journal
from zerver.trace import format_timeline


class Shaky(Witness):
    """A world of which parts may not answer."""

    def __init__(self, disk: Disk | None = None) -> None:
        super().__init__(disk)
        self.away: set[str] = set()
        self.alarms: list[Alarm] = []

    def handlers(self, sold_out: bool = False) -> dict[str, Callable[..., Any]]:
        def shaky(kind: str, handler: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(handler)
            async def performed(*args: Any, **kwargs: Any) -> Any:
                if kind in self.away:
                    if kind == "bank.charge":  # it happens, and nobody hears of it
                        await handler(*args, **kwargs)
                    if kind == "bank.refund":
                        raise Rejected("the bank is closed")
                    raise ConnectionError(f"{kind} is away")
                return await handler(*args, **kwargs)

            return performed

        return {kind: shaky(kind, handler) for kind, handler in super().handlers(sold_out).items()}

    @asynccontextmanager
    async def open_on(
        self, journal: Journal, *flows: Flow, older: tuple[Flow, ...] = (), **how: Any
    ) -> AsyncIterator[Runtime]:
        app = App(older=older, on_unresolved=self.alarms.append)
        async with open_runtime(
            app, handlers=self.handlers(), journal=journal, flows=flows, observers=[self.ended.append], **how
        ) as runtime:
            yield runtime


UNDONE = Flow("undone", [look, pay, no_more], durability="sync", gives=[Paid])

FAR = 1 << 62


async def retried(journal: Journal) -> None:
    """A refund that fails, is tried again in vain by another worker, and then works."""
    shaky = Shaky()
    shaky.away = {"bank.refund"}
    async with shaky.open_on(journal, UNDONE) as runtime:
        first = await runtime.run(UNDONE)
    assert first.status == "failed"
    assert [e.call.step for e in first.unresolved] == ["pay"]
    (alarm,) = shaky.alarms
    assert (alarm.run_id, alarm.stuck, alarm.flow) == (first.run_id, False, "undone")
    assert alarm.why == "bank.charge in pay happened, and was not undone"
    assert alarm.writes == (f"bank.charge in pay, key {first.unresolved[0].call.key}",)

    async with shaky.open_on(journal, UNDONE, takeover=False) as runtime:
        again = await runtime.retry(first.run_id)
        assert again.unresolved
        assert runtime.statistics().unresolved == 1
        shaky.away = set()
        last = await runtime.retry(first.run_id)
        assert last.unresolved == ()
        assert last.status == "failed"
        with pytest.raises(CannotRetry, match="needs nobody: it is failed"):
            await runtime.retry(first.run_id)
        with pytest.raises(CannotRetry, match="there is no run req_x in"):
            await runtime.retry("req_x")
    assert len(shaky.world.undone) == 1
    stored = await journal.read(first.run_id)
    assert stored is not None
    assert stored.status == "failed"
    kinds = [
        line for line in (kind for kind, *_ in journal.notation.reader().read(stored).records) if line == t.RETRIED
    ]
    assert len(kinds) == 2
    told = format_timeline(journal.notation.reader().read(stored))
    assert "what is unresolved is tried again by" in told
    assert "UNRESOLVED" not in told
    assert "undone: pay" in told
    assert await journal.list_runs("open") == []
    assert await journal.prune(FAR) == 1


async def test_in_memory() -> None:
    async with open_memory_journal() as journal:
        await retried(journal)


async def test_on_sqlite(tmp_path: Path) -> None:
    async with open_sqlite_journal(tmp_path / "shop.journal") as journal:
        await retried(journal)


async def test_on_postgresql(conninfo: str) -> None:
    async with open_postgres_journal(conninfo) as journal:
        await retried(journal)


# ---- retrials that die, and what cannot be tried again ---------------------------------------


async def test_a_retrial_whose_process_dies_is_finished_by_the_next_one(autojump_clock: object) -> None:
    shaky = Shaky()
    shaky.away = {"bank.refund"}
    async with shaky.open(UNDONE) as runtime:
        run_id = (await runtime.run(UNDONE)).run_id
    shaky.moments.clear()
    shaky.away = set()
    async with shaky.open(UNDONE, takeover=False) as runtime:
        await runtime.retry(run_id)
    reopened = Moment("reopened", copy.deepcopy(shaky.moments[0].disk), shaky.moments[0].world)
    for moment in (reopened, *shaky.moments):
        later = Shaky(moment.disk)
        later.world = moment.world
        async with later.open(UNDONE):
            await trio.sleep(60)
        assert statuses(later.disk) == ["failed"], moment.where
        assert len(later.world.undone) == 1


async def test_a_write_in_doubt_is_asked_about_again(autojump_clock: object) -> None:
    shaky = Shaky()
    shaky.away = {"bank.charge", "bank.find"}
    flow = Flow("shop", [step(name="buy")(charge_it)], durability="sync")
    async with open_memory_journal(shaky.disk) as journal, shaky.open_on(journal, flow) as runtime:
        first = await runtime.run(flow)
        assert [entry.happened for entry in first.unresolved] == [False]
        assert shaky.alarms[0].why == "bank.charge in buy may or may not have happened"
        shaky.away = set()
        last = await runtime.retry(first.run_id)
    assert last.unresolved == ()
    assert last.status == "failed"
    assert len(shaky.world.undone) == 1


async def charge_it() -> None:
    await charged(7)


async def test_a_write_that_nobody_can_be_asked_about_stays_unresolved(autojump_clock: object) -> None:
    shaky = Shaky()
    shaky.away = {"bank.post"}
    flow = Flow("shop", [step(name="send")(post_it)], durability="sync")
    async with open_memory_journal(shaky.disk) as journal, shaky.open_on(journal, flow) as runtime:
        first = await runtime.run(flow)
        shaky.away = set()
        again = await runtime.retry(first.run_id)
        assert len(again.unresolved) == 1
        assert shaky.world.calls.total() == 0
        assert await journal.call_resolved(first.run_id, "it was sent", "ann")
        with pytest.raises(CannotRetry, match="it is resolved"):
            await runtime.retry(first.run_id)
    assert statuses(shaky.disk) == [RESOLVED]


async def post_it() -> None:
    await post("hello")


async def test_a_run_written_behind_is_closed_and_told_and_never_tried_again(autojump_clock: object) -> None:
    flow = Flow("shop", [look, pay, pay_more, tell], durability="async")
    witness, _ = await run_once(SHOP)
    moment = next(moment for moment in witness.moments if moment.where == "after charge")
    for run in moment.disk.runs.values():
        run.opening = attrs.evolve(run.opening, head=attrs.evolve(run.opening.head, durability="async"))
    later = Shaky(moment.disk)
    async with open_memory_journal(moment.disk) as journal, later.open_on(journal, flow) as runtime:
        await trio.sleep(60)
        assert statuses(moment.disk) == [UNRESOLVED]
        (alarm,) = later.alarms
        assert "of durability" in alarm.why
        assert not alarm.stuck
        assert runtime.statistics().open_unresolved == 1
        with pytest.raises(
            CannotRetry, match=r"of durability 'async'.*\n  look at what it wrote, then say so: `zerver"
        ):
            await runtime.retry(alarm.run_id)


async def test_without_a_journal_there_is_nothing_to_try() -> None:
    async with open_runtime(App()) as runtime:
        with pytest.raises(DefinitionError, match="no journal"):
            await runtime.retry("req_1")


async def test_whoever_is_told_cannot_harm_the_run(autojump_clock: object) -> None:
    shaky = Shaky()
    shaky.away = {"bank.refund"}

    def fails(alarm: Alarm) -> None:
        raise ValueError(alarm)

    app = App(on_unresolved=fails)
    undone = Flow("undone", [look, pay, no_more], gives=[Paid])  # runs that are not kept are told of, too
    async with open_runtime(app, handlers=shaky.handlers()) as runtime:
        assert (await runtime.run(undone)).unresolved
        assert (runtime.statistics().observer_errors, runtime.statistics().unresolved) == (1, 1)


# ---- stuck ----------------------------------------------------------------------------------


@step(name="pay")
async def pay_twice_as_much(rate: Rate) -> Paid:
    return await charged(rate * 8)


def crashed(flow: Flow = SHOP, where: str = "after charge") -> Any:
    async def made() -> Moment:
        witness, _ = await run_once(flow)
        return next(moment for moment in witness.moments if moment.where == where)

    return made()


V2 = Flow("shop", [look, pay_twice_as_much, pay_more, tell], version="2", durability="sync")


async def test_what_is_stuck_is_set_aside_told_once_and_freed_by_a_deploy(autojump_clock: object) -> None:
    moment = await crashed()
    shaky = Shaky(moment.disk)
    shaky.world = moment.world
    async with open_memory_journal(moment.disk) as journal:
        async with shaky.open_on(journal, V2) as runtime:
            await trio.sleep(60)
            (run_id,) = runtime.statistics().stuck
            assert runtime.statistics().set_aside == 1
        (alarm,) = shaky.alarms
        assert (alarm.run_id, alarm.stuck) == (run_id, True)
        assert alarm.why == "recorded asked pay.1 bank.charge; replayed asked pay.1 bank.charge, with other values"
        stored = await journal.read(run_id)
        assert stored is not None
        assert (stored.aside, stored.head.owner) == (alarm.why, "")
        async with shaky.open_on(journal, V2) as runtime:  # started again with the same code: it is left alone
            await trio.sleep(60)
            assert list(runtime.statistics().stuck) == [run_id]
            with pytest.raises(CannotRetry, match=r"cannot be tried again by this code: recorded asked pay\.1"):
                await runtime.retry(run_id)
        assert len(shaky.alarms) == 1
        assert shaky.world.calls == moment.world.calls
        async with shaky.open_on(journal, V2, older=(SHOP,)) as runtime:
            await trio.sleep(60)
            assert runtime.statistics().stuck == {}
    assert statuses(moment.disk) == ["done"]
    assert shaky.ended[-1].value == ("ch_12", "ch_13")


async def test_a_run_that_was_set_aside_is_carried_on_by_retry(autojump_clock: object) -> None:
    moment = await crashed()
    shaky = Shaky(moment.disk)
    shaky.world = moment.world
    async with open_memory_journal(moment.disk) as journal:
        async with shaky.open_on(journal) as runtime:
            await trio.sleep(60)
            assert list(runtime.statistics().stuck.values()) == ["there is no flow 'shop' here"]
        async with shaky.open_on(journal, SHOP, takeover=False) as runtime:
            (glance,) = await journal.list_runs("open")
            result = await runtime.retry(glance.head.run_id)
    assert result.value == ("ch_12", "ch_13")


async def test_a_damaged_run_is_set_aside_and_takes_nobody_along(autojump_clock: object) -> None:
    moment = await crashed()
    (kept,) = moment.disk.runs.values()
    kept.pages[0] = tuple(line.replace(b"bank", b"bink") for line in kept.pages[0])
    shaky = Shaky(moment.disk)
    async with open_memory_journal(moment.disk) as journal, shaky.open_on(journal, SHOP) as runtime:
        await trio.sleep(60)
        (why,) = runtime.statistics().stuck.values()
        assert "is not what was written there" in why
        fine = await runtime.run(SHOP)
        assert fine.status == "done"


# ---- upgrades -------------------------------------------------------------------------------


async def upgraded(moment: Moment, *flows: Flow, older: tuple[Flow, ...] = ()) -> tuple[list[str], list[Result]]:
    shaky = Shaky(moment.disk)
    shaky.world = moment.world
    async with open_memory_journal(moment.disk) as journal, shaky.open_on(journal, *flows, older=older) as runtime:
        await trio.sleep(60)
        return [*runtime.statistics().stuck.values()], shaky.ended


async def test_a_run_is_finished_by_its_own_version(autojump_clock: object) -> None:
    moment = await crashed()
    stuck, (ended,) = await upgraded(moment, V2, older=(SHOP,))
    assert not stuck
    assert ended.value == ("ch_12", "ch_13")
    assert ended.timeline.version == "1"


async def test_a_newer_version_that_agrees_goes_on(autojump_clock: object) -> None:
    @step(name="pay_more")
    async def pay_other(paid: Paid) -> Other:
        return await charged(14)

    moment = await crashed()
    newer = Flow("shop", [look, pay, pay_other, tell], version="2", durability="sync")
    stuck, (ended,) = await upgraded(moment, newer)
    assert not stuck
    assert ended.value == ("ch_12", "ch_14")


async def test_a_newer_version_that_compensates_undoes(autojump_clock: object) -> None:
    moment = await crashed()
    newer = Flow("shop", [look, pay, pay_more, tell], version="2", durability="sync", on_upgrade="compensate")
    stuck, (ended,) = await upgraded(moment, newer)
    assert not stuck
    assert ended.status == "cancelled"
    assert ended.reason == "its version of the flow is not known any more"
    assert statuses(moment.disk) == ["cancelled"]
    assert len(moment.world.undone) == 1


async def test_versions_are_checked() -> None:
    flow = Flow("shop", [look, pay, pay_more, tell], version="1")
    with pytest.raises(DefinitionError, match=r"v1 has durability='off': no run of it is stored\n  give it the dur"):
        App(older=[flow])
    with pytest.raises(DefinitionError, match=r"has flow 'shop' v1 twice\n  give each the version"):
        App(older=[SHOP, SHOP])
    with pytest.raises(DefinitionError, match="on_upgrade='compensate' with durability='off'"):
        Flow("shop", [look, pay, pay_more, tell], on_upgrade="compensate")
    with pytest.raises(DefinitionError, match=r"on_upgrade='retry' is unknown\n  choose one of resume, compensate"):
        Flow("shop", [look, pay, pay_more, tell], durability="sync", on_upgrade="retry")  # type: ignore[arg-type]  # it is
    app = App(older=[SHOP])
    app.route("POST", "/", Flow("shop", [look, pay, pay_more, tell], durability="sync"))
    with pytest.raises(DefinitionError, match=r"serves flow 'shop' v1, which is in older=\[…\] too\n  give the flow"):
        app.check(frozenset({"bank.charge", "bank.find", "bank.refund", "bank.rate"}))

    async def told(alarm: Alarm) -> None: ...

    with pytest.raises(DefinitionError, match=r"on_unresolved is a coroutine function\n  write it as a plain `def`"):
        App(on_unresolved=told)


# ---- parked runs ----------------------------------------------------------------------------


@step
def ask_boss() -> Pause:
    return Pause("approved", expires=600.0)


async def test_a_parked_run_whose_flow_has_changed_is_set_aside_when_it_is_taken_up(autojump_clock: object) -> None:
    parked = Flow("shop", [look, pay, ask_boss], durability="sync", gives=[Paid])
    shaky = Shaky()
    async with open_memory_journal(shaky.disk) as journal:
        async with shaky.open_on(journal, parked) as runtime:
            result = await runtime.run(parked)
        assert result.status == "parked"
        changed = Flow("shop", [look, pay_twice_as_much, ask_boss], durability="sync", version="2", gives=[Paid])
        async with shaky.open_on(journal, changed) as runtime:
            await trio.sleep(1200)
            assert list(runtime.statistics().stuck) == [result.run_id]
        async with shaky.open_on(journal, changed, older=(parked,)) as runtime:
            await trio.sleep(60)
            assert runtime.statistics().stuck == {}
    assert shaky.ended[-1].status == "failed"
    assert len(shaky.world.undone) == 1
