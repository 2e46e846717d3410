"""The journal in memory: for tests and simulations. It survives a runtime, and not its process.

Law: it keeps every promise of the port but for the disk, which is a value: two journals opened on one Disk are two
workers on one database, and one that is opened on it later is the next process. Time is Trio's clock.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from zerver.errors import JournalError
from zerver.journal.lines import Cipher, Lines
from zerver.journal.scribe import Scribe, lease_lost, open_scribe
from zerver.runtime.journal import (
    LISTED,
    RESOLVED,
    UNRESOLVED,
    Entry,
    Glance,
    Journal,
    JournalStatistics,
    Notation,
    Opening,
    Page,
    Parking,
    Signal,
    StoredRun,
    Which,
)


@attrs.define(eq=False)
class _Kept:
    """A run on the disk."""

    opening: Opening
    owner: str
    fence: int = 1
    status: str = ""
    ended_unix_ns: int = 0
    aside: str = ""
    reason: str = ""
    retaken: bool = False  # by who has it
    wakes_unix_ns: int | None = None
    cut: bytes | None = None
    signals: dict[int, Signal] = attrs.Factory(dict)
    pages: dict[int, tuple[bytes, ...]] = attrs.Factory(dict)

    def stored(self) -> StoredRun:
        head = attrs.evolve(self.opening.head, owner=self.owner)
        lines = tuple(line for first in sorted(self.pages) for line in self.pages[first])
        opening, fence, status = self.opening, self.fence, self.status
        parked = self.wakes_unix_ns, tuple(self.signals[number] for number in sorted(self.signals))
        said = opening.plan_id, opening.plan, lines, self.aside, self.reason
        return StoredRun(head, fence, status, *said, *parked, self.cut)

    def put_down(self, parking: Parking, now_unix_ns: int) -> None:
        """It is nobody's, until one of the signals comes."""
        for one in parking.awaits:
            expires = now_unix_ns + int(one.seconds * 1e9)
            self.signals.setdefault(one.number, Signal(one.number, one.signal, expires))
        awaited = [self.signals[one.number] for one in parking.awaits]
        self.owner = ""
        ends = (one.expires_unix_ns if one.value is None else 0 for one in awaited)
        self.wakes_unix_ns = min(ends, default=0) if self.cut is None else 0

    def is_due(self, now_unix_ns: int) -> bool:
        """Whether it was put down, and is to be taken up."""
        return self.is_put_down and self.wakes_unix_ns is not None and self.wakes_unix_ns <= now_unix_ns

    @property
    def is_put_down(self) -> bool:
        return not (self.owner or self.status or self.aside) and self.wakes_unix_ns is not None

    def take(self, owner: str, now_unix_ns: int) -> StoredRun:
        """It is this owner's; signals that have not come in time will not come."""
        self.owner, self.fence, self.retaken = owner, self.fence + 1, False
        if self.wakes_unix_ns is not None:
            late = [n for n, one in self.signals.items() if one.value is None and one.expires_unix_ns <= now_unix_ns]
            for number in late:
                del self.signals[number]
        return self.stored()

    @property
    def is_open(self) -> bool:
        return self.status == UNRESOLVED or bool(self.aside)

    def glance(self) -> Glance:
        head = attrs.evolve(self.opening.head, owner=self.owner)
        return Glance(head, self.status, self.ended_unix_ns if self.status else None, self.aside)


class Disk:
    """What journals in memory keep: runs in the order in which they began, and until when each owner lives."""

    def __init__(self) -> None:
        self.runs: dict[str, _Kept] = {}
        self.lapses: dict[str, float] = {}
        self.keys: dict[str, bytes] = {}

    def write(self, entry: Entry, now_unix_ns: int) -> bool:
        """Write an entry; False if its lease does not hold."""
        return self._open(entry) if isinstance(entry, Opening) else self._add(entry, now_unix_ns)

    def _open(self, opening: Opening) -> bool:
        head = opening.head
        known = self.runs.get(head.run_id)
        if known is not None:
            same = known.opening == opening and known.owner == head.owner
            return same and known.fence == 1 and not known.status
        if head.owner not in self.lapses:
            return False
        self.runs[head.run_id] = _Kept(opening, head.owner, pages={0: opening.lines} if opening.lines else {})
        return True

    def _add(self, page: Page, now_unix_ns: int) -> bool:
        run = self.runs.get(page.run_id)
        if run is None or run.fence != page.fence:
            return False
        written = run.pages.get(page.first)
        if run.status and (run.status != page.status or (page.lines and written is None)):
            return False
        if page.lines:
            if written is not None and written != page.lines:
                return False
            run.pages[page.first] = page.lines
        if page.status and not run.status:
            run.status, run.ended_unix_ns = page.status, now_unix_ns
        if page.resumes:
            run.wakes_unix_ns = None
        if page.parked is not None and not run.status:
            run.put_down(page.parked, now_unix_ns)
        return True

    def withdraw(self, opening: Opening) -> None:
        """Undo an opening, if it is there and nobody went on with it."""
        run = self.runs.get(opening.head.run_id)
        if run is not None and run.owner == opening.head.owner and run.fence == 1 and not run.status:
            del self.runs[opening.head.run_id]

    def lapsed(self, owner: str, now: float) -> Iterator[_Kept]:
        """Unfinished runs of others who live no more."""
        for run in self.runs.values():
            if run.status or run.aside or run.is_put_down:
                continue
            if run.owner != owner and self.lapses.get(run.owner, now) <= now:
                yield run

    def due(self, now_unix_ns: int) -> list[_Kept]:
        """Runs that were put down and are to be taken up, in the order in which they wake."""
        due = [run for run in self.runs.values() if run.is_due(now_unix_ns)]
        return sorted(due, key=lambda run: run.wakes_unix_ns or 0)

    def signal(self, run_id: str, signal: str, value: bytes, number: int | None, now_unix_ns: int) -> bool:
        """Whether a pause of the run has waited for it."""
        run = self.runs.get(run_id)
        if run is None or run.status or run.cut is not None:
            return False
        for place, one in sorted(run.signals.items()):
            waits = one.value is None and one.expires_unix_ns > now_unix_ns
            if waits and one.signal == signal and number in (None, place):
                run.signals[place] = attrs.evolve(one, value=value)
                run.wakes_unix_ns = 0 if run.is_put_down else run.wakes_unix_ns
                return True
        return False

    def cancel(self, run_id: str, reason: bytes, now_unix_ns: int) -> bool:
        """Whether nothing else had come of it."""
        run = self.runs.get(run_id)
        if run is None or not run.is_put_down or run.cut is not None or run.is_due(now_unix_ns):
            return False
        run.cut, run.wakes_unix_ns = reason, 0
        return True

    def set_aside(self, run_id: str, fence: int, why: str) -> bool:
        """Nobody can carry it on; False if the lease does not hold."""
        run = self.runs.get(run_id)
        if run is not None and not run.status:
            if run.fence == fence:
                run.owner, run.fence, run.aside = "", fence + 1, why
                return True
            return run.fence == fence + 1 and run.aside == why
        return False

    def retake(self, run_id: str, owner: str, fence: int) -> _Kept | None:
        """It is given anew to who has it with this fence, or has put it down with it."""
        run = self.runs.get(run_id)
        if run is None or run.status or run.aside:
            return None
        if run.fence == fence and (run.owner == owner or run.is_put_down):
            run.owner, run.fence, run.retaken = owner, fence + 1, True
            return run
        return run if run.owner == owner and run.fence == fence + 1 and run.retaken else None

    def reopen(self, run_id: str, owner: str) -> _Kept | None:
        """It is to be tried again."""
        run = self.runs.get(run_id)
        if run is None or not run.is_open:
            return None
        run.owner, run.fence, run.status, run.aside, run.ended_unix_ns = owner, run.fence + 1, "", "", 0
        return run

    def call_resolved(self, run_id: str, said: str, now_unix_ns: int) -> bool:
        """It is over, because somebody has said so."""
        run = self.runs.get(run_id)
        if run is None or not run.is_open:
            return False
        run.owner, run.fence, run.status, run.aside = "", run.fence + 1, RESOLVED, ""
        run.reason, run.ended_unix_ns = said, now_unix_ns
        return True

    def listed(self, which: Which) -> list[_Kept]:
        """The runs that are meant, in their order."""
        if which == "ended":
            return [run for run in reversed(self.runs.values()) if run.status]
        return [run for run in self.runs.values() if (run.is_open if which == "open" else not run.status)]

    def old(self, ended_before_unix_ns: int) -> list[str]:
        """Runs that ended before then, the oldest first."""
        ended = [
            (run.ended_unix_ns, run_id)
            for run_id, run in self.runs.items()
            if run.status not in ("", UNRESOLVED) and run.ended_unix_ns < ended_before_unix_ns
        ]
        return [run_id for _, run_id in sorted(ended)]


@asynccontextmanager
async def open_memory_journal(
    disk: Disk | None = None, *, cipher: Cipher | None = None, keep_secrets: bool = False
) -> AsyncGenerator[Journal, None]:
    """Open the journal on this disk, a new one by default. cipher, keep_secrets: see `zerver.journal.lines`."""
    journal = MemoryJournal(disk or Disk(), Lines(cipher, keep_secrets))
    async with open_scribe(journal.scribe, close_seconds=1.0):
        yield journal


class MemoryJournal(Journal):
    """A journal in memory; made by `open_memory_journal`."""

    def __init__(self, disk: Disk, notation: Notation) -> None:
        self.scribe = Scribe("memory", self._perform)
        self._disk = disk
        self._notation = notation

    @property
    def notation(self) -> Notation:
        return self._notation

    async def write(self, entry: Entry) -> None:
        await self.scribe.write(entry)

    def write_behind(self, entry: Entry) -> None:
        self.scribe.write_behind(entry)

    async def flush(self) -> None:
        await self.scribe.flush()

    async def renew(self, owner: str, lease_seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        self._disk.lapses[owner] = trio.current_time() + lease_seconds

    async def claim(self, owner: str, count: int) -> list[StoredRun]:
        await trio.lowlevel.checkpoint()
        taken = [run for run, _ in zip(self._disk.lapsed(owner, trio.current_time()), range(count), strict=False)]
        now = _now()
        taken += self._disk.due(now)[: count - len(taken)]
        return [run.take(owner, now) for run in taken]

    async def claim_one(self, run_id: str, owner: str) -> StoredRun | None:
        await trio.lowlevel.checkpoint()
        run, now = self._disk.runs.get(run_id), _now()
        return run.take(owner, now) if run is not None and run.is_due(now) else None

    async def due(self) -> float | None:
        await trio.lowlevel.checkpoint()
        wakes = [run.wakes_unix_ns or 0 for run in self._disk.runs.values() if run.is_put_down]
        return max(0.0, (min(wakes) - _now()) / 1e9) if wakes else None

    async def signal(self, run_id: str, signal: str, value: bytes, number: int | None = None) -> bool:
        await trio.lowlevel.checkpoint()
        return self._disk.signal(run_id, signal, value, number, _now())

    async def cancel(self, run_id: str, reason: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        return self._disk.cancel(run_id, reason, _now())

    async def parked(self) -> int:
        await trio.lowlevel.checkpoint()
        return sum(1 for run in self._disk.runs.values() if run.is_put_down)

    async def key(self, name: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._disk.keys.setdefault(name, secrets.token_bytes(32))

    async def set_aside(self, run_id: str, fence: int, why: str) -> None:
        await trio.lowlevel.checkpoint()
        if not self._disk.set_aside(run_id, fence, why):
            raise lease_lost(Page(run_id, fence, 0, ()))

    async def retake(self, run_id: str, owner: str, fence: int) -> StoredRun | None:
        await trio.lowlevel.checkpoint()
        run = self._disk.retake(run_id, owner, fence)
        return None if run is None else run.stored()

    async def reopen(self, run_id: str, owner: str) -> StoredRun | None:
        await trio.lowlevel.checkpoint()
        run = self._disk.reopen(run_id, owner)
        return None if run is None else run.stored()

    async def call_resolved(self, run_id: str, reason: str, by: str) -> bool:
        await trio.lowlevel.checkpoint()
        return self._disk.call_resolved(run_id, f"{by}: {reason}", _now())

    async def list_runs(self, which: Which, count: int = LISTED, after: str = "") -> list[Glance]:
        await trio.lowlevel.checkpoint()
        runs = self._disk.listed(which)
        place = next((at + 1 for at, run in enumerate(runs) if run.opening.head.run_id == after), 0)
        return [run.glance() for run in runs[place : place + count]]

    async def read(self, run_id: str) -> StoredRun | None:
        await trio.lowlevel.checkpoint()
        found = self._disk.runs.get(run_id)
        return None if found is None else found.stored()

    async def prune(self, ended_before_unix_ns: int, count: int = 200) -> int:
        await trio.lowlevel.checkpoint()
        old = self._disk.old(ended_before_unix_ns)[:count]
        for run_id in old:
            del self._disk.runs[run_id]
        return len(old)

    async def tallies(self) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        return Counter(run.status for run in self._disk.runs.values())

    def statistics(self) -> JournalStatistics:
        return self.scribe.statistics()

    async def _perform(self, entries: Sequence[Entry], withdrawn: Sequence[Opening]) -> list[JournalError | None]:
        await trio.lowlevel.checkpoint()
        for opening in withdrawn:
            self._disk.withdraw(opening)
        now = _now()
        return [None if self._disk.write(entry, now) else lease_lost(entry) for entry in entries]


def _now() -> int:
    return round(trio.current_time() * 1e9)
