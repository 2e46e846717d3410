"""What is tried again is carried on once, whoever is cancelled and whatever answer of the journal is lost."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.runtime.dying import SHOP, Watched, Witness, charged, statuses
from tests.runtime.test_parked import shop
from tests.runtime.test_retrial import UNDONE, Shaky, crashed
from zerver import App, Flow, IdempotencyKey, step
from zerver.core.machine import Machine
from zerver.errors import JournalUnavailable
from zerver.journal import open_memory_journal
from zerver.runtime import Alarm, open_runtime
from zerver.runtime.journal import Journal, StoredRun


class Unheard(Watched):
    """A journal of which the first answer to `reopen` is lost."""

    def __init__(self, journal: Journal, witness: Witness) -> None:
        super().__init__(journal, witness)
        self._reopened: StoredRun | None = None
        self.asked = 0

    async def reopen(self, run_id: str, owner: str) -> StoredRun | None:
        self.asked += 1
        if self.asked == 1:
            self._reopened = await self._journal.reopen(run_id, owner)
            raise JournalUnavailable("nobody knows whether it was reopened")
        given, self._reopened = self._reopened, None
        return given or await self._journal.reopen(run_id, owner)


async def unresolved() -> tuple[Shaky, str]:
    shaky = Shaky()
    shaky.away = {"bank.refund"}
    async with shaky.open(UNDONE) as runtime:
        run_id = (await runtime.run(UNDONE)).run_id
    shaky.away = set()
    return shaky, run_id


@pytest.mark.parametrize("takeover", [True, False])
async def test_who_is_cancelled_leaves_the_retrial_under_way(takeover: bool, autojump_clock: object) -> None:
    shaky, run_id = await unresolved()
    async with open_memory_journal(shaky.disk) as journal:
        scope, reopen = trio.CancelScope(), journal.reopen

        async def cut(run_id: str, owner: str) -> StoredRun | None:
            reopened = await reopen(run_id, owner)
            scope.cancel()
            await trio.lowlevel.checkpoint()
            return reopened

        journal.reopen = cut  # type: ignore[method-assign]  # to be there at the moment
        async with shaky.open_on(journal, UNDONE, takeover=takeover) as runtime:
            with scope:
                await runtime.retry(run_id)
            assert scope.cancelled_caught
            await trio.sleep(5)
            assert statuses(shaky.disk) == ["failed"]
            assert len(shaky.world.undone) == 1


async def test_what_was_reopened_and_nobody_heard_is_carried_on(autojump_clock: object) -> None:
    shaky, run_id = await unresolved()
    async with open_memory_journal(shaky.disk) as journal:
        unheard = Unheard(journal, shaky)
        async with shaky.open_on(unheard, UNDONE, takeover=False) as runtime:
            with pytest.raises(JournalUnavailable):
                await runtime.retry(run_id)
            assert statuses(shaky.disk) == [""]
            assert (await runtime.retry(run_id)).unresolved == ()
    assert statuses(shaky.disk) == ["failed"]
    assert len(shaky.world.undone) == 1


async def test_a_worker_that_has_not_heard_what_it_reopened_asks_again(autojump_clock: object) -> None:
    moment = await crashed()
    shaky = Shaky(moment.disk)
    shaky.world = moment.world
    async with open_memory_journal(moment.disk) as journal:
        async with shaky.open_on(journal) as runtime:
            await trio.sleep(60)
            assert len(runtime.statistics().stuck) == 1
        unheard = Unheard(journal, shaky)
        async with shaky.open_on(unheard, SHOP):
            await trio.sleep(60)
            assert statuses(moment.disk) == ["done"]
        assert unheard.asked == 2


async def test_an_unresolved_run_without_its_last_records_is_undone_and_does_not_go_on(autojump_clock: object) -> None:
    """It had ended, and its records could not be written: they end in its midst."""
    moment = await crashed()
    for run in moment.disk.runs.values():
        run.status = "unresolved"
    shaky = Shaky(moment.disk)
    shaky.world = moment.world
    async with open_memory_journal(moment.disk) as journal, shaky.open_on(journal, SHOP) as runtime:
        (run_id,) = moment.disk.runs
        result = await runtime.retry(run_id)
    assert (result.status, result.reason) == ("cancelled", "it had ended, and its last records could not be written")
    assert len(shaky.world.undone) == len(shaky.world.done) == 1


# ---- what must not take the worker along ----------------------------------------------------


async def test_a_run_that_the_runtime_itself_stumbles_over_is_set_aside(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaky, flow = Shaky(), shop()

    def stumble(self: Machine, signal: str, value: object) -> Any:
        raise KeyError(signal)

    async with open_memory_journal(shaky.disk) as journal, shaky.open_on(journal, flow) as runtime:
        parked = await runtime.run(flow)
        with monkeypatch.context() as patch:
            patch.setattr(Machine, "signalled", stumble)
            assert await runtime.signal(parked.run_id, "go", "yes")
            await trio.sleep(1)
        (why,) = runtime.statistics().stuck.values()
        assert why == "KeyError while it was taken up"
        assert runtime.statistics().running == 0


@step
async def go_elsewhere() -> None:
    await charged(8)


@pytest.mark.parametrize("hooked", [False, True])
async def test_one_that_is_set_aside_is_told_of_in_the_log_if_the_app_has_nobody_to_be_told(
    hooked: bool, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    moment = await crashed()
    heir, alarms = Witness(moment.disk, moment.world), list[Alarm]()
    other = Flow(SHOP.name, [go_elsewhere], durability="sync")
    async with (
        open_memory_journal(heir.disk) as journal,
        open_runtime(
            App(on_unresolved=alarms.append if hooked else None),
            handlers=heir.handlers(),
            journal=journal,
            flows=[other],
        ) as runtime,
    ):
        await trio.sleep(60)
        ((run_id, why),) = runtime.statistics().stuck.items()
    told = [f"run {run_id} of flow '{SHOP.name}' is stuck: {why}; see `zerver sagas`"]
    assert (caplog.messages, [alarm.run_id for alarm in alarms]) == (([], [run_id]) if hooked else (told, []))


async def test_a_worker_that_drains_takes_up_nothing_more(autojump_clock: object) -> None:
    """What it has no ticket for is for others, and at once, not when it has come to rest."""
    flow, one = shop(), Witness()
    two = Witness(one.disk, one.world)
    async with one.open(flow, lease=3600.0) as first, two.open(flow, lease=3600.0) as second:
        parked = await first.run(flow)
        await second.drain(0.0)
        assert await second.signal(parked.run_id, "go", "yes")
        await trio.sleep(1)
        assert [run.owner for run in one.disk.runs.values()] == [""]
        assert not await first.signal(parked.run_id, "go", "again")
        await trio.sleep(2000)
    assert [result.value for result in one.ended] == [("yes", "ch_7")]


async def test_a_takeover_that_the_host_cancels_is_undone_and_the_journal_knows(autojump_clock: object) -> None:
    moment = await crashed()
    witness, started = Witness(moment.disk, moment.world), trio.Event()
    handlers = witness.handlers()

    async def slow(cents: int, *, key: IdempotencyKey) -> str:
        started.set()
        return str(await trio.sleep_forever())

    handlers["bank.charge"] = slow
    async with open_memory_journal(witness.disk) as journal:
        with trio.CancelScope() as scope:
            async with open_runtime(App(), handlers=handlers, journal=journal, flows=[SHOP]):
                await started.wait()
                scope.cancel()
    assert statuses(witness.disk) == ["cancelled"]
    assert len(witness.world.undone) == 1
