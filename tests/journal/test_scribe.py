"""The scribe: batches in order, each acknowledged after it was written, and what it does when that cannot be."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio
import trio.testing

from zerver.errors import DamagedJournal, JournalError, JournalUnavailable, LeaseLost
from zerver.journal import scribe as scribes
from zerver.journal.scribe import BEHIND_SECONDS, Doubtful, Scribe, lease_lost, open_scribe
from zerver.runtime.journal import Entry, Opening, Page, RunHead


def page(number: int, run_id: str = "r", status: str = "", line: bytes = b"x") -> Page:
    return Page(run_id, 1, number, [line], status)


def opening(run_id: str = "r") -> Opening:
    return Opening(RunHead(run_id, "flow", "1", "acme", "default", 1, "me"), "p", b"", [b"0"])


class World:
    """What the scribe writes to. It takes a second for each batch; next: what it raises, None to write."""

    def __init__(self) -> None:
        self.batches: list[list[Entry]] = []
        self.withdrawn: list[Opening] = []
        self.next: list[Callable[[], Exception] | None] = []
        self.refused: set[Entry] = set()
        self.seconds = 1.0
        self.attempts = 0

    async def perform(self, entries: Sequence[Entry], withdrawn: Sequence[Opening]) -> list[JournalError | None]:
        self.attempts += 1
        await trio.sleep(self.seconds)
        fails = self.next.pop(0) if self.next else None
        if fails is not None:
            raise fails()
        self.withdrawn += withdrawn
        self.batches.append(list(entries))
        return [lease_lost(entry) if entry in self.refused else None for entry in entries]


def away() -> Exception:
    return JournalUnavailable("away", 0.25)


def doubtful() -> Exception:
    return Doubtful("no answer")


@asynccontextmanager
async def open_at_work(world: World, mute: float) -> AsyncGenerator[Scribe, None]:
    scribe = Scribe("place", world.perform, mute)
    async with open_scribe(scribe, close_seconds=10.0):
        yield scribe


def at_work(world: World) -> AbstractAsyncContextManager[Scribe]:
    return open_at_work(world, float("inf"))


async def test_what_comes_while_a_batch_is_written_is_the_next_one(autojump_clock: trio.testing.MockClock) -> None:
    world, told = World(), []

    async def one(number: int) -> None:
        await trio.sleep(number * 0.1)
        await scribe.write(page(number))
        told.append((number, trio.current_time() - began))

    async with at_work(world) as scribe:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(one, number)
    assert world.batches == [[page(0)], [page(number) for number in range(1, 5)]]
    assert sorted(told) == [(0, 1.0), *[(number, 2.0) for number in range(1, 5)]]


async def test_behind_waits_for_an_interval_or_for_somebody_who_does_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    world.seconds = 0.0
    async with at_work(world) as scribe:
        scribe.write_behind(page(1))
        await trio.sleep(BEHIND_SECONDS / 2)
        assert world.batches == []
        scribe.write_behind(page(2))
        await trio.sleep(BEHIND_SECONDS)
        assert world.batches == [[page(1), page(2)]]
        scribe.write_behind(page(3))
        await scribe.write(page(4))
        assert world.batches[1:] == [[page(3), page(4)]]


async def test_without_an_answer_it_is_written_once_more(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.next = [doubtful]
    async with at_work(world) as scribe:
        await scribe.write(opening())
        assert (world.batches, world.withdrawn, world.attempts) == ([[opening()]], [], 2)
        assert scribe.statistics().trouble == ""


async def test_a_doubtful_opening_is_withdrawn_before_anything_else(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.next = [doubtful, doubtful]
    async with at_work(world) as scribe:
        with pytest.raises(JournalUnavailable, match="no answer"):
            await scribe.write(opening("lost"))
        await trio.sleep(1)
        world.next = [away]
        with pytest.raises(JournalUnavailable, match="away"):
            await scribe.write(opening("never"))
        await trio.sleep(1)
        await scribe.write(opening("next"))
        assert world.withdrawn == [opening("lost")]
        await scribe.write(opening("other"))
        assert world.withdrawn == [opening("lost")]


async def test_an_opening_is_doubtful_though_its_second_try_was_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    world.next = [doubtful, away]
    async with at_work(world) as scribe:
        with pytest.raises(JournalUnavailable, match="away"):
            await scribe.write(opening("lost"))
        await trio.sleep(3)
        assert world.withdrawn == [opening("lost")]


async def test_it_is_withdrawn_though_nobody_writes_any_more(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.next = [doubtful, doubtful, away, doubtful, away]
    async with at_work(world) as scribe:
        with pytest.raises(JournalUnavailable):
            await scribe.write(opening("lost"))
        await trio.sleep(20)
        assert world.withdrawn == [opening("lost")]
        assert scribe.statistics().trouble == ""


async def test_closing_tries_once_to_withdraw(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.next = [doubtful, doubtful, *[away] * 9]
    async with at_work(world) as scribe:
        with pytest.raises(JournalUnavailable):
            await scribe.write(opening("lost"))
    assert world.attempts == 3


async def test_while_it_is_away_everybody_is_told_at_once_and_for_how_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    world.next = [away, away]
    async with at_work(world) as scribe:
        with pytest.raises(JournalUnavailable) as told:
            await scribe.write(page(1))
        assert told.value.retry_after == 0.25
        began = trio.current_time()
        with pytest.raises(JournalUnavailable):
            await scribe.write(page(2))
        assert trio.current_time() == began
        assert scribe.statistics().trouble == "away"
        await trio.sleep(scribes.FIRST_BACKOFF)
        with pytest.raises(JournalUnavailable):
            await scribe.write(page(3))
        await trio.sleep(2 * scribes.FIRST_BACKOFF)
        await scribe.write(page(4))
        assert scribe.statistics().trouble == ""
        assert world.batches == [[page(4)]]


async def test_those_who_wait_behind_a_failing_batch_are_told_too(autojump_clock: trio.testing.MockClock) -> None:
    world, told = World(), []
    world.next = [away]

    async def one(number: int) -> None:
        await trio.sleep(number * 0.1)
        with pytest.raises(JournalUnavailable):
            await scribe.write(page(number))
        told.append(trio.current_time() - began)

    async with at_work(world) as scribe:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(one, number)
    assert told == [1.0, 1.0, 1.0]


async def test_what_is_written_behind_keeps_its_place_while_it_is_away(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.next = [away, away, doubtful, doubtful]
    async with at_work(world) as scribe:
        for number in range(3):
            scribe.write_behind(page(number))
        await trio.sleep(1.5)
        scribe.write_behind(page(3))
        assert scribe.statistics().behind == 4
        await scribe.flush()
        assert world.batches == [[page(number) for number in range(4)]]
        assert scribe.statistics().behind == scribe.statistics().behind_bytes == 0


async def test_of_what_is_written_behind_so_much_waits_and_no_run_gets_a_hole(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scribes, "MOST_BEHIND", 10)
    world = World()
    async with at_work(world) as scribe:
        scribe.write_behind(page(1, line=b"x" * 9))
        scribe.write_behind(page(2, line=b"xx"))
        scribe.write_behind(page(3))
        scribe.write_behind(page(1, "other"))
        await scribe.flush()
        scribe.write_behind(page(4))
        scribe.write_behind(page(5, status="done"))
        scribe.write_behind(page(0))  # of another run, later, with the same id
        await scribe.flush()
        assert world.batches == [[page(1, line=b"x" * 9), page(1, "other")], [page(0)]]
        assert scribe.statistics().dropped == 4


async def test_who_has_lost_a_lease_is_told_alone(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.refused = {page(1)}
    async with at_work(world) as scribe, trio.open_nursery() as nursery:
        nursery.start_soon(scribe.write, page(0))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(scribe.write, page(2))
        with pytest.raises(LeaseLost, match="another owner's by now"):
            await scribe.write(page(1))
    assert scribe.statistics().refused == 1


async def test_a_damaged_journal_is_said_to_be_and_drops_what_waits(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.next = [lambda: DamagedJournal("torn")]
    async with at_work(world) as scribe:
        scribe.write_behind(page(1))
        with pytest.raises(DamagedJournal, match="torn"):
            await scribe.write(page(1, "other"))
        assert scribe.statistics().dropped == 1
        assert scribe.statistics().trouble == "torn"


async def test_a_cancelled_caller_in_the_queue_has_written_nothing(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with at_work(world) as scribe, trio.open_nursery() as nursery:
        nursery.start_soon(scribe.write, page(0))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.5) as scope:
            await scribe.write(page(1))
        assert scope.cancelled_caught
        assert scribe.statistics().waiting == 1
    assert world.batches == [[page(0)]]


async def test_a_caller_whose_batch_is_being_written_hears_how_it_went(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with at_work(world) as scribe:
        with trio.move_on_after(0.5) as scope:
            await scribe.write(page(0))
        assert not scope.cancelled_caught
        assert world.batches == [[page(0)]]


async def test_who_has_waited_for_a_mute_journal_is_not_kept_until_it_has_failed_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world, told = World(), []
    world.seconds = 3.6

    async def write(scribe: Scribe, entry: Entry, patience: float) -> None:
        with trio.move_on_after(patience) as scope:
            try:
                await scribe.write(entry)
            except JournalUnavailable:
                told.append((entry, trio.current_time() - began))
        assert not scope.cancelled_caught

    async with open_at_work(world, mute=0.5) as scribe:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, scribe, opening("lost"), 0.8)
            nursery.start_soon(write, scribe, page(1), 0.8)
        assert sorted(told, key=str) == [(opening("lost"), 0.8), (page(1), 0.8)]
        assert scribe.statistics().waiting == 0
        await trio.sleep(4)
        assert world.batches[0] in ([opening("lost"), page(1)], [page(1), opening("lost")])
        world.seconds = 1.0
        await scribe.write(page(1))  # the very same again
        assert world.withdrawn == [opening("lost")]  # its caller was told that it has not begun
        assert scribe.statistics().waiting == 0


async def test_while_it_may_still_answer_in_time_they_wait(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with open_at_work(world, mute=0.5) as scribe:
        with trio.move_on_after(0.4) as scope:
            await scribe.write(page(0))
        assert not scope.cancelled_caught
        assert world.batches == [[page(0)]]


async def test_a_mute_journal_that_fails_after_all_withdraws_what_may_be_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    world.seconds, world.next = 1.8, [doubtful, doubtful]
    async with open_at_work(world, mute=0.5) as scribe:
        scribe.write_behind(page(7))
        with pytest.raises(JournalUnavailable, match=r"has not answered for 0\.5 s"), trio.move_on_after(0.8):
            await scribe.write(opening("lost"))
        await trio.sleep(20)
        assert world.withdrawn == [opening("lost")]
        assert [page(7)] in world.batches  # what is written behind keeps its place
        assert (scribe.statistics().waiting, scribe.statistics().behind) == (0, 0)


async def test_closing_writes_what_is_left(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with at_work(world) as scribe, trio.open_nursery() as nursery:
        nursery.start_soon(scribe.write, page(0))
        await trio.testing.wait_all_tasks_blocked()
        scribe.write_behind(page(1))
        await scribe.close(10.0)
    assert world.batches == [[page(0)], [page(1)]]


async def test_closing_does_not_wait_for_a_journal_that_is_away(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.next = [away] * 9
    async with at_work(world) as scribe:
        scribe.write_behind(page(1))
        await trio.sleep(1.06)
        began = trio.current_time()
    assert trio.current_time() - began <= 2.0
    assert (scribe.statistics().behind, scribe.statistics().dropped) == (0, 1)


async def test_closing_ends_whatever_hangs(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    world.seconds = float("inf")
    async with trio.open_nursery() as nursery, at_work(world) as scribe:

        async def wait() -> None:
            with pytest.raises(JournalUnavailable, match="closed"):
                await scribe.write(page(0))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
    assert trio.current_time() - began == 10.0
