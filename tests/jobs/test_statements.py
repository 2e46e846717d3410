"""What workers ask for is found by an index, however many jobs there are: no plan walks over the table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sql.postgresql import Server, database_of
from zerver.jobs import statements as s
from zerver.jobs.places import open_postgres_jobs, open_sqlite_jobs
from zerver.jobs.port import JobState, Order, QueueRule, Verdict, Wanted
from zerver.jobs.sql import SqlJobs
from zerver.jobs.waking import LOOK
from zerver.sql.dialects import POSTGRES, SQLITE, Dialect
from zerver.sql.driver import Statement
from zerver.sql.enqueueing import order_statements

#: Enough that a planner which has counted them does not take the whole table for short.
JOBS = 4000

#: What people look for, and workers again and again: those that are parked.
ASIDE: tuple[JobState, ...] = ("waiting", "parked", "dead", "cancelled")

#: Without it a take would look through all that is available for those that a worker has died with.
SUSPECTS = "zerver_jobs_suspects"

RULES = [QueueRule("default"), QueueRule("limited", limit=3), QueueRule("fair", limit=9, per_tenant=2)]


def asked(dialect: Dialect) -> dict[str, Sequence[Statement]]:
    verdict = Verdict("done", result="1")
    return {
        "order": order_statements([Order("new", "flow", unique="text")], dialect),
        "take": s.take(dialect, "worker", RULES, 10),
        "rescue": [s.rescue(dialect)],
        "settle": [*s.settle(dialect, [("5", 1, verdict)]), *s.freed(dialect), s.settled([("5", 1, verdict)])],
        "unpark": s.unpark(dialect, "run", verdict),
        "wait": [Statement(LOOK.format(wall=dialect.wall()))],
        "search": [s.search(Wanted(states=("dead",)), 50, 3000), s.search(Wanted(), 50, None)],
        "aside": [
            *(s.search(Wanted(states=(state,)), 50, None) for state in ASIDE),
            s.search(Wanted(states=ASIDE[1:]), 50, 3000),
        ],
        "retry": s.retry(dialect, Wanted(states=("dead",))),
        "find": [s.search(Wanted(ids=("7",)), 50, None)],
        "prune": [s.prune(dialect, 1, 100)],
        "queues": [Statement(s.OLDEST, ["default"] * 3), Statement(s.COUNTS)],
        "why": [Statement(s.CIRCUMSTANCES, ("a", "a", "b", "a"))],
    }


async def fill(store: SqlJobs) -> None:
    """Jobs of a long time: most are done, and a few of them are of each other state."""
    await store.order([Order(str(number), "flow", tenant=f"t{number % 7}") for number in range(JOBS)])
    await store.renew("worker", 600.0)
    jobs = await store.take("worker", [QueueRule("default")], JOBS)
    await store.take("worker", RULES, 1)  # the index of those who bound tenants is there from then on
    done = Verdict("done", result="1")
    await store.settle([(job.job_id, job.fence, done) for job in jobs[: JOBS - 20]])
    await store.order([Order(f"new {number}", "flow", unique=f"u{number}") for number in range(20)])


@pytest.mark.parametrize("verb", asked(SQLITE))
async def test_sqlite_finds_by_an_index(verb: str, tmp_path: Path) -> None:
    async with open_sqlite_jobs(tmp_path / "jobs.db") as store:
        await fill(store)
        steps = ""
        for statement in asked(SQLITE)[verb]:
            found = await store.driver.fetch(Statement(f"explain query plan {statement.sql}", statement.params))
            for row in found.rows:
                step = str(row[3])
                steps += step
                partial = re.search(r"USING (COVERING )?INDEX zerver_jobs_", step)
                walks = step.startswith("SCAN") and re.search(r"\b(j|k|m|r|zerver_jobs)\b", step) and not partial
                walks = walks or "INTEGER PRIMARY KEY (rowid<" in step or "INTEGER PRIMARY KEY (rowid>" in step
                assert not walks or verb == "search", f"{step}: {statement.sql}"
        assert verb != "take" or SUSPECTS in steps


@pytest.mark.parametrize("verb", asked(POSTGRES))
async def test_postgres_finds_by_an_index(verb: str, conninfo: str, server: Server) -> None:
    async with open_postgres_jobs(conninfo) as store:
        await fill(store)
        server.ask("analyze zerver_jobs", database_of(conninfo))
        for statement in asked(POSTGRES)[verb]:
            found = await store.driver.transaction([Statement(f"explain {statement.sql}", statement.params)])
            plan = "\n".join(str(row[0]) for answer in found for row in getattr(answer, "rows", ()))
            assert plan
            assert not re.search(r"Seq Scan on zerver_jobs\b", plan), f"{statement.sql}\n{plan}"
        assert verb != "take" or SUSPECTS in plan
