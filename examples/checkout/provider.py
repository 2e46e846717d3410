"""A payment provider that can misbehave, as a Zerver app of its own.

    zerver serve examples.checkout.provider:app --port 8801

PROVIDER_DB: the SQLite file of its ledger. `POST /faults` makes it slow, refuse, hang before it commits, or commit
and then hang; `GET /ledger` tells what really happened.
"""

import os
from typing import Annotated

import attrs

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


@attrs.frozen
class Faults:
    """latency_ms: before every answer. The rates are between 0 and 1, and drawn for each charge and refund.

    error_rate: 503, nothing done. hang_rate: silence, nothing done. lost_reply_rate: done, then silence.
    """

    latency_ms: float = 0
    error_rate: float = 0
    hang_rate: float = 0
    lost_reply_rate: float = 0


@attrs.frozen
class ChargeBody:
    amount: int
    user: str


@attrs.frozen
class RefundBody:
    key: str


@attrs.frozen
class Entry:
    type: str
    key: str
    amount: int


Set = Annotated[Faults, Slot("faults")]
Made = Annotated[Charge, Slot("charge")]
Refunded = Annotated[int, Slot("refunded")]
Key = Annotated[str | None, Header("Idempotency-Key")]

# ---- faults ---------------------------------------------------------------------------------


@step
async def set_faults(body: Annotated[Faults, Body()]) -> Done:
    await kv.put("faults", attrs.asdict(body))
    return Done(body)


@step
async def disturb() -> Set | Fail:
    """What goes wrong before anything is done."""
    found = await kv.get("faults")
    faults = Faults(**found) if isinstance(found, dict) else Faults()
    if faults.latency_ms:
        await clock.sleep(faults.latency_ms / 1000)
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
def require_key(key: Key) -> Fail | None:
    return None if key else Fail.invalid("Idempotency-Key", detail="this header is required")


@step
async def commit_charge(body: Annotated[ChargeBody, Body()], key: Key) -> Made | Fail:
    """One statement decides: a key that was charged or voided before is not charged now."""
    _, found, voided = await sql.transaction(
        sql.execute(
            "insert into entries select 'charge', ?, ? where not exists (select 1 from voided where key = ?) "
            "on conflict do nothing",
            key, body.amount, key,
        ),
        sql.fetch_one(Charge, "select key, amount from entries where type = 'charge' and key = ?", key),
        sql.fetch_value(int, "select count(*) from voided where key = ?", key),
    )  # fmt: skip
    if found is None:
        return Fail.conflict("charge", key, detail="this key was voided" if voided else "not recorded")
    return found if found.amount == body.amount else Fail.conflict("charge", key, detail="made with another amount")


@step
def answer_charge(made: Made) -> Done:
    return Done(json(made, status=201))


@step
async def find_charge(key: Annotated[str, Path()], faults: Set) -> Done | Fail:
    found = await sql.fetch_one(Charge, "select key, amount from entries where type = 'charge' and key = ?", key)
    return Done(found) if found is not None else Fail.not_found("charge", key)


@step
async def slow_down() -> Set:
    """Reading is slow when the provider is, and nothing worse."""
    found = await kv.get("faults")
    faults = Faults(**found) if isinstance(found, dict) else Faults()
    await clock.sleep(faults.latency_ms / 1000)
    return faults


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


app = App("provider", capabilities=[sqlite(os.environ.get("PROVIDER_DB", "provider.db"), schema=SCHEMA), memory()])
# A client that has hung up wants nothing committed any more: whatever has not been done yet is not done.
app.route(
    "POST",
    "/charges",
    Flow("charge", [require_key, disturb, commit_charge, lose_reply, answer_charge], on_disconnect="cancel"),
)
app.route("GET", "/charges/{key}", Flow("find_charge", [slow_down, find_charge]))
app.route(
    "POST", "/refunds", Flow("refund", [disturb, commit_refund, lose_reply, answer_refund], on_disconnect="cancel")
)
app.route("GET", "/ledger", Flow("ledger", [show_ledger]))
app.route("POST", "/faults", Flow("faults", [set_faults]))
app.route("GET", "/services/profile/{user}", Flow("profile", [show_profile]))
app.route("GET", "/services/recommendations", Flow("recommendations", [recommend]))
app.route("GET", "/services/offers", Flow("offers", [offer]))
app.route("POST", "/services/receipts", Flow("receipts", [accept]))
app.route("POST", "/services/notices", Flow("notices", [accept]))
