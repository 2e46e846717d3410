"""The ring: the runs that ended last, in memory.

Law: adding a run costs the same whatever the ring holds, and the ring holds no more than it was told to: so many runs,
and about so many records. The oldest goes first. Nothing is copied and nothing formatted until somebody asks.

Of runs that are alike, it takes no more than a hundred a second of each route, once they would have filled it. Else
10,000 requests a second would be a ring of the last tenth of a second, in which nobody finds the failure of a minute
ago; and each would be made in memory that the processor has not seen for a thousand runs, which costs more than its
records do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import attrs

from zerver.core.quotas import Bucket
from zerver.core.timeline import Status
from zerver.runtime import Result
from zerver.trace.batch import Alike, Batch

#: Runs a second, of those of one route that are alike.
ALIKE: Final = 100.0

_MOST_ROUTES: Final = 1_000  # strangers may invent methods, which are part of some routes' labels
_PREFIX = 6


@attrs.frozen
class RingStatistics:
    """runs, records: held now. added: since the start, and of these dropped: pushed out, or passed over since they were
    like others. failed: those of added that were not done.
    """

    runs: int
    records: int
    added: int
    dropped: int
    failed: int


class Ring:
    """The last runs that ended; `add` is an observer for `open_runtime(observers=[ring.add])`.

    capacity: runs, at least 1. records: how many records they may have together; the newest run is kept in any case.
    """

    def __init__(self, capacity: int = 1000, *, records: int = 100_000) -> None:
        if capacity < 1 or records < 1:
            raise ValueError(f"Ring(capacity={capacity}, records={records}): both must be 1 or more")
        self._capacity = capacity
        self._most_records = records
        self._runs: OrderedDict[str, Result] = OrderedDict()
        self._records = self._added = self._dropped = self._failed = 0
        self._buckets: dict[str, Bucket] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def take(self, results: Sequence[Result]) -> Sequence[Result]:
        """Keep runs that have ended, but not all that are alike of many. Which of them are kept."""
        batch = Batch.of(results)
        kept = [*batch.others]
        for group in batch.alike:
            kept += group.runs[: self._room_for(group)]
        if len(kept) > 1:  # in the order in which they have ended
            chosen = set(map(id, kept))
            kept = [result for result in batch if id(result) in chosen]
        for result in kept:
            self.add(result)
        passed = len(batch) - len(kept)
        self._added += passed
        self._dropped += passed
        return kept

    def add(self, result: Result) -> None:
        """Keep a run that has ended. Constant time, amortized over the runs it pushes out."""
        runs = self._runs
        again = runs.pop(result.run_id, None)
        if again is not None:
            self._records -= len(again.timeline.records)
        runs[result.run_id] = result
        self._records += len(result.timeline.records)
        self._added += 1
        self._failed += not result.ok
        while len(runs) > self._capacity or (self._records > self._most_records and len(runs) > 1):
            _, oldest = runs.popitem(last=False)
            self._records -= len(oldest.timeline.records)
            self._dropped += 1

    def get(self, run_id: str) -> Result | None:
        """The run of this id, or of its beginning: 6 characters or more, without `req_`, that fit one run alone."""
        found = self._runs.get(run_id) or self._runs.get(f"req_{run_id}")
        if found is not None or len(run_id.removeprefix("req_")) < _PREFIX:
            return found
        prefix = f"req_{run_id.removeprefix('req_')}"
        fits = [result for known, result in self._runs.items() if known.startswith((prefix, run_id))]
        return fits[0] if len(fits) == 1 else None

    def latest(
        self,
        count: int = 20,
        *,
        status: Status | None = None,
        flow: str | None = None,
        tenant: str | None = None,
        failed: bool | None = None,
        unresolved: bool | None = None,
        slower_than: float | None = None,
        where: Callable[[Result], bool] | None = None,
    ) -> list[Result]:
        """The newest runs that fit every filter, newest first.

        flow: a flow's name, or an edge's label as "POST /v2/checkout". failed: whether it was not done. slower_than:
        seconds, parked time left out. where: any other question.
        """
        found = []
        for result in self._newest():
            timeline = result.timeline
            if (
                (status is None or result.status == status)
                and (flow is None or flow in (timeline.flow, timeline.label))
                and (tenant is None or timeline.tenant == tenant)
                and (failed is None or failed is not result.ok)
                and (unresolved is None or unresolved is bool(result.unresolved))
                and (slower_than is None or _took(result) > slower_than)
                and (where is None or where(result))
            ):
                found.append(result)
                if len(found) == count:
                    break
        return found if count > 0 else []

    def statistics(self) -> RingStatistics:
        return RingStatistics(len(self._runs), self._records, self._added, self._dropped, self._failed)

    def _room_for(self, group: Alike) -> int:
        """How many of them there is room for; those that ended first are taken."""
        now, route = group.ended, group.route
        bucket = self._buckets.get(route)
        if bucket is None:
            if len(self._buckets) >= _MOST_ROUTES:
                self._buckets.clear()
            bucket = self._buckets[route] = Bucket(ALIKE, max(ALIKE, self._capacity), now)
        room = 0
        while room < len(group.runs) and bucket.take(now):
            room += 1
        return room

    def _newest(self) -> Iterator[Result]:
        return reversed(self._runs.values())


def _took(result: Result) -> float:
    accounts = result.timeline.accounts
    return (accounts.total - accounts.parked) / 1e9
