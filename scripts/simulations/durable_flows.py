"""Flows that a seed makes up: what a shop does with an order, put together by chance.

Law: what a run of a flow must come to follows from the flow and the number of the order alone (`Made.standing`): how
many charges stand with each label when it is done, and how many before its point of no return.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Annotated, Any, Final

import attrs

from scripts.simulations.durable_world import SOLD_OUT
from zerver import (
    INJECTED,
    Done,
    Effect,
    Fail,
    Flow,
    IdempotencyKey,
    Pause,
    Policy,
    Slot,
    branch,
    effect,
    join,
    parallel,
    pivot,
    step,
)
from zerver.core.flows import Durability
from zerver.core.stages import Stage

Order = Annotated[int, Slot("order")]
Stock = Annotated[int, Slot("stock")]


@effect(kind="shop.charge", access="write", policy=Policy(timeout=1.0, retries=3))
async def charge(order: int, label: str, cents: int, *, key: IdempotencyKey = INJECTED) -> str:
    raise NotImplementedError  # the provider of the world does it


@effect(kind="shop.refund", access="write")
async def refund(made: str, *, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


@effect(kind="shop.void", access="write")
async def void(charged: str, *, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


@effect(kind="shop.find", access="read", policy=Policy(timeout=1.0))  # tried again as often as a rollback does
async def find(key: str) -> str | None:
    raise NotImplementedError


@effect(kind="shop.notice", access="write")
async def notice(text: str) -> None:
    raise NotImplementedError


@effect(kind="shop.stock", access="read", policy=Policy(timeout=1.0, retries=8))
async def stock(order: int) -> int:
    raise NotImplementedError


#: How many charges stand with a label: so many at least, so many at most.
Standing = Mapping[str, tuple[int, int]]


@attrs.frozen
class Made:
    """A flow, and what becomes of its charges. kept: those from before its pivot. done: all. Both by order. ends: its
    status, if nothing goes wrong. signals: that its pauses wait for.
    """

    flow: Flow
    kept: Callable[[int], Standing]
    done: Callable[[int], Standing]
    ends: str
    signals: tuple[str, ...] = ()


_WAYS: Final = (
    {"resolve": find},
    {"by_key": void},
    {"by_key": void, "resolve": find},
)


class _Maker:
    """Makes one flow up."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.count = 0
        self.standing: dict[str, tuple[int, int]] = {}
        self.of_order: list[Callable[[int], Standing]] = []
        self.signals: list[str] = []

    def charged(self, order: int, label: str, cents: int = 7, way: int = 0) -> Effect[str]:
        how: Any = _WAYS[way]
        return charge(order, label, cents).compensate(refund, **how)

    def step(self, ask: Callable[[int], Awaitable[object]]) -> Stage:
        self.count += 1

        async def body(order: Order) -> None:
            await ask(order)

        return step(name=f"s{self.count}")(body)

    def label(self) -> str:
        self.count += 1
        return f"c{self.count}"

    def asking(self) -> Callable[[int], Awaitable[object]]:
        """One step's effects."""
        label, way = self.label(), self.chance.randrange(len(_WAYS))
        what = self.chance.choice(
            ("one", "one", "one", "all", "settle", "race", "quorum", "hedge", "two", "refused", "notice")
        )

        def one(order: int) -> Effect[str]:
            return self.charged(order, label, 7, way)

        if what == "two":
            self.standing[label] = (2, 2)

            async def two(order: int) -> None:
                await one(order)
                await one(order)

            return two
        if what == "refused":
            return lambda order: self.charged(order, label, SOLD_OUT, way).optional()
        if what == "notice":
            return lambda order: notice(f"{order}.{label}").optional()
        bounds = {"one": (1, 1), "all": (2, 2), "settle": (0, 2), "race": (1, 1), "quorum": (2, 2), "hedge": (1, 1)}
        self.standing[label] = bounds[what]
        joined: dict[str, Callable[[int], Effect[Any]]] = {
            "one": one,
            "all": lambda order: join.all(one(order), stock(order), one(order)),
            "settle": lambda order: join.settle(one(order), one(order)),
            "race": lambda order: join.race(one(order), one(order)),
            "quorum": lambda order: join.quorum(2, *(one(order) for _ in range(3))),
            "hedge": lambda order: join.hedge(one(order), after=0.01, limit=2),
        }
        return joined[what]

    def pause(self) -> Stage:
        """A step that waits for a signal: when nobody gives it in time, the run fails."""
        self.count += 1
        signal, expires = f"go{self.count}", self.chance.choice((1.0, 4.0, 12.0))
        self.signals.append(signal)

        def wait() -> Pause | None:
            return Pause(signal, expires=expires, resume=lambda _: None)

        return step(name=f"s{self.count}")(wait)

    def stages(self) -> list[Stage]:
        chance, stages = self.chance, []
        for _ in range(chance.randint(1, 3)):
            shape = chance.choice(("one", "one", "parallel", "branch"))
            if shape == "one":
                stages.append(self.step(self.asking()))
            elif shape == "parallel":
                stages.append(parallel(*(self.step(self.asking()) for _ in range(chance.randint(2, 3)))))
            else:
                stages += self.branched()
        return stages

    def branched(self) -> list[Stage]:
        """Whether the order's stock is high decides what is charged for."""
        outer, least = self.standing, self.chance.randrange(1, 4)
        self.standing = {}
        then, high = [self.step(self.asking())], self.standing
        self.standing = {}
        otherwise, low = [self.step(self.asking())], self.standing
        self.standing = outer
        self.of_order.append(lambda order: high if order % 5 >= least else low)
        self.count += 1
        look = step(name=f"s{self.count}")(_look_of(f"stock{self.count}"))
        return [look, branch(_higher(f"stock{self.count}", least), then, otherwise)]

    def so_far(self) -> Callable[[int], Standing]:
        standing, of_order = dict(self.standing), tuple(self.of_order)

        def of(order: int) -> Standing:
            whole = dict(standing)
            for part in of_order:
                whole |= part(order)
            return whole

        return of


def _look_of(slot: str) -> Callable[..., Any]:
    async def look(order: int) -> int:
        return await stock(order)

    look.__annotations__ = {"order": Order, "return": Annotated[int, Slot(slot)]}
    return look


def _higher(slot: str, least: int) -> Callable[..., bool]:
    def higher(found: int) -> bool:
        return found >= least

    higher.__annotations__ = {"found": Annotated[int, Slot(slot)], "return": bool}
    return higher


@step
def no_more() -> Fail:
    return Fail.conflict("stock")


@step
def broken() -> None:
    raise ValueError("a defect")


@step
def tell(order: Order) -> Done:
    return Done(order)


def make_flow(chance: Random, name: str, *, steady: bool = False) -> Made:
    """A flow. steady: one that comes to the same whatever happens around it, so that two worlds can be compared."""
    maker = _Maker(chance)
    stages = maker.stages()
    pauses = 0 if steady else chance.choice((0, 0, 0, 1, 2))
    if pauses == 1:
        stages.insert(chance.randrange(len(stages) + 1), maker.pause())
    elif pauses == 2:  # at once, or while something else goes on
        stages.append(parallel(maker.pause(), maker.pause() if chance.random() < 0.5 else maker.step(maker.asking())))
    kept: Callable[[int], Standing] = lambda order: {}  # noqa: E731 (one of two values of a variable)
    if chance.random() < 0.25:
        kept = maker.so_far()
        settles = step(name="settled")(_nothing)
        stages.append(pivot(settles))
        stages += maker.stages()
    ends = chance.choice((*("done",) * 6, "defect", *("failed",) * 3))
    stages.append({"done": tell, "defect": broken, "failed": no_more}[ends])
    durability: Durability = "sync" if steady or chance.random() < 0.85 else "async"
    flow = Flow(
        name,
        stages,
        takes=[Order],
        durability=durability,
        on_crash="resume" if steady or durability == "async" or chance.random() < 0.6 else "compensate",
        deadline=None if steady or chance.random() < 0.6 else chance.choice((1.0, 5.0, 20.0)),
        undo_deadline=60.0,
    )
    return Made(flow, kept, maker.so_far(), ends, tuple(maker.signals))


def _nothing(order: Order) -> None:
    return None
