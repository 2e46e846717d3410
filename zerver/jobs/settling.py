"""Settling: telling the store what has become of a worker's jobs, in bulk.

Law: each verdict is told until the store has taken it, or it is another worker's job; but a worker that ends tells it
once more and leaves it to be rescued. What ends while the store is told goes together, the next time: one task tells
for all, so a job costs no task of its own that waits for the disk. A verdict waits for others for a moment at most, and
only while jobs are so short that some are taken ahead.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import trio

from zerver.errors import JournalUnavailable, NotKeepable
from zerver.jobs.port import Job, JobStore, Verdict
from zerver.jobs.seats import Seat

#: Seconds that the store may take for an answer; in a worker that ends, for its last one.
PATIENCE: Final = 5.0

#: Seconds after which a store that is away is asked again, if nobody says when.
_A_WHILE: Final = 1.0

#: Verdicts that the store is told at once.
_MOST: Final = 500

#: Verdicts that are told without waiting for more; and seconds for which that is waited for.
_ENOUGH: Final = 100
_GATHERING: Final = 0.003

#: How much of an error is kept with a job whose result cannot be.
_MOST_SAID: Final = 500


class Settling:
    """is_durable: whether the journal knows of a job's run too. leave: called when nothing is to be done for a seat.
    more_soon: whether more jobs will end within a moment.
    """

    def __init__(
        self,
        store: JobStore,
        is_durable: Callable[[Job], bool],
        leave: Callable[[Seat], None],
        more_soon: Callable[[], bool] = lambda: False,
    ) -> None:
        self.came: Counter[str] = Counter()  # how often each kind of verdict was the worker's to say
        self.ends = False  # whether the worker does
        self._store = store
        self._is_durable = is_durable
        self._leave = leave
        self._more_soon = more_soon
        self._verdicts: deque[tuple[Seat, Verdict]] = deque()
        self._more = trio.Event()
        self._enough = trio.Event()

    def add(self, seat: Seat, verdict: Verdict) -> None:
        """The store is to be told."""
        self._verdicts.append((seat, verdict))
        self._more.set()
        if len(self._verdicts) >= _ENOUGH:
            self._enough.set()

    async def run(self) -> None:
        """Tell it, until cancelled."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._verdicts:
                await self._gather()
                told = [self._verdicts.popleft() for _ in range(min(len(self._verdicts), _MOST))]
                await self._settle(told)
                for seat, _ in told:
                    self._leave(seat)

    async def _gather(self) -> None:
        """Let more come, if they will at once: to tell of one takes the store as long as several short jobs take."""
        if len(self._verdicts) < _ENOUGH and self._more_soon() and not self.ends:
            self._enough = trio.Event()
            with trio.move_on_after(_GATHERING):
                await self._enough.wait()

    async def _settle(self, told: list[tuple[Seat, Verdict]]) -> None:
        while left := deque((seat, verdict) for seat, verdict in told if not seat.lost):
            try:
                with trio.move_on_after(PATIENCE):
                    await self._settle_once(left)
            except NotKeepable as error:
                if len(left) > 1:  # one of them has spoilt it for the others
                    for one in left:
                        await self._settle([one])
                    return
                dead = Verdict("dead", error=f"what it came to cannot be kept: {error}"[:_MOST_SAID])
                if left[0][1] != dead:
                    await self._settle([(left[0][0], dead)])
                    return
                await trio.sleep(_A_WHILE)  # not even that can be
            except JournalUnavailable as error:
                await trio.sleep(error.retry_after or _A_WHILE)
            if self.ends:
                return
            told = [*left]

    async def _settle_once(self, left: deque[tuple[Seat, Verdict]]) -> None:
        """Take those away that the store was told of."""
        held = await self._store.settle([(seat.job.job_id, seat.job.fence, verdict) for seat, verdict in left])
        for theirs in held:
            seat, verdict = left[0]
            # An end that the journal has too is true, whoever has the job by now; one that was put back has none.
            if not theirs and verdict.ran and self._is_durable(seat.job):
                theirs = await self._store.unpark(seat.job.run_id, verdict)
            seat.lost = not theirs
            self.came[_counted(verdict)] += theirs
            left.popleft()


def _counted(verdict: Verdict) -> str:
    if verdict.state == "scheduled":
        return "again" if verdict.counts else "back"
    return verdict.state
