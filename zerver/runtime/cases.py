"""Cases: runs of the journal that somebody must look at, stuck or unresolved.

Law: what no code here can carry on is set aside in the journal, with its records, and somebody is told: code that goes
another way than they went must not touch it. Each worker tries each run that was set aside once, if it has code for it:
so a deploy that mends the code frees what was stuck. One that has ended unresolved is tried again only when somebody
says so, by `retry`; that is the runtime's work then, and not of who asked: whoever is cancelled leaves it under way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from zerver.core.timeline import Ending
from zerver.errors import CannotRetry, JournalError, JournalUnavailable
from zerver.runtime.alarm import Alarm, stored_alarm
from zerver.runtime.clerk import Clerk
from zerver.runtime.elsewhere import done_in
from zerver.runtime.journal import UNRESOLVED, Reader, StoredRun
from zerver.runtime.judging import judge
from zerver.runtime.result import Result
from zerver.runtime.versions import Versions

#: Seconds after which a journal that could not be told is told again.
_A_WHILE: Final = 1.0

#: Seconds at least between two counts of parked runs: a database goes through the index of them all for it.
COUNTED: Final = 30.0

#: What an unresolved run comes to whose last records are not there, because they could not be read again: it had ended,
#: so it is undone, and does not go on.
_UNKEPT: Final = Ending("cancelled", reason="it had ended, and its last records could not be written")


class Take(Protocol):
    """Carries a run on that was reopened; None when it was set aside, or is for another worker."""

    def __call__(self, stored: StoredRun, ending: Ending | None = None) -> Awaitable[Result | None]: ...


class Cases:
    """The cases that one worker knows of. stuck: those of the journal that were set aside, and why; unresolved: how
    many there are; both as of the last look, and of LISTED runs at most. parked: how many are put down, as of the last
    count. alarm: tells somebody.
    """

    def __init__(
        self, clerk: Clerk, versions: Versions, reader: Reader, take: Take, alarm: Callable[[Alarm], None]
    ) -> None:
        self.stuck: dict[str, str] = {}
        self.unresolved = 0
        self.parked = 0
        self._counts_at = -float("inf")  # when the next count is due, on Trio's clock
        self._clerk = clerk
        self._versions = versions
        self._reader = reader
        self._take = take
        self._alarm = alarm
        self._tried: set[str] = set()  # that were set aside, and are not to be tried by this worker again
        self._unheard: dict[str, Ending | None] = {}  # that were to be reopened, and of which the journal has not said
        self._turn = trio.Lock()  # one run is reopened at a time, so that none is carried on twice
        self._nursery: trio.Nursery | None = None

    def open(self, nursery: trio.Nursery) -> None:
        """Carry runs on in this nursery, until `close`."""
        self._nursery = nursery

    def close(self) -> None:
        self._nursery = None

    # -- looking --

    async def look(self) -> None:
        """See what somebody must look at, and try each run that was set aside once; again and again."""
        while True:
            try:
                await self._look()
            except JournalError:
                pass  # the clerk tries too, and says when it is back
            await trio.sleep(self._clerk.lease / 2)

    async def _look(self) -> None:
        journal = self._clerk.journal
        if trio.current_time() >= self._counts_at:
            self._counts_at = trio.current_time() + COUNTED
            self.parked = await journal.parked()
        for run_id in [*self._unheard]:  # it may be this worker's, and then it is on nobody's list
            await self._try(run_id)
        found = await journal.list_runs("open")
        self.unresolved = sum(1 for one in found if one.status == UNRESOLVED)
        self.stuck = {one.head.run_id: one.aside for one in found if one.aside}
        for run_id in self.stuck.keys() - self._tried:
            self._tried.add(run_id)
            stored = await journal.read(run_id)
            if stored is not None and judge(stored, self._versions, self._reader).fate != "stuck":
                self._unheard[run_id] = None
                await self._try(run_id)

    async def _try(self, run_id: str) -> None:
        async with self._turn:
            if run_id in self._unheard:
                ending = self._unheard[run_id]
                reopened = await self._reopen(run_id)
                if reopened is not None and self._nursery is not None:
                    self._nursery.start_soon(self._take, reopened, ending)

    async def _reopen(self, run_id: str) -> StoredRun | None:
        reopened = await self._clerk.journal.reopen(run_id, self._clerk.owner)
        del self._unheard[run_id]
        return reopened

    # -- trying again --

    async def retry(self, run_id: str) -> Result:
        """Try a run again that is unresolved or was set aside. Raises CannotRetry, JournalError."""
        nursery = self._nursery
        result = None if nursery is None else await done_in(nursery, lambda: self._retry(run_id))
        if result is None:
            why = self.stuck.get(run_id, "this runtime takes in nobody any more")
            raise CannotRetry(f"run {run_id} was begun again, and not finished: {why}")
        return result

    async def _retry(self, run_id: str) -> Result | None:
        async with self._turn:
            if run_id not in self._unheard:
                stored = await self._clerk.journal.read(run_id)
                self._unheard[run_id] = _UNKEPT if self._checked(run_id, stored).status else None
            ending = self._unheard[run_id]
            reopened = await self._reopen(run_id)
        if reopened is None:
            raise CannotRetry(f"run {run_id} is tried again by somebody else by now")
        self._tried.add(run_id)
        return await self._take(reopened, ending)

    def _checked(self, run_id: str, stored: StoredRun | None) -> StoredRun:
        """The run, if it can be tried again. Raises CannotRetry."""
        by_hand = f"look at what it wrote, then say so: `zerver sagas resolve {run_id} --reason …`"
        if stored is None:
            raise CannotRetry(f"there is no run {run_id} in {self._clerk.journal.statistics().place}")
        if stored.status != UNRESOLVED and not stored.aside:
            raise CannotRetry(f"run {run_id} needs nobody: it is {stored.status or 'under way'}")
        if stored.head.durability != "sync" and stored.wakes_unix_ns is None:
            raise CannotRetry(
                f"run {run_id} was of durability {stored.head.durability!r}: its last moments are not known, and so "
                f"nothing of it can be tried again\n  {by_hand}"
            )
        judged = judge(stored, self._versions, self._reader)
        if judged.fate == "stuck":
            raise CannotRetry(
                f"run {run_id} of flow {stored.head.flow!r} v{stored.head.version} cannot be tried again by this code: "
                f"{judged.why}\n  retry it with the code that it ran on, as App(older=[…]); or {by_hand}"
            )
        return stored

    # -- setting aside --

    async def set_aside(self, stored: StoredRun, why: str) -> None:
        """The run is stuck: other processes see that, and somebody is told."""
        run_id = stored.head.run_id
        self._tried.add(run_id)
        self.stuck[run_id] = why
        while self._nursery is not None:
            try:
                await self._clerk.journal.set_aside(run_id, stored.fence, why)
            except JournalUnavailable:
                await trio.sleep(_A_WHILE)
            except JournalError:  # another worker has it by now
                return
            else:
                self._alarm(stored_alarm(stored.head, True, why))
                return
