"""Time as an effect: what a step may know of it, recorded and so replayed.

Law: a step never reads a clock. It asks, and the answer stands in the timeline.
"""

from __future__ import annotations

from datetime import datetime

from zerver.core.effects import Effect, EffectKind
from zerver.effects.catalogue import makes
from zerver.errors import DefinitionError

NOW: EffectKind[..., datetime] = EffectKind("clock.now", "read", target="clock", instant=True)
MONOTONIC: EffectKind[..., float] = EffectKind("clock.monotonic", "read", target="clock", instant=True)
SLEEP: EffectKind[..., None] = EffectKind("clock.sleep", "read", target="clock")


@makes(NOW)
def now() -> Effect[datetime]:
    """The date and time, in UTC."""
    return Effect(NOW)


@makes(MONOTONIC)
def monotonic() -> Effect[float]:
    """Seconds of a clock that never steps, from an origin of its own: for differences only."""
    return Effect(MONOTONIC)


@makes(SLEEP)
def sleep(seconds: float) -> Effect[None]:
    """Wait; the run's deadline goes on. Raises DefinitionError for negative seconds."""
    if not seconds >= 0:
        raise DefinitionError(f"clock.sleep({seconds!r})", "give seconds, 0 or more")
    return Effect(SLEEP, (seconds,))
