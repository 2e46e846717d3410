"""Attempts: what a job's run is given, and what its end makes of the job.

Law: nothing is performed here but one look into the journal. What an end means is the core's table (`fate`); here it
becomes a verdict, with the time, the chance and the words that a store wants.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from typing import Any

import attrs

from zerver.core.codec import decode_json, encode_json, to_builtins
from zerver.core.flows import Flow
from zerver.core.jobs import JobRule, Snooze, fate
from zerver.core.plan import Plan
from zerver.core.tickets import Refusal
from zerver.core.timeline import Ending
from zerver.errors import InvalidData
from zerver.jobs.port import Job, Verdict
from zerver.runtime import Runtime
from zerver.runtime.journal import UNRESOLVED
from zerver.runtime.live import AWAY, LOST

#: Seconds after which a job is begun again that was put back, if nobody says when.
SOON = 1.0

#: Reasons of runs that stopped where they were, and are carried on by somebody.
_LEFT = (LOST.reason, AWAY.reason)


@attrs.frozen(eq=False)
class End:
    """How a job's run has ended. drained: it was cut because its worker ends. unresolved: it left such writes."""

    ending: Ending
    unresolved: bool = False
    drained: bool = False


def inputs_of(plan: Plan, job: Job, has_ticket: Callable[[], None]) -> tuple[Callable[[], list[Any]], list[Any]]:
    """What its run reads: the parts, as a reader that is called when it has a ticket, and the slots that it takes.

    A body that does not fit is the run's failure, with a timeline, and so the reader's to raise.
    """
    parts: list[Any] = []
    takes: list[Any] = [None] * len(plan.takes)
    wrong: InvalidData | None = None
    try:
        parts, takes = _read(plan, job.body)
    except InvalidData as error:
        wrong = error

    def read() -> list[Any]:
        has_ticket()
        if wrong is not None:
            raise wrong
        return parts

    return read, takes


def _read(plan: Plan, body: str | None) -> tuple[list[Any], list[Any]]:
    parts: list[Any] = []
    for read in plan.parts:
        if read.part.source == "body" and body is not None:
            parts.append(body.encode() if read.type is bytes else decode_json(body.encode(), read.type))
        elif read.part.source == "body" and read.required:
            raise InvalidData([("body", "is required: enqueue the job with one")])
        else:
            parts.append(None if read.default is Parameter.empty else read.default)
    if not plan.takes:
        return parts, []
    members: dict[str, Any] = decode_json((body or "{}").encode(), dict)
    missing = [slot.name for slot in plan.takes if slot.name not in members]
    if missing:
        raise InvalidData([(f"body.{name}", "is missing: the flow takes a slot of this name") for name in missing])
    return parts, [members[slot.name] for slot in plan.takes]


def verdict_of(end: End, job: Job, rule: JobRule, now_unix_ns: int, draw: float) -> Verdict:
    """What becomes of the job. draw: uniform in [0, 1), for the backoff."""
    ending = end.ending
    if ending.status == "parked" or ending.reason in _LEFT:
        return Verdict("parked")
    came = fate(ending.status, ending.value, ending.cause, unresolved=end.unresolved, drained=end.drained)
    if came == "done":
        try:
            return Verdict("done", result=_result(ending.value))
        except Exception as error:  # whatever an object of the user's does when it is written: it is this job's end
            return Verdict("dead", error=f"what it came to cannot be kept: {_said(error)}")
    why = _why(end)
    if came == "snoozed":
        seconds = ending.value.seconds if isinstance(ending.value, Snooze) else SOON
        return Verdict("scheduled", now_unix_ns + round(seconds * 1e9), counts=False)
    if came == "back":
        retry_after = ending.cause.retry_after if isinstance(ending.cause, Refusal) else 0.0
        ran = ending.status != "refused"
        return put_back(now_unix_ns, SOON if retry_after is None else retry_after, why, ran=ran)
    if came == "again" and job.attempt < job.attempts:
        seconds = rule.backoff.seconds(job.attempt, draw)
        return Verdict("scheduled", now_unix_ns + round(seconds * 1e9), error=why)
    if came == "cancelled":
        return Verdict("cancelled", error=why)
    return Verdict("dead", error=why)


def put_back(now_unix_ns: int, seconds: float = 0.0, why: str = "", *, ran: bool = False) -> Verdict:
    """Begin the job again in so many seconds, as if it had not been begun. ran: a run of it has, and has ended."""
    at = now_unix_ns + round(seconds * 1e9) if seconds > 0 else 0
    return Verdict("scheduled", at, error=why, counts=False, ran=ran)


async def end_in_journal(runtime: Runtime, flow: Flow, run_id: str) -> End | None:
    """What the journal has of the run of a durable flow: None when it has none, an End "parked" while it is to be
    carried on. Raises JournalError.
    """
    if flow.durability == "off" or runtime.clerk is None:
        return None
    journal = runtime.clerk.journal
    stored = await journal.read(run_id)
    if stored is None:
        return None
    if not stored.status:
        return End(Ending("parked"))
    if stored.status == UNRESOLVED:
        return End(Ending("failed", reason="it is unresolved"), unresolved=True)
    told = journal.notation.reader(runtime.app, flow).read(stored).ending
    return End(told if told is not None else Ending("cancelled", reason="its process crashed"))


def _result(value: object) -> str | None:
    """A result as JSON text, as far as it can be written."""
    if value is None:
        return None
    try:
        return encode_json(value).decode()
    except InvalidData:
        return encode_json(to_builtins(value)).decode()


def _why(end: End) -> str:
    ending = end.ending
    cause = ending.cause
    if isinstance(cause, Refusal):
        said = f"it was refused: {cause.reason}"
    elif ending.status == "defect":
        said = f"{type(cause).__name__}: {_said(cause)}"
    elif ending.status == "deadline":
        said = "its deadline passed"
    elif cause is not None:
        said = _said(cause)
    else:
        said = getattr(ending.value, "reason", "") or ending.reason
    return f"it left writes of which nobody knows: {said}" if end.unresolved else said


def _said(cause: object) -> str:
    """What an exception says; not all that users make can."""
    try:
        return str(cause)
    except Exception:
        return "it cannot say what it is"
