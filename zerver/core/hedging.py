"""Hedging: when a second attempt helps, and when it only adds to the trouble.

Law: pure. A hedge is against one slow answer. When everything is slow, every attempt would be hedged, and the load
doubles just when there is too much of it (what "The Tail at Scale" leaves out; reviewers of grafana/loki#4826 say it).
So a hedge is held back, and only the hedge, for any of these reasons:

    the breaker is not closed            the target is in trouble already
    its bulkhead is full                 the hedge would wait in the same line, and make it longer
    the event loop lags over 10 ms       it is we who are slow
    half of the last answers took        all of it is slow, not this one answer
    over twice the usual
    its budget is spent, or kept         2 % more load is what hedges may cost, and it is for the slowest
    for slower ones

The last line is what makes "p95" work. One call in twenty is slower than that, and there are tokens for one in fifty:
first come, first served, the ordinary tail takes them all, and none is left for the call that hangs (simulated: p99.9
fell by a tenth). So nothing is hedged sooner than the budget can pay for, which is the p98; and as tokens run low, only
what is slower still: with half of them left the slowest hundredth. What is held back is looked at again when it has
waited twice as long, and then the ordinary tail has been answered.
"""

from __future__ import annotations

from typing import Final

from zerver.core.breaker import BreakerState
from zerver.core.budget import HEDGE_RATIO

#: Seconds: no percentile is hedged sooner, because below this it is noise that is measured.
SHORTEST: Final = 0.002

#: Seconds that the event loop may be late before slowness is our own.
LAG: Final = 0.010

SPENT: Final = "its budget is spent"


def payable(q: float) -> float:
    """The percentile to hedge at: the one that was asked for, or the lowest that the budget pays for."""
    return max(q, 1.0 - HEDGE_RATIO)


def held_back(breaker: BreakerState | None, full: bool, lag: float, slow: bool) -> str:
    """Why no hedge may be made now, its budget left aside; "" if it may. lag: seconds. slow: all of it is, lately."""
    if breaker is not None and breaker != "closed":
        return f"its breaker is {breaker}"
    if full:
        return "its bulkhead is full"
    if lag > LAG:
        return "the event loop lags"
    if slow:
        return "all of it is slow"
    return ""


def kept_for_slower(slower: float | None, left: float) -> str:
    """Why the budget is not for one that is as slow as this; "" if it is.

    slower: the share of calls that are slower still, None while it is not known. left: the share of tokens left.
    """
    if slower is None or slower <= HEDGE_RATIO * left:
        return ""
    return "its budget is kept for slower ones"
