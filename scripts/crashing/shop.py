"""The checkout, durable: the same steps with durability="sync", and writes of which somebody can say what came of them.

    zerver serve scripts.crashing.shop:app --journal sqlite:///shop.journal

Law: whatever a crash cuts short can be asked about (an order by its id, stock by the order that took it), or asked for
again with the same key (a charge). Of two routes one carries its runs on after a crash, the other undoes them.

With each order the jobs of `scripts.crashing.errands` are ordered, in the same transaction.

CHECKOUT_DB: of the shop and its jobs. CRASH_RESOLVE: "key", charges that nobody has heard of are asked for again;
"ask", the provider is asked first, and a charge that it does not know is forbidden for ever.
"""

import os
from collections.abc import Sequence
from typing import Annotated, Any

from examples.checkout import payments, store
from examples.checkout.app import load_cart, render, verify
from examples.checkout.domain import ActiveCart, Cart, Charge, CheckoutBody, CurrentUser, OrderId, Payment, User
from scripts.crashing import errands
from zerver import App, Effect, Fail, Flow, parallel, step
from zerver.core.flows import OnCrash
from zerver.core.stages import Stage
from zerver.effects import http, random, sql
from zerver.errors import EffectError, StatementError
from zerver.http import Body, http_client
from zerver.jobs import jobs
from zerver.sql import postgres, sqlite

#: Seconds that a checkout may take, the time when nobody worked on it included.
DEADLINE = 20.0

#: Seconds that the provider gets for one answer: it is never so slow, and only its own faults are to be tried again.
PATIENCE = 10.0

SCHEMA = (
    store.SCHEMA
    + """
create table if not exists taken (order_id text not null, sku text not null, quantity integer not null,
    primary key (order_id, sku));
create table if not exists reference (order_id text primary key, reference text not null);
"""
)


def asked_to_charge(cart: Cart, user: User, body: CheckoutBody) -> Effect[Charge]:
    """The provider is told the client's own reference too: what a key was for must not be read from the key."""
    return payments.charge(cart.total, f"{user.id} {body.note}").with_policy(timeout=PATIENCE, retries=2)


def refund(made: Charge) -> Effect[int]:
    return payments.refund(made).with_policy(timeout=PATIENCE)


@step(name="payment.charge")
async def charge_by_key(cart: ActiveCart, user: CurrentUser, body: Annotated[CheckoutBody, Body()]) -> Payment:
    return await asked_to_charge(cart, user, body).compensate(
        refund, by_key=lambda key: refund(Charge(key, cart.total))
    )


@step(name="payment.charge")
async def charge_asking(cart: ActiveCart, user: CurrentUser, body: Annotated[CheckoutBody, Body()]) -> Payment:
    return await asked_to_charge(cart, user, body).compensate(refund, resolve=payments.find_charge)


@step(name="order.create")
async def create_order(
    cart: ActiveCart, user: CurrentUser, payment: Payment, body: Annotated[CheckoutBody, Body()]
) -> OrderId:
    order_id = str(await random.uuid())
    insert = sql.transaction(
        store.insert_order(order_id, user, cart, payment),
        sql.execute("insert into reference values (?, ?)", order_id, body.note or ""),
        *errands.errands_of(order_id),
    )
    await insert.compensate(
        lambda _: sql.transaction(store.cancel_order(order_id), *_returned(order_id)),
        resolve=lambda _: one_of("select max(id) from orders where id = ?", order_id),
    )
    return order_id


@step(name="stock.reserve")
async def reserve_stock(cart: ActiveCart, order: OrderId) -> Fail | None:
    try:
        await take_stock(order, cart).compensate(
            lambda _: return_stock(order),
            resolve=lambda _: one_of("select max(sku) from taken where order_id = ?", order),
        )
    except EffectError as error:
        if isinstance(error.cause, StatementError) and error.cause.code == "ROW_COUNT":
            return Fail.conflict("cart", cart.id, detail="sold out")
        raise
    return None


def one_of(statement: str, order: str) -> Effect[Any]:
    """A value when there is one, else None: all that `resolve=` is asked."""
    return sql.fetch_value(str, statement, order)


def take_stock(order: str, cart: Cart) -> Effect[tuple[object, ...]]:
    """All lines or none, for an order that stands: of one that was cancelled, whoever stood still and comes too late
    takes nothing, and what came before it was cancelled is returned with it.
    """
    stands = "update orders set status = status where id = ? and status = 'placed'"
    take = "update stock set quantity = quantity - ? where sku = ? and quantity >= ?"
    note = "insert into taken values (?, ?, ?)"
    return sql.transaction(
        sql.execute(stands, order, expect=1),
        *[sql.execute(take, line.quantity, line.sku, line.quantity, expect=1) for line in cart.lines],
        *[sql.execute(note, order, line.sku, line.quantity) for line in cart.lines],
    )


def return_stock(order: str) -> Effect[tuple[object, ...]]:
    """What the order has taken, once."""
    return sql.transaction(*_returned(order))


def _returned(order: str) -> list[Effect[Any]]:
    give = (
        "update stock set quantity = quantity + coalesce("
        "(select quantity from taken where order_id = ? and taken.sku = stock.sku), 0)"
    )
    return [sql.execute(give, order), sql.execute("delete from taken where order_id = ?", order)]


def telling(services: str) -> Stage:
    """Whom else an order is told, and where that is."""

    @step(name="receipt.send")
    async def send_receipt(order: OrderId, user: CurrentUser) -> None:
        await http.post(f"{services}/receipts", json={"order": order, "user": user.id}).optional()

    @step(name="warehouse.notify")
    async def notify_warehouse(order: OrderId, cart: ActiveCart) -> None:
        await http.post(f"{services}/notices", json={"order": order, "cart": cart.id}).optional()

    return parallel(send_receipt, notify_warehouse)


def make_app(asks: bool, database: str, provider: str) -> App:
    """asks: whether the provider is asked about charges in doubt; else they are asked for again by their key.

    database: a file, or the URL of a PostgreSQL database; the jobs are kept there too.
    """
    stages: list[Stage] = [
        verify,
        load_cart,
        charge_asking if asks else charge_by_key,
        create_order,
        reserve_stock,
        telling(f"{provider}/services"),
        render,
    ]
    made = App(
        "crashing",
        capabilities=[
            postgres(database, schema=SCHEMA) if "://" in database else sqlite(database, schema=SCHEMA),
            http_client(allow_private=True),  # the provider listens on this machine
            jobs(),
        ],
    )
    made.route("POST", "/v2/checkout", make_flow("checkout", stages, "resume"))
    made.route("POST", "/v2/cautious", make_flow("cautious", stages, "compensate"))
    errands.declare(made)
    return made


def make_flow(name: str, stages: Sequence[Stage], on_crash: OnCrash) -> Flow:
    return Flow(
        name, stages, deadline=DEADLINE, undo_deadline=30.0, priority="interactive", owner="payments",
        durability="sync", on_crash=on_crash,
    )  # fmt: skip


app = make_app(
    os.environ.get("CRASH_RESOLVE", "key") == "ask",
    os.environ.get("CHECKOUT_DB", "checkout.db"),
    payments.PROVIDER_URL,
)
