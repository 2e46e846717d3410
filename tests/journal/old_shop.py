"""The shop whose journal of version 1 is kept as `data/version-1.journal`, with runs in it that were never finished.

It was made by the code of commit 57118c9, the last one of that version, which this module runs on as well:

    git archive 57118c9 zerver | tar -x -C old
    cd old && PYTHONPATH=. python ../tests/journal/old_shop.py version-1.journal

Each order dies in the midst of its second write, as by `kill -9`; what was in the log is then taken into the file.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing

import trio
import trio.lowlevel

from zerver import INJECTED, App, Done, Flow, IdempotencyKey, effect, step
from zerver.journal import open_sqlite_journal
from zerver.runtime import open_runtime


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, key: IdempotencyKey = INJECTED) -> str:
    await trio.lowlevel.checkpoint()
    return f"charge of {cents}"


@effect(kind="bank.refund", access="write")
async def refund(made: str, *, key: IdempotencyKey = INJECTED) -> None:
    await trio.lowlevel.checkpoint()


@effect(kind="parcel.send", access="write")
async def send(made: str, *, key: IdempotencyKey = INJECTED) -> str:
    os._exit(9)


@step
async def buy() -> Done:
    made = await charge(5000).compensate(refund)
    return Done([made, await send(made)])


RESUMED = Flow("resumed", [buy], durability="sync")
UNDONE = Flow("undone", [buy], durability="sync", on_crash="compensate")
FLOWS = (RESUMED, UNDONE)


async def live(path: str, flow: Flow, seed: int) -> None:
    async with open_sqlite_journal(path) as journal:
        how = {"journal": journal, "lease": 1.0, "owner": flow.name, "seed": seed}
        async with open_runtime(App(), **how) as runtime:
            await runtime.run(flow)


def main(path: str) -> None:
    for seed, flow in enumerate(FLOWS):
        child = os.fork()
        if child == 0:
            trio.run(live, path, flow, seed)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != 9:
            raise SystemExit(f"{flow.name} ended with {status}")
    with closing(sqlite3.connect(path)) as database:
        database.execute("pragma wal_checkpoint(truncate)")
        database.execute("pragma journal_mode = delete")


if __name__ == "__main__":
    main(sys.argv[1])
