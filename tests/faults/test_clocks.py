"""The wall clock may be set, forwards and back, by an hour or a year: no lease is lost or kept by it, no deadline
moves, and a run that another process carries on is as old as its records at least."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import pytest
import trio

from tests.runtime.dying import Paid, Witness, charged, look, pay, statuses
from zerver import App, Done, Flow, IdempotencyKey, Slot, step
from zerver.journal import open_memory_journal, open_postgres_journal, open_sqlite_journal
from zerver.runtime import open_runtime
from zerver.runtime.journal import Journal, Opening, RunHead

HOUR = 3600
YEAR = 365 * 86_400
STEPS = [HOUR, -HOUR, YEAR, -YEAR]


class Wall:
    """The wall clock of this process, ahead of the true one by some seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0
        true, true_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: true() + self.ahead)
        monkeypatch.setattr(time, "time_ns", lambda: true_ns() + self.ahead * 10**9)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    return Wall(monkeypatch)


# ---- leases ---------------------------------------------------------------------------------


async def check_leases(journal: Journal, wall: Wall) -> None:
    """One owner lives, one is dead: so it stays, whatever the clock says."""
    for number, seconds in enumerate([0, *STEPS]):
        wall.ahead = seconds
        await journal.renew("dead", 60.0)
        await journal.renew("alive", 60.0)
        for owner in ("dead", "alive"):
            head = RunHead(f"{owner}{number}", "flow", "1", "acme", "default", 1, owner)
            await journal.write(Opening(head, "plan", b"plan", [b"0"]))
    for seconds in STEPS:
        wall.ahead = seconds
        assert await journal.claim("other", 10) == [], "a lease was lost"
    await journal.renew("dead", 0.0)
    for seconds in STEPS:
        wall.ahead = seconds
        claimed = await journal.claim(f"other {seconds}", 1)
        assert [run.head.owner for run in claimed] == [f"other {seconds}"], "a lease was kept"
        assert claimed[0].head.run_id.startswith("dead")
        await journal.renew(f"other {seconds}", 60.0)


async def test_leases_of_sqlite_do_not_look_at_it(wall: Wall, tmp_path: Path) -> None:
    async with open_sqlite_journal(tmp_path / "journal.db") as journal:
        await check_leases(journal, wall)


async def test_leases_of_postgres_are_by_the_servers_clock(wall: Wall, conninfo: str) -> None:
    async with open_postgres_journal(conninfo) as journal:
        await check_leases(journal, wall)


# ---- deadlines ------------------------------------------------------------------------------

Third = Annotated[str, Slot("third")]


@step
def say(third: Third) -> Done:
    return Done(third)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seconds", STEPS)
async def test_a_deadline_is_not_moved(seconds: int, late: bool, wall: Wall, autojump_clock: object) -> None:
    witness = Witness()

    async def slow(cents: int, *, key: IdempotencyKey) -> str:
        if cents == 99:
            wall.ahead = seconds
            await trio.sleep(6.0 if late else 4.0)
        return f"ch_{cents}"

    @step
    async def wait() -> Third:
        return await charged(99)

    flow = Flow("shop", [wait, say], durability="sync", deadline=5.0)
    async with (
        open_memory_journal(witness.disk) as journal,
        open_runtime(App(), handlers=witness.handlers() | {"bank.charge": slow}, journal=journal) as runtime,
    ):
        began = trio.current_time()
        result = await runtime.run(flow)
        assert result.status == ("deadline" if late else "done")
        assert trio.current_time() - began < 5.5


@pytest.mark.parametrize("seconds", [0, *STEPS])
async def test_a_run_that_is_carried_on_is_never_given_more_time(
    seconds: int, wall: Wall, autojump_clock: object
) -> None:
    """Its process has died after three of its five seconds; the next one's clock is another. A clock that was set
    forward ends it early, and it is undone; one that was set back gives it no more than it had left.
    """
    first = Witness()

    async def slow(cents: int, *, key: IdempotencyKey) -> str:
        if cents == 99:
            first.saw("under way")
            await trio.sleep(60)
        await trio.sleep(3)
        return f"ch_{cents}"

    @step
    async def wait(paid: Paid) -> Third:
        return await charged(99) + paid

    flow = Flow("shop", [look, pay, wait, say], durability="sync", deadline=5.0)
    async with (
        open_memory_journal(first.disk) as journal,
        open_runtime(App(), handlers=first.handlers() | {"bank.charge": slow}, journal=journal) as runtime,
    ):
        await runtime.run(flow)
    moment = next(moment for moment in first.moments if moment.where == "under way")
    wall.ahead = seconds
    later = Witness(moment.disk, moment.world)
    async with (
        open_memory_journal(later.disk) as journal,
        open_runtime(
            App(), handlers=later.handlers() | {"bank.charge": slow}, journal=journal, flows=[flow],
            observers=[later.ended.append],
        ) as runtime,
    ):  # fmt: skip
        while not runtime.statistics().recovered:
            await trio.sleep(0.1)
        began = trio.current_time()
        while not later.ended:
            await trio.sleep(0.1)
        assert trio.current_time() - began < 2.5
    assert statuses(later.disk) == ["deadline"]
