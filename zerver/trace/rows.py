"""Rows: from one record to the line that tells it, or to none.

Law: one function per kind of record, in one table; a row says what its record says, and what the records before it make
of it. A record that only repeats what another row tells has no row: text is for reading, records are for machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Fail
from zerver.core.effects import Cancelled, Outcome, Success
from zerver.core.joins import Join
from zerver.core.overruns import Overrun
from zerver.core.plan import BranchNode
from zerver.core.saga import Entry
from zerver.core.tickets import Refusal
from zerver.effects.http import Reply
from zerver.errors import EffectError
from zerver.trace import describe
from zerver.trace.describe import briefly, milliseconds
from zerver.trace.facts import CallFacts, Facts, StepFacts, depth, in_rollback, is_hedge, is_timeout
from zerver.trace.veil import Veil

#: Waits shorter than this (ns) do not show in a tenth of a millisecond, and have no row.
_SHOWS = 50_000
_QUEUED = 1_000_000

#: A row tells what so many records after its own say, at most: an undo its end, a failed attempt the fault of its step.
_TELLS_AHEAD = 3

#: From so many attempts on that failed in the same way, only the first and the last have a row.
_ALIKE = 5


def _afterwards(answer: Any) -> str:
    """What becomes of an answer when the run is over and no record tells it: its class says so itself."""
    tell = getattr(type(getattr(answer, "value", None)), "__zerver_after_run__", None)
    said = tell(answer.value) if tell is not None else ""
    return f"  {said}" if said else ""


#: What came of an idempotency key. One that was claimed is every first request's, and has no row.
_KEYED = {
    "took over": "⚠ takes its idempotency key over from {}, which was cut off: what that one did may be done twice",
    "repeats": "answered as {} was: the same request, with the same idempotency key",
    "in use": "✗ its idempotency key is in use by {}",
    "other request": "✗ its idempotency key is that of another request, {}",
}


@attrs.frozen
class Row:
    """at: nanoseconds since the run was received. subject: a step, a branch, or the flow. index: of its record."""

    at: int
    subject: str
    text: str
    index: int


def rows(facts: Facts, veil: Veil, begin: int = 0, end: int | None = None) -> Iterator[Row]:
    """The rows of a run, in order. begin, end: of the records from begin up to end only, by index."""
    return _Rows(facts, veil).some(begin, len(facts.timeline.records) if end is None else end)


class _Rows:
    def __init__(self, facts: Facts, veil: Veil) -> None:
        self.facts = facts
        self.veil = veil
        self.records = facts.timeline.records
        self.index = 0
        self.told: set[int] = set()  # records that another row tells
        self.swallowed: dict[int, str] = {}  # id of an error -> what the row of its fault is to say
        self.alike: dict[int, int] = {}  # index of a failed attempt -> the first one that it speaks for
        self.given_up = {id(known.call.parent) for known in facts.calls.values() if known.given_up}
        self.gather_alike()
        busy = [milliseconds(facts.took(step)) for step in facts.steps.values() if step.calls]
        self.width = max(map(len, busy), default=0)

    def some(self, begin: int, end: int) -> Iterator[Row]:
        before = max(0, begin - _TELLS_AHEAD)  # a row of these may tell the first records too
        for index, (kind, at, subject, detail) in enumerate(self.records[before:end], before):
            self.index = index
            tell = _TELL.get(kind)
            if tell is None or self.index in self.told:
                continue
            text = tell(self, subject, detail)
            if text and index >= begin:
                yield Row(at - self.facts.began, self.subject(subject), text, index)

    def subject(self, subject: Any) -> str:
        if isinstance(subject, Call):
            return subject.step
        if isinstance(subject, Entry):
            return subject.call.step
        return subject if isinstance(subject, str) else str(subject.name)

    def gather_alike(self) -> None:
        """A compensation may be tried many times: attempts that fail in the same way have two rows, first and last."""
        groups: dict[tuple[Call, str, bool], list[tuple[int, int]]] = {}
        for index, (kind, _, call, detail) in enumerate(self.records):
            if kind == t.FAILED:
                groups.setdefault((call, detail[1].reason, detail[2]), []).append((index, detail[0]))
        for group in groups.values():
            if len(group) >= _ALIKE and group[-1][1] - group[0][1] == len(group) - 1:
                self.told.update(index for index, _ in group[1:-1])
                self.alike[group[-1][0]] = group[1][1]

    # -- the run --

    def admitted(self, subject: str, detail: Any) -> str:
        wait = self.facts.waits[self.index]
        # A seat that is free costs some microseconds of CPU; a millisecond was a queue.
        return f"admitted after {milliseconds(wait)} in the queue" if wait >= _QUEUED else ""

    def refused(self, subject: str, refusal: Refusal) -> str:
        return f"✗ refused: {refusal.reason}"

    def keyed(self, subject: str, detail: tuple[t.Keyed, str]) -> str:
        found, before = detail
        return _KEYED[found].format(before) if found in _KEYED else ""

    def recovered(self, subject: str, owner: str) -> str:
        return f"⚠ its process had died; carried on by {owner}"

    def retried(self, subject: str, owner: str) -> str:
        return f"⚠ what is unresolved is tried again by {owner}"

    def resumed(self, subject: str, owner: str) -> str:
        return f"▶ taken up by {owner}"

    def job(self, subject: str, detail: tuple[str, int, int, int]) -> str:
        queue, attempt, attempts, waited = detail
        after = f"; it waited {milliseconds(waited)}" if waited >= _SHOWS else ""
        return f"attempt {attempt} of {attempts} of a job in queue {queue}{after}"

    def read(self, subject: str, detail: None) -> str:
        wait = self.facts.waits[self.index]
        return f"request read in {milliseconds(wait)}" if wait >= _SHOWS else ""

    def turn(self, node: Any, since: int) -> str:
        wait = self.records[self.index][1] - since
        return f"its turn came after {milliseconds(wait)}" if wait >= _SHOWS else ""

    def overrun(self, subject: str, overrun: Overrun) -> str:
        where = f", {'at' if overrun.seen else 'defined at'} {overrun.place}" if overrun.place else ""
        return f"OVERRUN step {overrun.step} took {briefly(overrun.took)} of {overrun.budget / 1e6:g}ms{where}"

    def ending(self, subject: str, ending: t.Ending) -> str:
        if ending.status == "deadline":
            return "✗ the deadline has passed"
        return f"✗ cancelled: {self.veil.text(ending.reason)}" if ending.status == "cancelled" else ""

    # -- steps --

    def step(self, node: Any, detail: tuple[int, Any]) -> str:
        answer = detail[1]
        if isinstance(answer, Fail):
            return f"✗ {self.times(node.name)}  {describe.fail(answer, self.veil, node.name)}"
        return f"✓ {self.times(node.name)}{_afterwards(answer)}"

    def defect(self, node: Any, detail: tuple[int, Exception]) -> str:
        name = self.subject(node)
        at = describe.place(detail[1])
        text = f"✗ {self.times(name)}  {describe.message(detail[1], self.veil, name)}"
        return f"{text}  at {at}" if at else text

    def fault(self, node: Any, detail: tuple[int, EffectError]) -> str:
        return f"✗ {self.times(node.name)}  {detail[1].kind} {self.swallowed.get(id(detail[1]), 'failed')}"

    def times(self, name: str) -> str:
        """How long the step took, how much of it was io, and what that needed."""
        facts = self.facts.steps.get(name)
        if facts is None:
            return milliseconds(self.facts.waits[self.index])
        took = milliseconds(self.facts.took(facts) - facts.parked)
        parked = f"  parked {milliseconds(facts.parked)}" if facts.parked else ""
        if not facts.calls:
            return took + parked
        said = [f"{took:<{self.width}}", f"io {milliseconds(facts.io(self.facts.ended))}"]
        if len(facts.calls) == 1:
            said += self.came_to(facts.calls[0])
        retries, hedges = facts.count("retries"), facts.count("hedges")
        if len(facts.calls) == 1 and (retries or hedges) and not _many(facts):
            said.append(f"attempts {1 + retries + hedges}")
        elif retries:
            said.append(f"retries {retries}")
        return "  ".join(said) + parked

    def came_to(self, call: CallFacts) -> list[str]:
        """What a success says of itself without its value: an exchange has a status."""
        if isinstance(call.call.effect, Join) and not is_hedge(call.call):
            return []
        reply = call.outcome.value if isinstance(call.outcome, Success) else None
        return [f"http {reply.status}"] if isinstance(reply, Reply) else []

    def branch(self, node: BranchNode, answer: bool) -> str:
        line = node.then if answer else node.otherwise
        return f"{'yes' if answer else 'no'} → {', '.join(inner.name for inner in line) or 'nothing to do'}"

    def plan(self, node: Any, detail: tuple[str, list[str]]) -> str:
        verb, names = detail
        return f"plan: {'insert' if verb == 'insert' else 'the rest is now'} {', '.join(names) or 'nothing'}"

    def pivot(self, node: Any, detail: None) -> str:
        return "point of no return: nothing before it is undone any more"

    def parked(self, node: Any, pause: Any) -> str:
        expires = milliseconds(int(pause.expires * 1e9))
        return f"⏸ waits for {self.veil.text(repr(pause.signal))}, for {expires} at most"

    def signalled(self, node: Any, value: object) -> str:
        return f"▶ {self.signal(node)} came after {milliseconds(self.waited(node))}"

    def expired(self, node: Any, detail: None) -> str:
        return f"✗ {self.signal(node)} did not come in {milliseconds(self.waited(node))}"

    def waited(self, node: Any) -> int:
        """For how long (ns) the step was parked, whoever carried it on."""
        now = self.records[self.index][1]
        before = reversed(self.records[: self.index])
        return next((now - at for kind, at, subject, _ in before if kind == t.PARKED and subject is node), 0)

    def signal(self, node: Any) -> str:
        for kind, _, subject, detail in reversed(self.records[: self.index]):
            if kind == t.PARKED and subject is node:
                return self.veil.text(repr(detail.signal))
        return "the signal"

    # -- effects --

    def asked(self, call: Call, detail: None) -> str:
        if is_hedge(call.parent):
            return ""  # the hedge's own row has named it
        text = f"{_indent(call)}→ {self.describe(call)}"
        inner = call.effect.members[0] if isinstance(call.effect, Join) and is_hedge(call) else call.effect
        if inner.kind.access == "write" and (inner.kind.takes_key or _asks_by_key(inner.compensation)):
            text += f"  key={describe.key(call, self.facts.timeline.run_id)}"
        step = self.facts.step(call.step)
        if call.parent is None and len(step.calls) > 1:  # the step's own row tells of one effect; these are several
            known = self.facts.call(call)
            if known.ended is not None and known.asked is not None and isinstance(known.outcome, Success):
                text += "  " + "  ".join([f"in {milliseconds(known.ended - known.asked)}", *self.came_to(known)])
        return text

    def describe(self, call: Call) -> str:
        return describe.effect(call.effect, self.veil, call.step)

    def failed(self, call: Call, detail: tuple[int, EffectError, bool, float | None, str]) -> str:
        number, error, doubt, wait, why = detail
        reason = describe.reason(error, self.veil, call.step)
        what = reason if is_timeout(error) else f"failed: {reason}"
        several = number > 1 or wait is not None
        text = f"{self.which(call)}attempt {number} {what}" if several else f"{self.which(call)}{what}"
        if self.index in self.alike:
            text = f"{self.which(call)}attempts {self.alike[self.index]} to {number} failed in the same way"
        if doubt:
            text += ", outcome unknown"
        if why and not several:
            text += f"; not tried again: {why}"
        if not several and self.is_fault_of_step(call, error):
            self.swallowed[id(error)] = text
            return ""
        if wait is not None:
            again = f"retrying in {milliseconds(int(wait * 1e9))}" if wait >= _SHOWS / 1e9 else "retrying"
            text += f"; {again}" + (" with the same key" if call.effect.kind.takes_key else "")
        elif several:
            text += f"; gave up: {why}" if why else "; gave up"
        mark = "✗" if wait is None and not doubt else "⚠"
        return f"{_indent(call)}{mark} {text}"

    def is_fault_of_step(self, call: Call, error: EffectError) -> bool:
        """Whether the step fails of it at once, so that its own row tells it: settled, perhaps doubted, fault."""
        following = self.records[self.index + 1 : self.index + 4]
        return call.parent is None and any(kind == t.FAULT and detail[1] is error for kind, _, _, detail in following)

    def which(self, call: Call) -> str:
        """The effect's name, where a step's row alone does not say which one is meant."""
        if in_rollback(call) or (call.parent is not None and not isinstance(call.parent.effect, Join)):
            return f"{call.effect.kind.name} "  # a task of the rollback, or a question about a write in doubt
        if call.parent is None or (is_hedge(call.parent) and not depth(call)):
            return ""
        return f"{self.describe(call)} "

    def hedged(self, call: Call, number: int) -> str:
        asked = self.facts.call(call).asked
        after = "" if asked is None else f" after {milliseconds(self.records[self.index][1] - asked)} without an answer"
        return f"{_indent(call)}+ attempt {number} started{after}"

    def held(self, call: Call, why: str) -> str:
        asked = self.facts.call(call).asked
        after = "" if asked is None else f" after {milliseconds(self.records[self.index][1] - asked)}"
        return f"{_indent(call)}· not hedged{after}: {why}"

    def doubted(self, call: Call, error: EffectError | None) -> str:
        known = self.facts.call(call)
        if known.given_up or error is None or in_rollback(call):
            return ""  # its last attempt has said so
        return f"{_indent(call)}⚠ {self.which(call)}{describe.reason(error, self.veil, call.step)}, outcome unknown"

    def resolved(self, call: Call, answer: Outcome[Any]) -> str:
        if isinstance(answer, Success):
            made = describe.named(call.effect.compensation.resolve) if call.effect.compensation is not None else ""
            return f"{_indent(call)}✓ resolved{f' by {made}' if made else ''}: {_happened(answer)}"
        return f"{_indent(call)}✗ not resolved: nobody could say whether it happened"  # the row above says why

    def settled(self, call: Call, outcome: Outcome[Any]) -> str:
        if is_hedge(call.parent):
            return ""  # the hedge's own record follows
        known = self.facts.call(call)
        if isinstance(outcome, Success):
            if call.parent is None:
                return ""  # the step's row tells it
            took = "" if known.asked is None else f"  {milliseconds(self.records[self.index][1] - known.asked)}"
            return "  ".join([f"{_indent(call)}✓ {self.describe(_inside(call))}{took}", *self.came_to(known)])
        if known.given_up or (is_hedge(call) and id(call) in self.given_up):
            return ""  # its last attempt has said why
        return f"{_indent(call)}✗ {self.describe(call)}: {self.trouble(outcome, call.step)}"

    def trouble(self, outcome: Outcome[Any], step: str) -> str:
        if isinstance(outcome, Success):
            return "it succeeded"
        if isinstance(outcome, Cancelled):
            return f"cancelled, {self.veil.text(outcome.reason)}"
        return describe.reason(outcome.error, self.veil, step)

    def late(self, call: Call, outcome: Outcome[Any]) -> str:
        what = "succeeded" if isinstance(outcome, Success) else f"failed ({self.trouble(outcome, call.step)})"
        return f"{_indent(call)}late: {self.describe(call)} {what}; nobody wanted it any more"

    def lost(self, join: Call, winners: tuple[Call, ...]) -> str:
        if not winners or is_hedge(join):
            return ""
        won = ", ".join(self.describe(winner) for winner in winners)
        return f"{_indent(join)}{join.effect.kind.name} won by {won}"

    def cut(self, call: Call, why: str) -> str:
        if is_hedge(call.parent):
            return ""
        known = self.facts.call(call)
        after = "" if known.asked is None else f" after {milliseconds(self.records[self.index][1] - known.asked)}"
        if call.parent is None:
            return f"✗ {call.effect.kind.name} was cut{after}"  # the run's ending, in the rows above, says why
        return f"{_indent(call)}✗ {self.describe(call)} was cut{after}: {self.veil.text(why)}"

    # -- the rollback --

    def undo(self, entry: Entry, verb: str) -> str:
        """One row for a task and how it went, if nothing came between; otherwise one row each."""
        how = entry.call.effect.compensation
        made = "" if how is None else describe.named(how.resolve if verb == "resolve" else how.undo or how.by_key)
        text = f"↩ {verb} {entry.call.effect.kind.name}" + (f" by {made}" if made else "")
        after = self.records[self.index + 1] if self.index + 1 < len(self.records) else None
        if after is None or after[0] != t.UNDONE or after[2] is not entry:
            return text
        self.told.add(self.index + 1)
        took = milliseconds(after[1] - self.records[self.index][1])
        return f"{text}  {self.went(entry, *after[3])}  {took}"

    def undone(self, entry: Entry, detail: tuple[str, Outcome[Any]]) -> str:
        return f"↩ {detail[0]} {entry.call.effect.kind.name}  {self.went(entry, *detail)}"

    def went(self, entry: Entry, verb: str, outcome: Outcome[Any]) -> str:
        if isinstance(outcome, Success):
            return "✓" if verb == "undo" else f"✓ resolved: {_happened(outcome)}"
        return f"✗ {'unresolved' if verb == 'undo' else 'no answer'}: {self.trouble(outcome, entry.call.step)}"

    def gave_up(self, entry: Entry, detail: None) -> str:
        return f"↩ undo {entry.call.effect.kind.name}  ✗ unresolved: the time for undoing ran out"


def _happened(answer: Success[Any]) -> str:
    return "it did not happen" if answer.value is None else "it happened"


def _inside(call: Call) -> Call:
    """The call a hedge is about, for rows that tell what came of it."""
    return call.member("", 0) if is_hedge(call) else call


def _indent(call: Call) -> str:
    return "  " * depth(call)


def _many(facts: StepFacts) -> bool:
    """Whether its one call is a join of several effects, so that "attempts" would not say of what."""
    effect = facts.calls[0].call.effect
    return isinstance(effect, Join) and effect.rule.name != "hedge"


def _asks_by_key(how: Any) -> bool:
    return how is not None and (how.by_key is not None or how.resolve is not None)


_Tell: TypeAlias = Callable[[_Rows, Any, Any], str]

_TELL: dict[str, _Tell] = {
    t.ADMITTED: _Rows.admitted,
    t.REFUSED: _Rows.refused,
    t.KEYED: _Rows.keyed,
    t.JOB: _Rows.job,
    t.READ: _Rows.read,
    t.RECOVERED: _Rows.recovered,
    t.RESUMED: _Rows.resumed,
    t.RETRIED: _Rows.retried,
    t.TURN: _Rows.turn,
    t.OVERRUN: _Rows.overrun,
    t.STEP: _Rows.step,
    t.DEFECT: _Rows.defect,
    t.FAULT: _Rows.fault,
    t.BRANCH: _Rows.branch,
    t.PLAN: _Rows.plan,
    t.PIVOT: _Rows.pivot,
    t.ASKED: _Rows.asked,
    t.FAILED: _Rows.failed,
    t.HEDGED: _Rows.hedged,
    t.HELD: _Rows.held,
    t.DOUBTED: _Rows.doubted,
    t.RESOLVED: _Rows.resolved,
    t.SETTLED: _Rows.settled,
    t.LATE: _Rows.late,
    t.LOST: _Rows.lost,
    t.CUT: _Rows.cut,
    t.ENDING: _Rows.ending,
    t.UNDO: _Rows.undo,
    t.UNDONE: _Rows.undone,
    t.GAVE_UP: _Rows.gave_up,
    t.PARKED: _Rows.parked,
    t.SIGNALLED: _Rows.signalled,
    t.EXPIRED: _Rows.expired,
}
