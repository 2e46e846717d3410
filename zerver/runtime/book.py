"""Books: one run's own part of the journal. A durable run's effects go through its book to the interpreter.

Law: whatever of a run can be seen from outside is on the disk first. A write is started only when its intent is there,
with all that led to it, what came of earlier writes included; a read only when what came of these is there; so does a
run end, park or undo. Then whatever a crash takes away can be known again, asked about, or is said to be in doubt.

What came of a write goes to the disk with the next of these, so that a run of n writes waits n + 1 times. Until then
a crash leaves the write in doubt, as one in the midst of it does. Pure steps alone may lie in between, which nobody can
see: what a run knows that waits for anything else (a turn, a thread, another of its lines) the clerk brings to the disk
meanwhile. Reads need no line of their own: they leave nothing behind, and are asked again after a crash.

    Book      durability "sync": waits for the disk at each of these places
    Draft     durability "async": nobody waits; the clerk writes behind what has happened

When the journal does not answer in time, the run is over: what is under way is cut, and it stops where it is. Nothing
is undone before the journal knows that it is to be undone: a process that found only the run's intents would carry it
on, and call done what was taken back. So the clerk has it undone, from its records, when the journal is back. A run
that is another worker's by now stops where it is, too, and is that one's.

A run that has asked for no write has nothing to lose, and is not in the journal at all.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import Any, Final, NoReturn, Protocol

import trio

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.commands import Park
from zerver.core.effects import Failure, Outcome, Success, Unknown
from zerver.core.joins import Join
from zerver.core.plan import Plan
from zerver.core.timeline import Ending
from zerver.errors import (
    EffectRefused,
    InternalError,
    JournalError,
    JournalUnavailable,
    LeaseLost,
    NotKeepable,
    OutcomeUnknown,
)
from zerver.runtime.bounds import Loan
from zerver.runtime.crash import crash_point
from zerver.runtime.groups import unwrapped
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.joins import perform_join
from zerver.runtime.live import AWAY, LOST, Flight, Run
from zerver.runtime.recovery import Known, doubt
from zerver.runtime.sheets import Office, Sheets

#: Seconds that a run waits for the journal: a client hears within one that it cannot be served.
PATIENCE: Final = 0.8


class Bookkeeper(Office, Protocol):
    """What a book needs of the clerk whose it is."""

    def bring(self, book: Book) -> None:
        """What came of a write is known: have it brought to the disk, unless its run goes there at once."""
        ...

    def write_behind(self, draft: Draft) -> None:
        """Write soon what the run has done, until it has ended."""
        ...

    def forget(self, draft: Draft) -> None:
        """It is not to be written."""
        ...

    def owe(self, sheets: Sheets) -> None:
        """The run has ended, and the journal could not be told: tell it when it is back."""
        ...

    def leave(self, sheets: Sheets) -> None:
        """The run has stopped where it was: have it undone when the journal is back."""
        ...


class Draft:
    """A run of durability "async": before it writes, the clerk is told, and nobody waits.

    sheets: None until the clerk has had the time to write. A run that has ended by then, and left nothing open, is not
    written at all: a journal is there for what is under way.
    """

    def __init__(
        self, office: Bookkeeper, run: Run, plan: Plan, interpreter: Interpreter, sheets: Sheets | None = None
    ) -> None:
        """sheets: of a run that was put down, and is taken up."""
        self.run = run
        self.plan = plan
        self.sheets: Sheets | None = sheets
        self.compensate = interpreter.compensate
        self._interpreter = interpreter
        self._office = office
        self._told = sheets is not None
        self._failed = False  # to put it down

    def perform(self, run: Run, call: Call) -> Coroutine[Any, Any, Outcome[Any]]:
        if not self._told and (call.effect.kind.access == "write" or isinstance(call.effect, Join)):
            self._told = True
            self._office.write_behind(self)
        return self._interpreter.perform(run, call)

    async def resume(self) -> None:
        """It goes on: whoever finds it after this must not think that it is parked. Raises JournalError."""
        if self.sheets is not None:
            await self.sheets.deliver()
        self._office.write_behind(self)

    async def put_down(self, run: Run, park: Park) -> bool:
        """What is to be put down is on the disk, whole: this is waited for, though nothing else is."""
        sheets = self.sheets = self.sheets or Sheets(self._office, run, self.plan)
        self._office.forget(self)
        try:
            await _put_down(sheets, park)
        except BaseException as error:
            self._failed = True
            if not isinstance(error, JournalError):
                raise
            if isinstance(error, LeaseLost):
                run.stop(LOST)
            elif isinstance(error, JournalUnavailable) and sheets.begun:  # it may be put down, and is not undone before
                run.stop(AWAY)
            else:
                run.stop(Ending("cancelled", reason=f"it could not be put down: {error}"))
            await trio.lowlevel.checkpoint()
            raise InternalError(f"run {run.run_id} was stopped, and goes on") from error
        return True

    async def close(self) -> bool:
        """The run has ended."""
        if self._failed:
            if self.sheets is not None and self.sheets.begun and self.run.cut is not LOST:
                (self._office.leave if self.run.cut is AWAY else self._office.owe)(self.sheets)
            return True
        if self._told and self.sheets is None and not self.run.machine.unresolved:
            self._office.forget(self)
        return True


class Book:
    """A run of durability "sync".

    known: what its records say of calls that another process had under way, by step and ordinal; taken out of it when
    the call is performed again.
    """

    def __init__(
        self,
        office: Bookkeeper,
        sheets: Sheets,
        interpreter: Interpreter,
        known: dict[tuple[str, str], Known] | None = None,
    ) -> None:
        self.office = office
        self.sheets = sheets
        self.interpreter = interpreter
        self.known = {} if known is None else known
        self.hedge_delay = interpreter.hedge_delay
        self.hold_hedge = interpreter.hold_hedge
        self.resolve = interpreter.resolve
        self._away = False  # the journal has not answered: it is asked no more until the run has ended
        self._noted = self._kept = (
            0  # how often it was known what came of a write, and how many of these are on the disk
        )

    # -- performing --

    def perform(self, run: Run, call: Call) -> Coroutine[Any, Any, Outcome[Any]]:
        known = self.known.pop((call.step, call.ordinal), None) if self.known else None
        if known is not None and known.outcome is not None:
            return _settled(known.outcome)
        if isinstance(call.effect, Join):
            return self._join(run, call, call.effect)
        if call.effect.kind.access == "read":
            return self._read(run, call)
        return self._write(run, call) if known is None else self._take_up(run, call)

    def _read(self, run: Run, call: Call, numbers: Iterator[int] | None = None) -> Coroutine[Any, Any, Outcome[Any]]:
        """A read, or one attempt of a hedged one: it waits for the disk only if what came of a write is not there."""
        if self._kept == self._noted:
            return self.interpreter.fly(run, call, None, None, numbers)
        return self._keep_and_read(run, call, numbers)

    async def _keep_and_read(self, run: Run, call: Call, numbers: Iterator[int] | None) -> Outcome[Any]:
        await self._keep(alone=call is run.alone)
        return await self.interpreter.fly(run, call, None, None, numbers)

    async def _write(self, run: Run, call: Call) -> Outcome[Any]:
        await self._keep(alone=call is run.alone)  # cut here, the write was not started
        crash_point("effect.send")
        try:
            outcome = await self.interpreter.perform(run, call)
        except BaseException:  # by a join that is decided, perhaps: its run goes on, and this may have happened
            self._noted += 1
            raise
        crash_point("effect.reply")
        if isinstance(outcome, Success | Unknown):
            await self._note()
        return outcome

    def fly(
        self, run: Run, call: Call, flight: Flight | None, *, numbers: Iterator[int]
    ) -> Coroutine[Any, Any, Outcome[Any]]:
        """One attempt of a hedge."""
        if flight is None:
            return self._read(run, call, numbers)
        return self._fly(run, call, flight, numbers)

    async def _fly(self, run: Run, call: Call, flight: Flight, numbers: Iterator[int]) -> Outcome[Any]:
        await self._keep()
        crash_point("effect.send")
        outcome = await self.interpreter.fly(run, call, flight, None, numbers)
        crash_point("effect.reply")
        return outcome

    async def _join(self, run: Run, call: Call, join: Join[Any]) -> Outcome[Any]:
        """A join; of one that another process had begun, the members it had asked for are the same calls."""
        members = ((n, self.known.get((call.step, f"{call.ordinal}.{n}"))) for n in range(len(join.members)))
        asked = {n: known.call for n, known in members if known is not None} if self.known else {}
        hedged = join.rule.name == "hedge" and join.members[0].kind.access == "write"
        if hedged and asked:  # its attempts are one write, and whichever was under way has died
            one = asked[0]
            outcome = await self.perform(run, one)
            run.records.append((t.SETTLED, run.clock(), one, outcome))
            return outcome
        try:
            outcome = await perform_join(self, run, call, asked)
        except BaseException:  # as in `_write`
            self._noted += hedged
            raise
        if hedged and isinstance(outcome, Success | Unknown):  # the members of others have noted what came of them
            await self._note()
        return outcome

    async def _take_up(self, run: Run, call: Call) -> Outcome[Any]:
        """A write that was under way when its process died: ask whether it has happened; if nobody says, and its
        handler takes a key, ask for it again with the same one.
        """
        unknown, outcome = doubt(call), None
        try:
            await self._keep()  # whose run is it?
            outcome = await self.interpreter.resolve(run, call, unknown)
            absent = isinstance(outcome, Failure)
            if absent or (isinstance(outcome, Unknown) and call.effect.kind.takes_key):
                crash_point("effect.send")
                outcome = await self.interpreter.fly(run, call, Flight())
                crash_point("effect.reply")
                if isinstance(outcome, Failure) and not absent:  # that says nothing of the first time
                    outcome = _still_unknown(call, outcome)
                if isinstance(outcome, Unknown):
                    outcome = await self.interpreter.resolve(run, call, outcome)
        except BaseException:  # as when a write is cut: it may have happened
            self._noted += 1
            run.machine.doubted(call, unknown.error)
            raise
        if isinstance(outcome, Success):
            run.machine.committed(call, outcome.value)
        elif isinstance(outcome, Unknown):
            run.machine.doubted(call, outcome.error)
        await self._note()
        return outcome

    async def compensate(self, run: Run, call: Call) -> Outcome[Any]:
        """A task of the rollback."""
        try:
            await self._deliver()
        except NotKeepable:
            pass  # the last page will be without the lines
        except JournalError as error:
            run.cut = LOST if isinstance(error, LeaseLost) else AWAY
            return Failure(EffectRefused(call.effect.kind.name, run.cut.reason))
        crash_point("undo.send")
        outcome = await self.interpreter.compensate(run, call)
        crash_point("undo.reply")
        return outcome

    async def put_down(self, run: Run, park: Park) -> bool:
        await self._keep(park)
        return True

    # -- writing --

    async def _note(self) -> None:
        """What came of a write is known: it goes to the disk with what the run does next, or is brought there."""
        self._noted += 1
        try:
            self.sheets.note()
        except NotKeepable as error:
            await self._give_up(error)
        self.office.bring(self)

    async def bring(self) -> None:
        """Have on the disk what lies about, because the run waits for something else: a task of the clerk's."""
        run = self.sheets.run
        if run.is_left or not self.sheets.lies_about:
            return
        try:
            await self._deliver()
        except JournalError as error:
            if run.machine.ending is None:  # else whoever undoes it, or closes this, finds out
                self._stop(error)
        except Exception:  # a defect: the run has it where it writes by itself, and the clerk has others to serve
            return

    async def _keep(self, park: Park | None = None, alone: bool = False) -> None:
        """Have all that has happened so far on the disk. When that cannot be, the run is over, and this is cut. alone:
        its own task waits for this, and for nothing else.
        """
        try:
            await self._deliver(park=park, alone=alone)
        except JournalError as error:
            await self._give_up(error)

    async def _give_up(self, error: JournalError) -> NoReturn:
        self._stop(error)
        await trio.lowlevel.checkpoint()
        raise InternalError(f"run {self.sheets.run.run_id} was stopped, and goes on")

    def _stop(self, error: JournalError) -> None:
        """What has happened cannot be written down: the run is over."""
        run = self.sheets.run
        if isinstance(error, LeaseLost):
            run.stop(LOST)
        elif isinstance(error, NotKeepable):
            run.stop(Ending("defect", cause=error))
        elif self.sheets.begun:
            run.stop(AWAY)
        else:  # nothing has been done
            run.stop(Ending("cancelled", reason=f"it could not be written down: {error}"))

    async def _deliver(self, status: str = "", park: Park | None = None, alone: bool = False) -> None:
        if self._away:
            raise JournalUnavailable("the journal was away before")
        run, ends, noted = self.sheets.run, trio.current_time() + PATIENCE, self._noted
        lent = Loan(run, ends) if alone and ends < run.deadline else None
        try:
            with lent or trio.CancelScope(deadline=ends), unwrapped():  # a journal may have nurseries
                await self.sheets.deliver(status, park)
                if run.is_left:  # as the clerk has found out while this waited, or the run went straight on to here
                    raise LeaseLost(LOST.reason) if run.cut is LOST else JournalUnavailable(AWAY.reason)
                self._kept = max(self._kept, noted)
                if not status and park is None:
                    await self.sheets.make_sure()
                if lent is None or not lent.is_used_up:  # a scope that is lets nothing more pass
                    return
            raise JournalUnavailable(f"the journal has not answered within {PATIENCE:g}s")
        except JournalUnavailable:
            self._away = True
            raise
        except trio.Cancelled:  # what came of other lines, and would have gone with this, is not to lie about
            self.office.bring(self)
            raise

    async def close(self) -> bool:
        """The run has ended: whether the journal knows. If it does not, it is told when it is back."""
        sheets = self.sheets
        if not sheets.begun or sheets.run.cut is LOST:
            return True
        if sheets.run.cut is AWAY:
            self.office.leave(sheets)
            return False
        with trio.CancelScope(shield=True):
            try:
                await self._deliver(sheets.status)
            except LeaseLost:  # how it ends is for another worker to say
                sheets.run.cut = LOST
                return True
            except JournalError:
                self.office.owe(sheets)
                return False
        return True


async def _put_down(sheets: Sheets, park: Park) -> None:
    with trio.move_on_after(PATIENCE):
        return await sheets.deliver(park=park)
    raise JournalUnavailable(f"the journal has not answered within {PATIENCE:g}s")


async def _settled(outcome: Outcome[Any]) -> Outcome[Any]:
    """What the records say came of a call; the saga knows."""
    return outcome


def _still_unknown(call: Call, outcome: Failure) -> Unknown:
    reason = f"it may have happened before the process crashed; asked for again: {outcome.error.reason}"
    return Unknown(OutcomeUnknown(call.effect.kind.name, reason, outcome.error), call.key)
