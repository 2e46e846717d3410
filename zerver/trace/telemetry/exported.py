"""Exported: a run's spans as OpenTelemetry wants them, but for its classes.

Law: pure, like the spans it is made from, and called only for runs that are kept. Names come from `conventions.py`, ids
from `zerver.core.tracing`; text has been masked before it comes here, or is masked here. Whatever a user's effect looks
like, it makes a span: what cannot be described is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from zerver.core import tracing
from zerver.core.calls import Call
from zerver.core.effects import Effect
from zerver.core.joins import Join
from zerver.core.timeline import Timeline
from zerver.core.values import value
from zerver.effects.http import Exchange
from zerver.runtime import Result
from zerver.trace import describe
from zerver.trace.bars import Span, SpanEvent
from zerver.trace.facts import Facts, is_hedge
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.spans import spans_of
from zerver.trace.telemetry.conventions import EVENTS, INSIDE, QUEUES, SPANS, SYSTEMS
from zerver.trace.telemetry.promotion import WAITS, Wait
from zerver.trace.veil import Veil

#: Spans of one run that are sent: a collector that is given 100,000 at once is no help to anybody.
MOST_SPANS: Final = 2_000

_METHODS: Final = frozenset(["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"])
_LABEL: Final = re.compile(r"(\S+) (/.*)", re.DOTALL)
_TABLE: Final = re.compile(r"""\b(?:from|into|update|join|table)\s+([\w."`\[\]]+)""", re.IGNORECASE)
_NOISE: Final = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)


@value(eq=False)
class ExportedSpan:
    """One span. Ids: hexadecimal. began, ended: nanoseconds since 1970. kind: "SERVER", "CLIENT", "INTERNAL" or
    "PRODUCER". remote: its parent is the caller's. error: why it is one, "" without a reason; None if it is none.
    events: (nanoseconds since 1970, name, attributes).
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    remote: bool
    name: str
    kind: str
    began: int
    ended: int
    attributes: Mapping[str, Any]
    events: Sequence[tuple[int, str, Mapping[str, Any]]]
    error: str | None


@attrs.frozen(kw_only=True)
class Exporting:
    """How runs are exported. systems: `db.system.name` and `messaging.system` by room, as {"sql": "sqlite"}."""

    hidden: Hidden = NOTHING_HIDDEN
    systems: Mapping[str, str] = attrs.field(factory=dict)
    most_spans: int = MOST_SPANS


def exported(
    result: Result, why: str, began_unix_ns: int, how: Exporting, bars: Mapping[Wait, int]
) -> tuple[ExportedSpan, ...]:
    """The spans of a run that is kept, the root first. why: it is kept. bars: how long (ns) a wait must have taken to
    have a span of its own.
    """
    facts = Facts(result.timeline)
    veil = Veil(facts, how.hidden)
    tree = spans_of(facts, veil)
    if not tree:
        return ()
    longest = facts.ended - facts.began
    wanted = [span for span in tree if span.kind not in WAITS or _took(span, longest) > bars[span.kind]]
    return tuple(_Export(result, why, began_unix_ns, how, veil, longest, tree).all(wanted))


def _took(span: Span, longest: int) -> int:
    return (longest if span.ended is None else span.ended) - span.began


class _Export:
    def __init__(
        self, result: Result, why: str, origin: int, how: Exporting, veil: Veil, last: int, tree: Sequence[Span]
    ) -> None:
        self.timeline: Timeline = result.timeline
        self.run_id = result.run_id
        self.why = why
        self.origin = origin
        self.how = how
        self.veil = veil
        self.last = last
        self.tree = tree
        self.trace_id = tracing.trace_id(self.run_id, self.timeline.parent)
        self.caller = tracing.read_traceparent(self.timeline.parent)

    def all(self, wanted: Sequence[Span]) -> Iterator[ExportedSpan]:
        sent = selected(wanted, self.tree, self.how.most_spans)
        ids = {span.id: self.id_of(span) for span in sent}
        for span in sent:
            attributes = self.attributes(span)
            if span.parent is None and len(sent) < len(wanted):
                attributes["zerver.spans.dropped"] = len(wanted) - len(sent)
            yield self.export(span, ids, attributes)

    def export(self, span: Span, ids: Mapping[int, str], attributes: dict[str, Any]) -> ExportedSpan:
        is_root = span.parent is None
        parent = self.caller.span_id if is_root and self.caller is not None else None
        if span.parent is not None:
            parent = ids[span.parent]
        return ExportedSpan(
            self.trace_id,
            ids[span.id],
            parent,
            is_root and self.caller is not None,
            self.name(span),
            self.kind(span),
            self.origin + span.began,
            self.origin + (self.last if span.ended is None else span.ended),
            attributes,
            [self.event(event) for event in span.events],
            self.error(span, attributes),
        )

    def id_of(self, span: Span) -> str:
        """As `zerver.core.tracing.outgoing` has said it to others, for whatever they were asked."""
        if span.kind in ("effect", "join") or (span.kind == "undo" and span.path != "rollback"):
            return tracing.effect_span_id(f"{self.run_id}:{span.path}")
        return tracing.span_id(self.run_id, span.kind, span.path)

    # -- names --

    def name(self, span: Span) -> str:
        pattern = SPANS[span.kind].name
        if span.kind == "run":
            method, route = _http_of(self.timeline.label)
            return f"{method} {route}" if route else f"zerver.run.{self.timeline.flow}"
        if span.kind == "step":
            return pattern.format(name=span.name)
        if span.kind == "effect":
            return pattern.format(kind=span.name)
        if span.kind == "join":
            return pattern.format(rule=span.name.removeprefix("join."))
        if span.kind == "undo" and span.path != "rollback":
            return "zerver." + span.name.replace(" ", ".", 1)
        return pattern

    def kind(self, span: Span) -> str:
        if span.kind == "run" and not _http_of(self.timeline.label)[1]:
            return "INTERNAL"
        if span.kind == "effect":
            room = span.name.partition(".")[0]
            return "INTERNAL" if room in INSIDE else "PRODUCER" if room in QUEUES else "CLIENT"
        return SPANS[span.kind].kind

    # -- attributes --

    def attributes(self, span: Span) -> dict[str, Any]:
        said: dict[str, Any] = {}
        if span.status not in ("ok", "running"):
            said["zerver.span.status"] = span.status
        if "reason" in span.attributes:
            said["zerver.reason"] = span.attributes["reason"]
        if span.kind == "run":
            said |= self.of_run(span)
        elif span.kind == "step":
            said |= {"zerver.step.name": span.name, **_times(span)}
            if "decision" in span.attributes:
                said["zerver.decision"] = span.attributes["decision"]
        elif span.kind in ("effect", "join"):
            said |= self.of_effect(span)
        elif span.kind in ("attempt", "hedge"):
            said |= self.of_attempt(span)
        elif span.kind == "park":
            said["zerver.signal"] = span.name
        elif span.kind == "undo" and "step" in span.attributes:
            said["zerver.step.name"] = span.attributes["step"]
        return said

    def of_run(self, span: Span) -> dict[str, Any]:
        timeline = self.timeline
        said = {
            "zerver.run.id": self.run_id,
            "zerver.flow": timeline.flow,
            "zerver.flow.version": timeline.version,
            "zerver.tenant": self.veil.text(timeline.tenant),
            "zerver.class": timeline.priority,
            "zerver.status": span.attributes.get("ending", "running"),
            "zerver.kept": self.why,
            **_times(span),
        }
        method, route = _http_of(timeline.label)
        if route:
            said |= {"http.request.method": method, "http.route": route}
            if method == "HTTP":
                said["http.request.method"] = "_OTHER"
                said["http.request.method_original"] = timeline.label.partition(" ")[0]
        if "http_status" in span.attributes:
            said["http.response.status_code"] = span.attributes["http_status"]
        return said

    def of_effect(self, span: Span) -> dict[str, Any]:
        said: dict[str, Any] = {"zerver.effect.kind": span.name}
        for key, name in _EFFECT.items():
            if key in span.attributes:
                said[name] = span.attributes[key]
        call = span.subject
        if call is None:
            return said
        if span.kind == "effect" and inner_of(call).kind.takes_key:
            said["zerver.effect.key"] = f"{self.run_id}:{span.path}"
        if not self.veil.hides(call.step):
            said |= described(inner_of(call), self.veil, self.how.systems)
        return said

    def of_attempt(self, span: Span) -> dict[str, Any]:
        number = span.attributes["number"]
        said = {"zerver.attempt.number": number}
        if "one_of" in span.attributes:
            said["zerver.attempt.one_of"] = span.attributes["one_of"]
        around = self.tree[span.parent] if span.parent is not None else None
        if around is not None and around.name.startswith("http.") and number > 1:
            said["http.request.resend_count"] = number - 1
        return said

    def event(self, event: SpanEvent) -> tuple[int, str, Mapping[str, Any]]:
        convention = EVENTS[event.name]
        said = {}
        for key, told in event.attributes.items():
            if told != "":
                said[convention.attributes[key]] = told / 1e6 if key.endswith("_ns") else told
        return self.origin + event.at, convention.name, said

    # -- errors --

    def error(self, span: Span, attributes: dict[str, Any]) -> str | None:
        """Why the span is an error, None if it is none; says of which type it is.

        A run over HTTP is one from 500 on: what is the caller's doing is no error of the server. A step that answered
        Fail has worked, and so has an effect that was cut. An exchange is one from 400 on, as the conventions want it.
        """
        why = self.type_of_error(span)
        if why is None:
            return None
        attributes["error.type"] = why
        return str(span.attributes.get("reason", ""))

    def type_of_error(self, span: Span) -> str | None:
        status = span.attributes.get("http_status")
        if span.status == "unresolved":
            return "unresolved"
        if span.kind == "run" and status is not None:
            return str(status) if status >= 500 else None
        if span.kind == "run":
            failed = span.status == "failed"
            return str(span.attributes.get("ending", "failed")) if failed else None
        if span.kind == "effect" and status is not None and status >= 400:
            return str(status)
        if span.status != "failed" or "fail" in span.attributes:
            return None
        raised = [event.attributes["type"] for event in span.events if event.name == "exception"]
        return str(raised[-1] if raised else span.attributes.get("error", "failed"))


_EFFECT: Final = {
    "what": "zerver.effect.what",
    "access": "zerver.effect.access",
    "outcome": "zerver.outcome",
    "resolves": "zerver.resolves",
    "http_status": "http.response.status_code",
}


def selected(wanted: Sequence[Span], tree: Sequence[Span], most: int) -> list[Span]:
    """So many spans at most, in order, each with those around it: those with trouble first, then the earliest."""
    if len(wanted) <= most:
        return list(wanted)
    chosen: set[int] = set()

    def choose(span: Span) -> None:
        path = []
        at: Span | None = span
        while at is not None and at.id not in chosen:
            path.append(at.id)
            at = None if at.parent is None else tree[at.parent]
        if len(chosen) + len(path) <= most:
            chosen.update(path)

    for span in wanted:
        if span.status != "ok":
            choose(span)
    for span in wanted:
        choose(span)
    return [span for span in wanted if span.id in chosen]


def inner_of(call: Call) -> Effect[Any]:
    """What a hedge is about; any other effect itself."""
    effect = call.effect
    return effect.members[0] if isinstance(effect, Join) and is_hedge(call) else effect


def _http_of(label: str) -> tuple[str, str]:
    """Method and route; ("", "") for a run that did not come over HTTP. A method that nobody knows is called HTTP."""
    found = _LABEL.fullmatch(label)
    if found is None:
        return "", ""
    method, route = found.groups()
    return (method if method in _METHODS else "HTTP"), route


def _times(span: Span) -> dict[str, float]:
    sums: dict[str, int] = {}
    for account, began, ended in span.segments:
        sums[account] = sums.get(account, 0) + ended - began
    return {f"zerver.time.{account}_ms": ns / 1e6 for account, ns in sums.items()}


# ---- effects --------------------------------------------------------------------------------


def described(effect: Effect[Any], veil: Veil, systems: Mapping[str, str]) -> dict[str, Any]:
    """What the conventions of its room have to say of an effect."""
    room, _, verb = effect.kind.name.partition(".")
    system = systems.get(room) or SYSTEMS.get(room, "")
    try:
        first = effect.args[0] if effect.args else None
        if isinstance(first, Exchange):
            return _exchange(first, veil)
        if room == "sql":
            return {"db.system.name": system, **_statements(effect, veil)}
        if room == "kv":
            return {"db.system.name": system, "db.operation.name": verb}
        if room in QUEUES:
            return {
                "messaging.system": system or "zerver",
                "messaging.operation.name": verb,
                "messaging.operation.type": "send",
                "messaging.destination.name": veil.text(describe.target(effect)),
            }
    except Exception:  # a user's kind may borrow the room's name, with arguments of its own
        pass
    return {}


def _exchange(exchange: Exchange, veil: Veil) -> dict[str, Any]:
    parts = urlsplit(exchange.url)
    known = exchange.method in _METHODS
    said: dict[str, Any] = {
        "http.request.method": exchange.method if known else "_OTHER",
        "url.full": veil.text(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path or '/'}"),
        "server.address": veil.text(parts.hostname or ""),
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
    }
    if not known:
        said["http.request.method_original"] = exchange.method
    return said


def _statements(effect: Effect[Any], veil: Veil) -> dict[str, Any]:
    """Verb and tables. The text stays out: it may be long, may have values in it, and stands in the code."""
    members = [member for member in effect.args if isinstance(member, Effect)] or [effect]
    read = [_statement(member, veil) for member in members]
    verbs = {verb for verb, _ in read}
    verb = verbs.pop() if len(verbs) == 1 else ""
    said: dict[str, Any] = {"db.operation.name": verb}
    if len(members) > 1:
        said = {"db.operation.name": f"BATCH {verb}".rstrip(), "db.operation.batch.size": len(members)}
    tables = list(dict.fromkeys(table for _, found in read for table in found))
    if len(tables) == 1:
        said["db.collection.name"] = tables[0]
    said["db.query.summary"] = describe.cut(" ".join([said["db.operation.name"], *tables]), 255)
    return said


def _statement(effect: Effect[Any], veil: Veil) -> tuple[str, list[str]]:
    bare = veil.text(_NOISE.sub(" ", next(arg for arg in effect.args if isinstance(arg, str))).strip())
    verb = bare.split(None, 1)[0].upper() if bare else ""
    return verb, [table.strip('"`[]') for table in dict.fromkeys(_TABLE.findall(bare))]
