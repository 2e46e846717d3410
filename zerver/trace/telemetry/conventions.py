"""Conventions: under which names what a run's records say is sent to others. Tables, and nothing else.

Law: every name that leaves the process over OTLP is in this file, and no other makes one up. Where OpenTelemetry's
semantic conventions have a name for something it is used, with their meaning; what is Zerver's own begins with
`zerver.`. Lengths of time are milliseconds, and their names say so. `docs/reference/conventions.md` is these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from zerver.core import timeline as t
from zerver.trace.bars import Kind

#: The edition of the semantic conventions whose names are used.
SCHEMA: Final = "https://opentelemetry.io/schemas/1.40.0"


@attrs.frozen
class SpanConvention:
    """How one kind of span is called. kind: OpenTelemetry's. Braces stand for what differs."""

    name: str
    kind: str
    of: str


@attrs.frozen
class EventConvention:
    """How one kind of event is called. attributes: from the key in `SpanEvent.attributes` to the name."""

    name: str
    of: str
    attributes: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Attribute:
    """One attribute. on: kinds of spans, or events."""

    name: str
    type: str
    on: str
    of: str


SPANS: Final[dict[Kind, SpanConvention]] = {
    "run": SpanConvention("{method} {route}", "SERVER", "a run; `zerver.run.{flow}` and INTERNAL without HTTP"),
    "admission": SpanConvention("zerver.admission", "INTERNAL", "the wait for a ticket, when promoted"),
    "turn": SpanConvention("zerver.turn", "INTERNAL", "a wait for the run's turn on the loop, when promoted"),
    "park": SpanConvention("zerver.park", "INTERNAL", "a wait for a signal, when promoted"),
    "step": SpanConvention("zerver.step.{name}", "INTERNAL", "a step"),
    "effect": SpanConvention(
        "zerver.effect.{kind}", "CLIENT", "an effect; INTERNAL where nobody else is asked, PRODUCER of a queue"
    ),
    "join": SpanConvention("zerver.join.{rule}", "INTERNAL", "a join; its members are its children"),
    "attempt": SpanConvention("zerver.attempt", "INTERNAL", "one of several attempts of an effect"),
    "hedge": SpanConvention("zerver.hedge", "INTERNAL", "an attempt that was started beside another"),
    "undo": SpanConvention(
        "zerver.rollback", "INTERNAL", "the rollback; its tasks are `zerver.undo.{kind}` and `zerver.resolve.{kind}`"
    ),
}

#: Rooms of effects' kinds by what their spans are. Any other kind is a user's own, and taken to ask somebody else.
INSIDE: Final = frozenset(["clock", "random", "offload", "request"])
QUEUES: Final = frozenset(["queue"])

#: `db.system.name` by room, where nobody says which database it is.
SYSTEMS: Final[Mapping[str, str]] = {"sql": "other_sql", "kv": "zerver.kv"}

EVENTS: Final[dict[str, EventConvention]] = {
    "exception": EventConvention(
        "exception",
        "an attempt failed, or a step raised",
        {
            "type": "exception.type",
            "message": "exception.message",
            "stack": "exception.stacktrace",
            "attempt": "zerver.attempt.number",
            "in_doubt": "zerver.attempt.in_doubt",
            "retry_after_ns": "zerver.attempt.retry_after_ms",
            "gave_up": "zerver.attempt.gave_up",
        },
    ),
    "committed": EventConvention("zerver.committed", "a write has happened"),
    "doubted": EventConvention("zerver.doubted", "a write may have happened"),
    "resolved": EventConvention(
        "zerver.resolved", "the other side was asked about a write in doubt", {"happened": "zerver.happened"}
    ),
    "unresolved": EventConvention(
        "zerver.unresolved",
        "nobody can say that a write is right",
        {"effect": "zerver.effect.kind", "step": "zerver.step.name"},
    ),
    "hedge held": EventConvention("zerver.hedge_held", "a hedge was due and held back", {"reason": "zerver.reason"}),
    "decided": EventConvention(
        "zerver.decided", "a join was decided, and had losers", {"winners": "zerver.join.winners"}
    ),
    "branch": EventConvention(
        "zerver.branch", "a branch was decided", {"branch": "zerver.branch.name", "answer": "zerver.branch.answer"}
    ),
    "plan": EventConvention(
        "zerver.plan", "a step changed the rest of the plan", {"verb": "zerver.plan.verb", "steps": "zerver.plan.steps"}
    ),
    "pivot": EventConvention("zerver.pivot", "the point of no return was passed"),
    "overrun": EventConvention(
        "zerver.overrun",
        "a step held the loop for longer than its class may",
        {
            "step": "zerver.step.name",
            "took_ns": "zerver.overrun.took_ms",
            "budget_ns": "zerver.overrun.budget_ms",
            "place": "zerver.overrun.place",
        },
    ),
    "refused": EventConvention("zerver.refused", "admission gave no ticket", {"reason": "zerver.reason"}),
    "keyed": EventConvention(
        "zerver.keyed",
        "the request's idempotency key was looked up",
        {"found": "zerver.keyed.found", "before": "zerver.keyed.before"},
    ),
    "ending": EventConvention(
        "zerver.ending",
        "the run was over, but for its rollback",
        {"status": "zerver.status", "reason": "zerver.reason"},
    ),
    "job": EventConvention(
        "zerver.job",
        "the run is an attempt of a job",
        {
            "queue": "zerver.job.queue",
            "attempt": "zerver.job.attempt",
            "attempts": "zerver.job.attempts",
            "waited_ns": "zerver.job.waited_ms",
        },
    ),
    "recovered": EventConvention(
        "zerver.recovered", "its process had died, and another one went on with it", {"owner": "zerver.owner"}
    ),
    "retried": EventConvention(
        "zerver.retried", "it had ended unresolved, and a worker tried again", {"owner": "zerver.owner"}
    ),
    "resumed": EventConvention(
        "zerver.resumed", "it was put down, parked, and this worker went on with it", {"owner": "zerver.owner"}
    ),
    "answered": EventConvention("zerver.answered", "its edge had an answer", {"status": "http.response.status_code"}),
}

#: Which records are told as what. The others are the beginnings and ends of spans.
RECORDS: Final[dict[str, str]] = {
    t.RECEIVED: "begins the run's span and its admission",
    t.ADMITTED: "ends the admission",
    t.REFUSED: "ends the admission; event `zerver.refused`",
    t.KEYED: "event `zerver.keyed`",
    t.JOB: "event `zerver.job`",
    t.READ: "a span `zerver.effect.request.read`",
    t.INPUT: "nothing: what a replay needs is not sent",
    t.TURN: "a span `zerver.turn` when promoted, else `zerver.time.turn_ms`",
    t.BREATH: "nothing: the turn that follows tells it",
    t.OVERRUN: "event `zerver.overrun`",
    t.STEP: "ends a step",
    t.DEFECT: "ends a step; event `exception`",
    t.FAULT: "ends a step; event `exception`",
    t.BRANCH: "event `zerver.branch`",
    t.PLAN: "event `zerver.plan`",
    t.PIVOT: "event `zerver.pivot`",
    t.ASKED: "begins an effect or a join, and its step",
    t.ATTEMPT: "begins an attempt",
    t.FAILED: "ends an attempt; event `exception`",
    t.HEDGED: "begins a hedge",
    t.HELD: "event `zerver.hedge_held`",
    t.COMMITTED: "event `zerver.committed`",
    t.DOUBTED: "event `zerver.doubted`",
    t.RESOLVED: "ends the question; event `zerver.resolved`",
    t.SETTLED: "ends an effect or a join",
    t.LATE: "the same, `zerver.span.status` is `late`",
    t.LOST: "event `zerver.decided`; a loser that had succeeded is `lost`",
    t.CUT: "ends an effect, `zerver.span.status` is `cut`",
    t.ENDING: "event `zerver.ending`",
    t.UNDO: "begins a task of the rollback",
    t.UNDONE: "ends it",
    t.GAVE_UP: "ends it, `zerver.span.status` is `unresolved`",
    t.PARKED: "begins a park",
    t.SIGNALLED: "ends it",
    t.EXPIRED: "ends it, `zerver.span.status` is `failed`",
    t.UNRESOLVED: "event `zerver.unresolved`; the effect and its run are errors",
    t.ENDED: "ends the run's span",
    t.ANSWERED: "event `zerver.answered`",
    t.RECOVERED: "event `zerver.recovered`",
    t.RESUMED: "event `zerver.resumed`",
    t.RETRIED: "event `zerver.retried`",
}

ATTRIBUTES: Final[tuple[Attribute, ...]] = (
    # OpenTelemetry's
    Attribute("http.request.method", "string", "run, effect http", "`_OTHER` for one that is not known"),
    Attribute("http.request.method_original", "string", "run, effect http", "what stands behind `_OTHER`"),
    Attribute("http.route", "string", "run", "the route's pattern"),
    Attribute("http.response.status_code", "int", "run, effect http, event", "what was answered"),
    Attribute("http.request.resend_count", "int", "attempt, hedge", "how many attempts came before"),
    Attribute("url.full", "string", "effect http", "masked, without its query"),
    Attribute("server.address", "string", "effect http", "the host that was asked"),
    Attribute("server.port", "int", "effect http", "its port"),
    Attribute("error.type", "string", "any that failed", "a status, the name of an error, or how the run ended"),
    Attribute("db.system.name", "string", "effect sql, effect kv", "`other_sql` unless the exporter is told which"),
    Attribute("db.operation.name", "string", "effect sql, effect kv", "`SELECT`, `BATCH UPDATE`, `get`"),
    Attribute("db.operation.batch.size", "int", "effect sql", "statements of a transaction, from two on"),
    Attribute("db.collection.name", "string", "effect sql", "the table, where there is one alone"),
    Attribute("db.query.summary", "string", "effect sql", "operation and tables; never the text, nor its parameters"),
    Attribute("messaging.system", "string", "effect queue", "`zerver` unless the exporter is told which"),
    Attribute("messaging.operation.name", "string", "effect queue", "the verb of the effect's kind"),
    Attribute("messaging.operation.type", "string", "effect queue", "`send`"),
    Attribute("messaging.destination.name", "string", "effect queue", "the effect's target"),
    Attribute("exception.type", "string", "event", "the error's class"),
    Attribute("exception.message", "string", "event", "masked, one line"),
    Attribute("exception.stacktrace", "string", "event", "of a defect, masked; 8 KiB at most"),
    # the run's
    Attribute("zerver.run.id", "string", "run", "what `zerver trace` asks for"),
    Attribute("zerver.flow", "string", "run", "the flow's name"),
    Attribute("zerver.flow.version", "string", "run", "its version"),
    Attribute("zerver.tenant", "string", "run", "whose request it was"),
    Attribute("zerver.class", "string", "run", "`interactive`, `default` or `batch`"),
    Attribute("zerver.status", "string", "run, event", "how it ended: `done`, `failed`, `defect`, `deadline` …"),
    Attribute("zerver.kept", "string", "run", "why it was kept"),
    Attribute("zerver.spans.dropped", "int", "run", "spans that are not sent, as there are too many"),
    Attribute("zerver.time.admission_ms", "double", "run", "of its time: the wait for a ticket"),
    Attribute("zerver.time.turn_ms", "double", "run, step", "of its time: waits for turns"),
    Attribute("zerver.time.cpu_ms", "double", "run, step", "of its time: steps"),
    Attribute("zerver.time.io_ms", "double", "run, step", "of its time: waits for the world"),
    Attribute("zerver.time.parked_ms", "double", "run, step", "of its time: waits for signals"),
    # of its parts
    Attribute("zerver.span.status", "string", "any", "`failed`, `cut`, `late`, `lost` or `unresolved`; none if ok"),
    Attribute("zerver.keyed.found", "string", "event", "`claimed`, `took over`, `repeats`, `in use`, `other request`"),
    Attribute("zerver.keyed.before", "string", "event", "the id of the run that had the key before; empty if none had"),
    Attribute("zerver.reason", "string", "any that failed or was cut, event", "why, masked"),
    Attribute("zerver.step.name", "string", "step, undo, event", "the step; of an undo: whose write it is"),
    Attribute("zerver.decision", "string", "step", "`Done`, `Fail`, `Insert` …; none for a plain value"),
    Attribute("zerver.effect.kind", "string", "effect, join, event", "the effect's kind"),
    Attribute("zerver.effect.what", "string", "effect, join", "what was asked for, masked"),
    Attribute("zerver.effect.access", "string", "effect", "`write`; none for a read"),
    Attribute("zerver.effect.key", "string", "effect", "the idempotency key of a write that takes one"),
    Attribute("zerver.job.queue", "string", "event", "the queue that the job was taken from"),
    Attribute("zerver.job.attempt", "int", "event", "its number, 1 for the first"),
    Attribute("zerver.job.attempts", "int", "event", "how many there may be"),
    Attribute("zerver.job.waited_ms", "double", "event", "since the job might have begun"),
    Attribute("zerver.owner", "string", "event", "the worker that carries the run on"),
    Attribute("zerver.outcome", "string", "effect, join", "`success`, `failure`, `unknown` or `cancelled`"),
    Attribute("zerver.resolves", "boolean", "effect", "it asked whether the write around it has happened"),
    Attribute("zerver.attempt.number", "int", "attempt, hedge, event", "1 for the first"),
    Attribute("zerver.attempt.one_of", "int", "attempt, hedge", "so many were left when one of them won"),
    Attribute("zerver.attempt.in_doubt", "boolean", "event", "it may have happened all the same"),
    Attribute("zerver.attempt.retry_after_ms", "double", "event", "the wait before the next"),
    Attribute("zerver.attempt.gave_up", "string", "event", "why there is no next one, though the policy allows it"),
    Attribute("zerver.signal", "string", "park", "what it waits for"),
    Attribute("zerver.happened", "boolean", "event", "what the other side said of a write in doubt"),
    Attribute("zerver.join.winners", "int", "event", "how many members won"),
    Attribute("zerver.branch.name", "string", "event", "the branch"),
    Attribute("zerver.branch.answer", "boolean", "event", "which way"),
    Attribute("zerver.plan.verb", "string", "event", "`insert` or `replace`"),
    Attribute("zerver.plan.steps", "string", "event", "the steps that came in"),
    Attribute("zerver.overrun.took_ms", "double", "event", "how long it held the loop"),
    Attribute("zerver.overrun.budget_ms", "double", "event", "how long it might have"),
    Attribute("zerver.overrun.place", "string", "event", "file and line"),
)
