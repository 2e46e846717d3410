"""A shop that dies: run as `python -m tests.runtime.crashing SITE FOLDER [JOURNAL]`, it goes through every time at
which a process can die at one place, and says what was wrong afterwards. JOURNAL: a URL; a SQLite file by default.

Each life is a fork of this process, so that the interpreter is started but once. Orders come over HTTP. The provider is
a file of its own: it does not die with the shop, and counts what it is asked for.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psycopg
import trio
import trio.lowlevel

from zerver import INJECTED, App, Done, Flow, IdempotencyKey, Slot, effect, step
from zerver.edge import open_edge
from zerver.errors import Rejected
from zerver.http import Path as FromPath
from zerver.http import open_http_client, open_http_listeners, serve_http
from zerver.journal import open_journal
from zerver.runtime import open_runtime
from zerver.runtime.crash import crash_point
from zerver.runtime.journal import UNRESOLVED

ORDERS = (1, 2, 3)
SOLD_OUT = 2

FOLDER = Path(sys.argv[2] if len(sys.argv) > 2 else ".")
SQLITE = f"sqlite:///{FOLDER.absolute()}/journal.db"
JOURNAL = sys.argv[3] if len(sys.argv) > 3 else SQLITE


@contextmanager
def provider() -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(FOLDER / "provider.db", isolation_level=None)
    try:
        yield database
    finally:
        database.close()


def begin_again() -> None:
    for file in FOLDER.iterdir():
        file.unlink()
    if JOURNAL != SQLITE:
        empty_postgres()
    with provider() as database:
        database.executescript(
            """
            pragma synchronous = off;
            create table calls (key text primary key, count integer);
            create table charges (key text primary key, number integer, undone integer default 0);
            create table orders (number integer primary key);
            create table asked (number integer primary key, answer text);
            """
        )


def empty_postgres() -> None:
    with psycopg.connect(JOURNAL) as connection:
        if connection.execute("select to_regclass('zerver_runs') is not null").fetchone() == (True,):
            connection.execute("truncate zerver_runs, zerver_owners cascade")


def count(database: sqlite3.Connection, key: str) -> None:
    database.execute("insert into calls values (?, 1) on conflict do update set count = count + 1", (key,))


# ---- the shop -------------------------------------------------------------------------------


@effect(kind="bank.charge", access="write")
async def charge(number: int, *, key: IdempotencyKey = INJECTED) -> str:
    await trio.lowlevel.checkpoint()
    with provider() as database:
        count(database, key)
        database.execute("insert or ignore into charges (key, number) values (?, ?)", (key, number))
    return str(key)


@effect(kind="bank.refund", access="write")
async def refund(charged: str, *, key: IdempotencyKey = INJECTED) -> None:
    await trio.lowlevel.checkpoint()
    with provider() as database:
        count(database, key)
        database.execute("update charges set undone = 1 where key = ?", (charged,))


@effect(kind="bank.find", access="read")
async def find(key: str) -> str | None:
    await trio.lowlevel.checkpoint()
    with provider() as database:
        return key if database.execute("select 1 from charges where key = ?", (key,)).fetchone() else None


@effect(kind="shop.order", access="write")
async def order(number: int, *, key: IdempotencyKey = INJECTED) -> int:
    await trio.lowlevel.checkpoint()
    with provider() as database:
        count(database, key)
        database.execute("insert or ignore into orders values (?)", (number,))
    return number


@effect(kind="shop.cancel", access="write")
async def cancel(number: int, *, key: IdempotencyKey = INJECTED) -> None:
    await trio.lowlevel.checkpoint()
    with provider() as database:
        count(database, key)
        database.execute("delete from orders where number = ?", (number,))


@effect(kind="shop.reserve", access="write")
async def reserve(number: int, *, key: IdempotencyKey = INJECTED) -> int | None:
    await trio.lowlevel.checkpoint()
    with provider() as database:
        count(database, key)
    if number == SOLD_OUT:
        raise Rejected("sold out")
    return number


@effect(kind="shop.reserved", access="read")
async def reserved(key: str) -> int | None:
    return None


Number = Annotated[int, Slot("number")]


@step
def read(number: Annotated[int, FromPath()]) -> Number:
    return number


@step
async def pay(number: Number) -> None:
    await charge(number).compensate(refund, resolve=find)


@effect(kind="shop.hours", access="read")
async def hours() -> int:
    """So slow that what came of the charge is on the disk before the next write is asked for."""
    await trio.sleep(0.005)
    return 24


@step
async def look_at_the_clock() -> None:
    await hours()


@step
async def make(number: Number) -> None:
    await order(number).compensate(cancel, by_key=lambda _: cancel(number))


@step
async def take_from_stock(number: Number) -> Done:
    await reserve(number).compensate(resolve=reserved)
    return Done(number)


SHOP = Flow("shop", [read, pay, look_at_the_clock, make, take_from_stock], durability="sync")


async def live(name: str, before: str) -> None:
    """One life: carry on what the life before left, ask for what was never asked for, and wait until all is over."""
    app = App()
    app.route("POST", "/orders/{number}", SHOP)
    with trio.fail_after(60):
        async with open_journal(JOURNAL) as journal:
            if before:
                await journal.renew(before, 0.0)
            async with (
                open_runtime(app, journal=journal, owner=name, lease=10.0) as runtime,
                open_edge(app, runtime) as edge,
                open_http_client(allow_private=True) as client,
                trio.open_nursery() as nursery,
            ):
                server = await nursery.start(serve_http, edge.handle, await open_http_listeners("127.0.0.1", 0))
                with provider() as database:
                    for number in ORDERS:
                        if database.execute("insert or ignore into asked (number) values (?)", (number,)).rowcount:
                            reply = await client.request("POST", f"{server.addresses[0]}/orders/{number}")
                            answer = "done" if reply.ok else "failed"
                            database.execute("update asked set answer = ? where number = ?", (answer, number))
                while (await journal.tallies()).get("", 0):
                    await trio.sleep(0.002)
                if (await journal.tallies()).get(UNRESOLVED):
                    raise AssertionError("a run is unresolved, though the provider can be asked")
                nursery.cancel_scope.cancel()


def life(name: str, before: str, dies_at: str) -> bool:
    """Whether it died."""
    child = os.fork()
    if child == 0:
        try:
            crash_point.arm(dies_at)
            trio.run(live, name, before)
        except BaseException as error:
            print(f"{name}: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise SystemExit(f"{name}, which was to die at {dies_at or 'no place'}, ended with {status}")
    return False


def check(crashes: int) -> Iterator[str]:
    """What is wrong."""
    with provider() as database:
        ordered = {number for (number,) in database.execute("select number from orders")}
        charges = list(database.execute("select number, undone from charges"))
        asked = dict(database.execute("select number, answer from asked"))
        for number in ORDERS:
            standing = sum(not undone for of, undone in charges if of == number)
            if standing != (number in ordered):
                yield f"order {number} has {standing} charges, and {'is' if number in ordered else 'is not'} there"
            if asked.get(number) == "done" and number not in ordered:
                yield f"order {number} was answered as done, and is not there"
            if asked.get(number) == "failed" and number in ordered:
                yield f"order {number} was answered as failed, and is there"
        for key, times in database.execute("select key, count from calls where count > ?", (1 + crashes,)):
            yield f"{key} was asked for {times} times"


def main(site: str) -> None:
    number = 0
    while True:
        number += 1
        begin_again()
        crashes, before = 1, ""
        if site.startswith("claim"):  # somebody has to have died before there is anything to claim
            life("first", "", "effect.reply:2")
            crashes, before = 2, "first"
        died = life("second", before, f"{site}:{number}")
        life("third", "second", "")
        for wrong in check(crashes):
            raise SystemExit(f"dead at {site}:{number}: {wrong}")
        if not died:
            break
    print(f"{number - 1} deaths")


if __name__ == "__main__":
    main(sys.argv[1])
