"""Spans: a run as a tree of stretches of time, for the page's waterfall and for OpenTelemetry alike.

Law: a pure function of the records. Every record belongs to exactly one span, a parent comes before its children and
covers them, no span ends before it begins, and the root's segments sum up to the run's accounts. Nothing sticks out:
a step whose result came late, when the run had ended, is cut and lasts until that result, so that late results lie
inside too. What the records do not say is left open, and what has not ended has no end.

    kind        of what                                       name
    run         the whole run; the root, id 0                 its label, or its flow
    admission   from its arrival to its ticket, or its no     admission
    turn        a wait for the run's turn on the loop         turn
    step        a step, from its first to its last moment     the step's
    effect      one effect; a hedge is the effect it is       the effect's kind
    join        several effects as one                        the join's kind
    attempt     one of several attempts of an effect          attempt 2
    hedge       one that was started beside another           attempt 2
    park        a wait for a signal                           the signal's
    undo        the rollback, and each of its tasks           rollback, undo payments.charge

An effect ends when the world has answered; the wait for the turn in which its step is told stands beside it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import format_tb
from typing import Any, TypeAlias

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import DECISIONS, Fail
from zerver.core.effects import Cancelled, Failure, Outcome, Success, Unknown
from zerver.core.plan import StepNode
from zerver.core.saga import Entry
from zerver.effects.http import Reply
from zerver.errors import EffectError
from zerver.runtime import Result
from zerver.trace import describe
from zerver.trace.bars import Bar, SpanStatus, Tree, path_of
from zerver.trace.bars import Span as Span
from zerver.trace.bars import SpanEvent as SpanEvent
from zerver.trace.facts import Facts
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.veil import Veil

_DECIDED = tuple(DECISIONS)
_LARGE = 10_000  # records
_STACK = 8192  # characters of a traceback: its end, which is where it was raised


def spans(run: Result | t.Timeline, *, hidden: Hidden = NOTHING_HIDDEN) -> tuple[Span, ...]:
    """The spans of a run, the root first, parents before their children; none for a run without records.

    hidden: names that are masked beside those that the code calls secret.
    """
    facts = Facts(run.timeline if isinstance(run, Result) else run)
    return spans_of(facts, Veil(facts, hidden))


def spans_of(facts: Facts, veil: Veil) -> tuple[Span, ...]:
    """The same, for whoever has gathered the facts already."""
    if not facts.timeline.records:
        return ()
    with _collected_later(len(facts.timeline.records)):
        walk = _Walk(facts, veil)
        return tuple(bar.frozen(walk.last) for bar in walk.bars)


@contextmanager
def _collected_later(records: int) -> Iterator[None]:
    """The garbage collector waits while a large tree is made: nothing in it is garbage, and to look through it again
    and again took half of the time. See `zerver.core.strict_json.collected_later`.
    """
    if records < _LARGE or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Walk(Tree):
    """One pass over the records. Each kind of record has a function, which gives the bar that the record belongs to."""

    def __init__(self, facts: Facts, veil: Veil) -> None:
        super().__init__(facts, veil)
        self.records = facts.timeline.records
        self.index = 0
        self.parks: dict[str, Bar] = {}
        self.told_at: dict[Call, int] = {}  # when an outcome was there, and its run waited for its turn
        self.admission: Bar | None = None
        for index, (kind, at, subject, detail) in enumerate(self.records):
            self.index = index
            since = at - facts.began
            bar = _TELL.get(kind, _Walk.of_the_run)(self, since, subject, detail)
            bar.records.append(index)
            bar.touched = since
        self.finish()

    # -- the run --

    def of_the_run(self, at: int, subject: Any, detail: Any) -> Bar:
        return self.root

    def received(self, at: int, flow: str, detail: None) -> Bar:
        self.admission = self.open("admission", "admission", self.root, at)
        return self.root

    def admitted(self, at: int, flow: str, priority: str) -> Bar:
        if self.admission is None:
            return self.root
        self.admission.close(at, "ok")
        return self.admission

    def refused(self, at: int, flow: str, refusal: Any) -> Bar:
        bar = self.admission or self.root
        bar.event(at, "refused", reason=getattr(refusal, "reason", ""))
        bar.close(at, "failed")
        return bar

    def keyed(self, at: int, flow: str, detail: tuple[str, str]) -> Bar:
        self.root.event(at, "keyed", found=detail[0], before=detail[1])
        return self.root

    def job(self, at: int, flow: str, detail: tuple[str, int, int, int]) -> Bar:
        queue, attempt, attempts, waited = detail
        self.root.event(at, "job", queue=queue, attempt=attempt, attempts=attempts, waited_ns=waited)
        return self.root

    def read(self, at: int, flow: str, detail: None) -> Bar:
        began = self.admission.ended if self.admission is not None else None
        bar = self.open("effect", "request.read", self.root, at if began is None else began, "request")
        bar.close(at, "ok")
        return bar

    def turn(self, at: int, subject: Any, since_ns: int) -> Bar:
        since = min(max(since_ns - self.facts.began, 0), at)
        around = self.root
        if isinstance(subject, Call):
            self.told_at[subject] = since
            around = self.step(subject.step, since)
            around.stretch("io", since)
        else:
            after = self.records[self.index + 1] if self.index + 1 < len(self.records) else None
            if after is not None and after[0] in (t.SIGNALLED, t.EXPIRED):
                around = self.step(after[2].name, since)
                around.stretch("parked", since)
                if after[2].name in self.parks:
                    self.parks[after[2].name].ended = since
        if around is not self.root:
            around.stretch("turn", at)
        bar = self.open("turn", "turn", around, since, str(self.index))
        bar.close(at, "ok")
        return bar

    def overrun(self, at: int, name: str, overrun: Any) -> Bar:
        bar = self.steps.get(name, self.root)
        bar.event(at, "overrun", step=name, took_ns=overrun.took, budget_ns=overrun.budget, place=overrun.place)
        return bar

    def branch(self, at: int, node: Any, answer: bool) -> Bar:
        self.root.event(at, "branch", branch=node.name, answer=answer)
        return self.root

    def pivot(self, at: int, node: Any, detail: None) -> Bar:
        self.root.event(at, "pivot")
        return self.root

    def ending(self, at: int, flow: str, ending: t.Ending) -> Bar:
        """A wait for a signal ends with the run, and no record says so."""
        self.root.event(at, "ending", status=ending.status, reason=self.veil.text(ending.reason))
        for name, park in self.parks.items():
            park.close(at, "cut")
            self.steps[name].stretch("parked", at)
            self.steps[name].close(at, "cut")
        self.parks.clear()
        return self.root

    def answered(self, at: int, flow: str, status: int) -> Bar:
        self.root.event(at, "answered", status=status)
        self.root.attributes["http_status"] = status
        return self.root

    def recovered(self, at: int, flow: str, owner: str) -> Bar:
        self.root.event(at, "recovered", owner=owner)
        return self.root

    def retried(self, at: int, flow: str, owner: str) -> Bar:
        self.root.event(at, "retried", owner=owner)
        return self.root

    def resumed(self, at: int, flow: str, owner: str) -> Bar:
        self.root.event(at, "resumed", owner=owner)
        return self.root

    # -- steps --

    def stepped(self, at: int, node: Any, detail: tuple[int, Any]) -> Bar:
        answer, bar = detail[1], self.root
        if isinstance(node, StepNode):
            bar = self.step(node.name, at)
        status: SpanStatus = "ok"
        if isinstance(answer, Fail):
            status = "failed"
            bar.attributes |= {"fail": answer.kind, "decision": "Fail"}
            bar.attributes["reason"] = describe.fail(answer, self.veil, node.name)
        elif isinstance(answer, BaseException):
            status = "failed"
            bar.attributes["reason"] = describe.message(answer, self.veil, node.name)
            self.exception(bar, at, answer, node.name, **self.stack(answer))
        elif isinstance(answer, _DECIDED):
            bar.attributes["decision"] = type(answer).__name__
        if bar is not self.root and bar.ended is None:
            bar.stretch("cpu", at)
            bar.close(at, status)
        return bar

    def exception(self, bar: Bar, at: int, error: BaseException, step: str, **more: Any) -> None:
        kind = error.kind if isinstance(error, EffectError) else ""
        said = describe.message(error, self.veil, step).removeprefix(f"{kind or type(error).__name__}: ")
        bar.event(at, "exception", type=type(error).__qualname__, message=said, **more)

    def stack(self, error: BaseException) -> dict[str, Any]:
        """Where a defect was raised: lines of code, without what the error says. A failed effect has no such place."""
        if isinstance(error, EffectError) or error.__traceback__ is None:
            return {}
        return {"stack": self.veil.text("".join(format_tb(error.__traceback__)))[-_STACK:]}

    def planned(self, at: int, node: Any, detail: tuple[str, list[str]]) -> Bar:
        bar = self.step(node.name, at)
        bar.event(at, "plan", verb=detail[0], steps=", ".join(detail[1]))
        return bar

    def parked(self, at: int, node: Any, pause: Any) -> Bar:
        step = self.step(node.name, at)
        step.stretch("cpu", at)
        step.account = "parked"
        name = self.veil.text(str(pause.signal))
        bar = self.parks[node.name] = self.open("park", name, step, at, str(self.index))
        return bar

    def signalled(self, at: int, node: Any, detail: Any) -> Bar:
        return self.woken(at, node, "ok")

    def expired(self, at: int, node: Any, detail: Any) -> Bar:
        return self.woken(at, node, "failed")

    def woken(self, at: int, node: Any, status: SpanStatus) -> Bar:
        step = self.step(node.name, at)
        step.stretch("parked", at)
        step.account = "cpu"
        bar = self.parks.pop(node.name, None) or self.open("park", "signal", step, at, str(self.index))
        bar.close(at if bar.ended is None else bar.ended, status)
        return bar

    # -- effects --

    def asked(self, at: int, call: Call, detail: None) -> Bar:
        bar = self.call(call, at)
        if call.parent is None and bar.kind != "undo":
            step = self.step(call.step, at)
            step.stretch("cpu", at)
            step.account = "io"
        return bar

    def again(self, at: int, call: Call, number: int) -> Bar:
        return self.attempt(self.call(call, at), number, at)

    def hedged(self, at: int, call: Call, number: int) -> Bar:
        bar = self.call(call, at)
        self.attempt(bar, 1, bar.began)
        return self.attempt(bar, number, at, "hedge")

    def failed(self, at: int, call: Call, detail: tuple[int, EffectError, bool, float | None, str]) -> Bar:
        number, error, doubt, wait, why = detail
        bar, known = self.call(call, at), self.facts.calls.get(call)
        if known is not None and (known.retries or known.hedges):
            bar.touched = at
            bar = self.attempt(bar, number, bar.began if number == 1 else at)
            bar.close(at, "failed")
        more: dict[str, Any] = {"attempt": number, "in_doubt": doubt}
        if wait is not None:
            more["retry_after_ns"] = int(wait * 1e9)
        if why:
            more["gave_up"] = self.veil.text(why)
        self.exception(bar, at, error, call.step, **more)
        return bar

    def held(self, at: int, call: Call, why: str) -> Bar:
        bar = self.call(call, at)
        bar.event(at, "hedge held", reason=self.veil.text(why))
        return bar

    def committed(self, at: int, call: Call, detail: Any) -> Bar:
        bar = self.call(call, at)
        bar.event(at, "committed")
        return bar

    def doubted(self, at: int, call: Call, error: EffectError | None) -> Bar:
        bar = self.call(call, at)
        bar.event(at, "doubted")
        return bar

    def resolved(self, at: int, call: Call, answer: Outcome[Any]) -> Bar:
        about = self.call(call, at)
        bar = self.questions.pop(call, None)
        if bar is None:
            how = call.effect.compensation
            name = describe.named(how.resolve) if how is not None else ""
            bar = self.open("effect", name or "resolve", about, min(about.touched, at), f"{path_of(call)}.resolve")
        bar.attributes["resolves"] = True
        if isinstance(answer, Success):
            about.event(at, "resolved", happened=answer.value is not None)
        self.close(bar, at, _STATUS[type(answer)])
        return bar

    def settled(self, at: int, call: Call, outcome: Outcome[Any]) -> Bar:
        return self.came(at, call, outcome, _STATUS[type(outcome)])

    def late(self, at: int, call: Call, outcome: Outcome[Any]) -> Bar:
        return self.came(at, call, outcome, "late")

    def cut(self, at: int, call: Call, why: str) -> Bar:
        bar = self.came(at, call, None, "cut")
        bar.attributes["reason"] = self.veil.text(why)
        return bar

    def came(self, at: int, call: Call, outcome: Outcome[Any] | None, status: SpanStatus) -> Bar:
        """An effect has come to its end, and perhaps its step with it."""
        bar = self.call(call, at)
        if outcome is not None:
            bar.attributes["outcome"] = type(outcome).__name__.lower()
            if isinstance(outcome, Failure | Unknown):
                bar.attributes["error"] = type(outcome.error).__qualname__
                bar.attributes["reason"] = describe.reason(outcome.error, self.veil, call.step)
            elif isinstance(outcome, Cancelled):
                bar.attributes["reason"] = self.veil.text(outcome.reason)
            elif isinstance(outcome.value, Reply) and bar.kind == "effect":
                bar.attributes["http_status"] = outcome.value.status
        self.close(bar, self.told_at.pop(call, at), status)
        if call.parent is None and bar.kind != "undo":
            step = self.step(call.step, at)
            step.stretch("io", at)
            step.account = "cpu"
            if status in ("cut", "late") and step.ended is None:
                step.close(at, "cut")
        return bar

    def close(self, bar: Bar, at: int, status: SpanStatus) -> None:
        """The end of an effect, and of those of its attempts that had none. Of several at once that are left when a
        hedge is won, no record says which one it was: `one_of` is how many it may have been.
        """
        left = [attempt for attempt in self.attempts.get(bar, {}).values() if attempt.ended is None]
        for attempt in left:
            attempt.close(at, status)
            if len(left) > 1:
                attempt.attributes["one_of"] = len(left)
        bar.close(at, status)

    def lost(self, at: int, join: Call, winners: tuple[Call, ...]) -> Bar:
        bar = self.call(join, at)
        won = set(map(id, winners))
        bar.event(at, "decided", winners=len(won))
        for call, member in self.members.get(join, ()):
            if id(call) not in won and member.status == "ok":
                member.status = "lost"
        return bar

    # -- the rollback --

    def undo(self, at: int, entry: Entry, verb: str) -> Bar:
        around = self.rolling_back(at)
        name, path = f"{verb} {entry.call.effect.kind.name}", f"{path_of(entry.call)}.{verb}"
        self.task = self.open("undo", name, around, at, path)
        self.task.attributes["step"] = entry.call.step
        return self.task

    def undone(self, at: int, entry: Entry, detail: tuple[str, Outcome[Any]]) -> Bar:
        verb, outcome = detail
        bar = self.task or self.undo(at, entry, verb)
        status = _STATUS[type(outcome)]
        if isinstance(outcome, Failure | Unknown):
            bar.attributes["reason"] = describe.reason(outcome.error, self.veil, entry.call.step)
        self.close(bar, at, status)
        self.rolled_back(at, status)
        return bar

    def gave_up(self, at: int, entry: Entry, detail: None) -> Bar:
        bar = self.task or self.undo(at, entry, "undo")
        bar.attributes["reason"] = "the time for undoing ran out"
        self.close(bar, at, "unresolved")
        self.rolled_back(at, "unresolved")
        return bar

    def rolled_back(self, at: int, status: SpanStatus) -> None:
        self.task = None
        bar = self.rolling_back(at)
        bar.close(at, status if status != "ok" or bar.status == "running" else bar.status)

    def unresolved(self, at: int, entry: Entry, error: BaseException | None) -> Bar:
        self.root.event(at, "unresolved", effect=entry.call.effect.kind.name, step=entry.call.step)
        self.unsettled.append(self.call(entry.call, at))
        return self.root


_STATUS: dict[type[Any], SpanStatus] = {Success: "ok", Failure: "failed", Unknown: "failed", Cancelled: "cut"}

_Tell: TypeAlias = Callable[[_Walk, int, Any, Any], Bar]

_TELL: dict[str, _Tell] = {
    t.RECEIVED: _Walk.received,
    t.ADMITTED: _Walk.admitted,
    t.REFUSED: _Walk.refused,
    t.KEYED: _Walk.keyed,
    t.JOB: _Walk.job,
    t.READ: _Walk.read,
    t.TURN: _Walk.turn,
    t.OVERRUN: _Walk.overrun,
    t.STEP: _Walk.stepped,
    t.DEFECT: _Walk.stepped,
    t.FAULT: _Walk.stepped,
    t.BRANCH: _Walk.branch,
    t.PLAN: _Walk.planned,
    t.PIVOT: _Walk.pivot,
    t.ASKED: _Walk.asked,
    t.ATTEMPT: _Walk.again,
    t.FAILED: _Walk.failed,
    t.HEDGED: _Walk.hedged,
    t.HELD: _Walk.held,
    t.COMMITTED: _Walk.committed,
    t.DOUBTED: _Walk.doubted,
    t.RESOLVED: _Walk.resolved,
    t.SETTLED: _Walk.settled,
    t.LATE: _Walk.late,
    t.LOST: _Walk.lost,
    t.CUT: _Walk.cut,
    t.ENDING: _Walk.ending,
    t.UNDO: _Walk.undo,
    t.UNDONE: _Walk.undone,
    t.GAVE_UP: _Walk.gave_up,
    t.UNRESOLVED: _Walk.unresolved,
    t.PARKED: _Walk.parked,
    t.SIGNALLED: _Walk.signalled,
    t.EXPIRED: _Walk.expired,
    t.ANSWERED: _Walk.answered,
    t.RECOVERED: _Walk.recovered,
    t.RESUMED: _Walk.resumed,
    t.RETRIED: _Walk.retried,
}
