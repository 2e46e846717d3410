"""Several processes take from one store and are killed: every job is done once, and none is lost."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio
import trio.lowlevel

from zerver.jobs.places import open_postgres_jobs, open_sqlite_jobs
from zerver.jobs.port import JobStore, Order, Wanted

JOBS = 400
KILLS = 2
TAKER = str(Path(__file__).with_name("taking.py"))


class Taker:
    """A process that takes jobs."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.owner = f"taker-{process.pid}"

    async def kill(self, store: JobStore) -> None:
        """End it as a power cut would; then its lease is over."""
        self.process.kill()
        await self.process.wait()
        await store.renew(self.owner, 0.0)


@asynccontextmanager
async def taking(place: str, notes: Path, number: int) -> AsyncGenerator[Sequence[Taker], None]:
    """So many processes at work on a store."""
    root = str(Path(__file__).parents[2])
    takers: list[Taker] = []
    try:
        for _ in range(number):
            process = await trio.lowlevel.open_process(
                [sys.executable, TAKER, place, str(notes)], stdout=subprocess.PIPE, cwd=root, env={"PYTHONPATH": root}
            )
            takers.append(Taker(process))
        for taker in takers:
            if taker.process.stdout is None or await taker.process.stdout.receive_some() != b"ready\n":
                raise AssertionError("a taker has not begun")
        yield takers
    finally:
        with trio.CancelScope(shield=True):
            for taker in takers:
                taker.process.kill()
                await taker.process.wait()
                if taker.process.stdout is not None:
                    await taker.process.stdout.aclose()


async def counted(store: JobStore, state: str) -> int:
    return sum(number for queue in await store.queues() for name, number in queue.counts.items() if name == state)


async def check(opening: AbstractAsyncContextManager[JobStore], place: str, notes: Path) -> None:
    async with opening as store:
        for kill in range(KILLS):
            async with taking(place, notes, 3) as takers:
                orders = [Order(f"{kill}.{number}", "flow") for number in range(JOBS)]
                await store.order(orders)
                due = (kill + 1) * JOBS
                while await counted(store, "done") < due - JOBS // 2:
                    await trio.lowlevel.checkpoint()
                await takers[0].kill(store)
                while await counted(store, "done") < due:
                    await store.rescue()
                for taker in takers[1:]:
                    await taker.kill(store)
        jobs = await store.search(Wanted(), KILLS * JOBS + 1)
        assert len(jobs) == KILLS * JOBS
        assert {job.state for job in jobs} == {"done"}
        assert {job.attempt for job in jobs} == {1}
    done = Counter((await trio.Path(notes).read_text()).split())
    # A process that was killed between the commit and the note has done what is not noted; nobody else does it again.
    assert set(done.values()) == {1}
    assert len(done) >= KILLS * (JOBS - 3 * 5)


async def test_sqlite(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    await check(open_sqlite_jobs(file), f"sqlite:///{file}", tmp_path / "notes")


async def test_postgres(conninfo: str, tmp_path: Path) -> None:
    await check(open_postgres_jobs(conninfo), conninfo, tmp_path / "notes")
