"""An app with something of everything that the page shows, and no world but a clock: what the browser tests serve.

The body of POST /checkout says how it goes: {"cart": "tea", "how": "clean" | "soldout" | "slow" | "broken" | "late"}.
There are no receipts for ink.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import attrs
import trio

from zerver import (
    INJECTED,
    App,
    Done,
    Fail,
    Flow,
    IdempotencyKey,
    Pause,
    Slot,
    branch,
    dag,
    effect,
    join,
    parallel,
    step,
)
from zerver.errors import ConnectFailed
from zerver.http import Body, Header, Path, json

How = Literal["clean", "soldout", "slow", "broken", "late"]


@attrs.frozen
class Wish:
    cart: str = "tea"
    how: How = "clean"


@attrs.frozen
class Cart:
    id: str
    cents: int
    lines: list[str]


@attrs.frozen
class User:
    id: str
    tier: str


CurrentUser = Annotated[User, Slot("auth.user")]
CardToken = Annotated[str, Slot("card.token", secret=True)]
ActiveCart = Annotated[Cart, Slot("cart")]
Charge = Annotated[str, Slot("payment")]
OrderId = Annotated[str, Slot("order.id")]
Manner = Annotated[str, Slot("manner")]
Rating = Annotated[int, Slot("rating")]
Stock = Annotated[int, Slot("stock")]
Offer = Annotated[str, Slot("offer")]
Answer = Annotated[str, Slot("approval")]

# ---- the world -------------------------------------------------------------------------------

charged: dict[str, int] = {}  # by key, how often it was asked


@effect(kind="users.find", access="read")
async def find_user(token: str) -> User:
    await trio.sleep(0.002)
    return User("user_1", "gold")


@effect(kind="carts.load", access="read")
async def load(cart: str) -> Cart:
    await trio.sleep(0.003)
    return Cart(cart, 1250, [f"{cart} 1", f"{cart} 2"])


@effect(kind="payments.charge", access="write")
async def pay(cents: int, user: str, how: str, key: IdempotencyKey = INJECTED) -> str:
    charged[key] = charged.get(key, 0) + 1
    if how == "slow" and charged[key] == 1:
        await trio.sleep(5)
    if how == "late":
        await trio.sleep(5)
    await trio.sleep(0.018)
    return f"ch_{user}_{cents}"


@effect(kind="payments.refund", access="write")
async def refund(charge: str, key: IdempotencyKey = INJECTED) -> None:
    await trio.sleep(0.009)


@effect(kind="payments.find", access="read")
async def find_charge(key: str) -> str | None:
    await trio.sleep(0.004)
    return None


@effect(kind="orders.insert", access="write")
async def insert_order(cart: str, charge: str, key: IdempotencyKey = INJECTED) -> str:
    await trio.sleep(0.004)
    return f"order_{cart}"


@effect(kind="orders.cancel", access="write")
async def cancel_order(order: str, key: IdempotencyKey = INJECTED) -> None:
    await trio.sleep(0.003)


@effect(kind="mail.send", access="write")
async def send(to: str, what: str, key: IdempotencyKey = INJECTED) -> None:
    await trio.sleep(0.006)
    if what.endswith("ink"):
        raise ConnectFailed("the mail host does not answer")


@effect(kind="service.ask", access="read")
async def ask(name: str, seconds: float) -> str:
    await trio.sleep(seconds)
    return name


@effect(kind="tick", access="read")
async def tick(number: int) -> int:
    return number


# ---- POST /checkout --------------------------------------------------------------------------


@step(name="auth.verify")
async def verify(authorization: Annotated[str | None, Header()] = None) -> tuple[CurrentUser, CardToken]:
    return await find_user(authorization or "nobody"), "tok_4242424242"


@step(name="cart.load")
async def load_cart(body: Annotated[Wish, Body()]) -> tuple[ActiveCart, Manner]:
    return await load(body.cart), body.how


@step(name="risk.rate")
def rate(cart: ActiveCart, user: CurrentUser) -> Rating:
    return cart.cents // 100


@step(name="stock.look")
async def look(cart: ActiveCart, how: Manner) -> Stock:
    found = await join.hedge(ask("stock", 0.020), after=0.008)
    return 0 if how == "soldout" else len(found)


def is_risky(rating: Rating) -> bool:
    return rating > 100


@step(name="risk.review")
async def review(rating: Rating) -> None:
    await ask("review", 0.01)


@step(name="payment.charge")
async def charge(cart: ActiveCart, user: CurrentUser, token: CardToken, how: Manner) -> Charge:
    policy: dict[str, Any] = {"timeout": 0.04, "retries": 1} if how == "slow" else {"timeout": 0.4}
    return await pay(cart.cents, user.id, how).with_policy(**policy).compensate(refund, resolve=find_charge)


@step(name="order.create")
async def create(cart: ActiveCart, payment: Charge) -> OrderId:
    return await insert_order(cart.id, payment).compensate(cancel_order)


@step(name="stock.take")
def take(stock: Stock, cart: ActiveCart, how: Manner) -> Fail | None:
    if how == "broken":
        raise ZeroDivisionError("a defect of the demo")
    return Fail.conflict("cart", cart.id, detail="sold out") if stock == 0 else None


@step(name="mail.receipt")
async def receipt(order: OrderId, user: CurrentUser) -> None:
    await send(user.id, f"receipt {order}").with_policy(retries=1, backoff=0.002).optional()


@step(name="mail.warehouse")
async def warehouse(order: OrderId) -> None:
    await send("warehouse", "notice")


@step
def render(order: OrderId, payment: Charge) -> Done:
    return Done(json({"order": order, "payment": payment}, status=201))


checkout = Flow(
    "checkout",
    [
        verify,
        load_cart,
        dag(rate, look),
        branch(is_risky, [review]),
        charge,
        create,
        take,
        parallel(receipt, warehouse),
        render,
    ],
    deadline=0.5,
    priority="interactive",
    owner="payments",
)

# ---- GET /home, /approval, /many -------------------------------------------------------------


@step(name="home.gather")
async def gather() -> Offer:
    parts = await join.all(
        ask("profile", 0.004),
        join.race(ask("near", 0.006), ask("far", 0.030)),
        join.hedge(ask("recommended", 0.030), after=0.005),
    )
    return " ".join(parts)


@step(name="home.render")
def show(offer: Offer) -> Done:
    return Done(json({"home": offer}))


home = Flow("home", [gather, show], deadline=1.0)


@step(name="approval.wait")
def wait(id: Annotated[str, Path()]) -> Answer | Pause:
    return Pause(f"approval {id}", 60.0)


@step(name="approval.render")
def tell(approval: Answer) -> Done:
    return Done(json({"approval": approval}))


approval = Flow("approval", [wait, tell], deadline=90.0)


@step(name="many.ask")
async def many(n: Annotated[int, Path()]) -> Done:
    for number in range(n):
        await tick(number)
    return Done(json({"asked": n}))


long = Flow("many", [many], deadline=120.0)

app = App("gallery")
app.route("POST", "/checkout", checkout)
app.route("GET", "/home", home)
app.route("GET", "/approval/{id}", approval)
app.route("GET", "/many/{n}", long)
