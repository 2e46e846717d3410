"""A small shop whose world is scripted: the flows and runs that the tests of this room look at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Annotated, Any

import attrs
import trio

from zerver import (
    INJECTED,
    App,
    Capability,
    Done,
    Fail,
    Flow,
    IdempotencyKey,
    Pause,
    Slot,
    effect,
    join,
    parallel,
    step,
)
from zerver.effects import http, sql
from zerver.runtime import Result, Runtime, open_runtime
from zerver.testing.scheduler import seeded

#: The id of the first run of a runtime that was opened with seed=1.
RUN_ID = f"req_{Random(1).getrandbits(96):024x}"

User = Annotated[str, Slot("auth.user")]
Payment = Annotated[int, Slot("payment")]
Order = Annotated[int, Slot("order.id")]
Token = Annotated[str, Slot("card.token", secret=True)]
Cart = Annotated[int, Slot("cart")]


@attrs.frozen
class Row:
    id: str


@effect(kind="payments.charge", access="write")
async def pay(cents: int, user: str, key: IdempotencyKey = INJECTED) -> int:
    raise NotImplementedError


@effect(kind="payments.refund", access="write")
async def refund(payment: int, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


@effect(kind="payments.find", access="read")
async def find(key: str) -> int | None:
    raise NotImplementedError


@effect(kind="vault.tokenize", access="read")
async def tokenize(card: str) -> str:
    raise NotImplementedError


@effect(kind="vault.check", access="read")
async def check(token: str, note: str) -> bool:
    raise NotImplementedError


@step
async def verify() -> User | Fail:
    user = await sql.fetch_one(Row, "select id, tier from users where token = ?", "t")
    return user.id if user is not None else Fail.unauthorized("token")


@step
async def charge(user: User) -> Payment:
    return await pay(1200, user).with_policy(timeout=0.044, retries=2).compensate(refund, resolve=find)


@step
async def plain_charge(user: User) -> Payment:
    return await pay(1200, user).with_policy(timeout=0.044).compensate(refund)


def cancel_order(order: int) -> Any:
    return sql.execute("update orders set state = 'cancelled' where id = ?", order)


@step
async def create_order(user: User, payment: Payment) -> Order:
    return await sql.execute("insert into orders (user) values (?)", user, expect=1).compensate(cancel_order)


@step
async def audit() -> None:
    await sql.execute("insert into audit values (1)")


@step
async def reserve(order: Order) -> Fail | None:
    touched = await sql.execute("update stock set n = n - 1 where cart = ? and n > 0", "c")
    return None if touched else Fail.conflict("cart", "cart_soldout", "sold out")


@step
def render(order: Order, payment: Payment) -> Done:
    return Done({"order": order})


@step
async def receipt() -> None:
    await http.post("http://mail:25/send?to=me", json=1).optional()


@step
async def notice() -> None:
    await http.post("http://warehouse/notices", json=1).optional()


@step
def count() -> Cart:
    return 1 // 0


@step
async def front() -> Cart:
    pair = await join.all(
        sql.fetch_all(Row, "select * from offers"),
        join.hedge(http.get("http://basket/items?user=1"), after=0.05),
    )
    return len(pair)


@step
async def prices(cart: Cart) -> None:
    await join.race(http.get("http://near/prices"), http.get("http://far/prices"))


CHECKOUT = Flow("checkout", [verify, charge, create_order, reserve, parallel(receipt, notice), render], deadline=2.0)


async def run(
    flow: Flow,
    handlers: dict[str, Callable[..., Any]],
    *,
    during: Callable[[Runtime], Awaitable[None]] | None = None,
    observers: Sequence[Callable[[Result], None]] = (),
    **how: Any,
) -> Result:
    """Run a flow in a world of scripted handlers; during: what else happens meanwhile."""
    app = App(capabilities=[Capability(name="world", handlers={**WORLD, **handlers})])
    with seeded(0):  # the order in which tasks start is part of a golden text
        async with (
            open_runtime(app, handlers={**WORLD, **handlers}, seed=1, observers=observers) as runtime,
            trio.open_nursery() as nursery,
        ):
            if during is not None:
                nursery.start_soon(during, runtime)
            return await runtime.run(flow, **how)


def after(seconds: float, value: Any = None) -> Callable[..., Any]:
    """A handler that takes so long, and then gives the value or raises it."""

    async def handler(*args: Any, **kwargs: Any) -> Any:
        await trio.sleep(seconds)
        if isinstance(value, Exception):
            raise value
        return value

    return handler


def scripted(*script: tuple[float, Any]) -> Callable[..., Any]:
    """A handler that does what is next in the script, and the last of it again and again."""
    left = list(script)

    async def handler(*args: Any, **kwargs: Any) -> Any:
        seconds, value = left.pop(0) if len(left) > 1 else left[0]
        return await after(seconds, value)()

    return handler


def keyed(*script: tuple[float, Any]) -> Callable[..., Any]:
    """The same, and it takes a key."""
    perform = scripted(*script)

    async def handler(*args: Any, key: IdempotencyKey = INJECTED, **kwargs: Any) -> Any:
        return await perform()

    return handler


WORLD: dict[str, Callable[..., Any]] = {
    "sql.fetch_one": after(0.0018, Row("user_1")),
    "sql.fetch_all": after(0.0022, [Row("offer_1")]),
    "sql.execute": after(0.002, 1),
    "payments.charge": keyed((0.010, 71)),
    "payments.refund": keyed((0.012, None)),
    "payments.find": scripted((0.003, 71)),
    "http.read": after(0.003, http.Reply(200, {}, b"")),
    "http.write": keyed((0.003, http.Reply(202, {}, b""))),
    "vault.tokenize": after(0.001, "tok_4111111111111111"),
    "vault.check": after(0.001, True),
}


async def sold_out(text: str, params: object, **how: object) -> int:
    """sql.execute in a shop whose stock is empty."""
    await trio.sleep(0.002)
    return 0 if "stock" in text else 1


async def slow_once(exchange: http.Exchange) -> http.Reply:
    """http.read: the basket is slow unless somebody else asks too, prices are far away."""
    await trio.sleep({"http://basket/items?user=1": 0.060, "http://near/prices": 0.004}.get(exchange.url, 1.0))
    return http.Reply(200, {}, b"")


async def refused() -> Result:
    """A run that came while the runtime drained."""
    app = App(capabilities=[Capability(name="world", handlers=WORLD)])
    async with open_runtime(app, handlers=WORLD, seed=1) as runtime:
        await runtime.drain(0)
        return await runtime.run(CHECKOUT)


@step
def ask_boss() -> Cart | Pause:
    return Pause("approval", 3600.0)


@step
def use(cart: Cart) -> None:
    return None


APPROVAL = Flow("approval", [ask_boss, use])


async def parked() -> Result:
    """A run that waits ten minutes for its signal."""

    async def approve(runtime: Runtime) -> None:
        await trio.sleep(600)
        await runtime.signal(RUN_ID, "approval", 5)

    return await run(APPROVAL, {}, during=approve)


async def cancelled() -> Result:
    """A checkout whose client leaves while the order is being written."""

    async def leave(runtime: Runtime) -> None:
        await trio.sleep(0.02)
        runtime.cancel_nowait(RUN_ID, "the client has gone")

    return await run(CHECKOUT, {"sql.execute": after(9)}, during=leave)
