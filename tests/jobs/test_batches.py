"""Batches: what tasks ask for at once is done in one go, each is told its own, and an error of one is nobody else's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.errors import JournalUnavailable, NotKeepable
from zerver.jobs.batches import Batches


class Desk:
    """Doubles numbers in a second; -1 cannot be kept, and -2 finds the database away."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def perform(self, things: Sequence[int]) -> list[int]:
        self.batches.append(list(things))
        await trio.sleep(1)
        if -1 in things:
            raise NotKeepable("no")
        if -2 in things:
            raise JournalUnavailable("away", 3.0)
        return [2 * thing for thing in things]


@asynccontextmanager
async def running(desk: Desk, most: int = 10) -> AsyncGenerator[Batches[int, int], None]:
    batches = Batches(desk.perform, most)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.run)
        await wait_all_tasks_blocked()
        yield batches
        nursery.cancel_scope.cancel()


async def test_what_comes_meanwhile_is_done_together(autojump_clock: MockClock) -> None:
    desk, told = Desk(), dict[int, list[int]]()

    async def one(batches: Batches[int, int], number: int) -> None:
        told[number] = await batches.ask([number, number + 100])

    async with running(desk, most=5) as batches, trio.open_nursery() as nursery:
        nursery.start_soon(one, batches, 1)
        await wait_all_tasks_blocked()
        for number in (2, 3, 4):
            nursery.start_soon(one, batches, number)
            await wait_all_tasks_blocked()
    assert desk.batches == [[1, 101], [2, 102, 3, 103], [4, 104]]
    assert told == {number: [2 * number, 2 * number + 200] for number in (1, 2, 3, 4)}


async def test_those_who_ask_again_go_with_the_next(autojump_clock: MockClock) -> None:
    desk = Desk()

    async def often(batches: Batches[int, int], number: int) -> None:
        for _ in range(3):
            await batches.ask([number])

    async with running(desk) as batches, trio.open_nursery() as nursery:
        nursery.start_soon(often, batches, 1)
        await wait_all_tasks_blocked()
        for number in (2, 3, 4):
            nursery.start_soon(often, batches, number)
    assert [sorted(batch) for batch in desk.batches] == [[1], [1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 4]]


async def test_a_mistake_in_it_is_its_own_and_others_have_their_turn(autojump_clock: MockClock) -> None:
    done: list[Sequence[int]] = []

    async def perform(things: Sequence[int]) -> Sequence[int]:
        await trio.sleep(1)
        if 1 in things:
            raise ZeroDivisionError
        done.append(things)
        return things

    batches = Batches(perform, 10)

    async def wrong() -> None:
        with pytest.raises(ZeroDivisionError):
            await batches.ask([1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wrong)
        await wait_all_tasks_blocked()
        nursery.start_soon(batches.ask, [2])
    assert done == [[2]]


async def test_more_than_fits_is_a_batch_of_its_own(autojump_clock: MockClock) -> None:
    desk = Desk()
    async with running(desk, most=2) as batches:
        assert await batches.ask([1, 2, 3]) == [2, 4, 6]
    assert desk.batches == [[1, 2, 3]]


async def test_what_cannot_be_kept_spoils_nobody_elses(autojump_clock: MockClock) -> None:
    desk, told = Desk(), dict[int, object]()

    async def one(batches: Batches[int, int], number: int) -> None:
        try:
            told[number] = await batches.ask([number])
        except NotKeepable as error:
            told[number] = type(error)

    async with running(desk) as batches, trio.open_nursery() as nursery:
        for number in (5, -1, 6, 7):
            nursery.start_soon(one, batches, number)
    assert told == {5: [10], -1: NotKeepable, 6: [12], 7: [14]}


async def test_each_is_told_of_trouble_with_an_error_of_its_own(autojump_clock: MockClock) -> None:
    desk, told = Desk(), list[JournalUnavailable]()

    async def one(batches: Batches[int, int], number: int) -> None:
        with pytest.raises(JournalUnavailable, match="away") as error:
            await batches.ask([number])
        told.append(error.value)

    async with running(desk) as batches:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batches.ask, [1])
            await wait_all_tasks_blocked()
            for number in (-2, 6):
                nursery.start_soon(one, batches, number)
        assert [error.retry_after for error in told] == [3.0, 3.0]
        assert told[0] is not told[1]
        assert await batches.ask([4]) == [8]


async def test_who_is_cancelled_before_its_turn_has_not_asked(autojump_clock: MockClock) -> None:
    desk = Desk()
    async with running(desk) as batches, trio.open_nursery() as nursery:
        nursery.start_soon(batches.ask, [1])
        await wait_all_tasks_blocked()
        with trio.move_on_after(0.5) as scope:
            await batches.ask([2])
        assert scope.cancelled_caught
    assert desk.batches == [[1]]


async def test_what_is_under_way_ends_before_its_caller_is_cancelled(autojump_clock: MockClock) -> None:
    desk = Desk()
    async with running(desk) as batches:
        with trio.move_on_after(0.5):
            assert await batches.ask([1]) == [2]
        assert trio.current_time() == 1.0


async def test_whoever_waits_when_it_is_closed_is_told(autojump_clock: MockClock) -> None:
    desk, told = Desk(), list[str]()

    async def one(batches: Batches[int, int], number: int) -> None:
        with pytest.raises(JournalUnavailable, match="closed"):
            await batches.ask([number])
        told.append("closed")

    async with trio.open_nursery() as nursery:
        async with running(desk) as batches:
            for number in (1, 2):
                nursery.start_soon(one, batches, number)
                await wait_all_tasks_blocked()
        with pytest.raises(JournalUnavailable, match="closed"):
            await batches.ask([3])
    assert told == ["closed", "closed"]
