"""Overruns: steps that hold a loop for longer than their class may, and what becomes of their flows.

Law: counted per flow and step, over seconds that the caller brings. Three within a minute that took twice what they
may put a flow one class down, for its turns and for its admission; a minute without any puts it back. One class, and no
further: a flow that is slow now and then is not to be starved, only kept from being in the way of those who keep to
their time.

Refused: to demote for any overrun. A CPU that is slow for a while, which is nobody's doing, then demotes every flow
whose steps had used a fifth of their time, all of them at once, and for a minute after it is well again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from zerver.core.timeline import BREATH, Record
from zerver.core.values import value

#: So many offences within so many seconds demote a flow; so many seconds without any promote it.
OFFENCES: Final = 3
MINUTE: Final = 60.0

#: An overrun is an offence when it took so many times its budget.
_GRAVE: Final = 2

#: Steps that are told apart; the rest is counted as one. Names of inserted steps may be made up as they come.
_MOST: Final = 1_000


@value
class Overrun:
    """One step that took too long. took, budget: nanoseconds. place: `shop/steps.py:12`. seen: whether that is where
    the step was found at work; otherwise it is where the step is defined.
    """

    step: str
    took: int
    budget: int
    place: str = ""
    seen: bool = False


@attrs.frozen
class OverrunStatistics:
    """What a step of a flow has done. longest: seconds; place: where it was then, or was last seen."""

    flow: str
    step: str
    count: int
    longest: float
    place: str


class Offenders:
    """Which flows have overrun of late.

    down: flows that may be put down, and when their last offence was. Empty, it spares everybody a look at the clock.
    """

    def __init__(self) -> None:
        self.down: dict[str, float] = {}
        self._times: dict[str, list[float]] = {}
        self._steps: dict[tuple[str, str], OverrunStatistics] = {}

    def note(self, flow: str, overrun: Overrun, now: float) -> None:
        """A step of the flow has overrun."""
        self._count(flow, overrun)
        if overrun.took < _GRAVE * overrun.budget:
            return
        if flow in self.down:
            self.down[flow] = now
            return
        times = [at for at in self._times.get(flow, ()) if now - at < MINUTE]
        times.append(now)
        self._times[flow] = times
        if len(times) >= OFFENCES:
            del self._times[flow]
            self.down[flow] = now

    def demoted(self, flow: str, now: float) -> int:
        """By how many classes the flow is put down: 0 or 1."""
        last = self.down.get(flow)
        if last is None:
            return 0
        if now - last >= MINUTE:
            del self.down[flow]
            return 0
        return 1

    def flows(self, now: float) -> tuple[str, ...]:
        """The flows that are put down now."""
        return tuple(flow for flow in tuple(self.down) if self.demoted(flow, now))

    def statistics(self) -> tuple[OverrunStatistics, ...]:
        """The steps that have overrun, most often first."""
        return tuple(sorted(self._steps.values(), key=lambda step: -step.count))

    def _count(self, flow: str, overrun: Overrun) -> None:
        key = (flow, overrun.step)
        if key not in self._steps and len(self._steps) >= _MOST:
            key = ("", "other steps")
        known = self._steps.get(key) or OverrunStatistics(*key, 0, 0.0, "")
        took, longest = overrun.took / 1e9, known.longest
        better = overrun.seen or not known.place
        self._steps[key] = OverrunStatistics(
            *key, known.count + 1, max(took, longest), overrun.place if better else known.place
        )


def longest_stretch(records: Sequence[Record], began: int, now: int) -> tuple[int, object]:
    """The longest time between two records of a turn, and what the record at its end is about; None for the time before
    a step that was not begun: it may be anybody's, as when the machine was busy.
    """
    longest, until, subject = 0, now, records[-1][2]  # what follows the last record of a turn belongs to it
    culprit: object = None
    for kind, at, about, _ in reversed(records):
        stretch = until - max(at, began)
        if stretch > longest:
            longest, culprit = stretch, subject
        if at <= began:
            break
        until, subject = at, None if kind == BREATH else about
    return longest, culprit
