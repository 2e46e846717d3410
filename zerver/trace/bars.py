"""Bars: one span, as a value; and the tree of them, while it is being gathered.

Law: a bar only grows. It begins within its parent, never ends before it began or before its children have, and its
segments follow one another without a gap. Bars are found by what they are of: a step by its name, an effect by its
call, an attempt by its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.joins import Join
from zerver.core.timeline import Account
from zerver.core.values import value
from zerver.trace import describe
from zerver.trace.facts import Facts, in_rollback, is_hedge
from zerver.trace.stretches import Segment, put, stretches
from zerver.trace.veil import Veil

Kind: TypeAlias = Literal["run", "admission", "step", "turn", "effect", "join", "attempt", "hedge", "park", "undo"]
SpanStatus: TypeAlias = Literal["ok", "failed", "cut", "late", "lost", "unresolved", "running"]

#: To which account the time of a span belongs; a step's changes, and the root's is that of its records.
_OWN: dict[Kind, Account] = {"run": "cpu", "admission": "admission", "step": "cpu", "turn": "turn", "park": "parked"}


@value(eq=False)
class SpanEvent:
    """Something that happened at one moment. at: nanoseconds since the run began."""

    at: int
    name: str
    attributes: Mapping[str, Any]


@value(eq=False)
class Span:
    """One stretch of a run.

    id: its place in the tuple that `spans` gives. parent: that of the span around it, None for the root. began, ended:
    nanoseconds since the run began; None while it is under way. segments: to which account each moment belongs.
    attributes: what the records say of it, masked; texts, numbers and truth values. events: in order of time. records:
    the indexes of the records that it tells. path: names it among those of its kind, in every process; an effect's is
    the end of its key. subject: the call, for whoever has more to say of it.
    """

    id: int
    parent: int | None
    kind: Kind
    name: str
    began: int
    ended: int | None
    status: SpanStatus
    segments: tuple[Segment, ...]
    attributes: Mapping[str, Any]
    events: tuple[SpanEvent, ...] = ()
    records: tuple[int, ...] = ()
    path: str = ""
    subject: Call | None = attrs.field(default=None, repr=False)


class Bar:
    """A span that is being gathered. touched: when the last of its records was written. told: until when its segments
    reach. account: to which the time after that belongs.
    """

    __slots__ = (
        "account", "attributes", "began", "ended", "events", "id", "kind", "name", "parent", "path", "records",
        "segments", "status", "subject", "told", "touched",
    )  # fmt: skip

    def __init__(self, id: int, parent: Bar | None, kind: Kind, name: str, began: int, path: str = "") -> None:
        self.id = id
        self.parent = parent
        self.kind: Kind = kind
        self.name = name
        self.path = path
        self.began: int = began if parent is None else max(began, parent.began)
        self.touched: int = self.began
        self.told: int = self.began
        self.ended: int | None = None
        self.status: SpanStatus = "running"
        self.account: Account = _OWN.get(kind, "io")
        self.attributes: dict[str, Any] = {}
        self.segments: list[Segment] = []
        self.events: list[SpanEvent] = []
        self.records: list[int] = []
        self.subject: Call | None = None

    def stretch(self, account: Account, until: int) -> None:
        """The time since the last stretch belongs to this account."""
        if until > self.told:
            put(self.segments, account, self.told, until)
            self.told = until

    def event(self, at: int, name: str, **attributes: Any) -> None:
        self.events.append(SpanEvent(at, name, attributes))

    def close(self, at: int, status: SpanStatus) -> None:
        """It has ended; what comes later can only extend it."""
        self.ended = max(at, self.began, self.ended or 0)
        self.status = status

    def cover(self, child: Bar) -> None:
        """Last as long as a child."""
        if child.ended is None:
            self.ended, self.status = None, "running"
        elif self.ended is not None and child.ended > self.ended:
            self.ended = child.ended

    def frozen(self, now: int) -> Span:
        """As a value. now: to where the segments of a span without an end reach."""
        if self.kind != "run":
            self.stretch(self.account, now if self.ended is None else self.ended)
        return Span(
            self.id,
            None if self.parent is None else self.parent.id,
            self.kind,
            self.name,
            self.began,
            self.ended,
            self.status,
            tuple(self.segments),
            self.attributes,
            tuple(self.events),
            tuple(self.records),
            self.path,
            self.subject,
        )


class Tree:
    """The bars of a run, parents before their children: opened as records mention them, and found again."""

    def __init__(self, facts: Facts, veil: Veil) -> None:
        self.facts = facts
        self.veil = veil
        self.last = facts.ended - facts.began
        self.bars: list[Bar] = []
        self.steps: dict[str, Bar] = {}
        self.calls: dict[Call, Bar] = {}
        self.members: dict[Call, list[tuple[Call, Bar]]] = {}
        self.attempts: dict[Bar, dict[int, Bar]] = {}
        self.questions: dict[Call, Bar] = {}  # by the write that they are about
        self.unsettled: list[Bar] = []  # writes of which nobody can say that they are right
        self.rollback: Bar | None = None
        self.task: Bar | None = None
        self.root = self.open("run", facts.timeline.label or facts.timeline.flow, None, 0)

    def open(self, kind: Kind, name: str, parent: Bar | None, began: int, path: str = "") -> Bar:
        bar = Bar(len(self.bars), parent, kind, name, began, path)
        self.bars.append(bar)
        return bar

    def finish(self) -> None:
        """What has no end when the run is over was dropped with what is around it, at the latest when the run ended."""
        facts, timeline = self.facts, self.facts.timeline
        if facts.over:
            self.root.close(self.last, self.verdict())
            ended = next((at - facts.began for kind, at, _, _ in timeline.records if kind == t.ENDING), self.last)
            for bar in self.bars:
                if bar.ended is None:
                    around = bar.parent
                    until = around.ended if around is not None and around is not self.root else ended
                    bar.close(max(until or 0, bar.touched), "cut")
        for bar in self.unsettled:
            bar.status = "unresolved" if bar.ended is not None else bar.status
        for bar in reversed(self.bars):  # children come after their parents
            if bar.parent is not None:
                bar.parent.cover(bar)
        self.root.segments = list(stretches(self.facts.timeline.records))
        tenant = self.veil.text(timeline.tenant)
        self.root.attributes |= {"flow": timeline.flow, "tenant": tenant, "priority": timeline.priority}
        if facts.ending is not None:
            self.root.attributes["ending"] = facts.ending.status

    def verdict(self) -> SpanStatus:
        if self.facts.unresolved:
            return "unresolved"
        status = self.facts.ending.status if self.facts.ending is not None else "done"
        return "ok" if status == "done" else "cut" if status == "cancelled" else "failed"

    def step(self, name: str, now: int) -> Bar:
        bar = self.steps.get(name)
        if bar is None:
            known = self.facts.steps.get(name)
            began = now if known is None or known.began is None else min(now, known.began - self.facts.began)
            bar = self.steps[name] = self.open("step", name, self.root, began, name)
        return bar

    def call(self, call: Call, now: int) -> Bar:
        bar = self.calls.get(call)
        if bar is None:
            part = self.is_part(call)
            bar = self.calls[call] = self.call_around(call, now) if part else self.opened(call, now)
            if part and call.parent is not None:  # what is sent is sent for the hedge's one member
                bar.path = path_of(call)
        return bar

    def is_part(self, call: Call) -> bool:
        """Whether it has no bar of its own: what a hedge is about, and what a task of the rollback performs."""
        return is_hedge(call.parent) or (call.parent is None and in_rollback(call))

    def call_around(self, call: Call, now: int) -> Bar:
        if call.parent is not None:
            return self.call(call.parent, now)
        if in_rollback(call):
            return self.task or self.rolling_back(now)
        return self.step(call.step, now)

    def opened(self, call: Call, now: int) -> Bar:
        around, parent, began = self.call_around(call, now), call.parent, now
        is_question = parent is not None and not isinstance(parent.effect, Join)
        if is_question:  # it was asked when the last attempt had failed, which is the last that its write has told
            began = min(now, around.touched)
        effect = call.effect
        inner = effect.members[0] if isinstance(effect, Join) and is_hedge(call) else effect
        kind: Kind = "join" if isinstance(inner, Join) else "effect"
        bar = self.open(kind, inner.kind.name, around, began, path_of(call))
        bar.subject = call
        bar.attributes["what"] = describe.effect(effect, self.veil, call.step)
        if inner.kind.access == "write":
            bar.attributes["access"] = "write"
        if parent is not None and is_question:
            self.questions[parent] = bar
        elif parent is not None:
            self.members.setdefault(parent, []).append((call, bar))
        return bar

    def attempt(self, bar: Bar, number: int, began: int, kind: Kind = "attempt") -> Bar:
        numbered = self.attempts.setdefault(bar, {})
        attempt = numbered.get(number)
        if attempt is None:
            attempt = numbered[number] = self.open(kind, f"attempt {number}", bar, began, f"{bar.path}#{number}")
            attempt.attributes["number"] = number
        return attempt

    def rolling_back(self, now: int) -> Bar:
        if self.rollback is None:
            self.rollback = self.open("undo", "rollback", self.root, now, "rollback")
        return self.rollback


def path_of(call: Call) -> str:
    """The end of its key."""
    return f"{call.step}:{call.ordinal}"
