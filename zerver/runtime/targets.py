"""Targets at run time: a bulkhead and budgets for each thing that effects talk to, a breaker for each thing it does.

Law: this file counts and refuses; it performs nothing. State is made when a target is first named, and the number of
targets, and of a target's operations, is bounded, because their names may come from URLs. What was forgotten says so
(`gone`), for those who have kept it.

Breakers and latencies are kept by operation, because a dependency that fails in one thing is often well in another: a
refund must not wait until charges work again. An operation is a kind of effect, and of an exchange its path's first
segment too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

import attrs
import trio

from zerver.core.breaker import Breaker, BreakerState
from zerver.core.budget import RetryBudget, hedge_budget
from zerver.core.bulkhead import Adaptive
from zerver.core.hedging import LAG, SPENT, held_back, kept_for_slower
from zerver.core.latencies import MIN_SAMPLES, Latencies
from zerver.core.targets import Target
from zerver.runtime.bulkhead import Bulkhead

_MAX_TARGETS: Final = 4096
_MAX_OPERATIONS: Final = 32  # of one target; what comes after these shares one
_SLOWER: Final = 3.0  # than what 99 of 100 usually need: slow, to a breaker


@attrs.frozen
class OperationStatistics:
    """One operation of a target. throttled: attempts refused by its breaker while that was not open. p50, p95, p99:
    seconds, None below 100 samples.
    """

    name: str
    breaker: BreakerState | None
    throttled: int
    p50: float | None
    p95: float | None
    p99: float | None


@attrs.frozen
class TargetStatistics:
    """One target as it is now.

    breaker: the worst of its operations'. refused: attempts not made because a breaker said no (throttled: because it
    was failing, though not open), or because no place would have come free in time. limit: places of its bulkhead,
    None for no bound; at_once: those in use; waiting: attempts that wait for one, waiting_by_class: interactive,
    default, batch. retry_tokens, hedge_tokens: what is left of the budgets. hedges_held_back: those that were due, and
    were not made then; some were later. p50, p95, p99: seconds, of all operations together, None below 100 samples.
    """

    name: str
    breaker: BreakerState | None
    attempts: int
    failures: int
    retries: int
    refused: int
    throttled: int
    limit: int | None
    at_once: int
    waiting: int
    waiting_by_class: tuple[int, int, int]
    retry_tokens: float
    hedge_tokens: float
    hedges: int
    hedges_held_back: int
    p50: float | None
    p95: float | None
    p99: float | None
    operations: tuple[OperationStatistics, ...]


class Operation:
    """What is counted about one thing that a target does."""

    __slots__ = ("breaker", "latencies", "name")

    def __init__(self, name: str, rule: Target) -> None:
        self.name = name
        self.breaker = Breaker(rule.breaker) if rule.breaker is not None else None
        self.latencies = Latencies()

    def statistics(self, now: float) -> OperationStatistics:
        """A snapshot."""
        state, throttled = (None, 0) if self.breaker is None else (self.breaker.state, self.breaker.throttled)
        p50, p95, p99 = (self.latencies.percentile(q, now) for q in (0.50, 0.95, 0.99))
        return OperationStatistics(self.name, state, throttled, p50, p95, p99)


class TargetState:
    """What is counted about one target. gone: it was forgotten, and another one may have its name. firsts: attempts
    that were no retries and no hedges. seen: attempts when `Targets` last looked.
    """

    __slots__ = (
        "_counted",
        "_earned",
        "_hedging",
        "_operations",
        "attempts",
        "budget",
        "bulkhead",
        "failures",
        "firsts",
        "gone",
        "hedges",
        "hedges_held_back",
        "name",
        "refused",
        "retries",
        "rule",
        "seen",
    )

    def __init__(self, name: str, rule: Target) -> None:
        self.name = name
        self.rule = rule
        size = rule.bulkhead
        self.bulkhead = Bulkhead(size) if isinstance(size, int | Adaptive) else None
        self.budget = RetryBudget(ratio=rule.retry_ratio)
        self.attempts = self.firsts = self.failures = self.retries = self.refused = self.seen = 0
        self.hedges = self.hedges_held_back = 0
        self.gone = False
        self._hedging = hedge_budget()
        self._counted = self._earned = 0  # first attempts that the hedges' and the retries' budgets have earned from
        self._operations: dict[str, Operation] = {}

    def operation(self, name: str) -> Operation:
        """One of its operations, made when it is first named."""
        known = self._operations.get(name)
        if known is None:
            if len(self._operations) >= _MAX_OPERATIONS:
                name = "others"
            known = self._operations.setdefault(name, Operation(name, self.rule))
        return known

    def bulkhead_for(self, serves: int | None) -> Bulkhead | None:
        """What effects wait in whose handler can serve so many at once; None if they need not wait."""
        if self.rule.bulkhead != "auto":
            return self.bulkhead
        if serves is None:
            return None
        if self.bulkhead is None:
            self.bulkhead = Bulkhead(serves)
        return self.bulkhead

    def hold_hedge(self, operation: Operation, waited: float, lag: float, now: float) -> str:
        """Why no further attempt of what has taken so many seconds may be made now; "" takes its token."""
        breaker = operation.breaker.state if operation.breaker is not None else None
        full = self.bulkhead is not None and self.bulkhead.full
        why = held_back(breaker, full, lag, operation.latencies.slow_lately)
        if why:
            return why
        budget = self._hedging
        budget.earn(self.firsts - self._counted)
        self._counted = self.firsts
        why = kept_for_slower(operation.latencies.share_over(waited, now), budget.tokens / budget.cap)
        if not why and not budget.spend(now):
            why = SPENT
        if not why:
            self.hedges += 1
        return why

    def may_retry(self, now: float) -> bool:
        """Whether a failed attempt may be made again; takes its token if so."""
        self.budget.earn(self.firsts - self._earned)
        self._earned = self.firsts
        return self.budget.spend(now)

    @property
    def busy(self) -> bool:
        """Whether somebody holds or wants a place: a bulkhead forgotten now would be two."""
        return self.bulkhead is not None and bool(self.bulkhead.in_use or sum(self.bulkhead.waiting))

    def statistics(self, now: float) -> TargetStatistics:
        """A snapshot."""
        operations = tuple(operation.statistics(now) for operation in self._operations.values())
        states = [operation.breaker for operation in operations if operation.breaker is not None]
        bulkhead, waiting = self.bulkhead, self.bulkhead.waiting if self.bulkhead is not None else (0, 0, 0)
        samples = sorted(s for operation in self._operations.values() for s in operation.latencies.samples(now))
        worst: BreakerState = "open" if "open" in states else "half-open" if "half-open" in states else "closed"
        return TargetStatistics(
            name=self.name,
            breaker=None if self.rule.breaker is None else worst,
            attempts=self.attempts,
            failures=self.failures,
            retries=self.retries,
            refused=self.refused,
            throttled=sum(operation.throttled for operation in operations),
            limit=bulkhead.limit if bulkhead is not None else None,
            at_once=bulkhead.in_use if bulkhead is not None else 0,
            waiting=sum(waiting),
            waiting_by_class=waiting,
            retry_tokens=self.budget.left(now, self.firsts - self._earned),
            hedge_tokens=self._hedging.left(now, self.firsts - self._counted),
            hedges=self.hedges,
            hedges_held_back=self.hedges_held_back,
            p50=_percentile(samples, 0.50),
            p95=_percentile(samples, 0.95),
            p99=_percentile(samples, 0.99),
            operations=operations,
        )


def _no_lag() -> float:
    return 0.0


class Targets:
    """Every target that the app has a rule for, and others that were named lately: 4,096 of them.

    One with a rule is never forgotten, nor one whose bulkhead somebody is in. loop_lag: seconds that the event loop is
    late by, as whoever measures it says; breakers and hedges must not take our own slowness for a target's.
    """

    def __init__(self, rules: Mapping[str, Target], loop_lag: Callable[[], float] = _no_lag) -> None:
        self._rules = _OF_OURS | dict(rules)
        self._ruled: dict[str, TargetState] = {}
        self._plain: OrderedDict[str, TargetState] = OrderedDict()
        self.loop_lag = loop_lag

    def get(self, name: str) -> TargetState:
        """A target's state, made when it is first named."""
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
                self._forget_one()
        else:
            self._plain.move_to_end(name)
        return state

    def statistics(self) -> tuple[TargetStatistics, ...]:
        """Every target that is known."""
        now = trio.current_time()
        return tuple(state.statistics(now) for state in (*self._ruled.values(), *self._plain.values()))

    def _forget_one(self) -> None:
        """Forget the one that nobody has named for longest and nobody has used since the last look (CLOCK): those who
        keep a state use it without naming it.
        """
        for _ in range(len(self._plain)):
            name, state = self._plain.popitem(last=False)
            if state.attempts == state.seen and not state.busy:
                state.gone = True
                return
            state.seen = state.attempts
            self._plain[name] = state
        name, state = self._plain.popitem(last=False)  # all are in use: the bound holds nevertheless
        state.gone = True


def slow_to(operation: Operation, took: float, lag: Callable[[], float]) -> bool:
    """Whether an attempt that succeeded after so many seconds was slow for what it asked, and not because we are."""
    usual = operation.latencies.usual_p99
    return bool(usual) and took > _SLOWER * usual and lag() <= LAG


def _percentile(ordered: list[float], q: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if len(ordered) >= MIN_SAMPLES else None


_PLAIN = Target()

#: What the runtime itself brings is never unwell, and takes as long as it is asked to. An app's own rules win.
_OF_OURS: Final = {name: Target(breaker=None, bulkhead=None) for name in ("clock", "random")}
