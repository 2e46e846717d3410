"""A shop, served: run as `python -m tests.faults.shop JOURNAL FOLDER [LEASE [SAYS]]`. Tests take its disk, its
database or its time away.

The provider is a file of its own, in FOLDER, which counts what it is asked for; a charge waits while FOLDER/gate is
there. The shop says where it is served, and is closed by the end of its input; then it says what a file of its journal
is worth.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import Annotated

import trio

from zerver import INJECTED, App, Done, Flow, IdempotencyKey, Slot, effect, step
from zerver.edge import open_edge
from zerver.http import Body, json, open_http_listeners, serve_http
from zerver.journal import open_journal, postgres_receipts, sqlite_receipts
from zerver.runtime import open_runtime

#: An order of this number is refused behind its charge, which is to be refunded then.
SOLD_OUT = 13

FOLDER = Path(sys.argv[2] if len(sys.argv) > 2 else ".")

TABLES = """
pragma journal_mode = wal;
create table if not exists calls (key text primary key, count integer);
create table if not exists charges (key text primary key, number integer, undone integer default 0);
create table if not exists orders (number integer primary key);
"""


@contextmanager
def provider() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(FOLDER / "provider.db", isolation_level=None, timeout=30)) as database:
        database.execute("pragma synchronous = off")
        yield database


def count(database: sqlite3.Connection, key: str) -> None:
    database.execute("insert into calls values (?, 1) on conflict do update set count = count + 1", (key,))


@effect(kind="bank.charge", access="write")
async def charge(number: int, *, key: IdempotencyKey = INJECTED) -> str:
    with provider() as database:
        count(database, key)
        database.execute("insert or ignore into charges (key, number) values (?, ?)", (key, number))
    while (FOLDER / "gate").exists():
        await trio.sleep(0.01)
    await trio.lowlevel.checkpoint()
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


Paid = Annotated[str, Slot("paid")]
Number = Annotated[int, Slot("number")]


@step
async def pay(body: Annotated[int, Body()]) -> tuple[Number, Paid]:
    return body, await charge(body).compensate(refund, resolve=find)


@step
async def make(number: Number, paid: Paid) -> Done:
    await order(number).compensate(cancel, by_key=lambda _: cancel(number))
    if number == SOLD_OUT:
        raise ValueError(paid)
    return Done(json({"number": number, "paid": paid}, status=201))


SHOP = Flow("shop", [pay, make], durability="sync", deadline=60.0, idempotency="optional")


async def main(journal_url: str, folder: str, lease: str = "10", says: str = "") -> None:
    """says: "nothing" for a worker without HTTP."""
    is_sqlite = journal_url.startswith("sqlite")
    app = App(
        "shop", capabilities=[sqlite_receipts(f"{folder}/keys.db") if is_sqlite else postgres_receipts(journal_url)]
    )
    app.route("POST", "/orders", SHOP)
    with provider() as database:
        database.executescript(TABLES)
    async with AsyncExitStack() as stack:
        journal = await stack.enter_async_context(open_journal(journal_url))
        runtime = await stack.enter_async_context(open_runtime(app, journal=journal, lease=float(lease)))
        if says == "nothing":
            tell("http://nowhere")
            await trio.to_thread.run_sync(sys.stdin.read)
            return
        edge = await stack.enter_async_context(open_edge(app, runtime))
        nursery = await stack.enter_async_context(trio.open_nursery())
        server = await nursery.start(serve_http, edge.handle, await open_http_listeners("127.0.0.1", 0))
        tell(*server.addresses)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()
    if is_sqlite:
        with closing(sqlite3.connect(journal_url.removeprefix("sqlite:///"))) as kept:
            tell(kept.execute("pragma integrity_check").fetchone()[0])
            tell(*(status or "unfinished" for (status,) in kept.execute("select status from zerver_runs")))


def tell(*words: str) -> None:
    os.write(1, f"{' '.join(words)}\n".encode())


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
