"""The feed: runs as they end, to every page that looks.

Law: a page that is slow costs no more than one that is quick. Each has room for so many runs; what comes while it is
full is counted and left out, and the page is told how many it has missed. Runs that end together go out together, a few
times a second: a storm is one event, and a browser draws it once. A run is summed up when it goes out, and once for all
pages, so a storm costs no more summaries than are shown. Only runs that the ring remembers are told of, for a page is
there to open them. While nobody looks, a run costs nothing.

Precedent: Phoenix LiveDashboard's metrics listener, which keeps no more than its page can draw; refused: its mailbox,
which grows as long as the page is slow.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import attrs
import trio

from zerver.http import Event
from zerver.runtime import Result
from zerver.trace.batch import Batch

#: Seconds between two events of one page.
INTERVAL: Final = 0.25

#: Runs kept for a page that has not taken them.
MOST_KEPT: Final = 100

#: Pages that may look at once.
MOST_PAGES: Final = 16

_TICK: Final = 1.0  # seconds between looks at what is under way
_LONGEST: Final = 3600.0  # seconds of one stream: a cookie that has ended must not be of use for ever

Document = dict[str, Any]


@attrs.frozen
class FeedStatistics:
    """pages: that look now. missed: runs that were left out, since the start."""

    pages: int
    missed: int


class Feed:
    """Tells pages of runs that have ended. A listener of the recorder.

    summary: of a run, as JSON. running: those under way, as {runs, total}. overview: the page's overview.
    """

    def __init__(
        self,
        summary: Callable[[Result], Document],
        running: Callable[[], Document],
        overview: Callable[[], Awaitable[Document]],
    ) -> None:
        self._summary = summary
        self.running = running
        self.overview = overview
        self._watchers: set[Watcher] = set()
        self._missed = 0

    def take(self, results: Sequence[Result], /) -> None:
        """Tell of runs that have ended."""
        if not self._watchers:
            return
        remembered = Batch.of(results).remembered
        newest = [_Told(result, self._summary) for result in remembered[-MOST_KEPT:]]
        for watcher in self._watchers:
            self._missed += watcher.tell(newest, len(results) - len(newest))

    def watch(self, *, overview: bool = False) -> Watcher | None:
        """A page that begins to look: an iterator of events, to be closed. None when too many look already."""
        if len(self._watchers) >= MOST_PAGES:
            return None
        watcher = Watcher(self, overview)
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """It looks no more."""
        self._watchers.discard(watcher)

    def statistics(self) -> FeedStatistics:
        return FeedStatistics(len(self._watchers), self._missed)


class _Told:
    """A run that is told of, and its summary once somebody has asked for it."""

    __slots__ = ("_make", "_result", "_summary")

    def __init__(self, result: Result, make: Callable[[Result], Document]) -> None:
        self._result = result
        self._make = make
        self._summary: Document | None = None

    @property
    def summary(self) -> Document:
        if self._summary is None:
            self._summary = self._make(self._result)
        return self._summary


class Watcher(AsyncIterator[Event]):
    """One page that looks. No async generator: one that was never begun could not be closed."""

    def __init__(self, feed: Feed, overview: bool) -> None:
        self._feed = feed
        self._wants_overview = overview
        self._kept: deque[_Told] = deque()
        self._missed = 0
        self._news = trio.Event()
        now = trio.current_time()
        self._ends = now + _LONGEST
        self._runs_at = now
        self._running_at = now
        self._overview_at = now if overview else float("inf")
        self._greeted = self._closed = False
        self._shown: Document | None = None

    def tell(self, newest: Sequence[_Told], skipped: int) -> int:
        """Keep what there is room for, the newest. How many were left out."""
        self._kept.extend(newest)
        missed = skipped
        while len(self._kept) > MOST_KEPT:
            self._kept.popleft()
            missed += 1
        self._missed += missed
        self._news.set()
        return missed

    async def __anext__(self) -> Event:
        if not self._greeted:
            self._greeted = True
            return Event.json({"now_unix_ms": time.time() * 1e3, "interval_ms": int(INTERVAL * 1e3)}, event="hello")
        while not self._closed:
            now = trio.current_time()
            if now >= self._ends:
                break
            event = await self._due(now)
            if event is not None:
                return event
            await self._wait(now)
        raise StopAsyncIteration

    async def _due(self, now: float) -> Event | None:
        if (self._kept or self._missed) and now >= self._runs_at:
            self._runs_at = now + INTERVAL
            told = {"runs": [one.summary for one in self._kept], "missed": self._missed}
            self._kept.clear()
            self._missed = 0
            return Event.json(told, event="runs")
        if now >= self._running_at:
            self._running_at = now + _TICK
            running = self._feed.running()
            if running != self._shown and (running["total"] or self._shown is not None):
                self._shown = running
                return Event.json(running, event="running")
        if now >= self._overview_at:
            self._overview_at = now + _TICK
            return Event.json(await self._feed.overview(), event="overview")
        return None

    async def _wait(self, now: float) -> None:
        due = min(self._running_at, self._overview_at, self._ends)
        if self._kept or self._missed:
            due = min(due, self._runs_at)
            with trio.move_on_at(due):
                await trio.sleep_forever()
            return
        self._news = trio.Event()
        with trio.move_on_at(due):
            await self._news.wait()

    async def aclose(self) -> None:
        """Look no more. No checkpoint: nothing has to be waited for."""
        self._closed = True
        self._feed.leave(self)
