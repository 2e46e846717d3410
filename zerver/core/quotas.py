"""Quotas: how often a tenant may begin, and how long who was refused should stay away.

Law: pure state; `now` (seconds, any monotonic origin) and the random draw are arguments.
"""

from __future__ import annotations

from typing import Final

import attrs


@attrs.frozen
class Quota:
    """What an edge tells a tenant of its rate. limit: runs at once after a pause. remaining: of these, now. reset:
    seconds until all of them are there again. window: seconds in which `limit` runs come back.

    Shape of the fields of draft-ietf-httpapi-ratelimit-headers: q, r, t and w.
    """

    limit: int
    remaining: int
    reset: float
    window: float


class Bucket:
    """A token bucket: `size` tokens at first, `rate` come back per second, each run takes one."""

    __slots__ = ("rate", "size", "tokens", "updated")

    def __init__(self, rate: float, size: float, now: float) -> None:
        self.rate = rate
        self.size = size
        self.tokens = size
        self.updated = now

    def take(self, now: float) -> bool:
        """Take a token, if there is one."""
        if self._at(now) < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def give_back(self) -> None:
        """A token was taken for a run that never began."""
        self.tokens = min(self.size, self.tokens + 1.0)

    def taken_elsewhere(self, tokens: float, now: float) -> None:
        """Another process took them. A debt is never deeper than the bucket: news that come late, or twice, cannot
        shut a tenant out for longer than it takes to fill it.
        """
        self.tokens = max(-self.size, self._at(now) - tokens)

    def retune(self, rate: float, size: float, now: float) -> None:
        """The rule has changed: what was taken stays taken."""
        taken = self.size - self._at(now)
        self.rate, self.size = rate, size
        self.tokens = max(-size, size - taken)

    def wait(self, now: float) -> float:
        """Seconds until there is a token."""
        return max(0.0, (1.0 - self._at(now)) / self.rate)

    def full(self, now: float) -> bool:
        """Whether forgetting it would change nothing."""
        return self._at(now) >= self.size

    def quota(self, now: float) -> Quota:
        tokens = self._at(now)
        return Quota(int(self.size), max(0, int(tokens)), (self.size - tokens) / self.rate, self.size / self.rate)

    def _at(self, now: float) -> float:
        if now > self.updated:  # of two clocks that disagree, the later one is believed
            self.tokens = min(self.size, self.tokens + (now - self.updated) * self.rate)
            self.updated = now
        return self.tokens


#: Seconds that a refusal asks for, at least and at most, before the jitter.
RETRY_LEAST: Final = 1.0
RETRY_MOST: Final = 32.0


class Pushback:
    """How long who was refused should stay away: doubles while refusals keep coming, and comes down by a second when
    they stop.

    Precedent: Kubernetes' `dropped_requests_tracker.go`: of the last RA seconds, 3·RA refusals or more double RA, and
    fewer than RA take a second off.
    """

    __slots__ = ("_refused", "_since", "seconds")

    def __init__(self) -> None:
        self.seconds = RETRY_LEAST
        self._since = 0.0
        self._refused = 0

    def refused(self, now: float) -> None:
        """One was refused."""
        self._look(now)
        self._refused += 1

    def retry_after(self, now: float, least: float, draw: float) -> float:
        """Seconds: max(the adaptive value, `least`) within 1 and 32, times 1 to 1.5, so that those who were refused
        together do not come back together. draw: in [0, 1).
        """
        self._look(now)
        return min(RETRY_MOST, max(self.seconds, least)) * (1.0 + draw / 2.0)

    def _look(self, now: float) -> None:
        passed = now - self._since
        if passed < self.seconds:
            return
        if self._refused >= 3 * self.seconds:
            self.seconds = min(RETRY_MOST, self.seconds * 2.0)
        elif self._refused < self.seconds:
            self.seconds = max(RETRY_LEAST, self.seconds - 1.0)
        if passed > 2 * RETRY_MOST:  # nobody was refused for a minute: an hour of quiet needs no hour of steps
            self.seconds = RETRY_LEAST
        self._since = now
        self._refused = 0
