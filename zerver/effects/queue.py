"""Jobs as effects: runs that are asked for now, and made later, elsewhere, and again if need be.

Law: an order is text and numbers; a body is JSON when the effect is made, so that what cannot be written is a mistake
of the step and not of a worker an hour later. To enqueue is a write that is done or is not, and that is the same one
when it is asked for again: its job's id is made of the effect's key. As a member of `sql.transaction` it happens with
the other members or not at all, where jobs are kept in that database.

    job_id = await queue.enqueue(send_mail, {"to": "a@example.com"}, delay=60)
    await queue.chain(queue.enqueue(encode, video), queue.enqueue(publish))
    await queue.fan_out([queue.enqueue(resize, one) for one in pictures], then=queue.enqueue(album))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from zerver.core.effects import Access, Effect, EffectKind
from zerver.core.flows import Flow
from zerver.core.jobs import Ask, Asker, Declared, Order, Shape, Unique, as_body, orders_for
from zerver.core.priorities import PRIORITIES, Priority
from zerver.effects.catalogue import makes
from zerver.errors import DefinitionError


def _kind(name: str, access: Access) -> EffectKind[..., Any]:
    # exact: a store takes all of it or nothing; where a connection broke in between, its error says that nobody knows.
    return EffectKind(f"queue.{name}", access, target="queue", exact=True, takes_key=access == "write")


ENQUEUE: Final = _kind("enqueue", "write")
ENQUEUE_MANY: Final = _kind("enqueue_many", "write")
CHAIN: Final = _kind("chain", "write")
FAN_OUT: Final = _kind("fan_out", "write")
CANCEL: Final = _kind("cancel", "write")
PROGRESS: Final = _kind("progress", "read")  # "read": to say it twice does no harm, so nothing has to be written down

#: Kinds whose effects are orders; what `sql.transaction` takes beside statements.
ORDERING: Final = (ENQUEUE, ENQUEUE_MANY, CHAIN, FAN_OUT)

_SHAPES: Final[Mapping[EffectKind[..., Any], Shape]] = {
    ENQUEUE: "each",
    ENQUEUE_MANY: "each",
    CHAIN: "chain",
    FAN_OUT: "fan_out",
}


@makes(ENQUEUE)
def enqueue(
    flow: Flow | str,
    body: object = None,
    *,
    delay: float = 0.0,
    at: datetime | None = None,
    priority: Priority | None = None,
    tenant: str | None = None,
    unique: str | Unique | None = None,
    attempts: int | None = None,
    queue: str | None = None,
) -> Effect[str]:
    """Have a flow run as a job; gives the job's id, or that of the job that stands there already for `unique`.

    flow: declared with `app.job(flow)`, which says what is not said here; or its name. body: what its step's `Body()`
    reads, or its taken slots by name. delay: seconds before it may begin; at: the time, with a time zone, in place of
    them. tenant: whose it is, by default whose the run is that asks. unique: a text of your own, for the flow and the
    tenant; or by what jobs are alike.

    Raises DefinitionError for what cannot work, InvalidData for a body that cannot be written as JSON.
    """
    name = _name(flow)
    options = {
        "delay": _delay(name, delay),
        "at_unix_ns": _moment(name, at, delay),
        "priority": priority,
        "tenant": tenant,
        "unique": unique,
        "attempts": attempts,
        "queue": queue,
    }
    if priority is not None and priority not in PRIORITIES:
        raise DefinitionError(
            f"queue.enqueue({name!r}, priority={priority!r})", f"choose one of {', '.join(PRIORITIES)}"
        )
    if attempts is not None and attempts < 1:
        raise DefinitionError(f"queue.enqueue({name!r}, attempts={attempts!r})", "1 is the first and only one")
    said = {option: value for option, value in options.items() if value}
    return Effect(ENQUEUE, (name, as_body(body)), said)


@makes(ENQUEUE_MANY)
def enqueue_many(flow: Flow | str, bodies: Sequence[object]) -> Effect[list[str]]:
    """A job for each body, all or none, in bulk; gives their ids. Raises as `enqueue`."""
    return Effect(ENQUEUE_MANY, (_name(flow), tuple(map(as_body, bodies))))


@makes(CHAIN)
def chain(*jobs: Effect[str]) -> Effect[list[str]]:
    """Jobs one after the other: each begins when the one before it is done; gives their ids, in order.

    jobs: `enqueue(…)` effects. One that has no body of its own gets the result of the one before it. Raises
    DefinitionError for other effects, and for none.
    """
    if not jobs:
        raise DefinitionError("queue.chain() was given no jobs", "give it queue.enqueue(…), and as many as you like")
    return Effect(CHAIN, _members("chain", jobs))


@makes(FAN_OUT)
def fan_out(jobs: Sequence[Effect[str]], *, then: Effect[str]) -> Effect[list[str]]:
    """Jobs at once, and one more when all of them are done; gives their ids, that of `then` last.

    `then` gets the list of their results, in order, if it has no body of its own. Raises as `chain`.
    """
    if not jobs:
        raise DefinitionError("queue.fan_out([]) was given no jobs", "await `then` by itself when there is nothing")
    return Effect(FAN_OUT, _members("fan_out", (*jobs, then)))


@makes(PROGRESS)
def progress(done: int, total: int = 0, note: str = "") -> Effect[None]:
    """Say how far the job is whose run this is; nothing in a run that is no job's. total: 0 where nobody knows."""
    return Effect(PROGRESS, (done, total, note))


@makes(CANCEL)
def cancel(job_id: str) -> Effect[bool]:
    """Cancel a job; whether there was one that is not over. One that runs is cut, and what it did is compensated.

    As compensation: `queue.enqueue(…).compensate(queue.cancel)`.
    """
    return Effect(CANCEL, (job_id,))


# ---- for those who perform them -------------------------------------------------------------


def orders_of(effect: Effect[Any], declared: Declared, asker: Asker) -> list[Order]:
    """The orders that an effect of one of the ORDERING kinds stands for. declared: of the app.

    What the effect gives is the ids that the store answers with: the one for ENQUEUE, the list for others. Raises
    DefinitionError for a flow that is no job of the app, and for a queue that it does not know.
    """
    if effect.kind is ENQUEUE:
        asks = [_ask(effect)]
    elif effect.kind is ENQUEUE_MANY:
        flow, bodies = effect.args
        asks = [Ask(flow, body) for body in bodies]
    else:
        asks = [_ask(member) for member in effect.args]
    return orders_for(_SHAPES[effect.kind], asks, declared, asker)


def answer_of(effect: Effect[Any], ids: list[str]) -> Any:
    """What a step gets for the ids that the store has answered with."""
    return ids[0] if effect.kind is ENQUEUE else ids


def _ask(effect: Effect[Any]) -> Ask:
    flow, body = effect.args
    return Ask(flow, body, **effect.kwargs)


# ---- checks ---------------------------------------------------------------------------------


def _name(flow: Flow | str) -> str:
    name: object = flow.name if isinstance(flow, Flow) else flow
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"queue.enqueue was given {flow!r}, which is no flow", "give it a Flow, or its name")
    return name


def _delay(flow: str, seconds: float) -> float:
    if not 0 <= seconds < 1e10:
        raise DefinitionError(f"queue.enqueue({flow!r}, delay={seconds!r})", "give seconds from now")
    return seconds


def _moment(flow: str, at: datetime | None, delay: float) -> int:
    """Wall time in nanoseconds, 0 for now."""
    if at is None:
        return 0
    if delay or at.tzinfo is None:
        raise DefinitionError(
            f"queue.enqueue({flow!r}, at={at!r}{f', delay={delay!r}' if delay else ''})",
            "give one of them; and a time needs a time zone, as datetime(…, tzinfo=UTC)",
        )
    return max(1, round(at.timestamp() * 1000) * 1_000_000)


def _members(verb: str, jobs: Sequence[Effect[str]]) -> tuple[Effect[str], ...]:
    for job in jobs:
        kind = getattr(job, "kind", None)
        if kind is not ENQUEUE:
            given = repr(job) if kind is None else repr(kind.name)
            raise DefinitionError(f"queue.{verb} was given {given}", "give it queue.enqueue(…)")
        if job.policy is not None or job.compensation is not None or job.form != "value":
            raise DefinitionError(
                f"queue.{verb}: a job in it has a policy or compensation of its own", f"put them on the {verb}"
            )
    return tuple(jobs)
