"""A process that may die: a world that outlives it, and a witness of every moment at which it might have died."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import attrs
import trio
import trio.lowlevel

from zerver import (
    INJECTED,
    App,
    Done,
    Effect,
    Fail,
    Flow,
    IdempotencyKey,
    Slot,
    branch,
    effect,
    join,
    parallel,
    step,
)
from zerver.core.stages import Stage
from zerver.errors import Rejected
from zerver.journal import Disk, open_memory_journal
from zerver.runtime import Result, Runtime, open_runtime
from zerver.runtime.journal import Entry, Journal, Opening

# ---- a world that is there once for each key ------------------------------------------------


class World:
    """What has happened outside, by key; `calls` counts how often it was asked for."""

    def __init__(self) -> None:
        self.done: dict[str, str] = {}
        self.undone: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.reads = 0

    def copy(self) -> World:
        return copy.deepcopy(self)


@effect(kind="bank.rate", access="read")
async def rate() -> int:
    raise NotImplementedError


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, key: IdempotencyKey = INJECTED) -> str:
    raise NotImplementedError


@effect(kind="bank.post", access="write")
async def post(text: str) -> str:
    raise NotImplementedError


@effect(kind="bank.find", access="read")
async def find(key: str) -> str | None:
    raise NotImplementedError


@effect(kind="bank.refund", access="write")
async def refund(made: str, *, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


@attrs.define(eq=False)
class Moment:
    """A place where the process might have died: what is on the disk then, and in the world."""

    where: str
    disk: Disk
    world: World


class Witness:
    """The journal and the world of a process, and every moment at which it might have died."""

    def __init__(self, disk: Disk | None = None, world: World | None = None) -> None:
        self.disk = disk or Disk()
        self.world = world or World()
        self.moments: list[Moment] = []
        self.ended: list[Result] = []

    def saw(self, where: str) -> None:
        self.moments.append(Moment(where, copy.deepcopy(self.disk), self.world.copy()))

    def handlers(self, sold_out: bool = False) -> dict[str, Callable[..., Any]]:
        async def on_charge(cents: int, *, key: IdempotencyKey) -> str:
            self.saw("before charge")
            await trio.sleep(0.01)
            self.world.calls[key] += 1
            if sold_out and cents == 13:
                raise Rejected("sold out")
            made = self.world.done.setdefault(key, f"ch_{cents}")
            self.saw("after charge")
            await trio.sleep(0.01)
            return made

        async def on_post(text: str) -> str:
            self.saw("before post")
            self.world.calls[f"post {text}"] += 1
            self.world.done[f"post {text}"] = text
            await trio.sleep(0.01)
            self.saw("after post")
            return text

        async def on_refund(made: str, *, key: IdempotencyKey) -> None:
            self.saw("before refund")
            await trio.sleep(0.01)
            self.world.calls[key] += 1
            self.world.undone.add(key.removesuffix(".undo"))
            self.saw("after refund")

        async def on_find(key: str) -> str | None:
            return self.world.done.get(key)

        async def on_rate() -> int:
            await trio.sleep(0.001)
            self.world.reads += 1
            return 3

        return {
            "bank.charge": on_charge,
            "bank.post": on_post,
            "bank.refund": on_refund,
            "bank.find": on_find,
            "bank.rate": on_rate,
        }

    @asynccontextmanager
    async def open(self, *flows: Flow, sold_out: bool = False, **how: Any) -> AsyncIterator[Runtime]:
        async with (
            open_memory_journal(self.disk) as journal,
            open_runtime(
                App(),
                handlers=self.handlers(sold_out),
                journal=Watched(journal, self),
                flows=flows,
                observers=[self.ended.append],
                **how,
            ) as runtime,
        ):
            yield runtime


class Watched:
    """A journal that somebody watches."""

    def __init__(self, journal: Journal, witness: Witness) -> None:
        self._journal = journal
        self._witness = witness
        self.notation = journal.notation
        self.flush, self.renew, self.claim = journal.flush, journal.renew, journal.claim
        self.retake = journal.retake
        self.write_behind = journal.write_behind
        self.read, self.prune, self.tallies, self.statistics = (
            journal.read,
            journal.prune,
            journal.tallies,
            journal.statistics,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)

    async def write(self, entry: Entry) -> None:
        what = "opening" if isinstance(entry, Opening) else f"page {entry.first} {entry.status}"
        self._witness.saw(f"before {what}")
        await self._journal.write(entry)
        self._witness.saw(f"after {what}")


# ---- flows ----------------------------------------------------------------------------------

Paid = Annotated[str, Slot("paid")]
Other = Annotated[str, Slot("other")]
Rate = Annotated[int, Slot("rate")]


def charged(cents: int) -> Effect[str]:
    return charge(cents).compensate(refund, resolve=find)


@step
async def look() -> Rate:
    return await rate()


@step
async def pay(rate: Rate) -> Paid:
    return await charged(rate * 4)


@step
async def pay_more(paid: Paid) -> Other:
    return await charged(13)


@step
def tell(paid: Paid, other: Other) -> Done:
    return Done((paid, other))


SHOP = Flow("shop", [look, pay, pay_more, tell], durability="sync")


async def run_once(flow: Flow, sold_out: bool = False) -> tuple[Witness, Result]:
    witness = Witness()
    async with witness.open(flow, sold_out=sold_out) as runtime:
        result = await runtime.run(flow)
    return witness, result


async def after_crash(moment: Moment, flow: Flow, sold_out: bool = False) -> Witness:
    """The next process, from this moment on, until nothing is left to do."""
    witness = Witness(moment.disk, moment.world)
    async with witness.open(flow, sold_out=sold_out) as runtime:
        await trio.sleep(60)
        assert runtime.statistics().running == 0
        assert runtime.statistics().stuck == {}
    return witness


def statuses(disk: Disk) -> list[str]:
    return [run.status for run in disk.runs.values()]


def check_once(world: World) -> None:
    """Every key was asked for once, or twice if the process died in its midst."""
    assert all(count <= 2 for count in world.calls.values()), world.calls


@step
async def race_for_it() -> None:
    await join.race(charged(1), charged(2))


@step
async def all_of_it() -> None:
    await join.all(charged(1), rate().optional(), charged(2))


@step
async def most_of_it() -> None:
    await join.quorum(2, *(charged(n) for n in (1, 2, 3)))


@step
async def hedged() -> None:
    await join.hedge(charged(5), after=0.015, limit=2)


@step
async def left() -> None:
    await charged(6)


@step
async def right(rate: Rate) -> None:
    await charged(rate)
    await charged(rate + 1)


@step
async def too_much(paid: Paid) -> None:
    assert paid
    await charged(13)


@step
async def perhaps(paid: Paid) -> None:
    assert paid
    await charged(13).optional()


@step
async def look_again(paid: Paid) -> None:
    assert paid
    await rate()


@step
def no_more() -> Fail:
    return Fail.conflict("stock")


def is_dear(rate: Rate) -> bool:
    return rate > 2


FLOWS: dict[str, list[Stage]] = {
    "one after the other": [look, pay, pay_more, tell],
    "a read in between": [look, pay, look_again, pay_more, tell],
    "sold out": [look, pay, too_much],
    "sold out, which is no matter": [look, pay, perhaps],
    "all": [all_of_it],
    "race": [race_for_it],
    "quorum": [most_of_it],
    "hedge": [hedged],
    "at once": [look, parallel(left, right)],
    "undone behind a read": [look, pay, look_again, no_more],
    "undone": [look, parallel(left, right), no_more],
    "joins undone": [all_of_it, hedged, no_more],
    "a race undone": [race_for_it, no_more],
    "a branch": [look, branch(is_dear, [left], [all_of_it])],
}
