"""The circuit breaker: ask a target less the more it fails, stop when it mostly does, and come back gently.

Law: pure state, O(1) for each call; `now` (seconds, any monotonic origin) and chance are arguments. The states, and
what moves between them:

    closed     --(>= min_calls in the window, of which >= failure_ratio failed,
                  or >= slow_ratio were slow)-->                                   open
    open       --(its pause is over)-->                                            half-open
    half-open  --(`probes` successes in a row)-->                                  closed
    half-open  --(a failure)-->                                                    open, pause doubled

What an attempt is told in each:

    closed     yes; but while the target fails more than its class puts up with, no with a chance of
               p = (requests - K * accepts) / (requests + 1), 0.9 at most     (the client throttle of Google's SRE book)
    closed, for `ramp` seconds after half-open
               yes to so many at once as there are probes; to more with a chance that grows from 10 to 100 %
    half-open  yes to `probes` at once
    open       no

K is 2 for interactive, 1.5 for default and 1.1 for batch: batch feels a target that fails one call in ten, default
one that fails one in three, and interactive nothing before it opens. A slow target is never throttled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import attrs

from zerver.core.priorities import Priority

BreakerState = Literal["closed", "open", "half-open"]

_BUCKETS = 10
_MOST_THROTTLED = 0.9  # some must get through, or nobody would see that it is well again (Finagle: 0.75)
_RAMP_FLOOR = 0.1
_NEVER: Final = float("-inf")
_K: Final[dict[Priority, float]] = {"interactive": 2.0, "default": 1.5, "batch": 1.1}


@attrs.frozen(kw_only=True)
class BreakerPolicy:
    """When to open and for how long.

    window: seconds looked back, in 10 buckets. min_calls: fewer say nothing (client breakers with small samples
    trip wrongly: Brooker 2022). slow_ratio: of calls that took more than three times what 99 of 100 usually need, and
    more than `slow` seconds; None to let it be slow. pause, pause_cap: seconds open, U(0.5, 1) of it, doubled at each
    relapse. probes: calls let through, and successes wanted, before it closes. ramp: seconds from then until
    everybody may call again.
    """

    window: float = 10.0
    min_calls: int = 20
    failure_ratio: float = 0.5
    slow_ratio: float | None = 0.8
    slow: float = 0.25
    pause: float = 1.0
    pause_cap: float = 30.0
    probes: int = 3
    ramp: float = 5.0


class Breaker:
    """One operation's breaker: `allow` before each attempt, and `record` (or `forget`) with its answer after it.

    state: as it was at the last of these. throttled: how many attempts were refused while it was closed.
    """

    __slots__ = (
        "_bucket", "_buckets_per_second", "_calls", "_calm_until", "_counts", "_era", "_failures", "_flying", "_pause",
        "_ramps_until", "_slow", "_uncounted", "_until", "_won", "policy", "state", "throttled",
    )  # fmt: skip

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.state: BreakerState = "closed"
        self.throttled = 0
        self._era = 1  # changes with the state: what was allowed in another says nothing about this one
        self._flying = 0  # attempts of this era that have not ended
        self._counts = [[0, 0, 0] for _ in range(_BUCKETS)]  # per bucket: requests, failures, slow ones
        self._calls = self._failures = self._slow = 0  # their sums
        self._buckets_per_second = _BUCKETS / policy.window
        self._bucket = 0  # number of the newest bucket, counted from the clock's origin
        self._calm_until = _NEVER  # the end of that bucket, as long as it is closed and nothing in its window was amiss
        self._uncounted = 0  # successes of that bucket that are in no count yet
        self._pause = policy.pause
        self._until = 0.0
        self._ramps_until = 0.0
        self._won = 0

    def allow(self, now: float, priority: Priority, draw: Callable[[], float]) -> int:
        """A number that is not 0 if an attempt may be made now: give it to `record` or `forget` when it has ended.

        draw: gives a number uniform in [0, 1); called only if there is something to decide by it.
        """
        if self.state == "closed":
            if (self._failures or now < self._ramps_until) and self._holds_back(now, priority, draw):
                self.throttled += 1
                return 0
        elif not self._may_probe(now):
            return 0
        self._flying += 1
        return self._era

    def would_refuse(self, now: float) -> bool:
        """Whether an attempt is in vain for certain: not worth queueing for."""
        return self.state == "open" and now < self._until

    def record(self, era: int, failed: bool, slow: bool, now: float, draw: float) -> None:
        """An attempt came to an end. era: what `allow` gave, or 0 for one that did not ask, as those of a rollback.
        draw: uniform in [0, 1).

        Who did not ask is counted while it is closed, and proves nothing otherwise.
        """
        if era == self._era:
            self._flying -= 1
        elif era:
            return
        if self.state == "closed":
            self._count(now, 1, failed, slow)
            if (self._failures or self._slow) and self._is_bad():
                self._open(now, draw)
        elif self.state == "half-open" and era:
            self._record_probe(failed, now, draw)

    def succeeded(self, era: int, now: float) -> None:
        """The same for one that neither failed nor was slow, as nearly all: while nothing is amiss they only add up."""
        if now >= self._calm_until:
            self.record(era, False, False, now, 0.0)
        elif era == self._era:
            self._flying -= 1
            self._uncounted += 1
        elif not era:
            self._uncounted += 1

    def forget(self, era: int) -> None:
        """An allowed attempt was cancelled: it says nothing about the target."""
        if era == self._era:
            self._flying -= 1

    # -- closed --

    def _is_bad(self) -> bool:
        policy = self.policy
        if self._calls < policy.min_calls:
            return False
        if self._failures >= self._calls * policy.failure_ratio:
            return True
        return policy.slow_ratio is not None and self._slow >= self._calls * policy.slow_ratio

    def _holds_back(self, now: float, priority: Priority, draw: Callable[[], float]) -> bool:
        if now < self._ramps_until and self._flying >= self.policy.probes:
            left = (self._ramps_until - now) / self.policy.ramp
            if draw() < (1.0 - _RAMP_FLOOR) * left:
                return True
        self._count(now, 0, False, False)
        if self._calls < self.policy.min_calls:
            return False
        surplus = self._calls - _K[priority] * (self._calls - self._failures)
        if surplus <= 0.0 or draw() >= min(_MOST_THROTTLED, surplus / (self._calls + 1)):
            return False
        self._count(now, 1, True, False)  # a request that was not accepted
        return True

    def _count(self, now: float, requests: int, failed: bool, slow: bool) -> None:
        """Count in, and forget what has left the window. Sums are kept, not added up anew: it is a hot path."""
        if self._uncounted:
            self._counts[self._bucket % _BUCKETS][0] += self._uncounted
            self._calls += self._uncounted
            self._uncounted = 0
        newest = int(now * self._buckets_per_second)
        if newest > self._bucket:
            self._forget_until(newest)
        bucket = self._counts[self._bucket % _BUCKETS]
        bucket[0] += requests
        self._calls += requests
        if failed:
            bucket[1] += 1
            self._failures += 1
        if slow:
            bucket[2] += 1
            self._slow += 1
        is_calm = not (self._failures or self._slow)
        self._calm_until = (self._bucket + 1) / self._buckets_per_second if is_calm else _NEVER

    def _forget_until(self, newest: int) -> None:
        for number in range(max(self._bucket + 1, newest - _BUCKETS + 1), newest + 1):
            bucket = self._counts[number % _BUCKETS]
            self._calls -= bucket[0]
            self._failures -= bucket[1]
            self._slow -= bucket[2]
            bucket[:] = (0, 0, 0)
        self._bucket = newest

    # -- open and half-open --

    def _open(self, now: float, draw: float) -> None:
        self._enter("open")
        self._until = now + self._pause * (0.5 + 0.5 * draw)

    def _may_probe(self, now: float) -> bool:
        if self.state == "open":
            if now < self._until:
                return False
            self._enter("half-open")
            self._won = 0
        return self._flying < self.policy.probes

    def _record_probe(self, failed: bool, now: float, draw: float) -> None:
        if failed:
            self._pause = min(self._pause * 2.0, self.policy.pause_cap)
            self._open(now, draw)
            return
        self._won += 1
        if self._won >= self.policy.probes:
            self._enter("closed")
            self._pause = self.policy.pause
            self._ramps_until = now + self.policy.ramp
            self._counts = [[0, 0, 0] for _ in range(_BUCKETS)]
            self._calls = self._failures = self._slow = 0

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        self._era += 1
        self._flying = self._uncounted = 0
        self._calm_until = _NEVER
