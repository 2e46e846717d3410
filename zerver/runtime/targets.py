"""Targets at run time: one breaker, bulkhead, retry budget and latency record for each thing that effects talk to.

Law: this file counts and refuses; it performs nothing. State is made when a target is first named, and the number of
targets is bounded, because their names may come from URLs.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping

import attrs
import trio

from zerver.core.breaker import Breaker, BreakerState
from zerver.core.budget import RetryBudget
from zerver.core.targets import Target

_MAX_TARGETS = 4096
_SAMPLES = 512
_MIN_SAMPLES = 100


@attrs.frozen
class TargetStatistics:
    """One target as it is now. at_once: attempts holding a bulkhead place. p50, p95: seconds, None below 100
    samples.
    """

    name: str
    breaker: BreakerState | None
    attempts: int
    failures: int
    retries: int
    refused: int
    at_once: int
    waiting: int
    p50: float | None
    p95: float | None


class TargetState:
    """What is counted about one target."""

    __slots__ = (
        "attempts",
        "breaker",
        "budget",
        "bulkhead",
        "failures",
        "latencies",
        "name",
        "refused",
        "retries",
        "rule",
    )

    def __init__(self, name: str, rule: Target) -> None:
        self.name = name
        self.rule = rule
        self.breaker = Breaker(rule.breaker) if rule.breaker is not None else None
        self.bulkhead = trio.CapacityLimiter(rule.bulkhead) if rule.bulkhead is not None else None
        self.budget = RetryBudget(ratio=rule.retry_ratio)
        self.latencies: deque[float] = deque(maxlen=_SAMPLES)
        self.attempts = self.failures = self.retries = self.refused = 0

    def percentile(self, q: float) -> float | None:
        """That percentile of the last successes, in seconds; None below 100 samples."""
        if len(self.latencies) < _MIN_SAMPLES:
            return None
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    def statistics(self) -> TargetStatistics:
        borrowed = self.bulkhead.statistics() if self.bulkhead is not None else None
        return TargetStatistics(
            name=self.name,
            breaker=self.breaker.state if self.breaker is not None else None,
            attempts=self.attempts,
            failures=self.failures,
            retries=self.retries,
            refused=self.refused,
            at_once=borrowed.borrowed_tokens if borrowed else 0,
            waiting=borrowed.tasks_waiting if borrowed else 0,
            p50=self.percentile(0.50),
            p95=self.percentile(0.95),
        )


class Targets:
    """Every target that the app has a rule for, and others that were named lately: 4,096 of them.

    One with a rule is never forgotten: a bulkhead that was forgotten while effects hold it would be two.
    """

    def __init__(self, rules: Mapping[str, Target]) -> None:
        self._rules = rules
        self._ruled: dict[str, TargetState] = {}
        self._plain: OrderedDict[str, TargetState] = OrderedDict()

    def get(self, name: str) -> TargetState:
        rule = self._rules.get(name)
        if rule is not None:
            ruled = self._ruled.get(name)
            if ruled is None:
                ruled = self._ruled[name] = TargetState(name, rule)
            return ruled
        state = self._plain.get(name)
        if state is None:
            state = self._plain[name] = TargetState(name, _PLAIN)
            if len(self._plain) > _MAX_TARGETS:
                self._plain.popitem(last=False)
        else:
            self._plain.move_to_end(name)
        return state

    def statistics(self) -> tuple[TargetStatistics, ...]:
        return tuple(state.statistics() for state in (*self._ruled.values(), *self._plain.values()))


_PLAIN = Target()
