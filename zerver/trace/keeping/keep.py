"""Keeping: which runs are worth a place on disk, and why.

Law: pure state. Time is what the runs' own records say, chance is an argument, so the same runs are kept again.
Whatever happens, so many runs a second are kept, and a share of the rest: a storm of errors must not become a storm of
writes. What was not kept is counted, and the next one of its kind that is kept says how many had gone by.

    why         which runs                                                      kept
    unresolved  a write of which nobody can say that it is right                all, up to `unresolved` a second
    error       a defect, a failed effect, 5xx, deadline, cancelled             all, up to `errors` a second
    trouble     ended well for its caller, but a write was in doubt or undone,  all, up to `errors` a second
                or an effect that failed was done without
    refused     admission gave no ticket                                        `refused` a second of each reason
    declined    the answer was the caller's own doing: not_found, invalid …     `declined` a second of each kind
    slow        over the route's usual p99, or over `budget`                    `slow` a second
    sample      nothing was wrong                                               `floor` a second

Each of these is by route (refusals: by reason), and of what is beyond it a share is kept: `sample`, for errors at least
`beyond`. With sample=1.0 every run is kept, with jobs=True every run of a job.

Why a `Fail` that is a 4xx is no error: whoever scans for passwords or types wrong addresses makes thousands of them,
and they would push out the one failure that somebody will ask for. If such a run had to undo a write, it is trouble.

Why a floor: who asks "was I charged?" asks about a run that was done, in good time, and with nothing wrong. A shop with
an order a second has every one of them on file; only a route that is busier is sampled. Precedent: the guaranteed
throughput of Jaeger's samplers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from operator import not_
from random import Random
from typing import Final, Literal, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.decisions import Fail
from zerver.core.effects import Failure
from zerver.core.jobs import RUN_PREFIX
from zerver.core.quotas import Bucket
from zerver.core.tickets import Refusal
from zerver.errors import DefinitionError, InvalidData
from zerver.runtime.result import Result
from zerver.trace.batch import Alike, Batch

Why: TypeAlias = Literal["unresolved", "error", "trouble", "refused", "declined", "slow", "sample"]

WHYS: Final[tuple[Why, ...]] = ("unresolved", "error", "trouble", "refused", "declined", "slow", "sample")

#: Those that are kept for the picture they give together; the others are kept for themselves.
ORDINARY: Final[frozenset[Why]] = frozenset(["refused", "declined", "sample"])

_OURS: Final = frozenset(["unavailable", "failed"])  # kinds of Fail that are not the caller's doing
_TROUBLE: Final = frozenset([t.DOUBTED, t.UNDONE, t.GAVE_UP])
_MOST_ROUTES: Final = 1000  # a mount's label has the caller's method in it, and strangers may invent methods
_OTHERS: Final = "(others)"


def _rate(_: object, field: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value < float("inf"):
        raise DefinitionError(f"Keeping was given {field.name}={value!r}", "give runs per second, 0 or more")


def _share(_: object, field: attrs.Attribute[float], value: float) -> None:
    if not 0 <= value <= 1:
        raise DefinitionError(f"Keeping was given {field.name}={value!r}", "give a share from 0 to 1")


def _budget(_: object, field: attrs.Attribute[float | None], value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise DefinitionError(f"Keeping was given {field.name}={value!r}", "give seconds above 0, or None")


@attrs.frozen
class Keeping:
    """How much is kept: rates in runs per second, by route; `sample` and `beyond` are shares from 0 to 1.

    budget: seconds above which a run is slow, parked time left out; None: above its route's usual p99. jobs: every run
    of a job is kept. Raises DefinitionError for what makes no sense.
    """

    sample: float = attrs.field(default=0.001, validator=_share)
    beyond: float = attrs.field(default=0.05, validator=_share)
    unresolved: float = attrs.field(default=100.0, validator=_rate)
    errors: float = attrs.field(default=20.0, validator=_rate)
    refused: float = attrs.field(default=1.0, validator=_rate)
    declined: float = attrs.field(default=1.0, validator=_rate)
    slow: float = attrs.field(default=5.0, validator=_rate)
    floor: float = attrs.field(default=2.0, validator=_rate)
    budget: float | None = attrs.field(default=None, validator=_budget)
    jobs: bool = False


@attrs.frozen
class Kept:
    """That a run is kept. why: see above. beside: how many of its kind were not, since the last one that was. slow:
    whether it was slow, whatever else it was.
    """

    why: Why
    beside: int = 0
    slow: bool = False


@attrs.frozen
class KeeperStatistics:
    """Runs since the start: seen, and by why they were, or would have been kept: kept, and passed over."""

    seen: int
    kept: Mapping[Why, int]
    passed: Mapping[Why, int]


class Keeper:
    """Decides which runs are kept. rng: for the samples."""

    def __init__(self, keeping: Keeping | None = None, rng: Random | None = None) -> None:
        self.keeping = keeping or Keeping()
        self._rng = rng or Random()
        self._taps: dict[tuple[str, str, str], _Tap] = {}
        self._usual: dict[str, _Usual] = {}
        self._seen = 0
        self._kept = dict.fromkeys(WHYS, 0)
        self._passed = dict.fromkeys(WHYS, 0)
        rules = self.keeping
        share, errors = rules.sample, max(rules.sample, rules.beyond)
        self._rules: dict[Why, tuple[float, float]] = {
            "unresolved": (rules.unresolved, errors),
            "error": (rules.errors, errors),
            "trouble": (rules.errors, errors),
            "refused": (rules.refused, share),
            "declined": (rules.declined, share),
            "slow": (rules.slow, share),
            "sample": (rules.floor, share),
        }

    def choose(self, results: Sequence[Result]) -> list[tuple[Result, Kept]]:
        """Which of these runs are kept, and why: by the group where they are alike, else as `decide` has it."""
        batch = Batch.of(results)
        singles = list(batch.others)
        chosen: list[tuple[Result, Kept]] = []
        for group in batch.alike:
            if group.http is not None and group.http >= 500:
                singles += group.runs
                continue
            most = self._most(group)
            if most is None or max(group.took) <= most:
                chosen += self._some(group, group.runs, "sample")
            else:
                slow = [took > most for took in group.took]
                chosen += self._some(group, list(compress(group.runs, slow)), "slow")
                chosen += self._some(group, list(compress(group.runs, map(not_, slow))), "sample")
        for result in singles:
            kept = self.decide(result)
            if kept is not None:
                chosen.append((result, kept))
        return chosen

    def decide(self, result: Result) -> Kept | None:
        """Whether a run that has ended is kept, and why; None for one that is not.

        Constant time but for one look at each of its records, and for one of thirty-two runs a sort of 500 numbers.
        """
        records = result.timeline.records
        now = records[-1][1] / 1e9 if records else 0.0
        route = result.timeline.label or result.timeline.flow
        troubled, parked = _look(records)
        slow = result.status != "refused" and self._is_slow(result, route, parked, now)
        why, kind = _judge(result, troubled)
        if why == "sample" and slow:
            why = "slow"
        self._seen += 1
        rate, share = self._rules[why]
        beside = self._tap(why, "" if why == "refused" else route, kind, rate, now).take(
            now, (share > 0.0 and self._rng.random() < share) or self._is_wanted(result)
        )
        if beside is None:
            self._passed[why] += 1
            return None
        self._kept[why] += 1
        return Kept(why, beside, slow)

    def statistics(self) -> KeeperStatistics:
        return KeeperStatistics(self._seen, dict(self._kept), dict(self._passed))

    def _most(self, group: Alike) -> float | None:
        """How long they may take and not be slow, in nanoseconds; None while nobody knows."""
        if self.keeping.budget is not None:
            return self.keeping.budget * 1e9
        usual = self._usual_of(group.route)
        if usual is None:
            return None
        most = usual.p99
        usual.add(group.took[0], group.ended)
        return most

    def _some(self, group: Alike, runs: Sequence[Result], why: Why) -> Iterator[tuple[Result, Kept]]:
        """Which runs of a group are kept though nothing was wrong, or nothing but that they were slow."""
        if not runs:
            return
        now = group.ended
        rate, share = self._rules[why]
        tap = self._tap(why, group.route, "", rate, now)
        draw, kept, ready = self._rng.random, 0, True
        for run in runs:
            ready = ready and tap.bucket.take(now)  # empty, it stays so until later
            if ready or draw() < share or self._is_wanted(run):
                yield run, Kept(why, tap.passed, why == "slow")
                tap.passed = 0
                kept += 1
            else:
                tap.passed += 1
        self._seen += len(runs)
        self._kept[why] += kept
        self._passed[why] += len(runs) - kept

    def _is_wanted(self, result: Result) -> bool:
        """Whether it is kept whatever it came to."""
        return self.keeping.jobs and result.run_id.startswith(RUN_PREFIX)

    def _is_slow(self, result: Result, route: str, parked: bool, now: float) -> bool:
        records = result.timeline.records
        took = records[-1][1] - records[0][1] if records else 0
        if parked:  # seldom, and the sum costs more than all the rest
            took -= result.timeline.accounts.parked
        if self.keeping.budget is not None:
            return took > self.keeping.budget * 1e9
        usual = self._usual_of(route)
        if usual is None:
            return False
        slow = usual.p99 is not None and took > usual.p99
        usual.add(took, now)
        return slow

    def _usual_of(self, route: str) -> _Usual | None:
        """What is usual there; None for one route too many."""
        usual = self._usual.get(route)
        if usual is None and len(self._usual) < _MOST_ROUTES:
            usual = self._usual[route] = _Usual()
        return usual

    def _tap(self, why: Why, route: str, kind: str, rate: float, now: float) -> _Tap:
        tap = self._taps.get((why, route, kind))
        if tap is None:
            if len(self._taps) >= _MOST_ROUTES:
                self._forget(now)
            if len(self._taps) >= _MOST_ROUTES:
                route, kind = _OTHERS, ""
            tap = self._taps.setdefault((why, route, kind), _Tap(rate, now))
        return tap

    def _forget(self, now: float) -> None:
        """Forget the routes of which nothing has been heard lately: they begin anew, which is what they are."""
        for key in [key for key, tap in self._taps.items() if tap.bucket.full(now) and not tap.passed]:
            del self._taps[key]


class _Tap:
    """Lets so many a second through, counts the others. passed: since one was let through."""

    __slots__ = ("bucket", "passed")

    def __init__(self, rate: float, now: float) -> None:
        self.bucket = Bucket(rate, max(1.0, rate) if rate else 0.0, now)
        self.passed = 0

    def take(self, now: float, lucky: bool) -> int | None:
        if not self.bucket.take(now) and not lucky:
            self.passed += 1
            return None
        passed, self.passed = self.passed, 0
        return passed


class _Usual:
    """What 99 of 100 runs of a route usually need, in nanoseconds: of the last 500 runs, and of a minute at least.

    By number, so that a route with a run a minute has one too; and not more than eight runs a second count, so that on
    a busy one a bad second is not at once what is usual. p99: None while there are too few.
    """

    __slots__ = ("_at", "_next", "_took", "p99")

    SPAN: Final = 512
    FEWEST: Final = 100
    _APART: Final = 60.0 / SPAN  # seconds
    _SORTS: Final = 32  # every so many

    def __init__(self) -> None:
        self._took: list[int] = []
        self._at = 0
        self._next = float("-inf")
        self.p99: int | None = None

    def add(self, took: int, now: float) -> None:
        if now < self._next:
            return
        self._next = now + self._APART
        if len(self._took) < self.SPAN:
            self._took.append(took)
        else:
            self._took[self._at % self.SPAN] = took
        self._at += 1
        if len(self._took) >= self.FEWEST and (self.p99 is None or self._at % self._SORTS == 0):
            ordered = sorted(self._took)
            self.p99 = ordered[int(0.99 * len(ordered))]


def _look(records: Sequence[t.Record]) -> tuple[bool, bool]:
    """Whether the run had trouble with its effects, and whether it was parked."""
    troubled = parked = False
    for kind, _, subject, detail in records:
        if kind in _TROUBLE or (kind == t.SETTLED and type(detail) is Failure and subject.parent is None):
            troubled = True
        elif kind == t.PARKED:
            parked = True
    return troubled, parked


def _judge(result: Result, troubled: bool) -> tuple[Why, str]:
    """Why the run would be kept, and what kind of that it is."""
    if result.unresolved:
        return "unresolved", ""
    cause = result.cause
    if result.status == "refused":
        return "refused", cause.reason if isinstance(cause, Refusal) else ""
    answered = result.timeline.answered
    if result.status == "done":
        if answered is not None and answered >= 500:
            return "error", "done"
        return ("trouble" if troubled else "sample"), ""
    if result.status == "failed" and (answered is None or answered < 500):
        theirs = isinstance(cause, InvalidData) or (isinstance(cause, Fail) and cause.kind not in _OURS)
        if theirs and not troubled:
            return "declined", cause.kind if isinstance(cause, Fail) else "invalid"
        if theirs:
            return "trouble", ""
    return "error", result.status
