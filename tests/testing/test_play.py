"""A step is played without an event loop: it gets what the runtime would give it, and what it did is told."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import attrs
import pytest
import trio

from zerver import (
    INJECTED,
    Cancelled,
    Continue,
    Done,
    Effect,
    Fail,
    Failure,
    IdempotencyKey,
    Need,
    Outcome,
    Pause,
    Slot,
    Success,
    Unknown,
    effect,
    join,
    step,
)
from zerver.effects import clock, http, sql
from zerver.errors import (
    ConnectFailed,
    EffectError,
    EffectRefused,
    EffectTimeout,
    ImpureStepError,
    JoinFailed,
    OutcomeUnknown,
    Rejected,
)
from zerver.testing import Unscripted, play, script


@attrs.frozen
class User:
    id: str


CurrentUser = Annotated[User, Slot("auth.user")]
Payment = Annotated[str, Slot("payment")]
Order = Annotated[int, Slot("order")]


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, key: IdempotencyKey = INJECTED) -> str:
    raise NotImplementedError


@effect(kind="bank.rate", access="read")
async def rate(currency: str) -> float:
    raise NotImplementedError


@step
async def verify(token: Annotated[str, Slot("token")]) -> CurrentUser | Fail:
    user = await sql.fetch_one(User, "select id from users where token = ?", token)
    return user or Fail.unauthorized("token")


@step
async def pay(user: CurrentUser) -> Payment:
    return await charge(500)


def asked_by(make: Callable[[], Effect[Any]], effects: dict[Any, object]) -> Any:
    """What an effect gives to the step that awaits it, or the error it raises there."""

    @step
    async def ask() -> Done:
        return Done(await make())

    played = play(ask, effects=effects)
    return played.error if played.error is not None else played.answer.value


def test_a_plain_step_is_called() -> None:
    @step
    def greet(user: CurrentUser) -> Done:
        return Done(f"hello {user.id}")

    played = play(greet, User("u1"))
    assert played.answer == Done("hello u1")
    assert (played.asked, played.error) == ((), None)


def test_values_and_decisions_are_answers() -> None:
    assert play(verify, "t", effects={sql.fetch_one: User("u1")}).answer == User("u1")
    assert play(verify, token="t", effects={sql.fetch_one: None}).answer == Fail.unauthorized("token")


def test_a_kind_is_named_by_its_effect_its_constructor_or_its_name() -> None:
    for kind in (charge, "bank.charge"):
        assert play(pay, User("u1"), effects={kind: "c1"}).answer == "c1"
    assert asked_by(clock.now, {clock.now: "noon"}) == "noon"
    assert asked_by(lambda: http.post("http://a/b"), {"http.write": 1}) == 1


def test_what_was_asked_is_told_in_order() -> None:
    @step
    async def both() -> Payment:
        await rate("eur")
        return await charge(500).with_policy(timeout=1)

    played = play(both, effects={rate: 1.1, charge: "c1"})
    assert played.kinds == ("bank.rate", "bank.charge")
    assert played.asked[1].args == (500,)
    assert played.asked[1].policy is not None
    assert played.asked[1].policy.timeout == 1


def test_a_function_sees_the_effects_arguments() -> None:
    assert asked_by(lambda: charge(500), {charge: lambda cents: f"c{cents}"}) == "c500"
    assert asked_by(lambda: charge(500), {charge: lambda cents: Rejected("poor")}).reason == "poor"

    def refuse(cents: int) -> str:
        raise Rejected(f"{cents} is too much")

    assert asked_by(lambda: charge(500), {charge: refuse}).reason == "500 is too much"


def test_a_function_that_does_not_fit_is_a_slip_of_the_test() -> None:
    with pytest.raises(TypeError, match=r"'bank.charge' does not take \(500\)"):
        asked_by(lambda: charge(500), {charge: lambda: "c1"})
    with pytest.raises(AssertionError, match=r"^no$"):
        asked_by(lambda: charge(500), {charge: lambda cents: _fail("no")})


def _fail(text: str) -> None:
    raise AssertionError(text)


async def _late(cents: int) -> str:
    return "c1"


def test_answers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(TypeError, match="class Rejected: give an exception"):
        asked_by(lambda: charge(500), {charge: Rejected})
    with pytest.raises(TypeError, match="is async, but there is no event loop"):
        asked_by(lambda: charge(500), {charge: _late})
    with pytest.raises(TypeError, match="is no kind of effect"):
        play(pay, User("u1"), effects={pay: 1})
    with pytest.raises(TypeError, match=r"'http.write' is answered twice"):
        play(pay, User("u1"), effects={http.post: 1, http.put: 2})


def test_a_script_answers_in_order() -> None:
    @step
    async def twice() -> Done:
        return Done([await charge(1), await charge(2)])

    assert play(twice, effects={charge: script(["a", "b"])}).answer == Done(["a", "b"])
    assert play(twice, effects={charge: script(["a"], then="z")}).answer == Done(["a", "z"])
    once = script(["a"])
    for _ in range(2):  # it keeps no place from one play to the next
        with pytest.raises(Unscripted, match=r"its script has 1 answers, and this is call 2\n  add an answer"):
            play(twice, effects={charge: once})


def test_an_effect_without_an_answer_names_its_kind_and_the_cure() -> None:
    with pytest.raises(Unscripted) as caught:
        play(pay, User("u1"), effects={rate: 1.0})
    assert str(caught.value) == (
        "effect 'bank.charge' was asked for, but it has no answer; answered kinds: bank.rate\n"
        "  add one: effects={'bank.charge': ...}"
    )


def test_a_step_cannot_swallow_a_slip_of_the_test() -> None:
    @step
    async def careless() -> None:
        try:
            await charge(1)
        except Exception:
            pass

    with pytest.raises(Unscripted):
        play(careless)


# ---- failures -------------------------------------------------------------------------------


def test_an_effect_error_is_raised_as_it_is() -> None:
    timeout = EffectTimeout("bank.rate", "too slow")
    played = play(pay, User("u1"), effects={charge: timeout})
    assert played.error is timeout
    with pytest.raises(EffectTimeout):
        _ = played.answer


@pytest.mark.parametrize(
    ("raised", "write", "read"),
    [
        (Rejected("no"), EffectError, EffectError),
        (ConnectFailed("down"), EffectRefused, EffectRefused),
        (ValueError("odd"), OutcomeUnknown, EffectError),
    ],
)
def test_other_exceptions_are_judged_as_the_runtime_does(
    raised: Exception, write: type[EffectError], read: type[EffectError]
) -> None:
    for make, expected in ((lambda: charge(1), write), (lambda: rate("eur"), read)):
        error = asked_by(make, {charge: raised, rate: raised})
        assert type(error) is expected
        assert error.cause is raised


def test_a_step_may_catch_what_failed() -> None:
    @step
    async def careful(user: CurrentUser) -> Payment | Fail:
        try:
            return await charge(500)
        except EffectError as error:
            return Fail.unavailable("bank", detail=error.reason)

    assert play(careful, User("u1"), effects={charge: Rejected("closed")}).answer == Fail.unavailable(
        "bank", detail="closed"
    )


def test_forms() -> None:
    def outcome_of(answer: object) -> Outcome[Any]:
        return asked_by(lambda: charge(1).outcome(), {charge: answer})

    assert asked_by(lambda: charge(1).optional(), {charge: Rejected("no")}) is None
    assert outcome_of("c1") == Success("c1")
    assert isinstance(outcome_of(Rejected("no")), Failure)
    assert isinstance(outcome_of(ValueError("odd")), Unknown)
    assert isinstance(outcome_of(OutcomeUnknown("bank.charge", "who knows")), Unknown)
    assert outcome_of(Cancelled("lost")) == Cancelled("lost")


def test_outcomes_as_answers() -> None:
    error = EffectError("bank.charge", "no")
    assert asked_by(lambda: charge(1), {charge: Success("c1")}) == "c1"
    assert asked_by(lambda: charge(1), {charge: Failure(error)}) is error
    assert asked_by(lambda: charge(1), {charge: Cancelled("late")}).reason == "cancelled: late"


def test_a_defect_is_kept_with_its_type() -> None:
    @step
    def broken() -> Done:
        return Done(1 // 0)

    played = play(broken)
    assert isinstance(played.error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        _ = played.answer


# ---- joins ----------------------------------------------------------------------------------


def members(*cents: int) -> list[Effect[str]]:
    return [charge(c) for c in cents]


def by_size(cents: int) -> object:
    return Rejected("odd") if cents % 2 else f"c{cents}"


def test_joins_follow_their_rules_in_argument_order() -> None:
    world = {charge: by_size, rate: 1.5}
    assert asked_by(lambda: join.all(charge(2), rate("eur")), world) == ("c2", 1.5)
    assert asked_by(lambda: join.all(charge(2), charge(1).optional()), world) == ("c2", None)
    assert asked_by(lambda: join.all(*members(2, 1, 4)), world).reason == "odd"
    assert asked_by(lambda: join.race(*members(1, 4, 2)), world) == "c4"
    assert asked_by(lambda: join.quorum(2, *members(2, 1, 4)), world) == ("c2", "c4")
    assert isinstance(asked_by(lambda: join.quorum(2, *members(1, 2, 3)), world), JoinFailed)
    assert isinstance(asked_by(lambda: join.race(*members(1, 3)), world), JoinFailed)
    assert asked_by(lambda: join.hedge(rate("eur"), after=0.1), world) == 1.5
    assert asked_by(join.all, world) == ()
    settled = asked_by(lambda: join.settle(*members(2, 1)), world)
    assert settled[0] == Success("c2")
    assert isinstance(settled[1], Failure)


def test_joins_nest_and_their_members_are_told() -> None:
    @step
    async def ask() -> Done:
        return Done(await join.all(join.race(charge(2), charge(4)), rate("eur")))

    played = play(ask, effects={charge: by_size, rate: 1.5})
    assert played.answer == Done(("c2", 1.5))
    assert played.kinds == ("join.all", "join.race", "bank.charge", "bank.charge", "bank.rate")


def test_a_member_that_lost_needs_no_answer() -> None:
    assert asked_by(lambda: join.race(charge(2), rate("eur")), {charge: by_size}) == "c2"


# ---- decisions that go on -------------------------------------------------------------------


def test_need_is_driven_through_its_resume() -> None:
    @step
    def explicit(user: CurrentUser) -> Need | Done:
        return Need(rate("eur"), resume=lambda r: Need(charge(int(100 * r)), resume=Done))

    played = play(explicit, User("u1"), effects={rate: 2.0, charge: lambda cents: f"c{cents}"})
    assert played.answer == Done("c200")
    assert played.kinds == ("bank.rate", "bank.charge")


def test_a_need_that_fails_is_the_steps_error() -> None:
    @step
    def explicit() -> Need | Done:
        return Need(charge(1), resume=Done)

    assert isinstance(play(explicit, effects={charge: Rejected("no")}).error, EffectError)


def test_a_resume_may_await() -> None:
    async def finish(value: float) -> Done:
        return Done(await charge(int(value)))

    @step
    def explicit() -> Need | Done:
        return Need(rate("eur"), resume=finish)

    assert play(explicit, effects={rate: 7.0, charge: by_size}).error is not None
    assert play(explicit, effects={rate: 8.0, charge: by_size}).answer == Done("c8")


def test_a_pause_is_an_answer_and_its_resume_can_be_played() -> None:
    async def approved(by: str) -> Done:
        return Done((by, await charge(2)))

    @step
    def wait() -> Pause | Done:
        return Pause("approval", expires=60, resume=approved)

    pause = play(wait).answer
    assert isinstance(pause, Pause)
    assert pause.resume is not None
    assert play(pause.resume, "eve", effects={charge: "c2"}).answer == Done(("eve", "c2"))


# ---- steps that are wrong -------------------------------------------------------------------


def test_an_answer_that_the_annotation_does_not_say_is_a_defect_as_it_is_in_a_run() -> None:
    @step
    def nothing() -> Payment:
        return None  # type: ignore[return-value]  # the mistake under test

    @step
    def one_of_two() -> tuple[Payment, Order]:
        return ("c1", None)  # type: ignore[return-value]  # the mistake under test

    @step
    def something() -> None:
        return 5  # type: ignore[return-value]  # the mistake under test

    @step
    def fine() -> Payment | Continue:
        return Continue("c1")

    for wrong in (nothing, one_of_two, something):
        assert "which its annotation does not say" in str(play(wrong).error)
    assert play(fine).answer == Continue("c1")


@step
async def sleepy() -> None:
    await trio.sleep(1)


async def helper() -> None:
    await trio.lowlevel.checkpoint()


@step
async def sleepy_inside() -> None:
    await helper()


def line_of(function: Callable[..., Any], offset: int) -> str:
    return f"{Path(__file__).name}:{inspect.getsourcelines(function)[1] + offset}"


def test_an_impure_step_is_named_with_its_line() -> None:
    with pytest.raises(ImpureStepError, match=f"step 'sleepy' awaited .* at .*{line_of(sleepy.function, 2)}"):
        play(sleepy)
    with pytest.raises(ImpureStepError, match=line_of(helper, 1)):
        play(sleepy_inside)


async def test_inside_trio_it_is_the_same() -> None:
    with pytest.raises(ImpureStepError, match=line_of(sleepy.function, 2)):
        play(sleepy)
    with pytest.raises(ImpureStepError, match=line_of(helper, 1)):
        play(sleepy_inside)
    assert play(pay, User("u1"), effects={charge: "c1"}).answer == "c1"


def test_a_runtime_error_of_the_step_is_its_own() -> None:
    @step
    async def raises() -> None:
        raise RuntimeError("mine")

    assert str(play(raises).error) == "mine"


def test_the_cleanup_of_a_step_that_is_dropped_runs() -> None:
    done: list[str] = []

    @step
    async def tidy() -> None:
        try:
            await charge(1)
        finally:
            done.append("closed")

    with pytest.raises(Unscripted):
        play(tidy)
    assert done == ["closed"]
