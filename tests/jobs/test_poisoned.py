"""A job that kills whatever process works on it is dead after three, and takes none of its neighbours with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.jobs.poisoned import JOBS, KILLED, POISON
from zerver.jobs.places import open_sqlite_jobs
from zerver.jobs.port import MOST_RESCUES, SUSPECT, Wanted

ROOT = Path(__file__).parents[2]


def live(folder: Path, life: int) -> int:
    """What one life of a worker ended with."""
    optimized = ["-O"] if not __debug__ else []
    ran = subprocess.run(
        [sys.executable, *optimized, "-m", "tests.jobs.poisoned", str(folder), str(life)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode in (0, KILLED), ran.stderr
    return ran.returncode


async def test_what_kills_its_workers_takes_no_neighbour_with_it(tmp_path: Path) -> None:
    assert [live(tmp_path, life) for life in range(MOST_RESCUES + 1)] == [KILLED] * MOST_RESCUES + [0]
    async with open_sqlite_jobs(tmp_path / "jobs.db") as store:
        jobs = await store.search(Wanted(), JOBS + 1)
    assert len(jobs) == JOBS
    (dead,) = [job for job in jobs if job.state != "done"]
    assert (dead.state, dead.body, dead.rescues) == ("dead", f'{{"number":{POISON}}}', MOST_RESCUES)
    neighbours = [job.rescues for job in jobs if job is not dead]
    assert sum(neighbours) > 0, "nobody was beside it"
    assert max(neighbours) == SUSPECT
