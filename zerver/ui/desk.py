"""The desk: where runs are looked for, and opened for looking.

Law: a run is looked for where it is fresh first: among those under way, in the ring, in the archive, in the journal;
from there on it is a Result, whichever it was. What is small is made on the loop, within the time that a step may take;
what is large goes to a thread, one at a time, so that a run of 100,000 records holds nobody up. What was opened last
stays open.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias, TypeVar

import attrs
import trio

from zerver.core import timeline as t
from zerver.core.app import App
from zerver.core.flows import Flow
from zerver.core.jobs import job_of_run
from zerver.core.plan import Plan, compile_plan
from zerver.errors import DefinitionError
from zerver.runtime import Result, Runtime
from zerver.runtime.journal import StoredRun
from zerver.runtime.live import Run
from zerver.trace import Ring
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.recorder import WallClock
from zerver.trace.recording import Recording, decode_run
from zerver.trace.view import Opened
from zerver.ui.archive import Archive

T = TypeVar("T")

Source: TypeAlias = Literal["live", "ring", "store", "journal"]
Document: TypeAlias = dict[str, Any]

#: Records up to which a run is looked at on the loop: about 10 ms.
SMALL: Final = 500

_MOST_OPEN: Final = 2  # large runs; each takes some tens of megabytes
_MOST_PLANS: Final = 1000
_PREFIX: Final = 6  # characters of an id that may stand for it

_UNDER_WAY: Final = t.Ending("cancelled", reason="it is under way")


@attrs.frozen(eq=False)
class Found:
    """A run. recording: where it came from, for one of the archive; stored: for one of the journal."""

    result: Result
    began_unix_ns: int
    source: Source
    recording: Recording | None = None
    stored: StoredRun | None = None

    @property
    def is_small(self) -> bool:
        return len(self.result.timeline.records) <= SMALL


class Desk:
    """Finds and opens runs. runtime: None until the app is open. ring: None when nothing is recorded."""

    def __init__(
        self, ring: Callable[[], Ring] | None, archive: Archive | None = None, hidden: Hidden = NOTHING_HIDDEN
    ) -> None:
        self.runtime: Runtime | None = None
        self.archive = archive
        self.hidden = hidden
        self._ring = ring
        self._opened: OrderedDict[str, tuple[Result, Opened]] = OrderedDict()
        self._plans: dict[str, Plan | None] = {}
        self._thread = trio.CapacityLimiter(1)

    @property
    def ring(self) -> Ring | None:
        return None if self._ring is None else self._ring()

    @property
    def under_way(self) -> tuple[Run, ...]:
        return () if self.runtime is None else self.runtime.under_way()

    # -- one run --

    async def find(self, said: str) -> Found | None:
        """The run of this id, or of a beginning of six characters or more that fits one run alone."""
        whole = "." in said and job_of_run(said) != ""  # a job's first run has an id that its tenth begins with
        runs = [run for run in self.under_way if (run.run_id == said if whole else is_meant(run.run_id, said))]
        if len(runs) == 1:
            return self._live(runs[0])
        ring = self.ring
        result = None if ring is None else ring.get(said)
        if result is not None and (not whole or result.run_id == said):
            return Found(result, WallClock().began(result), "ring")
        found = await self._archived(said)
        if found is not None and (not whole or found.result.run_id == said):
            return found
        return await self._journaled(said)

    async def _archived(self, said: str) -> Found | None:
        recording = None if self.archive is None else await self.archive.find(said)
        if recording is None:
            return None
        kept = recording
        large = len(kept.body) > SMALL * 100
        result = await self.work(lambda: decode_run(kept), large)
        return Found(result, kept.began_unix_ns, "store", kept)

    async def _journaled(self, said: str) -> Found | None:
        """A run that is nowhere else: put down, left by a process that died, or ended long ago. Its whole id alone."""
        clerk = None if self.runtime is None else self.runtime.clerk
        if clerk is None:
            return None
        stored = await clerk.journal.read(said)
        if stored is None:
            return None
        reader = clerk.journal.notation.reader()
        timeline = await self.work(lambda: reader.read(stored), len(stored.lines) > SMALL)
        ending = timeline.ending
        result = Result(timeline, ending or _UNDER_WAY, sealed=ending is not None)
        return Found(result, stored.head.began_unix_ns, "journal", stored=stored)

    def _live(self, run: Run) -> Found:
        """A moment of a run that goes on: nobody writes into this list any more."""
        timeline = attrs.evolve(run.timeline, records=list(run.records))
        result = Result(timeline, run.machine.ending or _UNDER_WAY, sealed=False)
        return Found(result, WallClock().began(result), "live")

    async def open(self, found: Found) -> Opened:
        """The run, opened: the same as last time, if it is large and has not changed."""
        run_id, result = found.result.run_id, found.result
        known = self._opened.get(run_id)
        if known is not None and (known[0] is result or found.source == "store"):
            self._opened.move_to_end(run_id)
            return known[1]
        if found.is_small:
            return Opened(result, found.began_unix_ns, self.hidden)
        opened = await self.work(lambda: _warm(Opened(result, found.began_unix_ns, self.hidden)), large=True)
        if found.source != "live":
            self._opened[run_id] = (result, opened)
            while len(self._opened) > _MOST_OPEN:
                self._opened.popitem(last=False)
        return opened

    async def work(self, make: Callable[[], T], large: bool) -> T:
        """Do something for the page: in the thread, if it is large. Cancelled, the thread goes on for nobody."""
        if not large:
            return make()
        return await trio.to_thread.run_sync(_without_gc, make, abandon_on_cancel=True, limiter=self._thread)

    async def rerun(self, make: Callable[[], T]) -> T:
        """The same for what runs the app's own code, however small: nobody knows how long it takes."""
        return await trio.to_thread.run_sync(make, abandon_on_cancel=True, limiter=self._thread)

    # -- what its code is --

    def plan(self, found: Found) -> tuple[Plan | None, str]:
        """The code's plan of the run, to replay it; or None, and why there is none."""
        records = found.result.timeline.records
        recorded = next((record[2] for record in records if record[0] == t.INPUT), None)
        if recorded is None:
            return None, "nothing of it was begun"
        if found.source == "journal":
            return None, "it is shown from the journal, whose runs are not replayed here"
        if found.recording is None:
            return recorded, ""
        timeline = found.result.timeline
        plan = self.plan_of(timeline.label, timeline.flow)
        return plan, "" if plan is not None else f"flow {timeline.flow!r} is not served here any more"

    def plan_of(self, label: str, flow: str) -> Plan | None:
        """The plan of a flow, behind the before-chain of the route with this label, or of the first to serve it."""
        key = f"{label}\0{flow}"
        if key not in self._plans and self.runtime is not None:
            if len(self._plans) > _MOST_PLANS:  # the labels of mounts are the callers' own
                self._plans.clear()
            self._plans[key] = _compiled(self.runtime, label, flow)
        return self._plans.get(key)

    def version_of(self, flow: str) -> str | None:
        """The version of the code's flow of this name."""
        known = None if self.runtime is None else flows_of(self.runtime.app).get(flow)
        return None if known is None else known.version


def flows_of(app: App) -> dict[str, Flow]:
    """The flows that it serves, and those that are its jobs, by name."""
    return {**{name: rule.flow for name, rule in app.jobs.items()}, **app.flows}


def is_meant(run_id: str, said: str, least: int = _PREFIX) -> bool:
    bare = said.removeprefix("req_")
    return run_id == said or (len(bare) >= least and run_id.removeprefix("req_").startswith(bare))


def _compiled(runtime: Runtime, label: str, flow: str) -> Plan | None:
    job = runtime.app.jobs.get(flow)
    if job is not None and job.label == label:
        return compile_plan(job.flow)
    routes = [route for route in runtime.app.routes if any(one.name == flow for one in route.flows)]
    for route in sorted(routes, key=lambda route: route.label != label):
        try:
            return route.plan() if route.flow.name == flow else route.degrade_plan()
        except DefinitionError:  # it was checked when the app was opened; but a page must not fail of it
            continue
    return None if job is None else compile_plan(job.flow)


# ---- large ones -----------------------------------------------------------------------------


def _warm(opened: Opened) -> Opened:
    """Make what every look at it needs."""
    _ = opened.tree
    return opened


_gc_lock = threading.Lock()


@contextmanager
def _gc_paused() -> Iterator[None]:
    """No collection meanwhile: a large run is some hundred thousand objects that all stay, and looking through them
    again and again takes longer than making them does. One at a time, for a second or so.
    """
    with _gc_lock:
        was = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was:
                gc.enable()


def _without_gc(make: Callable[[], T]) -> T:
    with _gc_paused():
        return make()
