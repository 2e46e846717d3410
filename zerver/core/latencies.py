"""Latencies: what an operation has lately needed, and what it needs usually.

Law: pure state; `now` (seconds, any monotonic origin) is an argument. Adding a sample is O(1); the samples are sorted
once a second at most, and every percentile is read from that. The last minute counts, each ten seconds of it alike: a
burst is thinned out as it comes, by keeping every second sample, then every fourth, so that memory is bounded too.
"""

from __future__ import annotations

from collections import deque
from typing import Final

#: Fewer samples say nothing.
MIN_SAMPLES: Final = 100

_SPAN = 10.0  # seconds of one bucket
_BUCKETS = 6
_KEPT = 256  # samples of one bucket
_FRESH = 1.0  # seconds for which sorted samples are good
_LEARNS = 0.02  # of the difference, once a second: what is usual changes within a minute or two


class Latencies:
    """The successes of one operation, in seconds.

    usual_p50, usual_p99: slow moving averages of these percentiles, 0.0 while nothing is known. One that has become
    slow for good is usual after some minutes.
    """

    __slots__ = ("_buckets", "_ends", "_newest", "_skip", "_sorted", "_sorted_until", "_stride", "usual_p50",
                 "usual_p99")  # fmt: skip

    def __init__(self) -> None:
        self._buckets: deque[tuple[float, list[float]]] = deque()  # (when it ends, samples); the last one is filled
        self._newest: list[float] = []
        self._ends = float("-inf")
        self._stride = 1  # every so many samples one is kept
        self._skip = 0
        self._sorted: list[float] = []
        self._sorted_until = float("-inf")
        self.usual_p50 = 0.0
        self.usual_p99 = 0.0

    def add(self, seconds: float, now: float) -> None:
        """An attempt succeeded after so many seconds."""
        if now >= self._ends:
            self._begin_bucket(now)
        if self._skip:
            self._skip -= 1
            return
        self._skip = self._stride - 1
        self._newest.append(seconds)
        if len(self._newest) >= _KEPT:
            del self._newest[::2]
            self._stride *= 2
        if now >= self._sorted_until:
            self._sort(now)

    def percentile(self, q: float, now: float) -> float | None:
        """That percentile of the last minute, in seconds, a second old at most; None below 100 samples."""
        ordered = self.samples(now)
        if len(ordered) < MIN_SAMPLES:
            return None
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    def samples(self, now: float) -> list[float]:
        """The samples of the last minute, sorted: not to be changed."""
        if now >= self._sorted_until or len(self._sorted) < MIN_SAMPLES:
            self._sort(now)
        return self._sorted

    def _begin_bucket(self, now: float) -> None:
        self._ends = now + _SPAN
        self._newest = []
        self._stride, self._skip = 1, 0
        self._buckets.append((self._ends, self._newest))

    def _sort(self, now: float) -> None:
        while self._buckets and (self._buckets[0][0] <= now - _SPAN * (_BUCKETS - 1)):
            self._buckets.popleft()
        aged = now >= self._sorted_until
        self._sorted = sorted(seconds for _, samples in self._buckets for seconds in samples)
        self._sorted_until = now + _FRESH
        if aged and len(self._sorted) >= MIN_SAMPLES:
            self._learn(self._sorted)

    def _learn(self, ordered: list[float]) -> None:
        p50, p99 = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
        if not self.usual_p99:
            self.usual_p50, self.usual_p99 = p50, p99
        else:
            self.usual_p50 += (p50 - self.usual_p50) * _LEARNS
            self.usual_p99 += (p99 - self.usual_p99) * _LEARNS
