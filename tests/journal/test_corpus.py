"""Runs that every release has written are read, replayed and carried on by today's code."""

from __future__ import annotations

import time
from zlib import crc32

import attrs
import pytest
import trio

from tests.journal import corpus
from tests.journal.corpus import FLOWS, Bank, corpora, read
from zerver import App, Done, Flow, step
from zerver.core.plan import compile_plan
from zerver.errors import DamagedJournal
from zerver.journal import Disk, open_memory_journal
from zerver.journal.lines import Lines, _seed
from zerver.runtime import open_runtime
from zerver.runtime.journal import Opening, Page, StoredRun
from zerver.runtime.recovery import Astray, recover

CASES = [pytest.param(cuts, id=f"{place.stem}, {cuts[-1].head.flow}") for place in corpora() for cuts in read(place)]
READER = Lines().reader(*FLOWS.values())


def test_every_flow_is_in_a_corpus() -> None:
    assert {cuts[-1].head.flow for place in corpora() for cuts in read(place)} == set(FLOWS)


@pytest.mark.parametrize("cuts", CASES)
def test_it_is_read_and_replays_to_where_it_had_come(cuts: list[StoredRun]) -> None:
    plan = compile_plan(FLOWS[cuts[-1].head.flow])
    for run in cuts:
        found = recover(plan, READER.read(run))
        assert found.machine.finished == bool(run.status)
    ending = found.machine.ending
    assert ending is not None
    assert run.status in (ending.status, "unresolved")


async def keep(disk: Disk, run: StoredRun) -> None:
    """Have it on a disk, as a process has left it that died a moment ago."""
    head = attrs.evolve(run.head, owner="gone", began_unix_ns=time.time_ns())
    async with open_memory_journal(disk) as journal:
        await journal.renew("gone", 1.0)
        await journal.write(Opening(head, run.plan_id, run.plan, run.lines))
        if run.status:
            await journal.write(Page(head.run_id, 1, len(run.lines), (), run.status))
        await journal.renew("gone", 0.0)


@pytest.mark.parametrize("cuts", CASES)
async def test_it_is_carried_on_to_its_end(cuts: list[StoredRun], autojump_clock: object) -> None:
    flow, ended = FLOWS[cuts[-1].head.flow], cuts[-1].status
    for run in cuts:
        disk, bank = Disk(), Bank()
        await keep(disk, run)
        async with (
            open_memory_journal(disk) as journal,
            open_runtime(App(), handlers=bank.handlers(), journal=journal, flows=[flow]) as runtime,
        ):
            await trio.sleep(40)
            assert runtime.statistics().stuck == {}
        ((_, kept),) = disk.runs.items()
        undone = {"cancelled"} if flow.on_crash == "compensate" else set()
        doubtful = {"unresolved"} if "post" in str(run.lines) else set()
        expired = {"failed"} if flow.name == "paused" else set()  # nobody gives the signal a second time
        assert kept.status in {ended} | undone | doubtful | expired
        if run.status:
            assert bank.tries == 0


async def test_one_of_other_code_says_why_it_is_not_carried_on(autojump_clock: object) -> None:
    @step(name="pay_more")
    async def pay_otherwise() -> None:
        await corpus.charged(8)

    @step
    def tell() -> Done:
        return Done("other")

    other = Flow("optional", [pay_otherwise, tell], version="2", durability="sync")
    for place in corpora():
        run = next(cuts[0] for cuts in read(place) if cuts[0].head.flow == "optional")
        with pytest.raises(Astray, match="recorded"):
            recover(compile_plan(other), Lines().reader(other).read(run))
        disk = Disk()
        await keep(disk, run)
        async with (
            open_memory_journal(disk) as journal,
            open_runtime(App(), handlers=Bank().handlers(), journal=journal, flows=[other]) as runtime,
        ):
            await trio.sleep(40)
            (why,) = runtime.statistics().stuck.values()
            assert "recorded" in why


def test_one_of_a_newer_version_says_so() -> None:
    run = read(corpora()[0])[0][0]
    payload = run.lines[0].partition(b" ")[2]
    newer = payload.replace(b'"z":1', b'"z":9')
    assert newer != payload
    lines = (b"%08x %b" % (crc32(newer, _seed(run.head.run_id)), newer),)
    with pytest.raises(DamagedJournal, match="version 9"):
        READER.read(attrs.evolve(run, lines=lines))
