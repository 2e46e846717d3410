"""Replay: the same run once more, from its records, with nothing performed.

Law: pure. A fresh machine is given the events of the records (inputs, outcomes, signals, cuts, the end from outside) in
their order, and what it records is compared with what was recorded, one record at a time. The same code gives the same
records; other code departs from them at the first step that decides otherwise, and that place is the answer.

The machine writes some records, the runtime others. An event's record makes the machine write it, and all that follows
from it up to the next event:

    input            start         settled, late     settled       ending, cut    interrupt (if it came from outside)
    committed        committed     doubted, lost     the same      undone         undone
    signalled        signalled     expired           expired       gave_up        give_up
    turn (a node's)  resume

That a run breathed, and that a step did not begin because the deadline had passed, the machine saw on its clock. Here
it sees it on the records': a replay breathes where the run breathed, however long its own steps take.

Records of the runtime alone (received, admitted, any other turn, overrun, attempt, failed, hedged, held, resolved,
answered, and what happens to calls inside a join) are no events: they are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.commands import Command, Unwind
from zerver.core.joins import Join
from zerver.core.machine import FAR, Machine
from zerver.core.plan import UNWRITTEN, Plan, StepNode
from zerver.core.timeline import Record, Timeline
from zerver.errors import InvalidData
from zerver.trace.same import same_record


@attrs.frozen(eq=False)
class Inputs:
    """What a machine is started with.

    parts, takes: in the order of the plan that is replayed. deadline_ns: on the records' clock, or None. parallel: as
    Machine has it.
    """

    parts: Sequence[Any] = ()
    takes: Sequence[Any] = ()
    deadline_ns: int | None = None
    parallel: int | None = None


@attrs.frozen(eq=False)
class Divergence:
    """Where a replay departs from its records.

    index: in the recorded records. recorded, replayed: None when that side has nothing there.
    """

    index: int
    recorded: Record | None
    replayed: Record | None

    def __str__(self) -> str:
        """Both sides, calls with their arguments: `recorded asked charge.1 pay(5); replayed asked charge.1 pay(6)`."""
        return f"recorded {_told(self.recorded)}; replayed {_told(self.replayed)}"


@attrs.frozen(eq=False)
class Replayed:
    """What a replay came to.

    records: those of the replay, with the times of the recorded ones, up to the divergence. divergence: None when every
    record is the same. slots: what the slots held when it stopped. ending: how the replayed run ended, if it did.
    """

    records: tuple[Record, ...]
    divergence: Divergence | None
    slots: Mapping[str, Any]
    ending: t.Ending | None

    @property
    def same(self) -> bool:
        return self.divergence is None


def replay(plan: Plan, timeline: Timeline, inputs: Inputs | None = None) -> Replayed:
    """Run the plan against a timeline. inputs: instead of the recorded ones, for "what if".

    Raises InvalidData when the plan, of other code, takes an input that was not recorded.
    """
    return _Replay(plan, timeline, inputs).run()


#: Written by the runtime only.
_RUNTIMES = frozenset(
    {
        t.RECEIVED, t.ADMITTED, t.REFUSED, t.READ, t.INPUT, t.OVERRUN, t.ATTEMPT, t.FAILED, t.HEDGED, t.HELD,
        t.RESOLVED, t.ANSWERED,
    }  # fmt: skip
)

#: Written by the machine for a step's own calls, by the runtime for calls inside a join.
_SHARED = frozenset({t.ASKED, t.SETTLED, t.LATE, t.CUT})


def _is_runtimes(kind: str, subject: Any) -> bool:
    if kind == t.TURN:
        return not isinstance(subject, StepNode)
    return kind in _RUNTIMES or (kind in _SHARED and subject.parent is not None)


class _Replay:
    def __init__(self, plan: Plan, timeline: Timeline, inputs: Inputs | None) -> None:
        self.timeline = timeline
        self.recorded = timeline.records
        self.index = 0  # of the recorded record that is looked at
        self.calls: dict[tuple[str, str], Call] = {}
        self.command: Command | None = None
        self.began = _beginnings(self.recorded)
        self.asked_at = -1
        self.given = inputs or next((_fitted(r, plan) for r in self.recorded if r[0] == t.INPUT), None)
        given = self.given or Inputs()
        self.records: list[Record] = []  # index for index the recorded ones, for as long as nothing departs
        self.machine = Machine(plan, timeline.run_id, self.clock, self.records, given.deadline_ns, given.parallel)

    def clock(self) -> int:
        """The recorded time of the record that the machine is about to write.

        A step's first record is written when it has asked or answered; the clock is read once before, as it began, and
        its answer tells that time.
        """
        at = min(len(self.records), len(self.recorded) - 1)
        first, self.asked_at = self.asked_at != at, at
        if first and self.recorded[at][0] == t.BREATH:
            return FAR  # the step was to begin, and its slice was over
        return self.began.get(at, self.recorded[at][1]) if first else self.recorded[at][1]

    # -- the loop --

    def run(self) -> Replayed:
        divergence = None
        for index, record in enumerate(self.recorded):
            self.index = index
            divergence = self.follow(record)
            if divergence is not None:
                break
        whole = len(self.recorded)
        if divergence is None and len(self.records) > whole:
            divergence = Divergence(whole, None, self.records[whole])
        upto = whole if divergence is None else divergence.index
        return Replayed(tuple(self.records[:upto]), divergence, self.slots(), self.stop())

    def follow(self, record: Record) -> Divergence | None:
        """Let the replay do what the record says; where it does otherwise is the divergence."""
        kind, _, subject, _ = record
        if _is_runtimes(kind, subject):
            if self.has_gone_on():  # the machine has gone on where the recorded one waited
                return Divergence(self.index, record, self.records[self.index])
            self.records.append(record)
            if kind == t.INPUT:
                self.start()
            return None
        if not self.has_gone_on():
            feed = _EVENTS.get(kind)
            try:
                if feed is not None:
                    self.command = feed(self, record)
            except (_Astray, KeyError, TypeError, IndexError):  # the event is about something the replay never did
                return Divergence(self.index, record, None)
        if not self.has_gone_on():
            return Divergence(self.index, record, None)
        replayed = self.records[self.index]
        if not same_record(record, replayed):
            return Divergence(self.index, record, replayed)
        if kind == t.ASKED:
            self.calls[subject.step, subject.ordinal] = replayed[2]
        return None

    def has_gone_on(self) -> bool:
        """Whether the machine has written a record for the place that is looked at."""
        return len(self.records) > self.index

    def stop(self) -> t.Ending | None:
        """Close the steps that still wait, so that none is left to the garbage collector; what they say is not kept."""
        machine = self.machine
        ending = next((detail for kind, _, _, detail in machine.records if kind == t.ENDING), None)
        if machine.under_way:
            machine.interrupt(t.Ending("cancelled", reason="the replay has stopped"))
        return ending

    def slots(self) -> dict[str, Any]:
        machine = self.machine
        held = {name: machine.cells[cell] for name, cell in machine.plan.slots.items()}
        return {name: value for name, value in held.items() if value is not UNWRITTEN}

    # -- events --

    def start(self) -> None:
        if self.given is not None:
            self.command = self.machine.start(self.given.parts, self.given.takes)

    def settled(self, record: Record) -> Command:
        return self.machine.settled(self.call(record[2]), record[3])

    def resume(self, record: Record) -> Command:
        return self.machine.resume(record[3])

    def committed(self, record: Record) -> Command | None:
        self.machine.committed(self.call(record[2]), record[3])
        return self.command

    def doubted(self, record: Record) -> Command | None:
        self.machine.doubted(self.call(record[2]), record[3])
        return self.command

    def lost(self, record: Record) -> Command | None:
        self.machine.lost(self.call(record[2]), [self.call(winner) for winner in record[3]])
        return self.command

    def ending(self, record: Record) -> Command:
        """The machine has not ended by itself, so it was told to: deadline, cancellation, or a senseless request."""
        started = any(kind == t.INPUT for kind, _, _, _ in self.recorded[: self.index])
        if started and record[3].status not in ("deadline", "cancelled"):
            raise _Astray
        return self.machine.interrupt(record[3])

    def cut(self, record: Record) -> Command:
        """The machine has said Cancel, and this is the first of the calls that were cut."""
        self.call(record[2])
        return self.machine.interrupt(t.Ending("cancelled", reason=record[3]))

    def signalled(self, record: Record) -> Command:
        return self.machine.signalled(self.signal(record), record[3])

    def expired(self, record: Record) -> Command:
        return self.machine.expired(self.signal(record))

    def undone(self, record: Record) -> Command:
        if not isinstance(self.command, Unwind):
            raise _Astray
        return self.machine.undone(self.command.task, record[3][1])

    def gave_up(self, record: Record) -> Command:
        """The time for the rollback was over; with nothing left to give up, the end is the next record."""
        if not isinstance(self.command, Unwind):
            raise _Astray
        return self.machine.give_up()

    def signal(self, record: Record) -> str:
        for kind, _, subject, detail in reversed(self.recorded[: self.index]):
            if kind == t.PARKED and subject is record[2]:
                return str(detail.signal)
        raise _Astray

    # -- whose call it is --

    def call(self, recorded: Call) -> Call:
        """The replay's own call for a recorded one: same step, same ordinal, same place in its join."""
        key = (recorded.step, recorded.ordinal)
        known = self.calls.get(key)
        if known is None:
            known = self.calls[key] = self.inner(recorded)
        return known

    def inner(self, recorded: Call) -> Call:
        if recorded.parent is not None and isinstance(recorded.parent.effect, Join):
            return self.call(recorded.parent).member(self.timeline.run_id, int(recorded.ordinal.rpartition(".")[2]))
        if isinstance(self.command, Unwind):  # a join as a compensation
            task = self.command.task
            of = task.entry.call
            if (recorded.step, recorded.ordinal) == (of.step, f"{of.ordinal}.{task.verb}"):
                return Call(self.timeline.run_id, of.step, recorded.ordinal, task.effect)
        raise _Astray


class _Astray(Exception):
    """An event of the records has no place in the replay."""


_Feed: TypeAlias = Callable[[_Replay, Record], Command | None]

_EVENTS: dict[str, _Feed] = {
    t.SETTLED: _Replay.settled,
    t.LATE: _Replay.settled,
    t.TURN: _Replay.resume,
    t.COMMITTED: _Replay.committed,
    t.DOUBTED: _Replay.doubted,
    t.LOST: _Replay.lost,
    t.ENDING: _Replay.ending,
    t.CUT: _Replay.cut,
    t.SIGNALLED: _Replay.signalled,
    t.EXPIRED: _Replay.expired,
    t.UNDONE: _Replay.undone,
    t.GAVE_UP: _Replay.gave_up,
    t.ENDED: _Replay.gave_up,
}


def _fitted(record: Record, plan: Plan) -> Inputs:
    """The recorded inputs in the order of the plan: another version of the code may read them in another one."""
    _, _, old, (parts, takes, deadline_ns, parallel) = record
    if old is plan:
        return Inputs(parts, takes, deadline_ns, parallel)
    known = {(read.part.source, read.name): value for read, value in zip(old.parts, parts, strict=True)}
    brought = {slot.name: value for slot, value in zip(old.takes, takes, strict=True)}
    wanted = [(read.part.source, read.name) for read in plan.parts]
    missing = [(f"{source} {name}", "was not recorded") for source, name in wanted if (source, name) not in known]
    missing += [(f"slot {slot.name}", "was not recorded") for slot in plan.takes if slot.name not in brought]
    if missing:
        raise InvalidData(missing)
    return Inputs([known[part] for part in wanted], [brought[slot.name] for slot in plan.takes], deadline_ns, parallel)


def _beginnings(records: Sequence[Record]) -> dict[int, int]:
    """Index of a step's first record -> when the step began: its Deadline depends on that, and whether it may begin.

    If none of its records tells, then when the record before was written: it began no sooner, and was not too late.
    """
    began = {r[2].name: r[3][0] for r in records if r[0] in _ANSWERS}
    first: dict[str, int] = {}
    for index, (kind, _, subject, _) in enumerate(records):
        if kind in _ANSWERS or kind == t.PARKED:
            first.setdefault(subject.name, index)
        elif kind == t.ASKED and subject.parent is None:
            first.setdefault(subject.step, index)
    return {index: began.get(name, records[max(0, index - 1)][1]) for name, index in first.items()}


_ANSWERS = frozenset({t.STEP, t.DEFECT, t.FAULT})


def _told(record: Record | None) -> str:
    if record is None:
        return "nothing"
    kind, _, subject, detail = record
    if isinstance(subject, Call):
        return f"{kind} {subject.step}.{subject.ordinal} {subject.effect!r}"
    return f"{kind} {subject} {detail!r}"
