"""Sides: what one run says of each of its steps, as values that can be held against those of another run.

Law: one pass over the records, and nothing is shown that the veil hides. What a secret slot held is neither shown nor
compared: a comparison that tells "not the same" about a secret tells too much, and a stored run does not have it. Two
things are kept of whatever is compared: `raw`, what it is, and text, what a reader sees of it.

A run has, beside its steps, a `(request)`, which is what it was given, a step for each branch, and a `(rollback)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Done, Fail
from zerver.core.effects import Cancelled, Failure, Success, Unknown
from zerver.core.joins import Join
from zerver.core.plan import BranchNode, StepNode
from zerver.core.saga import Entry
from zerver.core.signatures import SlotRead
from zerver.core.timeline import Timeline
from zerver.errors import EffectError
from zerver.trace import describe
from zerver.trace.facts import CallFacts, Facts, StepFacts, in_rollback, is_hedge
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.plain import plain
from zerver.trace.same import same
from zerver.trace.veil import MASK, Veil, secret_slots

REQUEST: Final = "(request)"
ROLLBACK: Final = "(rollback)"

_SHOWN: Final = 120  # characters of a value
_MOST: Final = 2_000  # of its parts and characters, before that cut
_MOST_ASKED: Final = 20_000  # the same of what an effect was asked with, of which all is compared


@attrs.frozen(eq=False)
class Shown:
    """A value: what it is, and what may be seen of it. masked: something of it may not."""

    raw: Any
    text: str
    masked: bool = False

    def like(self, other: Shown) -> bool:
        """Whether both are the same; of what is masked, in part or as a whole, only what may be seen is compared."""
        if self.masked or other.masked:
            return self.text == other.text
        return same(self.raw, other.raw)


@attrs.frozen(eq=False)
class EffectSide:
    """One effect of a step. name: its place, as `1`, or `1.0` for the first member of a join.

    kind: as `payments.charge`. asked: the effect itself. outcome: what it came to. way: the outcome without its value,
    as "gave" or "failed". attempts: 1 for one that went well at once; hedges are counted apart. took_ns: None while it
    is under way.
    """

    name: str
    kind: str
    asked: Shown
    outcome: Shown
    way: str
    attempts: int
    timeouts: int
    hedges: int
    took_ns: int | None


@attrs.frozen(eq=False)
class StepSide:
    """One step of one run. way: its decision without its values, so that "took another way" can be told from "gave
    something else". took_ns: parked time left out; it is io + cpu + turn, the wait for the run's turn.
    """

    name: str
    decision: Shown
    way: tuple[str, ...]
    reads: Mapping[str, Shown] = attrs.field(factory=dict)
    writes: Mapping[str, Shown] = attrs.field(factory=dict)
    effects: Mapping[str, EffectSide] = attrs.field(factory=dict)
    took_ns: int = 0
    io_ns: int = 0
    cpu_ns: int = 0
    turn_ns: int = 0
    parked_ns: int = 0


def sides(timeline: Timeline, hidden: Hidden = NOTHING_HIDDEN) -> dict[str, StepSide]:
    """Every step of a run by its name, in the order in which they began. hidden: names that are not to be shown."""
    return _Sides(timeline, hidden).all()


class _Sides:
    def __init__(self, timeline: Timeline, hidden: Hidden) -> None:
        self.facts = Facts(timeline)
        self.hidden = hidden
        self.veil = Veil(self.facts, hidden)
        self.secret = secret_slots(self.facts, hidden)
        self.slots: dict[str, Any] = {}
        self.parts: dict[str, Shown] = {}
        self.reads: dict[str, dict[str, Shown]] = {}
        self.writes: dict[str, dict[str, Shown]] = {}
        self.decisions: dict[str, tuple[Shown, tuple[str, ...]]] = {}
        self.turns: dict[str, int] = {}
        self.reasons: dict[Call, str] = {}
        self.late: set[Call] = set()
        self.order: dict[str, None] = {}
        self.branches: dict[str, int] = {}
        self.undoing: dict[int, int] = {}  # id of an entry -> when its task was started
        self.undone: dict[str, EffectSide] = {}
        self.tried: dict[Call, list[CallFacts]] = {}  # a hedge -> what was tried, which is told of its one member
        for call, known in self.facts.calls.items():
            if call.parent is not None and is_hedge(call.parent):
                self.tried.setdefault(call.parent, []).append(known)

    def all(self) -> dict[str, StepSide]:
        for record in self.facts.timeline.records:
            gather = _GATHER.get(record[0])
            if gather is not None:
                gather(self, record[1], record[2], record[3])
        found = dict(self.request())
        for name in self.order:
            found[name] = self.step(name)
        if self.undone:
            took = sum(task.took_ns or 0 for task in self.undone.values())
            nothing = Shown(None, "undoes")
            found[ROLLBACK] = StepSide(ROLLBACK, nothing, ("undoes",), effects=self.undone, took_ns=took, io_ns=took)
        return found

    # -- gathering --

    def given(self, at: int, plan: Any, detail: Any) -> None:
        parts, takes = detail[0], detail[1]
        for read, value in zip(plan.parts, parts, strict=False):
            self.parts[f"{read.part.source} {read.name}"] = self.shown(value)
        for slot, value in zip(plan.takes, takes, strict=False):
            self.slots[slot.name] = value

    def began(self, name: str, node: StepNode) -> None:
        """It has begun: what it reads is what the slots hold now."""
        if name in self.order:
            return
        self.order[name] = None
        self.reads[name] = {
            read.slot.name: self.slot(read.slot.name, self.slots[read.slot.name])
            for read in node.step.signature.reads
            if isinstance(read, SlotRead) and read.slot.name in self.slots
        }

    def asked(self, at: int, call: Call, detail: None) -> None:
        if call.parent is not None or in_rollback(call):
            return
        node = self.facts.step(call.step).node
        if node is not None:
            self.began(call.step, node)
        self.order.setdefault(call.step)

    def parked(self, at: int, node: Any, pause: Any) -> None:
        self.began(node.name, node)
        said = f"waits for {self.veil.text(repr(pause.signal))}"
        self.decide(node.name, Shown(said, said), ("waits", pause.signal))

    def answered(self, at: int, node: Any, detail: Any) -> None:
        name, answer = node.name, detail[1]
        if not isinstance(node, StepNode):
            return
        self.began(name, node)
        if isinstance(answer, Fail):
            self.decide(
                name, Shown(answer, describe.fail(answer, self.veil, name)), ("fails", answer.kind, answer.what)
            )
            return
        if isinstance(answer, Done):
            self.decide(name, self.shown(answer.value, "is done with ", name), ("is done",))
            return
        self.decide(name, Shown(None, "goes on"), ("goes on",))
        writes = node.step.signature.writes
        values = answer if node.write == -2 and isinstance(answer, tuple) else (answer,)
        for write, value in zip(writes, values, strict=False):
            self.slots[write.slot.name] = value
            self.writes.setdefault(name, {})[write.slot.name] = self.slot(write.slot.name, value)

    def raised(self, at: int, node: Any, detail: Any) -> None:
        error = detail[1]
        if isinstance(node, StepNode):
            self.began(node.name, node)
        else:
            self.order.setdefault(node.name)
        if isinstance(error, EffectError):
            said = f"{error.kind} failed: {describe.reason(error, self.veil, node.name)}"
            self.decide(node.name, self.said(node.name, said), ("stops at", error.kind))
        else:
            said = describe.message(error, self.veil, node.name)
            self.decide(node.name, self.said(node.name, said, "raises "), ("raises", said.partition(":")[0]))

    def branched(self, at: int, node: BranchNode, answer: bool) -> None:
        count = self.branches[node.name] = self.branches.get(node.name, 0) + 1
        name = node.name if count == 1 else f"{node.name}#{count}"
        self.order.setdefault(name)
        self.decide(name, Shown(answer, "yes" if answer else "no"), ("yes" if answer else "no",))

    def planned(self, at: int, node: Any, detail: Any) -> None:
        verb, names = detail
        said = f"{'inserts' if verb == 'insert' else 'replaces the rest by'} {', '.join(names) or 'nothing'}"
        self.decide(node.name, Shown(said, said), (verb, *names))

    def cut(self, at: int, call: Call, why: Any) -> None:
        self.reasons[call] = self.veil.text(str(why))
        if call.parent is None and not in_rollback(call):
            self.decide(call.step, Shown("cut", f"was cut: {self.reasons[call]}"), ("is cut",))

    def came_late(self, at: int, call: Call, outcome: Any) -> None:
        self.late.add(call)

    def undo(self, at: int, entry: Entry, verb: str) -> None:
        self.undoing[id(entry)] = at

    def undid(self, at: int, entry: Entry, detail: Any) -> None:
        verb, outcome = detail
        call = entry.call
        name = f"{verb} {call.step}.{call.ordinal}"
        asked = self.asks(call, f"{verb} ")
        shown, way = self.outcome(CallFacts(call, outcome=outcome))
        began = self.undoing.get(id(entry))
        took = None if began is None else at - began
        self.undone[name] = EffectSide(name, call.effect.kind.name, asked, shown, way, 1, 0, 0, took)

    def turn(self, at: int, subject: Any, since: int) -> None:
        name = subject.step if isinstance(subject, Call) else getattr(subject, "name", subject)
        self.turns[name] = self.turns.get(name, 0) + max(0, at - since)

    def decide(self, step: str, decision: Shown, way: tuple[str, ...]) -> None:
        self.decisions[step] = (decision, way)

    # -- what is shown --

    def shown(self, value: Any, before: str = "", step: str = "") -> Shown:
        if step and self.veil.hides(step):
            return Shown(value, before + MASK, masked=True)
        text = json.dumps(plain(value, self.veil.text, hidden=self.hidden, most=_MOST), ensure_ascii=False)
        return Shown(value, before + describe.cut(text, _SHOWN), masked=MASK in text)

    def asks(self, call: Call, before: str = "") -> Shown:
        """What was asked for; keys are made of the run's id, which is another one in each run."""
        effect = call.effect
        if isinstance(effect, Join):
            raw: Any = (effect.kind.name, str(effect.rule), len(effect.members))
            return Shown(raw, before + describe.effect(effect, self.veil, call.step))
        given = plain([effect.args, effect.kwargs], self.veil.text, hidden=self.hidden, most=_MOST_ASKED)
        with_ = json.dumps(given, ensure_ascii=False).replace(call.run_id, "…")
        text = before + describe.effect(effect, self.veil, call.step)
        return Shown((effect.kind.name, with_), text, masked=MASK in with_ or MASK in text)

    def slot(self, name: str, value: Any) -> Shown:
        return Shown(value, MASK, masked=True) if name in self.secret else self.shown(value)

    def said(self, step: str, text: str, before: str = "") -> Shown:
        """What is known by its words alone, as errors are."""
        return Shown(text, before + text, masked=MASK in text or self.veil.hides(step))

    # -- one side --

    def request(self) -> Iterator[tuple[str, StepSide]]:
        takes = self.facts.plan.takes if self.facts.plan is not None else ()
        values = self.facts.inputs[1] if self.facts.inputs else ()
        reads = {slot.name: self.slot(slot.name, value) for slot, value in zip(takes, values, strict=False)}
        if self.parts or reads:
            yield REQUEST, StepSide(REQUEST, Shown(None, "is read"), ("is read",), {**self.parts, **reads})

    def step(self, name: str) -> StepSide:
        known = self.facts.steps.get(name) or StepFacts(name)
        decision, way = self.decisions.get(name, (Shown("under way", "under way"), ("under way",)))
        took = max(0, self.facts.took(known) - known.parked)
        turn = min(self.turns.get(name, 0), took)
        io = min(max(0, known.io(self.facts.ended) - turn), took - turn)
        effects = {call.call.ordinal: call for call in (*known.calls, *known.inner) if not is_hedge(call.call.parent)}
        return StepSide(
            name=name,
            decision=decision,
            way=way,
            reads=self.reads.get(name, {}),
            writes=self.writes.get(name, {}),
            effects={ordinal: self.effect(ordinal, effects[ordinal]) for ordinal in sorted(effects, key=_place)},
            took_ns=took,
            io_ns=io,
            cpu_ns=took - io - turn,
            turn_ns=turn,
            parked_ns=known.parked,
        )

    def effect(self, name: str, known: CallFacts) -> EffectSide:
        call = known.call
        tries = [known]
        tries += self.tried.get(call, [])
        outcome, way = self.outcome(known)
        return EffectSide(
            name=name,
            kind=call.effect.kind.name,
            asked=self.asks(call),
            outcome=outcome,
            way=way,
            attempts=1 + sum(one.retries for one in tries),
            timeouts=sum(one.timeouts for one in tries),
            hedges=sum(one.hedges for one in tries),
            took_ns=None if known.ended is None or known.asked is None else known.ended - known.asked,
        )

    def outcome(self, known: CallFacts) -> tuple[Shown, str]:
        call, outcome = known.call, known.outcome
        late = "late, " if call in self.late else ""
        if isinstance(outcome, Success):
            return self.shown(outcome.value, f"{late}gave ", call.step), f"{late}gave"
        if isinstance(outcome, Failure | Unknown):
            word = "failed" if isinstance(outcome, Failure) else "may or may not have happened"
            said = f"{late}{word}: {describe.reason(outcome.error, self.veil, call.step)}"
            return self.said(call.step, said), f"{late}{word}"
        if isinstance(outcome, Cancelled) or call in self.reasons:
            reason = self.veil.text(outcome.reason) if isinstance(outcome, Cancelled) else self.reasons[call]
            return Shown(reason, f"was cut: {reason}"), "was cut"
        return Shown(None, "under way"), "under way"


_GATHER: Final[Mapping[str, Any]] = {
    t.INPUT: _Sides.given,
    t.ASKED: _Sides.asked,
    t.PARKED: _Sides.parked,
    t.STEP: _Sides.answered,
    t.DEFECT: _Sides.raised,
    t.FAULT: _Sides.raised,
    t.BRANCH: _Sides.branched,
    t.PLAN: _Sides.planned,
    t.CUT: _Sides.cut,
    t.LATE: _Sides.came_late,
    t.TURN: _Sides.turn,
    t.UNDO: _Sides.undo,
    t.UNDONE: _Sides.undid,
}


def _place(ordinal: str) -> tuple[tuple[int, str], ...]:
    """`1` before `2` before `2.0` before `10`; what is no number comes last, by name."""
    return tuple((int(part), "") if part.isdigit() else (1 << 30, part) for part in ordinal.split("."))
