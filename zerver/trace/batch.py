"""Batches: runs that have ended together, sorted once by what is alike, for all who want to know of them.

Law: most runs of a busy server are done, nothing was wrong with them, and they differ in nothing but their times. Such
runs are alike when they are of one route, class, tenant and answer, and their records are of the same kinds in the same
order; whoever counts them does it by the group: a sum, a comparison, a column of times. Every other run is one of the
`others`, and is looked at record by record.

What the kinds of a run's records say together is its shape, which is worked out once. Refused: counters that a run
counts up as it goes. That is work on a request's way, and what a run was is known only at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import add, sub
from typing import Any, Final, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.effects import Success
from zerver.core.joins import Join
from zerver.core.timeline import Account, Record, Timeline
from zerver.runtime.result import Result

#: What a run may have done that says nothing but when.
_USUAL: Final = frozenset(
    [
        *(t.RECEIVED, t.ADMITTED, t.READ, t.INPUT, t.STEP, t.BRANCH, t.PLAN, t.PIVOT, t.ASKED, t.COMMITTED, t.SETTLED),
        *(t.TURN, t.BREATH, t.ENDING, t.ENDED, t.ANSWERED),
    ]
)
_MOST_SHAPES: Final = 1_000

#: Records of a run that may be like others. Of longer ones hardly two are, and a shape costs by the square of them.
_LONGEST: Final = 250

_Kinds: TypeAlias = tuple[str, ...]
_Key: TypeAlias = tuple[Any, ...]


@attrs.frozen(eq=False)
class Shape:
    """What the kinds of a run's records say.

    turns, asked, settled: places of records; effects settle one after the other. answered: whether the last record is
    that of the answer. The others are of a run's times, of which there is one more for each turn: since when it had
    waited. stretches: (account, first, last): the time between the two belongs to that account. effects: (asked,
    settled).
    """

    turns: tuple[int, ...]
    asked: tuple[int, ...]
    settled: tuple[int, ...]
    answered: bool
    stretches: tuple[tuple[Account, int, int], ...]
    effects: tuple[tuple[int, int], ...]


@attrs.frozen(eq=False)
class Alike:
    """Runs that differ in nothing but their times, oldest first.

    timeline: of the first; its label, flow, tenant and priority are those of all. http: of the answer, None without
    one. effects: names of their kinds, in order; each had success. times: a column for each that Shape speaks of, with
    that of each run. took: of each run, nanoseconds from its first record to its last; nobody was parked.
    """

    timeline: Timeline
    shape: Shape
    http: int | None
    effects: tuple[str, ...]
    runs: Sequence[Result]
    times: Sequence[Sequence[int]]
    took: Sequence[int] = attrs.field(
        init=False, default=attrs.Factory(lambda self: self.between(0, -1), takes_self=True)
    )

    @property
    def route(self) -> str:
        """What they are counted under: their edge's label, or their flow."""
        return self.timeline.label or self.timeline.flow

    @property
    def ended(self) -> float:
        """When the last of them ended, in seconds of the runtime's clock."""
        return self.times[-1][-1] / 1e9

    def between(self, first: int, last: int) -> list[int]:
        """Of each run, nanoseconds from one of its times to another."""
        return list(map(sub, self.times[last], self.times[first]))

    def spent(self, account: Account) -> list[int]:
        """Of each run, nanoseconds that belong to an account."""
        spent = [0] * len(self.runs)
        for name, first, last in self.shape.stretches:
            if name == account:
                spent = list(map(add, spent, self.between(first, last)))
        return spent

    def totals(self) -> dict[Account, int]:
        """Nanoseconds of all runs together, by the accounts that they have."""
        sums = list(map(sum, self.times))
        totals: dict[Account, int] = {}
        for account, first, last in self.shape.stretches:
            totals[account] = totals.get(account, 0) + sums[last] - sums[first]
        return totals


class Batch(list[Result]):
    """Runs that have ended together, oldest first. Sorted when somebody asks, and once for all who do.

    remembered: those of them that are in the ring.
    """

    __slots__ = ("_sorted", "remembered")

    def __init__(self, results: Iterable[Result] = ()) -> None:
        super().__init__(results)
        self.remembered: Sequence[Result] = tuple(self)  # not itself: what is in a circle is not freed at once
        self._sorted: tuple[Sequence[Alike], Sequence[Result]] | None = None

    @classmethod
    def of(cls, results: Sequence[Result]) -> Batch:
        """These runs as a batch, which they may be already."""
        return results if isinstance(results, Batch) else cls(results)

    @property
    def alike(self) -> Sequence[Alike]:
        """The usual ones, in groups."""
        return self._parts[0]

    @property
    def others(self) -> Sequence[Result]:
        """Those that are to be looked at one by one."""
        return self._parts[1]

    @property
    def _parts(self) -> tuple[Sequence[Alike], Sequence[Result]]:
        if self._sorted is None:
            self._sorted = _sort(self)
        return self._sorted


def _sort(results: Sequence[Result]) -> tuple[Sequence[Alike], Sequence[Result]]:
    groups: dict[_Key, _Group] = {}
    others: list[Result] = []
    for result in results:
        timeline = result.timeline
        records = timeline.records
        if result.ending.status == "done" and 0 < len(records) <= _LONGEST and not result.unresolved:
            kinds, times = [], []
            for kind, at, _, _ in records:  # zip(*records) makes an iterator for each record, and costs more
                kinds.append(kind)
                times.append(at)
            shape = _SHAPES[tuple(kinds)]
            if shape is not None:
                http = records[-1][3] if shape.answered else None
                key: _Key = (shape, http, timeline.label, timeline.flow, timeline.tenant, timeline.priority)
                if shape.asked:
                    key += _did(records, shape)
                group = groups.get(key)
                if group is None:
                    group = groups[key] = _Group(_effects(records, shape))
                if group.effects is not None:
                    group.runs.append(result)
                    group.times.append(_with_waits(times, records, shape.turns) if shape.turns else times)
                    continue
        others.append(result)
    alike = [_alike(key, group, group.effects) for key, group in groups.items() if group.effects is not None]
    return alike, others


def _did(records: Sequence[Record], shape: Shape) -> _Key:
    """Of what kinds the effects were, and what came of each. In loops: a comprehension costs a call."""
    did: list[object] = []
    for place in shape.asked:
        did.append(records[place][2].effect.kind)
    for place in shape.settled:
        did.append(type(records[place][3]))
    return tuple(did)


@attrs.define(eq=False)
class _Group:
    """Runs of one key. effects: see `_effects`. times: of each run."""

    effects: tuple[str, ...] | None
    runs: list[Result] = attrs.field(factory=list)
    times: list[list[int]] = attrs.field(factory=list)


def _effects(records: Sequence[Record], shape: Shape) -> tuple[str, ...] | None:
    """What a run has asked for; None when there are joins, or effects that had no success: it is like no other."""
    effects = [records[place][2].effect for place in shape.asked]
    outcomes = [records[place][3] for place in shape.settled]
    if any(isinstance(effect, Join) for effect in effects) or any(type(it) is not Success for it in outcomes):
        return None
    return tuple(effect.kind.name for effect in effects)


def _alike(key: _Key, group: _Group, effects: tuple[str, ...]) -> Alike:
    """What was a row for each run is a column for each time now."""
    shape, http, *_ = key
    return Alike(group.runs[0].timeline, shape, http, effects, group.runs, tuple(zip(*group.times, strict=True)))


def _with_waits(times: list[int], records: Sequence[Record], turns: Sequence[int]) -> list[int]:
    """The times of a run, and before that of each turn the one since when it had waited."""
    for place in reversed(turns):
        times.insert(place, min(max(times[place - 1], records[place][3]), times[place]))
    return times


# ---- shapes ---------------------------------------------------------------------------------


class _Shapes(dict[_Kinds, "Shape | None"]):
    """By the kinds of records; None for runs that are not as usual."""

    def __missing__(self, kinds: _Kinds) -> Shape | None:
        if len(self) >= _MOST_SHAPES:  # of flows that make plans as they go; what is seen often is soon here again
            self.clear()
        shape = self[kinds] = _shape(kinds)
        return shape


_SHAPES: Final = _Shapes()


def _shape(kinds: _Kinds) -> Shape | None:
    turns, asked, settled = (
        tuple(place for place, kind in enumerate(kinds) if kind == wanted) for wanted in (t.TURN, t.ASKED, t.SETTLED)
    )
    pairs = [place for pair in zip(asked, settled, strict=False) for place in pair]
    # Of two that were under way at once, the kinds do not say which one settled.
    one_by_one = len(asked) == len(settled) and pairs == sorted(pairs)
    if not one_by_one or not _USUAL.issuperset(kinds) or t.ANSWERED in kinds[:-1] or 0 in turns:
        return None

    def time_of(place: int) -> int:
        return place + sum(turn <= place for turn in turns)

    effects = tuple((time_of(first), time_of(last)) for first, last in zip(asked, settled, strict=True))
    return Shape(turns, asked, settled, kinds[-1] == t.ANSWERED, tuple(_stretches(kinds)), effects)


def _stretches(kinds: _Kinds) -> Iterator[tuple[Account, int, int]]:
    """As `timeline.accounts` has them: each gap belongs to the account of the record that ends it."""
    first = 0
    for account, gaps in groupby(_gaps(kinds)):
        last = first + len(list(gaps))
        yield account, first, last
        first = last


def _gaps(kinds: _Kinds) -> Iterator[Account]:
    waiting = False
    for kind in kinds[1:]:
        if kind == t.TURN:  # until the wait for it began, the run had been doing what it did
            yield "io" if waiting else "cpu"
        yield t.ACCOUNTS.get(kind, "cpu")
        waiting = kind == t.ASKED or (waiting and kind != t.SETTLED)
