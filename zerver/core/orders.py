"""Orders: what is asked for when a job is. A value, made by a program, a schedule or an effect, and put into a store.

Law: an order says everything about its job that its store has to know, in text and numbers: bodies are JSON already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from zerver.core.priorities import PRIORITIES, Priority
from zerver.core.values import value
from zerver.errors import DefinitionError

#: Numbers that a store keeps are below this: 64 bits, as every database has them.
_MOST: Final = 2**63


@value
class Order:
    """What is asked for. job_id: made by whoever orders, so that ordering twice is ordering once.

    body: JSON text, None for none; a successor without one is given what came before it. at_unix_ns: not before then.
    attempts: how often it is tried at most. unique: of all jobs with this text that are not final, and of those that
    were ordered in the last `unique_seconds`, there is one; "" for no such rule. releases: the job, in state "waiting",
    that this one is awaited by. awaits: how many jobs this one waits for. place: of this one among those that are
    awaited together. origin: what made it, as "cron nightly"; "" for a program. parent: a traceparent.
    """

    job_id: str
    flow: str
    queue: str = "default"
    body: str | None = attrs.field(default=None, repr=False)
    tenant: str = "default"
    priority: Priority = "batch"
    at_unix_ns: int = 0
    attempts: int = 20
    unique: str = ""
    unique_seconds: float = 0.0
    releases: str = ""
    awaits: int = 0
    place: int = 0
    origin: str = ""
    parent: str = ""


def check_orders(orders: Sequence[Order]) -> None:
    """Raise DefinitionError for an order that no store takes, and for two of one id."""
    ids: set[str] = set()
    for order in orders:
        problem, cure = _problem(order)
        if not problem and order.job_id in ids:
            problem, cure = "is in these orders twice", "give each job an id of its own"
        if problem:
            raise DefinitionError(f"job {order.job_id!r} of flow {order.flow!r} {problem}", cure)
        ids.add(order.job_id)


def _problem(order: Order) -> tuple[str, str]:
    if not order.job_id or not order.flow or not order.queue:
        return "has no id, no flow or no queue", "name all three"
    if order.priority not in PRIORITIES:
        return f"has the priority {order.priority!r}", f"write one of {', '.join(PRIORITIES)}"
    if order.attempts < 1 or order.awaits < 0 or order.unique_seconds < 0:
        return "has a number below its least", "attempts is at least 1; awaits and unique_seconds are at least 0"
    if max(order.at_unix_ns, order.attempts, order.awaits, abs(order.place), order.unique_seconds * 1e9) >= _MOST:
        return "has a number that does not fit into 64 bits", "times are nanoseconds since 1970"
    if order.unique and order.releases:
        # Another job could stand for it, which releases nobody: what awaits this one would wait for ever.
        return "is unique and awaited by another", "make the last of a chain unique, or leave it to the first one's key"
    return "", ""
