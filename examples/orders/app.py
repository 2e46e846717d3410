"""An order is charged at once, waits for an approval if it is large, and is confirmed by mail; each night all are told.

    zerver serve examples.orders.app:app --journal sqlite:///orders.journal

ORDERS_DB: the SQLite file of the shop and its jobs. ORDERS_KEYS: that of idempotency keys.
"""

import os
from typing import Annotated, Any

import attrs

from examples.orders import outside
from zerver import App, Done, Effect, Fail, Flow, Pause, Slot, step
from zerver.effects import queue, random, sql
from zerver.http import Body, Path, json
from zerver.jobs import jobs
from zerver.journal import sqlite_receipts
from zerver.sql import sqlite

SCHEMA = f"""
create table if not exists orders (id text primary key, customer text not null, cents integer not null, approved text);
{outside.SCHEMA}
"""

LARGE = 10_000  # cents, from which on somebody has to approve
DAY = 86_400.0  # seconds


@attrs.frozen
class Order:
    customer: str
    cents: int


@attrs.frozen
class Placed:
    id: str
    customer: str
    cents: int
    approved: str | None


@attrs.frozen
class Mail:
    to: str
    text: str


@attrs.frozen
class Approval:
    by: str


@attrs.frozen
class Totals:
    orders: int
    cents: int


Charged = Annotated[str, Slot("charged")]
Approved = Annotated[Approval, Slot("approval")]
OrderId = Annotated[str, Slot("order.id")]
AllOrders = Annotated[Totals, Slot("orders.all")]

# ---- mails: a job ---------------------------------------------------------------------------


@step(name="mail.send")
async def send(mail: Annotated[Mail, Body()]) -> Done:
    await outside.send(mail.to, mail.text)
    return Done()


send_mail = Flow("send_mail", [send], deadline=30.0)

# ---- POST /orders ---------------------------------------------------------------------------


@step(name="payment.charge")
async def charge(order: Annotated[Order, Body()]) -> Charged:
    return await outside.charge(order.cents).compensate(outside.refund, by_key=outside.refund)


@step(name="order.approve")
def approve(order: Annotated[Order, Body()], charged: Charged) -> Approved | Pause:
    if order.cents < LARGE:
        return Approval("the shop")
    return Pause("approval", expires=DAY, expired=Fail.conflict("order", detail="nobody approved of it within a day"))


@step(name="order.place")
async def place(order: Annotated[Order, Body()], approval: Approved) -> OrderId:
    order_id = str(await random.uuid())
    placed = sql.transaction(  # the order and its mail: both, or neither
        sql.execute("insert into orders values (?, ?, ?, ?)", order_id, order.customer, order.cents, approval.by),
        queue.enqueue(send_mail, Mail(order.customer, f"order {order_id} is on its way")),
    )
    await placed.compensate(
        lambda _: sql.execute("delete from orders where id = ?", order_id),
        resolve=lambda _: id_of_placed(order_id),
    )
    return order_id


def id_of_placed(order_id: str) -> Effect[Any]:
    """Asked after a crash: was it placed? None says that it was not."""
    return sql.fetch_value(str, "select max(id) from orders where id = ?", order_id)


@step(name="order.render")
def render(order_id: OrderId) -> Done:
    return Done(json({"order": order_id}, status=201))


buy = Flow("buy", [charge, approve, place, render], deadline=5.0, durability="sync", idempotency="optional")

# ---- GET /orders/{id} -----------------------------------------------------------------------


@step(name="order.show")
async def show(id: Annotated[str, Path()]) -> Done | Fail:
    order = await sql.fetch_one(Placed, "select id, customer, cents, approved from orders where id = ?", id)
    return Done(order) if order is not None else Fail.not_found("order", id)


look = Flow("look", [show], deadline=1.0)

# ---- each night -----------------------------------------------------------------------------


@step(name="report.total")
async def total() -> AllOrders | Done:
    found = await sql.fetch_one(Totals, "select count(*) as orders, coalesce(sum(cents), 0) as cents from orders")
    return found or Done()


@step(name="report.tell")
async def tell(totals: AllOrders) -> Done:
    told = f"{totals.orders} orders, {totals.cents} cents"
    await queue.enqueue(send_mail, Mail("owner@shop.example", told))
    return Done(told)


report = Flow("report", [total, tell], deadline=60.0)

# ---- the app --------------------------------------------------------------------------------

app = App(
    "orders",
    capabilities=[
        sqlite(os.environ.get("ORDERS_DB", "orders.db"), schema=SCHEMA),
        jobs(),
        sqlite_receipts(os.environ.get("ORDERS_KEYS", "orders.keys")),  # idempotency keys, for all workers to know
    ],
)
app.route("POST", "/orders", buy)
app.route("GET", "/orders/{id}", look)
app.job(send_mail, queue="mail", attempts=8)
app.queue("mail", limit=10)
app.cron("0 3 * * *", report, timezone="Europe/Berlin", misfire="once", name="nightly")
