"""The machine keeps its promises for random flows, outcomes, orders, cancellations and failed compensations."""

from __future__ import annotations

import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.pump import Cells, Pump, plain, replay
from tests.core.strategies import DrawFlow, flows
from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.machine import Machine
from zerver.core.plan import compile_plan
from zerver.core.saga import Entry

FEW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@attrs.frozen
class Ran:
    """A run that has ended, and everything that was seen of it."""

    flow: DrawFlow
    machine: Machine
    pump: Pump
    ending: t.Ending
    deadline_ns: int | None

    @property
    def records(self) -> list[t.Record]:
        return self.machine.records


@st.composite
def runs(draw, interrupts: bool = True) -> Ran:
    flow = draw(flows())
    plan = compile_plan(flow.build())
    now = iter(range(1_000, 1 << 40, 7))
    deadline_ns = draw(st.sampled_from([None, 5_000]))
    records: list[t.Record] = [(t.RECEIVED, next(now), "drawn", None)]
    machine = Machine(plan, "run", lambda: next(now), records, deadline_ns)
    machine.cells = Cells(machine)
    pump = Pump(machine, lambda n: draw(st.integers(0, n - 1)) if n > 1 else 0, interrupts)
    ending = pump.run((), [f"given {slot}" for slot in flow.takes])
    return Ran(flow, machine, pump, ending, deadline_ns)


# ---- what a rollback must have done, told from the records alone ------------------------------


@attrs.define
class Fate:
    """One write, as the records tell of it."""

    call: Call
    known: bool  # committed, not in doubt
    rollback: bool
    tasks: list[str] = attrs.field(factory=list)

    def expected(self, done: list[tuple[str, object]]) -> tuple[list[str], str]:
        """The tasks and the end that the semantics demand, given how the tasks went."""
        how = self.call.effect.compensation
        undo = how is not None and (how.undo is not None or how.by_key is not None)
        by_key = how is not None and how.by_key is not None
        optional = self.call.effect.form == "optional"
        verdicts = dict(done)
        tasks: list[str] = []
        known, told_it_failed = self.known, False
        if not known and how is not None and how.resolve is not None:
            tasks.append("resolve")
            match verdicts.get("resolve"):
                case "absent":
                    return tasks, "absent"
                case "happened":
                    known = told_it_failed = True
        if known:
            if not (self.rollback or (told_it_failed and not optional)) or not undo:
                return tasks, "kept"
        elif optional and (not self.rollback or not undo or (not by_key and how is not None and how.undo is None)):
            return tasks, "kept"
        elif not by_key:
            return tasks, "unresolved"
        tasks.append("undo")
        return tasks, "undone" if verdicts.get("undo") == "done" else "unresolved"


def _ordinals(calls: list[Call]) -> list[tuple[str, str]]:
    return [(call.step, call.ordinal) for call in calls]


def _inside(place: tuple[str, str], around: tuple[str, str]) -> bool:
    return place[0] == around[0] and f"{place[1]}.".startswith(f"{around[1]}.")


def fates(records: list[t.Record], ending: t.Ending) -> list[Fate]:
    """Every write that the rollback had to think of, in order of commit."""
    writes: list[Fate] = []
    exempt: list[Fate] = []
    losers: list[Fate] = []
    for kind, _, subject, detail in records:
        if kind == t.DOUBTED or (kind == t.COMMITTED and subject.effect.compensation is not None):
            writes.append(Fate(subject, kind == t.COMMITTED, False))
        elif kind == t.PIVOT:
            exempt = list(writes)
        elif kind == t.LOST:
            (join,), winners = _ordinals([subject]), _ordinals(list(detail))
            for fate in writes:
                place = (fate.call.step, fate.call.ordinal)
                if _inside(place, join) and not any(_inside(place, winner) for winner in winners):
                    losers.append(fate)
    for fate in writes:
        before_pivot = any(fate is other for other in exempt)
        lost = any(fate is other for other in losers)
        fate.rollback = lost or (ending.status != "done" and not before_pivot)
    return writes


def _verdict(verb: str, outcome: object) -> str:
    if outcome is None:
        return "cut"
    value = getattr(outcome, "value", "failed")
    if type(outcome).__name__ != "Success":
        return "failed"
    return "done" if verb == "undo" else "absent" if value is None else "happened"


# ---- properties -----------------------------------------------------------------------------


@FEW
@given(runs())
def test_every_run_ends_and_then_stays_ended(ran: Ran) -> None:
    machine, before = ran.machine, len(ran.records)
    assert machine.finished
    assert machine.under_way == 0
    again = machine.interrupt(t.Ending("cancelled", reason="too late"))
    assert again.ending is ran.ending
    assert len(ran.records) == before
    assert [kind for kind, *_ in ran.records].count(t.ENDED) == 1
    assert ran.records[-1][0] == t.ENDED


@FEW
@given(runs())
def test_the_rollback_is_the_commits_in_exact_reverse_and_leaves_nothing_behind(ran: Ran) -> None:
    went: dict[int, list[tuple[str, object]]] = {}
    for task, outcome in ran.pump.ledger.tasks:
        went.setdefault(id(task.entry.call), []).append((task.verb, _verdict(task.verb, outcome)))
    wanted: list[tuple[str, str]] = []
    writes = fates(ran.records, ran.ending)
    gave_up = ran.pump.ledger.gave_up
    ends: dict[int, str] = {}
    for fate in reversed(writes):
        tasks, ends[id(fate.call)] = fate.expected(went.get(id(fate.call), []))
        wanted += [(fate.call.name, verb) for verb in tasks]
    done = [(task.entry.call.name, task.verb) for task, _ in ran.pump.ledger.tasks]
    assert done == (wanted[: len(done)] if gave_up else wanted)
    entries = {id(entry.call): entry for entry in ran.machine.saga.entries}
    assert len(entries) == len(ran.machine.saga.entries) == len(writes)
    for fate in writes:
        entry: Entry = entries[id(fate.call)]
        if not gave_up or id(fate.call) in went:
            assert entry.state == ends[id(fate.call)], entry
        else:  # cut short: what needed a task is unresolved, what needed none is as it would have been
            assert entry.state == ("unresolved" if fate.expected([])[0] else ends[id(fate.call)]), entry
    assert {id(e) for e in ran.machine.saga.unresolved} == {id(e) for e in entries.values() if e.state == "unresolved"}


@FEW
@given(runs())
def test_no_call_is_performed_twice(ran: Ran) -> None:
    performed = ran.pump.ledger.performed
    assert len(performed) == len(set(performed))


@FEW
@given(runs())
def test_slots_are_written_once_and_late_results_never_reach_them(ran: Ran) -> None:
    # Cells themselves refuse a second write, and a write after the end.
    unwanted = set(ran.pump.ledger.unwanted)
    unwanted |= {repr(getattr(detail, "value", None)) for kind, _, _, detail in ran.records if kind == t.LATE} - {
        "None"
    }
    seen = repr([*ran.machine.cells, ran.ending.value])
    assert not [value for value in unwanted if value in seen]


@FEW
@given(runs())
def test_records_replay_to_the_same_records(ran: Ran) -> None:
    plan = compile_plan(ran.flow.build())
    again = replay(plan, "run", ran.records, [f"given {slot}" for slot in ran.flow.takes], ran.deadline_ns)
    assert plain(again.records) == plain(ran.records)
    assert again.finished
    assert [str(value) for value in again.cells[1:]] == [str(value) for value in ran.machine.cells[1:]]


@FEW
@given(runs())
def test_records_are_in_order_of_time_and_their_accounts_add_up(ran: Ran) -> None:
    stamps = [at for _, at, _, _ in ran.records]
    assert stamps == sorted(stamps)
    assert t.accounts(ran.records).total == stamps[-1] - stamps[0]
