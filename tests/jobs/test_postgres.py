"""The store of jobs in a real PostgreSQL: the port's promises."""

from __future__ import annotations

from functools import partial

from zerver.jobs.places import open_postgres_jobs
from zerver.testing.jobs import check_jobs


async def test_kit(conninfo: str) -> None:
    await check_jobs(partial(open_postgres_jobs, conninfo))
