"""Diff: two runs beside each other, step by step, and where they parted.

Law: a pure function of two timelines. Steps are aligned by name, and a step that one run alone has is said; values are
compared as `same` does and shown as the veil allows; times are told, and are a difference only when they are far apart.
Two runs have *parted* at the first step that took another way: asked for another effect, decided otherwise, or ran in
one of them alone. What the world answered, and what a step was given, is why.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

import attrs

from zerver.core.timeline import Timeline
from zerver.runtime import Result
from zerver.trace.comparing.sides import REQUEST, ROLLBACK, EffectSide, Shown, StepSide, sides
from zerver.trace.describe import milliseconds
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.veil import escaped

Kind: TypeAlias = Literal["slot", "decision", "effect", "attempts", "timing", "missing"]

#: Times are a difference from this factor on, and from so many nanoseconds on.
_FACTOR: Final = 1.5
_SHOWS: Final = 1_000_000


@attrs.frozen
class Difference:
    """One thing that is not the same in both runs.

    kind: "slot", "decision", "effect" (asked for something else, or got something else), "attempts", "timing" or
    "missing" (a step, or an effect, of one run alone). name: of the slot or effect. a, b: as they are shown; None where
    there is nothing. parts: whether the two runs went another way here.
    """

    kind: Kind
    name: str
    text: str
    a: str | None
    b: str | None
    parts: bool = False


@attrs.frozen(eq=False)
class StepDiff:
    """One step of both runs. a, b: None when the run did not come to it."""

    step: str
    a: StepSide | None
    b: StepSide | None
    differences: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        """Whether the two did the same; times may differ."""
        return all(difference.kind == "timing" for difference in self.differences)

    @property
    def parts(self) -> bool:
        """Whether the two went another way here."""
        return any(difference.parts for difference in self.differences)


@attrs.frozen(eq=False)
class Diff:
    """Two runs beside each other.

    run: what differs of the runs as a whole: flow, version, tenant, priority, status, http. steps: of both runs, in the
    order in which they began. first: the step at which they parted, None when both went the same way. first_value: the
    first step with any difference but in times.
    """

    a: Timeline
    b: Timeline
    run: tuple[Difference, ...]
    steps: tuple[StepDiff, ...]
    first: StepDiff | None
    first_value: StepDiff | None

    @property
    def same(self) -> bool:
        """Whether both runs did the same; times may differ."""
        return self.first_value is None and not self.run


def diff(a: Result | Timeline, b: Result | Timeline, hidden: Hidden = NOTHING_HIDDEN) -> Diff:
    """Hold two runs against each other: of one flow, of two versions of it, or of two flows.

    hidden: names that are not to be shown, beside what the flows themselves declare secret.
    """
    one = a.timeline if isinstance(a, Result) else a
    other = b.timeline if isinstance(b, Result) else b
    left, right = sides(one, hidden), sides(other, hidden)
    steps = tuple(_step(name, left.get(name), right.get(name)) for name in aligned(left, right))
    return Diff(
        a=one,
        b=other,
        run=tuple(_runs(one, other)),
        steps=steps,
        first=next((step for step in steps if step.parts), None),
        first_value=next((step for step in steps if not step.same), None),
    )


def aligned(left: Iterable[str], right: Iterable[str]) -> list[str]:
    """The names of both, in the order of the first; what only the second has stands behind what it followed there."""
    names = list(left)
    places = {name: index + 1 for index, name in enumerate(names)}
    behind: dict[int, list[str]] = {}
    at = 0
    for name in right:
        if name in places:
            at = max(at, places[name])
        else:
            behind.setdefault(at, []).append(name)
    found = behind.get(0, [])
    for index, name in enumerate(names, 1):
        found.append(name)
        found.extend(behind.get(index, ()))
    return found


# ---- what differs ---------------------------------------------------------------------------


def _runs(a: Timeline, b: Timeline) -> Iterator[Difference]:
    for name in ("flow", "version", "label", "tenant", "priority", "status", "http"):
        one, other = _of_run(a, name), _of_run(b, name)
        if one != other:
            yield Difference("decision", name, f"{name} {one or 'none'} | {other or 'none'}", one, other)


def _of_run(timeline: Timeline, name: str) -> str | None:
    if name == "status":
        return "under way" if timeline.ending is None else timeline.ending.status
    if name == "http":
        return None if timeline.answered is None else str(timeline.answered)
    return str(getattr(timeline, name))


def _step(name: str, a: StepSide | None, b: StepSide | None) -> StepDiff:
    if a is not None and b is not None:
        return StepDiff(name, a, b, tuple(_differences(a, b)))
    here = a or b
    said = "" if here is None else here.decision.text
    text = f"only in {'the second' if a is None else 'the first'}: {said}"
    missing = Difference(
        "missing", name, text, said if a else None, said if b else None, parts=name not in (REQUEST, ROLLBACK)
    )
    return StepDiff(name, a, b, (missing,))


def _differences(a: StepSide, b: StepSide) -> Iterator[Difference]:
    """In the order of cause: what it was given, what it asked for and got, what it decided and wrote; then times."""
    yield from _slots("reads", a.reads, b.reads)
    for name in aligned(a.effects, b.effects):
        yield from _effect(name, a.effects.get(name), b.effects.get(name))
    if a.way != b.way or not a.decision.like(b.decision):
        yield _two("decision", "decision", a.decision, b.decision, parts=a.way != b.way)
    yield from _slots("writes", a.writes, b.writes)
    yield from _timing(a, b)


def _slots(verb: str, a: Mapping[str, Shown], b: Mapping[str, Shown]) -> Iterator[Difference]:
    for name in aligned(a, b):
        one, other = a.get(name), b.get(name)
        if one is None or other is None or not one.like(other):
            yield _two("slot", name, one, other, before=f"{verb} {name}: ")


def _effect(name: str, a: EffectSide | None, b: EffectSide | None) -> Iterator[Difference]:
    if a is None or b is None:
        asked = None if a is None else a.asked, None if b is None else b.asked
        yield _two("missing", name, *asked, before=f"asks {name}: ", parts=True)
        return
    if a.kind != b.kind or not a.asked.like(b.asked):
        yield _two("effect", name, a.asked, b.asked, before=f"asks {name}: ", parts=a.kind != b.kind)
    elif a.way != b.way or not a.outcome.like(b.outcome):
        yield _two("effect", name, a.outcome, b.outcome, before=f"{a.asked.text} ")
    counted = ("attempts", "timeouts", "hedges")
    one, other = ({what: getattr(side, what) for what in counted} for side in (a, b))
    if one != other:
        told = ", ".join(f"{what} {one[what]} | {other[what]}" for what in counted if one[what] != other[what])
        yield Difference("attempts", name, f"{a.asked.text} {told}", _counts(one), _counts(other))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.items() if count)


def _timing(a: StepSide, b: StepSide) -> Iterator[Difference]:
    for name, one, other in (
        ("took", a.took_ns, b.took_ns),
        ("io", a.io_ns, b.io_ns),
        ("cpu", a.cpu_ns, b.cpu_ns),
        ("turn", a.turn_ns, b.turn_ns),
    ):
        if abs(one - other) >= _SHOWS and max(one, other) >= _FACTOR * min(one, other):
            shown = milliseconds(one), milliseconds(other)
            yield Difference("timing", name, f"{name} {shown[0]} | {shown[1]}", *shown)


def _two(
    kind: Kind, name: str, a: Shown | None, b: Shown | None, *, before: str = "", parts: bool = False
) -> Difference:
    one, other = None if a is None else a.text, None if b is None else b.text
    text = f"{before}{one or 'nothing'} | {other or 'nothing'}"
    if one == other:
        text = f"{before}{one} differs beyond what is shown"
    return Difference(kind, name, text, one, other, parts)


# ---- as text --------------------------------------------------------------------------------

_LEAST: Final = 9  # characters of a column
_MOST_TOLD: Final = 40  # differences of a step


def format_diff(found: Diff) -> str:
    """The diff as text, `-` for the first run and `+` for the second, without a newline at its end."""
    lines = [_header("-", found.a), _header("+", found.b), "", *_first(found), "", *_table(found)]
    return "\n".join(map(escaped, lines))


def _header(mark: str, timeline: Timeline) -> str:
    word = _of_run(timeline, "http") or _of_run(timeline, "status")
    whose = f"{timeline.priority} · tenant {timeline.tenant} · version {timeline.version}"
    name = timeline.label or timeline.flow
    return f"{mark} {name}  {word}  [{timeline.run_id}]  {whose}  {milliseconds(_took(timeline))}"


def _first(found: Diff) -> Iterator[str]:
    if found.first is not None:
        step = found.first
        parting = next(difference for difference in step.differences if difference.parts)
        yield f"first divergence: {step.step}"
        yield from _both(parting, "  ")
        for reason in step.differences:
            if reason is parting:
                break
            if reason.kind != "timing":
                yield f"    because {reason.text}"
    elif found.first_value is not None:
        yield f"both went the same way; the first difference is in {found.first_value.step}:"
        yield from (f"    {d.text}" for d in found.first_value.differences if d.kind != "timing")
    else:
        yield "both did the same; they differ in their times alone"


def _both(difference: Difference, indent: str) -> Iterator[str]:
    what = {"missing": "asks for ", "effect": "asks for "}.get(difference.kind, "")
    for mark, said in (("-", difference.a), ("+", difference.b)):
        yield f"{indent}{mark} {'nothing' if said is None else what + said}"


def _table(found: Diff) -> Iterator[str]:
    names = [step.step for step in found.steps]
    width = max(map(len, (*names, "admission")))
    yield f"  {'step':{width}}  {'-':>{_LEAST}}  {'+':>{_LEAST}}"
    for step in found.steps:
        mark = "=" if step.same else "≠"
        times = "  ".join(f"{_time(side):>{_LEAST}}" for side in (step.a, step.b))
        yield f"{mark} {step.step:{width}}  {times}"
        told = [d.text for d in step.differences if (d.kind, d.name) != ("timing", "took")]  # the columns say that
        yield from (f"      {text}" for text in told[:_MOST_TOLD])
        if len(told) > _MOST_TOLD:
            yield f"      … and {len(told) - _MOST_TOLD} more"
    yield ""
    yield from _totals(found, width)


def _time(side: StepSide | None) -> str:
    if side is None:
        return "–"
    return "" if side.name == REQUEST else milliseconds(side.took_ns)


def _totals(found: Diff, width: int) -> Iterator[str]:
    one, other = found.a.accounts, found.b.accounts
    for name in ("admission", "turn", "cpu", "io", "parked", "total"):
        ns = getattr(one, name), getattr(other, name)
        if any(ns):
            yield f"  {name:{width}}  {milliseconds(ns[0]):>{_LEAST}}  {milliseconds(ns[1]):>{_LEAST}}"


def _took(timeline: Timeline) -> int:
    accounts = timeline.accounts
    return accounts.total - accounts.parked


# ---- as JSON --------------------------------------------------------------------------------


_MOST_JSON: Final = 200  # differences, and effects, of a step


def diff_json(found: Diff) -> dict[str, Any]:
    """The diff as the page's API and `--json` have it; times are nanoseconds. more: how much of a list is left out."""
    first = None
    if found.first is not None:
        parting = next(difference for difference in found.first.differences if difference.parts)
        first = {"step": found.first.step, "kind": parting.kind, "text": parting.text}
    return {
        "a": _run_json(found.a),
        "b": _run_json(found.b),
        "same": found.same,
        "first": first,
        "text": format_diff(found),
        "run": [_difference_json(difference) for difference in found.run],
        "steps": [_step_json(step) for step in found.steps],
    }


def _run_json(timeline: Timeline) -> dict[str, Any]:
    return {
        "id": timeline.run_id,
        "label": timeline.label,
        "flow": timeline.flow,
        "version": timeline.version,
        "tenant": timeline.tenant,
        "priority": timeline.priority,
        "status": _of_run(timeline, "status"),
        "http": timeline.answered,
        "took_ns": _took(timeline),
        "accounts": attrs.asdict(timeline.accounts) | {"total": timeline.accounts.total},
    }


def _difference_json(difference: Difference) -> dict[str, Any]:
    return {name: value for name, value in attrs.asdict(difference).items() if name != "parts"}


def _step_json(step: StepDiff) -> dict[str, Any]:
    return {
        "step": step.step,
        "same": step.same,
        "a_took_ns": None if step.a is None else step.a.took_ns,
        "b_took_ns": None if step.b is None else step.b.took_ns,
        "a": None if step.a is None else _side_json(step.a),
        "b": None if step.b is None else _side_json(step.b),
        "differences": [_difference_json(difference) for difference in step.differences[:_MOST_JSON]],
        "more": max(0, len(step.differences) - _MOST_JSON),
    }


def _side_json(side: StepSide) -> dict[str, Any]:
    return {
        "decision": side.decision.text,
        "reads": {name: shown.text for name, shown in side.reads.items()},
        "writes": {name: shown.text for name, shown in side.writes.items()},
        "took_ns": side.took_ns,
        "io_ns": side.io_ns,
        "cpu_ns": side.cpu_ns,
        "turn_ns": side.turn_ns,
        "parked_ns": side.parked_ns,
        "effects": [
            {
                "name": effect.name,
                "kind": effect.kind,
                "asked": effect.asked.text,
                "outcome": effect.outcome.text,
                "attempts": effect.attempts,
                "timeouts": effect.timeouts,
                "hedges": effect.hedges,
                "took_ns": effect.took_ns,
            }
            for effect in islice(side.effects.values(), _MOST_JSON)
        ],
        "more": max(0, len(side.effects) - _MOST_JSON),
    }
