"""The adaptive bulkhead: how many attempts at once a target does well with, found out by watching it.

Law: pure state; seconds of any monotonic clock are arguments. Nothing waits here: `zerver.runtime.bulkhead` does. The
limit moves once per window, by one step of log10(limit), and everything it is moved by is in this table, first line
first:

    queue > 6 log10(limit)                                                     down: more stand there than can be served
    full, and throughput falls as concurrency grows (r < 0)                    down
    full, and throughput does not grow (r < 0.3), but latency does (r > 0.5)   down
    full, and throughput stands still (cv < 0.2), but latency grows (r > 0.5)  down
    less than half of the limit was in use                                     stay: nobody has tried what is there
    queue < 3 log10(limit)                                                     up
    else                                                                       stay

queue = limit * (1 - baseline / recent), TCP Vegas's estimate of how many of those in flight stand in line at the
target. recent: the p90 of a window, median of five, then their moving average. baseline: the slow average of that,
which learns upwards only while there are places free, or at the floor: what is slow while all places are taken may be
slow by our own doing, and a baseline that learns an overload as normal lets the limit swing (Netflix/concurrency-
limits#34, #165; here from 2 to 45 at a target that serves 5 at once, and from 2 to 12 now).

But a target may also have become slower for good, while more is wanted than it can do. Then nothing would ever be
learnt, and the limit sinks to where its error is small: 54 to 11 at one that serves 50, for ever. So when the baseline
has learnt nothing for 30 windows and is what keeps the limit from growing, one window is spent at half the limit. If
half as many in flight are nearly as slow, they were not standing in line: that is how long it takes now. A line would
be half as long, so an overload is not learnt (BBR's probe for the round trip is this idea, with nearly nothing in
flight instead of half).

The three lines about correlation (r, over 20 windows) are Uber Cinnamon's, as failsafe-go has them.

Samples of attempts that began before the limit was last moved are thrown away: they say how it was before
(envoyproxy/envoy#11579). An attempt that timed out is a sample: it took at least so long. Other failures and cancelled
attempts say nothing about how long it takes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Final

import attrs

from zerver.errors import DefinitionError

_PERCENTILE: Final = 0.9
_SMOOTHED: Final = 5  # windows that the median is of, and their average
_WARM: Final = 10  # windows until an average, or a correlation, is one
_CORRELATED: Final = 20  # windows; with the 50 of failsafe-go a limit that falls falls much too far
_LONGEST: Final = 30.0  # seconds: no window is longer, however slow the target
_KEPT: Final = 1024  # samples of one window
_BLIND: Final = 30  # windows without a lesson for the baseline, and then half the limit is tried
_SAME: Final = 0.8  # of the latency, at half the limit: it was no line that made it


@attrs.frozen(kw_only=True)
class Adaptive:
    """A bulkhead that finds its own size: `Target(bulkhead=Adaptive())`.

    initial: attempts at once to begin with. floor, ceiling: what it never goes below and above. window: seconds, at
    least, between two moves; samples: how many each needs.

    Raises DefinitionError unless 1 <= floor <= initial <= ceiling.
    """

    initial: int = 20
    floor: int = 2
    ceiling: int = 200
    window: float = 1.0
    samples: int = 50

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.floor <= self.initial <= self.ceiling:
            raise DefinitionError(
                f"Adaptive(initial={self.initial}, floor={self.floor}, ceiling={self.ceiling}) is in no order",
                "give 1 <= floor <= initial <= ceiling",
            )
        if not (self.window > 0 and self.samples >= 1):
            raise DefinitionError(
                f"Adaptive(window={self.window}, samples={self.samples}) never moves", "give numbers above 0"
            )


class AdaptiveLimit:
    """One target's limit under way. limit: attempts at once, now."""

    def __init__(self, rule: Adaptive) -> None:
        self.rule = rule
        self._exact = float(rule.initial)
        self._moved = float("-inf")
        self._next = float("-inf")  # before it no window ends
        self._took: list[float] = []
        self._seen = 0
        self._fastest = math.inf
        self._most = 0  # in flight at once within the window
        self._windows: deque[float] = deque(maxlen=_SMOOTHED)
        self._recent = _Average(_SMOOTHED)
        self._baseline = _Average(10)
        self._blind = 0  # windows since the baseline has learnt
        self._back_to = 0.0  # the limit before it was halved to look; 0.0 when it is not
        self._history: deque[tuple[float, float, float]] = deque(maxlen=_CORRELATED)  # in flight, throughput, latency

    @property
    def limit(self) -> int:
        return int(self._exact)

    def record(self, began: float, now: float, in_flight: int, full: bool) -> bool:
        """An attempt ended that succeeded, or timed out. in_flight: attempts at once, this one included, when it began.

        full: whether there is no place free now. True if the limit has moved.
        """
        if began < self._moved:
            return False
        took = now - began
        if self._seen < _KEPT:
            self._took.append(took)
        else:
            self._took[self._seen % _KEPT] = took
        self._seen += 1
        self._fastest = min(self._fastest, took)
        self._most = max(self._most, in_flight)
        if self._next == -math.inf:
            self._next = began + self.rule.window
        if now < self._next or self._seen < self.rule.samples:
            return False
        return self._end_window(now, full)

    def _end_window(self, now: float, full: bool) -> bool:
        ordered = sorted(self._took)
        took = max(1e-9, ordered[min(len(ordered) - 1, int(_PERCENTILE * len(ordered)))])
        before = self.limit
        if self._back_to:
            self._learn_at_half(took)
        else:
            self._windows.append(took)
            recent = self._recent.add(sorted(self._windows)[len(self._windows) // 2])
            step = self._decide(max(recent, 1e-9), self._most, full)
            self._exact = min(float(self.rule.ceiling), max(float(self.rule.floor), self._exact + step))
            if self._blind >= _BLIND and step <= 0.0 and self._exact >= 2 * self.rule.floor:
                self._back_to, self._exact = self._exact, self._exact / 2
        self._next = now + min(_LONGEST, max(self.rule.window, 2 * self._fastest))
        self._took, self._seen, self._fastest, self._most = [], 0, math.inf, 0
        if self.limit == before:
            return False
        self._moved = now
        return True

    def _learn_at_half(self, took: float) -> None:
        """The window at half the limit has ended."""
        if took > self._baseline.value and took >= _SAME * self._recent.value:
            self._baseline.value = took
        self._exact, self._back_to, self._blind = self._back_to, 0.0, 0

    def _decide(self, recent: float, in_flight: int, full: bool) -> float:
        """The table above: by how much to move."""
        step = max(1.0, math.log10(self._exact))
        if not full or recent < self._baseline.value or self._exact <= self.rule.floor or not self._history:
            self._baseline.add(recent)
            self._blind = 0
        else:
            self._blind += 1
        queue = math.ceil(self._exact * (1.0 - self._baseline.value / recent))
        self._history.append((float(in_flight), in_flight / recent, recent))
        if queue > 6 * step or (full and self._grows_in_vain()):
            return -step
        if in_flight * 2 < self._exact:
            return 0.0
        return step if queue < 3 * step else 0.0

    def _grows_in_vain(self) -> bool:
        if len(self._history) < _WARM:
            return False
        in_flight, throughput, latency = zip(*self._history, strict=True)
        gained, slowed = correlation(in_flight, throughput), correlation(in_flight, latency)
        return gained < 0.0 or (slowed > 0.5 and (gained < 0.3 or _variation(throughput) < 0.2))


class _Average:
    """A moving average of about `age` values; of the first ten the plain mean, so that the first one does not rule."""

    def __init__(self, age: int) -> None:
        self._weight = 2.0 / (age + 1)
        self._count = 0
        self.value = 0.0

    def add(self, value: float) -> float:
        self._count += 1
        self.value += (value - self.value) * (1.0 / self._count if self._count <= _WARM else self._weight)
        return self.value


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's r, from -1 to 1; 0 when one of them does not vary at all."""
    mean, mean_other = sum(one) / len(one), sum(other) / len(other)
    both = sum((x - mean) * (y - mean_other) for x, y in zip(one, other, strict=True))
    square = sum((x - mean) ** 2 for x in one) * sum((y - mean_other) ** 2 for y in other)
    return max(-1.0, min(1.0, both / math.sqrt(square))) if square > 0.0 else 0.0


def _variation(values: Sequence[float]) -> float:
    """Standard deviation by mean."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) / mean if mean else 0.0
