"""Clocks: a runtime's time in nanoseconds, and the shorter of two deadlines.

Law: a run's times are on the clock of its Trio loop, which nobody sets, and never on the wall's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from zerver.errors import DefinitionError

NEVER: Final = float("inf")

_LONGEST: Final = 1e9  # seconds


def shorter(one: float | None, other: float | None) -> float:
    """Seconds; None is no bound, and neither is what nobody lives to see. Raises DefinitionError for NaN."""
    if one is None:
        seconds = NEVER if other is None else other
    else:
        seconds = one if other is None or not one >= other else other
    if not seconds < _LONGEST:
        if seconds != seconds:
            raise DefinitionError(f"deadline={seconds!r} is no time", "give seconds, or None for no deadline")
        return NEVER
    return seconds


def nanoseconds() -> Callable[[], int]:
    """Trio's clock in nanoseconds. Its system clock is `perf_counter` plus an offset, and records only need
    differences.
    """
    clock = trio.lowlevel.current_clock()
    if type(clock).__name__ == "SystemClock":
        return time.perf_counter_ns
    return lambda: round(clock.current_time() * 1e9)


def ahead(clock: Callable[[], int]) -> float:
    """Seconds by which Trio's clock is ahead of a runtime's: what one says follows from what the other does."""
    # Whatever comes between the two looks makes it less, and it is used for as long as the runtime is open.
    return max(trio.current_time() - clock() / 1e9 for _ in range(3))
