"""The proof kit: journals that keep the port's promises pass, and one that breaks a promise is found out."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.testing.at_work import at_work
from zerver.journal import Disk, open_memory_journal, open_sqlite_journal
from zerver.journal.lines import Lines
from zerver.journal.memory import MemoryJournal
from zerver.journal.scribe import open_scribe
from zerver.runtime.journal import RESOLVED, UNRESOLVED, Entry, Journal, Opening, Page, StoredRun, Which
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


class StillClaimed(Disk):
    """Gives to others what was set aside."""

    def lapsed(self, owner: str, now: float) -> Iterator[Any]:
        aside = (run for run in self.runs.values() if run.aside and not run.status)
        return itertools.chain(super().lapsed(owner, now), aside)


class AnybodyAside(Disk):
    """Lets anybody set a run aside."""

    def set_aside(self, run_id: str, fence: int, why: str) -> bool:
        run = self.runs.get(run_id)
        return super().set_aside(run_id, run.fence if run is not None and not run.aside else fence, why)


class SharedAside(Disk):
    """Lets who has set a run aside go on writing to it."""

    def set_aside(self, run_id: str, fence: int, why: str) -> bool:
        done = super().set_aside(run_id, fence, why)
        self.runs[run_id].fence = fence
        return done


class Reopener(Disk):
    """Gives what it has given already."""

    def reopen(self, run_id: str, owner: str) -> Any:
        run = self.runs.get(run_id)
        if run is not None and run.fence > 2 and not run.status:
            run.owner, run.fence = owner, run.fence + 1
            return run
        return super().reopen(run_id, owner)


class Speechless(Disk):
    """Forgets who has called a run resolved, and why."""

    def call_resolved(self, run_id: str, said: str, now_unix_ns: int) -> bool:
        return super().call_resolved(run_id, "", now_unix_ns)


class Credulous(Disk):
    """Lets any run be called resolved."""

    def call_resolved(self, run_id: str, said: str, now_unix_ns: int) -> bool:
        return super().call_resolved(run_id, said, now_unix_ns) or run_id in self.runs


class Hoarding(Disk):
    """Keeps what somebody has called resolved."""

    def old(self, ended_before_unix_ns: int) -> list[str]:
        return [run_id for run_id in super().old(ended_before_unix_ns) if self.runs[run_id].status != RESOLVED]


class Neglectful(Disk):
    """Prunes what was set aside."""

    def old(self, ended_before_unix_ns: int) -> list[str]:
        aside = [run_id for run_id, run in self.runs.items() if run.aside]
        return [*super().old(ended_before_unix_ns), *(aside if ended_before_unix_ns else ())]


class Unsorted(Disk):
    """Lists runs in no order."""

    def listed(self, which: Which) -> list[Any]:
        return super().listed(which)[::-1]


class Blind(Disk):
    """Does not list what was set aside."""

    def listed(self, which: Which) -> list[Any]:
        return [run for run in super().listed(which) if not (which == "open" and run.aside)]


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
        await at_work()
        for run in found:
            run.owner, run.fence = owner, 2
        return [run.stored() for run in found]


class Leaky(MemoryJournal):
    """Loses what a cancelled claim has taken."""

    async def claim(self, owner: str, count: int) -> list[StoredRun]:
        claimed = await super().claim(owner, count)
        await at_work()
        return claimed


class SameFence(MemoryJournal):
    """Gives a run anew, and takes what was sent before."""

    async def retake(self, run_id: str, owner: str, fence: int) -> StoredRun | None:
        run = await super().retake(run_id, owner, fence)
        self._disk.runs[run_id].fence = fence
        return run


class OnceOnly(MemoryJournal):
    """Gives a run anew once, and not again."""

    async def retake(self, run_id: str, owner: str, fence: int) -> StoredRun | None:
        run = self._disk.runs.get(run_id)
        return None if run is not None and run.fence > 1 else await super().retake(run_id, owner, fence)


class Lavish(MemoryJournal):
    """Gives a run anew to anybody."""

    async def retake(self, run_id: str, owner: str, fence: int) -> StoredRun | None:
        run = self._disk.runs.get(run_id)
        return await super().retake(run_id, owner if run is None else run.owner, fence)


class Homing(MemoryJournal):
    """Gives a run back to who has put it down, though it was taken up."""

    async def retake(self, run_id: str, owner: str, fence: int) -> StoredRun | None:
        run = self._disk.runs.get(run_id)
        if run is not None and run.fence == fence + 1 and run.owner == owner and not run.status:
            return run.stored()
        return await super().retake(run_id, owner, fence)


class Reviving(MemoryJournal):
    """Gives anew what has ended."""

    async def retake(self, run_id: str, owner: str, fence: int) -> StoredRun | None:
        run = self._disk.runs.get(run_id)
        if run is not None and run.status and run.owner == owner:
            return run.stored()
        return await super().retake(run_id, owner, fence)


class Numberless(MemoryJournal):
    async def tallies(self) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        return {"": 1, "done": 1, "failed": 1, UNRESOLVED: len(self._disk.runs)}


# ---- and of those about parked runs ---------------------------------------------------------


class Restless(Disk):
    def due(self, now_unix_ns: int) -> list[Any]:
        return [run for run in self.runs.values() if run.is_put_down]


class Starting(Disk):
    """Begins to wait anew when it is told a second time."""

    def _add(self, page: Page, now_unix_ns: int) -> bool:
        run = self.runs.get(page.run_id)
        if run is not None and page.parked is not None and run.fence == page.fence:
            run.signals.clear()
        return super()._add(page, now_unix_ns)


class Grasping(Disk):
    """Lets anybody put a run down."""

    def _add(self, page: Page, now_unix_ns: int) -> bool:
        run = self.runs.get(page.run_id)
        if run is not None and page.parked is not None and run.fence != page.fence:
            run.put_down(page.parked, now_unix_ns)
            return True
        return super()._add(page, now_unix_ns)


class Repeating(Disk):
    def signal(self, run_id: str, signal: str, value: bytes, number: int | None, now_unix_ns: int) -> bool:
        run = self.runs.get(run_id)
        had = run is not None and any(one.signal == signal and one.value is not None for one in run.signals.values())
        return had or super().signal(run_id, signal, value, number, now_unix_ns)


class Timeless(Disk):
    def signal(self, run_id: str, signal: str, value: bytes, number: int | None, now_unix_ns: int) -> bool:
        return super().signal(run_id, signal, value, number, -(10**18))


class Nervous(Disk):
    """Wakes for what has come long ago."""

    def _add(self, page: Page, now_unix_ns: int) -> bool:
        added, run = super()._add(page, now_unix_ns), self.runs.get(page.run_id)
        if added and run is not None and run.is_put_down and any(one.value for one in run.signals.values()):
            run.wakes_unix_ns = 0
        return added


class Undead(Disk):
    """Takes signals of runs that are over."""

    def signal(self, run_id: str, signal: str, value: bytes, number: int | None, now_unix_ns: int) -> bool:
        run = self.runs.get(run_id)
        return bool(run is not None and run.status) or super().signal(run_id, signal, value, number, now_unix_ns)


class Late(MemoryJournal):
    async def due(self) -> float | None:
        await trio.lowlevel.checkpoint()
        wakes = [run.wakes_unix_ns or 0 for run in self._disk.runs.values() if run.is_put_down]
        left = [at / 1e9 - trio.current_time() for at in wakes]
        return max(left) if left and min(left) > 0 else await super().due()


class LeakyOne(MemoryJournal):
    async def claim_one(self, run_id: str, owner: str) -> StoredRun | None:
        claimed = await super().claim_one(run_id, owner)
        await at_work()
        return claimed


class Overriding(Disk):
    """Lets a run be cancelled whose signal has come."""

    def cancel(self, run_id: str, reason: bytes, now_unix_ns: int) -> bool:
        run = self.runs.get(run_id)
        if run is not None and run.is_put_down and run.cut is None:
            run.cut, run.wakes_unix_ns = reason, 0
            return True
        return False


class Reluctant(Disk):
    """Takes a signal for a run that is cancelled."""

    def signal(self, run_id: str, signal: str, value: bytes, number: int | None, now_unix_ns: int) -> bool:
        run = self.runs.get(run_id)
        cut = None if run is None else run.cut
        if run is not None:
            run.cut = None
        try:
            return super().signal(run_id, signal, value, number, now_unix_ns)
        finally:
            if run is not None:
                run.cut = cut


class Miscounting(MemoryJournal):
    async def parked(self) -> int:
        await trio.lowlevel.checkpoint()
        return len(self._disk.runs)


class Keyless(MemoryJournal):
    async def key(self, name: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return secrets.token_bytes(32)


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
        (StillClaimed, MemoryJournal, "set aside is nobody's"),
        (SharedAside, MemoryJournal, "set aside is nobody's"),
        (AnybodyAside, MemoryJournal, "only who has a run sets it aside"),
        (Reopener, MemoryJournal, "given to one who tries it again"),
        (Speechless, MemoryJournal, "called resolved"),
        (Credulous, MemoryJournal, "called resolved"),
        (Hoarding, MemoryJournal, "called resolved"),
        (Neglectful, MemoryJournal, "never pruned"),
        (Unsorted, MemoryJournal, "are listed"),
        (Blind, MemoryJournal, "are listed"),
        (Disk, Hasty, "comes back"),
        (Disk, Reordering, "written behind"),
        (Disk, Stubborn, "a write that was cancelled"),
        (Disk, Generous, "never give one run twice"),
        (Disk, Leaky, "a claim that was cancelled"),
        (Disk, SameFence, "has it with a new fence"),
        (Disk, OnceOnly, "has it with a new fence"),
        (Disk, Lavish, "has it with a new fence"),
        (Disk, Homing, "has put a run down"),
        (Disk, Reviving, "is not given anew"),
        (Disk, Numberless, "pruned"),
        (Restless, MemoryJournal, "stays so while nothing comes"),
        (Starting, MemoryJournal, "undoes nothing that has come since"),
        (Grasping, MemoryJournal, "does not put it down"),
        (Repeating, MemoryJournal, "a signal is taken once"),
        (Timeless, MemoryJournal, "its signal comes too late"),
        (Nervous, MemoryJournal, "does not wake for what it has had"),
        (Undead, MemoryJournal, "takes no signal"),
        (Disk, Late, "the one that wakes first"),
        (Disk, LeakyOne, "does not lose it"),
        (Disk, Keyless, "a key is made once"),
        (Overriding, MemoryJournal, "what comes of a run first stands"),
        (Reluctant, MemoryJournal, "a run that is put down can be cancelled once"),
        (Disk, Miscounting, "it is known how many runs are put down"),
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
