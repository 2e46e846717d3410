"""Receipts in a SQLite file keep every promise of the port, across processes, restarts and clocks that are set."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from zerver.errors import DamagedJournal, JournalUnavailable
from zerver.journal.receipts import open_sqlite_receipts
from zerver.runtime.receipts import Claim, Receipts, StoredAnswer
from zerver.sql.driver import Statement
from zerver.sql.sqlite import open_sqlite
from zerver.testing import check_receipts

ANSWER = StoredAnswer(201, ((b"x-a", b"1"),), b"done")


def claim(run_id: str, place: bytes = b"p") -> Claim:
    return Claim(place, run_id, b"head", b"body", 4)


async def test_it_keeps_the_promises(tmp_path: Path) -> None:
    number = 0

    @asynccontextmanager
    async def opened(clock: Callable[[], float]) -> AsyncGenerator[Receipts, None]:
        nonlocal number
        number += 1
        async with open_sqlite_receipts(tmp_path / f"{number}.db", now=clock, tick=clock) as receipts:
            yield receipts

    await check_receipts(opened)


async def test_answers_survive_their_process(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "receipts.db"
    async with open_sqlite_receipts(path) as receipts:
        await receipts.claim(claim("r1"), 30.0)
        await receipts.store("r1", ANSWER, 3600.0)
    async with open_sqlite_receipts(path) as receipts:
        found = await receipts.find(b"p")
        assert found is not None
        assert (found.run_id, found.answer) == ("r1", ANSWER)
        assert (await receipts.tally()).bytes == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_wall_clock_that_is_set_takes_no_claim_away(tmp_path: Path) -> None:
    wall, tick = 1e9, 1000.0
    async with open_sqlite_receipts(tmp_path / "r.db", now=lambda: wall, tick=lambda: tick) as receipts:
        await receipts.claim(claim("r1"), 30.0)
        for step in (86_400, -2 * 86_400):
            wall += step
            assert (await receipts.claim(claim("r2"), 30.0)).run_id == "r1"
        tick += 31
        assert (await receipts.claim(claim("r2"), 30.0)).run_id == "r2"


async def test_claims_of_before_the_machine_started_have_lapsed(tmp_path: Path) -> None:
    tick = 1e6
    async with open_sqlite_receipts(tmp_path / "r.db", tick=lambda: tick) as receipts:
        await receipts.claim(claim("r1"), 30.0)
        tick = 12.0
        assert await receipts.find(b"p") is None
        assert (await receipts.claim(claim("r2"), 30.0)).before == "r1"


async def test_what_has_expired_is_swept_away(tmp_path: Path) -> None:
    wall = 1e9
    async with open_sqlite_receipts(tmp_path / "r.db", now=lambda: wall, tick=lambda: wall) as receipts:
        for number in range(20):
            await receipts.claim(claim(f"r{number}", b"%d" % number), 30.0)
            await receipts.store(f"r{number}", ANSWER, 60.0)
        wall += 61
        for number in range(20, 25):
            await receipts.claim(claim(f"r{number}", b"%d" % number), 30.0)
        tally = await receipts.tally()
        assert (tally.under_way, tally.stored) == (5, 0)


async def test_it_lives_beside_other_tables(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "shop.db", schema="create table orders (id integer primary key)") as shop:
        async with open_sqlite_receipts(tmp_path / "shop.db") as receipts:
            await receipts.claim(claim("r1"), 30.0)
        assert (await shop.fetch(Statement("select count(*) from orders"))).rows == [(0,)]


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database at all, and long enough to be looked at " * 100)
    before = path.read_bytes()
    with pytest.raises(DamagedJournal, match="another path"):
        async with open_sqlite_receipts(path):
            pass
    assert path.read_bytes() == before


async def test_another_version_is_refused(tmp_path: Path) -> None:
    async with open_sqlite_receipts(tmp_path / "r.db"):
        pass
    async with open_sqlite(tmp_path / "r.db") as db:
        await db.execute(Statement("update zerver_receipts_schema set version = 9"))
    with pytest.raises(DamagedJournal, match="version 9; this one knows 2"):
        async with open_sqlite_receipts(tmp_path / "r.db"):
            pass


async def test_a_store_that_is_closed_is_unavailable(tmp_path: Path) -> None:
    async with open_sqlite_receipts(tmp_path / "r.db") as receipts:
        pass
    with pytest.raises(JournalUnavailable):
        await receipts.find(b"p")
    with pytest.raises(JournalUnavailable):
        await receipts.claim(claim("r1"), 30.0)


_CLAIMANT = """
import sys, trio
from zerver.journal.receipts import open_sqlite_receipts
from zerver.runtime.receipts import Claim

async def main(path, name):
    async with open_sqlite_receipts(path) as receipts:
        print("open", flush=True)
        sys.stdin.readline()  # all begin together
        won = 0
        for number in range(50):
            got = await receipts.claim(Claim(b"%d" % number, f"{name}-{number}", b"", b"", 0), 30.0)
            won += got.run_id == f"{name}-{number}"
        print(won, flush=True)

trio.run(main, *sys.argv[1:])
"""


def test_of_two_processes_each_place_goes_to_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CLAIMANT, str(tmp_path / "r.db")]
    processes = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    won = 0
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 0
            won += int(said)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert won == 50


async def test_claims_go_on_while_a_neighbour_reads(tmp_path: Path) -> None:
    async with (
        open_sqlite_receipts(tmp_path / "r.db") as one,
        open_sqlite_receipts(tmp_path / "r.db") as two,
        trio.open_nursery() as nursery,
    ):
        owners: set[str] = set()

        async def ask(receipts: Receipts, run_id: str) -> None:
            owners.add((await receipts.claim(claim(run_id), 30.0)).run_id)

        for number in range(20):
            nursery.start_soon(ask, (one, two)[number % 2], f"r{number}")
    assert len(owners) == 1
