"""Following: a machine that is led through the records of a run of the same code, with nothing performed.

Law: pure. A fresh machine is given the events of the records (inputs, outcomes, signals, cuts, the end from outside) in
their order, and what it records is compared with what was recorded, one record at a time. The same code gives the same
records; other code departs from them at the first step that decides otherwise. A replay shows where that is; crash
recovery goes on from where the records end.

The machine writes some records, the runtime others. An event's record makes the machine write it, and all that follows
from it up to the next event:

    input            start         settled, late     settled       ending, cut    interrupt (if it came from outside)
    committed        committed     doubted, lost     the same      undone         undone
    signalled        signalled     expired           expired       gave_up        give_up
    turn (a node's)  resume        unresolved, ended                give_up (if the rollback was under way)
    retried          try_again

That a run breathed, and that a step did not begin because the deadline had passed, the machine saw on its clock. Here
it sees it on the records': a replay breathes where the run breathed, however long its own steps take.

Records of the runtime alone (received, admitted, any other turn, overrun, attempt, failed, hedged, held, resolved,
answered, recovered, resumed, and what happens to calls inside a join) are no events: they are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import starmap
from typing import Any, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.commands import Command, Unwind
from zerver.core.effects import Effect
from zerver.core.joins import Join
from zerver.core.machine import FAR, Machine
from zerver.core.plan import Plan, StepNode
from zerver.core.retrial import try_again
from zerver.core.saga import Entry
from zerver.core.timeline import Record, Timeline
from zerver.errors import InvalidData

#: Whether what was recorded, and what the machine has recorded in its place, say the same.
Agrees: TypeAlias = Callable[[Record, Record], bool]


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

    @property
    def step(self) -> str:
        """The step that departs; "" when it is none. The replayed side tells, since that is the code at hand; but where
        it lacks what a step said besides its answer, it is at the next step already.
        """
        recorded, replayed = step_of(self.recorded), step_of(self.replayed)
        besides = self.recorded is not None and self.recorded[0] in (t.PLAN, t.DEFECT)
        return recorded if besides and recorded else replayed or recorded

    def __str__(self) -> str:
        """Both sides, calls with their arguments: `recorded asked charge.1 pay(5); replayed asked charge.1 pay(6)`."""
        return f"recorded {_told(self.recorded)}; replayed {_told(self.replayed)}"

    @property
    def names(self) -> str:
        """Both sides without a value, which may be secret: `recorded asked charge.1 pay; replayed asked charge.1 pay,
        with other values`.
        """
        one, other = _named(self.recorded), _named(self.replayed)
        return f"recorded {one}; replayed {other}{', with other values' if one == other else ''}"


#: Written by the runtime only.
_RUNTIMES = frozenset(
    (
        *(
            t.RECEIVED,
            t.ADMITTED,
            t.REFUSED,
            t.READ,
            t.KEYED,
            t.JOB,
            t.INPUT,
            t.OVERRUN,
            t.ATTEMPT,
            t.FAILED,
            t.HEDGED,
            t.HELD,
        ),
        *(t.RESOLVED, t.ANSWERED, t.RECOVERED, t.RESUMED),
    )
)

#: Written by the machine for a step's own calls, by the runtime for calls inside a join.
_SHARED = frozenset({t.ASKED, t.SETTLED, t.LATE, t.CUT})


def _is_runtimes(kind: str, subject: Any) -> bool:
    if kind == t.TURN:
        return not isinstance(subject, StepNode)
    return kind in _RUNTIMES or (kind in _SHARED and subject.parent is not None)


class Follower:
    """A machine that is led through records. calls: the replay's own, by step and ordinal. index: of the recorded
    record that is looked at. divergence: the first one. departed: whether the records could lead no further.
    """

    def __init__(
        self,
        plan: Plan,
        timeline: Timeline,
        agrees: Agrees,
        inputs: Inputs | None = None,
        overlook: Collection[str] = (),
    ) -> None:
        """inputs: instead of the recorded ones. overlook: steps that answer otherwise because they were told to."""
        self.agrees = agrees
        self.overlook = overlook
        self.timeline = timeline
        self.recorded = timeline.records
        self.index = 0
        self.calls: dict[tuple[str, str], Call] = {}
        self.command: Command | None = None
        self.divergence: Divergence | None = None
        self.departed = False
        self.began = _beginnings(self.recorded)
        self.asked_at = -1
        self.given = inputs or next((fitted(r, plan) for r in self.recorded if r[0] == t.INPUT), None)
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

    def run(self, strict: bool = True) -> None:
        """Go through the records. strict: stop where one differs; otherwise, only where they can lead no further: what
        a step answered may differ, as long as the run takes the same way and asks for the same.
        """
        for index, record in enumerate(self.recorded):
            self.index = index
            found = self.follow(record)
            if found is None:
                continue
            goes_on = not strict and _goes_the_same_way(found)
            if not (goes_on and found.step in self.overlook):
                self.divergence = self.divergence or found
            if not goes_on:
                self.departed = True
                return
        self.index = len(self.recorded)
        if self.has_gone_on():
            self.divergence = self.divergence or Divergence(self.index, None, self.records[self.index])
            self.departed = True

    def follow(self, record: Record) -> Divergence | None:
        """Let the replay do what the record says; where it does otherwise is the divergence."""
        kind, at, subject, detail = record
        if _is_runtimes(kind, subject):
            if self.has_gone_on():  # the machine has gone on where the recorded one waited
                return Divergence(self.index, record, self.records[self.index])
            if kind == t.INPUT and self.given is not None:
                given = (self.given.parts, self.given.takes, self.given.deadline_ns, self.given.parallel)
                self.records.append((kind, at, self.machine.plan, given))
                self.start()
            else:
                self.records.append((kind, at, self.mine(subject), detail))
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
        if kind == t.ASKED and isinstance(replayed[2], Call):
            self.calls[subject.step, subject.ordinal] = replayed[2]
        return None if self.agrees(record, replayed) else Divergence(self.index, record, replayed)

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
        return self.machine.plan.written(self.machine.cells)

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
        """The time for the rollback was over; with nothing left to give up, what comes of it is the next record."""
        if not isinstance(self.command, Unwind):
            raise _Astray
        return self.machine.give_up()

    def retried(self, record: Record) -> Command:
        return try_again(self.machine, record[3])

    def signal(self, record: Record) -> str:
        for kind, _, subject, detail in reversed(self.records):  # its own: a recorded one may be masked
            if kind == t.PARKED and subject.name == record[2].name:
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

    def mine(self, subject: Any) -> Any:
        """What the subject of a record is here, so that records of one call are about one object."""
        if not isinstance(subject, Call):
            return subject
        try:
            return self.call(subject)
        except (_Astray, IndexError):
            return subject

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


_Feed: TypeAlias = Callable[[Follower, Record], Command | None]

_EVENTS: dict[str, _Feed] = {
    t.SETTLED: Follower.settled,
    t.LATE: Follower.settled,
    t.TURN: Follower.resume,
    t.COMMITTED: Follower.committed,
    t.DOUBTED: Follower.doubted,
    t.LOST: Follower.lost,
    t.ENDING: Follower.ending,
    t.CUT: Follower.cut,
    t.SIGNALLED: Follower.signalled,
    t.EXPIRED: Follower.expired,
    t.UNDONE: Follower.undone,
    t.GAVE_UP: Follower.gave_up,
    t.UNRESOLVED: Follower.gave_up,
    t.ENDED: Follower.gave_up,
    t.RETRIED: Follower.retried,
}


def fitted(record: Record, plan: Plan) -> Inputs:
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


# ---- small questions about records ----------------------------------------------------------


def step_of(record: Record | None) -> str:
    """The step that a record is about, "" if it is about none."""
    subject = None if record is None else record[2]
    if isinstance(subject, Entry):
        subject = subject.call
    if isinstance(subject, Call):
        return subject.step
    return subject.name if isinstance(subject, StepNode) else ""


def _goes_the_same_way(found: Divergence) -> bool:
    """Whether the two sides differ only in what a step answered."""
    one, other = found.recorded, found.replayed
    if one is None or other is None or one[0] != other[0] or step_of(one) != step_of(other):
        return False
    if one[0] == t.ENDING:
        return bool(one[3].status == other[3].status)
    if one[0] == t.PARKED:
        return bool(one[3].signal == other[3].signal)
    return one[0] in (t.STEP, t.FAULT, t.DEFECT, t.BRANCH, t.PLAN, t.ENDED)


def promises(call: Call) -> tuple[bool, ...]:
    """Which ways there are to undo a call. That the functions are the same is more than records can say."""
    how = call.effect.compensation
    return () if how is None else (how.undo is not None, how.by_key is not None, how.resolve is not None)


def _told(record: Record | None) -> str:
    if record is None:
        return "nothing"
    kind, _, subject, detail = record
    if isinstance(subject, Call):
        return f"{kind} {subject.step}.{subject.ordinal} {subject.effect!r}"
    return f"{kind} {subject} {detail!r}"


def _named(record: Record | None) -> str:
    if record is None:
        return "nothing"
    kind, _, subject, _ = record
    about = ".".join(_name(subject))
    return f"{kind} {about} {subject.effect.kind.name}" if isinstance(subject, Call) else f"{kind} {about}"


# ---- what recovery asks of a record ---------------------------------------------------------


def goes_alike(recorded: Record, replayed: Record) -> bool:
    """Whether the run goes the way it went: does the same next, and asks for the same.

    What steps answered is not compared: what matters of it shows in what they ask for. An argument differs when its
    class says so; of one that was read as something else than it is, nobody can say. Precedent: Temporal, which
    compares the commands of a workflow and not its variables.
    """
    kind, _, subject, said = recorded
    if kind != replayed[0] or _name(subject) != _name(replayed[2]):
        return False
    if kind == t.ASKED:
        return _asks_alike(subject.effect, replayed[2].effect) and promises(subject) == promises(replayed[2])
    if kind == t.PARKED:
        return bool(said.signal == replayed[3].signal)
    if kind in (t.ENDING, t.ENDED):
        return bool(said.status == replayed[3].status)
    return kind not in (t.BRANCH, t.PLAN, t.UNDO) or bool(said == replayed[3])


def _name(subject: Any) -> tuple[str, ...]:
    if isinstance(subject, Entry):
        subject = subject.call
    if isinstance(subject, Call):
        return subject.step, subject.ordinal
    return (subject if isinstance(subject, str) else getattr(subject, "name", ""),)


def _asks_alike(recorded: Effect[Any], replayed: Effect[Any]) -> bool:
    if recorded.kind.name != replayed.kind.name or recorded.form != replayed.form:
        return False
    if isinstance(recorded, Join) and isinstance(replayed, Join):
        pairs = zip(recorded.members, replayed.members, strict=False)
        return len(recorded.members) == len(replayed.members) and all(starmap(_asks_alike, pairs))
    return not _contradict((recorded.args, dict(recorded.kwargs)), (replayed.args, dict(replayed.kwargs)))


def _contradict(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) != len(other) or any(starmap(_contradict, zip(one, other, strict=True)))
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(_contradict(one[key], other[key]) for key in one)
    kind: Any = type(one)
    try:
        return kind.__eq__ is not object.__eq__ and bool(one != other)
    except Exception:  # __eq__ is user code
        return False
