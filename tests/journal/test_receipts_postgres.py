"""Receipts in a real PostgreSQL keep every promise of the port, and their clock is the server's."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from tests.sql.postgresql import Server, database_of, free_port, running_server
from zerver.errors import DamagedJournal, JournalUnavailable
from zerver.journal import open_postgres_receipts
from zerver.runtime.receipts import Claim, Receipts, StoredAnswer
from zerver.testing import check_receipts

ANSWER = StoredAnswer(201, ((b"x-a", b"1"),), b"done")
GIVE_UP = 30.0


def claim(run_id: str, place: bytes = b"p") -> Claim:
    return Claim(place, run_id, b"head", b"body", 4)


async def test_it_keeps_the_promises(server: Server) -> None:
    @asynccontextmanager
    async def opened(clock: Callable[[], float]) -> AsyncGenerator[Receipts, None]:
        async with open_postgres_receipts(server.make_database(), now=clock, patience=20.0) as receipts:
            yield receipts

    await check_receipts(opened)


async def test_two_workers_share_them(conninfo: str) -> None:
    async with open_postgres_receipts(conninfo) as one, open_postgres_receipts(conninfo) as other:
        owners: set[str] = set()

        async def ask(receipts: Receipts, run_id: str) -> None:
            owners.add((await receipts.claim(claim(run_id), 30.0)).run_id)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, (one, other)[number % 2], f"r{number}")
        (owner,) = owners
        assert await one.store(owner, ANSWER, 3600.0)
        found = await other.find(b"p")
        assert found is not None
        assert (found.run_id, found.answer) == (owner, ANSWER)


async def test_leases_are_by_the_servers_clock(conninfo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_postgres_receipts(conninfo) as receipts:
        await receipts.claim(claim("r1"), 30.0)
        for seconds in (86_400, -86_400):
            true = time.time()
            monkeypatch.setattr(time, "time", lambda now=true + seconds: now)
            assert (await receipts.claim(claim("r2"), 30.0)).run_id == "r1"


async def test_a_clock_that_was_set_back_keeps_no_claim(conninfo: str) -> None:
    now = 1e9
    async with open_postgres_receipts(conninfo, now=lambda: now) as receipts:
        await receipts.claim(claim("r1"), 30.0)
        now -= 3600
        assert (await receipts.claim(claim("r2"), 30.0)).before == "r1"


async def test_what_has_expired_is_swept_away(conninfo: str) -> None:
    now = 1e9
    async with open_postgres_receipts(conninfo, now=lambda: now) as receipts:
        for number in range(20):
            await receipts.claim(claim(f"r{number}", b"%d" % number), 30.0)
            await receipts.store(f"r{number}", ANSWER, 60.0)
        now += 61
        for number in range(20, 25):
            await receipts.claim(claim(f"r{number}", b"%d" % number), 30.0)
        tally = await receipts.tally()
        assert (tally.under_way, tally.stored) == (5, 0)


async def test_another_version_is_refused(server: Server, conninfo: str) -> None:
    async with open_postgres_receipts(conninfo):
        pass
    server.ask("update zerver_receipts_schema set version = 9", database_of(conninfo))
    with pytest.raises(DamagedJournal, match="version 9; this one knows 2"):
        async with open_postgres_receipts(conninfo):
            pass


async def test_a_server_that_is_away_is_said_to_be() -> None:
    with pytest.raises(JournalUnavailable, match="cannot be opened"):
        async with open_postgres_receipts(f"host=127.0.0.1 port={free_port()} user=x dbname=x"):
            pass
    with running_server() as own:
        async with open_postgres_receipts(own.make_database()) as receipts:
            await receipts.claim(claim("r1"), 30.0)
            own.stop()
            with trio.fail_after(GIVE_UP), pytest.raises(JournalUnavailable):
                await receipts.claim(claim("r2", b"q"), 30.0)
            own.start()
            with trio.fail_after(GIVE_UP):
                while True:
                    try:
                        assert (await receipts.claim(claim("r2", b"q"), 30.0)).run_id == "r2"
                        break
                    except JournalUnavailable as error:
                        await trio.sleep(error.retry_after)
