"""Sheets: what of one run is in the journal, and what is not yet. They turn its records into entries, each once.

Law: entries of a run follow one another, and the next one is made when the one before is on the disk; one that got no
answer is sent again, the very same. A record is in one entry, in the order in which it was recorded, so that what is on
the disk is always the beginning of what has happened. Of a run that was left nothing more is written: what became of it
is for whoever has it to say.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import trio

from zerver.core.commands import Park
from zerver.core.plan import Plan
from zerver.errors import JournalError, NotKeepable
from zerver.runtime.crash import crash_point
from zerver.runtime.journal import UNRESOLVED, Entry, Journal, Opening, Page, Pen, RunHead, StoredRun
from zerver.runtime.live import Run
from zerver.runtime.parking import parking
from zerver.runtime.recovery import rebased


class Office(Protocol):
    """What sheets need of the clerk whose they are. owner: who has the lease."""

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
        self._lines: list[bytes] = []  # in no entry yet
        self._turn = trio.Lock()  # members of a join come at once, and one entry follows another
        if stored is not None:
            self._pen = office.journal.notation.pen(run.timeline, self.plan, stored)
            self._count = min(self._pen.count, len(run.records))

    async def deliver(self, status: str = "", park: Park | None = None) -> None:
        """Have all that has happened so far on the disk. status: of a run that has ended. park: of one that is put down
        with this. Raises JournalError.
        """
        journal, so_far = self.office.journal, len(self.run.records)
        if self._turn.locked():
            await self._turn.acquire()
        else:
            self._turn.acquire_nowait()  # to write is a checkpoint
        try:
            while self._unsent or self._taken < so_far or status or park is not None:
                entry = self._unsent or self.next(status, park)
                if entry is None:
                    return
                what = _site(entry)
                self._unsent = entry
                crash_point(f"{what}.before")
                try:
                    await journal.write(entry)
                except BaseException as error:
                    if isinstance(entry, Opening):  # the journal takes it back: the run has not begun
                        self._pen, self._count, self._lines, self.begun, self._unsent = None, 0, [], False, None
                    elif entry.parked is not None and not isinstance(error, JournalError):
                        # Cut, so it has not been written: what is undone next must not be put down by it first.
                        self._unsent, self.is_down = attrs.evolve(entry, parked=None), False
                    raise
                crash_point(f"{what}.after")
                self._unsent = None
        finally:
            self._turn.release()

    @property
    def _taken(self) -> int:
        """How many records are in entries."""
        return self._count - len(self._lines)

    @property
    def lies_about(self) -> bool:
        """Whether there are lines that nobody takes to the disk now."""
        return bool(self._lines) or (self._unsent is not None and not self._turn.locked())

    @property
    def pen(self) -> Pen:
        """Made when there is something to write."""
        if self._pen is None:
            self._pen = self.office.journal.notation.pen(self.run.timeline, self.plan)
        return self._pen

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
        where it would go on, so it does not wait for anything. What was noted meanwhile, by other lines of it, is next.
        """
        run_id, office, unsent, lines = self.run.run_id, self.office, self._unsent, self._lines
        stored = await office.journal.retake(run_id, office.owner, self.fence)
        if stored is None:
            return None
        pages = [] if unsent is None else [Page(run_id, stored.fence, _first(unsent), unsent.lines)]
        pages.append(Page(run_id, stored.fence, self.pen.count - len(lines), lines))
        pages = [page for page in pages if page.lines]
        for page in pages:
            await office.journal.write(page)
        return await office.journal.read(run_id) if pages else stored

    def note(self) -> None:
        """Make lines of what has happened so far, but none of a run that was left. Raises NotKeepable, and makes none
        then.
        """
        if self.run.is_left:
            return
        fresh = self.run.records[self._count :]
        self._lines += self.pen.lines(rebased(fresh, -self.shift) if self.shift else fresh)
        self._count += len(fresh)

    def next(self, status: str = "", park: Park | None = None) -> Entry | None:
        """The next entry; None when all is written, or the run was left: what became of it then is for others to say.
        Raises NotKeepable, but not for the last one: that is without the lines then.
        """
        run = self.run
        puts_down = park is not None and not self.is_down
        if self.ended or run.is_left or not (self._lines or self._count < len(run.records) or status or puts_down):
            return None
        try:
            self.note()
        except NotKeepable:
            if status and self.begun:
                self._count = len(run.records)
            elif self._lines:  # what can be kept goes first
                status, puts_down = "", False
            else:
                raise
        lines, self._lines = self._lines, []
        if not self.begun:
            self.begun = True
            return Opening(self._head(), self.pen.plan_id, self.pen.plan, lines)
        self.ended = bool(status)
        parked = parking(run.records, park, run.clock()) if park is not None and puts_down else None
        self.is_down, resumes, self.resumes = self.is_down or puts_down, self.resumes, False
        return Page(run.run_id, self.fence, self.pen.count - len(lines), lines, status, parked, resumes)

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
