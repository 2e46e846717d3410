"""Proves that each single change of a step's code that shows in its records is found, at that very step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.trace.made import Made, made
from tests.trace.mutants import MUTANTS, mutate, other
from zerver.core import timeline as t
from zerver.core.following import step_of
from zerver.core.plan import StepNode
from zerver.core.replan import steps_in
from zerver.trace.replaying.changes import pinned
from zerver.trace.replaying.replay import replay
from zerver.trace.replaying.rerun import rerun

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

#: Changes that show in the first record of a step.
AT_ONCE = ("decision", "defect", "more first")


def begun(run: Made) -> dict[str, list[t.Record]]:
    """The records of each step of the plan that began."""
    nodes = {node.name for node in steps_in(run.again.line)}
    found: dict[str, list[t.Record]] = {}
    for record in run.timeline.records:
        own = record[0] in (t.STEP, t.DEFECT, t.FAULT, t.PARKED) and isinstance(record[2], StepNode)
        asked = record[0] == t.ASKED and record[2].parent is None
        if (own or asked) and step_of(record) in nodes:
            found.setdefault(step_of(record), []).append(record)
    return found


def shows(how: str, records: list[t.Record]) -> bool:
    """Whether the change is bound to show."""
    answers = [record[3][1] for record in records if record[0] == t.STEP]
    kinds = [record[0] for record in records]
    if how in AT_ONCE:
        return True
    if how == "value":
        parks = any(kind == t.PARKED for kind in kinds)
        return not parks and any(other(answer) is not answer for answer in answers)
    if how in ("late defect", "more last"):
        return bool(answers) and t.PARKED not in kinds
    return how == "arguments" and t.ASKED in kinds and not any(_needs(record) for record in records)


def _needs(record: t.Record) -> bool:
    return not record[2].step.is_async if isinstance(record[2], StepNode) else False


@pytest.mark.parametrize("how", MUTANTS)
@FEW
@given(made(), st.data())
def test_a_changed_step_is_found_at_that_step(how: str, run: Made, data: st.DataObject) -> None:
    steps = begun(run)
    assume(steps)
    name = data.draw(st.sampled_from(sorted(steps)))
    node = next(node for node in steps_in(run.again.line) if node.name == name)
    visible = shows(how, steps[name]) and (how != "arguments" or node.is_async)
    mutate(node, how)
    found = replay(run.again, run.timeline).divergence
    if found is None:
        assert not visible
    else:
        assert found.step == name
        assert step_of(found.recorded) in (name, "")
    again = rerun(run.again, run.timeline).divergence
    assert (again is None) == (found is None)
    assert again is None or found is None or again.index == found.index


@FEW
@given(made())
def test_without_a_change_a_rerun_is_the_run(run: Made) -> None:
    told = rerun(run.again, run.timeline)
    assert told.divergence is None
    assert not told.is_open
    assert [record[:2] for record in told.records] == [record[:2] for record in run.timeline.records]


@FEW
@given(made(), st.data())
def test_a_slot_that_is_given_its_own_value_changes_nothing(run: Made, data: st.DataObject) -> None:
    held: dict[str, Any] = dict(replay(run.again, run.timeline).slots)
    assume(held)
    name = data.draw(st.sampled_from(sorted(held)))
    assert rerun(pinned(run.again, {name: held[name]}), run.timeline).divergence is None


def forks(line: Sequence[Any]) -> bool:
    """Whether steps may run at once anywhere in a line."""
    return any(
        type(node).__name__ in ("ForkNode", "DagNode")
        or any(forks(getattr(node, inner, ())) for inner in ("then", "otherwise", "line"))
        for node in line
    )


@FEW
@given(made(), st.data())
def test_a_step_that_asks_for_more_goes_on_in_the_recorded_world_once_it_is_answered(
    run: Made, data: st.DataObject
) -> None:
    steps = begun(run)
    ending = run.timeline.ending
    assume(steps and ending is not None and ending.status in ("done", "failed", "defect"))
    assume(not forks(run.again.line))
    name = data.draw(st.sampled_from(sorted(steps)))
    asked = [record for record in steps[name] if record[0] == t.ASKED]
    assume(any(record[0] == t.STEP for record in steps[name]))
    assume(all(record[0] != t.PARKED for record in steps[name]))
    node = next(node for node in steps_in(run.again.line) if node.name == name)
    assume(node.is_async)
    mutate(node, "more last")
    bare = rerun(run.again, run.timeline)
    assert [call.step for call in bare.calls] == [name]
    assume(bare.calls[0].ordinal == str(len(asked) + 1))  # no Need comes behind it
    told = rerun(run.again, run.timeline, answers={f"{name}.{len(asked) + 1}": "an answer"})
    assert not told.calls
    assert ending is not None
    ended = [detail.status for kind, _, _, detail in told.records if kind == t.ENDING]
    assert ended == [ending.status]
