"""Effects: kinds keep their handlers' shapes, methods give new effects, deliver says what a step gets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.strategies import READ, UNDO, WRITE
from zerver import INJECTED, CallInfo, Effect, IdempotencyKey, Policy, effect
from zerver.core.effects import Cancelled, Failure, Outcome, Success, Unknown, deliver
from zerver.errors import DefinitionError, EffectError, OutcomeUnknown


class Client:
    """A resource."""


def test_a_kind_is_read_from_its_handler() -> None:
    @effect(kind="pay.charge", access="write")
    async def charge(cents: int, *, key: IdempotencyKey, info: CallInfo, client: Client = INJECTED) -> str:
        return ""

    assert charge.takes_key
    assert charge.injected == {"key": IdempotencyKey, "info": CallInfo, "client": Client}
    made = charge(3)
    assert (made.target, made.args, dict(made.kwargs)) == ("pay", (3,), {})
    assert repr(made) == "pay.charge(3)"
    assert repr(charge) == "<effect kind pay.charge (write)>"
    assert repr(INJECTED) == "INJECTED"


def test_what_effect_refuses() -> None:
    def plain() -> None: ...

    async def blind() -> None: ...

    async def bare(client=INJECTED) -> None: ...  # type: ignore[no-untyped-def]  # the test

    for function, policy, words in [
        (plain, None, "is not a coroutine function"),
        (blind, Policy(retries=1), "is a write with retries=1, but its handler takes no key"),
        (bare, None, "parameter 'client' is INJECTED but has no annotation"),
    ]:
        with pytest.raises(DefinitionError, match=words):
            effect(kind="a.b", access="write", policy=policy)(function)  # type: ignore[arg-type]  # the test


def test_every_method_gives_a_new_effect_and_keeps_the_rest() -> None:
    plain = WRITE()
    made = plain.with_policy(timeout=1.0).compensate(UNDO).optional().with_policy(Policy(timeout=9.0, retries=2))
    assert plain.policy is plain.compensation is None
    assert made.policy == Policy(timeout=9.0, retries=2)
    assert made.with_policy(Policy(timeout=9.0), timeout=3.0).policy == Policy(timeout=3.0, retries=2)
    assert made.form == "optional"
    assert made.outcome().form == "outcome"
    assert made.compensation is not None
    assert made.compensation.undo is UNDO


def test_what_methods_refuse() -> None:
    @effect(kind="blind.write", access="write")
    async def blind() -> None: ...

    for build, words in [
        (lambda: READ().compensate(UNDO), "is a read and cannot be compensated"),
        (lambda: WRITE().compensate(), "was given nothing"),
        (lambda: blind().with_policy(retries=1), "takes no key"),
        (lambda: blind().with_policy(Policy(retries=1)), "takes no key"),
    ]:
        with pytest.raises(DefinitionError, match=words):
            build()


def test_awaiting_hands_the_effect_itself_to_whoever_runs_the_step() -> None:
    async def step() -> str:
        return await READ()

    coroutine = step()
    asked = coroutine.send(None)
    assert isinstance(asked, Effect)
    with pytest.raises(StopIteration) as stop:
        coroutine.send("result")
    assert stop.value.value == "result"


ERROR = EffectError("test.read", "no")
DOUBT = OutcomeUnknown("test.write", "maybe")


@pytest.mark.parametrize(
    ("outcome", "error"),
    [(Success("v"), None), (Failure(ERROR), ERROR), (Unknown(DOUBT, IdempotencyKey("k")), DOUBT)],
)
def test_deliver(outcome: Outcome[Any], error: EffectError | None) -> None:
    value = outcome.value if isinstance(outcome, Success) else None
    assert deliver(READ(), outcome) == (value, error)
    assert deliver(READ().optional(), outcome) == (value, None)
    assert deliver(READ().outcome(), outcome) == (outcome, None)


def test_a_cancelled_effect_is_delivered_as_an_error_that_says_so() -> None:
    _, error = deliver(READ(), Cancelled("the join was decided"))
    assert str(error) == "test.read: cancelled: the join was decided"
