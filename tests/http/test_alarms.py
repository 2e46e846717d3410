"""Alarms ring when their time is up, and not before, nor when they were taken back; what is put off costs no timer."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.http.alarms import Alarms, open_alarms


class Sleeper:
    """Notes when it was rung."""

    def __init__(self) -> None:
        self.rung: list[float] = []

    def ring(self) -> None:
        self.rung.append(trio.current_time())


async def test_it_rings_once_when_the_time_is_up(autojump_clock: MockClock) -> None:
    sleeper = Sleeper()
    async with open_alarms() as alarms:
        alarms.set(sleeper, 10)
        await trio.sleep(100)
    assert sleeper.rung == [10]


async def test_what_is_taken_back_does_not_ring_and_may_be_taken_back_twice(autojump_clock: MockClock) -> None:
    sleeper = Sleeper()
    async with open_alarms() as alarms:
        for _ in range(3):
            alarms.set(sleeper, 10)
            await trio.sleep(9)
            alarms.take_back(sleeper, 10)
            alarms.take_back(sleeper, 10)
        await trio.sleep(100)
    assert sleeper.rung == []


async def test_set_again_it_rings_by_the_last_word(autojump_clock: MockClock) -> None:
    sleeper, other = Sleeper(), Sleeper()
    async with open_alarms() as alarms:
        alarms.set(sleeper, 10)
        await trio.sleep(5)
        alarms.set(other, 10)
        alarms.take_back(sleeper, 10)
        alarms.set(sleeper, 10)
        await trio.sleep(100)
    assert (sleeper.rung, other.rung) == ([15], [15])


async def test_a_shorter_time_rings_before_a_longer_one_that_was_set_first(autojump_clock: MockClock) -> None:
    sleepers = [Sleeper() for _ in range(3)]
    async with open_alarms() as alarms:
        for sleeper, seconds in zip(sleepers, (60, 10, 1), strict=True):
            alarms.set(sleeper, seconds)
            await wait_all_tasks_blocked()
        await trio.sleep(100)
    assert [sleeper.rung for sleeper in sleepers] == [[60], [10], [1]]


async def test_those_whose_times_are_close_are_rung_together(autojump_clock: MockClock) -> None:
    sleepers = [Sleeper() for _ in range(100)]
    async with open_alarms() as alarms:
        for sleeper in sleepers:
            alarms.set(sleeper, 1)
            await trio.sleep(0.001)
        await trio.sleep(10)
    late = [sleeper.rung[0] - (1 + 0.001 * number) for number, sleeper in enumerate(sleepers)]
    assert all(-1e-9 <= seconds <= 0.021 for seconds in late)
    assert len({sleeper.rung[0] for sleeper in sleepers}) <= 6


async def test_nobody_waiting_means_no_timer(autojump_clock: MockClock) -> None:
    async with open_alarms() as alarms:
        alarms.set(sleeper := Sleeper(), 1)
        alarms.take_back(sleeper, 1)
        with trio.move_on_after(100_000):
            await trio.sleep_forever()
        assert trio.current_time() == pytest.approx(100_000)


async def test_a_thousand_at_once_let_others_have_their_turn(autojump_clock: MockClock) -> None:
    sleepers = [Sleeper() for _ in range(1000)]
    turns = 0
    async with open_alarms() as alarms:
        for sleeper in sleepers:
            alarms.set(sleeper, 1)
        await trio.sleep(1)
        while not sleepers[-1].rung:
            turns += 1
            await trio.lowlevel.checkpoint()
    assert turns > 10
    assert all(sleeper.rung == [1] for sleeper in sleepers)


async def test_without_its_task_it_only_keeps() -> None:
    alarms = Alarms()
    alarms.set(sleeper := Sleeper(), 0)
    await wait_all_tasks_blocked()
    assert sleeper.rung == []
