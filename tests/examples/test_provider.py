"""The provider moves money once for each key, whatever is asked at once, cut, or made to fail on purpose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from examples.checkout.provider import FOREVER, make_app
from zerver.http import encode_json
from zerver.testing import Client, client


class World:
    """Time and chance in the test's hands. slept: every sleep. hanging: set when a run hangs. dice: what is drawn."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.hanging = trio.Event()
        self.dice = 0.5

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds >= FOREVER:
            self.hanging.set()
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()

    def uniform(self, low: float, high: float) -> float:
        return self.dice


@asynccontextmanager
async def provider(world: World | None = None) -> AsyncIterator[Client]:
    world = world or World()
    handlers = {"clock.sleep": world.sleep, "random.uniform": world.uniform}
    async with client(make_app(":memory:"), handlers=handlers) as c:
        yield c


async def charge(c: Client, key: str, amount: int = 500) -> int:
    reply = await c.post("/charges", json={"amount": amount, "user": "u"}, headers={"Idempotency-Key": key})
    return reply.status


async def refund(c: Client, key: str) -> Any:
    reply = await c.post("/refunds", json={"key": key})
    assert reply.status == 200
    return reply.json(dict[str, object])


async def ledger(c: Client) -> Any:
    return (await c.get("/ledger")).json(dict[str, object])


def entry(type_: str, key: str, amount: int = 500) -> dict[str, object]:
    return {"type": type_, "key": key, "amount": amount}


NOTHING = {"entries": [], "balance": 0}
ONE_CHARGE = {"entries": [entry("charge", "k")], "balance": 500}

# ---- charges --------------------------------------------------------------------------------


async def test_a_charge_is_answered_found_and_in_the_ledger() -> None:
    async with provider() as c:
        headers = {"Idempotency-Key": "k"}
        reply = await c.post("/charges", json={"amount": 500, "user": "u"}, headers=headers)
        assert (reply.status, reply.json(dict[str, object])) == (201, {"key": "k", "amount": 500})
        found = await c.get("/charges/k")
        assert (found.status, found.json(dict[str, object])) == (200, {"key": "k", "amount": 500})
        assert (await c.get("/charges/other")).status == 404
        assert await ledger(c) == ONE_CHARGE


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": ""}, {"Idempotency-Key": "k" * 256}])
async def test_a_charge_needs_a_key_and_an_empty_one_is_none(headers: dict[str, str]) -> None:
    async with provider() as c:
        reply = await c.post("/charges", json={"amount": 500, "user": "u"}, headers=headers)
        assert reply.status == 422
        assert "Idempotency-Key" in reply.body.decode()
        assert await ledger(c) == NOTHING


@pytest.mark.parametrize("amount", [0, -500, 10**12 + 1, 1.5, "500", None])
async def test_an_amount_is_cents_above_none(amount: object) -> None:
    async with provider() as c:
        body = {"amount": amount, "user": "u"}
        assert (await c.post("/charges", json=body, headers={"Idempotency-Key": "k"})).status == 422
        assert await ledger(c) == NOTHING


async def test_the_same_key_never_charges_twice() -> None:
    async with provider() as c:
        assert [await charge(c, "k") for _ in range(3)] == [201, 201, 201]
        assert await ledger(c) == ONE_CHARGE


async def test_the_same_key_never_charges_twice_at_once() -> None:
    statuses: list[int] = []
    async with provider() as c:

        async def one() -> None:
            statuses.append(await charge(c, "k"))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert statuses == [201] * 20
        assert await ledger(c) == ONE_CHARGE


async def test_the_same_key_with_another_amount_is_a_conflict() -> None:
    async with provider() as c:
        assert await charge(c, "k") == 201
        assert await charge(c, "k", 501) == 409
        assert await ledger(c) == ONE_CHARGE


# ---- refunds --------------------------------------------------------------------------------


async def test_a_charge_is_refunded_once() -> None:
    async with provider() as c:
        await charge(c, "k")
        assert [await refund(c, "k") for _ in range(3)] == [{"key": "k", "refunded": 500}] * 3
        assert await ledger(c) == {"entries": [entry("charge", "k"), entry("refund", "k")], "balance": 0}


async def test_a_key_that_was_refunded_is_not_charged_and_not_said_to_be() -> None:
    async with provider() as c:
        await charge(c, "k")
        await refund(c, "k")
        assert await charge(c, "k") == 409


async def test_a_refund_before_the_charge_voids_the_key() -> None:
    async with provider() as c:
        assert await refund(c, "k") == {"key": "k", "refunded": 0}
        assert await charge(c, "k") == 409
        assert (await c.get("/charges/k")).status == 404
        assert await ledger(c) == NOTHING


async def test_a_charge_and_a_refund_at_once_leave_nothing_charged() -> None:
    async with provider() as c:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                first, second = (charge, refund) if number % 2 else (refund, charge)
                nursery.start_soon(first, c, f"k{number}")
                nursery.start_soon(second, c, f"k{number}")
        assert (await ledger(c))["balance"] == 0


async def test_a_refund_names_a_key() -> None:
    async with provider() as c:
        assert (await c.post("/refunds", json={})).status == 422
        assert (await c.post("/refunds", json={"key": ""})).status == 422


# ---- faults ---------------------------------------------------------------------------------


async def set_faults(c: Client, **faults: float) -> dict[str, object]:
    reply = await c.post("/faults", json=faults)
    assert reply.status == 200
    return reply.json(dict[str, object])


async def test_faults_that_are_not_named_are_off() -> None:
    off = {"latency_ms": 0, "error_rate": 0, "hang_rate": 0, "lost_reply_rate": 0}
    async with provider() as c:
        assert await set_faults(c, latency_ms=20, hang_rate=1) == off | {"latency_ms": 20, "hang_rate": 1}
        assert await set_faults(c, error_rate=1) == off | {"error_rate": 1}
        assert await charge(c, "k") == 503
        assert await set_faults(c) == off
        assert await charge(c, "k") == 201


@pytest.mark.parametrize(
    "faults", [{"latency_ms": -1}, {"error_rate": 1.1}, {"hang_rate": -0.1}, {"lost_reply_rate": "often"}]
)
async def test_faults_that_make_no_sense_are_refused(faults: object) -> None:
    async with provider() as c:
        assert (await c.post("/faults", json=faults)).status == 422
        assert await charge(c, "k") == 201


async def test_latency_is_waited_for_by_charges_refunds_and_look_ups() -> None:
    world = World()
    async with provider(world) as c:
        await set_faults(c, latency_ms=250)
        await charge(c, "k")
        await c.get("/charges/k")
        await refund(c, "k")
        assert world.slept == [0.25] * 3


async def test_rates_are_drawn() -> None:
    world = World()
    async with provider(world) as c:
        await set_faults(c, error_rate=0.5)
        world.dice = 0.5
        assert await charge(c, "a") == 201
        world.dice = 0.499
        assert await charge(c, "b") == 503
        assert [e["key"] for e in (await ledger(c))["entries"]] == ["a"]


CHARGE = {"json": {"amount": 500, "user": "u"}, "headers": {"Idempotency-Key": "k"}}


@pytest.mark.parametrize(
    ("fault", "after"), [("hang_rate", NOTHING), ("lost_reply_rate", ONE_CHARGE)], ids=["hang", "lost reply"]
)
async def test_a_client_that_hangs_up_finds_what_the_fault_is_named_for(fault: str, after: object) -> None:
    """A hang comes before the commit, a lost reply after it; and nothing is committed behind the client's back."""
    world = World()
    async with provider(world) as c:
        await set_faults(c, **{fault: 1})
        async with c.open_request("POST", "/charges", **CHARGE):
            await world.hanging.wait()
        await c.wait_idle()
        assert c.runs[-1].reason == "the client has gone"
        assert await ledger(c) == after
        await set_faults(c)
        assert await charge(c, "k") == 201  # the retry of a careful client
        assert await ledger(c) == ONE_CHARGE


async def test_a_refund_can_be_disturbed_too() -> None:
    world = World()
    async with provider(world) as c:
        await charge(c, "k")
        await set_faults(c, error_rate=1)
        assert (await c.post("/refunds", json={"key": "k"})).status == 503
        await set_faults(c, hang_rate=1)
        async with c.open_request("POST", "/refunds", json={"key": "k"}):
            await world.hanging.wait()
        await c.wait_idle()
        assert await ledger(c) == ONE_CHARGE


async def test_a_hang_does_not_keep_the_provider_from_draining() -> None:
    world = World()
    async with provider(world) as c:
        await set_faults(c, hang_rate=1)
        async with c.open_request("POST", "/charges", **CHARGE) as request:
            await world.hanging.wait()
            await c.runtime.drain(0.0)
            assert (await request.reply()).status == 503
        assert c.runs[-1].reason == "the runtime is draining"


# ---- the other services ---------------------------------------------------------------------


async def test_the_services_of_the_shop() -> None:
    world = World()
    async with provider(world) as c:
        assert (await c.get("/services/profile/user_1")).json(dict[str, str])["id"] == "user_1"
        assert [(await c.get("/services/recommendations")).json(list[str]) for _ in range(2)] == [["tea", "cup"]] * 2
        assert world.slept == [0.3]
        async with c.open_request("GET", "/services/offers"):
            await world.hanging.wait()
        assert (await c.get("/services/offers")).json(list[str]) == ["pot"]
        for path in ("/services/receipts", "/services/notices"):
            reply = await c.post(path, body=encode_json({}), headers={"Content-Type": "application/json"})
            assert (reply.status, reply.json(dict[str, bool])) == (202, {"accepted": True})
