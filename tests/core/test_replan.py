"""Insert and Replace: what is inserted is checked against what is written and to come, and gets names of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import pytest

from tests.core.strategies import READ, WRITE
from zerver import Done, Flow, Insert, Replace, Slot, branch, dag, parallel, step
from zerver.core import timeline as t
from zerver.core.commands import Command, Perform
from zerver.core.effects import Success
from zerver.core.machine import Machine
from zerver.core.plan import compile_plan
from zerver.errors import DefinitionError

A = Annotated[str, Slot("a")]
AText = Annotated[int, Slot("a")]
B = Annotated[str, Slot("b")]


@step
def write_a() -> A:
    return "a"


@step
def write_b() -> B:
    return "b"


@step
def read_a(a: A) -> None:
    return None


@step
def read_b(b: B) -> None:
    return None


@step
def none_a() -> A | None:
    return None


@step
async def ask() -> None:
    await WRITE()


@step
async def ask_then_b() -> B:
    await READ()
    return "b"


@step
def end() -> Done:
    return Done("replaced")


def inserting(*stages: Any, decision: Callable[..., Any] = Insert, name: str = "insert") -> Any:
    @step(name=name)
    def insert() -> Insert | Replace | None:
        return decision(stages)

    return insert


def started(*stages: Any, **options: Any) -> tuple[Machine, Command]:
    ticks = iter(range(1 << 40))
    machine = Machine(compile_plan(Flow("f", stages, **options)), "run", lambda: next(ticks), [])
    return machine, machine.start()


def ended(command: Command) -> t.Ending:
    assert isinstance(command, t.Ending)
    return command


def steps(machine: Machine) -> list[str]:
    return [subject.name for kind, _, subject, _ in machine.records if kind == t.STEP]


def why(command: Command) -> str:
    cause = ended(command).cause
    assert isinstance(cause, DefinitionError)
    return str(cause)


def settle_all(machine: Machine, command: Command) -> tuple[list[str], Command]:
    keys = []
    while isinstance(command, Perform):
        calls = command.calls
        for call in calls:
            keys.append(str(call.key))
            command = machine.settled(call, Success(None))
    return keys, command


def test_inserted_stages_run_next_and_then_the_rest() -> None:
    machine, command = started(write_a, inserting(write_b, read_b), read_a)
    assert ended(command).status == "done"
    assert steps(machine) == ["write_a", "insert", "write_b", "read_b", "read_a"]
    assert [detail for kind, _, _, detail in machine.records if kind == t.PLAN] == [("insert", ["write_b", "read_b"])]


def test_replaced_stages_run_instead_of_the_rest_of_all_flows_around() -> None:
    inner = Flow("inner", [inserting(end, decision=Replace), read_b], takes=[B], deadline=5.0)
    machine, command = started(write_a, write_b, inner, read_a)
    assert ended(command).value == "replaced"
    assert steps(machine) == ["write_a", "write_b", "insert", "end"]


def test_what_a_replaced_flow_gives_is_none_where_nobody_wrote_it() -> None:
    _, command = started(inserting(read_a_perhaps, decision=Replace), write_a, write_b, gives=[A, B])
    assert ended(command).value == (None, None)


@step
def read_a_perhaps() -> None:
    return None


def test_an_inserted_read_must_be_written() -> None:
    assert why(started(inserting(read_a))[1]) == (
        "flow 'f': step 'read_a' reads slot 'a', but no earlier step writes it\n"
        "  add a step that writes 'a' before 'read_a'; these steps can: none_a, write_a"
    )


def test_an_inserted_read_of_a_slot_that_holds_none() -> None:
    assert "may be unwritten: it held None when step 'insert' inserted" in why(
        started(none_a, inserting(read_a), gives=[A])[1]
    )


@pytest.mark.parametrize("decision", [Insert, Replace])
def test_a_slot_that_was_written_is_not_written_again(decision: Any) -> None:
    assert "slot 'a' is written by 'an earlier step' and by 'write_a'" in why(
        started(write_a, inserting(write_a, decision=decision), read_a)[1]
    )


def test_a_slot_that_will_be_written_is_not_written_before() -> None:
    assert "is written by 'write_a' and by 'write_a'" in why(started(inserting(write_a), write_a, read_a)[1])
    _, command = started(inserting(write_a, read_a, decision=Replace), write_a, read_a)
    assert ended(command).status == "done"


@pytest.mark.parametrize("gate", [parallel, dag])
def test_a_slot_that_a_neighbour_will_write(gate: Any) -> None:
    for first, second in ((inserting(write_b), ask_then_b), (ask_then_b, inserting(write_b))):
        machine, command = started(gate(first, second), read_b)
        while isinstance(command, Perform):
            command = machine.settled(command.calls[0], Success(None))
        if not isinstance(command, t.Ending):
            command = machine.interrupt(t.Ending("cancelled"))
        assert "slot 'b' is written by 'ask_then_b' and by 'write_b'" in why(command)


def test_a_slot_that_a_neighbours_insertion_will_write() -> None:
    machine, command = started(parallel(inserting(ask_then_b), inserting(write_b, name="other")))
    command = machine.interrupt(t.Ending("cancelled"))
    assert "slot 'b' is written by 'ask_then_b' and by 'write_b'" in why(command)


def test_one_slot_name_with_two_types() -> None:
    @step
    def read_int(a: AText) -> None:
        return None

    assert "slot 'a' is str to 'write_a' and int to 'read_int'" in why(started(write_a, inserting(read_int), read_a)[1])


def test_replace_beside_others_under_way_is_refused() -> None:
    _, command = started(parallel(inserting(end, decision=Replace), read_a_perhaps))
    assert "answers Replace inside parallel(insert, read_a_perhaps)" in why(command)


def test_names_of_inserted_steps_are_never_taken_already() -> None:
    """A name is part of an idempotency key: with the same one, the second write would be taken for the first."""
    machine, command = started(ask, ask, inserting(ask, inserting(ask, name="again")), ask)
    keys, command = settle_all(machine, command)
    assert ended(command).status == "done"
    assert keys == ["run:ask:1", "run:ask#2:1", "run:ask#4:1", "run:ask#5:1", "run:ask#3:1"]


def test_names_are_counted_in_ways_that_were_not_taken() -> None:
    def never() -> bool:
        return False

    machine, command = started(branch(never, [ask, ask]), inserting(ask))
    keys, _ = settle_all(machine, command)
    assert keys == ["run:ask#3:1"]


def test_the_flow_itself_is_not_changed() -> None:
    plan = compile_plan(Flow("f", [write_a, inserting(write_b, read_b), read_a]))
    for _ in range(2):
        ticks = iter(range(1 << 40))
        machine = Machine(plan, "run", lambda ticks=ticks: next(ticks), [])
        assert ended(machine.start()).status == "done"
        assert machine.plan is not plan
    assert "b" not in plan.slots
