"""Facts: what a run's records say about its steps, calls and writes, gathered in one pass.

Law: facts come from records alone, and any list of records has some: a run under way, a run cut short, half a run. What
the records do not say is None, never a guess. Text and exports read the same facts, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Fail
from zerver.core.effects import Outcome, Success
from zerver.core.joins import Join
from zerver.core.plan import Plan, StepNode
from zerver.core.replan import steps_in
from zerver.errors import EffectError, EffectTimeout


@attrs.define(eq=False)
class CallFacts:
    """One effect. Times are the records' nanoseconds. retries, hedges: further attempts.

    outcome: None while it is under way, and when it was cut. given_up: a failed attempt was the last one.
    """

    call: Call
    asked: int | None = None
    ended: int | None = None
    outcome: Outcome[Any] | None = None
    retries: int = 0
    hedges: int = 0
    timeouts: int = 0
    failures: int = 0
    given_up: bool = False


@attrs.define(eq=False)
class StepFacts:
    """One step. calls: effects it asked for, one after the other. inner: members of joins, questions about writes."""

    name: str
    node: StepNode | None = None
    began: int | None = None
    ended: int | None = None
    ok: bool = False
    cut: bool = False
    parked: int = 0
    parked_at: int | None = None
    signal: str = ""
    calls: list[CallFacts] = attrs.field(factory=list)
    inner: list[CallFacts] = attrs.field(factory=list)

    def io(self, now: int) -> int:
        """Nanoseconds it waited for effects. now: what a call that has not ended is measured to."""
        asked = [(call.asked, now if call.ended is None else call.ended) for call in self.calls]
        return sum(ended - began for began, ended in asked if began is not None)

    def count(self, what: str) -> int:
        """The sum of a number over all its calls: "retries", "hedges", "timeouts" or "failures"."""
        return sum(getattr(call, what) for call in (*self.calls, *self.inner))


@attrs.define(eq=False)
class WriteFacts:
    """One write of the run.

    happened: None while nobody knows. error: why nobody does. unresolved: nobody can say that it is right. trouble: why
    its rollback did not work out. touched: False for a statement that was performed and found no row to change.
    """

    call: Call
    happened: bool | None
    error: EffectError | None = None
    undone: bool = False
    unresolved: bool = False
    trouble: str = ""
    touched: bool = True

    def settle_by_hand(self, error: BaseException | None) -> None:
        """It is unresolved. error: what the saga says: of the write in doubt, of its undo, or why that was not asked
        for; the last is no EffectError, and nothing else has told it.
        """
        self.unresolved = True
        if isinstance(error, EffectError):
            if self.happened is None and self.error is None and not self.trouble:
                self.error = error
        elif error is not None and not self.trouble:
            self.trouble = f"its undo could not be asked for: {error}"


class Facts:
    """Everything one pass over the records finds."""

    def __init__(self, timeline: t.Timeline) -> None:
        self.timeline = timeline
        records = timeline.records
        self.began = records[0][1] if records else 0
        self.ended = records[-1][1] if records else 0
        self.ending: t.Ending | None = None
        self.over = False
        self.plan: Plan | None = None
        self.inputs: tuple[Any, ...] = ()
        self._planned: dict[str, StepNode] = {}
        self.steps: dict[str, StepFacts] = {}
        self.calls: dict[Call, CallFacts] = {}
        self.writes: dict[Call, WriteFacts] = {}
        self.waits: dict[int, int] = {}  # index of a record -> nanoseconds since the one before it
        before = self.began
        for index, record in enumerate(records):
            self.waits[index] = record[1] - before
            before = record[1]
            gather = _GATHER.get(record[0])
            if gather is not None:
                gather(self, record)

    # -- what is asked of it --

    def step(self, name: str) -> StepFacts:
        known = self.steps.get(name)
        if known is None:
            known = self.steps[name] = StepFacts(name, self._planned.get(name))
        return known

    def call(self, call: Call) -> CallFacts:
        known = self.calls.get(call)
        if known is None:
            known = self.calls[call] = CallFacts(call)
            if not in_rollback(call):
                step = self.step(call.step)
                (step.calls if call.parent is None else step.inner).append(known)
        return known

    def took(self, step: StepFacts) -> int:
        """Nanoseconds from the step's beginning to its end, or to the last record."""
        ended = self.ended if step.ended is None else step.ended
        return max(0, ended - step.began) if step.began is not None else 0

    @property
    def nodes(self) -> Iterator[StepNode]:
        """Every step node that the records show: of the plan, and those that were inserted and ended."""
        yield from self._planned.values()
        yield from (step.node for step in self.steps.values() if step.node is not None)

    @property
    def unresolved(self) -> list[WriteFacts]:
        """Writes of which nobody can say that they are right, as the saga said when the run was over."""
        return [write for write in self.writes.values() if write.unresolved]

    @property
    def ended_by(self) -> str:
        """The step whose answer ended the run; "" when it was no step's."""
        before = ""
        for kind, _, subject, _ in self.timeline.records:
            if kind in (t.ENDING, t.ENDED):
                return before
            before = subject.name if kind in (t.STEP, t.DEFECT, t.FAULT) else ""
        return ""

    # -- gathering: one function per kind of record --

    def _input(self, record: t.Record) -> None:
        plan: Plan = record[2]
        self.plan, self.inputs = plan, record[3]
        self._planned = {node.name: node for node in steps_in(plan.line)}
        for name, step in self.steps.items():
            step.node = step.node or self._planned.get(name)

    def _step(self, record: t.Record) -> None:
        kind, at, node, (began, answer) = record
        if not isinstance(node, StepNode):
            return  # a branch whose predicate raised
        step = self.step(node.name)
        step.node, step.began = node, began
        if step.ended is None:
            step.ended = at
            step.ok = kind == t.STEP and not isinstance(answer, Fail)

    def _parked(self, record: t.Record) -> None:
        step = self.step(record[2].name)
        step.node, step.signal = record[2], record[3].signal
        if step.began is None:
            step.began = record[1]
        step.parked_at = record[1]

    def _woken(self, record: t.Record) -> None:
        step = self.step(record[2].name)
        if step.parked_at is not None:
            step.parked += record[1] - step.parked_at
            step.parked_at = None

    def _asked(self, record: t.Record) -> None:
        _, at, call, _ = record
        self.call(call).asked = at
        if call.parent is None:
            step = self.step(call.step)
            if step.began is None:
                step.began = at

    def _attempt(self, record: t.Record) -> None:
        self.call(record[2]).retries += 1

    def _hedged(self, record: t.Record) -> None:
        self.call(record[2]).hedges += 1

    def _failed(self, record: t.Record) -> None:
        _, _, call, (_, error, _, wait, _) = record
        facts = self.call(call)
        facts.failures += 1
        facts.timeouts += is_timeout(error)
        facts.given_up = wait is None

    def _settled(self, record: t.Record) -> None:
        kind, at, call, detail = record
        facts = self.call(call)
        facts.ended = at
        if kind != t.CUT:
            facts.outcome = detail
        elif call.parent is None and not in_rollback(call):
            step = self.step(call.step)
            step.ended, step.cut = at, True

    def _committed(self, record: t.Record) -> None:
        _, _, call, value = record
        self.writes[call] = WriteFacts(call, True, touched=call.effect.kind.name != "sql.execute" or value != 0)

    def _doubted(self, record: t.Record) -> None:
        self.writes[record[2]] = WriteFacts(record[2], None, record[3])

    def _undone(self, record: t.Record) -> None:
        _, _, entry, (verb, outcome) = record
        write = self.writes.setdefault(entry.call, WriteFacts(entry.call, None if verb == "resolve" else True))
        if isinstance(outcome, Success):
            if verb == "undo":
                write.undone = True
            else:
                write.happened = outcome.value is not None
        elif verb == "undo":
            error = getattr(outcome, "error", None)
            write.trouble = f"its undo failed: {getattr(error, 'reason', None) or outcome}"

    def _gave_up(self, record: t.Record) -> None:
        call = record[2].call
        self.writes.setdefault(call, WriteFacts(call, None)).trouble = "the time for undoing ran out"

    def _unresolved(self, record: t.Record) -> None:
        _, _, entry, error = record
        write = self.writes.setdefault(entry.call, WriteFacts(entry.call, True if entry.value is not None else None))
        write.settle_by_hand(error)

    def _retried(self, record: t.Record) -> None:
        """What was unresolved is looked at again; what becomes of it, further records say."""
        for write in self.writes.values():
            if write.unresolved:
                write.unresolved, write.trouble = False, ""
        self.over = False

    def _ending(self, record: t.Record) -> None:
        kind, _, _, detail = record
        self.ending = detail if isinstance(detail, t.Ending) else t.Ending("refused", cause=detail)
        self.over = self.over or kind != t.ENDING


_GATHER = {
    t.INPUT: Facts._input,
    t.STEP: Facts._step,
    t.DEFECT: Facts._step,
    t.FAULT: Facts._step,
    t.PARKED: Facts._parked,
    t.SIGNALLED: Facts._woken,
    t.EXPIRED: Facts._woken,
    t.ASKED: Facts._asked,
    t.ATTEMPT: Facts._attempt,
    t.HEDGED: Facts._hedged,
    t.FAILED: Facts._failed,
    t.SETTLED: Facts._settled,
    t.LATE: Facts._settled,
    t.CUT: Facts._settled,
    t.COMMITTED: Facts._committed,
    t.DOUBTED: Facts._doubted,
    t.UNDONE: Facts._undone,
    t.GAVE_UP: Facts._gave_up,
    t.UNRESOLVED: Facts._unresolved,
    t.ENDING: Facts._ending,
    t.ENDED: Facts._ending,
    t.REFUSED: Facts._ending,
    t.RETRIED: Facts._retried,
}

# ---- small questions about calls ------------------------------------------------------------


def in_rollback(call: Call) -> bool:
    """Whether the call, or the join it is in, is a task of the rollback."""
    root = call
    while root.parent is not None:
        root = root.parent
    return root.ordinal.rpartition(".")[2] in ("undo", "resolve")


def is_hedge(call: Call | None) -> bool:
    return call is not None and isinstance(call.effect, Join) and call.effect.rule.name == "hedge"


def depth(call: Call) -> int:
    """How many joins are around the call; a hedge is no company, it is the same effect tried at once."""
    deep, at = 0, call.parent
    while at is not None:
        deep += isinstance(at.effect, Join) and not is_hedge(at)
        at = at.parent
    return deep


def is_timeout(error: EffectError) -> bool:
    """Whether it was the clock that ended the attempt; a write's timeout comes as an unknown outcome."""
    return isinstance(error, EffectTimeout) or (error.cause is None and error.reason.startswith("timed out after "))
