"""What is to be done for an order, later and elsewhere: the jobs of `scripts.crashing.shop`, ordered with the order.

Law: each job is one errand at the provider, who counts; what became of it is known by its key, and what failed is taken
back by it. Which jobs an order has is read from its id, so that whoever has the id knows them all.

    receipt              every order     durable, carried on after a crash
    pack ─▶ ship         every third     not durable; durable, and undone after a crash
    count, count ─▶ report   every third     not durable, with the results of both
"""

from collections import Counter
from typing import Annotated, Any, Final

import attrs

from examples.checkout import payments
from zerver import INJECTED, App, Done, Effect, Flow, IdempotencyKey, effect, step
from zerver.core.stages import Step
from zerver.effects import queue
from zerver.errors import EffectRefused, HttpError, Rejected
from zerver.http import Body, HttpClient, encode_json
from zerver.jobs import Backoff

#: Seconds that the provider gets for one answer, as for a charge.
PATIENCE: Final = 10.0

ATTEMPTS: Final = 8


@attrs.frozen
class Errand:
    """part: of several for one order."""

    order: str
    part: int = 0


@effect(kind="errands.perform", access="write")
async def perform(flow: str, order: str, *, key: IdempotencyKey = INJECTED, http: HttpClient = INJECTED) -> str:
    return await _ask("/errands", {"for": f"{flow} {order}"}, key, http)


@effect(kind="errands.withdraw", access="write")
async def withdraw(what: str, *, key: IdempotencyKey = INJECTED, http: HttpClient = INJECTED) -> str:
    """Take an errand back, and never perform it, should it still be on its way."""
    return await _ask("/withdrawals", {"key": what}, key, http)


async def _ask(path: str, body: dict[str, str], key: IdempotencyKey, http: HttpClient) -> str:
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    reply = await http.request("POST", payments.PROVIDER_URL + path, headers=headers, body=encode_json(body))
    if reply.status == 503:
        raise EffectRefused("errands", "the provider is not available")
    if reply.status == 409:
        raise Rejected(f"{key} was refused")
    if not reply.ok:
        raise HttpError(f"the provider answered {reply.status}")
    return key


def errand(flow: str, order: str) -> Effect[str]:
    return perform(flow, order).compensate(withdraw, by_key=withdraw).with_policy(timeout=PATIENCE)


def doing(name: str) -> Step:
    """The step of an errand that is known by its body."""

    @step(name=f"{name}.do")
    async def do(body: Annotated[Errand, Body()]) -> Done:
        await errand(name, body.order)
        return Done(attrs.asdict(body))

    return do


@step(name="report.do")
async def report_all(counted: Annotated[list[Errand], Body()]) -> Done:
    await errand("report", counted[0].order)
    return Done(attrs.asdict(counted[0]))


def _flow(name: str, do: Step, **said: Any) -> Flow:
    return Flow(name, [do], deadline=20.0, undo_deadline=30.0, **said)


receipt = _flow("receipt", doing("receipt"), durability="sync", on_crash="resume")
pack = _flow("pack", doing("pack"))
ship = _flow("ship", doing("ship"), durability="sync", on_crash="compensate")
count = _flow("count", doing("count"))
report = _flow("report", report_all)

FLOWS: Final = (receipt, pack, ship, count, report)

#: Those of which the journal has the runs.
DURABLE: Final = frozenset(flow.name for flow in FLOWS if flow.durability == "sync")


def errands_of(order: str) -> list[Effect[Any]]:
    """What is ordered with this order, as members of its transaction."""
    ordered: list[Effect[Any]] = [queue.enqueue(receipt, Errand(order))]
    shape = _shape(order)
    if shape == 1:
        ordered.append(queue.chain(queue.enqueue(pack, Errand(order)), queue.enqueue(ship, Errand(order))))
    elif shape == 2:
        counts = [queue.enqueue(count, Errand(order, part)) for part in range(2)]
        ordered.append(queue.fan_out(counts, then=queue.enqueue(report)))
    return ordered


def expected_of(order: str) -> Counter[str]:
    """The same, as how many jobs of each flow there are."""
    return Counter((("receipt",), ("receipt", "pack", "ship"), ("receipt", "count", "count", "report"))[_shape(order)])


def _shape(order: str) -> int:
    return int(order.replace("-", "")[:6], 16) % 3


def declare(app: App) -> None:
    """Attempts follow each other closely, so that what fails has its end within the campaign."""
    for flow in FLOWS:
        app.job(flow, attempts=ATTEMPTS, backoff=Backoff(0.05, 0.5), queue="errands")
