"""The journal in memory: for tests and simulations. It survives a runtime, and not its process.

Law: it keeps every promise of the port but for the disk, which is a value: two journals opened on one Disk are two
workers on one database, and one that is opened on it later is the next process. Time is Trio's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from zerver.errors import JournalError
from zerver.journal.lines import Cipher, Lines
from zerver.journal.scribe import Scribe, lease_lost, open_scribe
from zerver.runtime.journal import (
    UNRESOLVED,
    Entry,
    Journal,
    JournalStatistics,
    Notation,
    Opening,
    Page,
    StoredRun,
)


@attrs.define(eq=False)
class _Kept:
    """A run on the disk."""

    opening: Opening
    owner: str
    fence: int = 1
    status: str = ""
    ended_unix_ns: int = 0
    pages: dict[int, tuple[bytes, ...]] = attrs.Factory(dict)

    def stored(self) -> StoredRun:
        head = attrs.evolve(self.opening.head, owner=self.owner)
        lines = tuple(line for first in sorted(self.pages) for line in self.pages[first])
        return StoredRun(head, self.fence, self.status, self.opening.plan_id, self.opening.plan, lines)


class Disk:
    """What journals in memory keep: runs in the order in which they began, and until when each owner lives."""

    def __init__(self) -> None:
        self.runs: dict[str, _Kept] = {}
        self.lapses: dict[str, float] = {}

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
        return True

    def withdraw(self, opening: Opening) -> None:
        """Undo an opening, if it is there and nobody went on with it."""
        run = self.runs.get(opening.head.run_id)
        if run is not None and run.owner == opening.head.owner and run.fence == 1 and not run.status:
            del self.runs[opening.head.run_id]

    def lapsed(self, owner: str, now: float) -> Iterator[_Kept]:
        """Unfinished runs of others who live no more."""
        for run in self.runs.values():
            if not run.status and run.owner != owner and self.lapses.get(run.owner, now) <= now:
                yield run

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
        for run in taken:
            run.owner, run.fence = owner, run.fence + 1
        return [run.stored() for run in taken]

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
        now = round(trio.current_time() * 1e9)
        return [None if self._disk.write(entry, now) else lease_lost(entry) for entry in entries]
