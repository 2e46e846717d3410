"""The request actor: pumps one run's machine until it has ended.

Law: commands come out of the machine, and every command is answered with an event; nothing else decides anything. An
event that makes steps run is told in a turn (`zerver.runtime.turns`); one that only ends things is told at once. One
call alone is performed in place; several at once get a nursery. However the run ends, and whoever cancels it, what
must be undone is undone before this returns, shielded and under a deadline of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeAlias

import trio

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.commands import Breathe, Cancel, Command, Park, Perform, Unwind, Wait
from zerver.core.effects import Failure, Outcome
from zerver.core.machine import Machine
from zerver.core.offload import OffloadKind
from zerver.core.saga import Task
from zerver.core.values import value
from zerver.errors import EffectError, HttpError, InternalError, InvalidData
from zerver.runtime.groups import unwrapped
from zerver.runtime.live import LOST, Run
from zerver.runtime.offload import perform_offloaded
from zerver.runtime.parking import Letter
from zerver.runtime.receipts import Foregone
from zerver.runtime.recovery import Recovered, doubt
from zerver.runtime.turns import Turns


class Worker(Protocol):
    """Who performs what a run asks for: the interpreter, or the run's book in front of it."""

    def perform(self, run: Run, call: Call) -> Coroutine[Any, Any, Outcome[Any]]:
        """Perform a call of a step."""
        ...

    def compensate(self, run: Run, call: Call) -> Coroutine[Any, Any, Outcome[Any]]:
        """Perform a task of the rollback."""
        ...

    async def put_down(self, run: Run, park: Park) -> bool:
        """Put a parked run down, if it is durable. Whether it is nobody's now; else it waits in memory."""
        ...


#: Values in the order of something that a plan lists.
Values: TypeAlias = list[Any] | tuple[Any, ...]

#: Brings the request parts of an admitted run, in the order of its plan: at once, if nothing has to be waited for. May
#: raise InvalidData, HttpError or Foregone.
Reader: TypeAlias = Callable[[], Values | Awaitable[Values]]


_LATE: Final = t.Ending("deadline", reason="the deadline has passed")

_WAIT: Final = Wait()

#: What a reader may raise: the client's doing, or no work for this run.
_UNREADABLE: Final = (InvalidData, HttpError, Foregone)


@value(eq=False)
class Unbegun:
    """A run that has to wait before it begins: for its request parts, or for its turn."""

    given: Values | Awaitable[Values]


def begin(turns: Turns, machine: Machine, parts: Values | Reader, takes: Sequence[Any]) -> Command | Unbegun:
    """Carry an admitted run as far as it goes without waiting: no scope can cut it yet, and there is nothing to undo.

    Raises what ends the program (KeyboardInterrupt), when that is recorded.
    """
    try:
        given = _read(machine, parts) if callable(parts) else parts
        if isinstance(given, (list, tuple)):
            began = turns.take(machine)
            if began >= 0:
                return _start(turns, machine, began, given, takes)
        return given if isinstance(given, t.Ending) else Unbegun(given)
    except BaseException as reason:
        machine.interrupt(t.Ending("cancelled", reason=_why(reason)))
        raise


async def drive(
    worker: Worker, turns: Turns, run: Run, begun: Command | Unbegun, takes: Sequence[Any]
) -> t.Ending | Unwind | Park:
    """Carry a run on from what `begin` came to, to its end; or until it is put down, because it is parked and durable.

    A run whose deadline has passed and that has an `after` is answered before it is rolled back: the rollback's first
    command is given, for the caller to carry on with `unwind`.

    Raises what cancelled the caller (trio.Cancelled, KeyboardInterrupt), after the rollback.
    """
    machine = run.machine
    command: Command = _WAIT
    try:
        with run.scope as scope:
            command = await _start_late(turns, machine, begun.given, takes) if isinstance(begun, Unbegun) else begun
            command = await _forward(worker, turns, run, command)
        if scope.cancelled_caught:
            command = await _left(worker, turns, run)
        if run.after is not None and run.cut is None and isinstance(command, Unwind):
            ending = machine.ending  # a deadline that the machine saw itself, between two steps, is one like any other
            if ending is not None and ending.status == "deadline":
                return command
    except BaseException as reason:  # re-raised below, in every case
        await unwind(worker, run, _interrupt(run, t.Ending("cancelled", reason=_why(reason))))
        raise
    if isinstance(command, Park):
        return command
    return command if isinstance(command, t.Ending) else await unwind(worker, run, command)


async def carry_on(worker: Worker, turns: Turns, run: Run, found: Recovered) -> t.Ending | Park:
    """Carry a run that has lost its process, or was put down, to its end, from where its records end; or until it is
    put down again.

    Raises as `drive`.
    """
    machine = run.machine
    command: Command = found.command
    is_over = machine.ending is not None
    try:
        if not is_over and run.cut is None:
            with run.scope as scope:
                command = await _go_on(worker, turns, run, found)
            if scope.cancelled_caught:
                command = await _left(worker, turns, run, found)
        elif not is_over or found.waiting:  # else it was in the midst of its rollback, which goes on
            command = _interrupt(run, _reason(run), found)
    except BaseException as reason:  # re-raised below, in every case
        await unwind(worker, run, _interrupt(run, t.Ending("cancelled", reason=_why(reason)), found))
        raise
    if isinstance(command, Park) and machine.ending is None:
        return command
    return command if isinstance(command, t.Ending) else await unwind(worker, run, command)


async def _go_on(worker: Worker, turns: Turns, run: Run, found: Recovered) -> Command:
    """Let the lines that had stopped go on, and perform what had not settled."""
    command = found.command
    if found.breathes:
        command = await _breathe(turns, run.machine)
        while isinstance(command, Breathe):
            command = await _breathe(turns, run.machine)
    return await _forward(worker, turns, run, found.again(command))


async def _left(worker: Worker, turns: Turns, run: Run, found: Recovered | None = None) -> Command:
    """The run's scope was cancelled. It is over; or an effect had borrowed the scope, and only its time is over."""
    while (outlived := run.take_back()) is not None:
        with run.scope:
            call, rest = outlived
            return await _forward(worker, turns, run, await _settle(turns, run.machine, call, await rest()))
    return _interrupt(run, _reason(run), found)


def _reason(run: Run) -> t.Ending:
    """Why its scope was cancelled."""
    return run.cut or _LATE


def _interrupt(run: Run, ending: t.Ending, found: Recovered | None = None) -> Command:
    """Every call of the run has been cut. found: writes that nobody has looked at are in doubt."""
    machine = run.machine
    if run.is_left:
        machine.saga.abandon()
    elif found is not None:
        for call in found.doubts():
            machine.doubted(call, doubt(call).error)
    return machine.interrupt(ending)


def _why(reason: BaseException) -> str:
    if isinstance(reason, trio.Cancelled):
        return "the host cancelled it"
    return f"{type(reason).__name__} in the runtime"


def _read(machine: Machine, reader: Reader) -> Values | Awaitable[Values] | t.Ending:
    """Read the request, now that there is a ticket for it."""
    try:
        values = reader()
    except _UNREADABLE as bad:
        return _unread(machine, bad)
    if isinstance(values, (list, tuple)):
        machine.records.append((t.READ, machine.clock(), machine.plan.flow, None))
    return values


def _unread(machine: Machine, bad: Exception) -> t.Ending:
    """What comes of a request that is not read: nothing has been done that could be undone."""
    machine.records.append((t.READ, machine.clock(), machine.plan.flow, None))
    ending = bad.ending if isinstance(bad, Foregone) else t.Ending("failed", cause=bad)
    machine.interrupt(ending)
    return ending


async def _start_late(
    turns: Turns, machine: Machine, given: Values | Awaitable[Values], takes: Sequence[Any]
) -> Command:
    """Read what has to be waited for, and start when it is the run's turn."""
    if isinstance(given, (list, tuple)):
        values = given
    else:
        try:
            values = await given
        except _UNREADABLE as bad:
            return _unread(machine, bad)
        machine.records.append((t.READ, machine.clock(), machine.plan.flow, None))
    began = turns.take(machine)
    if began < 0:
        began = await turns.wait(machine, machine.plan.flow)
    return _start(turns, machine, began, values, takes)


def _start(turns: Turns, machine: Machine, began: int, parts: Values, takes: Sequence[Any]) -> Command:
    """Start the machine, and record with what: the records hold everything that a replay of them needs."""
    given = (parts, takes, machine.deadline_ns, machine.parallel)
    machine.records.append((t.INPUT, began, machine.plan, given))
    try:
        return machine.start(parts, takes)
    finally:
        turns.end(machine, began)


async def _settle(turns: Turns, machine: Machine, call: Call, outcome: Outcome[Any]) -> Command:
    """Tell an outcome when it is the run's turn."""
    began = turns.take(machine)
    if began < 0:
        began = await turns.wait(machine, call)
    try:
        return machine.settled(call, outcome)
    finally:
        turns.end(machine, began)


async def _breathe(turns: Turns, machine: Machine) -> Command:
    """Let others go first."""
    since = machine.clock()
    began = await turns.wait(machine, None)
    try:
        return machine.resume(since)
    finally:
        turns.end(machine, began)


def _perform(worker: Worker, run: Run, call: Call) -> Coroutine[Any, Any, Outcome[Any]]:
    if call.effect.kind.__class__ is OffloadKind:
        return perform_offloaded(run, call)
    return worker.perform(run, call)


async def _forward(worker: Worker, turns: Turns, run: Run, command: Command) -> Command:
    """Perform what the machine asks for, until it wants to unwind or finish."""
    machine = run.machine
    while True:
        if isinstance(command, Perform):
            calls = command.calls
            watch = run.on_wait
            if watch is not None:
                run.on_wait = None
                watch(run)
            if len(calls) == 1:  # as `_settle`, and in this frame because it is what most effects go through
                call = run.alone = calls[0]
                outcome = await _perform(worker, run, call)
                began = turns.take(machine)
                if began < 0:
                    began = await turns.wait(machine, call)
                try:
                    command = machine.settled(call, outcome)
                finally:
                    turns.end(machine, began)
            else:
                command = await _at_once(worker, turns, run, calls)
        elif isinstance(command, Breathe):
            command = await _breathe(turns, machine)
        elif isinstance(command, Park):
            letter = _letter(run, command) if run.found else None
            if letter is None and await _put_down(worker, run, command):
                return command
            command = await _parked(turns, run, command, letter)
        elif isinstance(command, (t.Ending, Unwind)):
            return command
        else:
            raise InternalError(f"run {run.run_id}: {command!r} while nothing is under way")


async def _at_once(worker: Worker, turns: Turns, run: Run, calls: tuple[Call, ...]) -> Command:
    """Perform several calls, and what follows from each, until only one thing is left to do."""
    machine = run.machine
    last: list[Command] = []

    async def carry(call: Call) -> None:
        while True:
            command = await _settle(turns, machine, call, await _perform(worker, run, call))
            while isinstance(command, Breathe):
                command = await _breathe(turns, machine)
            if isinstance(command, Perform):
                call, *others = command.calls
                for other in others:
                    nursery.start_soon(carry, other)
                continue
            if isinstance(command, Cancel):
                nursery.cancel_scope.cancel()
            elif not isinstance(command, Wait):
                last.append(command)
            return

    with unwrapped():
        async with trio.open_nursery() as nursery:
            own, *others = calls  # one needs no task of its own: this one would only wait for it
            for call in others:
                nursery.start_soon(carry, call)
            await carry(own)
    if machine.under_way:
        return machine.interrupt(t.Ending("cancelled", reason="the run had ended"))
    return last[-1]


async def _put_down(worker: Worker, run: Run, park: Park) -> bool:
    """Put a parked run down, if it is durable; who would cancel it waits until that is known (`wait_put_down`)."""
    run.going_down = trio.Event()
    try:
        return await worker.put_down(run, park)
    finally:
        run.going_down.set()
        run.going_down = None


async def _parked(turns: Turns, run: Run, park: Park, letter: Letter | None) -> Command:
    """Wait for a signal, or for the first of them to expire, and tell it. Parked time is not the run's: its deadline is
    moved. letter: what was found of it when the run was taken up.
    """
    machine = run.machine
    came = letter or await _signal(run, park)
    began = turns.take(machine)
    if began < 0:
        began = await turns.wait(machine, run.flow.name)
    try:
        return machine.expired(came[0]) if len(came) == 1 else machine.signalled(*came)
    finally:
        turns.end(machine, began)
        if letter is not None and machine.deadline_ns is not None:
            run.postpone(trio.current_time() + (machine.deadline_ns - run.clock()) / 1e9)


def _letter(run: Run, park: Park) -> Letter | None:
    """What the run has found of a pause that it is parked on; no more of it is left then."""
    names = frozenset(name for name, _ in park.until)
    for letter in run.found:
        if letter[0] in names:
            run.found = tuple(other for other in run.found if other is not letter)
            return letter
    return None


async def _signal(run: Run, park: Park) -> Letter:
    """The name and value of a signal that came, or the name of the one that did not come in time."""
    names = frozenset(name for name, _ in park.until)
    run.awaited = names - {name for name, _ in run.inbox}
    first, until_ns = min(park.until, key=lambda item: item[1])
    remaining = run.deadline - trio.current_time()
    run.postpone(float("inf"))
    wake = run.wake = trio.Event()
    try:
        if not run.inbox:
            with run.admission.parked(run.ticket), trio.move_on_after(max(0.0, (until_ns - run.clock()) / 1e9)):
                await wake.wait()
        while run.inbox:
            (name, value), *rest = run.inbox
            run.inbox = tuple(rest)
            if name in names:
                return name, value
        return (first,)
    finally:
        run.wake = None
        run.postpone(trio.current_time() + remaining)


async def unwind(worker: Worker, run: Run, command: Command) -> t.Ending:
    """Perform the rollback, shielded: only its own deadline ends it."""
    machine = run.machine
    run.awaited = frozenset()
    if not isinstance(command, t.Ending):
        ends = trio.current_time() + run.flow.undo_deadline
        try:
            with trio.CancelScope(shield=True, deadline=ends):
                while isinstance(command, Unwind):
                    if run.may_undo is not None and not await run.may_undo():
                        run.stop(LOST)
                        command = _interrupt(run, LOST)
                        continue
                    outcome = await _undo(worker, run, command.task)
                    command = _interrupt(run, _reason(run)) if run.is_left else machine.undone(command.task, outcome)
        except BaseException:  # the program ends in the middle of it: what is left is unresolved, and must be told
            machine.give_up()
            raise
        if not isinstance(command, t.Ending):
            command = machine.give_up()
    if not isinstance(command, t.Ending):
        raise InternalError(f"run {run.run_id}: {command!r} instead of an end")
    return command


async def _undo(worker: Worker, run: Run, task: Task) -> Outcome[Any]:
    """Perform one task; one that cannot even be tried must not keep the others from being undone."""
    asked = task.entry.call
    try:
        return await worker.compensate(run, Call(run.run_id, asked.step, f"{asked.ordinal}.{task.verb}", task.effect))
    except Exception as defect:
        return Failure(EffectError(task.effect.kind.name, f"{type(defect).__name__}: {defect}", defect))
