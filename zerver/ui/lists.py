"""Lists: runs as one line each, those under way, those in memory and those on disk together.

Law: a list opens no run that it does not show, and shows each once, from where it is fresh. A summary is made once.
What is large is summed up in the desk's thread; where that cannot be waited for, it is told without its causes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, Final, TypeAlias

import attrs
import trio

from zerver.runtime import Result
from zerver.runtime.live import Run
from zerver.trace.recorder import WallClock
from zerver.trace.summary import Filter, Summary, summarize
from zerver.trace.veil import escaped
from zerver.ui.desk import SMALL, Desk, Found, is_meant
from zerver.ui.rates import took_ns

Document: TypeAlias = dict[str, Any]

_MOST_KEPT: Final = 2000
_AT_ONCE: Final = 20  # summaries made between two looks at others


class Lists:
    """Lists and sums up the runs of a desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._summaries: OrderedDict[str, tuple[Result, Summary]] = OrderedDict()

    async def search(
        self, wanted: Filter, limit: int, *, said: str = "", live_only: bool = False
    ) -> tuple[list[Document], bool]:
        """Summaries of the runs that fit, under way first, then newest first; and whether there are more."""
        told = list(islice(self._live(wanted, said), limit + 1))
        if live_only:
            return told[:limit], len(told) > limit
        seen = {one["id"] for one in told}
        ended = {one.run_id: (one, "ring") for one in await self._of_the_ring(wanted, limit + 1, said)}
        for one in await self._of_the_archive(wanted, limit + 1, said):
            known = ended.get(one.run_id)
            ended[one.run_id] = (one, "store" if known is None else known[1])
        newest = sorted(ended.values(), key=lambda pair: -pair[0].began_unix_ns)
        told += [_told(one, source) for one, source in newest if one.run_id not in seen]
        return told[:limit], len(told) > limit

    def _live(self, wanted: Filter, said: str) -> Iterator[Document]:
        for run in self.desk.under_way:
            if not said or is_meant(run.run_id, said, 1):
                one = self.live_summary(run)
                if wanted.fits(one):
                    yield _told(one, "live")

    async def _of_the_ring(self, wanted: Filter, count: int, said: str) -> list[Summary]:
        ring = self.desk.ring
        if ring is None:
            return []
        clock = WallClock()

        def fits(result: Result) -> bool:
            began = clock.began(result)
            return (
                (not said or is_meant(result.run_id, said, 1))
                and (not wanted.status or wanted.http is not None or result.status == wanted.status)
                and (wanted.since_unix_ns is None or began >= wanted.since_unix_ns)
                and (wanted.until_unix_ns is None or began < wanted.until_unix_ns)
            )

        found = ring.latest(
            count,
            flow=wanted.route or None,
            tenant=wanted.tenant,
            failed=True if wanted.failed else None,
            unresolved=True if wanted.unresolved else None,
            slower_than=None if wanted.slower_than_ns is None else wanted.slower_than_ns / 1e9,
            where=lambda result: fits(result) and (wanted.http is None or _has_http(result, wanted.http)),
        )
        told = []
        for number, result in enumerate(found):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            told.append(await self.summary(result, clock))
        return told

    async def _of_the_archive(self, wanted: Filter, count: int, said: str) -> list[Summary]:
        archive = self.desk.archive
        if archive is None:
            return []
        if said:
            return [one for one in await archive.matching(said, count) if wanted.fits(one)]
        return await archive.search(wanted, count)

    # -- summaries --

    async def summary(self, result: Result, clock: WallClock) -> Summary:
        """The summary of a run that has ended."""
        known = self._known(result)
        if known is not None:
            return known
        large = len(result.timeline.records) > SMALL
        return self._keep(result, await self.desk.work(partial(self._summarized, result, clock.began(result)), large))

    def told(self, result: Result) -> Document:
        """A run that has just ended, as the feed tells it; of a large one without why, as this holds the loop."""
        began = WallClock().began(result)
        if len(result.timeline.records) > SMALL:
            return _told(self._brief(result, began), "ring")
        return _told(self._known(result) or self._keep(result, self._summarized(result, began)), "ring")

    def _known(self, result: Result) -> Summary | None:
        known = self._summaries.get(result.run_id)
        return known[1] if known is not None and known[0] is result else None

    def _keep(self, result: Result, made: Summary) -> Summary:
        self._summaries[result.run_id] = (result, made)
        while len(self._summaries) > _MOST_KEPT:
            self._summaries.popitem(last=False)
        return made

    def live_summary(self, run: Run) -> Summary:
        """The summary of a run under way. Its records are not looked through: they may be many, and more will come."""
        timeline = run.timeline
        records = run.records
        return Summary(
            run_id=run.run_id,
            began_unix_ns=WallClock().unix_ns(records[0][1]),
            label=escaped(timeline.label),
            flow=timeline.flow,
            version=timeline.version,
            tenant=escaped(timeline.tenant),
            priority=timeline.priority,
            status="running",
            http=None,
            took_ns=max(0, run.clock() - records[0][1]),
            slow_step=_where(run),
            records=len(records),
        )

    def running(self, most: int) -> Document:
        """Those under way, the oldest first, as the feed tells them."""
        runs = self.desk.under_way
        return {"runs": [_told(self.live_summary(run), "live") for run in runs[:most]], "total": len(runs)}

    async def told_found(self, found: Found) -> Document:
        """The summary of a run that was found."""
        made = await self.desk.work(
            partial(self._summarized, found.result, found.began_unix_ns), large=not found.is_small
        )
        return _told(attrs.evolve(made, status="running") if found.source == "live" else made, found.source)

    def _brief(self, result: Result, began_unix_ns: int) -> Summary:
        timeline = result.timeline
        return Summary(
            run_id=timeline.run_id,
            began_unix_ns=began_unix_ns,
            label=escaped(timeline.label),
            flow=timeline.flow,
            version=timeline.version,
            tenant=escaped(timeline.tenant),
            priority=timeline.priority,
            status=result.status,
            http=timeline.answered,
            took_ns=took_ns(result),
            unresolved=len(result.unresolved),
            records=len(timeline.records),
        )

    def _summarized(self, result: Result, began_unix_ns: int) -> Summary:
        return summarize(result, began_unix_ns=began_unix_ns, hidden=self.desk.hidden)


def _told(one: Summary, source: str) -> Document:
    return {
        "id": one.run_id,
        "began_unix_ms": one.began_unix_ns / 1e6,
        "label": one.label or one.flow,
        "flow": one.flow,
        "version": one.version,
        "tenant": one.tenant,
        "priority": one.priority,
        "status": one.status,
        "http": one.http,
        "took_ns": one.took_ns,
        "kept": one.kept or None,
        "cause": one.cause or None,
        "slow_step": one.slow_step or None,
        "unresolved": bool(one.unresolved),
        "records": one.records or None,
        "source": source,
    }


def _where(run: Run) -> str:
    """The step that a run is in, as far as its last record tells."""
    _, _, subject, _ = run.records[-1]
    step = getattr(subject, "step", None)
    return step if isinstance(step, str) else ""


def _has_http(result: Result, between: tuple[int, int]) -> bool:
    status = result.timeline.answered
    return status is not None and between[0] <= status <= between[1]
