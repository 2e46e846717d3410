"""A corpus of stored runs: every shape of records there is, as some release has written them.

python -m tests.journal.corpus NAME    writes data/NAME.json with today's code; once for each release (scripts/corpus)

A corpus is never written again: it is what an older Zerver has left on somebody's disk. The flows in here are what
they are for the same reason: a flow that a corpus knows may get neighbours, and must not change.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import attrs
import trio

from zerver import (
    INJECTED,
    App,
    Done,
    Effect,
    Fail,
    Flow,
    IdempotencyKey,
    Insert,
    Pause,
    Slot,
    branch,
    dag,
    effect,
    join,
    parallel,
    pivot,
    step,
)
from zerver.errors import ConnectFailed, Rejected
from zerver.journal import Disk, open_memory_journal
from zerver.runtime import open_runtime
from zerver.runtime.journal import RunHead, StoredRun
from zerver.testing.scheduler import mock_clock, seeded

DATA: Final = Path(__file__).parent / "data"

# ---- flows ----------------------------------------------------------------------------------


@attrs.frozen
class Receipt:
    id: str
    cents: int


Rate = Annotated[int, Slot("rate")]
Note = Annotated[str, Slot("note")]
Paid = Annotated[Receipt, Slot("paid")]


@effect(kind="bank.rate", access="read")
async def rate() -> int:
    raise NotImplementedError


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, key: IdempotencyKey = INJECTED) -> Receipt:
    raise NotImplementedError


@effect(kind="bank.post", access="write")
async def post(text: str) -> str:
    raise NotImplementedError


@effect(kind="bank.find", access="read")
async def find(key: str) -> Receipt | None:
    raise NotImplementedError


@effect(kind="bank.refund", access="write")
async def refund(made: Receipt, *, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


def charged(cents: int) -> Effect[Receipt]:
    return charge(cents).compensate(refund, resolve=find)


@step
async def look() -> Rate:
    return await rate()


@step
async def pay(rate: Rate) -> Paid:
    return await charged(rate * 4)


@step
async def pay_more() -> None:
    await charged(7)


@step
async def pay_after_retries() -> None:
    await charged(99).with_policy(retries=3, timeout=1.0)


@step
async def refused() -> None:
    await charged(13).optional()


@step
async def all_of_it() -> None:
    await join.all(charged(1), rate(), charged(2))


@step
async def settled() -> None:
    await join.settle(charged(13), charged(2))


@step
async def race_for_it() -> None:
    await join.race(charged(1), charged(2))


@step
async def most_of_it() -> None:
    await join.quorum(2, *(charged(n) for n in (1, 2, 3)))


@step
async def hedged() -> None:
    await join.hedge(charged(5), after=0.005, limit=2)


@step
async def nested() -> None:
    await join.all(join.race(charged(1), charged(2)), join.settle(rate(), charged(3)))


@step
async def slow_post() -> None:
    await post("slow")


@step
async def slow_find() -> None:
    await find("slow")


@step
async def lost_post() -> None:
    await post("lost")


@step
def wait_for_it() -> Note | Pause:
    return Pause("approved", expires=20.0)


@step
def tell_note(note: Note) -> Done:
    return Done(note)


@step
async def insert_more() -> Insert:
    return Insert([pay_more])


@step
def no_more() -> Fail:
    return Fail.conflict("stock")


@step
def broken() -> None:
    raise ValueError("a defect")


@step
def turn() -> None:
    return None


@step
def tell() -> Done:
    return Done({"ok": True})


@step
def tell_receipt(paid: Paid) -> Done:
    return Done(paid)


def is_dear(rate: Rate) -> bool:
    return rate > 2


def _flow(name: str, *stages: Any, **how: Any) -> Flow:
    return Flow(name, stages, durability=how.pop("durability", "sync"), **how)


FLOWS: Final = {
    flow.name: flow
    for flow in (
        _flow("line", look, pay, tell_receipt),
        _flow("retries", pay_after_retries, tell),
        _flow("optional", refused, pay_more, tell),
        _flow("joins", all_of_it, settled, race_for_it, most_of_it, hedged, nested, tell),
        _flow("at once", look, parallel(pay, pay_more), tell_receipt),
        _flow("dag", dag(look, pay), tell_receipt),
        _flow("branch", look, branch(is_dear, [pay_more], [all_of_it]), tell),
        _flow("undone", pay_more, all_of_it, hedged, no_more),
        _flow("pivot", pay_more, pivot(turn), most_of_it, no_more),
        _flow("defect", pay_more, broken),
        _flow("deadline", pay_more, slow_find, tell, deadline=2.0),
        _flow("cut", pay_more, slow_post, tell, deadline=2.0),
        _flow("unresolved", pay_more, lost_post, tell),
        _flow("inserted", look, pay, insert_more, tell_receipt),
        _flow("compensated", look, pay, slow_post, tell_receipt, on_crash="compensate"),
        _flow("paused", pay_more, wait_for_it, tell_note),
        _flow("expired", pay_more, wait_for_it, tell_note),
        _flow("nested", Flow("inner", [look, pay], gives=[Paid], deadline=5.0), tell_receipt),
    )
}

# ---- the world ------------------------------------------------------------------------------


class Bank:
    """Knows its charges by key."""

    def __init__(self) -> None:
        self.charges: dict[str, Receipt] = {}
        self.refunded: set[str] = set()
        self.tries = 0

    def handlers(self) -> dict[str, Callable[..., Any]]:
        async def on_charge(cents: int, *, key: IdempotencyKey) -> Receipt:
            await trio.sleep(0.01)
            self.tries += 1
            if cents == 99 and self.tries % 3:
                raise ConnectFailed("nobody listens")
            if cents == 13:
                raise Rejected("sold out")
            return self.charges.setdefault(key, Receipt(f"ch_{len(self.charges)}", cents))

        async def on_post(text: str) -> str:
            await trio.sleep(5.0 if text == "slow" else 0.01)
            if text == "lost":
                raise OSError("the line broke")
            return text

        async def on_refund(made: Receipt, *, key: IdempotencyKey) -> None:
            await trio.sleep(0.01)
            self.refunded.add(made.id)

        async def on_find(key: str) -> Receipt | None:
            await trio.sleep(5.0 if key == "slow" else 0.01)
            return self.charges.get(key)

        async def on_rate() -> int:
            await trio.sleep(0.001)
            return 3

        return {
            "bank.charge": on_charge,
            "bank.post": on_post,
            "bank.refund": on_refund,
            "bank.find": on_find,
            "bank.rate": on_rate,
        }


# ---- writing --------------------------------------------------------------------------------


def write(name: str) -> Path:
    """Write data/NAME.json: each flow's run, page by page."""
    with seeded(1):
        runs = trio.run(_collect, clock=mock_clock())
    place = DATA / f"{name}.json"
    DATA.mkdir(exist_ok=True)
    place.write_text(json.dumps({"zerver": name, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    return place


async def _collect() -> list[dict[str, Any]]:
    return [await _written(flow) for flow in FLOWS.values()]


async def _written(flow: Flow) -> dict[str, Any]:
    disk, handlers = Disk(), Bank().handlers()
    async with (
        open_memory_journal(disk) as journal,
        open_runtime(App(), handlers=handlers, journal=journal, flows=[flow], seed=1) as runtime,
    ):
        result = await runtime.run(flow)
        if flow.name == "paused":
            await runtime.signal(result.run_id, "approved", "by ann")
        await trio.sleep(30)
    (kept,) = disk.runs.values()
    run = kept.stored()
    return {
        "head": attrs.asdict(run.head),
        "status": run.status,
        "plan_id": run.plan_id,
        "plan": run.plan.decode(),
        "pages": [[line.decode() for line in kept.pages[first]] for first in sorted(kept.pages)],
    }


# ---- reading --------------------------------------------------------------------------------


def read(place: Path) -> list[list[StoredRun]]:
    """The runs of a corpus: each as it was behind its first page, its second, …, and as it ended."""
    return [list(_cut(run)) for run in json.loads(place.read_text(encoding="utf-8"))["runs"]]


def _cut(run: dict[str, Any]) -> Iterator[StoredRun]:
    lines: tuple[bytes, ...] = ()
    for number, page in enumerate(run["pages"], 1):
        lines += tuple(line.encode() for line in page)
        status = run["status"] if number == len(run["pages"]) else ""
        yield StoredRun(RunHead(**run["head"]), 1, status, run["plan_id"], run["plan"].encode(), lines)


def corpora() -> list[Path]:
    return sorted(DATA.glob("*.json"))


if __name__ == "__main__":
    from tests.journal import corpus  # its classes are to be named as this module's, and not as those of __main__

    print(corpus.write(sys.argv[1]))
