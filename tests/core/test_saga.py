"""The saga: a stateful model of commits, doubts, losers and pivots; what its tasks make of each entry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.strategies import ASK, UNDO, WRITE, DrawEffect
from zerver import Effect, join
from zerver.core.calls import Call
from zerver.core.effects import Failure, Success
from zerver.core.saga import Saga, Task
from zerver.errors import EffectError, OutcomeUnknown

UNDONE = WRITE().compensate(UNDO)
ERROR = EffectError("test.undo", "no")
DOUBT = OutcomeUnknown("test.write", "maybe")


def call(effect: Effect[Any], ordinal: str = "1", parent: Call | None = None) -> Call:
    return Call("run", "step", ordinal, effect, parent)


def unwind(saga: Saga, failing: bool, answers: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    """Every task in order; answers: by verb, what each comes to."""
    tasks = []
    while (task := saga.next_task(failing)) is not None:
        tasks.append((task.entry.call.ordinal, task.verb))
        saga.done(task, (answers or {}).get(task.verb, Success(None)))
        assert len(tasks) < 100
    return tasks


@given(st.lists(st.sampled_from(["commit", "pivot"]), max_size=10), st.booleans())
def test_commits_are_undone_in_reverse_down_to_the_pivot(events: list[str], failing: bool) -> None:
    saga, wanted = Saga(), list[str]()
    for number, event in enumerate(events):
        if event == "pivot":
            saga.pass_pivot()
            wanted = []
        else:
            saga.committed(call(UNDONE, str(number)), number)
            wanted.append(str(number))
    assert unwind(saga, failing) == ([(n, "undo") for n in reversed(wanted)] if failing else [])
    assert not saga.unresolved
    assert {entry.state for entry in saga.entries} <= {"undone", "kept"}


def test_a_failed_compensation_is_unresolved_and_does_not_stop_the_others() -> None:
    saga = Saga()
    for number in range(3):
        saga.committed(call(UNDONE, str(number)), number)
    assert unwind(saga, True, {"undo": Failure(ERROR)}) == [("2", "undo"), ("1", "undo"), ("0", "undo")]
    assert [entry.error for entry in saga.unresolved] == [ERROR, ERROR, ERROR]


def test_a_loser_is_undone_though_the_run_succeeds_and_though_a_pivot_was_passed() -> None:
    saga = Saga()
    race = call(join.race(UNDONE, join.all(UNDONE, UNDONE)))
    winner, inner = race.member("run", 0), race.member("run", 1)
    saga.committed(inner.member("run", 0), "x")
    saga.committed(winner, "w")
    saga.doubted(inner.member("run", 1), DOUBT)
    saga.lost(race, frozenset([winner]))
    saga.pass_pivot()
    assert unwind(saga, failing=False) == [("1.1.0", "undo")]
    assert [(entry.call.ordinal, entry.state) for entry in saga.entries] == [
        ("1.1.0", "undone"),
        ("1.0", "kept"),
        ("1.1.1", "unresolved"),  # in doubt, and nothing tells how to settle it by key
    ]


@pytest.mark.parametrize(
    ("drawn", "failing", "resolved", "tasks", "state"),
    [
        (DrawEffect(), False, None, [], "unresolved"),
        (DrawEffect(how=frozenset({"by_key"})), False, None, ["undo"], "undone"),
        (DrawEffect(how=frozenset({"by_key", "resolve"})), True, Success(None), ["resolve"], "absent"),
        (DrawEffect(how=frozenset({"undo", "resolve"})), True, Success("v"), ["resolve", "undo"], "undone"),
        (DrawEffect(how=frozenset({"undo", "resolve"})), True, Failure(ERROR), ["resolve"], "unresolved"),
        (DrawEffect(how=frozenset({"by_key", "resolve"})), True, Failure(ERROR), ["resolve", "undo"], "undone"),
        # The step was told that it failed, and went on without it: what it turns out to have written is not wanted.
        (DrawEffect(how=frozenset({"undo", "resolve"})), False, Success("v"), ["resolve", "undo"], "undone"),
        # An optional one is welcome in a run that succeeds.
        (DrawEffect(how=frozenset({"undo", "resolve"}), form="optional"), False, Success("v"), ["resolve"], "kept"),
        (DrawEffect(how=frozenset({"by_key"}), form="optional"), False, None, [], "kept"),
        (DrawEffect(how=frozenset({"by_key"}), form="optional"), True, None, ["undo"], "undone"),
        (DrawEffect(how=frozenset({"undo"}), form="optional"), True, None, [], "unresolved"),
    ],
)
def test_a_write_in_doubt_is_never_guessed(
    drawn: DrawEffect, failing: bool, resolved: Any, tasks: list[str], state: str
) -> None:
    saga = Saga()
    entry = saga.doubted(call(drawn.build()), DOUBT)
    assert [verb for _, verb in unwind(saga, failing, {"resolve": resolved})] == tasks
    assert entry.state == state


def test_an_undo_gets_the_result_and_a_resolved_one_too() -> None:
    saga = Saga()
    saga.committed(call(WRITE().compensate(UNDO), "1"), "result")
    saga.doubted(call(WRITE().compensate(UNDO, resolve=ASK), "2"), DOUBT)
    saga.doubted(call(WRITE().compensate(by_key=UNDO), "3"), DOUBT)
    seen: list[tuple[str, Any]] = []
    while (task := saga.next_task(True)) is not None:
        seen.append((task.verb, task.effect.args))
        saga.done(task, Success("asked" if task.verb == "resolve" else None))
    by_key, asked, of_asked, of_result = seen
    assert by_key == ("undo", ("run:step:3",))
    assert asked == ("resolve", ("run:step:2",))
    assert (of_asked, of_result) == (("undo", ("asked",)), ("undo", ("result",)))


@pytest.mark.parametrize("wrong", [lambda _: 1 / 0, lambda _: None, lambda _: _coroutine()])
def test_a_compensation_that_makes_no_effect_is_unresolved_and_the_others_are_undone(wrong: Any) -> None:
    saga = Saga()
    saga.committed(call(UNDONE, "1"), None)
    broken = saga.committed(call(WRITE().compensate(wrong), "2"), None)
    assert unwind(saga, True) == [("1", "undo")]
    assert broken.state == "unresolved"
    assert isinstance(broken.error, ZeroDivisionError | TypeError)


async def _coroutine() -> None:
    """A handler called instead of an effect made: nothing would be undone."""


def test_giving_up_leaves_what_was_to_be_done_unresolved_and_nothing_else() -> None:
    def made(failing: bool) -> tuple[Saga, Task]:
        saga = Saga()
        saga.committed(call(UNDONE, "1"), None)
        race = call(join.race(UNDONE, UNDONE), "2")
        winner = race.member("run", 0)
        saga.committed(winner, None)
        saga.committed(race.member("run", 1), None)
        saga.lost(race, frozenset([winner]))
        saga.doubted(call(WRITE().compensate(by_key=UNDO).optional(), "3"), DOUBT)
        task = saga.next_task(failing)
        assert task is not None
        return saga, task

    saga, _ = made(failing=False)
    assert [entry.call.ordinal for entry in saga.give_up(failing=False)] == ["2.1"]
    assert [entry.state for entry in saga.entries] == ["kept", "kept", "unresolved", "kept"]
    saga, _ = made(failing=True)
    assert [entry.call.ordinal for entry in saga.give_up(failing=True)] == ["3", "2.1", "2.0", "1"]
    assert saga.next_task(True) is None
