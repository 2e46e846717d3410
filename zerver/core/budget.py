"""Budgets of further attempts, retries and hedges: tokens that first attempts earn and further ones spend.

Law: pure state; `now` (seconds, any monotonic origin) is an argument. A budget can only refuse the *extra*
attempt, never the first one (failsafe-go's issue 141 is what happens otherwise).
"""

from __future__ import annotations

from typing import Final

import attrs

#: Retries that one run may make in all, whatever its policies say: a run is not a retry loop.
RUN_RETRIES: Final = 10


@attrs.define
class RetryBudget:
    """Each first attempt earns `ratio` tokens, each further one costs one; at most `cap` are kept.

    floor: tokens per second that come back by themselves, so that a quiet target can be retried at all.
    Precedent: Finagle's RetryBudget (20 % + 10/s) and gRPC A6's retryThrottling (10 tokens, 0.1); a ratio of 0.1
    holds a retry storm at 1.1 times the load.
    """

    ratio: float = 0.1
    cap: float = 10.0
    floor: float = 1.0
    tokens: float = attrs.field(default=10.0)
    refilled: float = attrs.field(default=0.0)

    def earn(self, firsts: int = 1) -> None:
        """So many first attempts were made."""
        self.tokens = min(self.cap, self.tokens + self.ratio * firsts)

    def spend(self, now: float) -> bool:
        """Whether a retry may be made now; takes its token if so."""
        self.tokens = min(self.cap, self.tokens + max(0.0, now - self.refilled) * self.floor)
        self.refilled = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def left(self, now: float, firsts: int = 0) -> float:
        """The tokens there would be now, so many first attempts counted in."""
        return min(self.cap, self.tokens + self.ratio * firsts + max(0.0, now - self.refilled) * self.floor)


#: Hedges for one first attempt.
HEDGE_RATIO: Final = 0.02

_HEDGES_AT_ONCE: Final = 5.0


def hedge_budget() -> RetryBudget:
    """Two hedges for a hundred first attempts, five at once, and none that come back with time.

    With a floor a quiet target would be asked twice for everything, and so would a dead one; Finagle's backup requests
    have none either.
    """
    return RetryBudget(ratio=HEDGE_RATIO, cap=_HEDGES_AT_ONCE, floor=0.0, tokens=_HEDGES_AT_ONCE)
