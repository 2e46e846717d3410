"""Paths: whose time a run's time was, so that runs can be compared part by part, and the parts add up.

Law: every nanosecond of a run, parked ones left out, belongs to one part: to admission, to waiting for a turn, to a
step on the critical path, to the rollback, or to what is between steps. So the parts of a run sum up to what it took,
and the differences of the parts of two runs to the difference of the runs.

The critical path is found from the end backwards: the step that ended last, then the one that ended last before that
one began, and so on. Of steps that ran at once it is the one that the others waited for: a step that grows in the
shadow of a longer one makes no run slower, and has no share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, TypeAlias

from zerver.core import timeline as t
from zerver.core.timeline import Timeline
from zerver.trace.facts import Facts
from zerver.trace.stretches import stretches

ADMISSION: Final = "(admission)"
TURN: Final = "(turn wait)"
ROLLBACK: Final = "(rollback)"
BETWEEN: Final = "(between steps)"

#: (whose, began, ended): nanoseconds since the run began.
Part: TypeAlias = tuple[str, int, int]

#: Gaps shorter than this (ns) are nobody's: to look who ran in each of them would cost more than it tells.
_SHOWS: Final = 50_000

#: Of the steps that ended after a gap had begun, so many are looked at: a run may have a hundred thousand.
_NEAR: Final = 64


def parts(timeline: Timeline, facts: Facts | None = None) -> dict[str, int]:
    """Nanoseconds by whose they were; they sum up to `total - parked` of the run's accounts."""
    sums: dict[str, int] = {}
    owners = critical_path(facts or Facts(timeline))
    at = 0
    for account, began, ended in stretches(timeline.records):
        while at < len(owners) and owners[at][1] < ended:
            owner, first, last = owners[at]
            whose = _ACCOUNTS.get(account, owner)
            if account != "parked":
                sums[whose] = sums.get(whose, 0) + min(last, ended) - max(first, began)
            if last > ended:
                break
            at += 1
    return sums


_ACCOUNTS: Final[dict[str, str]] = {"admission": ADMISSION, "turn": TURN}


def critical_path(facts: Facts) -> list[Part]:
    """Whom the run waited for, in order of time, from its beginning to its end without a gap."""
    end = facts.ended - facts.began
    undo = next((at - facts.began for kind, at, _, _ in facts.timeline.records if kind == t.UNDO), end)
    found = [(ROLLBACK, undo, end)] if undo < end else []
    steps = _steps(facts, undo)
    until = undo
    for name, began, ended in reversed(steps):
        if ended <= until:
            found.extend(_gap(steps, ended, until))
            found.append((name, began, ended))
            until = began
    found.extend(_gap(steps, 0, until))
    found.reverse()
    return found


def _steps(facts: Facts, end: int) -> list[Part]:
    """Every step that took any time, by its end."""
    found = []
    for step in facts.steps.values():
        if step.began is not None:
            ended = end if step.ended is None else min(end, step.ended - facts.began)
            if step.began - facts.began < ended:
                found.append((step.name, step.began - facts.began, ended))
    return sorted(found, key=lambda part: (part[2], part[1]))


def _gap(steps: list[Part], began: int, ended: int) -> Iterator[Part]:
    """A gap in the path, backwards: the step's that ran through most of it, as that of a sibling which began late."""
    if ended <= began:
        return
    running: list[Part] = []
    if ended - began >= _SHOWS:
        first_after = bisect_right(steps, began, key=lambda part: part[2])
        near = steps[first_after : first_after + _NEAR]
        running = [part for part in near if part[1] < ended]
    if running:
        name, first, last = max(running, key=lambda part: min(part[2], ended) - max(part[1], began))
        first, last = max(first, began), min(last, ended)
        if last < ended:
            yield (BETWEEN, last, ended)
        yield (name, first, last)
        ended = first
    if began < ended:
        yield (BETWEEN, began, ended)
