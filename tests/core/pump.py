"""A runtime without a loop: it settles calls in any order with any outcome, cuts them at any moment, replays records.

All chance comes from the caller's `pick`; what the pump did to the world is in its ledger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.commands import Cancel, Command, Park, Perform, Unwind, Wait
from zerver.core.effects import Failure, Outcome, Success, Unknown
from zerver.core.joins import Join, JoinState
from zerver.core.machine import Machine
from zerver.core.plan import DEADLINE_CELL, Plan
from zerver.core.saga import Entry, Task
from zerver.core.steps import Step
from zerver.errors import EffectError, OutcomeUnknown


class Cells(list[Any]):
    """Cells that refuse a second write, and any write once the run is ending."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.cells)
        self.written: set[int] = set()
        self.machine = machine

    def __setitem__(self, index: Any, value: Any) -> None:
        if index != DEADLINE_CELL:
            if index in self.written:
                raise SlotWrittenTwice(f"cell {index}")
            if any(kind == t.ENDING for kind, *_ in self.machine.records):
                raise SlotWrittenTwice(f"cell {index} after the end")
            self.written.add(index)
        super().__setitem__(index, value)


class SlotWrittenTwice(BaseException):
    """No Exception, so that the machine does not take it for a defect of the step."""


class Ledger:
    """What the pump did to the world, in its own words."""

    def __init__(self) -> None:
        self.performed: list[str] = []  # keys of leaves, in order
        self.unwanted: set[str] = set()  # values that came too late, or from losers
        self.tasks: list[tuple[Task, Outcome[Any] | None]] = []  # the rollback, in order; None: cut by its deadline
        self.gave_up = False
        self.commands: list[Command] = []


class _Leaf:
    """One effect under way. on: the conduct to tell, None for a call of the machine itself."""

    def __init__(self, call: Call, on: _Conduct | None, number: int) -> None:
        self.call = call
        self.on = on
        self.number = number


class _Conduct:
    """A join under way, as `zerver.runtime.joins` conducts it."""

    def __init__(self, call: Call, on: _Conduct | None, number: int) -> None:
        self.call = call
        self.on = on
        self.number = number
        self.hedge = _join(call).rule.name == "hedge"
        self.state = JoinState(_join(call), 1.0)
        self.calls: dict[int, Call] = {}
        self.wakes = 0
        self.doubt = False  # an attempt of a hedge may have happened


def _join(call: Call) -> Join[Any]:
    if not isinstance(call.effect, Join):
        raise TypeError(call)
    return call.effect


class Pump:
    """Drives a machine to its end. pick(n) chooses from range(n): all chance comes from there."""

    def __init__(self, machine: Machine, pick: Callable[[int], int], interrupts: bool = True) -> None:
        self.machine = machine
        self.pick = pick
        self.interrupts = interrupts
        self.ledger = Ledger()
        self.leaves: list[_Leaf] = []
        self.conducts: list[_Conduct] = []

    def run(self, parts: Sequence[Any] = (), takes: Sequence[Any] = ()) -> t.Ending:
        command = self.machine.start(parts, takes)
        for _ in range(10_000):
            self.ledger.commands.append(command)
            if isinstance(command, t.Ending):
                return command
            command = self.answer(command)
        raise RuntimeError("the run does not end")

    def answer(self, command: Command) -> Command:
        machine = self.machine
        if isinstance(command, Perform):
            for call in command.calls:
                self.perform(call, None, 0)
            return self.something()
        if isinstance(command, Wait):
            return self.something()
        if isinstance(command, Park):
            signal, _ = command.until[self.pick(len(command.until))]
            chosen = self.pick(5 if self.interrupts else 4)
            if chosen == 4:
                return machine.interrupt(t.Ending("cancelled", reason="while parked"))
            return machine.expired(signal) if chosen == 3 else machine.signalled(signal, f"value of {signal}")
        if isinstance(command, Cancel):
            if self.leaves and self.pick(3) == 0:  # it had settled in the same moment
                return self.settle(self.leaves.pop(self.pick(len(self.leaves)))) or self.answer(command)
            self.cut_everything()
            return machine.interrupt(t.Ending("cancelled", reason="the run had ended"))
        if not isinstance(command, Unwind):
            raise TypeError(command)
        if self.pick(12) == 0:
            self.ledger.gave_up = True
            self.ledger.tasks.append((command.task, None))
            return machine.give_up()
        outcome = self.undo(command.task)
        self.ledger.tasks.append((command.task, outcome))
        return machine.undone(command.task, outcome)

    def undo(self, task: Task) -> Outcome[Any]:
        error = EffectError("test.undo", "no")
        chosen = self.pick(6)
        if chosen == 0:
            return Failure(error)
        if chosen == 1:
            return Unknown(OutcomeUnknown("test.undo", "maybe"), task.entry.call.key)
        if task.verb == "resolve":
            return Success(f"{task.entry.call.key}") if chosen % 2 else Success(None)
        return Success(None)

    # -- performing --

    def perform(self, call: Call, on: _Conduct | None, number: int) -> None:
        if not isinstance(call.effect, Join):
            self.ledger.performed.append(call.key)
            self.leaves.append(_Leaf(call, on, number))
            return
        conduct = _Conduct(call, on, number)
        self.conducts.append(conduct)
        self.follow(conduct, conduct.state.begin())

    def something(self) -> Command:
        """Something happens: an outcome, a tick, or the end of the run's time."""
        while True:
            if self.interrupts and self.pick(15) == 0:
                status = ("deadline", "cancelled")[self.pick(2)]
                self.cut_everything()
                return self.machine.interrupt(t.Ending(status, reason="from outside"))
            ticking = [conduct for conduct in self.conducts if conduct.wakes]
            if ticking and self.pick(3) == 0:
                conduct = ticking[self.pick(len(ticking))]
                conduct.wakes -= 1
                self.follow(conduct, conduct.state.tick())
                continue
            command = self.settle(self.leaves.pop(self.pick(len(self.leaves))))
            if command is not None:
                return command

    def settle(self, leaf: _Leaf) -> Command | None:
        """A leaf comes to an outcome; the machine's answer if it heard of it."""
        call = leaf.call
        outcome: Outcome[Any]
        chosen = self.pick(8)
        if chosen == 0 or (chosen == 1 and call.effect.kind.access == "read"):
            outcome = Failure(EffectError(call.effect.kind.name, "no"))
        elif chosen == 1:
            outcome = Unknown(OutcomeUnknown(call.effect.kind.name, "maybe"), call.key)
        else:
            outcome = Success(f"<{call.key}>")
        if leaf.on is not None and leaf.on.hedge:
            return self.arrive(leaf.on, leaf.number, outcome)
        self.tell(call, outcome)
        return self.deliver(leaf.on, leaf.number, call, outcome)

    def tell(self, call: Call, outcome: Outcome[Any]) -> None:
        if call.effect.kind.access == "write":
            if isinstance(outcome, Success):
                self.machine.committed(call, outcome.value)
            elif isinstance(outcome, Unknown):
                self.machine.doubted(call, outcome.error)

    def deliver(self, on: _Conduct | None, number: int, call: Call, outcome: Outcome[Any]) -> Command | None:
        if on is None:
            return self.machine.settled(call, outcome)
        return self.arrive(on, number, outcome)

    def arrive(self, conduct: _Conduct, number: int, outcome: Outcome[Any]) -> Command | None:
        conduct.doubt = conduct.doubt or isinstance(outcome, Unknown)
        return self.follow(conduct, conduct.state.arrived(number, outcome))

    def follow(self, conduct: _Conduct, verdict: Any) -> Command | None:
        join = _join(conduct.call)
        if verdict.wake is not None:
            conduct.wakes += 1
        for number in verdict.start:
            member = conduct.call.member(self.machine.run_id, 0 if conduct.hedge else number)
            if conduct.hedge:
                member = conduct.calls.setdefault(0, member)
                self.leaves.append(_Leaf(member, conduct, number))
                if number == 0:
                    self.ledger.performed.append(member.key)
            else:
                conduct.calls[number] = member
                self.perform(member, conduct, number)
        if verdict.outcome is None:
            return None
        self.conducts.remove(conduct)
        outcome = verdict.outcome
        self.cut_below(conduct)
        if conduct.hedge:
            if conduct.doubt and not isinstance(outcome, Success):
                outcome = Unknown(OutcomeUnknown("test.write", "an attempt was cut"), conduct.calls[0].key)
            self.tell(conduct.calls[0], outcome)
        elif join.rule.name != "settle" and len(verdict.winners) < len(join.members):
            self.machine.lost(conduct.call, [conduct.calls[i] for i in verdict.winners])
        return self.deliver(conduct.on, conduct.number, conduct.call, outcome)

    # -- cutting --

    def cut_below(self, conduct: _Conduct) -> None:
        """Cut what still runs under a join that is decided."""
        inside = [leaf for leaf in self.leaves if _under(leaf.on, conduct)]
        self.leaves = [leaf for leaf in self.leaves if leaf not in inside]
        self.conducts = [other for other in self.conducts if other is conduct or not _under(other, conduct)]
        self.cut(inside, conduct)

    def cut_everything(self) -> None:
        inside, self.leaves = self.leaves, []
        self.conducts.clear()
        self.cut(inside, None)

    def cut(self, leaves: Iterable[_Leaf], decided: _Conduct | None) -> None:
        """Each was not sent, may have happened, or had happened in the same moment; a decided hedge tells of itself."""
        hedges: dict[_Conduct, None] = {}
        for leaf in leaves:
            call = leaf.call
            if call.effect.kind.access == "read":
                continue
            chosen = self.pick(3)
            if leaf.on is not None and leaf.on.hedge:
                leaf.on.doubt = leaf.on.doubt or chosen > 0
                hedges[leaf.on] = None
            elif chosen == 1:
                self.machine.doubted(call, OutcomeUnknown("test.write", "cut"))
            elif chosen == 2:
                value = f"<late {call.key}>"
                self.ledger.unwanted.add(value)
                self.machine.committed(call, value)
        for hedge in hedges:
            if hedge.doubt and hedge is not decided:
                self.machine.doubted(hedge.calls[0], OutcomeUnknown("test.write", "cut"))


def _under(conduct: _Conduct | None, ancestor: _Conduct) -> bool:
    while conduct is not None:
        if conduct is ancestor:
            return True
        conduct = conduct.on
    return False


# ---- the replay -----------------------------------------------------------------------------


def replay(
    plan: Plan, run_id: str, source: Sequence[t.Record], takes: Sequence[Any], deadline_ns: int | None
) -> Machine:
    """Feed the events that are in the records to a fresh machine, at the times that are in the records."""
    records: list[t.Record] = [source[0]]  # "received" is the runtime's word, not the machine's
    machine = Machine(plan, run_id, _Stamps(source, records), records, deadline_ns)
    calls: dict[tuple[str, str], Call] = {}

    def call(recorded: Call) -> Call:
        """The new run's call that stands where the recorded one stood."""
        place = (recorded.step, recorded.ordinal)
        if place not in calls:
            parent = recorded.parent
            if parent is None:
                raise RuntimeError(f"{recorded.name} was not asked for again")
            calls[place] = call(parent).member(run_id, int(recorded.ordinal.rpartition(".")[2]))
        return calls[place]

    command = machine.start((), takes)
    while len(records) < len(source):
        if isinstance(command, Perform):
            calls |= {(asked.step, asked.ordinal): asked for asked in command.calls}
        kind, _, subject, detail = source[len(records)]
        answer: Command | None = None
        match kind:
            case t.SETTLED | t.LATE:
                answer = machine.settled(call(subject), detail)
            case t.COMMITTED:
                machine.committed(call(subject), detail)
            case t.DOUBTED:
                machine.doubted(call(subject), detail)
            case t.LOST:
                machine.lost(call(subject), [call(winner) for winner in detail])
            case t.ENDING:
                answer = machine.interrupt(detail)
            case t.CUT:
                answer = machine.interrupt(t.Ending("cancelled", reason=detail))
            case t.SIGNALLED:
                answer = machine.signalled(_signal_of(source, subject), detail)
            case t.EXPIRED:
                answer = machine.expired(_signal_of(source, subject))
            case t.UNDONE if isinstance(command, Unwind):
                answer = machine.undone(command.task, detail[1])
            case t.GAVE_UP:
                answer = machine.give_up()
            case t.ENDED if isinstance(command, Unwind):  # given up, and what was left may stay as it is
                answer = machine.give_up()
            case _:
                raise RuntimeError(f"the replay has come to {plain(records)[-3:]}, and not to {kind} {subject}")
        command = answer or command
    return machine


class _Stamps:
    """A clock that gives each record the time it had, and each step the time it began, as its answer says."""

    def __init__(self, source: Sequence[t.Record], records: list[t.Record]) -> None:
        self.source = source
        self.records = records
        self.asked_at = -1

    def __call__(self) -> int:
        at = min(len(self.records), len(self.source) - 1)
        first, self.asked_at = self.asked_at != at, at
        began = self.began(at) if first else None
        before = self.source[at - 1][1] if at else -1
        return began if began is not None and began > before else self.source[at][1]

    def began(self, at: int) -> int | None:
        """When the step of this record began, if that can be known."""
        kind, _, subject, detail = self.source[at]
        if kind in _ANSWERED:
            return int(detail[0])
        name = subject.step if kind == t.ASKED else subject.name if kind == t.PARKED else None
        answers = (d[0] for k, _, s, d in self.source[at:] if k in _ANSWERED and s.name == name)
        return next(answers, None)


_ANSWERED = (t.STEP, t.DEFECT, t.FAULT)


def _signal_of(records: Sequence[t.Record], node: Any) -> str:
    """The newest pause of the step; what parks again was signalled before."""
    parked = [detail.signal for kind, _, subject, detail in records if kind == t.PARKED and subject.name == node.name]
    return str(parked[0])


def plain(records: Iterable[t.Record], times: bool = False) -> list[tuple[object, ...]]:
    """Records in words, so that those of two runs can be compared."""
    return [(kind, *([at] if times else []), _word(subject), _word(detail)) for kind, at, subject, detail in records]


def _word(value: Any) -> object:
    if isinstance(value, Call):
        return value.name
    if isinstance(value, Entry):
        return (value.call.name, value.state)
    if isinstance(value, t.Ending):
        return (value.status, repr(value.value), repr(value.cause), value.reason)
    if isinstance(value, tuple | list):
        return tuple(map(_word, value))
    if isinstance(value, Step | str | int | float | type(None)):
        return value if not isinstance(value, Step) else value.name
    return getattr(value, "name", None) or _without_addresses(repr(value))


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def ledger_values(outcomes: Iterable[object]) -> Iterator[str]:
    """The values of the successes among outcomes."""
    return (outcome.value for outcome in outcomes if isinstance(outcome, Success) and isinstance(outcome.value, str))
