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
from typing import Any, Final, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.effects import Success
from zerver.core.joins import Join
from zerver.core.timeline import Account, Timeline
from zerver.runtime.result import Result

#: What a run may have done that says nothing but when.
_USUAL: Final = frozenset(
    [
        *(t.RECEIVED, t.ADMITTED, t.READ, t.INPUT, t.STEP, t.BRANCH, t.PLAN, t.PIVOT, t.ASKED, t.COMMITTED, t.SETTLED),
        *(t.TURN, t.BREATH, t.ENDING, t.ENDED, t.ANSWERED),
    ]
)
_MOST_SHAPES: Final = 1_000

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
    one. effects: names of their kinds, in order; each had success. times: of each run, see Shape. took: of each run,
    nanoseconds from its first record to its last; nobody was parked.
    """

    timeline: Timeline
    shape: Shape
    http: int | None
    effects: tuple[str, ...]
    runs: list[Result] = attrs.field(factory=list)
    times: list[Sequence[int]] = attrs.field(factory=list)
    took: list[int] = attrs.field(factory=list)

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
        return [at[last] - at[first] for at in self.times]

    def spent(self, account: Account) -> list[int]:
        """Of each run, nanoseconds that belong to an account."""
        parts = [self.between(first, last) for name, first, last in self.shape.stretches if name == account]
        return [sum(part) for part in zip(*parts, strict=True)] if parts else [0] * len(self.runs)


class Batch(list[Result]):
    """Runs that have ended together, oldest first. Sorted when somebody asks, and once for all who do.

    remembered: those of them that are in the ring.
    """

    __slots__ = ("_sorted", "remembered")

    def __init__(self, results: Iterable[Result] = ()) -> None:
        super().__init__(results)
        self.remembered: Sequence[Result] = self
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
    groups: dict[_Key, Alike | None] = {}
    others: list[Result] = []
    for result in results:
        timeline = result.timeline
        if result.ending.status == "done" and timeline.records and not result.unresolved:
            kinds, times, subjects, details = zip(*timeline.records, strict=True)  # what was a row is a column now
            shape = _SHAPES[kinds] if kinds in _SHAPES else _known(kinds)
            if shape is not None:
                http = details[-1] if shape.answered else None
                key: _Key = (shape, http, timeline.label, timeline.flow, timeline.tenant, timeline.priority)
                if shape.asked:
                    key += tuple([subjects[place].effect.kind for place in shape.asked])
                    key += tuple([type(details[place]) for place in shape.settled])
                group = groups[key] if key in groups else groups.setdefault(key, _group(result, shape, http))
                if group is not None:
                    group.runs.append(result)
                    group.times.append(_with_waits(times, details, shape.turns) if shape.turns else times)
                    group.took.append(times[-1] - times[0])
                    continue
        others.append(result)
    return [group for group in groups.values() if group is not None], others


def _group(result: Result, shape: Shape, http: int | None) -> Alike | None:
    """A group for runs like this one, still empty; None when they have joins, or effects that had no success."""
    timeline = result.timeline
    effects = [timeline.records[place][2].effect for place in shape.asked]
    outcomes = [timeline.records[place][3] for place in shape.settled]
    if any(isinstance(effect, Join) for effect in effects) or any(type(it) is not Success for it in outcomes):
        return None
    return Alike(timeline, shape, http, tuple(effect.kind.name for effect in effects))


def _with_waits(times: Sequence[int], details: Sequence[Any], turns: Sequence[int]) -> Sequence[int]:
    """The times of a run, and before that of each turn the one since when it had waited."""
    points = list(times)
    for place in reversed(turns):
        points.insert(place, min(max(times[place - 1], details[place]), times[place]))
    return points


# ---- shapes ---------------------------------------------------------------------------------

#: By the kinds of records; None for runs that are not as usual.
_SHAPES: Final[dict[_Kinds, Shape | None]] = {}


def _known(kinds: _Kinds) -> Shape | None:
    if len(_SHAPES) >= _MOST_SHAPES:  # of flows that make plans as they go; what is seen often is soon here again
        _SHAPES.clear()
    shape = _SHAPES[kinds] = _shape(kinds)
    return shape


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
