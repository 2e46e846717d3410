"""Nothing that was written, or may have been, is ever lost from sight; and no doubt is raised where there is none."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from zerver import (
    INJECTED,
    App,
    Deadline,
    Done,
    Effect,
    Fail,
    Flow,
    IdempotencyKey,
    Pause,
    Slot,
    effect,
    join,
    parallel,
    step,
)
from zerver.errors import Rejected
from zerver.runtime import Result, open_runtime
from zerver.testing import scripted


async def silence(*_: object) -> str:
    await trio.sleep_forever()


@effect(kind="bank.rate", access="read")
async def rate(seconds: float) -> str:
    raise NotImplementedError


@effect(kind="bank.charge", access="write")
async def charge(seconds: float, *, key: IdempotencyKey = INJECTED) -> str:
    raise NotImplementedError


@effect(kind="bank.post", access="write")
async def post() -> str:
    raise NotImplementedError


@effect(kind="bank.find", access="read")
async def find(key: str) -> str | None:
    raise NotImplementedError


@effect(kind="bank.refund", access="write")
async def refund(made: str, *, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


@effect(kind="mail.send", access="write")
async def send(*, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


async def after(seconds: float) -> str:
    await trio.sleep(abs(seconds))
    if seconds < 0:
        raise Rejected(f"after {-seconds}")
    return f"at {seconds}"


def world(**more: object) -> dict[str, Any]:
    answers: dict[str, object] = {"rate": after, "charge": after, "refund": None, "find": None, "post": None}
    return {f"bank.{verb}": answer for verb, answer in (answers | more).items()}


async def run(make: Callable[[], Effect[Any]], handlers: Any = None, app: App | None = None, **how: Any) -> Result:
    @step
    async def ask() -> Done:
        return Done(await make())

    async with open_runtime(
        app or App(), handlers=scripted(world()) if handlers is None else handlers, seed=1
    ) as runtime:
        return await runtime.run(Flow("asked", [ask], **how))


async def brittle(*args: Any, **kwargs: Any) -> Any:
    """A handler with a nursery of its own, whose cleanup fails when it is cut."""

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("cleanup failed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        await trio.sleep_forever()


# 1. a handler's own nursery, cut, whose cleanup fails


async def test_read_timeout_with_failing_cleanup_is_an_effect_error(autojump_clock: MockClock) -> None:
    result = await run(lambda: rate(1).with_policy(timeout=1), {"bank.rate": brittle})
    assert result.status == "failed"


async def test_run_deadline_with_failing_cleanup_is_a_504(autojump_clock: MockClock) -> None:
    result = await run(lambda: rate(1), {"bank.rate": brittle}, deadline=1.0)
    assert result.status == "deadline"


async def test_refund_cut_with_failing_cleanup_is_unresolved(autojump_clock: MockClock) -> None:
    """The worst: nobody is told of the refund that was not made."""
    seen: list[Result] = []

    async def paid(seconds: float) -> str:
        return "paid"

    @step
    async def pay() -> None:
        await charge(1).compensate(refund)

    @step
    def no() -> Fail:
        return Fail.conflict("cart")

    async def brittle_refund(made: str) -> None:
        await brittle()

    with trio.move_on_after(100):
        try:
            async with open_runtime(
                App(), handlers={"bank.charge": paid, "bank.refund": brittle_refund}, observers=[seen.append]
            ) as runtime:
                # the refund's own timeout is out of the way: the undo deadline cuts it
                await runtime.run(Flow("f", [pay, no], undo_deadline=1.0))
        except BaseException as e:
            print("raised", repr(e))
    assert [len(r.unresolved) for r in seen] == [1]


# 2. hedged write: resolve fails in a way that is no Cancelled


async def test_hedge_whose_resolve_is_a_bug_keeps_its_doubt(autojump_clock: MockClock) -> None:
    seen: list[Result] = []

    def wrong(key: str) -> Effect[str | None]:
        raise TypeError("a bug in resolve=")

    @step
    async def pay() -> None:
        await join.hedge(charge(1).with_policy(timeout=0.5).compensate(refund, resolve=wrong), after=0.1)

    async with open_runtime(
        App(),
        handlers={"bank.charge": silence, "bank.refund": after},
        observers=[seen.append],
    ) as runtime:
        try:
            await runtime.run(Flow("f", [pay]))
        except TypeError:
            pass
    assert [len(r.unresolved) for r in seen] == [1]


async def test_plain_write_whose_resolve_is_a_bug_does_not_raise_at_the_caller(autojump_clock: MockClock) -> None:
    def wrong(key: str) -> Effect[str | None]:
        raise TypeError("a bug in resolve=")

    result = await run(
        lambda: charge(1).with_policy(timeout=0.5).compensate(refund, resolve=wrong),
        {"bank.charge": silence, "bank.refund": after},
    )
    assert len(result.unresolved) == 1


async def test_hedge_cut_while_resolving_in_a_nursery_keeps_its_doubt(autojump_clock: MockClock) -> None:
    async def nested(key: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)

    result = await run(
        lambda: join.hedge(charge(1).with_policy(timeout=0.5).compensate(refund, resolve=find), after=0.1),
        {"bank.charge": silence, "bank.refund": after, "bank.find": nested},
        deadline=2.0,
        undo_deadline=3.0,
    )
    assert len(result.unresolved) == 1


async def test_hedge_ended_by_the_program_keeps_its_doubt(autojump_clock: MockClock) -> None:
    seen: list[Result] = []

    async def dies(seconds: float) -> str:
        await trio.sleep(1)
        raise KeyboardInterrupt

    @step
    async def pay() -> None:
        await join.hedge(charge(1).compensate(refund), after=0.1)

    with pytest.raises(KeyboardInterrupt):
        async with open_runtime(
            App(), handlers={"bank.charge": dies, "bank.refund": after}, observers=[seen.append]
        ) as runtime:
            await runtime.run(Flow("f", [pay]))
    assert [len(r.unresolved) for r in seen] == [1]


# 3. a write that was never sent is not in doubt


async def test_a_member_is_not_begun_once_the_join_is_decided(autojump_clock: MockClock) -> None:
    """Else its handler meets the cancellation at its first checkpoint, and nobody can tell whether it had sent."""
    begun_cut: list[bool] = []

    async def sends(seconds: float) -> str:
        begun_cut.append(trio.current_effective_deadline() == -float("inf"))
        await trio.lowlevel.checkpoint()
        return "x"

    async def refuses() -> str:
        raise Rejected("no")

    for _ in range(20):  # Trio starts tasks in any order
        await run(lambda: join.all(post(), charge(1)), {"bank.post": refuses, "bank.charge": sends})
        await run(lambda: join.all(charge(1), post()), {"bank.post": refuses, "bank.charge": sends})
    assert not any(begun_cut)


async def test_a_write_after_the_deadline_is_not_sent(autojump_clock: MockClock) -> None:
    sent: list[str] = []

    async def sends(seconds: float) -> str:
        await trio.lowlevel.checkpoint()
        sent.append("sent")
        return "x"

    @step
    async def slow_cpu() -> None:
        autojump_clock.jump(5)

    @step
    async def pay() -> Done:
        return Done(await charge(1))

    async with open_runtime(App(), handlers={"bank.charge": sends}) as runtime:
        result = await runtime.run(Flow("f", [slow_cpu, pay], deadline=1.0))
    assert (result.status, sent, result.unresolved) == ("deadline", [], ())


# 4. compensation that is a join


async def test_a_join_of_compensations_is_tried_as_hard(autojump_clock: MockClock) -> None:
    tries: list[int] = []

    async def paid(seconds: float) -> str:
        return "paid"

    async def flaky(made: str, *, key: IdempotencyKey) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("down")

    async def mail(*, key: IdempotencyKey) -> None:
        return None

    @step
    async def pay() -> None:
        await charge(1).compensate(lambda made: join.all(refund(made), send()))

    @step
    def no() -> Fail:
        return Fail.conflict("cart")

    async with open_runtime(App(), handlers={"bank.charge": paid, "bank.refund": flaky, "mail.send": mail}) as runtime:
        result = await runtime.run(Flow("f", [pay, no]))
    assert result.unresolved == ()


async def test_a_settled_compensation_that_failed_is_not_undone(autojump_clock: MockClock) -> None:
    async def paid(seconds: float) -> str:
        return "paid"

    async def down(made: str, *, key: IdempotencyKey) -> None:
        raise Rejected("no such charge")

    async def mail(*, key: IdempotencyKey) -> None:
        return None

    @step
    async def pay() -> None:
        await charge(1).compensate(lambda made: join.settle(refund(made), send()))

    @step
    def no() -> Fail:
        return Fail.conflict("cart")

    async with open_runtime(App(), handlers={"bank.charge": paid, "bank.refund": down, "mail.send": mail}) as runtime:
        result = await runtime.run(Flow("f", [pay, no]))
    assert len(result.unresolved) == 1


# 5. late commit in a run that is done

Paid = Annotated[str, Slot("paid")]


async def test_a_write_whose_result_nobody_saw_is_undone_like_one_that_was_cut(autojump_clock: MockClock) -> None:
    refunds: list[str] = []

    async def paid(seconds: float) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(1)
        return "paid"

    async def undo(made: str) -> None:
        refunds.append(made)

    @step
    async def pay() -> None:
        await charge(1).compensate(refund)
        raise AssertionError("never resumed")

    @step
    async def early() -> Done:
        await rate(0.5)
        return Done("early")

    async with open_runtime(App(), handlers={"bank.charge": paid, "bank.refund": undo, "bank.rate": after}) as runtime:
        result = await runtime.run(Flow("f", [parallel(pay, early)]))
    assert (result.value, refunds, result.unresolved) == ("early", ["paid"], ())


# 6. parked time is not the run's


async def test_a_parked_run_has_its_deadline_left(autojump_clock: MockClock) -> None:
    @step
    def wait() -> Pause:
        return Pause("go", expires=100)

    @step
    def look(left: Deadline) -> Done:
        return Done(left)

    results: list[Result] = []
    async with open_runtime(App(), seed=1) as runtime, trio.open_nursery() as nursery:

        async def go() -> None:
            results.append(await runtime.run(Flow("f", [wait, look], deadline=2.0)))

        nursery.start_soon(go)
        await trio.sleep(10)
        for run_id in list(runtime._runs):
            assert await runtime.signal(run_id, "go")
    assert results[0].status == "done"
    assert results[0].value.remaining > 1.5


async def test_a_nested_flow_is_not_late_because_it_was_parked(autojump_clock: MockClock) -> None:
    @step
    def wait() -> Pause:
        return Pause("go", expires=100)

    @step
    async def look() -> Done:
        return Done(await rate(0.5))

    results: list[Result] = []
    async with open_runtime(App(), seed=1, handlers={"bank.rate": after}) as runtime, trio.open_nursery() as nursery:

        async def go() -> None:
            results.append(await runtime.run(Flow("f", [Flow("inner", [wait, look], deadline=2.0)])))

        nursery.start_soon(go)
        await trio.sleep(10)
        for run_id in list(runtime._runs):
            assert await runtime.signal(run_id, "go")
    assert (results[0].status, results[0].cause) == ("done", None)


# 7


async def test_optional_on_a_hedge_is_the_same_as_in_it(autojump_clock: MockClock) -> None:
    def slowly() -> Effect[str]:
        return charge(1).with_policy(timeout=0.5)

    w = {"bank.charge": silence}
    inside = await run(lambda: join.hedge(slowly().optional(), after=0.1), w)
    outside = await run(lambda: join.hedge(slowly(), after=0.1).optional(), w)
    plain = await run(lambda: slowly().optional(), w)
    assert len(plain.unresolved) == len(inside.unresolved) == len(outside.unresolved)


# 9. unwrap() of a request that could not be read


async def test_a_run_whose_request_was_bad_has_failed_and_was_not_cancelled() -> None:
    from zerver.core.timeline import Ending, Timeline
    from zerver.errors import InvalidData, RunFailed

    ending = Ending("failed", cause=InvalidData([("body", "is missing")]))
    with pytest.raises(RunFailed):
        Result(Timeline("req_1", "f", "1", "default", "default", []), ending).unwrap()


# 10. resolve= may be a join, as a compensation may


async def test_resolve_may_be_a_join(autojump_clock: MockClock) -> None:
    def made() -> Effect[str]:
        asked = charge(1).with_policy(timeout=0.5)
        return asked.compensate(refund, resolve=lambda key: join.race(find(key), find(key)))

    async def found(key: str) -> str:
        return "paid"

    result = await run(made, {"bank.charge": silence, "bank.refund": after, "bank.find": found})
    assert (result.status, result.value) == ("done", "paid")


async def test_a_handler_that_could_not_even_be_called_has_done_nothing(autojump_clock: MockClock) -> None:
    called = []

    async def other() -> str:  # of another signature than the kind's own
        called.append("other")
        return "done"

    def eager(*_: object, **__: object) -> Any:  # no `async def`: to call it may do something
        called.append("eager")
        raise OSError("line cut")

    @step
    async def buy() -> None:
        await charge(1.0).with_policy(retries=3)

    for handler, doubt in ((other, False), (eager, True)):
        async with open_runtime(App("shop"), handlers={"bank.charge": handler}) as runtime:
            result = await runtime.run(Flow("buy", [buy]))
        assert result.status == "failed"
        assert bool(result.unresolved) is doubt
    assert called == ["eager"] * 4  # what does not fit now will not fit next time
