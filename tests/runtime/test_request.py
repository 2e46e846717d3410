"""The request actor pumps a run to its end: what is at once, what is parked, what is cut, and what is undone."""

from collections.abc import Sequence
from typing import Annotated, Any

import pytest
import trio
from trio.testing import MockClock

from zerver import (
    INJECTED,
    AdmissionPolicy,
    App,
    CallInfo,
    Deadline,
    Done,
    Fail,
    Flow,
    IdempotencyKey,
    Part,
    Pause,
    Slot,
    dag,
    effect,
    parallel,
    pivot,
    step,
)
from zerver.effects import clock
from zerver.errors import EffectTimeout, InvalidData, ProtocolViolation, Rejected
from zerver.runtime import Result, Runtime, open_runtime
from zerver.runtime.executor import finished
from zerver.runtime.live import Run
from zerver.testing import Scripted, hangs, scripted, slow

One = Annotated[str, Slot("one")]
Two = Annotated[str, Slot("two")]
Three = Annotated[str, Slot("three")]
Word = Annotated[str, Part("word")]


@effect(kind="bank.charge", access="write")
async def charge(what: str, *, key: IdempotencyKey = INJECTED) -> str:
    raise NotImplementedError


@effect(kind="bank.refund", access="write")
async def refund(made: str, *, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


@step
async def first() -> One:
    return await charge("one").compensate(refund)


@step
async def second() -> Two:
    return await charge("two").compensate(refund)


@step
async def third(one: One, two: Two) -> Three:
    return await charge("three").compensate(refund)


@step
def refuse() -> Fail:
    return Fail.conflict("cart")


def world(**more: object) -> Scripted:
    answers: dict[str, object] = {"charge": slow(1)(lambda what: what), "refund": None}
    return scripted({f"bank.{verb}": answer for verb, answer in (answers | more).items()})


async def run(flow: Flow, handlers: Scripted, **how: Any) -> Result:
    async with open_runtime(App(), handlers=handlers, seed=1) as runtime:
        return await runtime.run(flow, **how)


def undone(handlers: Scripted) -> list[object]:
    return [call.args[0] for call in handlers.calls_of(refund)]


# ---- at once --------------------------------------------------------------------------------


async def test_parallel_steps_run_at_once(autojump_clock: MockClock) -> None:
    result = await run(Flow("f", [parallel(first, second), third], gives=[Three]), world())
    assert (result.value, trio.current_time()) == ("three", pytest.approx(2))


async def test_a_dag_runs_each_member_when_it_can(autojump_clock: MockClock) -> None:
    @step
    async def slowly() -> None:
        await clock.sleep(5)

    result = await run(Flow("f", [dag(third, slowly, second, first)], gives=[Three]), world())
    assert (result.value, trio.current_time()) == ("three", pytest.approx(5))


async def test_when_one_of_several_fails_the_others_are_cut_and_all_is_undone(autojump_clock: MockClock) -> None:
    @step
    async def fails_late() -> Fail | None:
        await clock.sleep(1.5)
        return Fail.conflict("cart")

    @step
    async def too_slow() -> Two:
        await clock.sleep(60)
        return "never"

    handlers = world()
    result = await run(Flow("f", [parallel(first, fails_late, too_slow), third], gives=[Three]), handlers)
    assert (result.status, result.cause) == ("failed", Fail.conflict("cart"))
    assert trio.current_time() == pytest.approx(1.5)
    assert undone(handlers) == ["one"]
    assert [call.effect.kind.name for kind, _, call, _ in result.timeline.records if kind == "cut"] == ["clock.sleep"]


async def test_done_in_one_of_several_ends_the_run_and_cuts_the_rest(autojump_clock: MockClock) -> None:
    @step
    async def quick() -> Done | None:
        await clock.sleep(0.5)
        return Done("enough")

    @step
    async def dawdle() -> None:
        await clock.sleep(60)

    result = await run(Flow("f", [parallel(quick, dawdle)]), world())
    assert (result.status, result.value, trio.current_time()) == ("done", "enough", pytest.approx(0.5))


# ---- undone ---------------------------------------------------------------------------------


async def test_what_was_committed_is_undone_newest_first(autojump_clock: MockClock) -> None:
    handlers = world()
    result = await run(Flow("f", [first, second, third, refuse], gives=[Three]), handlers)
    assert (result.status, undone(handlers)) == ("failed", ["three", "two", "one"])
    assert result.unresolved == ()


async def test_nothing_is_undone_behind_a_pivot(autojump_clock: MockClock) -> None:
    handlers = world()
    await run(Flow("f", [first, pivot(second), third, refuse], gives=[Three]), handlers)
    assert undone(handlers) == ["three"]


async def test_a_refund_that_is_refused_is_reported_and_the_others_go_on(autojump_clock: MockClock) -> None:
    def refuse_two(made: str) -> None:
        if made == "two":
            raise Rejected("no")

    handlers = world(refund=refuse_two)
    result = await run(Flow("f", [first, second, third, refuse], gives=[Three]), handlers)
    assert undone(handlers) == ["three", "two", "one"]
    assert [entry.value for entry in result.unresolved] == ["two"]


async def test_the_host_that_cancels_waits_for_the_rollback(autojump_clock: MockClock) -> None:
    ended: list[Result] = []
    handlers = world(refund=slow(2)(None))
    async with open_runtime(App(), handlers=handlers, observers=[ended.append]) as runtime:
        with trio.move_on_after(1.5) as scope:
            await runtime.run(Flow("f", [first, second, third], gives=[Three]))
        assert scope.cancelled_caught
        assert trio.current_time() == pytest.approx(3.5)
        assert undone(handlers) == ["one"]
        assert runtime.statistics().running == 0
    # Nobody got the result; those who watch did, and what is in doubt is in it.
    assert (ended[0].status, ended[0].reason) == ("cancelled", "the host cancelled it")
    assert [entry.call.effect.args for entry in ended[0].unresolved] == [("two",)]
    assert ended[0].timeline.records[-1][0] == "ended"


async def test_a_defect_is_a_result_and_everything_is_undone(autojump_clock: MockClock) -> None:
    @step
    def broken(one: One) -> Done:
        return Done(1 // 0)

    handlers = world()
    result = await run(Flow("f", [first, broken]), handlers)
    assert isinstance(result.cause, ZeroDivisionError)
    assert (result.status, undone(handlers)) == ("defect", ["one"])


async def test_the_bug_of_a_handler_cannot_hurt_the_runtime(autojump_clock: MockClock) -> None:
    async def wrong(what: str, *, info: CallInfo) -> str:
        raise ExceptionGroup("two", [ValueError("a"), ValueError("b")])

    result = await run(Flow("f", [first], gives=[One]), world(charge=wrong))
    assert (result.status, len(result.unresolved)) == ("failed", 1)


# ---- time -----------------------------------------------------------------------------------


async def test_the_deadline_ends_a_run_and_not_its_rollback(autojump_clock: MockClock) -> None:
    handlers = world(refund=slow(3)(None))
    result = await run(Flow("f", [first, second, third], gives=[Three], deadline=1.5), handlers)
    assert (result.status, undone(handlers)) == ("deadline", ["one"])
    assert [entry.call.effect.args for entry in result.unresolved] == [("two",)]
    assert trio.current_time() == pytest.approx(4.5)


async def test_steps_see_what_is_left(autojump_clock: MockClock) -> None:
    @step
    async def wait() -> None:
        await clock.sleep(2)

    @step
    def look(left: Deadline) -> Done:
        return Done(left.remaining)

    assert (await run(Flow("f", [wait, look], deadline=5), world())).value == pytest.approx(3)
    assert (await run(Flow("g", [wait, look]), world())).value == float("inf")


async def test_a_nested_flows_deadline_cuts_the_effects_inside_it(autojump_clock: MockClock) -> None:
    inner = Flow("inner", [first, second], gives=[One, Two], deadline=1.5)

    @step
    def finish(one: One, two: Two) -> Done:
        return Done(one + two)

    handlers = world()
    result = await run(Flow("outer", [inner, finish], deadline=60), handlers)
    assert result.status == "failed"
    assert trio.current_time() == pytest.approx(1.5)
    assert undone(handlers) == ["one"]


async def test_a_nested_flows_time_is_not_that_of_what_follows(autojump_clock: MockClock) -> None:
    inner = Flow("inner", [first], gives=[One], deadline=1.5)

    @step
    async def later(one: One) -> Done:
        await clock.sleep(30)
        return Done(one)

    assert (await run(Flow("outer", [inner, later]), world())).value == "one"


async def test_a_read_out_of_time_is_a_timeout(autojump_clock: MockClock) -> None:
    @step
    async def wait() -> None:
        await clock.sleep(9)

    inner = Flow("inner", [wait], deadline=1.0)
    assert isinstance((await run(Flow("outer", [inner]), world())).cause, EffectTimeout)


# ---- parked ---------------------------------------------------------------------------------


@step
async def ask_boss(one: One) -> Two | Pause:
    return Pause("approval", expires=3600)


APPROVAL = Flow("approval", [first, ask_boss], gives=[Two], deadline=5)


async def signal_after(runtime: Runtime, seconds: float, handlers: Scripted, signal: str, value: object) -> None:
    await trio.sleep(seconds)
    run_id = handlers.calls[0].info.run_id
    assert await runtime.signal(run_id, signal, value)


async def test_a_parked_run_goes_on_with_its_signal_and_parked_time_is_not_its_own(autojump_clock: MockClock) -> None:
    handlers = world()
    async with open_runtime(App(), handlers=handlers) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(signal_after, runtime, 1000, handlers, "approval", "yes")
        result = await runtime.run(APPROVAL)
    assert (result.status, result.value) == ("done", "yes")
    assert result.timeline.accounts.parked == pytest.approx(999e9)


async def nobody_waits_for_lunch(runtime: Runtime) -> None:
    await trio.sleep(10)
    (run_id,) = runtime._runs
    assert await runtime.signal(run_id, "lunch", "now") is False


async def test_a_signal_for_somebody_else_is_ignored(autojump_clock: MockClock) -> None:
    handlers = world()
    async with open_runtime(App(), handlers=handlers) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(signal_after, runtime, 20, handlers, "approval", "yes")
        nursery.start_soon(nobody_waits_for_lunch, runtime)
        assert (await runtime.run(APPROVAL)).value == "yes"


async def test_a_pause_expires_and_what_was_done_is_undone(autojump_clock: MockClock) -> None:
    handlers = world()
    result = await run(APPROVAL, handlers)
    assert (result.cause, undone(handlers)) == (Fail("expired", "approval"), ["one"])
    assert trio.current_time() == pytest.approx(3601)


async def test_after_a_pause_the_deadline_goes_on(autojump_clock: MockClock) -> None:
    @step
    async def slowly(two: Two) -> Done:
        await clock.sleep(100)
        return Done(two)

    handlers = world()
    async with open_runtime(App(), handlers=handlers) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(signal_after, runtime, 1000, handlers, "approval", "yes")
        result = await runtime.run(Flow("f", [first, ask_boss, slowly], deadline=5))
    assert result.status == "deadline"
    assert trio.current_time() == pytest.approx(1004)


async def test_a_parked_run_can_be_cancelled(autojump_clock: MockClock) -> None:
    handlers = world()

    async def cancel(runtime: Runtime) -> None:
        await trio.sleep(10)
        assert runtime.cancel_nowait(handlers.calls[0].info.run_id, "changed our mind")

    async with open_runtime(App(), handlers=handlers) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(cancel, runtime)
        result = await runtime.run(APPROVAL)
    assert (result.status, result.reason, undone(handlers)) == ("cancelled", "changed our mind", ["one"])


# ---- what the edge brings -------------------------------------------------------------------


@step
def repeat(word: Word) -> Done:
    return Done(word * 2)


REPEAT = Flow("repeat", [repeat])


async def test_parts_are_read_once_there_is_a_ticket(autojump_clock: MockClock) -> None:
    async def read() -> Sequence[Any]:
        await trio.sleep(2)
        return ["ha"]

    async with open_runtime(App()) as runtime:
        result = await finished(runtime.execute(runtime.prepare(REPEAT), read, label="GET /x"))
    assert (result.value, result.timeline.label) == ("haha", "GET /x")
    assert result.timeline.accounts.io == pytest.approx(2e9)


@pytest.mark.parametrize("bad", [InvalidData([("body", "is no JSON")]), ProtocolViolation("too big", 413)])
async def test_a_bad_request_is_a_failed_run(autojump_clock: MockClock, bad: Exception) -> None:
    async def read() -> Sequence[Any]:
        raise bad

    async with open_runtime(App()) as runtime:
        result = await finished(runtime.execute(runtime.prepare(REPEAT), read))
    assert (result.status, result.cause) == ("failed", bad)


async def test_a_reader_that_is_broken_is_raised_and_leaves_nothing(autojump_clock: MockClock) -> None:
    async def read() -> Sequence[Any]:
        raise ZeroDivisionError("in the edge")

    async with open_runtime(App()) as runtime:
        with pytest.raises(ZeroDivisionError, match="in the edge"):
            await finished(runtime.execute(runtime.prepare(REPEAT), read))
        assert (runtime.statistics().running, runtime.statistics().admission.running) == (0, 0)


async def test_on_wait_is_told_once_when_the_run_first_waits(autojump_clock: MockClock) -> None:
    told: list[str] = []

    def watch(run: Run) -> None:
        told.append(run.run_id)

    async with open_runtime(App(), handlers=world()) as runtime:
        flow = Flow("f", [first, second, third], gives=[Three])
        result = await finished(runtime.execute(runtime.prepare(flow), on_wait=watch))
        assert told == [result.run_id]
        await finished(runtime.execute(runtime.prepare(REPEAT), ["x"], on_wait=watch))
    assert told == [result.run_id]  # a run that waits for nothing costs no watching


async def test_who_watches_may_cancel(autojump_clock: MockClock) -> None:
    handlers = world(charge=hangs()(None))
    async with open_runtime(App(), handlers=handlers) as runtime:
        flow = Flow("f", [first], gives=[One])
        result = await finished(
            runtime.execute(runtime.prepare(flow), on_wait=lambda run: run.cancel("the client has gone"))
        )
    assert (result.status, result.reason) == ("cancelled", "the client has gone")


@step
async def sleep_long(one: One) -> Done:
    await clock.sleep(5000)
    return Done(one)


async def test_a_parked_run_holds_no_seat_and_its_hour_says_nothing_of_the_next(autojump_clock: MockClock) -> None:
    handlers = world()
    one = AdmissionPolicy(running=1)
    async with open_runtime(App(admission=one), handlers=handlers) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(signal_after, runtime, 1000, handlers, "approval", "yes")
        nursery.start_soon(runtime.run, APPROVAL)
        await trio.sleep(10)
        seen = runtime.statistics().admission
        assert (seen.running, seen.parked) == (0, 1)
        assert (await runtime.run(Flow("other", [first], gives=[One]))).ok, "the seat is free"
        nursery.start_soon(runtime.run, Flow("third", [first, sleep_long]))
        await trio.sleep(991)
        assert runtime.statistics().admission.parked == 0, "it went on, though the one seat is taken"
        await runtime.drain(0)
    assert runtime.statistics().admission.running == 0


async def test_drain_ends_a_parked_run_and_waits_for_its_rollback(autojump_clock: MockClock) -> None:
    handlers = world()
    async with open_runtime(App(), handlers=handlers) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run, APPROVAL)
        await trio.sleep(10)
        await runtime.drain(5)
        assert (runtime.statistics().running, undone(handlers)) == (0, ["one"])
    assert trio.current_time() == pytest.approx(15)
