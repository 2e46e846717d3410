"""Offloaded steps: what they give, raise and read; cut short; refused when no other process could run them."""

from __future__ import annotations

import os
import sys
import threading
from typing import Annotated, Any

import pytest
import trio
from trio.testing import MockClock

from zerver import App, Deadline, Flow, Slot, step
from zerver.core import timeline as t
from zerver.core.plan import compile_plan
from zerver.core.steps import Step
from zerver.errors import DefinitionError
from zerver.runtime import open_runtime
from zerver.trace.replaying.replay import replay
from zerver.trace.text import format_timeline

Number = Annotated[int, Slot("number")]
Answer = Annotated[int, Slot("answer")]
Place = Annotated[str, Slot("place")]


@step
def seven() -> Number:
    return 7


@step(offload="thread")
def doubled(number: Number, left: Deadline) -> Answer:
    assert left.remaining > 0
    return number * 2


@step(offload="thread")
def where(number: Number, *, answer: Answer) -> Place:
    return f"{threading.current_thread().name} {number} {answer}"


@step(offload="process")
def elsewhere(number: Number) -> Answer:
    return os.getpid() * number


@step(offload="process")
def dies(number: Number) -> Answer:
    raise LookupError(f"no {number}")


@step(offload="process")
def takes_anything(thing: Annotated[Any, Slot("thing")], number: Number) -> Answer:
    return number


@step(offload="process")
def returns_a_lock(number: Number) -> Annotated[Any, Slot("thing")]:
    return threading.Lock()


@step(offload="process")
def leaves(number: Number) -> Answer:
    sys.exit("enough")


@step(offload="process")
def is_killed(number: Number) -> Answer:
    os._exit(3)


FLOW = Flow("f", [seven, doubled, where], gives=[Answer, Place], deadline=60.0)


async def test_a_thread_performs_it_and_a_replay_needs_none() -> None:
    async with open_runtime(App()) as runtime:
        result = await runtime.run(FLOW)
    answer, place = result.value
    assert answer == 14
    assert place.endswith(" 7 14")
    assert threading.current_thread().name not in place
    again = replay(compile_plan(FLOW), result.timeline)
    assert again.same
    assert again.slots["answer"] == 14
    assert "→ offload.thread\n" in format_timeline(result.timeline), "no values are shown"


async def test_under_a_mock_clock_it_is_called_in_place(autojump_clock: MockClock) -> None:
    async with open_runtime(App()) as runtime:
        result = await runtime.run(FLOW)
    assert result.value == (14, f"{threading.current_thread().name} 7 14")


def test_called_directly_it_is_its_function() -> None:
    assert elsewhere(1) == os.getpid()


@pytest.mark.parametrize("offload", [None, "thread"])
async def test_what_it_raises_is_a_defect(offload: Any) -> None:
    @step(offload=offload)
    def raises() -> None:
        raise LookupError("gone")

    async with open_runtime(App()) as runtime:
        result = await runtime.run(Flow("f", [raises]))
    assert result.status == "defect"
    assert isinstance(result.cause, LookupError)
    assert [kind for kind, *_ in result.timeline.records].count(t.DEFECT) == 1


async def test_a_run_that_is_cancelled_does_not_wait_for_its_thread() -> None:
    begun, go = threading.Event(), threading.Event()

    @step(offload="thread")
    def waits() -> None:
        begun.set()
        go.wait(60)

    async with open_runtime(App()) as runtime:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.run, Flow("f", [waits]))
                await trio.to_thread.run_sync(begun.wait, 60)
                scope.cancel()
        assert scope.cancelled_caught
        go.set()


async def test_the_deadline_applies_to_it() -> None:
    go = threading.Event()

    @step(offload="thread")
    def waits() -> None:
        go.wait(60)

    async with open_runtime(App()) as runtime:
        assert (await runtime.run(Flow("f", [waits], deadline=0.001))).status == "deadline"
        inner = await runtime.run(Flow("outer", [Flow("inner", [waits], deadline=0.001)], deadline=60.0))
        assert (inner.status, "nested flow's deadline" in str(inner.cause)) == ("failed", True)
        go.set()


async def test_a_process_performs_it() -> None:
    pytest.importorskip("trio_parallel")
    async with open_runtime(App()) as runtime:
        result = await runtime.run(Flow("f", [seven, elsewhere], gives=[Answer]))
        pid = result.value // 7
        assert (result.status, result.value % 7, pid == os.getpid()) == ("done", 0, False)
        failed = await runtime.run(Flow("g", [seven, dies], gives=[Answer]))
        assert (failed.status, str(failed.cause)) == ("defect", "no 7")


async def test_what_cannot_go_to_a_process_or_come_from_it_is_named() -> None:
    pytest.importorskip("trio_parallel")

    @step
    def lock() -> Annotated[Any, Slot("thing")]:
        return threading.Lock()

    async with open_runtime(App()) as runtime:
        there = await runtime.run(Flow("there", [seven, lock, takes_anything], gives=[Answer]))
        back = await runtime.run(Flow("back", [seven, returns_a_lock], gives=[Annotated[Any, Slot("thing")]]))
    assert (there.status, back.status) == ("defect", "defect")
    assert isinstance(there.cause, DefinitionError)
    assert "what step 'takes_anything' reads as 'thing' cannot go to another process: cannot pickle" in str(there.cause)
    assert isinstance(back.cause, DefinitionError)
    assert "what step 'returns_a_lock' returns, a lock, cannot come back from its process: " in str(back.cause)


async def test_a_process_that_ends_takes_nobody_along() -> None:
    pytest.importorskip("trio_parallel")
    async with open_runtime(App()) as runtime:
        left = await runtime.run(Flow("left", [seven, leaves], gives=[Answer]))
        killed = await runtime.run(Flow("killed", [seven, is_killed], gives=[Answer]))
        after = await runtime.run(Flow("after", [seven, elsewhere], gives=[Answer]))
    assert (left.status, str(left.cause)) == ("defect", "step 'leaves' has left its process by SystemExit: enough")
    assert (killed.status, str(killed.cause)) == ("defect", "the process of step 'is_killed' died, with exit code 3")
    assert after.ok


async def test_without_trio_parallel_it_is_found_when_the_app_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio_parallel", None)
    app = App()
    app.route("GET", "/", Flow("f", [seven, elsewhere], gives=[Answer]))
    with pytest.raises(DefinitionError, match=r"trio-parallel is not installed\n.*zerver\[process\]"):
        async with open_runtime(app):
            pytest.fail("it was opened")


async def test_a_step_that_no_other_process_finds_is_refused() -> None:
    pytest.importorskip("trio_parallel")
    hidden = Step(seven.function, "hidden", (), "process")
    hidden.function.__qualname__ = "not_there"
    try:
        async with open_runtime(App()) as runtime:
            with pytest.raises(DefinitionError, match="is not found as"):
                await runtime.run(Flow("f", [hidden], gives=[Number]))
    finally:
        hidden.function.__qualname__ = "seven"


def test_what_cannot_be_offloaded_is_refused_when_it_is_defined() -> None:
    def local() -> None:
        return None

    async def waits() -> None:
        return None

    with pytest.raises(DefinitionError, match="defined inside a function"):
        step(offload="process")(local)
    with pytest.raises(DefinitionError, match="awaits effects"):
        step(offload="thread")(waits)
    with pytest.raises(DefinitionError, match="is no place"):
        step(offload="moon")(local)  # type: ignore[call-overload]  # the mistake that is tested
