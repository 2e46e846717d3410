"""What is left of a campaign: what clients were told, what the provider has done, what the shop and its journal have.

Law: collected when everything is over, from the databases and the provider themselves; nothing here judges it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Final

import attrs

from zerver.core.app import App
from zerver.core.following import Follower, goes_alike
from zerver.core.timeline import Record
from zerver.errors import DamagedJournal
from zerver.jobs.port import Job, JobStore, Wanted
from zerver.runtime.journal import Journal, StoredRun
from zerver.runtime.versions import Versions, code_of

STOCK: Final = 1_000_000_000


@attrs.frozen
class Order:
    """What a client knows of one of its orders. status: of the answer, 0 for none. order, payment: of a 201."""

    reference: str
    status: int
    order: str = ""
    payment: str = ""


@attrs.frozen
class Row:
    """An order, as the shop has it. taken: how many of each sku it took from the stock; wanted: what its cart says."""

    id: str
    reference: str
    payment: str
    amount: int
    status: str
    taken: Mapping[str, int]
    wanted: Mapping[str, int]


@attrs.frozen
class Call:
    """A call that the provider saw. of: the key that a refund is about. told: what the charge is for, in the caller's
    own words. fault: what the provider did to the caller.
    """

    verb: str
    key: str
    of: str
    told: str
    fault: str


@attrs.frozen
class Story:
    """A run, as the journal has it. trouble: why it does not replay to the same history, "" if it does."""

    run_id: str
    status: str
    fence: int
    records: Sequence[Record]
    trouble: str = ""


@attrs.frozen
class Evidence:
    """dedupe: whether the provider honours keys. charges: cents charged with each key, once for each time. refunds: by
    key, 0 for one that was forbidden before anything was charged. stock: what is left. performed: how often each errand
    was, by key; withdrawn: keys of those that were taken back.
    """

    dedupe: bool
    orders: Sequence[Order]
    rows: Sequence[Row]
    stock: Mapping[str, int]
    calls: Sequence[Call]
    charges: Mapping[str, Sequence[int]]
    refunds: Mapping[str, int]
    stories: Sequence[Story]
    jobs: Sequence[Job] = ()
    performed: Mapping[str, int] = attrs.field(factory=dict)
    withdrawn: Sequence[str] = ()


class Away(Exception):
    """A database cannot be asked now."""


def ask(database: str, sql: str) -> list[tuple[Any, ...]]:
    """What a database answers, asked from outside. database: a file, or the URL of one in PostgreSQL. Raises Away."""
    if "://" not in database:
        with closing(sqlite3.connect(database, timeout=30.0)) as connection:
            return connection.execute(sql).fetchall()
    import psycopg

    try:
        with psycopg.connect(database) as server:
            return server.execute(sql.encode()).fetchall()
    except psycopg.OperationalError as error:
        raise Away(database) from error


def read_shop(database: str) -> tuple[list[Row], dict[str, int]]:
    """The orders, and what is left of the stock."""
    taken: dict[str, dict[str, int]] = {}
    for order, sku, quantity in ask(database, "select order_id, sku, quantity from taken"):
        taken.setdefault(order, {})[sku] = quantity
    carts: dict[str, dict[str, int]] = {}
    for cart, sku, quantity in ask(database, "select cart_id, sku, quantity from cart_lines"):
        carts.setdefault(cart, {})[sku] = quantity
    found = ask(
        database,
        "select id, reference, payment, amount, status, cart_id from orders "
        "left join reference on reference.order_id = orders.id",
    )
    rows = [
        Row(order, reference or "", payment, amount, status, taken.pop(order, {}), carts[cart])
        for order, reference, payment, amount, status, cart in found
    ]
    rows += [Row(order, "", "", 0, "missing", lines, {}) for order, lines in taken.items()]
    return rows, dict(ask(database, "select sku, quantity from stock where sku <> 'samovar'"))


async def read_jobs(store: JobStore) -> list[Job]:
    """Every job that the store has."""
    jobs: list[Job] = []
    while page := await store.search(Wanted(), 1000, jobs[-1].seq if jobs else None):
        jobs += page
    return jobs


def read_log(log: Mapping[str, Any]) -> dict[str, Any]:
    """The provider's part of the evidence, of its `GET /log`."""
    calls = [Call(call["verb"], call["key"], call["of"], call["for"], call["fault"]) for call in log["calls"]]
    return {"calls": calls, **{name: log[name] for name in ("charges", "refunds", "performed", "withdrawn")}}


async def read_stories(journal: Journal, run_ids: Sequence[str], app: App) -> list[Story]:
    """Every run of the journal, replayed."""
    stories, versions = [], Versions(app)
    for run_id in run_ids:
        stored = await journal.read(run_id)
        if stored is not None:
            stories.append(read_story(journal, stored, app, versions))
    return stories


def read_story(journal: Journal, stored: StoredRun, app: App, versions: Versions | None = None) -> Story:
    """One run, led through the code once more. versions: of the app."""
    found = (versions or Versions(app)).find(stored.head)
    try:
        timeline = journal.notation.reader(*code_of(app)).read(stored)
    except DamagedJournal as damage:
        return Story(stored.head.run_id, stored.status, stored.fence, (), str(damage))
    follower = Follower(found.plan, timeline, goes_alike)
    follower.run()
    trouble = "" if follower.divergence is None else str(follower.divergence)
    ending = follower.stop()
    if not trouble and stored.status not in ("", "unresolved", getattr(ending, "status", "")):
        trouble = f"it is kept as {stored.status}, and replays to {getattr(ending, 'status', 'no end')}"
    return Story(stored.head.run_id, stored.status, stored.fence, tuple(timeline.records), trouble)
