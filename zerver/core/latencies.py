"""Latencies: what an operation has lately needed, and what it needs usually.

Law: pure state; `now` (seconds, any monotonic origin) is an argument. Adding a sample is O(1); the samples are sorted
once a second at most, and every percentile is read from that. The last minute counts, each ten seconds of it alike: a
burst is thinned out as it comes, by keeping every second sample, then every fourth, so that memory is bounded too.

A minute is too long to notice that all of it has just become slow. So there is one more number: which share of the last
thirty samples or so took over twice what half of them usually need. That is a tenth of a second where there is much
traffic, and some seconds where there is little.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Final

#: Fewer samples say nothing.
MIN_SAMPLES: Final = 100

_SPAN = 10.0  # seconds of one bucket
_BUCKETS = 6
_KEPT = 256  # samples of one bucket
_FRESH = 1.0  # seconds for which sorted samples are good
_LEARNS = 0.02  # of the difference, once a second: what is usual changes within a minute or two
_TAIL = 0.98  # longer than so many of the samples: see `add_cut`
_SLOWER = 2.0  # than half of them usually: slow
_LATELY = 1 / 32  # how much of the share of slow ones the last sample is


class Latencies:
    """How long one operation takes, in seconds: its successes, and what was cut when it was among the slowest.

    usual_p50, usual_p99: slow moving averages of these percentiles, 0.0 while nothing is known. One that has become
    slow for good is usual after some minutes.
    """

    __slots__ = ("_buckets", "_ends", "_newest", "_skip", "_slow", "_slow_from", "_sorted", "_sorted_until", "_stride",
                 "usual_p50", "usual_p99")  # fmt: skip

    def __init__(self) -> None:
        self._buckets: deque[tuple[float, list[float]]] = deque()  # (when it ends, samples); the last one is filled
        self._newest: list[float] = []
        self._ends = float("-inf")
        self._stride = 1  # every so many samples one is kept
        self._skip = 0
        self._sorted: list[float] = []
        self._sorted_until = float("-inf")
        self._slow = 0.0  # share of the last samples
        self._slow_from = float("inf")  # seconds
        self.usual_p50 = 0.0
        self.usual_p99 = 0.0

    def add(self, seconds: float, now: float) -> None:
        """An attempt succeeded after so many seconds."""
        self._slow += ((seconds > self._slow_from) - self._slow) * _LATELY
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

    def add_cut(self, seconds: float, now: float) -> None:
        """An attempt was cut after so many seconds, and would have taken longer. It counts if it was among the slowest.

        A hedge cuts the slow attempt that it was made for. If nobody counted these, the percentiles would forget that
        there are slow ones, and hedges would come sooner and sooner. A percentile is true as long as nothing below it
        was cut; what was cut early says nothing.
        """
        known = self.percentile(_TAIL, now)
        if known is not None and seconds >= known:
            self.add(seconds, now)

    @property
    def slow_lately(self) -> bool:
        """Whether of the last thirty or so more than half took over twice as long as half of them usually do."""
        return self._slow > 0.5

    def share_over(self, seconds: float, now: float) -> float | None:
        """How many of the last minute took longer, from 0 to 1; None below 100 samples."""
        ordered = self.samples(now)
        if len(ordered) < MIN_SAMPLES:
            return None
        return 1.0 - bisect_right(ordered, seconds) / len(ordered)

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
        self._slow_from = _SLOWER * self.usual_p50
