"""A small shop, and its runs in a trace file: what the tests of commands that read one look at."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from zerver.runtime import Result, open_runtime
from zerver.trace.keeping.store import make_store
from zerver.trace.recording import encode_run
from zerver.trace.summary import summarize

SHOP = """
from typing import Annotated

import attrs

from zerver import INJECTED, App, Done, Fail, Flow, IdempotencyKey, Slot, effect, parallel, step
from zerver.effects import clock
from zerver.errors import EffectError, Rejected
from zerver.http import Body, Header, Path


@attrs.frozen
class User:
    id: str
    tier: str


@attrs.frozen
class Line:
    sku: str
    price: int


@attrs.frozen
class Cart:
    id: str
    lines: list[Line]


@attrs.frozen
class Order:
    cart: str
    note: str | None = None


Token = Annotated[str, Slot("card.token", secret=True)]
CurrentUser = Annotated[User, Slot("auth.user")]
ActiveCart = Annotated[Cart, Slot("cart")]
Payment = Annotated[int, Slot("payment")]
At = Annotated[float, Slot("at")]


@effect(kind="users.find", access="read")
async def find_user(token: str) -> User | None:
    return User("user_1", "gold") if token == "hunter2-hunter2" else None


@effect(kind="carts.load", access="read")
async def load_lines(cart: str) -> list[Line]:
    return {"cart_1": [Line("tea", 700), Line("cup", 500)], "cart_2": [Line("sold", 100)]}.get(cart, [])


@effect(kind="vault.tokenize", access="read")
async def tokenize(user: str) -> str:
    return "tok_4111111111111111"


@effect(kind="payments.charge", access="write")
async def pay(cents: int, token: str, key: IdempotencyKey = INJECTED) -> int:
    return cents


@effect(kind="payments.refund", access="write")
async def refund(payment: int) -> None:
    pass


@effect(kind="stock.take", access="write")
async def take(sku: str) -> None:
    if sku == "sold":
        raise Rejected("sold out")


@effect(kind="mail.send", access="write")
async def send(user: str) -> None:
    pass


@effect(kind="log.write", access="write")
async def log(what: str) -> None:
    pass


@step
async def verify(authorization: Annotated[str, Header()]) -> CurrentUser | Fail:
    user = await find_user(authorization.removeprefix("Bearer "))
    return user or Fail.unauthorized("token")


@step(name="cart.load")
async def load_cart(body: Annotated[Order, Body()]) -> ActiveCart | Fail:
    lines = await load_lines(body.cart)
    return Cart(body.cart, lines) if lines else Fail.not_found("cart", body.cart)


@step
async def token(user: CurrentUser) -> Token:
    return await tokenize(user.id)


@step(name="payment.charge")
async def charge(cart: ActiveCart, user: CurrentUser, token: Token) -> Payment:
    total = sum(line.price for line in cart.lines)
    return await pay(total, token).compensate(refund)


@step
async def reserve(cart: ActiveCart) -> Fail | None:
    try:
        for line in cart.lines:
            await take(line.sku)
    except EffectError as error:
        return Fail.conflict("cart", cart.id, error.reason)
    return None


@step
async def stamp() -> At:
    return (await clock.now()).timestamp() * 0


@step
async def receipt(user: CurrentUser) -> None:
    await send(user.id)


@step
async def note(cart: ActiveCart) -> None:
    await log(cart.id)


@step
def render(cart: ActiveCart, payment: Payment, at: At) -> Done:
    return Done({"cart": cart.id, "paid": payment})


checkout = Flow("checkout", [verify, load_cart, token, charge, reserve, stamp, parallel(receipt, note), render])
app = App("shop")
app.route("POST", "/checkout", checkout)
"""

#: What is secret in the shop, and must stand in nothing that is printed or written.
SECRETS = ("hunter2-hunter2", "tok_4111111111111111")


def load(folder: Path, source: str = SHOP, name: str = "shop") -> ModuleType:
    """The shop as a module of this process, and as a file in the folder."""
    file = folder / f"{name}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


async def run(shop: Any, cart: str = "cart_1", token: str = "hunter2-hunter2") -> Result:
    """One checkout."""
    (route,) = shop.app.routes
    plan = route.plan()
    values = {"authorization": f"Bearer {token}", "body": shop.Order(cart)}
    async with open_runtime(shop.app) as runtime:
        prepared = runtime.prepare(shop.checkout)
        parts = [values["body" if read.part.source == "body" else read.name] for read in plan.parts]
        return await runtime.execute(prepared, parts, label=route.label)


def store(folder: Path, *results: Result) -> Path:
    """A trace file with these runs."""
    file = folder / "traces.db"
    began = 1_700_000_000_000_000_000
    with make_store(file) as made:
        made.write([(summarize(one, began_unix_ns=began), encode_run(one, began_unix_ns=began)) for one in results])
    return file
