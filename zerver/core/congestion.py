"""Congestion: how long a class makes wait, and whether that is a queue or a burst.

Law: pure state over the ages and costs it is told of, closed every tenth of a second.

A burst empties the queue again within a tick; a standing queue does not, and helps nobody. CoDel (Nichols and Jacobson
2012) tells them apart by the minimum: overloaded is a class whose oldest run was never younger than `target` for a
whole tick. Then the newest is served first (Facebook, "Fail at Scale", 2015): those who have just asked still wait for
the answer.
"""

from __future__ import annotations

from math import exp
from typing import Final

TICK: Final = 0.1  # seconds

_SHORTEST: Final = 0.3  # seconds


class Congestion:
    """One class. target: seconds. floor: seconds of CPU per second that the class gets at worst. memory: seconds over
    which its rate is measured: about as long as it waits, or a class that is served twice a second would look quick
    after each run, and queue more than it can serve.

    overloaded: as of the last tick. rate: seconds of CPU per second that it is served with: as measured, but never
    under the floor, so that one slow minute cannot make every later run look hopeless.
    """

    __slots__ = ("_floor", "_measured", "_memory", "_served", "_target", "_youngest", "overloaded", "rate")

    def __init__(self, target: float, floor: float, memory: float = 0.0) -> None:
        self._target = target
        self._floor = floor
        self._memory = max(_SHORTEST, memory)
        self._youngest = 0.0  # the least age of the oldest run in this tick
        self._served = 0.0  # seconds of CPU in this tick
        self._measured = 0.0
        self.overloaded = False
        self.rate = floor

    def seen(self, age: float) -> None:
        """How long the oldest run has waited; 0 when none does."""
        if age < self._youngest:
            self._youngest = age

    def served(self, cost: float) -> None:
        """A run of so many seconds of CPU got its ticket."""
        self._served += cost

    def tick(self, seconds: float, age: float) -> None:
        """A tick is over. age: of the oldest run now, as for `seen`."""
        self.seen(age)
        self.overloaded = self._youngest > self._target
        self._youngest = age
        part = 1.0 - exp(-seconds / self._memory)
        self._measured += part * (self._served / seconds - self._measured)
        self._served = 0.0
        self.rate = max(self._floor, self._measured)
