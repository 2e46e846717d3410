"""Every call that a journal makes to its database fails once, or a few in a row, in each way in which a call can fail:
what was acknowledged is there, what is there is right, and nothing is done twice."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing

import attrs
import pytest
import trio

from tests.faults.inline import HOWS, Failing, How, Inline
from tests.runtime.dying import FLOWS, Witness, World, check_once
from zerver import App, Flow
from zerver.errors import JournalUnavailable
from zerver.journal.lines import Lines
from zerver.journal.schema import first_script, migrate
from zerver.journal.scribe import open_scribe
from zerver.journal.sql import SqlJournal
from zerver.runtime import Result, Runtime, open_runtime
from zerver.runtime.journal import UNRESOLVED
from zerver.sql.dialects import CLOCKS, SQLITE

#: SQLite's, with leases by the clock of the test.
DIALECT = attrs.evolve(SQLITE, now=lambda: str(round(trio.current_time() * 1e9)), boot="a test")


@asynccontextmanager
async def life(
    database: sqlite3.Connection, world: World, flow: Flow, driver: Failing, numbers: range
) -> AsyncIterator[tuple[Runtime, SqlJournal]]:
    """One process. numbers: of its calls to the database, those that fail."""
    witness = Witness(world=world)
    journal = SqlJournal(driver, DIALECT, Lines(), place="a test", patience=0.5)
    driver.arm(numbers)
    async with (
        open_scribe(journal.scribe, close_seconds=3.0),
        open_runtime(App(), handlers=witness.handlers(), journal=journal, flows=[flow]) as runtime,
    ):
        yield runtime, journal


async def scenario(flow: Flow, how: How, numbers: range, stays: float) -> int:
    """Two runs at once and one behind them, with a journal that fails; and then a process that ends what is left.

    stays: seconds for which the first process lives on. How many calls of the first process failed.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        for name, clock in CLOCKS.items():
            database.create_function(name, 0, clock)
        database.executescript(first_script(DIALECT))
        world = World()
        results: list[Result] = []
        driver = Failing(Inline(database), how)
        await migrate(driver, DIALECT, "a test")
        try:
            async with life(database, world, flow, driver, numbers) as (runtime, _):

                async def run() -> None:
                    results.append(await runtime.run(flow))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run)
                    nursery.start_soon(run)
                await run()
                await trio.sleep(stays)
        except JournalUnavailable:
            assert not results, "a process that could not begin has run something"
        failed = driver.failed
        later = Failing(Inline(database), how)
        async with life(database, world, flow, later, range(0)) as (_, journal):
            await trio.sleep(30)
            tallies = await journal.tallies()
            statuses: dict[str, str] = {}
            for result in results:
                stored = await journal.read(result.run_id)
                statuses[result.run_id] = "none" if stored is None else stored.status
        check(world, results, statuses)
        assert tallies.get("", 0) == 0, "a run is unfinished"
        assert UNRESOLVED not in tallies
        return failed


def check(world: World, results: list[Result], statuses: dict[str, str]) -> None:
    for result in results:
        run_id, status = result.run_id, statuses[result.run_id]
        standing = [key for key in world.done if key.startswith(run_id) and key not in world.undone]
        if result.ok:
            assert status == "done", f"{run_id} was acknowledged, and the journal says {status!r}"
        if status == "done":
            assert standing, f"{run_id} is done, and nothing of it stands"
        else:
            assert not standing, f"{run_id} is {status!r}, and {standing} stand"
    check_once(world)


def lengths(how: How) -> Iterator[int]:
    """How many calls fail in a row: once; so that the second try fails too; and longer than a run waits."""
    yield from (1, 2) if how == "down" else (1, 2, 3)


@pytest.mark.parametrize("name", ["one after the other", "at once", "undone", "hedge"])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("stays", [0, 12])
async def test_a_call_that_fails_loses_nothing_and_doubles_nothing(
    stays: float, how: How, name: str, autojump_clock: object
) -> None:
    flow = Flow("shop", FLOWS[name], durability="sync")
    for length in lengths(how):
        first = 1
        while await scenario(flow, how, range(first, first + length), stays):
            first += 1
        assert first > 5
