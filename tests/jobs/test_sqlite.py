"""The store of jobs in a SQLite file: the port's promises."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from zerver.jobs.places import open_sqlite_jobs
from zerver.testing.jobs import check_jobs


async def test_kit(tmp_path: Path) -> None:
    await check_jobs(partial(open_sqlite_jobs, tmp_path / "jobs.db"))
