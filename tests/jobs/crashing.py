"""Workers that die: run as `python -m tests.jobs.crashing DURABILITY FOLDER`, it goes through every moment at which a
worker can die while it works through some jobs, and says what was wrong afterwards.

Each life is a fork of this process. A moment is before or after what is asked of the store or of the provider, which is
a file of its own: it does not die with the workers, and counts what it is asked for.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import trio
import trio.lowlevel

from zerver import INJECTED, App, Done, Flow, IdempotencyKey, Slot, effect, step
from zerver.effects import queue
from zerver.jobs import WorkerSettings, jobs_capability, open_worker, order
from zerver.jobs.capability import desk_of
from zerver.jobs.places import open_sqlite_jobs
from zerver.jobs.port import FINAL, JobStore, Wanted
from zerver.journal import open_sqlite_journal
from zerver.runtime import open_runtime

NUMBERS = (1, 2)

DURABILITY: Any = sys.argv[1] if len(sys.argv) > 1 else "off"
FOLDER = Path(sys.argv[2] if len(sys.argv) > 2 else ".")


class Moments:
    """Counts moments; this process dies at the one that it is armed with."""

    def __init__(self) -> None:
        self.left = 0

    def pass_by(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = Moments()


class Dying:
    """A store whose user may die before and after whatever is asked of it."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)
        if name not in ("order", "take", "began", "settle", "rescue", "unpark"):
            return verb

        async def ask(*args: Any) -> Any:
            MOMENTS.pass_by()
            answer = await verb(*args)
            MOMENTS.pass_by()
            return answer

        return ask


@contextmanager
def provider() -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(FOLDER / "provider.db", isolation_level=None)
    try:
        yield database
    finally:
        database.close()


@effect(kind="bank.charge", access="write")
async def charge(number: int, *, key: IdempotencyKey = INJECTED) -> int:
    await trio.lowlevel.checkpoint()
    MOMENTS.pass_by()
    with provider() as database:
        count = "insert into calls values (?, 1) on conflict do update set count = count + 1"
        database.execute(count, (key,))
        database.execute("insert or ignore into charges values (?, ?)", (key, number))
    MOMENTS.pass_by()
    return number


Number = Annotated[int, Slot("number")]


@step
async def pay(number: Number) -> Done:
    await charge(number)
    return Done(number)


@step
async def total() -> Done:
    return Done("all are paid")


PAY = Flow("pay", [pay], takes=[Number], durability=DURABILITY)
TOTAL = Flow("total", [total])


@asynccontextmanager
async def open_store() -> AsyncIterator[Any]:
    async with open_sqlite_jobs(FOLDER / "jobs.db") as store:
        yield Dying(store)


async def live(name: str, before: str) -> None:
    """One life: ask for the jobs, as the life before may have done, and work until all are over."""
    app = App(capabilities=[jobs_capability(open_store)])
    app.job(PAY)
    app.job(TOTAL)
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(60))
        journal = None
        if DURABILITY != "off":
            journal = await stack.enter_async_context(open_sqlite_journal(FOLDER / "journal.db"))
            if before:
                await journal.renew(before, 0.0)
        runtime = await stack.enter_async_context(open_runtime(app, journal=journal, owner=name, lease=0.05))
        store = desk_of(runtime).store
        if before:
            await store.renew(before, 0.0)
        # A program that asks again for what it may have asked for already says so with a key.
        paid = [queue.enqueue(PAY, {"number": number}) for number in NUMBERS]
        await order(runtime, queue.fan_out(paid, then=queue.enqueue(TOTAL)), key="the only one")
        await stack.enter_async_context(open_worker(runtime, WorkerSettings(owner=name, lease=10.0, seats=2)))
        while any(job.state not in FINAL for job in await store.search(Wanted())):
            await trio.sleep(0.002)
        for job in await store.search(Wanted()):
            if job.state != "done":
                raise AssertionError(f"{job} is not done")


def life(name: str, before: str, dies_at: int) -> bool:
    """Whether it died."""
    child = os.fork()
    if child == 0:
        try:
            MOMENTS.left = dies_at
            trio.run(live, name, before)
        except BaseException as error:
            print(f"{name}: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise SystemExit(f"{name}, which was to die at moment {dies_at}, ended with {status}")
    return False


def check() -> Iterator[str]:
    """What is wrong."""
    with provider() as database:
        charges = [number for (number,) in database.execute("select number from charges order by number")]
        if charges != [*NUMBERS]:
            yield f"charged were {charges}"
        for key, times in database.execute("select key, count from calls where count > 2"):
            yield f"{key} was asked for {times} times, with one death"
    with sqlite3.connect(FOLDER / "jobs.db") as database:
        states = [state for (state,) in database.execute("select state from zerver_jobs")]
        if states != ["done"] * (len(NUMBERS) + 1):
            yield f"the jobs are {states}"
    database.close()


def main() -> None:
    number = 0
    while True:
        number += 1
        for file in FOLDER.iterdir():
            file.unlink()
        with provider() as database:
            database.executescript(
                "pragma synchronous = off; create table calls (key text primary key, count integer);"
                "create table charges (key text primary key, number integer);"
            )
        died = life("first", "", number)
        if died:
            life("second", "first", 0)
        for wrong in check():
            raise SystemExit(f"dead at moment {number}: {wrong}")
        if not died:
            break
    print(f"{number - 1} deaths")


if __name__ == "__main__":
    main()
