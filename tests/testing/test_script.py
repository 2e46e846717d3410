"""Scripted handlers stand where real ones would: every call is recorded, and faults do what they say."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
import trio
from trio.testing import MockClock

from zerver import (
    INJECTED,
    App,
    CallInfo,
    Cancelled,
    Capability,
    Done,
    Effect,
    Failure,
    Flow,
    IdempotencyKey,
    Slot,
    Success,
    Unknown,
    effect,
    step,
)
from zerver.effects import clock, random, sql
from zerver.errors import ConnectFailed, ConnectionLost, DefinitionError, EffectError, OutcomeUnknown, Rejected
from zerver.runtime import Result, open_runtime
from zerver.testing import Unscripted, fails, flaky, hangs, loses_reply, script, scripted, slow

Paid = Annotated[str, Slot("paid")]


class Ledger:
    """A resource, to be injected."""

    def __init__(self) -> None:
        self.keys: list[str] = []


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, note: str = "", key: IdempotencyKey = INJECTED, ledger: Ledger = INJECTED) -> str:
    await trio.sleep(0.1)
    ledger.keys.append(key)
    return f"c{cents}"


@effect(kind="bank.rate", access="read")
async def rate(currency: str) -> float:
    raise NotImplementedError


def flow_of(make: Callable[[], Effect[Any]]) -> Flow:
    @step
    async def ask() -> Done:
        return Done(await make())

    return Flow("asked", [ask])


async def run(make: Callable[[], Effect[Any]], world: Any, app: App | None = None) -> Result:
    async with open_runtime(app or App(), handlers=world, seed=1) as runtime:
        return await runtime.run(flow_of(make))


def with_ledger(ledger: Ledger) -> App:
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def open_ledger() -> Any:
        yield ledger

    return App(capabilities=[Capability(name="ledger", resources={Ledger: open_ledger})])


# ---- answers --------------------------------------------------------------------------------


async def test_answers_and_their_record(autojump_clock: MockClock) -> None:
    world = scripted({charge: "c1", rate: 1.5})
    result = await run(lambda: charge(500, note="tea"), world)
    assert result.unwrap() == "c1"
    (call,) = world.calls
    assert (call.kind, call.args, dict(call.kwargs), call.attempt) == ("bank.charge", (500,), {"note": "tea"}, 1)
    assert call.key == f"{result.run_id}:ask:1"
    assert call.info.step == "ask"
    assert (world.calls_of(charge), world.calls_of("bank.rate")) == ([call], [])


async def test_kinds_of_capabilities_need_no_capability(autojump_clock: MockClock) -> None:
    assert (await run(lambda: sql.fetch_value(int, "select 1"), scripted({sql.fetch_value: 7}))).unwrap() == 7


async def test_instant_kinds_can_be_scripted_too(autojump_clock: MockClock) -> None:
    assert (await run(clock.now, scripted({clock.now: "noon"}))).unwrap() == "noon"
    assert (await run(random.uuid, scripted({"random.uuid": slow(1)("id")}))).unwrap() == "id"


async def test_functions_get_the_arguments_and_may_be_async(autojump_clock: MockClock) -> None:
    async def later(cents: int) -> str:
        await trio.sleep(cents)
        return f"late {cents}"

    assert (await run(lambda: charge(5), scripted({charge: lambda cents: f"c{cents}"}))).unwrap() == "c5"
    assert (await run(lambda: charge(5), scripted({charge: later}))).unwrap() == "late 5"
    assert trio.current_time() >= 5


async def test_functions_get_the_key_if_they_ask_for_it(autojump_clock: MockClock) -> None:
    async def by_key(cents: int, *, key: IdempotencyKey) -> str:
        return key

    def by_info(cents: int, *, info: CallInfo) -> str:
        return f"{info.step} {info.attempt}"

    world = scripted({charge: script([by_key, by_info, lambda cents: "plain"])})
    result = await run(lambda: charge(5), world)
    assert result.value == f"{result.run_id}:ask:1"
    assert (await run(lambda: charge(5), world)).value == "ask 1"
    assert (await run(lambda: charge(5), world)).value == "plain"
    assert [dict(call.kwargs) for call in world.calls] == [{}, {}, {}]


async def test_exceptions_are_judged_by_the_runtime(autojump_clock: MockClock) -> None:
    refused = await run(lambda: charge(5).with_policy(retries=2), scripted({charge: Rejected("poor")}))
    assert isinstance(refused.cause, EffectError)
    assert refused.cause.reason == "poor"
    world = scripted({charge: script([ConnectionLost("reset"), "c1"])})
    assert (await run(lambda: charge(5).with_policy(retries=1), world)).value == "c1"
    assert [call.attempt for call in world.calls] == [1, 2]
    assert len({call.key for call in world.calls}) == 1


async def test_outcomes_are_answers(autojump_clock: MockClock) -> None:
    error = EffectError("bank.charge", "odd")

    async def outcome_of(answer: object) -> object:
        return (await run(lambda: charge(5).outcome(), scripted({charge: answer}))).value

    assert await outcome_of(Success("c1")) == Success("c1")
    assert isinstance(await outcome_of(Failure(error)), Failure)
    doubt = await outcome_of(Unknown(error, IdempotencyKey("k")))
    assert isinstance(doubt, Unknown)
    assert isinstance(doubt.error, OutcomeUnknown)
    assert "the runtime's to say" in str(await outcome_of(Cancelled("x")))


async def test_a_script_that_is_used_up_fails_at_once_and_says_so(autojump_clock: MockClock) -> None:
    world = scripted({charge: script([ConnectFailed("down")])})
    result = await run(lambda: charge(5).with_policy(retries=5), world)
    assert len(world.calls) == 2
    assert isinstance(result.cause, EffectError)
    assert isinstance(result.cause.cause, Unscripted)
    assert "effect 'bank.charge': its script has 1 answers, and this is call 2" in str(result.cause)


def test_slips_are_refused_when_the_world_is_made() -> None:
    with pytest.raises(TypeError, match="class Rejected: give an exception"):
        scripted({charge: Rejected})
    with pytest.raises(TypeError, match="is no kind of effect"):
        scripted({flow_of: 1})
    with pytest.raises(
        DefinitionError, match=r"'sql.execute' has no handler of its own.*\n.*handlers\['sql.execute'\]"
    ):
        scripted({sql.execute: sql.EXECUTE})


async def test_a_kinds_own_handler_can_be_used_and_is_recorded(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    world = scripted({charge: charge})
    result = await run(lambda: charge(5, note="x"), world, with_ledger(ledger))
    assert result.unwrap() == "c5"
    assert ledger.keys == [world.calls[0].key]
    assert dict(world.calls[0].kwargs) == {"note": "x"}


# ---- faults ---------------------------------------------------------------------------------


async def test_slow(autojump_clock: MockClock) -> None:
    await run(lambda: rate("eur"), scripted({rate: slow(3)(1.5)}))
    assert trio.current_time() == pytest.approx(3)


async def test_fails_then_goes_through(autojump_clock: MockClock) -> None:
    world = scripted({charge: fails(2, ConnectFailed("down"))("c1")})
    assert (await run(lambda: charge(5).with_policy(retries=2), world)).value == "c1"
    assert [call.attempt for call in world.calls] == [1, 2, 3]


async def test_hangs_until_a_timeout(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    world = scripted({charge: hangs(times=1)(charge)})
    make = lambda: charge(5).with_policy(timeout=1, retries=1)  # noqa: E731  # it reads better beside its twin below
    assert (await run(make, world, with_ledger(ledger))).value == "c5"
    assert len(ledger.keys) == 1


async def test_a_lost_reply_was_performed(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    world = scripted({charge: loses_reply(times=1)(charge)})
    result = await run(lambda: charge(5).with_policy(timeout=1, retries=1), world, with_ledger(ledger))
    assert result.value == "c5"
    assert len(ledger.keys) == 2
    assert len(set(ledger.keys)) == 1


async def test_faults_compose_in_order(autojump_clock: MockClock) -> None:
    ledger = Ledger()
    handler = slow(2)(fails(1, ConnectFailed("down"))(loses_reply(times=1)(charge)))
    make = lambda: charge(5).with_policy(timeout=5, retries=2)  # noqa: E731  # as above
    result = await run(make, scripted({charge: handler}), with_ledger(ledger))
    kinds = [detail[1].reason for kind, _, _, detail in result.timeline.records if kind == "failed"]
    assert kinds == ["ConnectFailed: down", "timed out after 5000ms"]
    assert len(ledger.keys) == 2


async def test_flaky_is_the_same_for_the_same_seed(autojump_clock: MockClock) -> None:
    async def pattern(seed: int) -> str:
        handler = flaky(0.5, seed=seed)("ok")
        seen = ""
        for _ in range(40):
            try:
                await handler()
                seen += "."
            except ConnectFailed:
                seen += "x"
        return seen

    assert await pattern(1) == await pattern(1) != await pattern(2)
    assert {"x", "."} == set(await pattern(1))
    assert await flaky(0.0)("ok")() == "ok"
    with pytest.raises(ConnectFailed):
        await flaky(1.0)("ok")()
    with pytest.raises(ValueError, match="between 0 and 1"):
        flaky(1.5)


async def test_flaky_takes_any_fault(autojump_clock: MockClock) -> None:
    handler = flaky(1.0, slow(4))("ok")
    assert await handler() == "ok"
    assert trio.current_time() == pytest.approx(4)


async def test_one_fault_counts_each_handler_by_itself(autojump_clock: MockClock) -> None:
    fault = fails(1, ConnectFailed("down"))
    one, two = fault("a"), fault("b")
    for handler, value in ((one, "a"), (two, "b")):
        with pytest.raises(ConnectFailed):
            await handler()
        assert await handler() == value
