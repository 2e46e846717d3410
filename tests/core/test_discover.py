"""Discovery: the effects in a step's code, however they are reached, and none that is not there."""

from __future__ import annotations

from typing import Any

from tests.core.strategies import READ, UNDO, WRITE
from zerver import Need, join
from zerver.core.discover import mentions
from zerver.core.effects import Effect, EffectKind

HIDDEN: EffectKind[..., None] = EffectKind("test.hidden", "write", takes_key=True)


class Namespace:
    """Effects as attributes, as a catalogue has them."""

    read = READ

    def helper(self) -> Effect[Any]:
        return HIDDEN()


catalogue = Namespace()


def kinds(function: Any) -> list[str]:
    return sorted({mention.kind.name for mention in mentions(function)})


def undo_hidden(value: object) -> Effect[None]:
    return HIDDEN(value)


def helper() -> Effect[Any]:
    return join.race(catalogue.read(), WRITE())


async def after(value: object) -> None:
    await HIDDEN()


def test_direct_by_attribute_in_lambdas_and_in_joins() -> None:
    async def direct() -> None:
        await join.all(READ(), catalogue.read())
        await WRITE().compensate(lambda value: UNDO(value, "for good"))

    assert kinds(direct) == ["test.read", "test.undo", "test.write"]


def test_through_helpers_that_are_called_or_handed_on() -> None:
    async def called() -> None:
        await helper()

    async def handed() -> None:
        await WRITE().compensate(undo_hidden)

    def needed() -> Need:
        return Need(READ(), resume=after)

    assert kinds(called) == ["test.read", "test.write"]
    assert kinds(handed) == ["test.hidden", "test.write"]
    assert kinds(needed) == ["test.hidden", "test.read"]


def test_kinds_that_are_handed_on() -> None:
    async def handed() -> None:
        await WRITE().compensate(UNDO, resolve=READ)

    assert kinds(handed) == ["test.read", "test.undo", "test.write"]


def test_what_the_rollback_performs() -> None:
    async def undone() -> None:
        await join.all(WRITE().compensate(lambda _: UNDO(), resolve=HIDDEN), READ())

    assert {mention.kind.name for mention in mentions(undone) if mention.undoes} == {"test.undo", "test.hidden"}


def test_closures_and_recursion() -> None:
    secret = HIDDEN

    async def again(depth: int) -> None:
        await secret()
        await again(depth - 1)

    assert kinds(again) == ["test.hidden"]


def test_policies_compensations_and_hedges_around_a_mention() -> None:
    seconds = 3.0

    async def step() -> None:
        await WRITE().with_policy(retries=2, timeout=seconds).compensate(UNDO)
        await join.hedge(READ().with_policy(timeout=1.0), after=0.5).optional()

    found = {mention.kind.name: mention for mention in mentions(step)}
    assert dict(found["test.write"].policy) == {"retries": 2}, "what is computed is not known"
    assert found["test.write"].compensated
    assert dict(found["test.read"].policy) == {"timeout": 1.0}
    assert found["test.read"].hedge_after == 0.5
    assert not found["test.read"].compensated
    assert found["test.write"].line == step.__code__.co_firstlineno + 1


def test_code_without_source_is_read_as_bytecode() -> None:
    space: dict[str, Any] = {"READ": READ, "WRITE": WRITE, "catalogue": catalogue, "helper": helper}
    exec("async def step():\n    await catalogue.read()\n    f = lambda: WRITE()\n    return helper", space)
    assert kinds(space["step"]) == ["test.read", "test.write"]


def test_nothing_is_invented() -> None:
    def step(READ: str) -> str:  # noqa: N803 - a parameter that shadows the kind is not the kind
        return READ.upper()

    def other() -> str:
        return f"{len('test.read')}"

    assert kinds(other) == []
    assert kinds(step) == []
