"""The shop's API: check out a cart, look at an order, and a home page made of three services.

    zerver serve examples.checkout.app:app --port 8800

PROVIDER_URL: where the payment provider is. CHECKOUT_DB: the SQLite file.
"""

import os
from typing import Annotated

from examples.checkout import payments, store
from examples.checkout.domain import ActiveCart, Cart, CheckoutBody, CurrentUser, OrderId, Payment
from zerver import App, Done, Fail, Flow, Slot, join, parallel, step
from zerver.effects import http, random
from zerver.errors import EffectError, StatementError
from zerver.http import Body, Header, Path, http_client, json
from zerver.sql import sqlite

SERVICES = f"{payments.PROVIDER_URL}/services"

# ---- who is asking --------------------------------------------------------------------------


@step(name="auth.verify")
async def verify(authorization: Annotated[str | None, Header()]) -> CurrentUser | Fail:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        return Fail.unauthorized("token", detail="send `Authorization: Bearer <token>`")
    user = await store.user_by_token(token)
    return user or Fail.unauthorized("token")


# ---- POST /v2/checkout ----------------------------------------------------------------------


@step(name="cart.load")
async def load_cart(body: Annotated[CheckoutBody, Body()]) -> ActiveCart | Fail:
    lines = await store.cart_lines(body.cart_id)
    return Cart(body.cart_id, lines) if lines else Fail.not_found("cart", body.cart_id)


@step(name="payment.charge")
async def charge(cart: ActiveCart, user: CurrentUser) -> Payment:
    return await (
        payments.charge(cart.total, user.id)
        .with_policy(timeout=0.4, retries=2)  # one idempotency key over all attempts
        .compensate(payments.refund, resolve=payments.find_charge)
    )


@step(name="order.create")
async def create_order(cart: ActiveCart, user: CurrentUser, payment: Payment) -> OrderId:
    order_id = str(await random.uuid())
    await store.insert_order(order_id, user, cart, payment).compensate(lambda _: store.cancel_order(order_id))
    return order_id


@step(name="stock.reserve")
async def reserve_stock(cart: ActiveCart) -> Fail | None:
    try:
        await store.take_stock(cart).compensate(lambda _: store.return_stock(cart))
    except EffectError as error:
        if isinstance(error.cause, StatementError) and error.cause.code == "ROW_COUNT":
            return Fail.conflict("cart", cart.id, detail="sold out")
        raise
    return None


@step(name="receipt.send")
async def send_receipt(order: OrderId, user: CurrentUser) -> None:
    await http.post(f"{SERVICES}/receipts", json={"order": order, "user": user.id}).with_policy(timeout=0.3).optional()


@step(name="warehouse.notify")
async def notify_warehouse(order: OrderId, cart: ActiveCart) -> None:
    await http.post(f"{SERVICES}/notices", json={"order": order, "cart": cart.id}).with_policy(timeout=0.3).optional()


@step
def render(order: OrderId, payment: Payment) -> Done:
    return Done(json({"order": order, "payment": payment.key, "amount": payment.amount}, status=201))


checkout = Flow(
    "checkout",
    [
        verify,
        load_cart,
        charge,
        create_order,
        reserve_stock,
        parallel(send_receipt, notify_warehouse),
        render,
    ],
    deadline=2.0,
    undo_deadline=30.0,
    priority="interactive",
    owner="payments",
)

# ---- GET /v2/orders/{id} --------------------------------------------------------------------


@step(name="order.show")
async def show_order(id: Annotated[str, Path()], user: CurrentUser) -> Done | Fail:
    order = await store.order_of(id, user)
    return Done(order) if order is not None else Fail.not_found("order", id)


show = Flow("order", [verify, show_order], deadline=1.0, priority="interactive")

# ---- GET /v2/home: a backend for a frontend --------------------------------------------------

Parts = Annotated[dict[str, object], Slot("home.parts")]


@step(name="home.gather")
async def gather(user: CurrentUser) -> Parts:
    profile, recommended, offers = await join.all(
        http.get(f"{SERVICES}/profile/{user.id}"),
        join.hedge(http.get(f"{SERVICES}/recommendations"), after=0.05),  # the slow one: ask again, take the first
        http.get(f"{SERVICES}/offers").with_policy(timeout=0.2).optional(),  # the page lives without it
    )
    return {
        "profile": profile.json(dict[str, object]),
        "recommended": recommended.json(list[str]),
        "offers": offers.json(list[str]) if offers is not None and offers.ok else [],
    }


@step(name="home.render")
def render_home(parts: Parts) -> Done:
    return Done(parts)


home = Flow("home", [verify, gather, render_home], deadline=1.0, priority="interactive")

# ---- the app --------------------------------------------------------------------------------

app = App(
    "checkout",
    capabilities=[
        sqlite(os.environ.get("CHECKOUT_DB", "checkout.db"), schema=store.SCHEMA),
        http_client(allow_private=True),  # the provider of the demo listens on this machine
    ],
)
app.route("POST", "/v2/checkout", checkout)
app.route("GET", "/v2/orders/{id}", show)
app.route("GET", "/v2/home", home)
