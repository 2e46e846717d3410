"""A join starts its members, cancels the losers, tells the saga about them, and leaves nothing running."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from zerver import INJECTED, App, Done, Effect, Failure, Flow, IdempotencyKey, Success, Target, effect, join, step
from zerver.core.effects import Unknown
from zerver.errors import ConnectFailed, EffectError, EffectTimeout, JoinFailed, OutcomeUnknown, Rejected
from zerver.runtime import Result, open_runtime
from zerver.testing import Scripted, fails, hangs, loses_reply, script, scripted, seeded, slow


@effect(kind="bank.rate", access="read")
async def rate(seconds: float) -> str:
    raise NotImplementedError


@effect(kind="bank.charge", access="write")
async def charge(seconds: float, *, key: IdempotencyKey = INJECTED) -> str:
    raise NotImplementedError


@effect(kind="bank.find", access="read")
async def find(key: str) -> str | None:
    raise NotImplementedError


@effect(kind="bank.refund", access="write")
async def refund(made: str, *, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


async def after(seconds: float) -> str:
    """Negative seconds: fail after so long."""
    await trio.sleep(abs(seconds))
    if seconds < 0:
        raise Rejected(f"after {-seconds}")
    return f"at {seconds}"


def world(**more: object) -> Scripted:
    """The bank; more: other answers, by verb."""
    answers: dict[str, object] = {"rate": after, "charge": after, "refund": None, "find": None}
    return scripted({f"bank.{verb}": answer for verb, answer in (answers | more).items()})


def buy(seconds: float) -> Effect[str]:
    return charge(seconds).compensate(refund, resolve=find)


async def run(make: Callable[[], Effect[Any]], handlers: Scripted | None = None, **how: Any) -> Result:
    @step
    async def ask() -> Done:
        return Done(await make())

    async with open_runtime(App(), handlers=world() if handlers is None else handlers, seed=1) as runtime:
        return await runtime.run(Flow("asked", [ask], **how))


def kinds(result: Result) -> list[str]:
    return [record[0] for record in result.timeline.records]


# ---- who wins -------------------------------------------------------------------------------


async def test_all_waits_for_the_slowest_and_keeps_the_order(autojump_clock: MockClock) -> None:
    assert (await run(lambda: join.all(rate(3), rate(1), rate(2)))).value == ("at 3", "at 1", "at 2")
    assert trio.current_time() == pytest.approx(3)


async def test_all_fails_at_once_and_cancels_the_rest(autojump_clock: MockClock) -> None:
    result = await run(lambda: join.all(rate(10), rate(-1)))
    assert isinstance(result.cause, EffectError)
    assert result.cause.reason == "after 1"
    assert trio.current_time() == pytest.approx(1)


async def test_settle_never_fails(autojump_clock: MockClock) -> None:
    one, two = (await run(lambda: join.settle(rate(2), rate(-1)))).value
    assert one == Success("at 2")
    assert isinstance(two, Failure)


async def test_race_gives_the_first_success_and_cancels_the_others(autojump_clock: MockClock) -> None:
    assert (await run(lambda: join.race(rate(9), rate(2), rate(-1)))).value == "at 2"
    assert trio.current_time() == pytest.approx(2)
    assert isinstance((await run(lambda: join.race(rate(-2), rate(-1)))).cause, JoinFailed)


async def test_quorum_gives_the_first_k_in_argument_order(autojump_clock: MockClock) -> None:
    assert (await run(lambda: join.quorum(2, rate(2), rate(9), rate(1)))).value == ("at 2", "at 1")
    assert trio.current_time() == pytest.approx(2)
    assert isinstance((await run(lambda: join.quorum(2, rate(-1), rate(9), rate(-1)))).cause, JoinFailed)
    assert trio.current_time() == pytest.approx(3)


async def test_an_empty_join_is_decided_at_once(autojump_clock: MockClock) -> None:
    assert (await run(join.all)).value == ()


async def test_joins_nest(autojump_clock: MockClock) -> None:
    result = await run(lambda: join.all(join.race(rate(2), rate(1)), join.quorum(1, rate(3), rate(4))))
    assert result.value == ("at 1", ("at 3",))
    assert trio.current_time() == pytest.approx(3)


# ---- losers ---------------------------------------------------------------------------------


async def test_a_loser_that_may_have_committed_is_asked_for_and_undone(autojump_clock: MockClock) -> None:
    handlers = world(find="at 2")
    result = await run(lambda: join.race(buy(1), buy(2)), handlers)
    assert (result.value, result.unresolved) == ("at 1", ())
    assert [call.args for call in handlers.calls_of(refund)] == [("at 2",)]
    assert handlers.calls_of(find)[0].args == (f"{result.run_id}:ask:1.1",)


async def test_a_loser_that_has_committed_is_undone_though_the_run_is_done(autojump_clock: MockClock) -> None:
    handlers = world()
    result = await run(lambda: join.race(join.all(buy(1), rate(9)), rate(2)), handlers)
    assert (result.status, result.value) == ("done", "at 2")
    assert [call.args for call in handlers.calls_of(refund)] == [("at 1",)]


async def test_winners_are_kept(autojump_clock: MockClock) -> None:
    handlers = world()
    result = await run(lambda: join.all(buy(1), buy(2)), handlers)
    assert result.ok
    assert handlers.calls_of(refund) == []


async def test_a_failed_join_undoes_what_its_members_wrote(autojump_clock: MockClock) -> None:
    handlers = world()
    result = await run(lambda: join.all(buy(1), rate(-2)).optional(), handlers)
    assert result.ok
    assert [call.args for call in handlers.calls_of(refund)] == [("at 1",)]


# ---- time -----------------------------------------------------------------------------------


async def test_a_joins_timeout_bounds_the_whole_of_it(autojump_clock: MockClock) -> None:
    handlers = world(find=None)
    result = await run(lambda: join.all(buy(1), buy(9)).with_policy(timeout=2), handlers)
    assert isinstance(result.cause, EffectTimeout)
    assert result.cause.reason == "timed out after 2000ms"
    assert [call.args for call in handlers.calls_of(refund)] == [("at 1",)]
    assert result.unresolved == ()


async def test_the_deadline_cuts_members(autojump_clock: MockClock) -> None:
    result = await run(lambda: join.all(rate(9), rate(8)), deadline=1.0)
    assert result.status == "deadline"
    assert kinds(result).count("cut") >= 2
    assert trio.current_time() == pytest.approx(1)


# ---- hedges ---------------------------------------------------------------------------------


async def test_a_fast_first_attempt_is_alone(autojump_clock: MockClock) -> None:
    handlers = world()
    result = await run(lambda: join.hedge(rate(1), after=2), handlers)
    assert (result.value, len(handlers.calls)) == ("at 1", 1)
    assert "hedged" not in kinds(result)


async def test_a_slow_one_is_asked_again_and_the_first_answer_wins(autojump_clock: MockClock) -> None:
    handlers = world(rate=script([slow(9)("first"), slow(1)("second")]))
    result = await run(lambda: join.hedge(rate(0), after=2), handlers)
    assert (result.value, trio.current_time()) == ("second", pytest.approx(3))
    assert len({call.key for call in handlers.calls}) == 1


async def test_no_more_attempts_than_the_limit(autojump_clock: MockClock) -> None:
    handlers = world(rate=slow(9)("late"))
    result = await run(lambda: join.hedge(rate(0), after=1, limit=3), handlers)
    assert (result.value, len(handlers.calls), trio.current_time()) == ("late", 3, pytest.approx(9))


async def test_a_percentile_hedges_only_when_enough_is_known(autojump_clock: MockClock) -> None:
    answers = script([slow(0.1)("quick")] * 100 + [slow(9)("stuck")], then="again")
    handlers = world(rate=answers)

    @step
    async def ask() -> Done:
        return Done(await join.hedge(rate(0), after="p95"))

    async with open_runtime(App(), handlers=handlers) as runtime:
        flow = Flow("asked", [ask])
        for _ in range(100):
            await runtime.run(flow)
        assert len(handlers.calls) == 100
        began = trio.current_time()
        assert (await runtime.run(flow)).value == "again"
        assert trio.current_time() - began == pytest.approx(0.1)


async def test_the_attempts_of_a_hedge_are_numbered_in_a_row_and_its_retries_with_them(
    autojump_clock: MockClock,
) -> None:
    handlers = world(rate=script([slow(9)("late"), fails(1, ConnectFailed("down"))("never"), "third"]))
    result = await run(lambda: join.hedge(rate(0).with_policy(retries=2, backoff=0.01), after=2), handlers)
    assert (result.value, [call.attempt for call in handlers.calls]) == ("third", [1, 2, 3])
    numbers = [record[3] for record in result.timeline.records if record[0] in ("hedged", "attempt")]
    assert numbers == [2, 3]
    assert [record[3][0] for record in result.timeline.records if record[0] == "failed"] == [2]


def held(result: Result) -> list[tuple[float, str]]:
    """When, in seconds since the start, and why."""
    records = result.timeline.records
    return [((at - records[0][1]) / 1e9, why) for kind, at, _, why in records if kind == "held"]


async def test_what_holds_a_hedge_back_is_told_and_looked_at_again(autojump_clock: MockClock) -> None:
    lag = 1.0

    @step
    async def ask() -> Done:
        return Done(await join.hedge(rate(0), after=1))

    async def recover() -> None:
        nonlocal lag
        await trio.sleep(5)
        lag = 0.0

    handlers = world(rate=script([slow(99)("late"), "again"]))
    async with open_runtime(App(), handlers=handlers) as runtime, trio.open_nursery() as nursery:
        runtime.interpreter.targets.loop_lag = lambda: lag
        nursery.start_soon(recover)
        result = await runtime.run(Flow("asked", [ask]))
        (seen,) = (target for target in runtime.interpreter.targets.statistics() if target.name == "bank")
    assert (result.value, trio.current_time()) == ("again", pytest.approx(8))  # looked at after 1, 2, 4 and 8 seconds
    assert held(result) == [(pytest.approx(1), "the event loop lags")]
    assert kinds(result).count("hedged") == 1
    assert (seen.hedges, seen.hedges_held_back) == (1, 1)


async def test_a_full_bulkhead_holds_a_hedge_back_until_a_place_is_free(autojump_clock: MockClock) -> None:
    stuck = True

    async def answer(seconds: float) -> str:
        nonlocal stuck
        seconds, stuck = (99 if stuck and not seconds else seconds), stuck and bool(seconds)
        return await after(seconds)

    @step
    async def ask() -> Done:
        return Done(await join.all(join.hedge(rate(0), after=1), rate(3)))

    app = App(targets={"bank": Target(bulkhead=2)})
    async with open_runtime(app, handlers=world(rate=answer)) as runtime:
        result = await runtime.run(Flow("asked", [ask]))
    assert result.value == ("at 0", "at 3")
    assert trio.current_time() == pytest.approx(4)
    assert held(result) == [(pytest.approx(1), "its bulkhead is full")]


async def test_an_open_breaker_holds_a_hedge_back(autojump_clock: MockClock) -> None:
    handlers = world(rate=slow(9)("late"))

    @step
    async def ask() -> Done:
        return Done(await join.hedge(rate(0), after=1))

    async with open_runtime(App(), handlers=handlers) as runtime:

        async def break_it() -> None:
            await trio.sleep(0.5)
            breaker = runtime.interpreter.targets.get("bank").operation("bank.rate").breaker
            while breaker is not None and breaker.state == "closed":
                breaker.record(0, True, False, trio.current_time(), 0.5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(break_it)
            result = await runtime.run(Flow("asked", [ask]))
    assert (result.value, len(handlers.calls)) == ("late", 1)
    assert held(result) == [(pytest.approx(1), "its breaker is open")]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_in_a_closed_loop_strays_are_hedged_and_a_slow_target_is_not(
    seed: int, autojump_clock: MockClock
) -> None:
    """Ten clients ask all the time; one answer in a hundred takes a hundred times as long. Then all of them do."""
    with seeded(seed):
        await closed_loop()


async def closed_loop() -> None:
    asked, slower, told = 0, 1.0, Counter[str]()

    async def answer(seconds: float) -> str:
        nonlocal asked
        asked += 1
        await trio.sleep(slower * (1.0 if asked % 100 == 0 else 0.01 * (1 + asked * 7 % 13 / 100)))
        return "an answer"

    @step
    async def ask() -> Done:
        return Done(await join.hedge(rate(0), after="p95"))

    flow, took = Flow("asked", [ask]), list[float]()
    app = App(targets={"bank": Target(breaker=None)})  # which would end the slowness by refusing
    async with open_runtime(app, handlers=world(rate=answer), seed=1) as runtime:
        state = runtime.interpreter.targets.get("bank")

        async def client() -> None:
            while True:
                began = trio.current_time()
                result = await runtime.run(flow)
                assert result.ok
                took.append(trio.current_time() - began)
                told.update(why for _, why in held(result))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(client)
            await trio.sleep(5)
            warm, firsts, hedges = len(took), state.firsts, state.hedges
            await trio.sleep(8)
            strays = sum(seconds > 0.1 for seconds in took[warm:])
            assert strays < 0.003 * (len(took) - warm), "of a hundredth; the budget does not pay for two at once"
            assert hedges <= state.hedges <= 5 + 0.02 * state.firsts
            assert state.hedges - hedges > 0.008 * (state.firsts - firsts)
            slower, hedges = 30.0, state.hedges
            told.clear()
            await trio.sleep(15)
            assert state.hedges - hedges <= 5
            assert told["all of it is slow"] > 100
            nursery.cancel_scope.cancel()


async def test_a_hedged_write_commits_once(autojump_clock: MockClock) -> None:
    handlers = world(charge=slow(3)("paid"))
    result = await run(lambda: join.hedge(buy(0), after=1), handlers)
    assert (result.value, kinds(result).count("committed")) == ("paid", 1)
    assert len({call.key for call in handlers.calls_of(charge)}) == 1
    assert handlers.calls_of(refund) == []


async def test_a_hedged_write_whose_replies_are_lost_is_resolved(autojump_clock: MockClock) -> None:
    handlers = world(charge=loses_reply()("paid"), find="paid")
    result = await run(lambda: join.hedge(buy(0).with_policy(timeout=2), after=1), handlers)
    assert (result.value, result.unresolved) == ("paid", ())


async def test_a_hedged_write_that_times_out_is_one_write_in_doubt(autojump_clock: MockClock) -> None:
    handlers = world(charge=hangs()("paid"), find=ConnectFailed("down"))
    result = await run(lambda: join.hedge(buy(0), after=1).with_policy(timeout=3), handlers)
    assert isinstance(result.cause, OutcomeUnknown)
    assert kinds(result).count("doubted") == 1
    assert len(result.unresolved) == 1


async def test_a_hedged_write_cut_by_the_deadline_is_one_write_in_doubt(autojump_clock: MockClock) -> None:
    handlers = world(charge=hangs()("paid"), find="paid")
    result = await run(lambda: join.hedge(buy(0), after=1), handlers, deadline=3.0)
    assert (result.status, result.unresolved) == ("deadline", ())
    assert kinds(result).count("doubted") == 1
    assert len(handlers.calls_of(refund)) == 1


async def test_a_hedged_read_is_never_in_doubt(autojump_clock: MockClock) -> None:
    late = await run(lambda: join.hedge(rate(9), after=1), deadline=3.0)
    assert (late.status, late.unresolved) == ("deadline", ())
    timed_out = await run(lambda: join.hedge(rate(9), after=1).with_policy(timeout=3))
    assert isinstance(timed_out.cause, EffectTimeout)
    assert timed_out.unresolved == ()


async def test_a_hedge_is_against_slowness_and_not_against_failure(autojump_clock: MockClock) -> None:
    handlers = world(rate=fails(1, Rejected("no"))("yes"))
    result = await run(lambda: join.hedge(rate(0), after=1), handlers)
    assert isinstance(result.cause, EffectError)
    assert len(handlers.calls) == 1


async def test_a_hedge_takes_the_form_of_what_it_hedges(autojump_clock: MockClock) -> None:
    handlers = world(charge=hangs()("x"))
    assert (await run(lambda: join.hedge(rate(-1).optional(), after=1))).value is None
    outcome = (await run(lambda: join.hedge(charge(0).outcome(), after=1).with_policy(timeout=2), handlers)).value
    assert isinstance(outcome, Unknown)
