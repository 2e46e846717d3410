"""A worker's lease: it tells the store that it lives, and hears which of its jobs are to end, or are another's.

Law: for how long nobody can have taken its jobs away is counted from when the store was told, and not from its answer:
the store counts from some moment between the two. A worker that stood still, or could not reach the store, does not
know whose its jobs are; it does not go by what it knew.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Final

import trio

from zerver.errors import JournalUnavailable
from zerver.jobs.port import JobStore, Wanted
from zerver.jobs.seats import Seat

#: How many times per lease it is renewed.
RENEWALS: Final = 4

#: Jobs that are asked for in one statement.
_MOST: Final = 1000


class Living:
    """lease: seconds. It holds when this is made. seats: the worker's. end: called for one whose job is to end, with
    why. let_go: called for one whose job is another worker's. said: when it last told the store, by Trio's clock.
    """

    def __init__(
        self,
        store: JobStore,
        owner: str,
        lease: float,
        seats: Set[Seat],
        end: Callable[[Seat, str], None],
        let_go: Callable[[Seat], None],
    ) -> None:
        self._store = store
        self._owner = owner
        self._lease = lease
        self._seats = seats
        self._end = end
        self._let_go = let_go
        self.said = trio.current_time()
        self._again = trio.Event()

    @property
    def has_lapsed(self) -> bool:
        """Whether its jobs may be others' by now."""
        return trio.current_time() - self.said > self._lease

    async def wait_known(self, seconds: float) -> bool:
        """Wait until it is known whose its jobs are; False if it is not within these seconds."""
        with trio.move_on_after(seconds):
            while self.has_lapsed:
                await self._again.wait()
            return True
        return False

    async def keep(self) -> None:
        """Renew the lease, several times while it lasts, for ever."""
        rest = self._lease / RENEWALS
        while True:
            await trio.sleep(rest)  # whoever made this has just told the store
            with trio.move_on_after(rest):
                try:
                    await self._renew()
                except JournalUnavailable:
                    pass

    async def _renew(self) -> None:
        asked = trio.current_time()
        await self._store.renew(self._owner, self._lease)
        if asked - self.said > self._lease:
            await self._look_whose_they_are()
        self.said = asked
        self._again.set()
        self._again = trio.Event()
        cancelled = await self._store.cancelled(self._owner)
        for seat in [*self._seats]:
            why = cancelled.get(seat.job.job_id)
            if why is not None:
                self._end(seat, f"the job was cancelled: {why}")

    async def _look_whose_they_are(self) -> None:
        held = [*self._seats]
        ids = [*{seat.job.job_id for seat in held}]
        fences: dict[str, int] = {}
        for at in range(0, len(ids), _MOST):
            found = await self._store.search(Wanted(ids=tuple(ids[at : at + _MOST])), _MOST)
            fences.update((job.job_id, job.fence) for job in found)
        for seat in held:
            if fences.get(seat.job.job_id) != seat.job.fence:
                self._let_go(seat)
