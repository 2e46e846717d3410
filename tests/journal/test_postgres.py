"""The journal in a real PostgreSQL: the port's promises, and a database that goes away, is frozen, or is not heard."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio

from tests.journal.writer import opening
from tests.sql.postgresql import Proxy, Server, database_of, free_port, open_proxy, running_server, through
from zerver.errors import DamagedJournal, DefinitionError, JournalUnavailable, LeaseLost, NotKeepable
from zerver.journal import open_postgres_journal
from zerver.runtime.journal import Entry, Journal, Page
from zerver.testing.journals import check_journal

#: Seconds within which somebody who waits for a journal that is away is told so; the journal's own patience is one.
SOON = 4.0

#: How a commit stands on the wire; another statement of the journal's has the word in it.
COMMIT = b"commit\0"


async def test_kit(conninfo: str) -> None:
    await check_journal(partial(open_postgres_journal, conninfo, patience=20.0))


async def test_a_newer_journal_is_refused(server: Server, conninfo: str) -> None:
    async with open_postgres_journal(conninfo):
        pass
    server.ask("update zerver_journal set version = 7", database_of(conninfo))
    with pytest.raises(DamagedJournal, match=r"newer Zerver \(version 7; this one knows 3\)"):
        async with open_postgres_journal(conninfo):
            pass


async def test_a_server_that_is_not_there(tmp_path: object) -> None:
    with pytest.raises(JournalUnavailable, match="cannot open the journal"):
        async with open_postgres_journal(f"host=127.0.0.1 port={free_port()} user=x dbname=x"):
            pass
    with pytest.raises(DefinitionError):
        async with open_postgres_journal("no such = = thing"):
            pass


async def test_tables_that_are_gone_are_said_to_be(server: Server, conninfo: str) -> None:
    async with open_postgres_journal(conninfo) as journal:
        await journal.renew("writer", 600.0)
        server.ask("drop table zerver_pages", database_of(conninfo))
        with pytest.raises(DamagedJournal, match="zerver_pages"):
            await journal.write(opening("run"))


@pytest.mark.parametrize("tenant", ["a\0b", "\ud800"])
async def test_text_that_no_column_keeps_does_not_look_like_damage(tenant: str, conninfo: str) -> None:
    async with open_postgres_journal(conninfo) as journal:
        await journal.renew("writer", 600.0)
        entry = opening("run")
        with pytest.raises(NotKeepable):
            await journal.write(attrs.evolve(entry, head=attrs.evolve(entry.head, tenant=tenant)))
        await journal.write(entry)


async def until_written(journal: Journal, entry: Entry) -> None:
    while True:
        try:
            await journal.write(entry)
        except JournalUnavailable as error:
            await trio.sleep(error.retry_after)
        else:
            return


async def test_a_restarted_server_is_told_at_once_and_found_again() -> None:
    with running_server() as own:
        async with open_postgres_journal(own.make_database()) as journal:
            await journal.renew("writer", 600.0)
            await journal.write(opening("before"))
            own.stop()
            journal.write_behind(Page("before", 1, 1, [b"behind"]))
            with trio.fail_after(SOON), pytest.raises(JournalUnavailable) as told:
                await journal.write(opening("during"))
            assert told.value.retry_after > 0
            assert journal.statistics().trouble
            own.start()
            with trio.fail_after(5 * SOON):
                await until_written(journal, opening("after"))
                await journal.flush()
            behind = await journal.read("before")
            assert behind is not None
            assert behind.lines == (b"0", b"behind")
            assert await journal.read("during") is None
            assert journal.statistics().trouble == ""


@asynccontextmanager
async def two_ways(server: Server, conninfo: str) -> AsyncGenerator[tuple[Journal, Proxy, Journal], None]:
    """A journal, healthy, with a run `first`; and the same one by way of a proxy, on which nothing was prepared yet."""
    async with (
        open_postgres_journal(conninfo) as healthy,
        open_proxy(server) as proxy,
        open_postgres_journal(f"{through(proxy.port, conninfo)} sslmode=disable") as journal,
    ):
        await healthy.renew("writer", 600.0)
        await healthy.write(opening("first"))
        yield healthy, proxy, journal


async def test_a_commit_whose_answer_is_lost_is_asked_for_again(server: Server, conninfo: str) -> None:
    async with two_ways(server, conninfo) as (healthy, proxy, journal), trio.open_nursery() as nursery:

        async def recover() -> None:
            await proxy.lost.wait()
            proxy.lose_reply = None

        nursery.start_soon(recover)
        proxy.lose_reply = COMMIT
        await journal.write(Page("first", 1, 1, [b"1"], "done"))
        assert proxy.lost.is_set()
        found = await healthy.read("first")
        assert found is not None
        assert (found.lines, found.status) == ((b"0", b"1"), "done")


async def test_a_run_that_was_said_not_to_have_begun_is_withdrawn(server: Server, conninfo: str) -> None:
    """Its commit went through, twice, and nobody heard of it: who asked was told 503, and nothing of it may run."""
    async with two_ways(server, conninfo) as (healthy, proxy, journal):
        proxy.lose_reply = COMMIT
        with trio.fail_after(5 * SOON), pytest.raises(JournalUnavailable):
            await journal.write(opening("second"))
        assert await healthy.read("second") is not None
        proxy.lose_reply = None
        with trio.fail_after(5 * SOON):
            await until_written(journal, opening("third"))
        assert await healthy.read("second") is None
        assert await healthy.read("third") is not None


async def test_a_frozen_database_is_not_waited_for(server: Server, conninfo: str) -> None:
    database = database_of(conninfo)
    async with open_postgres_journal(conninfo, patience=0.3) as journal:
        await journal.renew("writer", 600.0)
        await journal.write(opening("first"))
        backends = [row[0] for row in server.ask(f"select pid from pg_stat_activity where datname = '{database}'")]
        for backend in backends:
            server.freeze(backend)
        try:
            with trio.fail_after(5 * SOON):
                await until_written(journal, opening("second"))
        finally:
            for backend in backends:
                server.thaw(backend)
        with pytest.raises(LeaseLost):
            await journal.write(Page("first", 2, 1, [b"1"]))
