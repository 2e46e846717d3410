"""A bulkhead keeps its bound, serves by class, loses no place whatever is cancelled, and follows its limit."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.core.bulkhead import Adaptive
from zerver.core.priorities import PRIORITIES, Priority
from zerver.runtime.bulkhead import Bulkhead
from zerver.testing import cancel_sweep
from zerver.testing.scheduler import seeded


async def test_a_free_place_is_no_checkpoint_and_a_newcomer_does_not_overtake(nursery: trio.Nursery) -> None:
    places, order = Bulkhead(1), list[str]()

    async def use(name: str) -> None:
        await places.acquire("default")
        order.append(name)
        places.release()

    assert places.acquire_nowait()
    nursery.start_soon(use, "waiting")
    await wait_all_tasks_blocked()
    assert (places.full, places.waiting) == (True, (0, 1, 0))
    places.release()  # the place is the waiter's now, though it has not run yet
    assert not places.acquire_nowait()
    await use("newcomer")
    await wait_all_tasks_blocked()
    assert (order, places.in_use) == (["waiting", "newcomer"], 0)


async def test_who_was_granted_a_place_cannot_be_cancelled_out_of_it(nursery: trio.Nursery) -> None:
    places, scope, got = Bulkhead(1), trio.CancelScope(), list[str]()

    async def wait() -> None:
        with scope:
            await places.acquire("batch")
            got.append("a place")

    assert places.acquire_nowait()
    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    places.release()
    scope.cancel()  # after the grant, before the waiter has run
    await wait_all_tasks_blocked()
    assert (got, places.in_use) == (["a place"], 1)


async def test_nobody_waits_forever(autojump_clock: MockClock) -> None:
    places, waits = Bulkhead(1), dict[Priority, list[float]]()

    async def use(priority: Priority) -> None:
        began = trio.current_time()
        await places.acquire(priority)
        waits.setdefault(priority, []).append(trio.current_time() - began)
        await trio.sleep(1)
        places.release()

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(use, "batch")
        for _ in range(200):
            nursery.start_soon(use, "interactive")
    assert max(waits["batch"]) <= 5 * 21


async def test_a_newcomer_is_told_how_long_it_will_take(autojump_clock: MockClock) -> None:
    places = Bulkhead(2)
    assert places.expected_seconds("batch") == 0.0  # nothing is known
    assert places.acquire_nowait()
    assert places.acquire_nowait()
    places.release(0.0, 3.0, 1, tells=True)
    assert places.expected_seconds("batch") == pytest.approx(3.0 * 1 / 2 + 3.0)


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_lost_whatever_is_cancelled_whenever(seed: int, autojump_clock: MockClock) -> None:
    rng, places, served = Random(seed), Bulkhead(3), 0

    async def use() -> None:
        nonlocal served
        await trio.sleep(rng.random() * 0.1)
        with trio.move_on_after(rng.random() * 0.1):
            await places.acquire(rng.choice(PRIORITIES))
            try:
                assert places.in_use <= 3
                await trio.sleep(rng.random() * 0.02)
                served += 1
            finally:
                places.release()

    with seeded(seed):
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(use)
    assert (places.in_use, places.waiting) == (0, (0, 0, 0))
    assert served


def test_every_await_may_be_cancelled() -> None:
    made: list[Bulkhead] = []

    async def program() -> None:
        made.append(Bulkhead(1))

        async def use(priority: Priority) -> None:
            await made[-1].acquire(priority)
            try:
                await trio.sleep(0.01)
            finally:
                made[-1].release()

        async with trio.open_nursery() as nursery:
            for priority in PRIORITIES:
                nursery.start_soon(use, priority)

    def is_empty() -> None:
        if made[-1].in_use or any(made[-1].waiting):
            raise AssertionError("a place was lost")

    assert cancel_sweep(program, check=is_empty).delivered


async def closed_loop(clients: int, capacity: int, seconds: float) -> list[int]:
    """The limit, second by second, before a target with so many servers of 0.1 s, under an adaptive bulkhead."""
    places, servers, limits = Bulkhead(Adaptive()), trio.CapacityLimiter(capacity), list[int]()

    async def ask() -> None:
        while True:
            await places.acquire("default")
            began, in_use = trio.current_time(), places.in_use
            async with servers:
                await trio.sleep(0.1)
            places.release(began, trio.current_time(), in_use, tells=True)

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(ask)
        while trio.current_time() < seconds:
            await trio.sleep(1)
            limits.append(places.limit)
        nursery.cancel_scope.cancel()
    return limits


async def test_the_limit_finds_what_the_target_can_do(autojump_clock: MockClock) -> None:
    with seeded(1):
        settled = (await closed_loop(clients=40, capacity=5, seconds=150))[60:]
    assert 4 <= sum(settled) / len(settled) <= 12


async def test_a_limit_that_grows_lets_more_in(nursery: trio.Nursery) -> None:
    places = Bulkhead(Adaptive(initial=2, samples=1, window=0.1))
    assert places.acquire_nowait()
    assert places.acquire_nowait()
    for _ in range(3):
        nursery.start_soon(places.acquire, "default")
    await wait_all_tasks_blocked()
    places.release(0.0, 1.0, 2, tells=True)
    await wait_all_tasks_blocked()
    assert (places.limit, places.in_use, sum(places.waiting)) == (3, 3, 1)
