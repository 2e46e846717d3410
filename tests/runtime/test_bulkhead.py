"""A bulkhead keeps its bound, serves by class, loses no place whatever is cancelled, and follows its limit."""

from __future__ import annotations

from math import inf
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


async def test_who_waits_in_vain_is_sent_away_as_soon_as_that_is_known(nursery: trio.Nursery) -> None:
    places, came = Bulkhead(1), list[tuple[str, bool]]()

    async def use(name: str, priority: Priority, until: float) -> None:
        came.append((name, await places.acquire(priority, until)))

    assert places.acquire_nowait()  # nobody knows how long it will be held
    line: list[tuple[str, Priority, float]] = [
        ("batch", "batch", 15.0),
        ("first", "default", 15.0),
        ("second", "default", 15.0),
        ("patient", "batch", 99.0),
        ("last", "batch", 35.0),
    ]
    for name, priority, until in line:
        nursery.start_soon(use, name, priority, until)
        await wait_all_tasks_blocked()
    places.release(0.0, 10.0, 1, tells=True)  # ten seconds; four others wait, and the last would wait for forty more
    await wait_all_tasks_blocked()
    assert sorted(came) == [("first", True), ("last", False)]
    assert (places.in_use, places.waiting) == (1, (0, 1, 2))
    nursery.cancel_scope.cancel()


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


async def closed_loop(clients: int, capacity: int, seconds: float, *, at: float = inf, slower: float = 1.0,
                      fewer: int = 0) -> tuple[list[int], list[int]]:  # fmt: skip
    """The limit, and how many were served, second by second, before a target with so many servers of 0.1 s, under an
    adaptive bulkhead. at: then they become so much slower, and so many fewer.
    """
    places, servers, limits, served = Bulkhead(Adaptive()), trio.CapacityLimiter(capacity), list[int](), [0]

    async def ask() -> None:
        while True:
            await places.acquire("default")
            began, in_use = trio.current_time(), places.in_use
            async with servers:
                await trio.sleep(0.1 if began < at else 0.1 * slower)
            served[-1] += 1
            places.release(began, trio.current_time(), in_use, tells=True)

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(ask)
        while trio.current_time() < seconds:
            await trio.sleep(1)
            limits.append(places.limit)
            served.append(0)
            if trio.current_time() >= at:
                servers.total_tokens = capacity - fewer
        nursery.cancel_scope.cancel()
    return limits, served


async def test_the_limit_finds_what_the_target_can_do(autojump_clock: MockClock) -> None:
    with seeded(1):
        limits, _ = await closed_loop(clients=40, capacity=5, seconds=150)
    settled = limits[60:]
    assert 4 <= sum(settled) / len(settled) <= 12


async def test_a_target_that_becomes_slower_for_good_is_not_squeezed_for_good(autojump_clock: MockClock) -> None:
    """More is wanted than it can do all the time, so its new pace is never seen with places free."""
    with seeded(1):
        limits, served = await closed_loop(clients=60, capacity=20, seconds=200, at=40, slower=4)
    assert sum(served[120:200]) >= 0.9 * 80 * 20 / 0.4
    assert max(limits[120:]) <= 60


async def test_a_target_that_serves_fewer_at_once_is_squeezed_to_that(autojump_clock: MockClock) -> None:
    """It looks as slow from outside; but here half as many are half as slow, so it is a line, and not its pace."""
    with seeded(1):
        limits, served = await closed_loop(clients=60, capacity=20, seconds=200, at=40, fewer=16)
    assert sum(limits[120:]) / len(limits[120:]) <= 12
    assert sum(served[120:200]) >= 0.95 * 80 * 4 / 0.1


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
