"""Proves that the pool is fair, loses no place, and closes what is dead, old or not needed; no database is involved."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.core.priorities import Priority
from zerver.errors import DriverClosed, InternalError
from zerver.sql.postgres_pool import Pool
from zerver.testing import sweep_calls


class Thing:
    """A connection that can be dead, unusable or closed."""

    def __init__(self) -> None:
        self.born = self.used = trio.current_time()
        self.usable = True
        self.alive = True
        self.closed = False

    def is_alive(self) -> bool:
        return self.alive

    def close(self) -> None:
        self.closed = True


def pool_of(size: int = 1, *, least: int = 0, idle_seconds: float = 60.0, lifetime: float = 1e6) -> Pool[Thing]:
    return Pool(size=size, least=least, idle_seconds=idle_seconds, lifetime=lifetime, name="pool")


async def test_a_released_connection_is_used_again_the_newest_first() -> None:
    pool = pool_of(2)
    one, two = Thing(), Thing()
    assert await pool.acquire("default") is None
    assert await pool.acquire("default") is None
    pool.release(one)
    pool.release(two)
    assert await pool.acquire("default") is two
    assert await pool.acquire("default") is one


@pytest.mark.parametrize("fault", ["alive", "usable"])
async def test_one_that_is_no_good_is_closed_and_its_place_is_free(fault: str) -> None:
    pool = pool_of()
    await pool.acquire("default")
    thing = Thing()
    if fault == "usable":
        thing.usable = False
    pool.release(thing)
    thing.alive = False
    assert await pool.acquire("default") is None
    assert thing.closed
    assert pool.statistics().busy == 1


async def test_the_higher_class_goes_first_and_the_lower_ones_do_not_starve(nursery: trio.Nursery) -> None:
    pool = pool_of()
    served: list[Priority] = []

    async def call(priority: Priority) -> None:
        await pool.acquire(priority)
        served.append(priority)
        pool.release(None)

    await pool.acquire("default")
    for priority in ("batch", "default", "interactive"):
        for _ in range(40):
            nursery.start_soon(call, priority)
    await wait_all_tasks_blocked()
    assert pool.statistics().waiting == (40, 40, 40)
    pool.release(None)
    await wait_all_tasks_blocked()
    assert served[0] == "interactive"
    assert "batch" in served[:21]
    assert served[:40].count("interactive") > served[:40].count("default") > served[:40].count("batch")
    assert pool.statistics().busy == 0


async def test_a_newcomer_does_not_overtake(nursery: trio.Nursery) -> None:
    pool = pool_of()
    served: list[int] = []

    async def call(number: int) -> None:
        await pool.acquire("default")
        served.append(number)
        pool.release(None)

    await pool.acquire("default")
    nursery.start_soon(call, 1)
    await wait_all_tasks_blocked()
    pool.release(None)
    await call(2)
    assert served == [1, 2]


async def test_who_is_cancelled_leaves_the_queue_and_no_place_is_lost(autojump_clock: MockClock) -> None:
    pool = pool_of()

    async def contended() -> None:
        async def hold() -> None:
            await pool.acquire("batch")
            try:
                await trio.sleep(1)
            finally:
                pool.release(None)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(hold)

    def check() -> None:
        statistics = pool.statistics()
        if statistics.busy or sum(statistics.waiting):
            raise AssertionError(f"something is left: {statistics}")

    report = await sweep_calls(contended, check=check)
    assert report.delivered > 0


async def test_closing_sends_away_who_waits_and_closes_what_is_given_back(nursery: trio.Nursery) -> None:
    pool = pool_of()
    sent_away: list[bool] = []

    async def call() -> None:
        with pytest.raises(DriverClosed):
            await pool.acquire("default")
        sent_away.append(True)

    await pool.acquire("default")
    nursery.start_soon(call)
    await wait_all_tasks_blocked()
    pool.close()
    await wait_all_tasks_blocked()
    assert sent_away == [True]
    thing = Thing()
    pool.release(thing)
    assert thing.closed
    with pytest.raises(DriverClosed):
        await pool.acquire("default")


async def test_what_is_not_needed_is_closed_but_for_the_least(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    pool = pool_of(3, least=1, idle_seconds=60.0)
    nursery.start_soon(pool.reap)
    things = [Thing() for _ in range(3)]
    for _ in things:
        await pool.acquire("default")
    for thing in things:
        pool.release(thing)
    await trio.sleep(59)
    assert [thing.closed for thing in things] == [False] * 3
    await trio.sleep(2)
    assert [thing.closed for thing in things] == [True, True, False]
    await trio.sleep(1000)
    assert pool.statistics().idle == 1
    nursery.cancel_scope.cancel()


async def test_a_connection_is_replaced_at_the_end_of_its_life(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    pool = pool_of(1, least=1, lifetime=100.0)
    nursery.start_soon(pool.reap)
    await pool.acquire("default")
    thing = Thing()
    pool.release(thing)
    await trio.sleep(89)
    assert await pool.acquire("default") is thing
    await trio.sleep(22)
    assert not thing.closed  # in use: nobody is cut
    pool.release(thing)
    assert thing.closed
    nursery.cancel_scope.cancel()


async def test_giving_back_twice_is_our_bug() -> None:
    with pytest.raises(InternalError):
        pool_of().release(None)
