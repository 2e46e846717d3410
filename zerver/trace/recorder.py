"""The recorder: takes the runs that have ended off the request path, and hands them to whoever wants to know.

Law: a run pays for one append, whoever listens. What listeners do with it is done by one task, in batches, a few
milliseconds at a time; one that raises is reported, and spoils it neither for the run nor for the others. What is
too much is dropped, and counted.

    runtime ── add ──▶ a bounded queue ── at most 50 ms later ──▶ the ring, then each listener

The task sleeps while nothing happens, and is woken by the first run; nobody polls. Refused: a trio memory channel (its
send costs a task switch when somebody waits, 20 times an append), and listeners with tasks of their own for each run.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

import attrs
import trio

from zerver.errors import DefinitionError
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.result import Result
from zerver.trace.ring import Ring

#: Runs come together for so long (seconds) before they are handed over: a listener's cost is by the batch.
BATCH_SECONDS: Final = 0.05

#: So many runs are handed over at once, before others may have the loop.
SLICE: Final = 64

_SILENCE: Final = 10.0  # seconds for which a listener that has been reported is not reported again

_log = logging.getLogger("zerver.trace")


class Listener(Protocol):
    """Wants to know of every run that has ended, a moment after it has."""

    def take(self, results: Sequence[Result], /) -> None:
        """Take some runs, oldest first, 64 at most. To be quick: the loop is held meanwhile. Errors are reported."""
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
        self._pending: deque[Result] = deque()
        self._most_pending = most_pending
        self._on_defect = on_defect
        self._wake = trio.Event()
        self._asleep = False
        self._busy = False
        self._handed_over = self._dropped = self._errors = 0
        self._reported: dict[int, float] = {}  # id of a listener -> until when it is not reported again

    def add(self, result: Result) -> None:
        """Tell of a run that has ended: an observer, for `open_runtime(observers=[recorder.add])`."""
        pending = self._pending
        if len(pending) >= self._most_pending:
            self._dropped += 1
            return
        pending.append(result)
        if self._asleep:
            self._asleep = False
            self._wake.set()

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
        while not self._busy and self._hand_over():  # a listener may look at the ring, too
            pass

    def statistics(self) -> RecorderStatistics:
        return RecorderStatistics(self._handed_over, len(self._pending), self._dropped, self._errors)

    async def run(self) -> None:
        """Hand runs over until cancelled."""
        while True:
            if not self._pending:
                self._wake = trio.Event()
                self._asleep = True
                try:
                    await self._wake.wait()
                finally:
                    self._asleep = False
            await trio.sleep(BATCH_SECONDS)
            while self._hand_over():
                await trio.lowlevel.checkpoint()

    def _hand_over(self) -> bool:
        """Hand one slice over. Whether there is more."""
        pending = self._pending
        batch = [pending.popleft() for _ in range(min(SLICE, len(pending)))]
        self._handed_over += len(batch)
        for result in batch:
            self._ring.add(result)
        self._busy = True
        for listener in self._listeners if batch else ():
            try:
                listener.take(batch)
            except Exception as defect:
                self._errors += 1
                self._report(listener, defect)
        self._busy = False
        return bool(pending)

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
    dropped and counted, as when the loop is so busy that this task hardly gets a turn. on_defect: told of what a
    listener raises, once in ten seconds for each. Raises DefinitionError for a queue that holds nothing.
    """
    if most_pending < 1:
        raise DefinitionError(f"open_recorder(most_pending={most_pending})", "give 1 or more runs")
    recorder = Recorder(Ring() if ring is None else ring, listeners, most_pending, on_defect)
    async with open_body_nursery() as nursery:
        nursery.start_soon(recorder.run)
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
