"""Quotas: how often a tenant may begin, and how long who was refused should stay away.

Law: pure state; `now` (seconds, any monotonic origin) and the random draw are arguments.
"""

from __future__ import annotations

from typing import Final

import attrs

#: Of a token: less is rounding. A refill that has been through another process's clock has lost some digits.
_HAIR: Final = 5e-7


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
        if self._at(now) < 1.0 - _HAIR:
            return False
        self.tokens -= 1.0
        return True

    def give_back(self) -> None:
        """A token was taken for a run that never began."""
        self.tokens = min(self.size, self.tokens + 1.0)

    def refill(self, now: float) -> float:
        """Seconds until it is full."""
        return max(0.0, (self.size - self._at(now)) / self.rate)

    def heed(self, refill: float, now: float) -> bool:
        """Another process draws on this bucket too, and knows it to be full in so many seconds: of two that know, the
        one that knows it emptier has seen more. Whether it is emptier than was known here.

        A time, and no count of tokens: it stays true however long nobody has looked. It is the one number of GCRA
        (ITU-T I.371), in which the newest state of many writers is the largest. A debt is never deeper than the bucket.
        """
        tokens = max(-self.size, self.size - refill * self.rate)
        if tokens >= self._at(now) - _HAIR:
            return False
        self.tokens = tokens
        return True

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
RETRY_LONGEST: Final = 86_400.0  # where it is certain that it takes so long


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

    def retry_after(self, now: float, guess: float, draw: float, certain: float = 0.0) -> float:
        """Seconds: max(the adaptive value, `guess`) within 1 and 32, times 1 to 1.5, so that those who were refused
        together do not come back together. certain: seconds in which it would be refused again for sure, which are
        told in full, up to a day. draw: in [0, 1).
        """
        self._look(now)
        return max(min(certain, RETRY_LONGEST), min(RETRY_MOST, max(self.seconds, guess))) * (1.0 + draw / 2.0)

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
