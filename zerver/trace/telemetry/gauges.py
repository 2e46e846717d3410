"""Gauges: what a runtime and its recorder are doing now, as families of a snapshot.

Law: read when somebody asks, from `statistics()` alone; nothing is kept here but how late the loop has been, which
nobody else measures. Targets may be named by URLs: those with a rule come first, and a hundred have series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import attrs
import trio

from zerver.core.breaker import BreakerState
from zerver.core.priorities import PRIORITIES
from zerver.runtime.statistics import RuntimeStatistics
from zerver.runtime.targets import TargetStatistics
from zerver.trace.recorder import RecorderStatistics
from zerver.trace.telemetry import instruments as i
from zerver.trace.telemetry.instruments import Family, Instrument, Number

_MOST_TARGETS: Final = 100
_STATES: Final[tuple[BreakerState, ...]] = ("closed", "half-open", "open")


def runtime_families(statistics: RuntimeStatistics) -> Iterator[Family]:
    """What a runtime says of itself: admission, turns, targets."""
    admission, turns = statistics.admission, statistics.turns
    classes = admission.classes
    yield _by(i.RUNNING, ((one.priority, one.running) for one in classes))
    yield _by(i.QUEUED, ((one.priority, one.queued) for one in classes))
    yield _by(i.LIMIT, ((one.priority, one.limit) for one in classes))
    yield _by(i.OVERLOADED, ((one.priority, one.overloaded) for one in classes))
    yield _one(i.PARKED, admission.parked)
    yield _one(i.DEGRADED, admission.degraded)
    yield _one(i.DRAINING, admission.draining)
    yield _by(i.TURNS_WAITING, zip(PRIORITIES, turns.waiting, strict=False))
    yield _one(i.STEP_TIME, turns.seconds)
    yield _one(i.DEMOTED, len(turns.demoted))
    yield _one(i.OBSERVER_ERRORS, statistics.observer_errors)
    yield _one(i.OPEN_UNRESOLVED, statistics.open_unresolved)
    yield _one(i.OPEN_STUCK, len(statistics.stuck))
    yield _one(i.OPEN_PARKED, statistics.open_parked)
    yield _one(i.SET_ASIDE, statistics.set_aside)
    yield _one(i.RECOVERED, statistics.recovered)
    yield from _targets(statistics.targets[:_MOST_TARGETS])


def recorder_families(statistics: RecorderStatistics) -> Iterator[Family]:
    """What a recorder had to drop."""
    yield _one(i.RECORDER_DROPPED, statistics.dropped)


def _targets(targets: tuple[TargetStatistics, ...]) -> Iterator[Family]:
    states = (
        Number((one.name, state), float(one.breaker == state))
        for one in targets
        if one.breaker is not None
        for state in _STATES
    )
    yield Family(i.BREAKER, tuple(states))
    yield _by(i.ATTEMPTS, ((one.name, one.attempts) for one in targets))
    yield _by(i.TARGET_FAILURES, ((one.name, one.failures) for one in targets))
    yield _by(i.TARGET_REFUSED, ((one.name, one.refused) for one in targets))
    bounded = [(one.name, one.limit, one) for one in targets if one.limit is not None]
    yield _by(i.BULKHEAD_LIMIT, ((name, limit) for name, limit, _ in bounded))
    yield _by(i.BULKHEAD_USED, ((name, one.at_once) for name, _, one in bounded))
    yield _by(i.BULKHEAD_WAITING, ((name, one.waiting) for name, _, one in bounded))
    yield _by(i.RETRY_TOKENS, ((one.name, one.retry_tokens) for one in targets))


def _one(instrument: Instrument, value: float) -> Family:
    return Family(instrument, (Number((), float(value)),))


def _by(instrument: Instrument, values: Iterable[tuple[str, float]]) -> Family:
    return Family(instrument, tuple(Number((label,), float(value)) for label, value in values))


# ---- how late the loop is -------------------------------------------------------------------


EVERY: Final = 0.1  # seconds
WINDOW: Final = 10.0


@attrs.define(eq=False)
class LoopLag:
    """How late the event loop is, in seconds: what a task that wanted to be woken at a time had to wait beyond it.

    A loop that is held by one long call says so when it comes back, and not before. The worst of the last ten to twenty
    seconds is what a look every fifteen is to see; `seconds` is the last one measured, for whoever judges others by it,
    as `Targets.loop_lag` does.

    Costs one timer: ten times a second. Refused: an instrument of Trio's, which costs half a microsecond every pass.
    """

    _last: float = 0.0
    _worst: float = 0.0
    _worst_before: float = 0.0
    _ends: float = float("-inf")

    def seconds(self) -> float:
        """The last one measured."""
        return self._last

    def worst(self) -> float:
        """The worst one of the last ten seconds at least, and twenty at most."""
        return max(self._worst, self._worst_before)

    def note(self, lag: float, now: float) -> None:
        """It was so late. now: seconds."""
        if now >= self._ends:
            fresh = now < self._ends + WINDOW
            self._worst_before, self._worst = (self._worst if fresh else 0.0), 0.0
            self._ends = now + WINDOW
        self._last = lag
        self._worst = max(self._worst, lag)

    async def watch(self, clock: Callable[[], float] = trio.current_time) -> None:
        """Measure until cancelled."""
        while True:
            due = clock() + EVERY
            await trio.sleep_until(due)
            now = clock()
            self.note(max(0.0, now - due), now)

    def families(self) -> Iterator[Family]:
        """For `Metrics.watch`."""
        yield _one(i.LOOP_LAG, self.worst())
