"""A kind finds its handler: an override, its own, a capability's, or the runtime's; each gets what it asks for."""

from datetime import datetime
from random import Random
from uuid import UUID

import pytest

from zerver import INJECTED, CallInfo, Capability, IdempotencyKey, effect
from zerver.core.calls import Call
from zerver.core.effects import EffectKind
from zerver.effects import clock, random, sql
from zerver.errors import DefinitionError
from zerver.runtime.handlers import BUILTIN_KINDS, Handlers, builtin_handlers


class Client:
    pass


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, client: Client = INJECTED, key: IdempotencyKey = INJECTED) -> tuple[object, ...]:
    return "own", cents, client, key


def info(call: Call, attempt: int) -> CallInfo:
    return CallInfo("run", "flow", call.step, call.key, attempt, "tenant", "default")


def handlers(*capabilities: Capability, client: Client | None = None, **overrides: object) -> Handlers:
    resources = {Client: client} if client is not None else {}
    return Handlers(capabilities, resources, Random(1), {name.replace("_", "."): f for name, f in overrides.items()})


async def test_a_handler_gets_its_resources_and_its_key() -> None:
    client = Client()
    call = Call("run", "pay", "1", charge(5))
    assert await handlers(client=client).bound(charge).invoke(call, 1, info) == ("own", 5, client, "run:pay:1")


async def test_an_override_comes_first_and_asks_for_itself() -> None:
    async def other(cents: int, *, told: CallInfo) -> tuple[object, ...]:
        return cents, told.attempt, told.step

    call = Call("run", "pay", "1", charge(5))
    found = handlers(bank_charge=other)
    assert await found.bound(charge).invoke(call, 3, info) == (5, 3, "pay")
    assert found.overridden == {"bank.charge"}


async def test_a_capability_brings_handlers_for_catalogues() -> None:
    async def fetch(row: type, text: str, params: tuple[object, ...]) -> object:
        return text, params

    kind = sql.FETCH_ONE
    bound = handlers(Capability(name="db", handlers={"sql.fetch_one": fetch})).bound(kind)
    call = Call("run", "load", "1", sql.fetch_one(int, "select ?", 1))
    assert await bound.invoke(call, 1, info) == ("select ?", (1,))


def test_a_handler_is_looked_up_once() -> None:
    found = handlers(client=Client())
    assert found.bound(charge) is found.bound(charge)


def test_what_nothing_handles_is_named_with_the_cure() -> None:
    with pytest.raises(DefinitionError, match=r"effect 'mail.send': nothing handles it\n  add a capability"):
        handlers().bound(EffectKind("mail.send", "write"))


def test_a_resource_that_nobody_opens_is_named_with_the_cure() -> None:
    with pytest.raises(DefinitionError, match=r"wants a Client for 'client', but no capability opens one\n"):
        handlers().bound(charge)


def test_what_the_runtime_brings() -> None:
    built = builtin_handlers(Random(7))
    assert isinstance(built[clock.NOW.name](), datetime)
    assert built[clock.NOW.name]().tzinfo is not None
    assert isinstance(built[random.UUID4.name](), UUID)
    assert built[random.UUID4.name]().version == 4
    assert 0 <= built[random.UNIFORM.name](0.0, 1.0) <= 1
    assert set(built) == BUILTIN_KINDS


def test_chance_that_is_no_secret_follows_the_seed() -> None:
    drawn = [builtin_handlers(Random(7))[random.UNIFORM.name](0.0, 1.0) for _ in range(2)]
    assert drawn[0] == drawn[1]
