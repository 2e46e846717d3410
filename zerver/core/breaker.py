"""The circuit breaker: stop asking a target that mostly fails, and find out gently when it is back.

Law: pure state; `now` (seconds, any monotonic origin) and the random draw are arguments. The states and what
moves between them:

    closed     --(>= min_calls in the window, >= failure_ratio of them failed)-->  open
    open       --(its pause is over)-->                                            half-open
    half-open  --(`probes` successes in a row)-->                                  closed
    half-open  --(a failure)-->                                                    open, pause doubled
"""

from __future__ import annotations

from typing import Literal

import attrs

BreakerState = Literal["closed", "open", "half-open"]

_BUCKETS = 10


@attrs.frozen(kw_only=True)
class BreakerPolicy:
    """When to open and for how long.

    window: seconds looked back, in 10 buckets. min_calls: fewer say nothing (client breakers with small samples
    trip wrongly: Brooker 2022). pause, pause_cap: seconds open, U(0.5, 1) of it, doubled at each relapse.
    probes: calls let through, and successes wanted, before it closes.
    """

    window: float = 10.0
    min_calls: int = 20
    failure_ratio: float = 0.5
    pause: float = 1.0
    pause_cap: float = 30.0
    probes: int = 3


class Breaker:
    """One target's breaker: `allow` before each attempt, `record` (or `forget`) after it."""

    __slots__ = (
        "_bucket", "_buckets_per_second", "_calls", "_counts", "_failures", "_pause", "_probing", "_until", "_won",
        "policy", "state",
    )  # fmt: skip

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.state: BreakerState = "closed"
        self._counts = [[0, 0] for _ in range(_BUCKETS)]  # per bucket: calls, failures
        self._calls = self._failures = 0  # their sums
        self._buckets_per_second = _BUCKETS / policy.window
        self._bucket = 0  # number of the newest bucket, counted from the clock's origin
        self._pause = policy.pause
        self._until = 0.0
        self._probing = 0
        self._won = 0

    def allow(self, now: float) -> bool:
        """Whether an attempt may be made now. Each True must be followed by one `record` or `forget`."""
        if self.state == "closed":
            return True
        if self.state == "open":
            if now < self._until:
                return False
            self.state, self._probing, self._won = "half-open", 0, 0
        if self._probing >= self.policy.probes:
            return False
        self._probing += 1
        return True

    def record(self, failed: bool, now: float, draw: float) -> None:
        """An allowed attempt came to an end; draw is uniform in [0, 1)."""
        if self.state == "half-open":
            self._record_probe(failed, now, draw)
        elif self.state == "closed":
            calls, failures = self._count(failed, now)
            if calls >= self.policy.min_calls and failures >= calls * self.policy.failure_ratio:
                self._open(now, draw)

    def forget(self) -> None:
        """An allowed attempt was cancelled: it says nothing about the target."""
        if self.state == "half-open" and self._probing:
            self._probing -= 1

    def _record_probe(self, failed: bool, now: float, draw: float) -> None:
        self._probing = max(0, self._probing - 1)
        if failed:
            self._pause = min(self._pause * 2.0, self.policy.pause_cap)
            self._open(now, draw)
            return
        self._won += 1
        if self._won >= self.policy.probes:
            self.state, self._pause = "closed", self.policy.pause
            self._forget_all()

    def _open(self, now: float, draw: float) -> None:
        self.state = "open"
        self._until = now + self._pause * (0.5 + 0.5 * draw)

    def _count(self, failed: bool, now: float) -> tuple[int, int]:
        """Count an attempt in; calls and failures within the window. Sums are kept, not added up anew: it is a hot
        path.
        """
        newest = int(now * self._buckets_per_second)
        if newest > self._bucket:
            self._forget_until(newest)
        bucket = self._counts[self._bucket % _BUCKETS]
        bucket[0] += 1
        self._calls += 1
        if failed:
            bucket[1] += 1
            self._failures += 1
        return self._calls, self._failures

    def _forget_until(self, newest: int) -> None:
        for number in range(max(self._bucket + 1, newest - _BUCKETS + 1), newest + 1):
            bucket = self._counts[number % _BUCKETS]
            self._calls -= bucket[0]
            self._failures -= bucket[1]
            bucket[0] = bucket[1] = 0
        self._bucket = newest

    def _forget_all(self) -> None:
        self._counts = [[0, 0] for _ in range(_BUCKETS)]
        self._calls = self._failures = 0
