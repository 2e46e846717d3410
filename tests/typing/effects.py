"""What `await`, `.optional()`, `.outcome()`, `.compensate()` and the joins promise about types."""

from typing import assert_type

from zerver import INJECTED, Effect, IdempotencyKey, Outcome, effect, join


class Client:
    """A resource."""


class Charge:
    id: str


@effect(kind="pay.charge", access="write")
async def charge(cents: int, user: str, *, key: IdempotencyKey = INJECTED, client: Client = INJECTED) -> Charge:
    return Charge()


@effect(kind="pay.refund", access="write")
async def refund(charge: Charge) -> None: ...


@effect(kind="pay.forget", access="write")
async def forget(number: int) -> None: ...


@effect(kind="pay.cancel", access="write")
async def cancel(key: IdempotencyKey) -> None: ...


@effect(kind="pay.find", access="read")
async def find(key: IdempotencyKey) -> Charge | None:
    return None


@effect(kind="pay.count", access="read")
async def count() -> int:
    return 1


# ---- calling a kind keeps its handler's parameters, and INJECTED ones may be left out ----------

assert_type(charge(1, "u"), Effect[Charge])
assert_type(charge(1, user="u"), Effect[Charge])
charge("1", "u")  # error: a str is no int
charge(1)  # error: user is missing
charge(1, "u", colour="red")  # error: no such parameter
charge(1, "u", client=3)  # error: an int is no Client


# ---- await gives the effect's result ----------------------------------------------------------


async def awaited() -> None:
    assert_type(await charge(1, "u"), Charge)
    assert_type(await charge(1, "u").with_policy(timeout=0.8, retries=2), Charge)
    assert_type(await charge(1, "u").compensate(refund), Charge)
    assert_type(await charge(1, "u").optional(), Charge | None)
    assert_type(await charge(1, "u").outcome(), Outcome[Charge])
    wrong: int = await charge(1, "u")  # error: a Charge is no int
    del wrong


# ---- what undoes an effect is given its result, or its key ------------------------------------

charge(1, "u").compensate(refund, by_key=cancel, resolve=find)
charge(1, "u").compensate(lambda paid: refund(paid))
charge(1, "u").compensate(forget)  # error: it takes an int, and the result is a Charge
charge(1, "u").compensate(lambda paid: forget(paid))  # error: the same, seen through a lambda
charge(1, "u").compensate(by_key=forget)  # error: a key is no int
charge(1, "u").compensate(resolve=count)  # error: it takes no key
charge(1, "u").compensate(lambda paid: 3)  # error: not an effect
charge(1, "u").with_policy(timeout="long")  # error: not seconds


# ---- joins ------------------------------------------------------------------------------------


async def joined() -> None:
    assert_type(await join.all(charge(1, "u"), count()), tuple[Charge, int])
    assert_type(await join.all(charge(1, "u"), count().optional(), count()), tuple[Charge, int | None, int])
    assert_type(await join.all(*[count(), count()]), tuple[int, ...])
    assert_type(await join.settle(charge(1, "u"), count()), tuple[Outcome[Charge], Outcome[int]])
    assert_type(await join.race(count(), count()), int)
    assert_type(await join.quorum(2, count(), count(), count()), tuple[int, ...])
    assert_type(await join.hedge(charge(1, "u"), after="p95"), Charge)
    assert_type(await join.hedge(count().optional(), after=0.1), int | None)
    assert_type(await join.all(join.race(count(), count()), charge(1, "u")), tuple[int, Charge])
    paid, number = await join.all(charge(1, "u"), count())
    assert_type(paid, Charge)
    assert_type(number, int)
    first: str = (await join.all(charge(1, "u"), count()))[1]  # error: an int is no str
    del first
    await join.all(charge(1, "u"), 3)  # error: not an effect
    await join.hedge(count(), after=None)  # error: not seconds, not a percentile
