"""Cohorts: the slow runs of a route beside its fast ones, and which step makes the difference.

Law: what is said adds up. A run's time is divided among admission, turn waits and the steps on its critical path
(`path.py`), so the differences of the parts' means sum up to the difference of the runs' means: 100 %. What only goes
along with being slow is told apart from that, and only where chance is a poor explanation. Bounded: so many
runs a side are looked at, however many there are.

Refused runs, and those that were cancelled, are in neither cohort: they are short because nothing happened.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from zerver.core.timeline import Timeline
from zerver.runtime import Result
from zerver.trace.comparing.path import parts
from zerver.trace.comparing.sides import REQUEST, StepSide, sides
from zerver.trace.describe import milliseconds
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.summary import Summary
from zerver.trace.veil import MASK, escaped

#: Runs that are compared, at most and at least, on each side.
MOST: Final = 200
FEWEST: Final = 5

_WAITED: Final = 1_000_000  # ns from which on a wait for a ticket or a turn is one
_FEW_VALUES: Final = 8  # a slot with more distinct values is no category
_CLEARLY: Final = 2.6  # standard errors; many things are looked at, and one of them is always at two
_YES: Final = "\0"  # no tenant and no slot has this value
_NOT_COMPARED: Final = frozenset({"refused", "cancelled"})


@attrs.frozen
class Split:
    """Which runs of a route are slow, and which are fast; the newest first.

    runs: how many of the route there were to choose from. slow_ns: what the slow ones took, or longer. fast_ns: what
    the fast ones took, or shorter. found_slow, found_fast: how many there were before the bound.
    """

    route: str
    runs: int
    slow: tuple[str, ...]
    fast: tuple[str, ...]
    slow_ns: int
    fast_ns: int
    found_slow: int
    found_fast: int

    @property
    def enough(self) -> bool:
        """Whether there are enough on both sides to compare them."""
        return min(len(self.slow), len(self.fast)) >= FEWEST

    @property
    def too_few(self) -> str:
        """What there is, and how to have more; for a split that is not enough."""
        return (
            f"too few runs of {self.route} are stored: {self.found_slow} slow and {self.found_fast} fast ones "
            f"of {self.runs}, and {FEWEST} of each are needed; "
            "keep more of them: fast ones by ZERVER_TRACE_SAMPLE=0.1, slow ones by ZERVER_TRACE_SLOW_MS=50"
        )


def split(route: str, summaries: Sequence[Summary], most: int = MOST) -> Split:
    """Choose the cohorts of a route: slow are the runs kept as slow and those over the p95 of what is stored; fast are
    those that were done in less than the median.

    summaries: of the route's runs, newest first.
    """
    runs = [run for run in summaries if run.status not in _NOT_COMPARED]
    took = sorted(run.took_ns for run in runs)
    p95 = took[min(len(took) - 1, math.ceil(0.95 * len(took)))] if took else 0
    median = took[(len(took) - 1) // 2] if took else 0
    fast = [run for run in runs if run.took_ns <= median and run.status == "done" and not _is_slow(run)]
    fastest = max((run.took_ns for run in fast), default=0)
    slow = [run for run in runs if (_is_slow(run) or run.took_ns >= p95) and run.took_ns > fastest]
    return Split(
        route=route,
        runs=len(runs),
        slow=tuple(run.run_id for run in slow[:most]),
        fast=tuple(run.run_id for run in fast[:most]),
        slow_ns=min((run.took_ns for run in slow), default=0),
        fast_ns=fastest,
        found_slow=len(slow),
        found_fast=len(fast),
    )


def _is_slow(run: Summary) -> bool:
    return run.slow or run.kept == "slow"


# ---- what is told ---------------------------------------------------------------------------


@attrs.frozen
class Shares:
    """How many runs of each cohort have something, as shares from 0 to 1. what: as "timeouts", "tenant acme"."""

    what: str
    slow: float
    fast: float

    @property
    def more(self) -> float:
        return self.slow - self.fast


@attrs.frozen
class EffectTimes:
    """An effect of a step: medians, in nanoseconds, of the runs that asked for it; None where no run did."""

    name: str
    slow_ns: int | None
    fast_ns: int | None


@attrs.frozen
class PartTimes:
    """One part of the route's time: a step, or "(admission)", "(turn wait)", "(between steps)", "(rollback)".

    slow_ns, fast_ns: means. slow_median_ns, fast_median_ns: the same runs' medians. share: of the difference of all
    parts' means; the shares of all parts sum up to 1, and one that was shorter in the slow runs is negative.
    """

    name: str
    slow_ns: float
    fast_ns: float
    slow_median_ns: int
    fast_median_ns: int
    share: float
    traits: tuple[Shares, ...] = ()
    effects: tuple[EffectTimes, ...] = ()

    @property
    def more_ns(self) -> float:
        return self.slow_ns - self.fast_ns


@attrs.frozen
class Cohorts:
    """Slow runs beside fast ones. parts: the one that explains most first. along: what goes with being slow."""

    route: str
    slow: int
    fast: int
    parts: tuple[PartTimes, ...]
    along: tuple[Shares, ...]

    @property
    def more_ns(self) -> float:
        """How much longer the slow ones took, on the average, in nanoseconds."""
        return math.fsum(part.more_ns for part in self.parts)


def compare(
    route: str,
    slow: Sequence[Result | Timeline],
    fast: Sequence[Result | Timeline],
    most: int = MOST,
    hidden: Hidden = NOTHING_HIDDEN,
) -> Cohorts:
    """Which part of the slow runs makes them slow. hidden: as `zerver.trace.diff` has it.

    Raises ValueError for a side without runs.
    """
    if not slow or not fast:
        raise ValueError(f"compare: {len(slow)} slow and {len(fast)} fast runs; there must be some of each")
    left = [_Run(run, hidden) for run in slow[:most]]
    right = [_Run(run, hidden) for run in fast[:most]]
    names = dict.fromkeys(name for run in (*left, *right) for name in run.parts)
    means = {name: (_mean(left, name), _mean(right, name)) for name in names}
    difference = math.fsum(one - other for one, other in means.values())
    found = [
        PartTimes(
            name=name,
            slow_ns=one,
            fast_ns=other,
            slow_median_ns=_median(left, name),
            fast_median_ns=_median(right, name),
            share=(one - other) / difference if difference else 0.0,
            traits=tuple(_traits(name, left, right)),
            effects=tuple(_effects(name, left, right)),
        )
        for name, (one, other) in means.items()
    ]
    found.sort(key=lambda part: -part.more_ns)
    return Cohorts(route, len(left), len(right), tuple(found), tuple(_along(left, right)))


class _Run:
    """What is asked of one run."""

    def __init__(self, run: Result | Timeline, hidden: Hidden) -> None:
        timeline = run.timeline if isinstance(run, Result) else run
        self.timeline = timeline
        self.parts = parts(timeline)
        self.steps = sides(timeline, hidden)
        self.given = self.steps.pop(REQUEST, None)
        self.facts = dict(self._facts())

    def _facts(self) -> Iterator[tuple[str, str]]:
        """What kind of a run it was: names with few values, of which one may go with being slow."""
        timeline = self.timeline
        ending = timeline.ending
        yield "tenant", timeline.tenant
        yield "priority", timeline.priority
        yield "version", timeline.version
        yield "status", "under way" if ending is None else ending.status
        yield "http", "none" if timeline.answered is None else str(timeline.answered)
        yield "waited for its ticket", _yes(timeline.accounts.admission >= _WAITED)
        for name, side in self.steps.items():
            for what in ("retries", "timeouts", "hedges"):
                yield f"{name}: {what}", _yes(_counted(side, what) > 0)
            yield f"{name}: waited for a turn", _yes(side.turn_ns >= _WAITED)
            for slot, shown in side.writes.items():
                yield f"slot {slot} =", shown.text
        for part, shown in {} if self.given is None else self.given.reads.items():
            yield f"{part} =", shown.text


def _yes(answer: bool) -> str:
    return _YES if answer else ""


def _counted(side: StepSide, what: str) -> int:
    if what == "retries":
        return sum(effect.attempts - 1 for effect in side.effects.values())
    return sum(getattr(effect, what) for effect in side.effects.values())


def _mean(runs: Sequence[_Run], name: str) -> float:
    return sum(run.parts.get(name, 0) for run in runs) / len(runs)


def _median(runs: Sequence[_Run], name: str) -> int:
    return round(statistics.median(run.parts.get(name, 0) for run in runs))


def _traits(name: str, slow: Sequence[_Run], fast: Sequence[_Run]) -> Iterator[Shares]:
    """What happened in the step, in which share of the runs: "not at all" on both sides is left out."""
    for what in ("timeouts", "retries", "hedges"):
        one, other = (
            sum(_counted(run.steps[name], what) > 0 for run in runs if name in run.steps) / len(runs)
            for runs in (slow, fast)
        )
        if one or other:
            yield Shares(what, one, other)
    one, other = (
        sum(run.steps[name].turn_ns >= _WAITED for run in runs if name in run.steps) / len(runs)
        for runs in (slow, fast)
    )
    if one or other:
        yield Shares("turn waits", one, other)


def _effects(name: str, slow: Sequence[_Run], fast: Sequence[_Run]) -> Iterator[EffectTimes]:
    took: dict[str, tuple[list[int], list[int]]] = {}
    called: dict[str, set[str]] = {}
    for side, runs in enumerate((slow, fast)):
        for run in runs:
            for place, effect in run.steps[name].effects.items() if name in run.steps else ():
                label = f"{place} {effect.kind}"
                called.setdefault(label, set()).add(effect.asked.text)
                if effect.took_ns is not None:
                    took.setdefault(label, ([], []))[side].append(effect.took_ns)
    for label, both in took.items():
        texts = called[label]
        shown = next(iter(texts)) if len(texts) == 1 else label.partition(" ")[2]
        yield EffectTimes(shown, *(round(statistics.median(times)) if times else None for times in both))


# ---- what goes along ------------------------------------------------------------------------


def _along(slow: Sequence[_Run], fast: Sequence[_Run]) -> list[Shares]:
    """Properties that slow runs have clearly more often than fast ones, the clearest first."""
    found: list[Shares] = []
    for name in dict.fromkeys(name for run in (*slow, *fast) for name in run.facts):
        values = [Counter(run.facts.get(name, "") for run in runs) for runs in (slow, fast)]
        distinct = {value for counted in values for value in counted if value}
        if len(distinct) > _FEW_VALUES or any(MASK in value for value in distinct):
            continue
        for value in sorted(distinct):
            shares = Shares(
                name if value == _YES else f"{name} {value}",
                values[0][value] / len(slow),
                values[1][value] / len(fast),
            )
            if shares.more >= 0.2 and _is_clear(shares, len(slow), len(fast)):
                found.append(shares)
    return sorted(found, key=lambda shares: -shares.more)[:12]


def _is_clear(shares: Shares, slow: int, fast: int) -> bool:
    """Whether chance is a poor explanation: the z of two proportions, by the pooled share."""
    pooled = (shares.slow * slow + shares.fast * fast) / (slow + fast)
    error = math.sqrt(pooled * (1 - pooled) * (1 / slow + 1 / fast))
    return error > 0 and shares.more / error >= _CLEARLY


# ---- as text --------------------------------------------------------------------------------


def format_cohorts(found: Cohorts, chosen: Split | None = None) -> str:
    """The comparison as text, without a newline at its end."""
    return "\n".join(map(escaped, [*_head(found, chosen), *_table(found), *_goes_along(found)]))


def _head(found: Cohorts, chosen: Split | None) -> Iterator[str]:
    over = "" if chosen is None else f" ({milliseconds(chosen.slow_ns)} and more)"
    under = "" if chosen is None else f" ({milliseconds(chosen.fast_ns)} and less)"
    yield f"{found.route}: {found.slow} slow runs{over} beside {found.fast} fast ones{under}"
    if not found.parts or found.more_ns <= 0:
        yield "they took no longer: there is nothing to explain"
        return
    first = found.parts[0]
    yield (
        f"{first.name} explains {_rounded([part.share for part in found.parts])[0]}% of the difference: "
        f"{_signed(first.more_ns)} of {_signed(found.more_ns)}{_why(first)}"
    )


def _why(part: PartTimes) -> str:
    """What is most unlike in the part: something that happened in it, or else one of its effects."""
    trait = max(part.traits, key=lambda trait: trait.more, default=None)
    if trait is not None and trait.more >= 0.2:
        return f"; {trait.what} in {_percent(trait.slow)} of the slow runs and {_percent(trait.fast)} of the fast ones"
    effect = max(part.effects, key=lambda e: (e.slow_ns or 0) - (e.fast_ns or 0), default=None)
    if effect is not None and 2 * ((effect.slow_ns or 0) - (effect.fast_ns or 0)) >= part.more_ns:
        return f"; {effect.name} takes {_time(effect.slow_ns)} there and {_time(effect.fast_ns)} otherwise"
    return ""


def _table(found: Cohorts) -> Iterator[str]:
    shares = _rounded([part.share for part in found.parts])
    rows = [part for part in found.parts if max(part.slow_ns, part.fast_ns) >= 1]
    width = max([16, *(len(part.name) for part in rows), *(len(e.name) + 2 for part in rows for e in part.effects)])
    yield ""
    yield f"  {'medians':{width}}  {'slow':>9}  {'fast':>9}  {'means differ':>12}  share"
    for part, share in zip(found.parts, shares, strict=True):
        if part not in rows:
            continue
        times = f"{milliseconds(part.slow_median_ns):>9}  {milliseconds(part.fast_median_ns):>9}"
        told = ", ".join(f"{t.what} {_percent(t.slow)} | {_percent(t.fast)}" for t in part.traits)
        yield f"  {part.name:{width}}  {times}  {_signed(part.more_ns):>12}  {share:>4}%  {told}".rstrip()
        for effect in part.effects:
            yield f"    {effect.name:{width - 2}}  {_time(effect.slow_ns):>9}  {_time(effect.fast_ns):>9}"
    yield f"  {'in all':{width}}  {'':>9}  {'':>9}  {_signed(found.more_ns):>12}  {sum(shares):>4}%"


def _goes_along(found: Cohorts) -> Iterator[str]:
    if found.along:
        yield ""
        yield "goes with being slow"
        for shares in found.along:
            yield f"  {shares.what}: {_percent(shares.slow)} of the slow runs, {_percent(shares.fast)} of the fast ones"


def _rounded(shares: Sequence[float]) -> list[int]:
    """Percents that add up to 100 as the shares to 1: by largest remainder."""
    whole = [math.floor(100 * share) for share in shares]
    missing = round(100 * math.fsum(shares)) - sum(whole)
    for index in sorted(range(len(whole)), key=lambda i: whole[i] - 100 * shares[i])[:missing]:
        whole[index] += 1
    return whole


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _time(ns: int | None) -> str:
    return "–" if ns is None else milliseconds(ns)


def _signed(ns: float) -> str:
    return f"{'-' if ns < 0 else '+'}{milliseconds(round(abs(ns)))}"


# ---- as JSON --------------------------------------------------------------------------------


def cohorts_json(found: Cohorts, chosen: Split | None = None) -> dict[str, Any]:
    """The comparison for programs: lengths of time in nanoseconds, shares from 0 to 1."""
    picked: Mapping[str, Any] = {} if chosen is None else attrs.asdict(chosen)
    return {**attrs.asdict(found), "more_ns": found.more_ns, "chosen": picked or None, "text": format_cohorts(found)}
