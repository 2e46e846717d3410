"""A run's scope that is lent to an effect bounds it as a scope of its own would, and the run goes on whole."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import pytest
import trio
from trio.testing import MockClock

from zerver import App, Done, Effect, Flow, Slot, Target, effect, join, parallel, step
from zerver.core.tenants import NOBODY, Tenant
from zerver.errors import EffectError, EffectTimeout
from zerver.runtime import Result, open_runtime

First = Annotated[str, Slot("first")]
Second = Annotated[str, Slot("second")]


@effect(kind="far.ask", access="read")
async def ask(seconds: float) -> float:
    """Gives the time that it was told it had."""
    left = trio.current_effective_deadline() - trio.current_time()
    await trio.sleep(seconds)
    return left


@effect(kind="far.late", access="read")
async def ask_deafly(seconds: float) -> str:
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)
    return "late, but here"


@effect(kind="far.clumsy", access="read")
async def ask_clumsily() -> str:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("while it was cut")


@effect(kind="far.crowd", access="read")
async def ask_in_a_crowd() -> str:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep_forever)
    return "never"


async def tried(one: Effect[Any]) -> object:
    try:
        return await one
    except EffectError as error:
        return type(error).__name__


def flow_of(*effects: Callable[[], Effect[Any]], **how: Any) -> Flow:
    @step
    async def in_turn() -> Done:
        return Done([await tried(make()) for make in effects])

    return Flow("in_turn", [in_turn], **how)


async def run(*effects: Callable[[], Effect[Any]], **how: Any) -> Result:
    async with open_runtime(App()) as runtime:
        return await runtime.run(flow_of(*effects, **how))


def kinds(result: Result) -> list[str]:
    return [record[0] for record in result.timeline.records]


async def test_an_effect_has_its_own_time_and_the_next_one_the_runs(autojump_clock: MockClock) -> None:
    result = await run(lambda: ask(1).with_policy(timeout=2), lambda: ask(1), deadline=10.0)
    assert result.value == [2.0, 9.0]


async def test_a_run_goes_on_after_each_effect_whose_time_is_over(autojump_clock: MockClock) -> None:
    short = lambda: ask(5).with_policy(timeout=1)  # noqa: E731  # said three times
    result = await run(short, lambda: ask(1), short, short, lambda: ask(1), deadline=10.0)
    assert result.value == ["EffectTimeout", 9.0, "EffectTimeout", "EffectTimeout", 6.0]
    assert trio.current_time() == 5.0


async def test_one_that_is_tried_again_goes_on_in_the_next_scope(autojump_clock: MockClock) -> None:
    tries = []

    async def ask_badly(seconds: float) -> float:
        tries.append(trio.current_effective_deadline() - trio.current_time())
        await trio.sleep(seconds if len(tries) < 3 else 0.5)
        return seconds

    short = lambda: ask(5).with_policy(timeout=1, retries=3, backoff=1e-9)  # noqa: E731  # one line
    async with open_runtime(App(), handlers={"far.ask": ask_badly}, seed=1) as runtime:
        result = await runtime.run(flow_of(short, deadline=10.0))
    assert result.value == [5]
    assert tries == pytest.approx([1.0, 1.0, 1.0])
    told = [detail for kind, _, _, detail in result.timeline.records if kind in ("failed", "attempt")]
    assert [detail if isinstance(detail, int) else detail[0] for detail in told] == [1, 2, 2, 3]
    assert trio.current_time() == pytest.approx(2.5)


async def test_its_retries_are_as_many_as_in_a_scope_of_its_own(autojump_clock: MockClock) -> None:
    async with open_runtime(App(), seed=1) as runtime:
        result = await runtime.run(
            flow_of(lambda: ask(5).with_policy(timeout=1, retries=2, backoff=1e-9), lambda: ask(1), deadline=10.0)
        )
        (far,) = runtime.statistics().targets
    assert result.value == ["EffectTimeout", pytest.approx(7.0)]
    assert (far.attempts, far.failures, far.retries) == (4, 3, 2)


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_place_at_the_target_is_given_back(autojump_clock: MockClock, retries: int) -> None:
    app = App(targets={"far": Target(bulkhead=1)}, tenants={NOBODY: Tenant(effects=1)})
    short = lambda: ask(5).with_policy(timeout=1, retries=retries, backoff=1e-9)  # noqa: E731  # one line
    async with open_runtime(app, seed=1) as runtime:
        result = await runtime.run(flow_of(short, lambda: ask(1), short, deadline=10.0))
        (far,) = runtime.statistics().targets
    assert result.value == ["EffectTimeout", pytest.approx(10.0 - (1 + retries)), "EffectTimeout"]
    assert (far.attempts, far.failures, far.at_once, far.waiting) == (3 + 2 * retries, 2 + 2 * retries, 0, 0)
    assert kinds(result).count("settled") == 3
    assert kinds(result).count("failed") == 2 + 2 * retries


async def test_its_deadline_is_the_same_in_the_next_scope(autojump_clock: MockClock) -> None:
    result = await run(lambda: ask(5).with_policy(timeout=1), lambda: ask(5), deadline=3.0)
    assert (result.status, trio.current_time()) == ("deadline", 3.0)


async def test_one_that_is_cut_by_both_is_the_runs(autojump_clock: MockClock) -> None:
    """It was deaf when its own time was over, and is heard when that of the run is."""
    result = await run(lambda: ask_deafly(5).with_policy(timeout=1), lambda: ask(1), deadline=3.0)
    assert (result.status, trio.current_time()) == ("deadline", 5.0)


async def test_an_answer_that_comes_when_the_scope_is_used_up_is_an_answer(autojump_clock: MockClock) -> None:
    result = await run(lambda: ask_deafly(2).with_policy(timeout=1), lambda: ask(1), deadline=10.0)
    assert result.value == ["late, but here", 8.0]


async def test_an_error_of_a_handler_that_is_cut_is_its_outcome(autojump_clock: MockClock) -> None:
    result = await run(lambda: ask_clumsily().with_policy(timeout=1), lambda: ask(1), deadline=10.0)
    assert result.value == ["EffectError", 9.0]


async def test_a_handlers_nursery_is_cut_with_it(autojump_clock: MockClock) -> None:
    result = await run(lambda: ask_in_a_crowd().with_policy(timeout=1), lambda: ask(1), deadline=10.0)
    assert result.value == ["EffectTimeout", 9.0]


@pytest.mark.parametrize("seconds", [5.0, 1.0])
async def test_the_records_are_those_of_an_effect_in_a_scope_of_its_own(
    autojump_clock: MockClock, seconds: float
) -> None:
    """One beside another has a scope of its own; the other one here is over at once."""

    @step
    async def slow() -> First:
        return str(await tried(ask(seconds).with_policy(timeout=2)))

    @step
    async def quick() -> Second:
        return "at once"

    @step
    def end(first: First, second: Second) -> Done:
        return Done(first)

    lent = Flow("lent", [slow, quick, end], deadline=10.0)
    own = Flow("own", [parallel(slow, quick), end], deadline=10.0)
    async with open_runtime(App()) as runtime:
        told = []
        for flow in (lent, own):
            result = await runtime.run(flow)
            told.append([detail for kind, _, _, detail in result.timeline.records if kind in ("failed", "settled")])
    assert repr(told[0]) == repr(told[1])


async def test_what_is_counted_is_the_same(autojump_clock: MockClock) -> None:
    async with open_runtime(App()) as runtime:
        await runtime.run(flow_of(lambda: ask(5).with_policy(timeout=1), lambda: ask(1), deadline=10.0))
        (far,) = runtime.statistics().targets
    assert (far.attempts, far.failures) == (2, 1)


# ---- whoever else cuts it in the same moment ------------------------------------------------


@pytest.mark.parametrize("when", [0.5, 1.0, 1.5])
async def test_a_run_that_is_cancelled_is_over(autojump_clock: MockClock, when: float) -> None:
    ended: list[Result] = []
    flow = flow_of(lambda: ask(5).with_policy(timeout=1), lambda: ask(5), deadline=10.0)
    async with open_runtime(App(), observers=[ended.append]) as runtime, trio.open_nursery() as nursery:
        run_id = await nursery.start(partial(runtime.run, flow))
        await trio.sleep(when)
        runtime.cancel_nowait(run_id, "not wanted")
    assert (ended[0].status, trio.current_time()) == ("cancelled", when)


@pytest.mark.parametrize("when", [0.5, 1.0, 1.5])
async def test_a_host_that_cancels_gets_its_cancellation_back(autojump_clock: MockClock, when: float) -> None:
    ended: list[Result] = []
    flow = flow_of(lambda: ask(5).with_policy(timeout=1), lambda: ask(5), deadline=10.0)
    async with open_runtime(App(), observers=[ended.append]) as runtime:
        with trio.move_on_after(when) as scope:
            await runtime.run(flow)
    assert scope.cancelled_caught
    assert (ended[0].status, trio.current_time()) == ("cancelled", when)
    assert kinds(ended[0])[-3:] == ["ending", "cut", "ended"]


async def test_members_of_a_join_have_their_own_time(autojump_clock: MockClock) -> None:
    both = lambda: join.settle(ask(5).with_policy(timeout=1), ask(3).with_policy(timeout=4))  # noqa: E731  # one line
    result = await run(both, lambda: ask(1), deadline=10.0)
    one, other = result.value[0]
    assert isinstance(one.error, EffectTimeout)
    assert (other.value, result.value[1]) == (4.0, 7.0)
