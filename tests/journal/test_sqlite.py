"""The journal in a SQLite file: what is refused, and what is left of it after a crash, a full disk or a bad sector."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

import pytest
import trio

from tests.journal import old_shop
from tests.journal.writer import opening
from zerver import App, IdempotencyKey
from zerver.errors import DamagedJournal, JournalUnavailable
from zerver.journal import open_sqlite_journal, schema
from zerver.journal.sqlite import APPLICATION_ID
from zerver.runtime import Result, open_runtime
from zerver.runtime.journal import Journal, Page
from zerver.sql import open_sqlite

WRITER = Path(__file__).with_name("writer.py")


def process(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    words = [*before, sys.executable, str(WRITER), *map(str, arguments)]
    environ = {**os.environ, "PYTHONPATH": str(WRITER.parents[2])}
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ)


async def filled(path: Path, runs: int = 50) -> None:
    async with open_sqlite_journal(path) as journal:
        await journal.renew("writer", 600.0)
        for number in range(runs):
            await journal.write(opening(f"run{number}", b"%d" % number * 200))


async def all_lines(journal: Journal, runs: int) -> list[tuple[bytes, ...] | None]:
    found = [await journal.read(f"run{number}") for number in range(runs)]
    return [None if run is None else run.lines for run in found]


# ---- files ----------------------------------------------------------------------------------


async def test_a_journal_is_made_for_its_owner_alone_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.db"
    await filled(path)
    assert [file.name for file in path.parent.iterdir()] == ["journal.db"]
    assert path.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma application_id").fetchone() == (APPLICATION_ID,)
        assert db.execute("pragma journal_mode").fetchone() == ("wal",)


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table accounts (id)")


@pytest.mark.parametrize(
    "make",
    [
        foreign_database,
        lambda path: path.write_text("not a database at all"),
        lambda path: path.write_bytes(b"\0" * 5000),
    ],
)
async def test_a_file_of_somebody_else_is_refused_and_left_as_it_was(tmp_path: Path, make: object) -> None:
    path = tmp_path / "journal.db"
    make(path)  # type: ignore[operator]  # a function of the path
    before = path.read_bytes()
    with pytest.raises(DamagedJournal, match="no journal of Zerver's, and was left as it is\n  give another place"):
        async with open_sqlite_journal(path):
            pass
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["journal.db"]


async def test_a_device_is_refused_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.symlink_to("/dev/null")  # "keep none" in other programs
    with pytest.raises(DamagedJournal, match="no journal of Zerver's, and was left as it is"):
        async with open_sqlite_journal(path):
            pass
    assert path.readlink() == Path("/dev/null")
    assert os.listdir(tmp_path) == ["journal.db"]


async def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    await filled(path)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 99, 50):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedJournal, match=r"torn|no journal"):
            async with open_sqlite_journal(path):
                pass


async def test_no_page_can_be_damaged_unnoticed(tmp_path: Path) -> None:
    """Whatever page of the file is overwritten: what is read is what was written, or DamagedJournal."""
    whole, path = tmp_path / "whole.db", tmp_path / "journal.db"
    await filled(whole)
    octets = whole.read_bytes()
    due = [(b"%d" % number * 200,) for number in range(50)]
    refused = 0
    for at in range(4096, len(octets), 4096):
        path.write_bytes(octets[:at] + b"\xa5" * 4096 + octets[at + 4096 :])
        try:
            async with open_sqlite_journal(path) as journal:
                found = await all_lines(journal, 50)
        except DamagedJournal:
            refused += 1
        else:
            assert all(lines is None or lines == due[number] for number, lines in enumerate(found))
    assert refused > 0


async def test_where_no_file_can_be_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "journal.db", tmp_path):
        with pytest.raises((JournalUnavailable, DamagedJournal), match=re.escape(str(path))):
            async with open_sqlite_journal(path):
                pass


async def test_errors_of_the_block_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        async with open_sqlite_journal(tmp_path / "journal.db"):
            raise FileNotFoundError("the block's own")


# ---- versions -------------------------------------------------------------------------------


async def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    await filled(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("update zerver_journal set version = 7")
        db.commit()
    with pytest.raises(DamagedJournal, match=r"newer Zerver \(version 7; this one knows \d\)\n  run the newer"):
        async with open_sqlite_journal(path):
            pass


async def test_runs_of_a_journal_of_version_1_are_carried_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    shutil.copy(Path(__file__).parent / "data" / "version-1.journal", path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select version from zerver_journal").fetchone() == (1,)
    ended: dict[str, Result] = {}
    over = trio.Event()

    def note(result: Result) -> None:
        ended[result.timeline.flow] = result
        if len(ended) == len(old_shop.FLOWS):
            over.set()

    async def send(made: str, *, key: IdempotencyKey) -> str:
        return f"parcel for {made}"

    async with open_sqlite_journal(path) as journal:
        how = {"handlers": {"parcel.send": send}, "flows": old_shop.FLOWS, "observers": [note]}
        async with open_runtime(App(), journal=journal, **how):  # type: ignore[arg-type]  # each is of its own type
            await over.wait()
        assert (await journal.tallies()).get("") is None
    assert ended["resumed"].value == ["charge of 5000", "parcel for charge of 5000"]
    assert ended["undone"].status == "cancelled"


async def test_an_older_journal_is_brought_up_to_date_all_or_nothing(tmp_path: Path) -> None:
    from zerver.sql.dialects import SQLITE

    path = tmp_path / "journal.db"
    await filled(path, 3)
    newest = max(schema.SCRIPTS)
    good = {
        **schema.SCRIPTS,
        newest + 1: "alter table zerver_runs add column colour text; create table zerver_more (id ‹bytes›);",
    }
    bad = {**good, newest + 2: "create table zerver_third (id text); create table zerver_more (id text);"}
    async with open_sqlite(path) as driver:
        with pytest.raises(Exception, match="already exists"):
            await schema.migrate(driver, SQLITE, "place", MappingProxyType(bad))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("select version from zerver_journal").fetchone() == (newest + 1,)
        assert db.execute("select count(*), max(colour) from zerver_runs").fetchone() == (3, None)
        tables = [row[0] for row in db.execute("select name from sqlite_master where type = 'table'")]
    assert "zerver_more" in tables
    assert "zerver_third" not in tables


# ---- processes ------------------------------------------------------------------------------


async def test_what_a_killed_process_had_acknowledged_is_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    for least in (1, 40, 150):
        running = process(path, "write", 1_000_000)
        assert running.stdout is not None
        told = [running.stdout.readline().decode().strip() for _ in range(least)]
        running.kill()
        told += running.communicate()[0].decode().split()
        async with open_sqlite_journal(path) as journal:
            for run_id in told:
                run = await journal.read(run_id)
                assert run is not None
                assert (run.status, run.lines) == ("done", (b"0", b"1" * 100))
        path.unlink()


async def test_two_processes_never_claim_one_run(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    await filled(path, 200)
    async with open_sqlite_journal(path) as journal:
        await journal.renew("writer", 0.0)
    both = [process(path, "claim", owner) for owner in ("one", "other")]
    for running in both:
        assert running.stdout is not None
        assert running.stdin is not None
        assert running.stdout.readline() == b"ready\n"
    for running in both:
        assert running.stdin is not None
        running.stdin.write(b"go\n")
        running.stdin.flush()
    taken = [running.communicate()[0].decode().split() for running in both]
    assert sorted([*taken[0], *taken[1]]) == sorted(f"run{number}" for number in range(200))


async def test_a_full_disk_is_told_loses_nothing_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    told = process(path, "full").communicate()[0].decode().splitlines()
    full = next(at for at, line in enumerate(told) if line.startswith("full "))
    assert full > 3
    assert len(told[full]) > len("full ")
    assert told[-1] == "afterwards"
    async with open_sqlite_journal(path) as journal:
        for run_id in [*told[:full], "afterwards"]:
            assert await journal.read(run_id) is not None
        assert await journal.read(f"run{full}") is None


STRACE = shutil.which("strace")


@pytest.mark.skipif(STRACE is None and not os.environ.get("CI"), reason="strace is not installed; CI always has it")
async def test_nothing_is_acknowledged_before_its_fsync(tmp_path: Path) -> None:
    """Between the last write to the log and an acknowledgement there is an fsync of the log, each time."""
    path, trace = tmp_path / "journal.db", tmp_path / "trace"
    calls = "trace=pwrite64,write,fsync,fdatasync"
    running = process(path, "write", 60, 1, before=(str(STRACE), "-f", "-y", "-o", str(trace), "-e", calls))
    running.communicate()
    assert running.returncode == 0
    unsynced, told, log = False, 0, re.escape(f"{path}-wal>")
    for line in trace.read_text().splitlines():
        if re.search(rf"write(64)?\(\d+<{log}", line):
            unsynced = True
        elif re.search(rf"sync\(\d+<{log}", line):
            unsynced = False
        elif re.search(r'write\(1<[^>]*>, "run', line):
            told += 1
            assert not unsynced, f"acknowledged too early: {line}"
    assert told == 60


# ---- pages ----------------------------------------------------------------------------------


async def test_pruning_gives_room_to_new_runs(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_sqlite_journal(path) as journal:
        await journal.renew("writer", 600.0)
        sizes = []
        for round_ in range(6):
            for number in range(40):
                await journal.write(opening(f"run{round_}-{number}", b"x" * 5_000))
                await journal.write(Page(f"run{round_}-{number}", 1, 1, [b"1"], "done"))
            while await journal.prune(1 << 62):
                pass
            sizes.append(path.stat().st_size)
        assert await journal.tallies() == {}
    assert path.stat().st_size < 2 * 40 * 5_000 + 300_000
