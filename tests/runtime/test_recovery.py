"""Recovery leads a machine through what was recorded, wherever that ends, and knows what has not settled."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trace.made import Made, made
from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.commands import Perform, Unwind
from zerver.core.timeline import Record
from zerver.runtime.recovery import Astray, Recovered, rebased, recover

FEW = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def left(records: list[Record]) -> set[tuple[str, str]]:
    """The calls of steps that had not settled."""
    open_: set[tuple[str, str]] = set()
    for kind, _, call, _ in records:
        if isinstance(call, Call) and call.parent is None:
            if kind == t.ASKED:
                open_.add((call.step, call.ordinal))
            elif kind in (t.SETTLED, t.LATE, t.CUT):
                open_.discard((call.step, call.ordinal))
    return open_


def recovered(run: Made, count: int) -> Recovered:
    return recover(run.again, attrs.evolve(run.timeline, records=run.timeline.records[:count]))


def close(found: Recovered) -> None:
    """No coroutine of a step is left to the garbage collector."""
    found.machine.saga.abandon()
    found.machine.interrupt(t.Ending("cancelled", reason="the test has seen enough"))


@FEW
@given(made(), st.data())
def test_a_run_stands_where_its_records_end(run: Made, data: st.DataObject) -> None:
    whole = run.timeline.records
    count = data.draw(st.integers(2, len(whole)))
    found = recovered(run, count)
    records = found.machine.records
    assert [record[:2] for record in records[:count]] == [record[:2] for record in whole[:count]]
    # An event makes the machine write several records; where the disk has but some of them, it writes the others again.
    assert {(call.step, call.ordinal) for call in found.waiting} <= left(records)
    if found.machine.ending is None:
        assert {(call.step, call.ordinal) for call in found.waiting} == left(records)
    close(found)


@FEW
@given(made())
def test_an_ended_run_is_over(run: Made) -> None:
    found = recovered(run, len(run.timeline.records))
    assert found.machine.finished
    assert found.waiting == ()
    assert not found.doubts()


@FEW
@given(made(), st.data())
def test_writes_in_doubt_are_those_of_which_nothing_is_told(run: Made, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, len(run.timeline.records)))
    found = recovered(run, count)
    told = {
        (subject.step, subject.ordinal)
        for kind, _, subject, _ in found.machine.records
        if isinstance(subject, Call) and kind in (t.COMMITTED, t.DOUBTED, t.SETTLED, t.LATE, t.CUT)
    }
    for call in found.doubts():
        assert call.effect.kind.access == "write"
        assert (call.step, call.ordinal) not in told
    close(found)


@FEW
@given(made(), st.data())
def test_what_has_not_settled_is_asked_for_once_more_and_once_only(run: Made, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, len(run.timeline.records)))
    found = recovered(run, count)
    again = found.again(found.command)
    if isinstance(again, Perform):
        assert len(set(again.calls)) == len(again.calls)
        assert set(found.waiting) <= set(again.calls)
    elif isinstance(again, Unwind):
        assert found.machine.ending is not None
    close(found)


@FEW
@given(made())
def test_a_run_that_had_not_begun_is_astray(run: Made) -> None:
    with pytest.raises(Astray, match="before it had begun"):
        recovered(run, 1)


@FEW
@given(made(), st.integers(-(10**12), 10**12))
def test_times_are_moved_and_moved_back(run: Made, ns: int) -> None:
    there = rebased(run.timeline.records, ns)
    assert [record[1] - ns for record in there] == [record[1] for record in run.timeline.records]
    assert rebased(there, -ns) == run.timeline.records
