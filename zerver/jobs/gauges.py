"""Gauges: what a worker does, and what waits in the queues, as families of a snapshot.

Law: what a worker says of itself is read when somebody asks. What the store says costs a query: it is read by a task of
its own, every ten seconds, and never more often than for a hundredth of the time; whoever asks gets what was read last.
While the store cannot be read nothing is told of it, which is what an alarm can be made of. Queues that have series are
a hundred at most.

The queues are those of the store: each worker sees them all. A sum over workers would count them again: take the most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs
import trio

from zerver.errors import JournalUnavailable
from zerver.jobs.port import JobState, JobStore, QueueState
from zerver.jobs.worker import WorkerStatistics
from zerver.trace.telemetry import instruments as i
from zerver.trace.telemetry.instruments import Family, Number

#: Seconds between two looks at the queues; and how much longer than a look the time between two is at least.
EVERY: Final = 10.0
SPARSE: Final = 100.0

#: States that say what is to be done. How many jobs were done is counted by workers; the store forgets them.
_TOLD: Final[tuple[JobState, ...]] = ("waiting", "scheduled", "available", "running", "parked", "dead")

_OUTCOMES: Final = ("done", "again", "back", "dead", "cancelled", "parked", "lost")

_MOST_QUEUES: Final = 100


def worker_families(statistics: WorkerStatistics) -> Iterator[Family]:
    """What a worker says of itself."""
    counted = attrs.asdict(statistics, recurse=False)
    yield Family(i.JOBS_SEATS, (Number((), float(statistics.seats)),))
    running = [Number((queue,), float(number)) for queue, number in statistics.running.items()]
    yield Family(i.JOBS_RUNNING, tuple(running[:_MOST_QUEUES]))
    yield Family(i.JOBS_TAKEN, (Number((), float(statistics.taken)),))
    yield Family(i.JOBS_ENDED, tuple(Number((name,), float(counted[name])) for name in _OUTCOMES))
    yield Family(i.JOBS_RESCUED, (Number((), float(statistics.rescued)),))


class QueueGauges:
    """What waits in the queues of a store. now: wall time in nanoseconds."""

    def __init__(self, store: JobStore, now: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._now = now
        self._queues: Sequence[QueueState] = ()

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            began = trio.current_time()
            try:
                self._queues = (await self._store.queues())[:_MOST_QUEUES]
            except JournalUnavailable:
                self._queues = ()
            await trio.sleep(max(EVERY, SPARSE * (trio.current_time() - began)))

    def families(self) -> Iterator[Family]:
        """For `Metrics.watch`."""
        queues, now = self._queues, self._now()
        counts = (
            Number((queue.rule.name, state), float(queue.counts.get(state, 0))) for queue in queues for state in _TOLD
        )
        yield Family(i.QUEUE_JOBS, tuple(counts))
        ages = ((queue.rule.name, now - queue.oldest_unix_ns if queue.oldest_unix_ns else 0) for queue in queues)
        yield Family(i.QUEUE_AGE, tuple(Number((name,), max(0, age) / 1e9) for name, age in ages))
        yield Family(i.QUEUE_PAUSED, tuple(Number((queue.rule.name,), float(queue.paused)) for queue in queues))
