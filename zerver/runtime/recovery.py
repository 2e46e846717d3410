"""Recovery: how far a run had come when its process died, and what nobody knows of it.

Law: pure. A fresh machine is led through what was recorded (`zerver.core.following`), and stands where the records end;
nothing is performed, and nothing is guessed. What was asked for and has not settled is asked for again by whoever goes
on with the run, who is told what the records know of it. Code that does not go the way the records went is Astray, and
the run is not advanced by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.commands import Command, Perform, Wait
from zerver.core.effects import Cancelled, Outcome, Success, Unknown
from zerver.core.following import Divergence, Follower, goes_alike
from zerver.core.machine import Machine
from zerver.core.plan import Plan
from zerver.core.timeline import Ending, Record, Timeline
from zerver.errors import InvalidData, OutcomeUnknown

#: What a run comes to that is not to go on after a crash.
CRASHED: Final = Ending("cancelled", reason="the process crashed")


class Astray(Exception):
    """The code does not go the way that was recorded, or the records are not those of a run that had begun. The message
    has no values in it.

    divergence: where it departs, with all values; records: of the code, up to there.
    """

    def __init__(self, message: str, divergence: Divergence | None = None, records: Sequence[Record] = ()) -> None:
        super().__init__(message)
        self.divergence = divergence
        self.records = tuple(records)


@attrs.frozen(eq=False)
class Known:
    """What is known of a call that has not settled. outcome: None while nobody knows what came of it."""

    call: Call
    outcome: Outcome[Any] | None

    @property
    def in_doubt(self) -> bool:
        """Whether it is a write that may have happened."""
        return self.outcome is None and self.call.effect.kind.access == "write"


@attrs.frozen(eq=False)
class Recovered:
    """A run, where its records end.

    command: what the machine wanted then. waiting: the calls of steps that had not settled. breathes: whether a line of
    it had stopped for others to go first. known: by step and ordinal, members of joins included.
    """

    machine: Machine
    command: Command
    waiting: tuple[Call, ...]
    breathes: bool
    known: dict[tuple[str, str], Known]

    def doubts(self) -> list[Call]:
        """Writes that may have happened: what must be told to the saga if the run does not go on."""
        return [one.call for one in self.known.values() if one.in_doubt]

    def again(self, command: Command) -> Command:
        """The command, and all that has not settled with it."""
        if not self.waiting or not isinstance(command, Perform | Wait):
            return command
        asked = command.calls if isinstance(command, Perform) else ()
        return Perform(tuple(dict.fromkeys((*self.waiting, *asked))))


def recover(plan: Plan, timeline: Timeline, *, to_undo: bool = False) -> Recovered:
    """Lead a machine through the records. to_undo: the run is not to go on; then code that departs from the records
    will do, if no write was asked for behind that place.

    Raises Astray.
    """
    records = timeline.records
    try:
        follower = Follower(plan, timeline, goes_alike)
    except InvalidData as missing:
        raise Astray(str(missing)) from missing
    follower.run()
    found, command = follower.divergence, follower.command
    if command is None:
        raise Astray("its records end before it had begun")
    if found is not None and found.index < len(records) and not (to_undo and _is_harmless(records[found.index :])):
        follower.stop()
        raise Astray(found.names, found, follower.records)
    machine = follower.machine
    return Recovered(machine, command, machine.under_way, _breathes(machine.records), _known(machine))


def rebased(records: Sequence[Record], ns: int) -> list[Record]:
    """The records with all times later by so much: each process has a clock of its own."""
    return [(kind, at + ns, subject, _rebased(kind, detail, ns)) for kind, at, subject, detail in records]


def doubt(call: Call) -> Unknown:
    """The outcome of a write that was under way when the process crashed."""
    return Unknown(OutcomeUnknown(call.effect.kind.name, "the process crashed while it was under way"), call.key)


def _rebased(kind: str, detail: Any, ns: int) -> Any:
    if kind == t.INPUT:
        parts, takes, deadline_ns, parallel = detail
        return parts, takes, None if deadline_ns is None else deadline_ns + ns, parallel
    if kind == t.TURN:
        return detail + ns
    if kind in (t.STEP, t.DEFECT, t.FAULT):
        began, answer = detail
        return began + ns, answer
    return detail


def _known(machine: Machine) -> dict[tuple[str, str], Known]:
    """Calls that have not settled, and members of joins that have not. What was asked for in the same breath as the run
    ended was never performed.
    """
    known: dict[tuple[str, str], Known] = {}
    roots = frozenset(machine.under_way)
    for kind, _, call, detail in machine.records:
        if not isinstance(call, Call):
            continue
        place = (call.step, call.ordinal)
        if kind == t.ASKED:
            known[place] = Known(call, None)
        elif kind == t.COMMITTED and place in known:
            known[place] = Known(call, Success(detail))
        elif kind == t.DOUBTED and place in known:
            known[place] = Known(call, Unknown(detail, call.key))
        elif kind in (t.SETTLED, t.LATE, t.CUT) and place in known:
            known[place] = Known(call, Cancelled(detail) if kind == t.CUT else detail)
    return {place: one for place, one in known.items() if _root(one.call) in roots}


def _root(call: Call) -> Call:
    while call.parent is not None:
        call = call.parent
    return call


def _breathes(records: Sequence[Record]) -> bool:
    """Whether a line had stopped before a step, and had not gone on."""
    stopped = 0
    for kind, _, subject, _ in records:
        if kind == t.ENDING:
            return False
        if kind == t.BREATH:
            stopped += 1
        elif kind == t.TURN and not isinstance(subject, str | Call):
            stopped -= 1
    return stopped > 0


def _is_harmless(records: Sequence[Record]) -> bool:
    """Whether nothing was asked for here that could have to be undone."""
    return not any(isinstance(subject, Call) and subject.effect.kind.access == "write" for _, _, subject, _ in records)
