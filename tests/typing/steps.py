"""What @step promises: the function's own signature, and a return type that is checked against the slot's."""

from typing import Annotated, assert_type

from zerver import Continue, Done, Effect, Fail, Flow, Need, Slot, branch, dag, effect, parallel, pivot, step
from zerver.core.steps import Step


class Cart:
    total: int


ActiveCart = Annotated[Cart, Slot("cart")]
Total = Annotated[int, Slot("total")]
Name = Annotated[str, Slot("name")]


@effect(kind="db.load", access="read")
async def load(name: str) -> Cart | None:
    return None


# ---- calling a step is calling its function ---------------------------------------------------


@step
def add(cart: ActiveCart, more: Total) -> Annotated[int, Slot("sum")]:
    return cart.total + more


@step(name="load the cart")
async def load_cart(name: Name) -> ActiveCart | Fail:
    cart = await load(name)
    assert_type(cart, Cart | None)
    return cart or Fail.not_found("cart")


assert_type(add(Cart(), 1), int)
add("cart", 1)  # error: a str is no Cart
add(Cart())  # error: more is missing


async def called() -> None:
    assert_type(await load_cart("name"), Cart | Fail)


# ---- what it returns must fit the slot --------------------------------------------------------


@step
def wrong_type() -> Total:
    return "1"  # error: a str is no int


@step
def forgot_none(name: Name) -> Total:
    return None  # error: the slot is not optional


@step
def optional_total(name: Name) -> Total | None:
    return None


@step
def several() -> tuple[Total, Name]:
    return 1, "name"


@step
def several_swapped() -> tuple[Total, Name]:
    return "name", 1  # error: the other way round


@step
async def forgot_await() -> ActiveCart | None:
    return load("name")  # error: an effect is no Cart


@step
def decides(total: Total) -> Done | Fail:
    if total > 1:
        return Done(total)
    return Continue(total)  # error: its annotation does not say so


@step
def needs(name: Name) -> Need | Total:
    return Need(load(name), lambda cart: cart.total)


Fail("no such kind", "cart")  # error: kinds are a fixed set


# ---- stages -----------------------------------------------------------------------------------


def has_total(total: Total) -> bool:
    return total > 0


def not_a_predicate(total: Total) -> str:
    return "yes"


def plain(total: Total) -> None: ...


Flow("f", [several, branch(has_total, [decides]), parallel(needs, dag(add)), pivot(load_cart)])
Flow("f", [plain])  # error: not a step
branch(not_a_predicate, decides)  # error: it does not answer bool
Flow("f", [several], priority="urgent")  # error: no such class
Flow("f", [several], deadline="2s")  # error: not seconds
assert_type(load("x"), Effect[Cart | None])
kept: Step[[Cart, int], int] = add
