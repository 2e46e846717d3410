"""The pool keeps its bounds, is fair, re-uses the newest, closes the oldest, and never loses a slot."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.core.priorities import PRIORITIES, Priority
from zerver.errors import ConnectFailed, InternalError
from zerver.http.outgoing import Origin
from zerver.http.pool import Lease, OriginStatistics, Pool
from zerver.testing.scheduler import seeded

A, B, C = (Origin("http", name, 80) for name in "abc")


@attrs.define(eq=False)
class Fake:
    """A connection that is only counted."""

    origin: Origin
    number: int = 0
    alive: bool = True
    closed: bool = False
    leased: bool = False

    async def close(self) -> None:
        assert not self.closed
        self.closed = True
        await trio.lowlevel.checkpoint()

    def __repr__(self) -> str:
        return f"{self.origin.host}{self.number}"


class World:
    """A pool of fakes, and every fake it has ever held."""

    def __init__(self, per_origin: int = 2, total: int = 3, idle_seconds: float = 10) -> None:
        self.fakes: list[Fake] = []
        self.per_origin = per_origin
        self.total = total
        self.pool: Pool[Fake] = Pool(
            per_origin=per_origin,
            total=total,
            idle_seconds=idle_seconds,
            is_alive=lambda fake: fake.alive,
            close=Fake.close,
        )

    async def get(self, origin: Origin, priority: Priority = "default") -> Lease[Fake]:
        lease = await self.pool.acquire(origin, priority)
        assert lease.reused == (lease.connection is not None)
        if lease.connection is None:
            lease.connection = Fake(origin, len(self.fakes))
            self.fakes.append(lease.connection)
        assert not lease.connection.closed
        assert not lease.connection.leased
        lease.connection.leased = True
        self.check()
        return lease

    async def put(self, lease: Lease[Fake], keep: bool = True) -> None:
        if lease.connection is not None:
            lease.connection.leased = False
        await self.pool.give_back(lease, keep=keep)
        self.check()

    @property
    def open(self) -> list[Fake]:
        return [fake for fake in self.fakes if not fake.closed]

    def check(self) -> None:
        assert len(self.open) <= self.total
        for origin in (A, B, C):
            assert sum(fake.origin == origin for fake in self.open) <= self.per_origin

    def counts(self) -> tuple[int, int, int]:
        statistics = self.pool.statistics()
        return statistics.busy, statistics.idle, statistics.waiting


async def test_a_connection_is_used_again_the_newest_first() -> None:
    world = World()
    first, second = await world.get(A), await world.get(A)
    one, two = first.connection, second.connection
    await world.put(first)
    await world.put(second)
    assert world.counts() == (0, 2, 0)
    assert (await world.get(A)).connection is two
    assert (await world.get(A)).connection is one
    assert world.counts() == (2, 0, 0)


async def test_what_is_not_kept_is_closed() -> None:
    world = World()
    await world.put(await world.get(A), keep=False)
    assert world.fakes[0].closed
    assert world.counts() == (0, 0, 0)
    assert world.pool.statistics().origins == ()  # nothing is kept of an origin that is not in use


async def test_a_dead_connection_is_closed_and_replaced() -> None:
    world = World()
    leases = [await world.get(A), await world.get(A)]
    for lease in leases:
        await world.put(lease)
    for fake in world.fakes:
        fake.alive = False
    lease = await world.get(A)
    assert [fake.closed for fake in world.fakes] == [True, True, False]
    assert not lease.reused
    assert world.counts() == (1, 0, 0)


async def test_a_full_origin_makes_wait_first_come_first_served(nursery: trio.Nursery) -> None:
    world = World(per_origin=1)
    order: list[int] = []

    async def use(number: int) -> None:
        lease = await world.get(A)
        order.append(number)
        await world.put(lease)

    lease = await world.get(A)
    for number in range(5):
        nursery.start_soon(use, number)
        await wait_all_tasks_blocked()
    assert world.counts() == (1, 0, 5)
    assert world.pool.statistics().origins == (OriginStatistics(A, 1, 0, 5, (0, 5, 0)),)
    await world.put(lease)
    await wait_all_tasks_blocked()
    assert order == [0, 1, 2, 3, 4]
    assert len(world.fakes) == 1  # handed on from one to the next


async def test_the_higher_class_goes_first_and_nobody_starves(nursery: trio.Nursery) -> None:
    world = World(per_origin=1)
    order: list[Priority] = []

    async def use(priority: Priority) -> None:
        lease = await world.get(A, priority)
        order.append(priority)
        await world.put(lease)

    lease = await world.get(A)
    for priority in ("batch", "default", "interactive"):
        for _ in range(40):
            nursery.start_soon(use, priority)
    await wait_all_tasks_blocked()
    assert world.pool.statistics().origins[0].waiting_by_class == (40, 40, 40)
    await world.put(lease)
    await wait_all_tasks_blocked()
    assert len(order) == 120
    assert order[0] == "interactive"
    assert order[:50].count("batch") == 2
    assert order[:50].count("default") == 12


async def test_between_origins_the_higher_class_goes_first_and_nobody_starves(nursery: trio.Nursery) -> None:
    world = World(per_origin=1, total=1)
    order: list[str] = []

    async def use(origin: Origin, priority: Priority) -> None:
        lease = await world.get(origin, priority)
        order.append(origin.host)
        await world.put(lease)

    lease = await world.get(C)
    for _ in range(40):
        nursery.start_soon(use, A, "batch")
        nursery.start_soon(use, B, "interactive")
    await wait_all_tasks_blocked()
    await world.put(lease)
    await wait_all_tasks_blocked()
    assert order[0] == "b"
    assert order[:40].count("a") in (1, 2)


async def test_a_newcomer_does_not_overtake(nursery: trio.Nursery) -> None:
    world = World(per_origin=1)
    order: list[str] = []

    async def use(name: str) -> None:
        lease = await world.get(A)
        order.append(name)
        await world.put(lease)

    lease = await world.get(A)
    nursery.start_soon(use, "waiting")
    await wait_all_tasks_blocked()
    await world.put(lease)  # the slot is the waiter's now, though it has not run yet
    await use("newcomer")
    await wait_all_tasks_blocked()
    assert order == ["waiting", "newcomer"]


async def test_a_full_pool_closes_the_oldest_idle_connection_of_another_origin() -> None:
    world = World(per_origin=2, total=3)
    for origin in (A, B, C):
        await world.put(await world.get(origin))
    oldest = world.fakes[0]
    await world.get(C)
    lease = await world.get(C)
    assert oldest.closed
    assert not lease.reused
    assert world.counts() == (2, 1, 0)
    assert [of.origin for of in world.pool.statistics().origins] == [B, C]  # of one without connections nothing is kept


async def test_between_origins_the_one_who_waited_longest_goes_first(nursery: trio.Nursery) -> None:
    world = World(per_origin=2, total=2)
    order: list[str] = []

    async def use(origin: Origin) -> None:
        lease = await world.get(origin)
        order.append(origin.host)
        await world.put(lease)

    held = [await world.get(A), await world.get(A)]
    for origin in (A, B, A, C, B):
        nursery.start_soon(use, origin)
        await wait_all_tasks_blocked()
    assert world.counts() == (2, 0, 5)
    await world.put(held[0])
    await wait_all_tasks_blocked()
    assert order == ["a", "b", "a", "c", "b"]


async def test_one_origin_at_its_limit_does_not_block_the_others(nursery: trio.Nursery) -> None:
    world = World(per_origin=1, total=2)
    await world.get(A)
    nursery.start_soon(world.get, A)
    await wait_all_tasks_blocked()
    with trio.fail_after(1):
        await world.get(B)
    nursery.cancel_scope.cancel()


async def test_a_cancelled_waiter_leaves_the_queue(nursery: trio.Nursery) -> None:
    world = World(per_origin=1)
    lease = await world.get(A)
    with trio.CancelScope() as scope:
        nursery.start_soon(wait_all_tasks_blocked_then(scope.cancel))
        await world.get(A)
    assert scope.cancelled_caught
    assert world.counts() == (1, 0, 0)
    await world.put(lease)
    assert world.counts() == (0, 1, 0)


async def test_who_was_granted_a_slot_cannot_be_cancelled_out_of_it(nursery: trio.Nursery) -> None:
    world = World(per_origin=1)
    lease = await world.get(A)
    got: list[Lease[Fake]] = []
    scope = trio.CancelScope()

    async def wait() -> None:
        with scope:
            got.append(await world.get(A))

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    await world.put(lease)
    scope.cancel()  # after the grant, before the waiter has run
    await wait_all_tasks_blocked()
    assert len(got) == 1
    await world.put(got[0])
    assert world.counts() == (0, 1, 0)


def wait_all_tasks_blocked_then(call: Callable[[], None]) -> Callable[[], object]:
    async def wait() -> None:
        await wait_all_tasks_blocked()
        call()

    return wait


async def test_idle_connections_grow_old(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    world = World(idle_seconds=10)
    nursery.start_soon(world.pool.reap)
    leases = [await world.get(A), await world.get(B)]
    await world.put(leases[0])
    await trio.sleep(6)
    await world.put(leases[1])
    await trio.sleep(5)
    assert [fake.closed for fake in world.fakes] == [True, False]
    await trio.sleep(6)
    assert world.counts() == (0, 0, 0)
    await world.put(await world.get(A))  # and the reaper is still there
    await trio.sleep(11)
    assert world.open == []
    nursery.cancel_scope.cancel()


async def test_an_expired_connection_is_not_used_even_before_it_is_reaped(autojump_clock: MockClock) -> None:
    world = World(idle_seconds=10)
    await world.put(await world.get(A))
    await trio.sleep(10)
    await world.get(A)
    assert [fake.closed for fake in world.fakes] == [True, False]


async def test_renewing_keeps_the_slot(nursery: trio.Nursery) -> None:
    world = World(per_origin=1)
    await world.put(await world.get(A))
    lease = await world.get(A)
    nursery.start_soon(world.get, A)
    await wait_all_tasks_blocked()
    await world.pool.renew(lease)
    assert world.fakes[0].closed
    assert (lease.connection, lease.reused) == (None, False)
    assert world.counts() == (1, 0, 1)
    nursery.cancel_scope.cancel()


async def test_closing_ends_waits_and_closes_what_comes_back(nursery: trio.Nursery) -> None:
    world = World(per_origin=1)
    ended: list[str] = []

    async def wait() -> None:
        with pytest.raises(ConnectFailed, match="closed"):
            await world.get(A)
        ended.append("waiter")

    lease, idle = await world.get(A), await world.get(B)
    await world.put(idle)
    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    await world.pool.aclose()
    await wait_all_tasks_blocked()
    assert ended == ["waiter"]
    with pytest.raises(ConnectFailed, match="closed"):
        await world.pool.acquire(A)
    await world.put(lease)
    assert world.open == []
    assert world.counts() == (0, 0, 0)
    assert world.pool.statistics().origins == ()


async def test_a_lease_is_given_back_once() -> None:
    world = World()
    lease = await world.get(A)
    await world.put(lease)
    with pytest.raises(InternalError):
        await world.pool.give_back(lease, keep=True)


async def forever() -> None:
    await trio.sleep_forever()


async def test_a_connection_that_will_not_close_costs_no_slot(autojump_clock: MockClock) -> None:
    pool: Pool[str] = Pool(per_origin=1, total=1, idle_seconds=1, is_alive=lambda _: True, close=lambda _: forever())
    lease = await pool.acquire(A)
    lease.connection = "stubborn"
    await pool.give_back(lease, keep=False)
    assert pool.statistics().busy == 0


@asynccontextmanager
async def leased(world: World, origin: Origin, rng: random.Random, priority: Priority) -> AsyncIterator[Lease[Fake]]:
    lease = await world.get(origin, priority)
    keep = False
    try:
        yield lease
        keep = rng.random() < 0.8
    finally:
        await world.put(lease, keep)


@pytest.mark.parametrize("seed", range(10))
async def test_no_slot_is_lost_whatever_is_cancelled_whenever(seed: int, autojump_clock: MockClock) -> None:
    rng = random.Random(seed)
    world = World(per_origin=rng.randint(1, 4), total=rng.randint(2, 6), idle_seconds=0.05)
    served = 0

    async def use() -> None:
        nonlocal served
        await trio.sleep(rng.random() * 0.1)
        with trio.move_on_after(rng.random() * 0.1):
            async with leased(world, rng.choice((A, B, C)), rng, rng.choice(PRIORITIES)) as lease:
                await trio.sleep(rng.random() * 0.02)
                assert lease.connection is not None
                lease.connection.alive = rng.random() < 0.9
                served += 1

    with seeded(seed):
        async with trio.open_nursery() as reaping:
            reaping.start_soon(world.pool.reap)
            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    for _ in range(200):
                        nursery.start_soon(use)
                busy, idle, waiting = world.counts()
                assert (busy, waiting) == (0, 0)
                assert idle == len(world.open)
            await trio.sleep(1)
            assert world.counts() == (0, 0, 0)
            assert world.open == []
            assert served > 0
            reaping.cancel_scope.cancel()
