"""The machine: what a run does next, given what has happened. Sans I/O, as h11 is.

Law: events go in as method calls, one command comes out; in between, pure steps run and records are appended. The
machine owns a run's cells, its saga and its place in the plan, knows no clock but the one it is given, and never waits.

    event                                   may answer
    start(inputs)                           Perform | Breathe | Park | Unwind | Ending
    settled(call, outcome)                  Perform | Breathe | Wait | Cancel | Park | Unwind | Ending
    resume(since)                           the same: the run has breathed, and has a turn again
    interrupt(ending)                       Unwind | Ending       the pump has cut every call that was under way
    signalled(signal, value), expired(...)  Perform | Breathe | Park | Unwind | Ending
    undone(task, outcome)                   Unwind | Ending
    give_up()                               Ending
    committed, doubted, lost                nothing: they are news for the saga, told while a call is under way

No step begins past the run's deadline, or past the end of its slice of a turn: between two steps is the only place
where pure code can be made to stop. Replay feeds recorded events to the same machine; crash recovery is a replay that
continues.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

from zerver.core import timeline as t
from zerver.core.agenda import Agenda
from zerver.core.calls import Call
from zerver.core.commands import Breathe, Cancel, Command, Park, Perform, Unwind, Wait
from zerver.core.decisions import DECISIONS, Continue, Done, Fail, Insert, Need, Pause, Replace
from zerver.core.effects import Effect, Outcome, deliver
from zerver.core.impure import impure
from zerver.core.pauses import Pauses
from zerver.core.places import Activation, At, Gate
from zerver.core.plan import DEADLINE_CELL, UNWRITTEN, BlockNode, BranchNode, DagNode, ForkNode, Plan, StepNode
from zerver.core.replan import spliced, still_to_run, to_drop
from zerver.core.saga import Entry, Saga, Task
from zerver.core.signals import fitted, wanted
from zerver.core.slots import time_left
from zerver.core.turns import PACES, Pace
from zerver.errors import DefinitionError, EffectError, InternalError, InvalidData

_WAIT = Wait()
_BREATHE = Breathe()
_CANCEL = Cancel()
_DECISIONS = frozenset(DECISIONS)

#: A time (ns) that no clock comes to: the slice of a run that nobody wants to breathe.
FAR: Final = 1 << 62


class Machine:
    """One run of one plan.

    clock: nanoseconds, monotonic. parallel: how many members of its forks and dags may be under way at once.

    Kept by whoever gives it turns: pace, how these go; slice_ns, when a step is to wait for the next one, on the same
    clock; cpu_ns, what they took so far; waited_ns, for how long it waited for them.
    """

    __slots__ = (
        "_agenda", "_names", "_pauses", "_ready", "_saga", "_waiting", "cells", "clock", "cpu_ns", "deadline_ns",
        "ending", "finished", "pace", "parallel", "plan", "records", "run_id", "slice_ns", "waited_ns",
    )  # fmt: skip

    def __init__(
        self,
        plan: Plan,
        run_id: str,
        clock: Callable[[], int],
        records: list[t.Record],
        deadline_ns: int | None = None,
        parallel: int | None = None,
        pace: Pace = PACES["default"][0],
    ) -> None:
        self.plan = plan
        self.run_id = run_id
        self.clock = clock
        self.records = records
        self.deadline_ns = deadline_ns
        self.parallel = parallel
        self.cells: list[Any] = [UNWRITTEN] * plan.size
        self.pace = pace
        self.slice_ns = FAR
        self.cpu_ns = self.waited_ns = 0
        self.finished = False
        self.ending: t.Ending | None = None  # known from the ENDING record on, before the rollback
        self._agenda: Agenda | None = None  # most runs are one line, and need none
        self._saga: Saga | None = None  # nor do they write
        self._pauses: Pauses | None = None  # or wait for a signal
        self._ready: tuple[Call, ...] = ()
        self._waiting: dict[Call, Activation] = {}
        self._names: dict[str, int] | None = None  # of steps, once the plan has changed

    # -- events --

    def start(self, parts: Sequence[Any] = (), takes: Sequence[Any] = ()) -> Command:
        """Begin. parts: values in the order of `plan.parts`. takes: values in the order of `plan.takes`."""
        cells, plan = self.cells, self.plan
        if parts or plan.part_cells:
            for cell, value in zip(plan.part_cells, parts, strict=True):
                cells[cell] = value
        if takes or plan.takes:
            for slot, value in zip(plan.takes, takes, strict=True):
                cells[plan.slots[slot.name]] = value
        self._walk(At(plan.line, None, None))
        return self._command()

    def settled(self, call: Call, outcome: Outcome[Any]) -> Command:
        """A call that was to be performed came to its outcome."""
        activation = self._waiting.pop(call)
        if self.ending is not None:
            self.records.append((t.LATE, self.clock(), call, outcome))
            self._drop(call, activation)
            return self._command()
        self.records.append((t.SETTLED, self.clock(), call, outcome))
        value, error = deliver(call.effect, outcome)
        return self._go_on(self._resume(activation, value, error))

    def resume(self, since_ns: int) -> Command:
        """A turn has come for a run that was to breathe. since_ns: from when on it waited for it."""
        ahead = self._lines.ahead
        if not ahead:  # another event of the run has carried it on
            return _WAIT
        place = ahead.pop()
        self.records.append((t.TURN, self.clock(), place.line[place.at], since_ns))
        return self._go_on(place)

    def committed(self, call: Call, value: object) -> None:
        """A write has happened; told by the runtime the moment it knows, before the call is settled."""
        self.records.append((t.COMMITTED, self.clock(), call, value))
        if call.effect.compensation is not None:
            self.saga.committed(call, value)

    def doubted(self, call: Call, error: EffectError | None) -> None:
        """A write may have happened, and will not be tried again."""
        self.records.append((t.DOUBTED, self.clock(), call, error))
        self.saga.doubted(call, error)

    def lost(self, join: Call, winners: Sequence[Call]) -> None:
        """A join is decided: what its other members wrote is not wanted."""
        self.records.append((t.LOST, self.clock(), join, tuple(winners)))
        self.saga.lost(join, frozenset(winners))

    def interrupt(self, ending: t.Ending) -> Command:
        """The calls under way have been cut: because of `ending`, or because the machine said Cancel."""
        self._end(ending)
        for call, activation in self._waiting.items():
            self.records.append((t.CUT, self.clock(), call, ending.reason or ending.status))
            self._drop(call, activation)
        self._waiting.clear()
        self._ready = ()  # a step may have been interrupted itself, before what others asked for was handed out
        return self._command()

    def signalled(self, signal: str, value: object) -> Command:
        """The signal that the run was parked on has come. Raises KeyError when it is parked on no such signal."""
        activation, pause = self._woken(t.SIGNALLED, signal, value)
        try:
            value = fitted(value, wanted(activation.node, pause))
        except InvalidData as bad:  # who gave it was not told, since nobody there had the code
            self._end(t.Ending("failed", cause=bad))
            return self._command()
        if pause.resume is not None:
            activation.resume = pause.resume
            return self._go_on(self._resume(activation, value, None))
        return self._go_on(self._answer(activation, value))

    def check_signal(self, signal: str, value: object, where: str = "value") -> None:
        """Raise InvalidData for a value that the step which is parked on this signal could not take, if one is."""
        if self._pauses is not None:
            self._pauses.check(signal, value, where)

    def expired(self, signal: str) -> Command:
        """The signal has not come in time."""
        activation, pause = self._woken(t.EXPIRED, signal, None)
        decision = Fail("expired", signal) if pause.expired is None else pause.expired
        return self._go_on(self._answer(activation, decision))

    def undone(self, task: Task, outcome: Outcome[Any]) -> Command:
        """A task of the rollback came to its outcome."""
        entry = self.saga.done(task, outcome)
        self.records.append((t.UNDONE, self.clock(), entry, (task.verb, outcome)))
        return self._command()

    def give_up(self) -> Command:
        """The time for the rollback is over: what is left of it is unresolved."""
        for entry in self.saga.give_up(failing=self.ending is not None and self.ending.status != "done"):
            self.records.append((t.GAVE_UP, self.clock(), entry, None))
        return self._command()

    @property
    def saga(self) -> Saga:
        """What the run has written, and what of it is to be undone."""
        if self._saga is None:
            self._saga = Saga()
        return self._saga

    @property
    def unresolved(self) -> tuple[Entry, ...]:
        """Writes of which nobody can say that they are right."""
        return self._saga.unresolved if self._saga is not None else ()

    @property
    def under_way(self) -> tuple[Call, ...]:
        """The calls that have neither settled nor been cut."""
        return tuple(self._waiting)

    # -- what is next --

    def _go_on(self, place: At | None) -> Command:
        """Walk on from a place, or else from where a step was stopped that another event has not yet carried on."""
        if place is not None or (self._agenda is not None and self._agenda.ahead):
            self._walk(place)
        return self._command()

    @property
    def _lines(self) -> Agenda:
        if self._agenda is None:
            self._agenda = Agenda(self.parallel)
        return self._agenda

    def _command(self) -> Command:
        if self.ending is None:
            if self._agenda is not None and self._agenda.ahead:
                return _BREATHE
            if self._ready:
                calls, self._ready = self._ready, ()
                return Perform(calls)
            if self._waiting:
                return _WAIT
            if self._pauses:
                self._pauses.idle_since = self.records[-1][1]
                return Park(self._pauses.until)
            self._end(t.Ending("done", self.plan.given(self.cells)))
        if self._ready:  # asked for in the same breath as the run ended: never performed
            for call in self._ready:
                self._close(self._waiting.pop(call))
            self._ready = ()
        return _CANCEL if self._waiting else self._unwind()

    def _unwind(self) -> Command:
        ending = self.ending
        if ending is None:
            raise InternalError("a run is unwound that has not ended")
        saga = self._saga
        if saga is not None:
            task = saga.next_task(failing=ending.status != "done")
            if task is not None:
                self.records.append((t.UNDO, self.clock(), task.entry, task.verb))
                return Unwind(task)
        if not self.finished:
            self.finished = True
            now = self.records[-1][1]  # with nothing to undo it has ended when it was over: a moment ago
            if saga is not None:
                for entry in saga.unresolved:
                    self.records.append((t.UNRESOLVED, self.clock(), entry, entry.error))
                now = self.clock()
            self.records.append((t.ENDED, now, self.plan.flow, ending))
        return ending

    def _end(self, ending: t.Ending, at: int | None = None) -> None:
        """at: when it was recorded why."""
        if self.ending is None:  # the first reason stands; what comes later comes of it
            self.ending = ending
            self.records.append((t.ENDING, self.clock() if at is None else at, self.plan.flow, ending))
            if self._pauses is not None:
                for activation in self._pauses:
                    self._close(activation)
                self._pauses.clear()
            if self._agenda is not None:
                self._agenda.clear()

    # -- walking the plan --

    def _walk(self, place: At | None) -> None:
        """Run nodes from here until everything waits, the turn has been long enough, or the run has ended."""
        cells, records, clock = self.cells, self.records, self.clock
        stop, deadline = self.slice_ns, self.deadline_ns
        if deadline is not None and deadline < stop:
            stop = deadline
        while True:
            if place is None:
                if self._agenda is None or self.ending is not None:
                    return None
                place = self._agenda.next()
                if place is None:
                    return None
            line, at = place.line, place.at
            end = len(line)
            while at < end:  # and it is left where the run may go on in another line than this one
                node = line[at]
                place.at = at = at + 1
                if type(node) is not StepNode:
                    place = self._enter(node, place)
                    break
                began = clock()
                if began >= stop:
                    return self._stopped(node, place)
                if node.wants_deadline:
                    cells[DEADLINE_CELL] = time_left(began, self.deadline_ns, place.until_ns)
                try:
                    answer = node.call(cells)
                except Exception as defect:
                    return self._raised(node, began, defect)
                if node.is_async:
                    activation = Activation(node, place, began)
                    activation.coroutine = answer
                    place = self._resume(activation, None, None)
                    break
                if answer.__class__ in _DECISIONS:
                    if not self._decide(node, place, began, answer):
                        place = None
                    break
                write = node.write
                if write >= 0 and (answer is not None or not node.required):
                    cells[write] = answer
                    records.append((t.STEP, clock(), node, (began, answer)))
                elif write == -1 and answer is None:
                    records.append((t.STEP, clock(), node, (began, answer)))
                elif not self._write(node, began, answer):
                    return None
            else:
                place = self._lines.leave(place) if isinstance(place.parent, Gate) else place.parent

    def _stopped(self, node: StepNode, place: At) -> None:
        """A step may not begin now: its run is out of time, or it is for others to go first."""
        now = self.clock()
        if self.deadline_ns is not None and now >= self.deadline_ns:
            self._end(t.Ending("deadline", reason="the deadline has passed"), now)
        else:
            place.at -= 1
            self.records.append((t.BREATH, now, node, None))
            self._lines.ahead.append(place)

    def _enter(self, node: Any, place: At) -> At | None:
        """Go into a node that is no step; None when the agenda says where to go on, or the run has ended."""
        if isinstance(node, BranchNode):
            began = self.clock()
            if node.wants_deadline:
                self.cells[DEADLINE_CELL] = time_left(began, self.deadline_ns, place.until_ns)
            try:
                answer = node.ask(self.cells)
            except Exception as defect:
                self._raised(node, began, defect)
                return None
            self.records.append((t.BRANCH, began, node, answer))
            return At(node.then if answer else node.otherwise, place, place.until_ns)
        if isinstance(node, BlockNode):
            # The last record's time, not the clock's: a replay has the records only, and must come to the same end.
            until = (self.records[-1][1] if self.records else self.clock()) + node.deadline_ns
            return At(node.line, place, until if place.until_ns is None else min(until, place.until_ns))
        if isinstance(node, (ForkNode, DagNode)):
            self._lines.enter(Gate(node, place))
            return None
        if self._saga is not None:
            self._saga.pass_pivot()
        self.records.append((t.PIVOT, self.clock(), node, None))
        return place

    # -- steps that wait --

    def _resume(self, activation: Activation, value: object, error: EffectError | None) -> At | None:
        """Carry a waiting step on with what it waited for: where the run goes on, if this was the end of its wait."""
        try:
            if activation.coroutine is None:
                if error is not None:
                    raise error
                if activation.resume is None:
                    raise InternalError(f"{activation.node.name} waits for nothing")
                answer = activation.resume(value)
                if inspect.iscoroutine(answer):
                    activation.coroutine = answer
                    return self._resume(activation, None, None)
            else:
                asked = activation.coroutine.send(value) if error is None else activation.coroutine.throw(error)
                if isinstance(asked, Effect):
                    self._ask(activation, asked)
                    return None
                raise impure(activation)
        except StopIteration as stop:
            answer = stop.value
        except EffectError as fault:
            now = self.clock()
            self.records.append((t.FAULT, now, activation.node, (activation.began, fault)))
            self._end(t.Ending("failed", cause=fault), now)
            return None
        except Exception as defect:
            self._close(activation)
            self._raised(activation.node, activation.began, defect)
            return None
        return self._answer(activation, answer)

    def _answer(self, activation: Activation, answer: object) -> At | None:
        """A step that had waited has answered: where the run goes on behind it."""
        node, place, began = activation.node, activation.place, activation.began
        goes_on = (
            self._decide(node, place, began, answer, activation)
            if answer.__class__ in _DECISIONS
            else self._write(node, began, answer)
        )
        return place if goes_on else None

    def _ask(self, activation: Activation, effect: Effect[Any]) -> None:
        activation.ordinal += 1
        name, until_ns = activation.node.name, activation.place.until_ns
        call = Call(self.run_id, name, str(activation.ordinal), effect, None, until_ns)
        self.records.append((t.ASKED, self.clock(), call, None))
        self._waiting[call] = activation
        self._ready += (call,)

    def _drop(self, call: Call, activation: Activation) -> None:
        """The step will never see what the call came to: what it wrote is not wanted, even in a run that is done."""
        if self._saga is not None:
            self._saga.lost(call, frozenset())
        self._close(activation)

    def _close(self, activation: Activation) -> None:
        """Drop a waiting step: its `finally` blocks run, and what they raise is no news any more."""
        if activation.coroutine is not None:
            try:
                activation.coroutine.close()
            except Exception as defect:  # the run is over already, and has a better reason than this
                self.records.append((t.DEFECT, self.clock(), activation.node, (activation.began, defect)))

    # -- answers --

    def _decide(
        self, node: StepNode, place: At, began: int, decision: Any, activation: Activation | None = None
    ) -> bool:
        """Act on a decision; True when the line goes on."""
        kind = decision.__class__
        if kind is Done or kind is Fail:
            now = self.clock()
            self.records.append((t.STEP, now, node, (began, decision)))
            self._end(t.Ending("done", decision.value) if kind is Done else t.Ending("failed", cause=decision), now)
            return False
        if kind is Continue:
            return self._write(node, began, decision.value)
        if kind is Need or kind is Pause:
            activation = activation or Activation(node, place, began)
            activation.coroutine = None
            if kind is Need:
                activation.resume = decision.resume
                self._ask(activation, decision.effect)
            else:
                self._park(activation, decision)
            return False
        return self._write(node, began, decision.value) and self._replan(node, place, began, decision)

    def _write(self, node: StepNode, began: int, answer: Any) -> bool:
        """Write a step's value to its slots; True when it fits them."""
        misfit = node.put(self.cells, answer)
        if misfit:
            self._raised(node, began, TypeError(misfit))
            return False
        self.records.append((t.STEP, self.clock(), node, (began, answer)))
        return True

    def _park(self, activation: Activation, pause: Pause) -> None:
        if self._pauses is None:
            self._pauses = Pauses()
        clash = self._pauses.clash(self.plan.flow, pause)
        if clash is not None:
            return self._raised(activation.node, activation.began, clash)
        now = self.clock()
        self._pauses.begin(activation, pause, now)
        self.records.append((t.PARKED, now, activation.node, pause))
        return None

    def _replan(self, node: StepNode, place: At, began: int, decision: Insert | Replace) -> bool:
        written, waiting = self.plan.written(self.cells), (*self._waiting.values(), *(self._pauses or ()))
        self._names = self._names or {}
        try:
            dropped = to_drop(self.plan.flow, node.name, place) if isinstance(decision, Replace) else ()
            rest = () if dropped else still_to_run(place, waiting, self._lines)
            self.plan, line = spliced(self.plan, node.name, decision.stages, written, rest, self._names)
        except DefinitionError as defect:
            self._raised(node, began, defect)
            return False
        self.cells.extend([UNWRITTEN] * (self.plan.size - len(self.cells)))
        self.records.append((t.PLAN, self.clock(), node, (decision.__class__.__name__.lower(), [n.name for n in line])))
        for at in dropped:
            at.line = at.line[: at.at]
        place.line = (*place.line[: place.at], *line, *place.line[place.at :])
        return True

    def _woken(self, kind: str, signal: str, value: object) -> tuple[Activation, Pause]:
        """Parked time is not the run's: its deadline, and those of the nested flows around, are later by so much."""
        now = self.clock()
        activation, pause, idle = (self._pauses or Pauses()).end(signal, now)
        self.records.append((kind, now, activation.node, value))
        if self.deadline_ns is not None:
            self.deadline_ns += idle
        return activation, pause

    def _raised(self, node: Any, began: int, defect: Exception) -> None:
        now = self.clock()
        self.records.append((t.DEFECT, now, node, (began, defect)))
        self._end(t.Ending("defect", cause=defect), now)
