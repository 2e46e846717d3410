"""The journal port: where timelines are kept while their runs are under way, so that a run survives its process.

Law: an acknowledged page is on the disk; a page is there whole or not at all; a run has one owner at a time, and what
anybody else writes to it is refused. A journal keeps bytes and knows nothing of flows; its notation knows how records
become lines, and is a port too, because rooms above this one know how values are written.

    write(Opening)    the run is begun: its head, its plan, its first records
    write(Page)       further records; with a status, its last ones: the run is over
    write_behind      the same for durability "async": in order, soon, never waited for
    claim, renew      leases: who may write to which run
    signal, cancel, claim_one, due, parked, key     parked runs: nobody's, until something comes of them
    set_aside, reopen, call_resolved, list_runs     runs that somebody must look at
    read, prune, tallies, statistics

A page is numbered by the place of its first line in the run. Writing the very same page again changes nothing, so that
a caller who got JournalUnavailable, and cannot know whether it was written, just writes it again.

Leases belong to owners, not to runs: a worker renews one row, however many runs it has (a million parked ones cost
nothing). A run's fence is a number that grows with each claim; pages carry it, and one with an old fence is refused
with LeaseLost. So a process that was stopped and goes on (SIGSTOP, a paused machine) is harmless: clocks only decide
when somebody may take over, never who is right. Precedent: Kleppmann, "How to do distributed locking" (2016).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import attrs

from zerver.core.plan import Plan
from zerver.core.timeline import Record, Timeline

#: How far a run survives: "off" not at all; "async" but for its last moments; "sync" whole.
Durability: TypeAlias = Literal["off", "async", "sync"]

#: The status of an ended run that has writes of which nobody can say that they are right: it is never pruned.
UNRESOLVED = "unresolved"

#: The status of a run that was UNRESOLVED or set aside, and of which somebody has said that it is right by now.
RESOLVED = "resolved"

#: How many runs `list_runs` names at once.
LISTED = 1000

#: Which runs are listed: those that somebody must look at, unresolved or set aside; those that have not ended; or those
#: that have.
Which: TypeAlias = Literal["open", "unfinished", "ended"]


# ---- what is kept ---------------------------------------------------------------------------


@attrs.frozen
class RunHead:
    """What a run is, beside its records.

    began_unix_ns, deadline_unix_ns: wall time in nanoseconds, since a monotonic clock means nothing to the next
    process; no deadline is None. owner: whose it is when it begins, as named in `renew`.
    """

    run_id: str
    flow: str
    version: str
    tenant: str
    priority: str
    began_unix_ns: int
    owner: str
    label: str = ""
    parent: str = ""
    deadline_unix_ns: int | None = None
    durability: Durability = "sync"


def _lines(lines: Iterable[bytes]) -> tuple[bytes, ...]:
    return tuple(lines)


@attrs.frozen
class Opening:
    """The first entry of a run. Its fence is 1, and its lines are numbered from 0.

    plan_id, plan: as the run's Pen has them; a plan is kept once for all runs of one flow version.
    """

    head: RunHead
    plan_id: str
    plan: bytes = attrs.field(repr=False)
    lines: tuple[bytes, ...] = attrs.field(repr=False, converter=_lines)


@attrs.frozen
class Awaited:
    """A pause that a run is parked on. number: which of its pauses, the first one is 1. seconds: until it expires, from
    when the page is written; kept by the journal's clock from then on.
    """

    number: int
    signal: str
    seconds: float


@attrs.frozen
class Parking:
    """The run is put down: it is nobody's until one of these signals comes, or the first of them expires."""

    awaits: tuple[Awaited, ...]


@attrs.frozen
class Page:
    """Further lines of a run; a line has no line break in it. first: the number of the first of them. status: of the
    run's Ending, or UNRESOLVED, when these are its last lines; "" while it goes on. parked: the run is put down with
    this page. resumes: the run had been put down, and with this page it is not any more.
    """

    run_id: str
    fence: int
    first: int
    lines: tuple[bytes, ...] = attrs.field(repr=False, converter=_lines)
    status: str = ""
    parked: Parking | None = None
    resumes: bool = False


Entry: TypeAlias = Opening | Page


@attrs.frozen
class Signal:
    """A pause of a run that was put down. expires_unix_ns: on the journal's clock. value: None until it has come.

    A pause that has expired is there no more when the run is claimed: then its signal comes too late.
    """

    number: int
    signal: str
    expires_unix_ns: int
    value: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen
class StoredRun:
    """A run as the journal has it. head.owner: who has it now. status: "" while it is unfinished. aside: why it was
    set aside, "" if it is not. reason: by whom and why it was called resolved, "" if it was not. wakes_unix_ns: when a
    run that is put down is to be taken up, 0 when a signal has come; None while it is not put down; it is so still when
    it was claimed, until a page `resumes` it. signals: its pauses, in their order; those that are over stay. cut: why
    it was cancelled while it was put down, as it was sealed; None if it was not.
    """

    head: RunHead
    fence: int
    status: str
    plan_id: str
    plan: bytes = attrs.field(repr=False)
    lines: tuple[bytes, ...] = attrs.field(repr=False)
    aside: str = ""
    reason: str = ""
    wakes_unix_ns: int | None = None
    signals: tuple[Signal, ...] = ()
    cut: bytes | None = attrs.field(default=None, repr=False)


@attrs.frozen
class Glance:
    """A run without its records. ended_unix_ns: wall time, None while it is unfinished. aside: as in StoredRun."""

    head: RunHead
    status: str
    ended_unix_ns: int | None
    aside: str = ""

    @property
    def since_unix_ns(self) -> int:
        """When it ended; of one that has not, when it began."""
        return self.head.began_unix_ns if self.ended_unix_ns is None else self.ended_unix_ns


@attrs.frozen
class JournalStatistics:
    """place: where it is, without passwords. Since it was opened: written entries, by `written_behind` those nobody
    waited for; refused: entries whose lease was lost; dropped: entries that were to be written behind and never will
    be. waiting: calls of `write` under way. behind: entries still to be written behind, behind_bytes of lines.
    trouble: why it cannot be written now, "" while it can.
    """

    place: str
    written: int
    written_behind: int
    refused: int
    dropped: int
    waiting: int
    behind: int
    behind_bytes: int
    trouble: str


# ---- how records are written ----------------------------------------------------------------


class Pen(Protocol):
    """Writes one run, a few records at a time. plan_id, plan: for the Opening.

    count: how many lines it has written so far, those of an earlier owner included: `Page.first` of the next ones.
    """

    @property
    def plan_id(self) -> str: ...

    @property
    def plan(self) -> bytes: ...

    @property
    def count(self) -> int: ...

    def lines(self, records: Sequence[Record]) -> list[bytes]:
        """One line for each of these records, which follow those that were written before.

        Raises NotKeepable for a value that a replay needs and that could not be read again; the pen is as it was then.
        """
        ...


class Reader(Protocol):
    """Reads runs of known code."""

    def read(self, run: StoredRun) -> Timeline:
        """The run's timeline, as far as it was written; nodes, calls and entries in it are inert.

        Raises DamagedJournal when the lines are not what was written, or are of a version that is not known here.
        """
        ...

    def unknown(self, value: object) -> str:
        """The name of a class in a value that was read, which the code that is here does not know; "" if there is none.
        No step can go on with such a value: it is only shown.
        """
        ...


class Notation(Protocol):
    """How records become lines, and lines records.

    keeps_secrets: whether a run may have values of secret slots: they are encrypted, or whoever opened the journal
    has said that they may be kept in the clear. Flows that have such slots are refused otherwise.
    """

    @property
    def keeps_secrets(self) -> bool: ...

    def pen(self, timeline: Timeline, plan: Plan, after: StoredRun | None = None) -> Pen:
        """A pen for a run. plan: its first one, of the live flow. after: the run, as it was claimed, when this process
        goes on with it; calls, entries and nodes that stand in its lines are known again, by what they are.

        Raises DamagedJournal as `Reader.read` does.
        """
        ...

    def seal(self, value: bytes) -> bytes:
        """A signal's value, or why a run was cancelled, as it may be kept: encrypted, if lines are."""
        ...

    def unseal(self, sealed: bytes) -> bytes:
        """What was sealed. Raises DamagedJournal for anything else."""
        ...

    def reader(self, *code: Any) -> Reader:
        """What reads runs. code: apps, flows and classes whose values are to be their own types again."""
        ...


# ---- the port -------------------------------------------------------------------------------


class Journal(Protocol):
    """A journal, open. Any number of tasks may use it at once, and any number of processes may open the same one.

    Every async verb is a checkpoint. It raises JournalUnavailable while the journal cannot be reached or written, and
    DamagedJournal when it is not what was written. A call that raises Cancelled has not happened; a cancellation that
    comes too late to stop it has no effect there, or is told JournalUnavailable when no answer comes.
    """

    @property
    def notation(self) -> Notation: ...

    async def write(self, entry: Entry) -> None:
        """Write an entry; it is on the disk when this returns. Many callers share one fsync.

        Entries of the run that were to be written behind come before it. An Opening that raises has not begun the run:
        should it have been written all the same, it is withdrawn.

        Raises LeaseLost when another owner has the run, it has ended, or the owner in the Opening has not renewed yet.
        """
        ...

    def write_behind(self, entry: Entry) -> None:
        """Write an entry soon, in the order of the calls; what a crash can take along is bounded by an interval.

        Raises nothing: an entry that cannot be written is tried again, and dropped, and counted, only when the lease
        is lost or too much waits; further entries of that run are dropped with it, so that what is kept has no hole.
        """
        ...

    async def flush(self) -> None:
        """Wait until all that was to be written behind is on the disk, or dropped."""
        ...

    async def renew(self, owner: str, lease_seconds: float) -> None:
        """An owner lives, and has its runs for so long from now; to be called before its first run, and then some
        times per lease. 0.0 gives them up at once: for a worker that ends, or of which somebody knows that it has.
        """
        ...

    async def claim(self, owner: str, count: int) -> list[StoredRun]:
        """Unfinished runs whose owner's lease has lapsed become this owner's, the oldest first, each with a new fence;
        and then those that were put down and are to be taken up, since a signal has come or their time is over. Of
        these, pauses that have expired are taken away with the claim: no signal comes for them any more.

        No run is given to two callers; a call that was cancelled, or lost its answer, gives what it took to the next.
        """
        ...

    async def claim_one(self, run_id: str, owner: str) -> StoredRun | None:
        """The same for one run that was put down, if it is to be taken up; else None. What of it was lost by a
        cancelled call is given by the next `claim`.
        """
        ...

    async def retake(self, run_id: str, owner: str, fence: int) -> StoredRun | None:
        """Give an unfinished run anew to the owner that has it with this fence, or that has put it down with it: its
        fence grows, and what was sent before and is still on its way is refused. None when it has ended, or somebody
        has taken it since. Asked again, it is given again, with the same new fence.
        """
        ...

    async def due(self) -> float | None:
        """Seconds until the next run that was put down is to be taken up, 0.0 if one is; None when there is none."""
        ...

    async def signal(self, run_id: str, signal: str, value: bytes, number: int | None = None) -> bool:
        """Give a signal to a run that was put down. True for one alone of all who give it, and then whoever takes the
        run up finds it; False when no pause of the run waits for it, or its time is over. number: for this pause alone.
        A run that somebody carries on meanwhile finds it when it is put down again.

        A call that raises JournalUnavailable may have been taken.
        """
        ...

    async def cancel(self, run_id: str, reason: bytes) -> bool:
        """Cancel a run that is put down: it is to be taken up, and takes no signal any more; whoever claims it finds
        the reason, and undoes it. Of what comes of a run first, this or a signal or the end of its time, one stands:
        False when something else did, when somebody has the run, and when there is none.

        A call that raises JournalUnavailable may have been taken.
        """
        ...

    async def parked(self) -> int:
        """How many runs are put down. Not for every moment: it counts them."""
        ...

    async def key(self, name: str) -> bytes:
        """32 random bytes, made the first time that somebody asks for this name, and the same for all who do."""
        ...

    async def set_aside(self, run_id: str, fence: int, why: str) -> None:
        """Nobody here can carry this run on: it is nobody's from now on, `claim` gives it to nobody, and its fence
        grows. Doing the very same again changes nothing. why: not empty.

        Raises LeaseLost when another owner has the run, or it has ended.
        """
        ...

    async def reopen(self, run_id: str, owner: str) -> StoredRun | None:
        """Give a run that is unresolved or set aside to this owner, to be tried again: it is unfinished then, and has
        a new fence. None when there is no such run, or it is neither. What of it was lost by a cancelled call is
        given by the next one, or by `claim` when the owner's lease has lapsed.
        """
        ...

    async def call_resolved(self, run_id: str, reason: str, by: str) -> bool:
        """Somebody has looked, and says that what an unresolved run or one that was set aside has left is right: it
        is over, with the status RESOLVED, and what was said is kept with it. False when there is no such run, or it is
        neither.
        """
        ...

    async def list_runs(self, which: Which, count: int = LISTED, after: str = "") -> list[Glance]:
        """Runs in the order in which they began; those that have ended the other way round. after: the id of the last
        one that was listed before, to go on from there.
        """
        ...

    async def read(self, run_id: str) -> StoredRun | None:
        """The run of this id; None when there is none."""
        ...

    async def prune(self, ended_before_unix_ns: int, count: int = 200) -> int:
        """Delete runs that ended before then (wall time), the oldest first, `count` at most. How many.

        Unfinished runs and those that ended unresolved stay; those that were called resolved do not.
        """
        ...

    async def tallies(self) -> Mapping[str, int]:
        """How many runs there are, by status; "" are the unfinished ones."""
        ...

    def statistics(self) -> JournalStatistics: ...
