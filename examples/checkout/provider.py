"""A payment provider that can misbehave, as a Zerver app of its own.

    zerver serve examples.checkout.provider:app --port 8801

PROVIDER_DB: the SQLite file of its ledger. `POST /faults` makes it slow, refuse, hang before it commits, or commit
and then hang; `GET /ledger` tells what really happened.
"""

import os
from typing import Annotated

import attrs
from msgspec import Meta

from examples.checkout.domain import Charge
from zerver import App, Done, Fail, Flow, Slot, step
from zerver.effects import clock, kv, random, sql
from zerver.http import Body, Header, Path, json
from zerver.kv import memory
from zerver.sql import sqlite

SCHEMA = """
create table if not exists entries (
    type text not null check (type in ('charge', 'refund')), key text not null, amount integer not null,
    primary key (type, key)
);
create table if not exists voided (key text primary key);
"""

FOREVER = 3600.0  # seconds; whoever waits has long gone

Rate = Annotated[float, Meta(ge=0, le=1)]
Cents = Annotated[int, Meta(gt=0, le=10**12)]
Key = Annotated[str, Meta(min_length=1, max_length=255)]
IdempotencyKey = Annotated[str, Header("Idempotency-Key"), Meta(min_length=1, max_length=255)]  # an empty one is none


@attrs.frozen
class Faults:
    """latency_ms: before a charge, a refund or a look-up. The rates are drawn for each charge and refund.

    error_rate: 503, nothing done. hang_rate: silence, nothing done. lost_reply_rate: done, then silence.
    """

    latency_ms: Annotated[float, Meta(ge=0)] = 0
    error_rate: Rate = 0
    hang_rate: Rate = 0
    lost_reply_rate: Rate = 0


@attrs.frozen
class ChargeBody:
    amount: Cents
    user: str | None = None  # whose card; the ledger keeps no names


@attrs.frozen
class RefundBody:
    key: Key


@attrs.frozen
class Entry:
    type: str
    key: str
    amount: int


Set = Annotated[Faults, Slot("faults")]
Made = Annotated[Charge, Slot("charge")]
Refunded = Annotated[int, Slot("refunded")]

# ---- faults ---------------------------------------------------------------------------------


@step
async def set_faults(body: Annotated[Faults, Body()]) -> Done:
    """What is not said is 0 from now on."""
    await kv.put("faults", attrs.asdict(body))
    return Done(body)


async def meet_latency() -> Faults:
    """The faults that are set, after as long as they say. A step may await it: it asks for effects and nothing else."""
    found = await kv.get("faults")
    faults = Faults(**found) if isinstance(found, dict) else Faults()
    if faults.latency_ms:
        await clock.sleep(faults.latency_ms / 1000)
    return faults


@step
async def disturb() -> Set | Fail:
    """What goes wrong before anything is done."""
    faults = await meet_latency()
    if faults.error_rate and await random.uniform() < faults.error_rate:
        return Fail.unavailable("provider", detail="an injected fault; nothing was done")
    if faults.hang_rate and await random.uniform() < faults.hang_rate:
        await clock.sleep(FOREVER)
    return faults


@step
async def lose_reply(faults: Set) -> None:
    """What goes wrong after all was done."""
    if faults.lost_reply_rate and await random.uniform() < faults.lost_reply_rate:
        await clock.sleep(FOREVER)


# ---- charges --------------------------------------------------------------------------------


@step
async def commit_charge(body: Annotated[ChargeBody, Body()], key: IdempotencyKey) -> Made | Fail:
    """One transaction decides: a key that was charged or voided before is not charged now."""
    _, made, voided = await sql.transaction(
        sql.execute(
            "insert into entries select 'charge', ?, ? where not exists (select 1 from voided where key = ?) "
            "on conflict do nothing",
            key, body.amount, key,
        ),
        sql.fetch_one(Charge, "select key, amount from entries where type = 'charge' and key = ?", key),
        sql.fetch_value(bool, "select count(*) from voided where key = ?", key),
    )  # fmt: skip
    if voided:
        return Fail.conflict("charge", key, detail="this key was refunded, or voided before anything was charged")
    return made if made.amount == body.amount else Fail.conflict("charge", key, detail="made with another amount")


@step
def answer_charge(made: Made) -> Done:
    return Done(json(made, status=201))


@step
async def find_charge(key: Annotated[str, Path()]) -> Done | Fail:
    await meet_latency()
    found = await sql.fetch_one(Charge, "select key, amount from entries where type = 'charge' and key = ?", key)
    return Done(found) if found is not None else Fail.not_found("charge", key)


# ---- refunds --------------------------------------------------------------------------------


@step
async def commit_refund(body: Annotated[RefundBody, Body()]) -> Refunded:
    """Refund what was charged with the key, once; if nothing was, see to it that nothing will be."""
    *_, refunded = await sql.transaction(
        sql.execute("insert or ignore into voided values (?)", body.key),
        sql.execute(
            "insert into entries select 'refund', key, amount from entries where type = 'charge' and key = ? "
            "on conflict do nothing",
            body.key,
        ),
        sql.fetch_value(
            int, "select coalesce(sum(amount), 0) from entries where type = 'refund' and key = ?", body.key
        ),
    )
    return int(refunded)


@step
def answer_refund(body: Annotated[RefundBody, Body()], refunded: Refunded) -> Done:
    return Done({"key": body.key, "refunded": refunded})


# ---- the ledger, and what else the shop asks for ---------------------------------------------


@step
async def show_ledger() -> Done:
    entries = await sql.fetch_all(Entry, "select type, key, amount from entries order by rowid")
    balance = sum(entry.amount if entry.type == "charge" else -entry.amount for entry in entries)
    return Done({"entries": entries, "balance": balance})


@step
def show_profile(user: Annotated[str, Path()]) -> Done:
    return Done({"id": user, "greeting": f"Hello, {user}"})


@step
async def recommend() -> Done:
    """Every other answer is slow, as one replica in two might be."""
    if await kv.increment("recommendations") % 2:
        await clock.sleep(0.3)
    return Done(["tea", "cup"])


@step
async def offer() -> Done:
    if await kv.increment("offers") % 2:
        await clock.sleep(FOREVER)
    return Done(["pot"])


@step
def accept() -> Done:
    return Done(json({"accepted": True}, status=202))


# A client that has hung up wants nothing committed any more: whatever has not been done yet is not done.
charge = Flow("charge", [disturb, commit_charge, lose_reply, answer_charge], on_disconnect="cancel")
refund = Flow("refund", [disturb, commit_refund, lose_reply, answer_refund], on_disconnect="cancel")


def make_app(database: str) -> App:
    """The provider on a SQLite file, or ":memory:"."""
    app = App("provider", capabilities=[sqlite(database, schema=SCHEMA), memory()])
    app.route("POST", "/charges", charge)
    app.route("GET", "/charges/{key}", Flow("find_charge", [find_charge]))
    app.route("POST", "/refunds", refund)
    app.route("GET", "/ledger", Flow("ledger", [show_ledger]))
    app.route("POST", "/faults", Flow("faults", [set_faults]))
    app.route("GET", "/services/profile/{user}", Flow("profile", [show_profile]))
    app.route("GET", "/services/recommendations", Flow("recommendations", [recommend]))
    app.route("GET", "/services/offers", Flow("offers", [offer]))
    app.route("POST", "/services/receipts", Flow("receipts", [accept]))
    app.route("POST", "/services/notices", Flow("notices", [accept]))
    return app


app = make_app(os.environ.get("PROVIDER_DB", "provider.db"))
