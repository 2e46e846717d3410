"""The proof kit: journals that keep the port's promises pass, and one that breaks a promise is found out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from zerver.journal import Disk, open_memory_journal, open_sqlite_journal
from zerver.journal.lines import Lines
from zerver.journal.memory import MemoryJournal
from zerver.journal.scribe import open_scribe
from zerver.runtime.journal import UNRESOLVED, Entry, Journal, Opening, Page, StoredRun
from zerver.testing import check_journal


async def test_memory() -> None:
    await check_journal(partial(open_memory_journal, Disk()))


async def test_sqlite(tmp_path: Path) -> None:
    await check_journal(partial(open_sqlite_journal, tmp_path / "journal.db"))


# ---- disks and journals that break one promise each -----------------------------------------


class Unfenced(Disk):
    def _add(self, page: Page, now_unix_ns: int) -> bool:
        run = self.runs.get(page.run_id)
        return super()._add(attrs.evolve(page, fence=run.fence) if run is not None else page, now_unix_ns)


class OpenEnded(Disk):
    def _add(self, page: Page, now_unix_ns: int) -> bool:
        run = self.runs.get(page.run_id)
        if run is not None and run.status and page.first not in run.pages:
            run.pages[page.first] = page.lines
            return True
        return super()._add(page, now_unix_ns)


class Overwriting(Disk):
    def _add(self, page: Page, now_unix_ns: int) -> bool:
        run = self.runs.get(page.run_id)
        if run is not None:
            run.pages.pop(page.first, None)
        return super()._add(page, now_unix_ns)


class Strict(Disk):
    """Refuses what it has already, as if somebody else had written it."""

    def write(self, entry: Entry, now_unix_ns: int) -> bool:
        run = self.runs.get(entry.head.run_id if isinstance(entry, Opening) else entry.run_id)
        if run is not None and (isinstance(entry, Opening) or entry.first in run.pages):
            return False
        return super().write(entry, now_unix_ns)


class AnyOwner(Disk):
    def _open(self, opening: Opening) -> bool:
        self.lapses.setdefault(opening.head.owner, 1e9)
        return super()._open(opening)


class Impatient(Disk):
    def lapsed(self, owner: str, now: float) -> Iterator[object]:  # type: ignore[override]  # what is claimed
        return (run for run in self.runs.values() if not run.status and run.owner != owner)


class Forgetful(Disk):
    def old(self, ended_before_unix_ns: int) -> list[str]:
        unresolved = [run_id for run_id, run in self.runs.items() if run.status == UNRESOLVED]
        return [*super().old(ended_before_unix_ns), *(unresolved if ended_before_unix_ns else ())]


class Hasty(MemoryJournal):
    """Acknowledges what is not written yet."""

    async def write(self, entry: Entry) -> None:
        self.write_behind(entry)
        await trio.lowlevel.checkpoint()


class Reordering(MemoryJournal):
    def write_behind(self, entry: Entry) -> None:
        super().write_behind(entry)
        self.scribe._queue.rotate(1)


class Stubborn(MemoryJournal):
    """Writes what was cancelled."""

    async def write(self, entry: Entry) -> None:
        try:
            await super().write(entry)
        except trio.Cancelled:
            self._disk.write(entry, 0)
            raise


class Generous(MemoryJournal):
    """Looks first, and takes later: two claims at once find the same runs."""

    async def claim(self, owner: str, count: int) -> list[StoredRun]:
        found = [*self._disk.lapsed(owner, trio.current_time())][:count]
        await trio.lowlevel.checkpoint()
        for run in found:
            run.owner, run.fence = owner, 2
        return [run.stored() for run in found]


class Leaky(MemoryJournal):
    """Loses what a cancelled claim has taken."""

    async def claim(self, owner: str, count: int) -> list[StoredRun]:
        claimed = await super().claim(owner, count)
        await trio.lowlevel.checkpoint()
        return claimed


class Numberless(MemoryJournal):
    async def tallies(self) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        return {"": 1, "done": 1, "failed": 1, UNRESOLVED: len(self._disk.runs)}


def on(disk: Disk, made: Callable[..., MemoryJournal] = MemoryJournal) -> object:
    @asynccontextmanager
    async def open_journal() -> AsyncGenerator[Journal, None]:
        journal = made(disk, Lines())
        async with open_scribe(journal.scribe, close_seconds=1.0):
            yield journal

    return open_journal


@pytest.mark.parametrize(
    ("disk", "journal", "law"),
    [
        (Unfenced, MemoryJournal, "neighbours|lost a run"),
        (OpenEnded, MemoryJournal, "has ended"),
        (Overwriting, MemoryJournal, "written again"),
        (Strict, MemoryJournal, "written again"),
        (AnyOwner, MemoryJournal, "renews before its first run"),
        (Impatient, MemoryJournal, "a lease that holds"),
        (Forgetful, MemoryJournal, "pruned"),
        (Disk, Hasty, "comes back"),
        (Disk, Reordering, "written behind"),
        (Disk, Stubborn, "a write that was cancelled"),
        (Disk, Generous, "never give one run twice"),
        (Disk, Leaky, "a claim that was cancelled"),
        (Disk, Numberless, "pruned"),
    ],
)
async def test_a_broken_promise_is_found(disk: type[Disk], journal: type[MemoryJournal], law: str) -> None:
    with pytest.raises(AssertionError, match=f"check_journal: .*({law})"):
        await check_journal(on(disk(), journal))  # type: ignore[arg-type]  # it opens one


async def test_a_journal_that_hangs_is_found() -> None:
    class Hanging(MemoryJournal):
        async def renew(self, owner: str, lease_seconds: float) -> None:
            await trio.sleep_forever()

    with pytest.raises(AssertionError, match=r"it hangs: not over after 0\.05 s"):
        await check_journal(on(Disk(), Hanging), patience=0.05)  # type: ignore[arg-type]  # it opens one
