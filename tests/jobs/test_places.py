"""Places: a store by its URL, in the app's own database, and what is said of those that are none."""

from __future__ import annotations

import stat
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.sql.postgresql import free_port
from zerver.errors import DamagedJournal, DefinitionError, JournalUnavailable, NotKeepable
from zerver.jobs.places import open_jobs, open_jobs_of, open_postgres_jobs, open_sqlite_jobs
from zerver.jobs.port import Order, QueueRule
from zerver.sql import open_sqlite
from zerver.sql.driver import Statement
from zerver.testing.job_case import OpenStore


async def test_a_file_by_its_url_is_made_and_found_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deep/jobs.db"
    async with open_jobs(url) as store:
        assert await store.order([Order("a", "flow")]) == ["a"]
    assert stat.S_IMODE((tmp_path / "deep" / "jobs.db").stat().st_mode) == 0o600
    async with open_jobs(url) as store:
        assert await store.find("a") is not None


@pytest.mark.parametrize(
    "url", ["jobs.db", "sqlite://host/jobs.db", "sqlite:///", "mysql://u:secret@h/d", "sqlite:///a?b"]
)
def test_a_url_that_names_none_is_told_without_its_password(url: str) -> None:
    with pytest.raises(DefinitionError, match=r"sqlite:///jobs\.db") as told:
        open_jobs(url)
    assert "secret" not in str(told.value)


async def test_the_apps_own_database_holds_the_tables_beside_its_own(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "app.db", schema="create table orders (id text)") as driver:
        async with open_jobs_of(driver) as store:
            await store.order([Order("a", "flow")])
        await driver.execute(Statement("insert into orders values ('x')"))
        async with open_jobs_of(driver) as store:
            assert await store.find("a") is not None


async def test_many_open_one_place_at_once(tmp_path: Path, conninfo: str) -> None:
    openers: list[OpenStore] = [
        partial(open_sqlite_jobs, tmp_path / "jobs.db"),
        partial(open_postgres_jobs, conninfo),
    ]
    for opener in openers:

        async def one(number: int, opener: OpenStore = opener) -> None:
            async with opener() as store:
                await store.order([Order(f"job {number}", "flow")])

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(one, number)
        async with opener() as store:
            assert len(await store.take("worker", [QueueRule("default")], 10)) == 5


async def test_tables_of_a_newer_version_are_left_alone(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "app.db") as driver:
        async with open_jobs_of(driver):
            pass
        await driver.execute(Statement("update zerver_jobs_store set version = 99"))
        with pytest.raises(DamagedJournal, match="newer Zerver"):
            async with open_jobs_of(driver):
                pass


async def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no database, and longer than its header is; " * 100)
    (tmp_path / "folder").mkdir()
    for opening, error in (
        (open_sqlite_jobs(tmp_path / "file"), JournalUnavailable),
        (open_sqlite_jobs(tmp_path / "folder"), JournalUnavailable),
        (open_postgres_jobs(f"host=127.0.0.1 port={free_port()} user=x dbname=x"), JournalUnavailable),
    ):
        with pytest.raises(error, match="cannot open"):
            async with opening:
                pass
    assert (tmp_path / "file").read_bytes().startswith(b"no database")


async def test_text_that_no_column_keeps_spoils_nobody_elses_order(conninfo: str) -> None:
    told: list[str] = []

    async with open_postgres_jobs(conninfo) as store:

        async def one(number: int) -> None:
            try:
                await store.order([Order(f"job {number}", "fl\0w" if number == 3 else "flow")])
            except NotKeepable:
                told.append(f"job {number}")

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        assert told == ["job 3"]
        assert len(await store.take("worker", [QueueRule("default")], 10)) == 7
