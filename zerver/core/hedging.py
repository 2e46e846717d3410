"""Hedging: when a second attempt helps, and when it only adds to the trouble.

Law: pure. A hedge is against one slow answer. When everything is slow, every attempt would be hedged, and the load
doubles just when there is too much of it (what "The Tail at Scale" leaves out; reviewers of grafana/loki#4826 say it).
So a hedge is held back, and only the hedge, for any of these reasons:

    the breaker is not closed            the target is in trouble already
    its bulkhead is full                 the hedge would wait in the same line, and make it longer
    the event loop lags over 10 ms       it is we who are slow
    its p50 is over twice the usual      all of it is slow, not this one answer
    its budget is spent                  2 % more load is what hedges may cost
"""

from __future__ import annotations

from typing import Final

from zerver.core.breaker import BreakerState

#: Seconds: no percentile is hedged sooner, because below this it is noise that is measured.
SHORTEST: Final = 0.002

#: Seconds that the event loop may be late before slowness is our own.
LAG: Final = 0.010

_SLOWER = 2.0


def held_back(breaker: BreakerState | None, full: bool, lag: float, p50: float | None, usual_p50: float) -> str:
    """Why no hedge may be made now, its budget left aside; "" if it may. Times in seconds; usual_p50: 0 if unknown."""
    if breaker is not None and breaker != "closed":
        return f"its breaker is {breaker}"
    if full:
        return "its bulkhead is full"
    if lag > LAG:
        return "the event loop lags"
    if p50 is not None and usual_p50 and p50 > _SLOWER * usual_p50:
        return "all of it is slow"
    return ""
