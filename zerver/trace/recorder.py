"""The recorder: takes the runs that have ended off the request path, and hands them to whoever wants to know.

Law: a run pays for one append, whoever listens. What listeners do with it is done later, in batches, a fraction of a
millisecond at a time; one that raises is reported, and spoils it neither for the run nor for the others. What is
too much is dropped, and counted.

    runtime ── add ──▶ a bounded queue ── 64 of them, or 50 ms later ──▶ the ring, then each listener

Two tasks, one for full batches and one for the rest, sleep while nothing happens; nobody polls. A batch is handed over
as soon as it is full, while its runs are still in the processor's cache; the memory of those that nobody keeps is used
again by the next. To wait for 50 ms in any case was measured, and cost a busy server more than all listeners did.
Refused: a trio memory channel (its send costs a task switch when somebody waits, 20 times an append), listeners with
tasks of their own for each run, and to have the run that fills a batch hand it over, which saves no more than that
task's turn. To sort each run when it ends, and to forget at once what nobody keeps, was tried too, and cost no
less than to do it by the batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import attrs
import trio

from zerver.errors import DefinitionError
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.result import Result
from zerver.trace.batch import Batch
from zerver.trace.ring import Ring

#: Runs come together for so long (seconds) before they are handed over, unless they are enough before: a listener's
#: cost is by the batch.
BATCH_SECONDS: Final = 0.05

#: So many runs are a batch.
SLICE: Final = 64

_SILENCE: Final = 10.0  # seconds for which a listener that has been reported is not reported again

_log = logging.getLogger("zerver.trace")


class Listener(Protocol):
    """Wants to know of every run that has ended, a moment after it has."""

    def take(self, results: Sequence[Result], /) -> None:
        """Take some runs, oldest first, 64 at most. To be quick: the loop is held meanwhile. Errors are reported.

        They are a `Batch`, in which those that are alike can be had by the group.
        """
        ...


@attrs.frozen
class RecorderStatistics:
    """Runs: handed_over to the listeners, pending, and dropped because there were too many. listener_errors: batches
    that a listener failed on.
    """

    handed_over: int
    pending: int
    dropped: int
    listener_errors: int


def log_defect(defect: Exception) -> None:
    """The default of `on_defect`: the traceback, to the logger `zerver.trace`."""
    _log.error("a listener of the trace has a defect", exc_info=defect)


class Recorder:
    """Hands runs on. Made by `open_recorder`."""

    def __init__(
        self, ring: Ring, listeners: Sequence[Listener], most_pending: int, on_defect: Callable[[Exception], None]
    ) -> None:
        self._ring = ring
        self._listeners: Sequence[Listener] = list(listeners)
        self._pending: list[Result] = []
        self._most_pending = most_pending
        self._on_defect = on_defect
        self._first = trio.lowlevel.ParkingLot()  # for a first run
        self._full = trio.lowlevel.ParkingLot()  # for a full batch
        self._busy = False
        self._handed_over = self._dropped = self._errors = 0
        self._reported: dict[int, float] = {}  # id of a listener -> until when it is not reported again

    def add(self, result: Result) -> None:
        """Tell of a run that has ended: an observer, for `open_runtime(observers=[recorder.add])`."""
        pending = self._pending
        pending.append(result)
        many = len(pending)
        if many > self._most_pending:
            pending.pop()
            self._dropped += 1
        elif many == SLICE:
            self._full.unpark_all()
        elif many == 1:
            self._first.unpark_all()

    def listen(self, listener: Listener) -> None:
        """Hand runs to this one too, from the next on."""
        self._listeners = [*self._listeners, listener]  # a new list: one of them may be in the middle of a batch

    def leave(self, listener: Listener) -> None:
        """Hand it no more runs. Whoever does not listen is left as he is."""
        self._listeners = [other for other in self._listeners if other is not listener]
        self._reported.pop(id(listener), None)

    @property
    def ring(self) -> Ring:
        """The last runs, all that have ended by now."""
        self.flush()
        return self._ring

    def flush(self) -> None:
        """Hand over all that is pending, at once."""
        while self._pending and not self._busy:  # a listener may look at the ring, too
            self._hand_over()

    def statistics(self) -> RecorderStatistics:
        return RecorderStatistics(self._handed_over, len(self._pending), self._dropped, self._errors)

    async def hand_over_batches(self) -> None:
        """Hand over each batch as soon as it is full, until cancelled."""
        while True:
            if len(self._pending) < SLICE:
                await self._full.park()
            else:
                await trio.lowlevel.checkpoint()  # others have their turn between two
            if len(self._pending) >= SLICE:  # unless somebody has flushed meanwhile
                self._hand_over()

    async def hand_over_rest(self) -> None:
        """Hand over what has not filled a batch after a while, until cancelled."""
        while True:
            if not self._pending:
                await self._first.park()
            await trio.sleep(BATCH_SECONDS)
            self.flush()

    def _hand_over(self) -> None:
        """Hand one batch over."""
        pending = self._pending
        batch = Batch(pending[:SLICE])
        del pending[:SLICE]
        self._handed_over += len(batch)
        batch.remembered = self._ring.take(batch)
        self._busy = True
        for listener in self._listeners:
            try:
                listener.take(batch)
            except Exception as defect:
                self._errors += 1
                self._report(listener, defect)
        self._busy = False

    def _report(self, listener: Listener, defect: Exception) -> None:
        """Report a listener, but not twenty times a second."""
        now = trio.current_time()
        if now < self._reported.get(id(listener), float("-inf")):
            return
        self._reported[id(listener)] = now + _SILENCE
        try:
            self._on_defect(defect)
        except Exception:  # whoever is told of defects may have one: there is nobody left to tell
            _log.exception("on_defect has a defect")


@asynccontextmanager
async def open_recorder(
    *,
    ring: Ring | None = None,
    listeners: Sequence[Listener] = (),
    most_pending: int = 20_000,
    on_defect: Callable[[Exception], None] = log_defect,
) -> AsyncGenerator[Recorder, None]:
    """Hand runs that have ended to a ring and to listeners; when the block is left, all that are pending first.

        async with open_recorder(listeners=[metrics]) as recorder:
            async with open_runtime(app, observers=[recorder.add]) as runtime: ...

    It goes around the runtime, whose last runs end when that is closed. most_pending: runs; beyond it new ones are
    dropped and counted, as when the loop is so busy that nobody gets a turn to hand them over. on_defect: told of what
    a listener raises, once in ten seconds for each. Raises DefinitionError for a queue that holds nothing.
    """
    if most_pending < 1:
        raise DefinitionError(f"open_recorder(most_pending={most_pending})", "give 1 or more runs")
    recorder = Recorder(Ring() if ring is None else ring, listeners, most_pending, on_defect)
    async with open_body_nursery() as nursery:
        nursery.start_soon(recorder.hand_over_batches)
        nursery.start_soon(recorder.hand_over_rest)
        try:
            yield recorder
        finally:
            recorder.flush()  # no await: bounded by `most_pending`, and nobody can cut it short
            nursery.cancel_scope.cancel()


class WallClock:
    """What o'clock it was at a record: from a runtime's nanoseconds to those since 1970. To be made inside Trio.

    Both clocks are looked at when it is made, so it is good for as long as they agree: make one for each batch.
    """

    __slots__ = ("_origin",)

    def __init__(self) -> None:
        clock = trio.lowlevel.current_clock()
        # As the runtime does: its records have `perf_counter_ns` under Trio's own clock, and a test's clock otherwise.
        real = type(clock).__name__ == "SystemClock"
        now = time.perf_counter_ns() if real else round(clock.current_time() * 1e9)
        self._origin = time.time_ns() - now

    def unix_ns(self, at: int) -> int:
        """Nanoseconds since 1970."""
        return self._origin + at

    def began(self, result: Result) -> int:
        """When a run was received."""
        records = result.timeline.records
        return self._origin + (records[0][1] if records else 0)
