"""One effect is performed as its policy says, and its outcome is never a guess."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from zerver import (
    INJECTED,
    App,
    BreakerPolicy,
    Capability,
    Done,
    Effect,
    Flow,
    IdempotencyKey,
    Policy,
    Target,
    effect,
    join,
    step,
)
from zerver.core.effects import EffectKind
from zerver.core.priorities import Priority
from zerver.core.tenants import Tenant
from zerver.effects import clock
from zerver.errors import (
    ConnectFailed,
    ConnectionLost,
    DefinitionError,
    EffectError,
    EffectRefused,
    EffectTimeout,
    OutcomeUnknown,
    Rejected,
)
from zerver.runtime import Result, Runtime, open_runtime
from zerver.testing import Scripted, fails, hangs, loses_reply, script, scripted, slow


@effect(kind="bank.rate", access="read")
async def rate() -> float:
    raise NotImplementedError


@effect(kind="bank.charge", access="write")
async def charge(*, key: IdempotencyKey) -> str:
    raise NotImplementedError


@effect(kind="bank.post", access="write")
async def post() -> str:
    raise NotImplementedError


@effect(kind="bank.find", access="read")
async def find(key: str) -> str | None:
    raise NotImplementedError


@effect(kind="bank.refund", access="write")
async def refund(made: str, *, key: IdempotencyKey) -> None:
    raise NotImplementedError


@effect(kind="bank.void", access="write")
async def void(of: str, *, key: IdempotencyKey) -> None:
    raise NotImplementedError


#: For steps that choose an effect in a way that no check before the start can see.
CHOSEN = {"post": post}


def chosen() -> Effect[str]:
    return CHOSEN["post"]()


EXACT = EffectKind("bank.exact", "write", exact=True)


def flow_of(make: Callable[[], Effect[Any]], **how: Any) -> Flow:
    @step
    async def ask() -> Done:
        return Done(await make())

    return Flow("asked", [ask], **how)


async def run(
    make: Callable[[], Effect[Any]], world: Scripted, app: App | None = None, **how: Any
) -> tuple[Result, Runtime]:
    async with open_runtime(app or App(), handlers=world, seed=1) as runtime:
        return await runtime.run(flow_of(make, **how)), runtime


def error_of(result: Result) -> EffectError:
    if not isinstance(result.cause, EffectError):
        raise AssertionError(f"the run was {result.status}: {result.cause!r}")
    return result.cause


def records(result: Result, kind: str) -> list[Any]:
    return [detail for name, _, _, detail in result.timeline.records if name == kind]


# ---- attempts -------------------------------------------------------------------------------


async def test_a_timeout_is_per_attempt(autojump_clock: MockClock) -> None:
    world = scripted({rate: slow(1)(1.5)})
    result, _ = await run(lambda: rate().with_policy(timeout=0.3, retries=2, backoff=0.1), world)
    assert isinstance(error_of(result), EffectTimeout)
    assert len(world.calls) == 3
    assert 0.9 <= trio.current_time() <= 0.9 + 0.1 + 0.2


async def test_backoff_is_jittered_and_follows_the_seed(autojump_clock: MockClock) -> None:
    waits = []
    for _ in range(2):
        result, _ = await run(
            lambda: rate().with_policy(retries=3, backoff=1.0, backoff_cap=1.5),
            scripted({rate: fails(3, ConnectFailed("down"))(1.5)}),
        )
        waits.append([wait for _, _, _, wait, _ in records(result, "failed")])
    assert waits[0] == waits[1]
    assert len(set(waits[0])) == 3
    assert all(0 <= wait <= bound for wait, bound in zip(waits[0], (1.0, 1.5, 1.5), strict=True))


async def test_a_definite_no_is_not_tried_again(autojump_clock: MockClock) -> None:
    world = scripted({charge: Rejected("poor")})
    result, _ = await run(lambda: charge().with_policy(retries=5), world)
    assert len(world.calls) == 1
    assert type(error_of(result)) is EffectError
    assert (result.status, result.unresolved) == ("failed", ())


async def test_no_retry_is_started_that_cannot_be_in_time(autojump_clock: MockClock) -> None:
    world = scripted({rate: ConnectFailed("down")})
    result, _ = await run(lambda: rate().with_policy(retries=50, backoff=10, backoff_cap=10), world, deadline=3)
    assert isinstance(error_of(result), EffectRefused)  # the last failure, told at once, and not the deadline's
    assert trio.current_time() < 3


async def test_a_run_is_not_a_retry_loop(autojump_clock: MockClock) -> None:
    world = scripted({rate: ConnectFailed("down")})
    app = App(targets={"bank": Target(breaker=None, retry_ratio=1000)})
    await run(lambda: rate().with_policy(retries=100, backoff=100, backoff_cap=1), world, app)
    assert len(world.calls) == 11


async def test_a_targets_budget_holds_back_retries_and_never_first_attempts(autojump_clock: MockClock) -> None:
    world = scripted({rate: ConnectFailed("down")})
    app = App(targets={"bank": Target(breaker=None)})
    async with open_runtime(app, handlers=world) as runtime:
        for _ in range(20):
            await runtime.run(flow_of(lambda: rate().with_policy(retries=5, backoff=0.000001)))
        (target,) = runtime.statistics().targets
    assert (target.attempts - target.retries, target.attempts) == (20, len(world.calls))
    assert 10 <= target.retries <= 13


async def test_policies_come_from_effect_flow_target_kind_and_app(autojump_clock: MockClock) -> None:
    app = App(policy=Policy(retries=1, timeout=9), targets={"bank": Target(policy=Policy(retries=2))})
    world = scripted({rate: ConnectFailed("down")})

    async def calls(make: Callable[[], Effect[Any]], **how: Any) -> int:
        before = len(world.calls)
        await run(make, world, app, **how)
        return len(world.calls) - before

    assert await calls(rate) == 3
    assert await calls(rate, policy=Policy(retries=0)) == 1
    assert await calls(lambda: rate().with_policy(retries=4), policy=Policy(retries=0)) == 5


async def test_an_instant_kind_is_performed_in_place(autojump_clock: MockClock) -> None:
    result, runtime = await run(clock.monotonic, scripted({}))
    assert result.value == trio.current_time()
    assert runtime.statistics().targets[0].attempts == 0


async def test_an_instant_kind_that_raises_is_a_failure(autojump_clock: MockClock) -> None:
    def broken() -> None:
        raise ValueError("odd")

    async with open_runtime(App(), handlers={"clock.monotonic": broken}) as runtime:
        assert error_of(await runtime.run(flow_of(clock.monotonic))).reason == "ValueError: odd"


# ---- breakers and bulkheads -----------------------------------------------------------------


async def test_a_breaker_opens_and_refuses_without_asking(autojump_clock: MockClock) -> None:
    app = App(targets={"bank": Target(breaker=BreakerPolicy(min_calls=5, pause=10))})
    world = scripted({rate: script([ConnectFailed("down")] * 5, then=1.5)})
    async with open_runtime(app, handlers=world, seed=1) as runtime:
        flow = flow_of(rate)
        for _ in range(5):
            await runtime.run(flow)
        error = error_of(await runtime.run(flow))
        assert isinstance(error, EffectRefused)
        assert error.reason == "the circuit breaker of 'bank' is open"
        assert len(world.calls) == 5
        assert runtime.statistics().targets[0].breaker == "open"
        await trio.sleep(11)
        for _ in range(3):
            assert (await runtime.run(flow)).ok
        assert runtime.statistics().targets[0].breaker == "closed"


async def test_a_definite_no_says_nothing_bad_about_the_target(autojump_clock: MockClock) -> None:
    app = App(targets={"bank": Target(breaker=BreakerPolicy(min_calls=3))})
    async with open_runtime(app, handlers=scripted({rate: Rejected("no")})) as runtime:
        for _ in range(10):
            await runtime.run(flow_of(rate))
        assert runtime.statistics().targets[0].breaker == "closed"


async def test_a_rollback_is_not_held_back_by_a_breaker(autojump_clock: MockClock) -> None:
    @step
    async def pay_and_fail() -> Done:
        await charge().compensate(refund)
        for _ in range(5):
            await rate().optional()
        raise ValueError("bug")

    app = App(targets={"bank": Target(breaker=BreakerPolicy(min_calls=3))})
    world = scripted({charge: "c1", refund: None, rate: ConnectFailed("down")})
    async with open_runtime(app, handlers=world) as runtime:
        result = await runtime.run(Flow("f", [pay_and_fail]))
        assert runtime.statistics().targets[0].breaker == "open"
    assert (result.status, result.unresolved) == ("defect", ())
    assert len(world.calls_of(refund)) == 1


async def test_where_nobody_else_says_a_place_is_waited_for_as_long_as_the_timeout(autojump_clock: MockClock) -> None:
    app = App(targets={"bank": Target(bulkhead=2)})
    world = scripted({rate: slow(1)(1.5), charge: slow(1)("c1")})
    results: list[Result] = []
    async with open_runtime(app, handlers=world) as runtime, trio.open_nursery() as nursery:

        async def one(make: Callable[[], Effect[Any]]) -> None:
            results.append(await runtime.run(flow_of(make)))

        nursery.start_soon(one, rate)
        nursery.start_soon(one, rate)
        await trio.sleep(0.1)
        nursery.start_soon(one, lambda: charge().with_policy(timeout=0.5))
        await trio.sleep(0.1)
        (target,) = runtime.statistics().targets
        assert (target.at_once, target.waiting) == (2, 1)
    timed_out = error_of(next(result for result in results if not result.ok))
    assert isinstance(timed_out, EffectTimeout)  # it was never sent: that is certain, and no doubt
    assert world.calls_of(charge) == []


async def at_once(runtime: Runtime, flow: Flow, count: int, **how: Any) -> list[Result]:
    """The results of so many runs of a flow, all begun together, in the order in which they ended."""
    results: list[Result] = []

    async def one() -> None:
        results.append(await runtime.run(flow, **how))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return results


async def test_a_place_is_waited_for_within_the_deadline_and_outside_the_timeout(autojump_clock: MockClock) -> None:
    app = App(targets={"bank": Target(bulkhead=2)})
    flow = flow_of(lambda: rate().with_policy(timeout=1.5), deadline=100.0)
    async with open_runtime(app, handlers=scripted({rate: slow(1)(1.5)})) as runtime:
        results = await at_once(runtime, flow, 20)
    assert all(result.ok for result in results)
    assert trio.current_time() == pytest.approx(10)


class Client:
    """A resource that performs three calls at once."""

    serves_at_once = 3

    def __init__(self) -> None:
        self.busy = self.most = 0


@asynccontextmanager
async def open_client() -> AsyncIterator[Client]:
    yield Client()


@effect(kind="shop.ask", access="read")
async def ask_shop(*, client: Client = INJECTED) -> int:
    client.busy += 1
    client.most = max(client.most, client.busy)
    await trio.sleep(0.5)
    client.busy -= 1
    return client.most


@pytest.mark.parametrize(("target", "most"), [(Target(), 3), (Target(bulkhead=None), 9), (Target(bulkhead=5), 5)])
async def test_a_bulkhead_is_as_large_as_what_its_handlers_use(
    autojump_clock: MockClock, target: Target, most: int
) -> None:
    app = App(capabilities=[Capability(name="shop", resources={Client: open_client})], targets={"shop": target})
    async with open_runtime(app) as runtime:
        results = await at_once(runtime, flow_of(lambda: ask_shop().with_policy(timeout=0.6), deadline=9.0), 9)
        assert runtime.resources[Client].most == most
        assert runtime.statistics().targets[0].limit == (None if most == 9 else most)
    assert all(result.ok for result in results)


async def test_who_cannot_be_served_in_time_is_told_at_once(autojump_clock: MockClock) -> None:
    app = App(targets={"bank": Target(bulkhead=1)})
    async with open_runtime(app, handlers=scripted({rate: slow(1)(1.5)})) as runtime:
        await runtime.run(flow_of(rate))  # a place is held for a second
        results = await at_once(runtime, flow_of(rate, deadline=3.5), 9)
        (target,) = runtime.statistics().targets
    refused = [result for result in results if not result.ok]
    assert len(refused) == 6
    assert {error_of(result).reason for result in refused} == {"no place at 'bank' would come free in time"}
    assert (target.refused, target.breaker) == (6, "closed")


async def test_the_higher_class_waits_less(autojump_clock: MockClock) -> None:
    app = App(targets={"bank": Target(bulkhead=1)})
    async with open_runtime(app, handlers=scripted({rate: slow(1)(1.5)})) as runtime, trio.open_nursery() as nursery:
        ended: list[str] = []

        async def one(priority: Priority) -> None:
            await runtime.run(flow_of(rate, deadline=100.0), priority=priority)
            ended.append(priority)

        nursery.start_soon(one, "default")
        await trio.sleep(0.1)
        for priority in ("batch", "batch", "default", "interactive"):
            nursery.start_soon(one, priority)
        await trio.sleep(0.1)
        assert runtime.statistics().targets[0].waiting_by_class == (1, 1, 2)
    assert ended == ["default", "interactive", "default", "batch", "batch"]


async def test_a_rollback_waits_for_its_place_before_everybody(autojump_clock: MockClock) -> None:
    @step
    async def pay_and_fail() -> Done:
        await charge().compensate(refund)
        raise ValueError("bug")

    app = App(targets={"bank": Target(bulkhead=1)})
    world = scripted({charge: slow(1)("c1"), refund: slow(1)(None), rate: slow(1)(1.5)})
    async with open_runtime(app, handlers=world) as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(partial(runtime.run, Flow("f", [pay_and_fail]), priority="batch"))
        await trio.sleep(0.1)
        for _ in range(3):
            nursery.start_soon(runtime.run, flow_of(rate, deadline=50.0))
    assert [call.kind for call in world.calls].index("bank.refund") == 2  # one had the place already


# ---- what a breaker is told -----------------------------------------------------------------


async def test_operations_have_breakers_of_their_own(autojump_clock: MockClock) -> None:
    app = App(targets={"bank": Target(breaker=BreakerPolicy(min_calls=5))})
    world = scripted({rate: ConnectFailed("down"), charge: "c1"})
    async with open_runtime(app, handlers=world) as runtime:
        for _ in range(6):
            await runtime.run(flow_of(rate))
        assert (await runtime.run(flow_of(charge))).ok
        (target,) = runtime.statistics().targets
    assert target.breaker == "open"
    assert {seen.name: seen.breaker for seen in target.operations} == {"bank.rate": "open", "bank.charge": "closed"}


@pytest.mark.parametrize(("lag", "state"), [(0.0, "open"), (0.02, "closed")])
async def test_a_target_that_has_become_slow_is_left_alone_unless_it_is_us(
    autojump_clock: MockClock, lag: float, state: str
) -> None:
    world = scripted({rate: script([slow(0.1)(1.5)] * 120, then=slow(1)(1.5))})
    async with open_runtime(App(), handlers=world) as runtime:
        runtime.interpreter.targets.loop_lag = lambda: lag
        for _ in range(120):
            await runtime.run(flow_of(rate))
        await trio.sleep(11)
        await at_once(runtime, flow_of(rate), 40)
        assert runtime.statistics().targets[0].breaker == state


# ---- why there is no further attempt --------------------------------------------------------


def why(result: Result) -> list[str]:
    return [why for _, _, _, _, why in records(result, "failed")]


async def test_a_spent_budget_is_said(autojump_clock: MockClock) -> None:
    app = App(targets={"bank": Target(breaker=None, retry_ratio=0.0)})
    async with open_runtime(app, handlers=scripted({rate: ConnectFailed("down")})) as runtime:
        flow = flow_of(lambda: rate().with_policy(retries=5, backoff=0.000001))
        results = [await runtime.run(flow) for _ in range(4)]
        assert runtime.statistics().targets[0].retry_tokens < 1
    assert why(results[0]) == [""] * 6
    assert why(results[-1])[-1] == "the retry budget of 'bank' is spent"


async def test_a_write_that_cannot_be_repeated_says_so(autojump_clock: MockClock) -> None:
    world = scripted({post: ConnectionLost("reset")})
    result, _ = await run(chosen, world, policy=Policy(retries=2))
    assert why(result) == ["it may have happened, and its handler takes no key"]


@pytest.mark.parametrize(
    ("app", "policy", "level"),
    [
        (App(), Policy(retries=1), "flow"),
        (App(targets={"bank": Target(policy=Policy(retries=1))}), None, "target"),
        (App(policy=Policy(retries=1)), Policy(timeout=1), "app"),
    ],
)
async def test_a_policy_that_cannot_be_kept_is_refused_at_the_start(
    app: App, policy: Policy | None, level: str
) -> None:
    @step
    async def send() -> Done:
        return Done(await post())

    @step
    async def send_once() -> Done:
        return Done(await post().with_policy(retries=0))

    async with open_runtime(app, handlers=scripted({post: "sent"})) as runtime:
        with pytest.raises(DefinitionError, match=f"the {level}'s policy retries, but its handler takes no key"):
            await runtime.run(Flow("f", [send], policy=policy))
        assert (await runtime.run(Flow("g", [send_once], policy=policy))).ok
        assert (await runtime.run(Flow("h", [send], policy=Policy(retries=0)))).ok


class Busy(Exception):
    retry_after = 3.0


async def test_who_asks_to_be_left_alone_is(autojump_clock: MockClock) -> None:
    make = lambda: rate().with_policy(retries=1)  # noqa: E731  # shared by both
    result, _ = await run(make, scripted({rate: fails(1, Busy())(1.5)}))
    assert (result.value, trio.current_time()) == (1.5, pytest.approx(3))
    result, _ = await run(make, scripted({rate: fails(1, Busy())(1.5)}), deadline=2.0)
    assert why(result) == ["it asked to be left alone for 3s"]


# ---- tenants --------------------------------------------------------------------------------


async def test_a_tenant_bounds_what_each_run_has_in_flight(autojump_clock: MockClock) -> None:
    busy, most = 0, 0

    async def count() -> float:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await trio.sleep(1)
        busy -= 1
        return 1.5

    @step
    async def many() -> Done:
        nested = join.all(join.all(rate(), rate()), join.all(rate(), join.hedge(rate(), after=9)))
        return Done(await nested)

    app = App(tenants={"small": Tenant(effects=2)})
    async with open_runtime(app, handlers={"bank.rate": count}) as runtime:
        result = await runtime.run(Flow("f", [many]), tenant="small")
    assert (result.ok, most) == (True, 2)
    assert trio.current_time() == pytest.approx(2)


# ---- writes ---------------------------------------------------------------------------------


async def test_all_attempts_carry_one_key(autojump_clock: MockClock) -> None:
    world = scripted({charge: fails(2, ConnectionLost("reset"))("c1")})
    result, _ = await run(lambda: charge().with_policy(retries=2), world)
    assert result.value == "c1"
    assert {call.key for call in world.calls} == {f"{result.run_id}:ask:1"}


async def test_one_attempt_in_doubt_puts_all_in_doubt(autojump_clock: MockClock) -> None:
    world = scripted({charge: script([ConnectionLost("reset"), Rejected("closed")])})
    result, _ = await run(lambda: charge().with_policy(retries=1), world)
    error = error_of(result)
    assert isinstance(error, OutcomeUnknown)
    assert error.reason == "an earlier attempt may have happened; the last one: closed"
    assert [entry.call.key for entry in result.unresolved] == [f"{result.run_id}:ask:1"]


async def test_a_write_without_a_key_is_not_tried_again_in_doubt(autojump_clock: MockClock) -> None:
    world = scripted({post: ConnectionLost("reset")})
    async with open_runtime(App(policy=Policy(retries=3)), handlers=world) as runtime:
        result = await runtime.run(flow_of(chosen))
    assert len(world.calls) == 1
    assert len(result.unresolved) == 1


async def test_an_exact_kind_that_is_cut_has_not_happened(autojump_clock: MockClock) -> None:
    world = scripted({"bank.exact": hangs()(None)})
    result, _ = await run(lambda: Effect(EXACT).with_policy(timeout=1), world)
    assert isinstance(error_of(result), EffectTimeout)
    assert result.unresolved == ()


async def test_doubt_is_resolved_by_asking(autojump_clock: MockClock) -> None:
    make = lambda: charge().with_policy(timeout=1).compensate(refund, resolve=find)  # noqa: E731  # shared by both
    world = scripted({charge: loses_reply()("c1"), find: "c1", refund: None})
    result, _ = await run(make, world)
    assert (result.value, result.unresolved) == ("c1", ())
    assert world.calls_of(find)[0].args == (f"{result.run_id}:ask:1",)

    world = scripted({charge: hangs()("c1"), find: None, refund: None})
    result, _ = await run(make, world)
    assert error_of(result).reason == "it did not happen: timed out after 1000ms"
    assert (result.unresolved, world.calls_of(refund)) == ((), [])


async def test_doubt_that_nobody_can_resolve_is_undone_by_key(autojump_clock: MockClock) -> None:
    world = scripted({charge: hangs()("c1"), find: ConnectFailed("down"), void: None})
    result, _ = await run(lambda: charge().with_policy(timeout=1).compensate(resolve=find, by_key=void), world)
    assert isinstance(error_of(result), OutcomeUnknown)
    assert world.calls_of(void)[0].args == (f"{result.run_id}:ask:1",)
    assert result.unresolved == ()


async def test_doubt_that_cannot_be_undone_either_is_reported(autojump_clock: MockClock) -> None:
    world = scripted({charge: hangs()("c1"), refund: None})
    result, runtime = await run(lambda: charge().with_policy(timeout=1).compensate(refund), world)
    assert [entry.state for entry in result.unresolved] == ["unresolved"]
    assert world.calls_of(refund) == []
    assert runtime.statistics().unresolved == 1


async def test_a_write_that_is_cut_by_the_deadline_is_resolved_in_the_rollback(autojump_clock: MockClock) -> None:
    world = scripted({charge: loses_reply()("c1"), find: slow(1)("c1"), refund: slow(1)(None)})
    result, _ = await run(lambda: charge().compensate(refund, resolve=find), world, deadline=2)
    assert (result.status, result.unresolved) == ("deadline", ())
    assert world.calls_of(refund)[0].args == ("c1",)
    assert trio.current_time() == pytest.approx(4)


async def test_a_compensation_is_tried_until_it_works(autojump_clock: MockClock) -> None:
    @step
    async def pay_and_fail() -> Done:
        await charge().compensate(refund)
        raise ValueError("bug")

    world = scripted({charge: "c1", refund: fails(6, ConnectionLost("reset"))(None)})
    async with open_runtime(App(), handlers=world) as runtime:
        result = await runtime.run(Flow("f", [pay_and_fail]))
    assert result.unresolved == ()
    assert [call.attempt for call in world.calls_of(refund)] == [1, 2, 3, 4, 5, 6, 7]
    assert {call.key for call in world.calls_of(refund)} == {f"{result.run_id}:pay_and_fail:1.undo"}


async def test_a_rollback_ends_when_its_time_is_over(autojump_clock: MockClock) -> None:
    @step
    async def pay_and_fail() -> Done:
        await charge().compensate(refund)
        raise ValueError("bug")

    world = scripted({charge: "c1", refund: hangs()(None)})
    async with open_runtime(App(), handlers=world) as runtime:
        result = await runtime.run(Flow("f", [pay_and_fail], undo_deadline=12))
    assert len(result.unresolved) == 1
    assert trio.current_time() == pytest.approx(12)


# ---- cancellation ---------------------------------------------------------------------------


async def test_cancelled_between_attempts_the_doubt_is_kept(autojump_clock: MockClock) -> None:
    ended: list[Result] = []
    world = scripted({charge: script([ConnectionLost("reset")], then="c1"), find: "c1", refund: None})

    def pay() -> Effect[str]:
        return charge().with_policy(retries=1, backoff=1000, backoff_cap=1000).compensate(refund, resolve=find)

    opened = open_runtime(App(), handlers=world, observers=[ended.append], seed=3)
    async with opened as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run, flow_of(pay))
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert (ended[0].status, ended[0].unresolved) == ("cancelled", ())
    assert len(world.calls_of(charge)) == 1
    assert world.calls_of(refund)[0].args == ("c1",)


async def test_an_exact_kind_that_is_cut_when_it_is_tried_again_is_in_the_doubt_of_the_first_attempt(
    autojump_clock: MockClock,
) -> None:
    ended: list[Result] = []
    keyed = EffectKind[[], str]("bank.keyed", "write", takes_key=True, exact=True)
    world = scripted({"bank.keyed": script([ConnectionLost("reset"), hangs()("late")]), find: "c1", refund: None})

    def pay() -> Effect[str]:
        return keyed().with_policy(retries=1, backoff=0.1).compensate(refund, resolve=find)

    opened = open_runtime(App(), handlers=world, observers=[ended.append], seed=3)
    async with opened as runtime, trio.open_nursery() as nursery:
        nursery.start_soon(runtime.run, flow_of(pay))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert (ended[0].status, ended[0].unresolved) == ("cancelled", ())
    assert world.calls_of(refund)[0].args == ("c1",)


async def test_percentiles_are_kept_per_target(autojump_clock: MockClock) -> None:
    async with open_runtime(App(), handlers=scripted({rate: slow(0.2)(1.5)})) as runtime:
        flow = flow_of(rate)
        for _ in range(100):
            await runtime.run(flow)
        (target,) = runtime.statistics().targets
    assert target.p95 == pytest.approx(0.2)
