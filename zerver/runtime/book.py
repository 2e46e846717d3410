"""Books: one run's own part of the journal. A durable run's effects go through its book to the interpreter.

Law: a write is started only when its intent is on the disk, with all that led to it; its outcome is there before any
step hears of it; the run's end is there before its answer leaves. Then whatever a crash takes away can be known again,
asked about, or is said to be in doubt. Reads need no line of their own: the next write's brings them along.

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
from typing import Any, Final, Protocol

import attrs
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
from zerver.runtime.crash import crash_point
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.joins import perform_join
from zerver.runtime.journal import UNRESOLVED, Entry, Journal, Opening, Page, Pen, RunHead, StoredRun
from zerver.runtime.live import AWAY, LOST, Flight, Run
from zerver.runtime.parking import parking
from zerver.runtime.recovery import Known, doubt, rebased

#: Seconds that a run waits for the journal: a client hears within one that it cannot be served.
PATIENCE: Final = 0.8


class Office(Protocol):
    """What a book needs of the clerk whose it is. owner: who has the lease."""

    journal: Journal
    owner: str

    @property
    def holds(self) -> bool:
        """Whether the lease lasts for a while: so long as it takes a write to arrive."""
        ...

    async def renew(self) -> None:
        """Say that this worker lives. Raises JournalUnavailable."""
        ...

    def to_unix(self, at: int) -> int:
        """Wall time (ns) of a time on the runtime's clock."""
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


class Sheets:
    """What of a run is in the journal, and what is not yet. shift: by how much (ns) the times of a run that was begun
    by another process are later here than they stand in its lines.
    """

    def __init__(self, office: Office, run: Run, plan: Plan, stored: StoredRun | None = None, shift: int = 0) -> None:
        self.office = office
        self.run = run
        self.fence = 1 if stored is None else stored.fence
        self.shift = shift
        self.begun = stored is not None  # whether the journal has its head
        self.ended = False  # whether its last page has been made
        self.is_down = False  # whether the page has been made that puts it down
        self.resumes = stored is not None and stored.wakes_unix_ns is not None  # whether the next page takes it up
        self.plan = plan
        self._unsent: Entry | None = None  # written, and not acknowledged: the very same is sent again
        self._pen: Pen | None = None
        self._count = 0  # of records that have lines
        self._turn = trio.Lock()  # members of a join come at once, and one entry follows another
        if stored is not None:
            self._pen = office.journal.notation.pen(run.timeline, self.plan, stored)
            self._count = min(self._pen.count, len(run.records))

    async def deliver(self, status: str = "", park: Park | None = None) -> None:
        """Have all that has happened so far on the disk. status: of a run that has ended. park: of one that is put down
        with this. Raises JournalError.
        """
        journal = self.office.journal
        async with self._turn:
            while (entry := self._unsent or self.next(status, park)) is not None:
                what = _site(entry)
                self._unsent = entry
                crash_point(f"{what}.before")
                try:
                    await journal.write(entry)
                except BaseException as error:
                    if isinstance(entry, Opening):  # the journal takes it back: the run has not begun
                        self._pen, self._count, self.begun, self._unsent = None, 0, False, None
                    elif entry.parked is not None and not isinstance(error, JournalError):
                        # Cut, so it has not been written: what is undone next must not be put down by it first.
                        self._unsent, self.is_down = attrs.evolve(entry, parked=None), False
                    raise
                crash_point(f"{what}.after")
                self._unsent = None

    async def make_sure(self) -> None:
        """See that the run is this worker's still, and for a while: an answer that took its time, or renewals that
        failed, may have cost the lease, and what is sent then nobody expects. Raises JournalError.
        """
        if self.begun and self._pen is not None and not self.office.holds:
            await self.office.renew()
            await self.office.journal.write(Page(self.run.run_id, self.fence, self._pen.count, ()))

    async def retake(self) -> StoredRun | None:
        """The run anew, with all that was to be in the journal when it stopped where it was; None when it is another
        worker's, or over. Raises JournalError.

        The page that got no answer may be there or not, that which puts the run down included: nobody has been told
        where it would go on, so it does not wait for anything.
        """
        run_id, office, unsent = self.run.run_id, self.office, self._unsent
        stored = await office.journal.retake(run_id, office.owner, self.fence)
        if stored is None or unsent is None or not unsent.lines:
            return stored
        await office.journal.write(Page(run_id, stored.fence, _first(unsent), unsent.lines))
        return await office.journal.read(run_id)

    def next(self, status: str = "", park: Park | None = None) -> Entry | None:
        """The next entry; None when all is written. Raises NotKeepable, but not for the last one: that is without the
        lines then.
        """
        run = self.run
        fresh = run.records[self._count :]
        puts_down = park is not None and not self.is_down
        if self.ended or not (fresh or status or puts_down):
            return None
        if self._pen is None:
            self._pen = self.office.journal.notation.pen(run.timeline, self.plan)
        pen, first = self._pen, self._pen.count
        lines: list[bytes] = []
        try:
            lines = pen.lines(rebased(fresh, -self.shift) if self.shift else fresh)
        except NotKeepable:
            if not status or not self.begun:
                raise
        self._count += len(fresh)
        if not self.begun:
            self.begun = True
            return Opening(self._head(), pen.plan_id, pen.plan, lines)
        self.ended = bool(status)
        parked = parking(run.records, park, run.clock()) if park is not None and puts_down else None
        self.is_down, resumes, self.resumes = self.is_down or puts_down, self.resumes, False
        return Page(run.run_id, self.fence, first, lines, status, parked, resumes)

    @property
    def status(self) -> str:
        """What the last page says of the run; "" while it has not ended."""
        machine = self.run.machine
        if machine.unresolved:
            return UNRESOLVED
        return machine.ending.status if machine.finished and machine.ending is not None else ""

    def _head(self) -> RunHead:
        run, timeline, office = self.run, self.run.timeline, self.office
        deadline_ns = run.machine.deadline_ns
        return RunHead(
            run_id=run.run_id,
            flow=timeline.flow,
            version=timeline.version,
            tenant=timeline.tenant,
            priority=timeline.priority,
            began_unix_ns=office.to_unix(run.records[0][1]),
            owner=office.owner,
            label=timeline.label,
            parent=timeline.parent,
            deadline_unix_ns=None if deadline_ns is None else office.to_unix(deadline_ns),
            durability=run.flow.durability,
        )


def _first(entry: Entry) -> int:
    """The number of its first line."""
    return 0 if isinstance(entry, Opening) else entry.first


def _site(entry: Entry) -> str:
    """What the places are called at which a process can be made to die while it writes this."""
    if isinstance(entry, Opening):
        return "begin"
    return "end" if entry.status else "write" if entry.parked is None else "park"


class Draft:
    """A run of durability "async": before it writes, the clerk is told, and nobody waits.

    sheets: None until the clerk has had the time to write. A run that has ended by then, and left nothing open, is not
    written at all: a journal is there for what is under way.
    """

    def __init__(
        self, office: Office, run: Run, plan: Plan, interpreter: Interpreter, sheets: Sheets | None = None
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
        self, sheets: Sheets, interpreter: Interpreter, known: dict[tuple[str, str], Known] | None = None
    ) -> None:
        self.sheets = sheets
        self.interpreter = interpreter
        self.known = {} if known is None else known
        self.hedge_delay = interpreter.hedge_delay
        self.hold_hedge = interpreter.hold_hedge
        self.resolve = interpreter.resolve
        self._away = False  # the journal has not answered: it is asked no more until the run has ended

    # -- performing --

    def perform(self, run: Run, call: Call) -> Coroutine[Any, Any, Outcome[Any]]:
        known = self.known.pop((call.step, call.ordinal), None) if self.known else None
        if known is not None and known.outcome is not None:
            return _settled(known.outcome)
        if isinstance(call.effect, Join):
            return self._join(run, call, call.effect)
        if call.effect.kind.access == "read":
            return self.interpreter.fly(run, call, None)
        return self._write(run, call) if known is None else self._take_up(run, call)

    async def _write(self, run: Run, call: Call) -> Outcome[Any]:
        await self._keep()  # cut here, the write was not started
        crash_point("effect.send")
        outcome = await self.interpreter.perform(run, call)
        crash_point("effect.reply")
        if isinstance(outcome, Success | Unknown):
            await self._keep()
        return outcome

    def fly(
        self, run: Run, call: Call, flight: Flight | None, *, numbers: Iterator[int]
    ) -> Coroutine[Any, Any, Outcome[Any]]:
        """One attempt of a hedge."""
        if flight is None:
            return self.interpreter.fly(run, call, None, None, numbers)
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
        outcome = await perform_join(self, run, call, asked)
        if hedged and isinstance(outcome, Success | Unknown):  # the members of others have kept what came of them
            await self._keep()
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
            run.machine.doubted(call, unknown.error)
            raise
        if isinstance(outcome, Success):
            run.machine.committed(call, outcome.value)
        elif isinstance(outcome, Unknown):
            run.machine.doubted(call, outcome.error)
        await self._keep()
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

    async def _keep(self, park: Park | None = None) -> None:
        """Have all that has happened so far on the disk. When that cannot be, the run is over, and this is cut."""
        run = self.sheets.run
        try:
            return await self._deliver(park=park)
        except LeaseLost:
            run.stop(LOST)
        except NotKeepable as error:
            run.stop(Ending("defect", cause=error))
        except JournalError as error:
            begun = self.sheets.begun  # else nothing has been done
            run.stop(AWAY if begun else Ending("cancelled", reason=f"it could not be written down: {error}"))
        await trio.lowlevel.checkpoint()
        raise InternalError(f"run {run.run_id} was stopped, and goes on")

    async def _deliver(self, status: str = "", park: Park | None = None) -> None:
        if self._away:
            raise JournalUnavailable("the journal was away before")
        try:
            with trio.move_on_after(PATIENCE):
                await self.sheets.deliver(status, park)
                if not status and park is None:
                    await self.sheets.make_sure()
                return
            raise JournalUnavailable(f"the journal has not answered within {PATIENCE:g}s")
        except JournalUnavailable:
            self._away = True
            raise

    async def close(self) -> bool:
        """The run has ended: whether the journal knows. If it does not, it is told when it is back."""
        sheets = self.sheets
        if not sheets.begun or sheets.run.cut is LOST:
            return True
        if sheets.run.cut is AWAY:
            sheets.office.leave(sheets)
            return False
        with trio.CancelScope(shield=True):
            try:
                await self._deliver(sheets.status)
            except LeaseLost:  # how it ends is for another worker to say
                sheets.run.cut = LOST
                return True
            except JournalError:
                sheets.office.owe(sheets)
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
