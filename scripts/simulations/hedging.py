"""Hedges against a dependency: one reply in a hundred takes a hundred times as long; then every reply does.

Law: the delay, the budget and what holds a hedge back are the core's; replies are drawn. The clock is a number.

The delay is "p95", as it is mostly written. Two in a hundred may be hedged, and five are slower than that: what is
measured here is, first of all, that the ordinary tail does not take what is meant for the strays.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Final

import attrs

from scripts.simulations.figures import quantile
from zerver.core.budget import hedge_budget
from zerver.core.effects import EffectKind, Success
from zerver.core.hedging import SHORTEST, held_back, kept_for_slower, payable
from zerver.core.joins import Join, JoinState, hedge, percentile
from zerver.core.latencies import Latencies

RATE: Final = 500.0  # calls per second
REPLY: Final = 0.010  # seconds
STRAY: Final = 0.01  # of the replies,
LONGER: Final = 100.0  # so many times as long

AFTER: Final = "p95"

#: What may be measured. hedges_when_slow counts from the first slow reply on: the budget's five, made before anybody
#: can know, and few more.
ALLOWED: Final[Mapping[str, tuple[float, float]]] = {
    "p999_to_unhedged": (0.0, 0.1),
    "extra": (0.005, 0.02),
    "hedges_when_slow": (0.0, 0.0006),
}

_CALL, _WAKE = -1, -2  # what happens; other numbers are attempts that are answered

_ASK: Final = EffectKind("ask", "read", target="dependency")


@attrs.frozen
class Hedged:
    """What came of it. p999: seconds; extra: hedges per call; both before everything became slow. hedges_when_slow: per
    call, from then on.
    """

    p999: float
    extra: float
    hedges_when_slow: float


class _Asked:
    """A call under way."""

    __slots__ = ("called", "done", "state")

    def __init__(self, state: JoinState, called: float) -> None:
        self.state, self.called, self.done = state, called, False


class _World:
    """The calls of one run, and what they are waiting for."""

    def __init__(self, after: float | str | None, seed: int, seconds: float, slow: float) -> None:
        join = hedge(_ASK(), after="p95" if after is None else after)
        if not isinstance(join, Join):
            raise TypeError(f"{join!r} is no join")
        self.join = join
        self.after = after
        self.share = percentile(after) if after is not None else None
        self.seconds, self.slow = seconds, slow
        self.chance = Random(f"hedging/{seed}")
        self.latencies, self.budget = Latencies(), hedge_budget()
        self.took: list[float] = []
        self.calls, self.hedges = [0, 0], [0, 0]  # before and after everything became slow
        self._heap: list[tuple[float, int, int, _Asked | None, float]] = []
        self._numbers = count()

    def run(self) -> None:
        self._at(0.0, _CALL, None, 0.0)
        while self._heap:
            now, _, what, asked, began = heappop(self._heap)
            if asked is None:
                if now >= 2 * self.seconds:
                    return
                self._call(now)
            elif asked.done:
                continue
            elif what == _WAKE:
                self._wake(asked, now)
            else:
                self._reply(asked, what, now, began)

    def _at(self, when: float, what: int, asked: _Asked | None, began: float) -> None:
        heappush(self._heap, (when, next(self._numbers), what, asked, began))

    def _call(self, now: float) -> None:
        self._at(now + self.chance.expovariate(RATE), _CALL, None, 0.0)
        self.budget.earn()
        self.calls[now >= self.seconds] += 1
        asked = _Asked(JoinState(self.join, self._delay(now)), now)
        verdict = asked.state.begin()
        self._start(asked, 0, now)
        if verdict.wake is not None:
            self._at(now + verdict.wake, _WAKE, asked, now)

    def _delay(self, now: float) -> float | None:
        """As the runtime reckons it: seconds, or a percentile; None for no hedge."""
        if self.share is None:
            return self.after if isinstance(self.after, float) else None
        known = self.latencies.percentile(payable(self.share), now)
        return None if known is None else max(known, SHORTEST)

    def _start(self, asked: _Asked, attempt: int, now: float) -> None:
        reply = REPLY * self.chance.lognormvariate(-0.045, 0.3)
        if self.chance.random() < STRAY:
            reply *= LONGER
        self._at(now + reply * (self.slow if now >= self.seconds else 1.0), attempt, asked, now)

    def _wake(self, asked: _Asked, now: float) -> None:
        waited = now - asked.called
        left = self.budget.tokens / self.budget.cap
        why = held_back(None, False, 0.0, self.latencies.slow_lately)
        if why or kept_for_slower(self.latencies.share_over(waited, now), left) or not self.budget.spend(now):
            self._at(now + waited, _WAKE, asked, now)
            return
        self.hedges[now >= self.seconds] += 1
        for attempt in asked.state.tick().start:
            self._start(asked, attempt, now)

    def _reply(self, asked: _Asked, attempt: int, now: float, began: float) -> None:
        self.latencies.add(now - began, now)
        asked.done = asked.state.arrived(attempt, Success(None)).outcome is not None
        if attempt:
            self.latencies.add_cut(now - asked.called, now)
        if 0.1 * self.seconds <= asked.called < self.seconds:
            self.took.append(now - asked.called)


def simulate(after: float | str | None, seed: int, seconds: float = 30.0, slow: float = 20.0) -> Hedged:
    """Call a dependency for so long, and then as long again while all its replies take `slow` times as long.

    after: the hedge's delay, as join.hedge takes it; None for no hedges.
    """
    world = _World(after, seed, seconds, slow)
    world.run()
    before, since = (made / called for made, called in zip(world.hedges, world.calls, strict=True))
    return Hedged(quantile(world.took, 0.999), before, since)


def compare(after: float | str, seed: int) -> dict[str, float]:
    """p99.9 with hedges, as a share of what it is without; hedges per call; hedges per call when everything is slow."""
    alone, hedged = simulate(None, seed), simulate(after, seed)
    return {
        "p999_to_unhedged": hedged.p999 / alone.p999,
        "extra": hedged.extra,
        "hedges_when_slow": hedged.hedges_when_slow,
    }
