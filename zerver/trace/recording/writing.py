"""Writing: a run's records, one after the other, as the lists of a recording's body.

Law: things that only identity tells apart (nodes, calls, entries, endings, errors) are written once and referred to by
number, so that they are one thing again when they are read. What a step of which nothing may be shown asked for, got
and answered is masked as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs
import msgspec

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.decisions import Done
from zerver.core.effects import Failure, Outcome, Success, Unknown
from zerver.core.joins import Join
from zerver.core.plan import Node, Plan, StepNode
from zerver.core.saga import Entry
from zerver.core.timeline import Record
from zerver.runtime.result import Result
from zerver.trace.facts import Facts
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden, Secrets
from zerver.trace.recording.skeleton import line_tree, nodes_in, skeleton_of
from zerver.trace.recording.values import Encoder
from zerver.trace.recording.written import VERSION, Body
from zerver.trace.veil import Veil, is_hidden_part, secret_slots

Tree: TypeAlias = Any

#: Bytes of all values of a run together; beyond, little is left of each.
MOST_IN_ALL: Final = 32 * 1024 * 1024


@attrs.frozen
class EncodedRun:
    """A run's bytes."""

    plan_id: str
    plan: bytes
    body: bytes


@attrs.frozen
class Masks:
    """What is masked of a run. slots: by their names. veil: what else must not be shown, None when that is nothing."""

    slots: frozenset[str] = frozenset()
    veil: Veil | None = None
    hidden: Hidden = NOTHING_HIDDEN
    records: Sequence[Record] = ()


NO_MASKS: Final = Masks()


class RecordWriter:
    """Writes the records of one run, one after the other; what they refer to is in the lists, in order of first use.

    plan: of its INPUT record, None before there is one. values: how values are written.
    """

    def __init__(self, flow: str, plan: Plan | None, values: Encoder, masks: Masks = NO_MASKS) -> None:
        self.flow = flow
        self.plan = plan
        self.values = values
        self.slots, self.veil = masks.slots, masks.veil
        self.masks = masks
        self.skeleton = skeleton_of(plan) if plan is not None else None
        self.numbers: dict[int, int] = dict(self.skeleton.numbers) if self.skeleton is not None else {}
        self.count = len(self.numbers)
        self.nodes: list[Tree] = []
        self.calls: list[Tree] = []
        self.entries: list[Tree] = []
        self.endings: list[Tree] = []
        self.known_calls: dict[int, int] = {}
        self.known_entries: dict[int, int] = {}
        self.known_endings: dict[int, int] = {}

    def record(self, record: Record, before: int) -> Tree:
        kind, at, subject, detail = record
        tree = [kind, at - before, self.subject(subject)]
        if detail is None:
            return tree
        write = _WRITE.get(kind)
        tree.append(write(self, record) if write is not None else self.values.refer(detail))
        return tree

    # -- subjects --

    def subject(self, subject: Any) -> str:
        if isinstance(subject, str):
            return "" if subject == self.flow else f"={subject}"
        if isinstance(subject, Call):
            return f"c{self.call(subject)}"
        if isinstance(subject, Entry):
            return f"e{self.entry(subject)}"
        return "p" if isinstance(subject, Plan) else f"n{self.node(subject)}"

    def node(self, node: Node) -> int:
        number = self.numbers.get(id(node))
        if number is None:  # a step has put it into the plan of this run
            self.nodes.append(line_tree((node,))[0])
            number = self.count
            for inner in nodes_in((node,)):
                self.numbers.setdefault(id(inner), self.count)
                self.count += 1
        return number

    def call(self, call: Call) -> int:
        number = self.known_calls.get(id(call))
        if number is not None:
            return number
        parent = None if call.parent is None else self.call(call.parent)
        tree: list[Tree] = [call.step, call.ordinal, self._effect(call), parent]
        if call.until_ns is not None:
            tree.append(call.until_ns)
        self.calls.append(tree)
        number = self.known_calls[id(call)] = len(self.calls) - 1
        return number

    def _effect(self, call: Call) -> Tree:
        around = call.parent.effect if call.parent is not None else None
        if isinstance(around, Join):
            for number, member in enumerate(around.members):
                if member is call.effect:
                    return number
        return self.values.refer(call.effect, whole=self.hides(call.step))

    def entry(self, entry: Entry) -> int:
        number = self.known_entries.get(id(entry))
        if number is None:
            call, whole = self.call(entry.call), self.hides(entry.call.step)
            value, error = self.values.refer(entry.value, whole=whole), self.values.refer(entry.error, whole=whole)
            self.entries.append([call, entry.state, value, error, entry.loser, entry.asked])
            number = self.known_entries[id(entry)] = len(self.entries) - 1
        return number

    def ending(self, ending: t.Ending) -> int:
        number = self.known_endings.get(id(ending))
        if number is None:
            whole = self._ended_by_hidden(ending)
            cause = self.values.refer(ending.cause, whole=whole)
            given = self._is_given(ending)
            value = self._given(ending.value) if given else self.values.refer(ending.value, whole=whole)
            self.endings.append([ending.status, self.values.text(ending.reason), cause, value])
            number = self.known_endings[id(ending)] = len(self.endings) - 1
        return number

    def _is_given(self, ending: t.Ending) -> bool:
        """Whether the run's value are secret slots that its flow gives."""
        if self.plan is None or not self.slots or ending.status != "done":
            return False
        return not any(r[0] == t.STEP and isinstance(r[3][1], Done) for r in self.masks.records)

    def _given(self, value: Any) -> Tree:
        names = {cell: name for name, cell in self.plan.slots.items()} if self.plan is not None else {}
        secret = [names.get(cell) in self.slots for cell in (self.plan.gives if self.plan is not None else ())]
        if len(secret) == 1:
            return self.values.refer(value, whole=secret[0])
        if isinstance(value, tuple) and len(value) == len(secret):
            given = zip(value, secret, strict=True)
            return {"$": "tuple", "items": [self.values.refer(item, whole=whole) for item, whole in given]}
        return self.values.refer(value, whole=any(secret))

    # -- what must not be shown at all --

    def hides(self, step: str) -> bool:
        return self.veil is not None and self.veil.hides(step)

    def _ended_by_hidden(self, ending: t.Ending) -> bool:
        """Whether the end came from a step of which nothing may be shown."""
        if self.veil is None:
            return False
        for kind, _, subject, detail in self.masks.records:
            if kind in _ANSWERS and detail[1] is (ending.cause if ending.cause is not None else None):
                return self.hides(subject.name)
            if kind == t.STEP and isinstance(detail[1], Done) and detail[1].value is ending.value:
                return ending.value is not None and self.hides(subject.name)
        return False

    # -- details --

    def input(self, record: Record) -> Tree:
        parts, takes, deadline_ns, parallel = record[3]
        plan = self.plan
        shown = [self.values.refer(value) for value in parts]
        given = [self.values.refer(value) for value in takes]
        if plan is not None and self.veil is not None:
            for number, (read, value) in enumerate(zip(plan.parts, parts, strict=False)):
                if is_hidden_part(read, self.masks.hidden):
                    shown[number] = self.values.named(value, read.name)
            for number, (slot, value) in enumerate(zip(plan.takes, takes, strict=False)):
                if slot.name in self.slots:
                    given[number] = self.values.refer(value, whole=True)
        return [shown, given, deadline_ns, parallel]

    def since(self, record: Record) -> Tree:
        return record[1] - record[3]

    def value(self, record: Record) -> Tree:
        return self.values.refer(record[3], whole=self._hides(record[2]))

    def text(self, record: Record) -> Tree:
        return self.values.text(record[3]) if isinstance(record[3], str) else None

    def as_is(self, record: Record) -> Tree:
        return record[3]

    def step(self, record: Record) -> Tree:
        _, at, node, (began, answer) = record
        if isinstance(answer, Done):
            return [at - began, self.values.refer(answer.value, whole=self._hides(node)), "done"]
        return [at - began, self._answer(node, answer)]

    def _answer(self, node: Any, answer: Any) -> Tree:
        if self._hides(node):
            return self.values.refer(answer, whole=True)
        if not self.slots or not isinstance(node, StepNode):
            return self.values.refer(answer)
        writes = node.step.signature.writes
        if node.write == -2 and isinstance(answer, tuple):
            pairs = zip(writes, answer, strict=False)
            return {"$": "tuple", "items": [self.values.refer(v, whole=w.slot.name in self.slots) for w, v in pairs]}
        secret = node.write >= 0 and writes[0].slot.name in self.slots
        return self.values.refer(answer, whole=secret)

    def raised(self, record: Record) -> Tree:
        kind, at, node, (began, error) = record
        whole = self._hides(node)
        return [at - began, self.values.refer(error, whole=whole, trace=kind == t.DEFECT)]

    def failed(self, record: Record) -> Tree:
        number, error, doubt, wait, why = record[3]
        return [number, self.values.refer(error, whole=self._hides(record[2])), doubt, wait, why]

    def outcome(self, record: Record) -> Tree:
        return self._outcome(record[3], self._hides(record[2]))

    def undone(self, record: Record) -> Tree:
        verb, outcome = record[3]
        return [verb, self._outcome(outcome, self._hides(record[2]))]

    def lost(self, record: Record) -> Tree:
        return [self.call(winner) for winner in record[3]]

    def end(self, record: Record) -> Tree:
        return self.ending(record[3])

    def _outcome(self, outcome: Outcome[Any], whole: bool) -> Tree:
        if isinstance(outcome, Success):
            return {"ok": self.values.refer(outcome.value, whole=whole)}
        if isinstance(outcome, Failure):
            return {"no": self.values.refer(outcome.error, whole=whole)}
        if isinstance(outcome, Unknown):
            return {"unknown": self.values.refer(outcome.error, whole=whole), "key": outcome.key}
        return {"cancelled": self.values.text(outcome.reason)}

    def _hides(self, subject: Any) -> bool:
        if self.veil is None:
            return False
        if isinstance(subject, Entry):
            subject = subject.call
        return self.hides(subject.step if isinstance(subject, Call) else getattr(subject, "name", ""))


_ANSWERS: Final = frozenset({t.STEP, t.DEFECT, t.FAULT})

_WRITE: Final[Mapping[str, Callable[[RecordWriter, Record], Tree]]] = {
    t.ADMITTED: RecordWriter.text,
    t.KEYED: RecordWriter.as_is,
    t.JOB: RecordWriter.as_is,
    t.INPUT: RecordWriter.input,
    t.TURN: RecordWriter.since,
    t.STEP: RecordWriter.step,
    t.DEFECT: RecordWriter.raised,
    t.FAULT: RecordWriter.raised,
    t.BRANCH: RecordWriter.as_is,
    t.PLAN: RecordWriter.as_is,
    t.ATTEMPT: RecordWriter.as_is,
    t.FAILED: RecordWriter.failed,
    t.HEDGED: RecordWriter.as_is,
    t.HELD: RecordWriter.text,
    t.COMMITTED: RecordWriter.value,
    t.DOUBTED: RecordWriter.value,
    t.RESOLVED: RecordWriter.outcome,
    t.SETTLED: RecordWriter.outcome,
    t.LATE: RecordWriter.outcome,
    t.LOST: RecordWriter.lost,
    t.CUT: RecordWriter.text,
    t.ENDING: RecordWriter.end,
    t.UNDO: RecordWriter.as_is,
    t.UNDONE: RecordWriter.undone,
    t.PARKED: RecordWriter.value,
    t.SIGNALLED: RecordWriter.value,
    t.UNRESOLVED: RecordWriter.value,
    t.ENDED: RecordWriter.end,
    t.ANSWERED: RecordWriter.as_is,
}


class RunWriter:
    """Writes a whole run, masked."""

    def __init__(self, result: Result, hidden: Hidden, most_bytes: int) -> None:
        self.result = result
        self.hidden = hidden
        self.most = most_bytes
        self.records = list(result.timeline.records)  # a run under way goes on
        self.plan: Plan | None = next((r[2] for r in self.records if r[0] == t.INPUT and isinstance(r[2], Plan)), None)
        self.slots = result.timeline.secret
        self.veil: Veil | None = None
        if self.slots or hidden.names or self._has_sensitive_parts():
            facts = Facts(attrs.evolve(result.timeline, records=self.records))
            self.slots = secret_slots(facts, hidden)
            self.veil = Veil(facts, hidden)

    def _has_sensitive_parts(self) -> bool:
        parts = self.plan.parts if self.plan is not None else ()
        return any(is_hidden_part(read, self.hidden) for read in parts)

    def write(self) -> EncodedRun:
        """The run, written."""
        writer = self._writer(self.veil.secrets if self.veil is not None else Secrets())
        body = self._body(writer)
        namer = writer.values.namer
        if namer.found or namer.blind:  # names have shown what is secret: it may stand elsewhere without its name
            found = [*(self.veil.values if self.veil is not None else ()), *namer.found]
            writer = self._writer(Secrets(found, everything=namer.blind))
            body = self._body(writer)
        if writer.skeleton is None:
            return EncodedRun("", b"", _encoded(body))
        return EncodedRun(writer.skeleton.id, writer.skeleton.body, _encoded(body))

    def _writer(self, secrets: Secrets) -> RecordWriter:
        values = Encoder(secrets, self.hidden, self.most, MOST_IN_ALL)
        masks = Masks(self.slots, self.veil, self.hidden, self.records)
        return RecordWriter(self.result.timeline.flow, self.plan, values, masks)

    def _body(self, writer: RecordWriter) -> Body:
        timeline, text = self.result.timeline, writer.values.text
        began = self.records[0][1] if self.records else 0
        records, before = [], began
        for record in self.records:
            records.append(writer.record(record, before))
            before = record[1]
        ending = writer.ending(self.result.ending)
        unresolved = [writer.entry(entry) for entry in self.result.unresolved]
        return Body(
            v=VERSION,
            run=timeline.run_id,
            flow=timeline.flow,
            version=timeline.version,
            tenant=text(timeline.tenant),
            priority=timeline.priority,
            label=text(timeline.label),
            parent=timeline.parent,
            secret=sorted(self.slots),
            sealed=self.result.sealed,
            began=began,
            values=writer.values.values,
            kinds=writer.values.asked.kinds,
            nodes=writer.nodes,
            calls=writer.calls,
            entries=writer.entries,
            endings=writer.endings,
            records=records,
            ending=ending,
            unresolved=unresolved,
        )


def _encoded(body: Body) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half a character, in a name or a reason
        return msgspec.json.encode(printable(msgspec.to_builtins(body)))


def printable(tree: Tree) -> Tree:
    """The tree without half characters, which UTF-8 does not have."""
    if isinstance(tree, str):
        return tree.encode("utf-8", "backslashreplace").decode()
    if isinstance(tree, list | tuple):
        return [printable(item) for item in tree]
    if isinstance(tree, dict):
        return {printable(name): printable(item) for name, item in tree.items()}
    return tree
