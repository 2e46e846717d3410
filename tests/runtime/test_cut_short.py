"""What is cut short or cannot be tried: the saga still hears of every write, and the rollback goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import pytest
import trio
import trio.testing

from zerver import INJECTED, App, Fail, Flow, IdempotencyKey, Pause, Slot, effect, join, parallel, step
from zerver.core.effects import EffectKind
from zerver.errors import DefinitionError
from zerver.runtime import Result, open_runtime

First = Annotated[str, Slot("first")]
Second = Annotated[str, Slot("second")]

UNDONE: list[int] = []
UNHANDLED: EffectKind[..., None] = EffectKind("own.unhandled", "write", takes_key=True)


@pytest.fixture
def undone() -> list[int]:
    UNDONE.clear()
    return UNDONE


@effect(kind="own.nursery", access="write")
async def nursing(*, key: IdempotencyKey = INJECTED) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await trio.sleep_forever()


@effect(kind="own.slow", access="write")
async def slow(*, key: IdempotencyKey = INJECTED) -> None:
    await trio.sleep_forever()


@effect(kind="own.write", access="write")
async def write(number: int, *, key: IdempotencyKey = INJECTED) -> int:
    return number


@effect(kind="own.undo", access="write")
async def undo(number: int, *, key: IdempotencyKey = INJECTED) -> None:
    UNDONE.append(number)


@step
def refuse() -> Fail:
    return Fail.conflict("x")


async def run(*stages: Any, **options: Any) -> Result:
    async with open_runtime(App()) as runtime:
        return await runtime.run(Flow("f", stages), **options)


async def test_a_write_cut_inside_its_handlers_own_nursery_is_in_doubt(autojump_clock: trio.abc.Clock) -> None:
    """A nursery wraps even Cancelled in a group, which no `except trio.Cancelled` catches."""

    @step
    async def nurse() -> None:
        await nursing()

    result = await run(nurse, deadline=1.0)
    assert result.status == "deadline"
    assert [entry.call.effect.kind.name for entry in result.unresolved] == ["own.nursery"]


async def test_a_compensation_that_cannot_be_tried_does_not_keep_the_others_from_being(
    autojump_clock: trio.abc.Clock, undone: list[int]
) -> None:
    hidden: dict[str, Callable[..., Any]] = {"from the check": UNHANDLED}

    @step
    async def write_two() -> None:
        await write(1).compensate(undo)
        await write(2).compensate(hidden["from the check"])

    result = await run(write_two, refuse)
    assert result.status == "failed"
    assert undone == [1]
    (entry,) = result.unresolved
    assert isinstance(entry.error, Exception)
    assert isinstance(getattr(entry.error, "cause", None), DefinitionError)


async def test_what_a_settle_wrote_before_it_timed_out_is_undone(
    autojump_clock: trio.abc.Clock, undone: list[int]
) -> None:
    """The step was told that the join failed, so nobody wants what its members committed."""

    @step
    async def settle() -> None:
        await join.settle(write(5).compensate(undo), slow()).with_policy(timeout=1.0).optional()

    result = await run(settle)
    assert result.status == "done"
    assert undone == [5]


async def test_signals_that_come_at_once_all_arrive(autojump_clock: trio.abc.Clock, nursery: trio.Nursery) -> None:
    @step
    def first() -> First | Pause:
        return Pause("one", 100.0)

    @step
    def second() -> Second | Pause:
        return Pause("two", 100.0)

    results: list[Result] = []
    async with open_runtime(App()) as runtime:

        async def go() -> None:
            results.append(await runtime.run(Flow("f", [parallel(first, second)], gives=[First, Second])))

        nursery.start_soon(go)
        await trio.testing.wait_all_tasks_blocked()
        (run_id,) = runtime._runs
        assert await runtime.signal(run_id, "nobody waits for this") is False
        assert await runtime.signal(run_id, "one", "1")
        assert await runtime.signal(run_id, "two", "2")
        await trio.sleep(1.0)
    assert [result.value for result in results] == [("1", "2")]
