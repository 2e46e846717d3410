"""How many small commits a second? Zerver's SQLite driver beside one `trio.to_thread.run_sync` for each insert.

Both do the same: so many tasks at once, each inserting rows one by one and waiting for the commit of each, WAL
and synchronous=FULL. Rounds alternate, so that a noisy machine is noisy to both; the ratio of the medians counts.

    .venv/bin/python scripts/benchmarks/sqlite_commits.py [--writers 50] [--rows 2000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import trio

from zerver.sql.driver import Statement
from zerver.sql.sqlite import open_sqlite

SCHEMA = "create table if not exists events (id integer primary key, data text)"
INSERT = "insert into events (data) values (?)"
DATA = "x" * 200

Insert = Callable[[], Awaitable[object]]


async def rows_per_second(insert: Insert, writers: int, rows: int) -> float:
    async def writer() -> None:
        for _ in range(rows // writers):
            await insert()

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(writers):
            nursery.start_soon(writer)
    return rows / (time.perf_counter() - started)


async def with_zerver(folder: Path, writers: int, rows: int) -> float:
    async with open_sqlite(folder / "zerver.db", schema=SCHEMA) as db:
        return await rows_per_second(lambda: db.execute(Statement(INSERT, (DATA,))), writers, rows)


async def with_threads(folder: Path, writers: int, rows: int) -> float:
    with closing(sqlite3.connect(folder / "threads.db", isolation_level=None, check_same_thread=False)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        db.execute(SCHEMA)
        one_at_a_time = trio.CapacityLimiter(1)  # a connection is no place for two threads

        async def insert() -> None:
            await trio.to_thread.run_sync(db.execute, INSERT, (DATA,), limiter=one_at_a_time)

        return await rows_per_second(insert, writers, rows)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    contestants = {"to_thread.run_sync, one commit each": with_threads, "zerver, group commit": with_zerver}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, contestant in contestants.items():
            with tempfile.TemporaryDirectory(dir=".") as folder:  # here, and not in /tmp, which may be memory
                rates[name].append(await contestant(Path(folder), options.writers, options.rows))

    print(f"{options.writers} writers, {options.rows} rows, WAL, synchronous=FULL, median of {options.rounds} rounds")
    medians = {name: statistics.median(rounds) for name, rounds in rates.items()}
    slowest = min(medians.values())
    for name, median in medians.items():
        print(f"  {name:<38} {median:>9,.0f} commits/s  {median / slowest:5.1f}x")


if __name__ == "__main__":
    trio.run(main)
