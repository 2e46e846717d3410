"""The machine keeps its promises for random flows, outcomes, orders, cancellations and failed compensations."""

from __future__ import annotations

import types
from collections.abc import Generator, Iterable, Sequence
from typing import Annotated, Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.pump import Cells, Pump, plain, replay
from tests.core.strategies import READ, UNDO, WRITE, DrawFlow, flows
from zerver import Continue, Deadline, Done, Fail, Flow, Need, Pause, Slot, branch, dag, parallel, pivot, step
from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.commands import Breathe, Cancel, Command, Park, Perform, Unwind, Wait
from zerver.core.effects import Failure, Success
from zerver.core.machine import FAR, Machine
from zerver.core.plan import BranchNode, DagNode, Line, Node, PivotNode, StepNode, compile_plan
from zerver.core.replan import lines_of
from zerver.core.saga import Entry
from zerver.errors import EffectError, ImpureStepError

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
        elif kind in (t.LATE, t.CUT) and subject.parent is None:  # its step never saw what it came to
            (whole,) = _ordinals([subject])
            losers += [fate for fate in writes if _inside((fate.call.step, fate.call.ordinal), whole)]
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
    assert not machine.under_way
    again = machine.interrupt(t.Ending("cancelled", reason="too late"))
    assert again is ran.ending
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
def test_stages_run_in_order(ran: Ran) -> None:
    """Each stage of a line after the one before it has ended, each member of a dag after those it needs."""
    seen: dict[object, tuple[int, int]] = {}
    for at, (kind, _, subject, _) in enumerate(ran.records):
        if kind in (t.CUT, t.LATE):
            continue
        key = subject.step if isinstance(subject, Call) else getattr(subject, "name", None)
        key = subject if isinstance(subject, BranchNode | PivotNode) else key
        seen[key] = (seen.get(key, (at, at))[0], at)

    def span(nodes: Iterable[Node]) -> tuple[int, int]:
        """The first and the last record of what is inside; far ends when nothing of it ran."""
        spans, todo = list[tuple[int, int]](), list(nodes)
        while todo:
            node = todo.pop()
            key = node.name if isinstance(node, StepNode) else node
            spans += [seen[key]] if key in seen else []
            todo += [inner for line in lines_of(node) for inner in line]
        return min((first for first, _ in spans), default=1 << 30), max((last for _, last in spans), default=-1)

    def check(line: Line) -> None:
        for at, node in enumerate(line):
            assert span(line[:at])[1] < span(line[at:])[0]
            for inner in lines_of(node):
                check(inner)
            if isinstance(node, DagNode):
                for earlier, later in ((i, later) for i, unlocked in enumerate(node.unlocks) for later in unlocked):
                    assert span(node.lines[earlier])[1] < span(node.lines[later])[0]

    check(ran.machine.plan.line)


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


# ---- single laws ----------------------------------------------------------------------------

A = Annotated[str, Slot("a")]
Nullable = Annotated[str | None, Slot("nullable")]


@step
async def ask() -> None:
    await WRITE().compensate(UNDO)


@step
def write_a() -> A:
    return "a"


def started(*stages: Any, takes: Sequence[Any] = (), **options: Any) -> tuple[Machine, Command]:
    ticks = iter(range(0, 1 << 40, 1_000))
    flow = Flow("f", stages, **options)
    machine = Machine(compile_plan(flow), "run", lambda: next(ticks), [])
    return machine, machine.start((), takes)


def ended(command: Command) -> t.Ending:
    assert isinstance(command, t.Ending)
    return command


def kinds(machine: Machine) -> list[str]:
    return [kind for kind, *_ in machine.records]


def no() -> bool:
    return False


def test_an_optional_slot_that_no_step_came_to_write_is_none() -> None:
    seen: list[object] = []

    @step
    def look(a: A | None, *, again: A | None) -> None:
        seen.extend([a, again])

    _, command = started(branch(no, write_a), look, gives=[A])
    assert ended(command).value is None
    assert seen == [None, None]


def test_none_is_a_value_of_a_slot_whose_type_says_so() -> None:
    @step
    def write() -> Nullable:
        return None

    @step
    def write_two() -> tuple[A, Nullable]:
        return "a", None

    @step
    def read(value: Nullable) -> Done:
        return Done(["read", value])

    assert ended(started(write, read)[1]).value == ["read", None]
    assert ended(started(write_two, read, gives=[A])[1]).value == ["read", None]


def test_none_is_no_value_of_any_other_slot() -> None:
    machine, command = started(_wrong(A, None), gives=[A])
    assert ended(command).status == "defect"
    assert isinstance(ended(command).cause, TypeError)
    assert kinds(machine) == [t.DEFECT, t.ENDING, t.ENDED]
    assert ended(started(_wrong(tuple[A, Nullable], (None, None)), gives=[A, Nullable])[1]).status == "defect"
    assert ended(started(_wrong(tuple[A, Nullable], ("a",)), gives=[A, Nullable])[1]).status == "defect"
    assert ended(started(_wrong(None, "something"))[1]).status == "defect"


def _wrong(annotation: Any, answer: object) -> Any:
    def wrong() -> object:
        return answer

    wrong.__annotations__ = {"return": annotation}
    return step(wrong)


def test_a_predicate_may_read_the_deadline() -> None:
    seen: list[float] = []

    def hurry(left: Deadline) -> bool:
        seen.append(left.remaining)
        return False

    inner = Flow("inner", [branch(hurry, write_a), branch(no, ask)], deadline=1.0, gives=[A])
    started(write_a_none, inner, branch(hurry, ask))
    assert seen == [pytest.approx(1.0, abs=1e-4), float("inf")]


@step
def write_a_none() -> None:
    return None


def test_what_follows_a_dag_runs_once_all_of_it_has_ended_and_only_once() -> None:
    @step
    def read_a(a: A) -> None:
        return None

    @step
    def log() -> None:
        return None

    machine, command = started(dag(write_a, read_a), ask, log)
    assert isinstance(command, Perform)
    assert [subject.name for kind, _, subject, _ in machine.records if kind == t.STEP] == ["write_a", "read_a"]
    assert ended(machine.settled(command.calls[0], Success(None))).status == "done"


def test_what_is_asked_in_the_same_breath_as_the_end_is_never_performed() -> None:
    @step
    def end() -> Done:
        return Done("now")

    machine, command = started(parallel(ask, end))
    assert ended(command).value == "now"
    assert not machine.under_way


def test_an_interrupted_step_does_not_lose_the_rollback() -> None:
    @step
    def interrupted() -> None:
        raise KeyboardInterrupt

    ticks = iter(range(1 << 40))
    machine = Machine(compile_plan(Flow("f", [ask, parallel(ask, interrupted)])), "run", lambda: next(ticks), [])
    command = machine.start()
    assert isinstance(command, Perform)
    machine.committed(command.calls[0], "paid")
    with pytest.raises(KeyboardInterrupt):
        machine.settled(command.calls[0], Success("paid"))
    command = machine.interrupt(t.Ending("cancelled", reason="KeyboardInterrupt"))
    assert isinstance(command, Unwind)
    assert ended(machine.undone(command.task, Success(None))).status == "cancelled"


def test_a_late_result_is_recorded_and_wakes_nobody() -> None:
    @step
    async def two() -> A:
        return await WRITE()

    machine, command = started(parallel(two, ask), gives=[A])
    assert isinstance(command, Perform)
    first, second = command.calls
    command = machine.settled(second, Failure(EffectError("test.write", "no")))
    assert isinstance(command, Cancel)
    command = machine.settled(first, Success("late"))
    assert ended(command).status == "failed"
    assert kinds(machine)[-3:] == [t.ENDING, t.LATE, t.ENDED]
    assert "late" not in machine.cells


def test_awaiting_anything_else_names_the_line() -> None:
    cleaned: list[str] = []

    @step
    async def impure() -> None:
        try:
            await _strange()
        finally:
            cleaned.append("up")

    _, command = started(impure)
    cause = ended(command).cause
    assert isinstance(cause, ImpureStepError)
    assert f"at {__file__}:" in str(cause)
    assert cleaned == ["up"]


@types.coroutine
def _strange() -> Generator[object, None, None]:
    yield "not an effect"


@pytest.mark.parametrize("reaction", ["await", "raise", "return"])
def test_a_step_cannot_live_on_after_it_was_cut(reaction: str) -> None:
    @step
    async def stubborn() -> None:
        try:
            await READ()
        finally:
            if reaction == "await":
                await READ()
            if reaction == "raise":
                raise LookupError("in its cleanup")

    machine, _ = started(stubborn)
    assert ended(machine.interrupt(t.Ending("deadline"))).status == "deadline"
    assert kinds(machine).count(t.DEFECT) == (reaction != "return")


def test_two_pauses_on_one_signal_are_a_defect() -> None:
    def pause(name: str) -> Any:
        @step(name=name)
        def wait() -> Pause | None:
            return Pause("paid", 1.0)

        return wait

    machine, command = started(parallel(pause("one"), pause("two")))
    assert "two steps wait for signal 'paid' at once" in str(ended(command).cause)
    assert not machine.under_way


def test_a_signal_that_nobody_waits_for_is_a_key_error() -> None:
    machine, _ = started(ask)
    with pytest.raises(KeyError):
        machine.signalled("paid", None)


def test_a_pause_expires_in_its_own_words_or_fails() -> None:
    def pause(expired: object) -> Any:
        @step
        def wait() -> A | Pause:
            return Pause("paid", 2.0, expired=expired)

        return wait

    machine, command = started(pause(None), gives=[A])
    assert isinstance(command, Park)
    ((signal, until),) = command.until
    assert (signal, until) == ("paid", 1_000 + 2_000_000_000)
    assert str(ended(machine.expired("paid")).cause) == "expired: paid"
    machine, _ = started(pause(Continue("nobody came")), gives=[A])
    assert ended(machine.expired("paid")).value == "nobody came"


def test_a_need_is_an_await_in_other_words() -> None:
    @step
    def need() -> A | Need:
        return Need(READ(), lambda value: value)

    @step
    async def wait() -> A:
        return await READ()

    seen = []
    for way in (need, wait):
        machine, command = started(way, gives=[A])
        assert isinstance(command, Perform)
        assert ended(machine.settled(command.calls[0], Success("v"))).value == "v"
        seen.append(kinds(machine))
    assert seen[0] == seen[1] == [t.ASKED, t.SETTLED, t.STEP, t.ENDING, t.ENDED]


def test_a_step_that_resumes_in_a_coroutine_goes_on_asking() -> None:
    async def resume(value: str) -> str:
        return value + await READ()

    @step
    def need() -> A | Need:
        return Need(READ(), resume)

    machine, command = started(need, gives=[A])
    keys = []
    while isinstance(command, Perform):
        keys.append(command.calls[0].key)
        command = machine.settled(command.calls[0], Success("v"))
    assert ended(command).value == "vv"
    assert keys == ["run:need:1", "run:need:2"]


def test_a_pivot_keeps_what_was_committed_before_it() -> None:
    @step
    def fail() -> Fail:
        return Fail.conflict("x")

    machine, command = started(pivot(ask), ask, fail)
    undone = []
    while not isinstance(command, t.Ending):
        if isinstance(command, Perform):
            machine.committed(command.calls[0], None)
            command = machine.settled(command.calls[0], Success(None))
        elif isinstance(command, Unwind):
            undone.append(command.task.entry.call.step)
            command = machine.undone(command.task, Success(None))
    assert undone == ["ask#2"]


def test_giving_up_in_a_run_that_is_done_does_not_doubt_what_was_wanted() -> None:
    @step
    async def race() -> None:
        await READ()

    machine, command = started(ask, race)
    assert isinstance(command, Perform)
    wanted = command.calls[0]
    machine.committed(wanted, None)
    command = machine.settled(wanted, Success(None))
    assert isinstance(command, Perform)
    lost = Call("run", "race", "1.0", WRITE().compensate(UNDO), command.calls[0])
    machine.committed(lost, None)
    machine.lost(command.calls[0], [])
    command = machine.settled(command.calls[0], Success(None))
    assert isinstance(command, Unwind)
    assert ended(machine.give_up()).status == "done"
    assert [entry.call for entry in machine.saga.unresolved] == [lost]


# ---- turns, the deadline, and how many at once ------------------------------------------------


def timed(*stages: Any, slice_ns: int | None = None, **options: Any) -> tuple[Machine, Command]:
    """A machine whose clock goes on by 1000 with each look, and what it says to its start."""
    ticks = iter(range(0, 1 << 40, 1_000))
    machine = Machine(compile_plan(Flow("f", stages)), "run", lambda: next(ticks), [], **options)
    if slice_ns is not None:
        machine.slice_ns = slice_ns
    return machine, machine.start()


def test_a_run_breathes_between_two_steps_and_goes_on_there() -> None:
    machine, command = timed(write_a_none, parallel(ask, pivot(write_a_none)), write_a_none, slice_ns=2_500)
    assert isinstance(command, Breathe)
    seen = 0
    while isinstance(command, Breathe):
        seen += 1
        machine.slice_ns = machine.clock() + 2_500
        command = machine.resume(machine.records[-1][1])
    assert isinstance(command, Perform), "what was asked for before it breathed is handed out"
    assert seen == kinds(machine).count(t.BREATH) == kinds(machine).count(t.TURN) > 0
    machine.slice_ns = FAR
    assert ended(machine.settled(command.calls[0], Success(None))).status == "done"


def test_another_event_of_a_run_that_breathes_carries_it_on() -> None:
    machine, command = timed(parallel(Flow("one", [ask, write_a], gives=[A]), ask))
    assert isinstance(command, Perform)
    first, second = command.calls
    machine.slice_ns = 0
    assert isinstance(machine.settled(first, Success(None)), Breathe)
    machine.slice_ns = FAR
    assert ended(machine.settled(second, Success(None))).status == "done"
    assert isinstance(machine.resume(0), Wait), "nothing is left to do"


def test_a_run_that_breathes_can_be_interrupted() -> None:
    machine, command = timed(write_a_none, ask, slice_ns=0)
    assert isinstance(command, Breathe)
    assert ended(machine.interrupt(t.Ending("cancelled"))).status == "cancelled"
    assert isinstance(machine.resume(0), Wait)
    assert kinds(machine) == [t.BREATH, t.ENDING, t.ENDED]


def test_no_step_begins_past_the_deadline_and_what_was_done_is_undone() -> None:
    machine, command = timed(ask, write_a_none, write_a_none, deadline_ns=6_500)
    assert isinstance(command, Perform)
    machine.committed(command.calls[0], "paid")
    command = machine.settled(command.calls[0], Success("paid"))
    assert isinstance(command, Unwind)
    assert ended(machine.undone(command.task, Success(None))).status == "deadline"
    assert [subject.name for kind, _, subject, _ in machine.records if kind == t.STEP] == ["ask", "write_a_none"]


def test_steps_that_await_nothing_need_no_stack() -> None:
    @step
    async def quick() -> None:
        return None

    _, command = timed(*[quick] * 3_000)
    assert ended(command).status == "done"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_so_many_members_are_under_way_and_no_more(limit: int) -> None:
    inner = parallel(ask, ask)
    machine, command = timed(
        parallel(inner, ask, dag(ask, step(name="again")(ask.function)), parallel(ask, inner)), parallel=limit
    )
    most = 0
    under_way: list[Call] = []
    while not isinstance(command, t.Ending):
        if isinstance(command, Perform):
            under_way += command.calls
        most = max(most, len(under_way))
        assert len(under_way) <= limit
        command = machine.settled(under_way.pop(0), Success(None))
    assert (command.status, most) == ("done", limit)
    assert kinds(machine).count(t.SETTLED) == 8


@FEW
@given(st.data())
def test_a_limit_changes_the_order_and_nothing_else(data: st.DataObject) -> None:
    flow = data.draw(flows())
    limit = data.draw(st.integers(1, 3))
    records: list[t.Record] = [(t.RECEIVED, 0, "drawn", None)]
    now = iter(range(1_000, 1 << 40, 7))
    machine = Machine(compile_plan(flow.build()), "run", lambda: next(now), records, None, limit)
    machine.cells = Cells(machine)
    pump = Pump(machine, lambda n: data.draw(st.integers(0, n - 1)) if n > 1 else 0)
    pump.run((), [f"given {slot}" for slot in flow.takes])
    assert machine.finished
