"""Rerun: a run once more in the world that its records know, with other values in its slots, or by other code.

Law: pure, and it knows what was recorded and nothing else. For as long as the run goes the way it went, it is led
through its records; from where it departs, each call is given what was recorded for the same call, in the order in
which it was. What the recorded world has no answer to is left open: nothing is invented.

"The same call" is one of the same step, with the same ordinal, that asks for the same effect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.commands import Breathe, Cancel, Command, Park, Perform, Unwind, Wait
from zerver.core.effects import Outcome, Success
from zerver.core.following import Divergence, Follower, Inputs
from zerver.core.plan import Plan
from zerver.core.saga import Entry, Task
from zerver.core.timeline import Record, Timeline
from zerver.trace.replaying.replay import says_the_same
from zerver.trace.same import same


@attrs.frozen(eq=False)
class Rerun:
    """What a rerun came to.

    records: its own, with times of the recorded ones. divergence: where it first differs from what was recorded; None
    if it nowhere does. calls, signals, task: what the recorded world has no answer to; the run stopped there.
    to_undo: what would have to be undone besides.
    """

    records: tuple[Record, ...]
    divergence: Divergence | None
    calls: tuple[Call, ...] = ()
    signals: tuple[str, ...] = ()
    task: Task | None = None
    to_undo: tuple[Entry, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it stopped for want of an answer."""
        return bool(self.calls or self.signals or self.task)


def rerun(
    plan: Plan,
    timeline: Timeline,
    inputs: Inputs | None = None,
    answers: Mapping[str, Any] | None = None,
    overlook: Collection[str] = (),
) -> Rerun:
    """Run the plan in the recorded world.

    inputs: instead of the recorded ones. answers: what calls give that the records have no answer to, by name, as
    "charge.1". overlook: steps that answer otherwise because they were told to: that is no divergence.

    Raises InvalidData when the plan, of other code, takes an input that was not recorded.
    """
    follower = Follower(plan, timeline, says_the_same, inputs, overlook)
    follower.run(strict=False)
    found = follower.divergence
    if follower.departed and found is not None and found.recorded is None and timeline.ending is None:
        found = found if found.index < len(timeline.records) else None  # the records end before the run did
    elif follower.departed and follower.command is not None:
        world = _World(follower, answers or {})
        world.run()
        records = tuple(_told(follower))
        follower.stop()
        left = world.to_undo() if world.task is not None else ()
        return Rerun(records, found, tuple(world.calls), tuple(world.signals), world.task, left)
    records = tuple(_told(follower))[: len(timeline.records)]
    follower.stop()
    return Rerun(records, found)


def _told(follower: Follower) -> Iterator[Record]:
    """The records, as they are to be told: an edge has answered so only if nothing else happened."""
    for record in follower.records:
        if record[0] != t.ANSWERED or follower.divergence is None:
            yield record


class _World:
    """What was answered to whom; from where the run departs, it answers the machine."""

    def __init__(self, follower: Follower, answers: Mapping[str, Any]) -> None:
        self.follower = follower
        self.machine = follower.machine
        self.recorded = follower.recorded
        self.answers = answers
        self.now = self.machine.records[-1][1] if self.machine.records else 0
        self.machine.clock = lambda: self.now
        self.told: dict[tuple[str, str], list[tuple[int, Record]]] = {}  # by root call, what is left to tell of it
        self.asked: dict[tuple[str, str], Call] = {}
        for index, record in enumerate(self.recorded):
            self._gather(index, record)
        self.calls: list[Call] = []
        self.signals: list[str] = []
        self.task: Task | None = None

    def _gather(self, index: int, record: Record) -> None:
        kind, _, subject, _ = record
        if not isinstance(subject, Call):
            return
        root = _root(subject)
        if kind == t.ASKED and root is subject:
            self.asked.setdefault((root.step, root.ordinal), root)
        elif kind != t.CUT and index >= self.follower.index:  # what was told before was told by the follower
            self.told.setdefault((root.step, root.ordinal), []).append((index, record))

    def run(self) -> None:
        """Answer commands until the run ends, or there is no answer."""
        command = self.follower.command
        while command is not None and not isinstance(command, t.Ending):
            self.follower.command = command
            command = self.answer(command)

    def answer(self, command: Command) -> Command | None:
        machine = self.machine
        if isinstance(command, Breathe):
            return machine.resume(self.now)
        if isinstance(command, Cancel):
            return machine.interrupt(t.Ending("cancelled", reason="the run had ended"))
        if isinstance(command, Park):
            return self._wake(command)
        if isinstance(command, Unwind):
            return self._undo(command.task)
        return self._settle() if isinstance(command, Perform | Wait) else None

    # -- effects --

    def _settle(self) -> Command | None:
        """The call that settled first settles first."""
        pending = list(self._pending())
        known = [(index, call, outcome) for call in pending for index, outcome in self._outcomes(call)]
        if known:
            _, call, outcome = min(known, key=lambda item: item[0])
            self._tell(call)
            return self.machine.settled(call, outcome)
        cut = [call for call in pending if self._was_asked(call)]
        ending = self._ending_from_outside()
        if cut and ending is not None:  # they never answered: the run was ended while it waited for them
            for call in cut:
                self._tell(call)
            return self.machine.interrupt(ending)
        self.calls = pending
        return None

    def _pending(self) -> Iterator[Call]:
        over = {id(r[2]) for r in self.machine.records if r[0] in (t.SETTLED, t.LATE, t.CUT)}
        for kind, _, subject, _ in self.machine.records:
            if kind == t.ASKED and subject.parent is None and id(subject) not in over:
                yield subject

    def _was_asked(self, call: Call) -> bool:
        recorded = self.asked.get((call.step, call.ordinal))
        return recorded is not None and same(recorded.effect, call.effect)

    def _outcomes(self, call: Call) -> Iterator[tuple[int, Outcome[Any]]]:
        """The outcome of a call and when it came, if there is one."""
        if self._was_asked(call):
            for index, (kind, _, subject, detail) in self.told.get((call.step, call.ordinal), ()):
                if kind in (t.SETTLED, t.LATE) and subject.parent is None:
                    yield index, detail
                    return
        name = f"{call.step}.{call.ordinal}"
        if name in self.answers:
            yield len(self.recorded), Success(self.answers[name])

    def _tell(self, call: Call) -> None:
        """Let happen what happened on the way to the call's outcome: attempts, commits, the members of a join."""
        place = (call.step, call.ordinal)
        records = self.told.pop(place, None) if self._was_asked(call) else None
        if records is None:
            if call.effect.kind.access == "write":
                self.machine.committed(call, self.answers.get(f"{call.step}.{call.ordinal}"))
            return
        self.follower.calls[place] = call
        for _, (kind, at, subject, detail) in records:
            self.now = max(self.now, at)
            mine = self.follower.mine(subject)
            if kind == t.COMMITTED:
                self.machine.committed(mine, detail)
            elif kind == t.DOUBTED:
                self.machine.doubted(mine, detail)
            elif kind == t.LOST:
                self.machine.lost(mine, [self.follower.mine(winner) for winner in detail])
            elif kind == t.TURN or (kind in (t.SETTLED, t.LATE) and subject.parent is None):
                continue
            else:
                self.machine.records.append((kind, self.now, mine, detail))

    def _ending_from_outside(self) -> t.Ending | None:
        for kind, at, _, detail in self.recorded:
            if kind == t.ENDING and detail.status in ("deadline", "cancelled"):
                self.now = max(self.now, at)
                return t.Ending(detail.status, reason=detail.reason)
        return None

    # -- signals, and the rollback --

    def _wake(self, command: Park) -> Command | None:
        wanted = {signal for signal, _ in command.until}
        waits = {r[2].name: r[3].signal for r in self.machine.records if r[0] == t.PARKED and r[3].signal in wanted}
        parked: dict[str, str] = {}
        for index, (kind, at, subject, detail) in enumerate(self.recorded):
            if kind == t.PARKED:
                parked[subject.name] = detail.signal
            elif kind in (t.SIGNALLED, t.EXPIRED) and index >= self.follower.index:
                signal = waits.get(subject.name)
                if signal is not None and same(parked.get(subject.name), signal):
                    self.now = max(self.now, at)
                    woken = kind == t.SIGNALLED
                    return self.machine.signalled(signal, detail) if woken else self.machine.expired(signal)
        ending = self._ending_from_outside()
        if ending is not None and any(same(parked.get(name), signal) for name, signal in waits.items()):
            return self.machine.interrupt(ending)
        self.signals = sorted(wanted)
        return None

    def _undo(self, task: Task) -> Command | None:
        call = task.entry.call
        for kind, at, subject, detail in self.recorded:
            if kind in (t.UNDONE, t.GAVE_UP) and (subject.call.step, subject.call.ordinal) == (call.step, call.ordinal):
                if kind == t.GAVE_UP:
                    self.now = max(self.now, at)
                    return self.machine.give_up()
                if detail[0] == task.verb:
                    self.now = max(self.now, at)
                    return self.machine.undone(task, detail[1])
        self.task = task
        return None

    def to_undo(self) -> tuple[Entry, ...]:
        """What else the rollback would look at, the newest first."""
        entries = self.machine.saga.entries
        return tuple(entry for entry in reversed(entries) if entry.state in ("committed", "unknown"))


def _root(call: Call) -> Call:
    while call.parent is not None:
        call = call.parent
    return call
