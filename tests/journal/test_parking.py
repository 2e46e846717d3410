"""A signal that meets the page which puts its run down wakes the run; and nobody walks over runs that only wait."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.journal.writer import opening
from zerver.journal import open_postgres_journal, parking
from zerver.journal.sql import SqlJournal
from zerver.runtime.journal import Awaited, Page, Parking
from zerver.sql.dialects import POSTGRES
from zerver.sql.driver import Statement

#: Goes on when somebody waits for what this transaction has locked.
UNTIL_MET = """
do $met$ begin
    while not exists (select 1 from pg_locks where not granted) loop
        perform pg_sleep(0.005);
    end loop;
end $met$
"""


async def test_a_signal_that_meets_the_page_that_puts_its_run_down_wakes_it(
    conninfo: str,
) -> None:
    async with open_postgres_journal(conninfo, patience=30.0) as journal:
        assert isinstance(journal, SqlJournal)
        driver = journal._driver
        await journal.renew("writer", 600.0)
        await journal.write(opening("run"))
        page = Page("run", 1, 1, [b"1"], parked=Parking((Awaited(1, "go", 3600.0),)))
        deciding, others = journal._page(page)
        taken: list[bool] = []

        async def put_down() -> None:
            await driver.transaction([*deciding, *others, Statement(UNTIL_MET)])

        async def give() -> None:
            is_putting = "select 1 from pg_stat_activity where state = 'active' and query like '%$met$%' and pid <> "
            while not (await driver.fetch(Statement(f"{is_putting} pg_backend_pid()"))).rows:
                await trio.lowlevel.checkpoint()
            taken.append(await journal.signal("run", "go", b"1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_down)
            nursery.start_soon(give)
        assert taken == [True]
        assert await journal.due() == 0.0
        assert await journal.claim_one("run", "writer") is not None


@pytest.mark.parametrize("which", ["taking_due", "next_due"])
async def test_what_is_due_is_found_in_the_index(which: str, conninfo: str) -> None:
    asked: dict[str, Statement] = {
        "taking_due": parking.taking_due("me", "token", 32, POSTGRES)[0],
        "next_due": parking.next_due(POSTGRES),
    }
    async with open_postgres_journal(conninfo) as journal:
        assert isinstance(journal, SqlJournal)
        statement = asked[which]
        explain: Any = Statement(f"explain {statement.sql}", statement.params)
        *_, found = await journal._driver.transaction([Statement("set local enable_seqscan = off"), explain])
        plan = "\n".join(str(row) for row in found.rows)  # type: ignore[union-attr]  # they are rows
    assert "zerver_parked" in plan
    if which == "taking_due":  # as a condition, and not as a filter over all that wait
        assert "Index Cond: ((wakes IS NOT NULL) AND (wakes <=" in plan or "Index Cond: (wakes <=" in plan, plan
