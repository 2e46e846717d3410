"""Proves that a run pays for one append, that listeners get every run once and in order, and that nothing grows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from tests.trace import shop
from tests.trace.test_ring import made
from zerver import App
from zerver.errors import DefinitionError
from zerver.runtime import Result, open_runtime
from zerver.testing import cancel_sweep
from zerver.trace import Ring
from zerver.trace.recorder import BATCH_SECONDS, SLICE, RecorderStatistics, WallClock, open_recorder


class Heard:
    """A listener that remembers what it was given, and when; and raises the first so many times."""

    def __init__(self, raises: int = 0) -> None:
        self.batches: list[list[int]] = []
        self.times: list[float] = []
        self.raises = raises

    def take(self, results: Sequence[Result], /) -> None:
        self.batches.append([number(result) for result in results])
        self.times.append(trio.current_time())
        if self.raises:
            self.raises -= 1
            raise ValueError("no")

    @property
    def all(self) -> list[int]:
        return [one for batch in self.batches for one in batch]


def number(result: Result) -> int:
    return int(result.run_id.removeprefix("req_"), 16)


async def test_runs_come_together_for_a_moment_and_go_to_everybody(autojump_clock: object) -> None:
    one, other = Heard(), Heard()
    async with open_recorder(listeners=[one]) as recorder:
        recorder.listen(other)
        began = trio.current_time()
        recorder.add(made(1))
        await trio.sleep(BATCH_SECONDS / 2)
        recorder.add(made(2))
        await trio.sleep(1.0)
        recorder.add(made(3))
        await trio.sleep(1.0)
    assert one.batches == other.batches == [[1, 2], [3]]
    assert [at - began for at in one.times] == pytest.approx([BATCH_SECONDS, BATCH_SECONDS / 2 + 1.0 + BATCH_SECONDS])


async def test_many_are_handed_over_a_slice_at_a_time_and_others_have_their_turn(autojump_clock: object) -> None:
    heard = Heard()
    turns: list[int] = []

    async def other() -> None:
        while len(heard.all) + SLICE <= 1000:
            turns.append(len(heard.all))
            await trio.lowlevel.checkpoint()

    async with open_recorder(listeners=[heard]) as recorder, trio.open_nursery() as nursery:
        await trio.testing.wait_all_tasks_blocked()
        for at in range(1000):
            recorder.add(made(at))
        nursery.start_soon(other)
    assert heard.all == list(range(1000))
    assert max(map(len, heard.batches)) == SLICE
    assert len(set(turns)) > 5


async def test_the_ring_has_all_that_have_ended_by_now(autojump_clock: object) -> None:
    ring = Ring(10)
    async with open_recorder(ring=ring) as recorder:
        recorder.add(made(1))
        assert len(ring) == 0
        assert recorder.ring is ring
        assert len(ring) == 1


async def test_whoever_leaves_is_told_no_more(autojump_clock: object) -> None:
    heard = Heard()
    async with open_recorder() as recorder:
        recorder.listen(heard)
        recorder.add(made(1))
        recorder.flush()
        recorder.leave(heard)
        recorder.leave(heard)
        recorder.add(made(2))
        recorder.flush()
    assert heard.all == [1]


async def test_a_listener_that_raises_is_reported_now_and_then_and_stops_nobody(autojump_clock: object) -> None:
    told: list[Exception] = []
    bad, good = Heard(raises=10**6), Heard()
    async with open_recorder(listeners=[bad, good], on_defect=told.append) as recorder:
        for at in range(30):
            recorder.add(made(at))
            await trio.sleep(1.0)
        assert recorder.statistics() == RecorderStatistics(handed_over=30, pending=0, dropped=0, listener_errors=30)
    assert good.all == bad.all == list(range(30))
    assert [str(defect) for defect in told] == ["no"] * 3  # once in ten seconds


async def test_whoever_is_told_of_defects_may_have_one(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    def on_defect(defect: Exception) -> None:
        raise OSError("the log is full") from defect

    async with open_recorder(listeners=[Heard(raises=1)], on_defect=on_defect) as recorder:
        recorder.add(made(1))
    assert [record.message for record in caplog.records] == ["on_defect has a defect"]


async def test_a_defect_is_logged_by_default(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    async with open_recorder(listeners=[Heard(raises=1)]) as recorder:
        recorder.add(made(1))
    assert [(record.name, record.message) for record in caplog.records] == [
        ("zerver.trace", "a listener of the trace has a defect")
    ]


async def test_what_is_too_much_is_dropped_and_counted(autojump_clock: object) -> None:
    heard = Heard()
    async with open_recorder(listeners=[heard], most_pending=5) as recorder:
        for at in range(8):
            recorder.add(made(at))
        assert recorder.statistics() == RecorderStatistics(handed_over=0, pending=5, dropped=3, listener_errors=0)
        await trio.sleep(1.0)
        recorder.add(made(8))
    assert heard.all == [0, 1, 2, 3, 4, 8]


async def test_leaving_hands_over_what_is_pending_even_when_cancelled(autojump_clock: object) -> None:
    heard = Heard()
    with trio.CancelScope() as scope:
        async with open_recorder(listeners=[heard]) as recorder:
            recorder.add(made(1))
            scope.cancel()
            await trio.sleep_forever()
    assert heard.all == [1]
    assert scope.cancelled_caught


async def test_the_bodys_own_error_leaves_as_it_is(autojump_clock: object) -> None:
    heard = Heard()
    with pytest.raises(KeyError):
        async with open_recorder(listeners=[heard]) as recorder:
            recorder.add(made(1))
            raise KeyError
    assert heard.all == [1]


async def test_a_listener_may_look_at_the_ring_and_change_who_listens(autojump_clock: object) -> None:
    class Curious(Heard):
        def take(self, results: Sequence[Result], /) -> None:
            super().take(results)
            assert results[-1] in recorder.ring.latest(1000)
            recorder.leave(self)

    curious, late = Curious(), Heard()
    async with open_recorder(listeners=[curious, late]) as recorder:
        for at in range(200):
            recorder.add(made(at))
        await trio.sleep(1.0)
    assert curious.all == list(range(SLICE))
    assert late.all == list(range(200))


async def test_it_observes_a_runtime_to_its_last_run(autojump_clock: object) -> None:
    heard: list[Result] = []

    class Keeps:
        def take(self, results: Sequence[Result], /) -> None:
            heard.extend(results)

    async with open_recorder(listeners=[Keeps()]) as recorder:
        result = await shop.run(shop.CHECKOUT, {}, observers=[recorder.add])
        assert recorder.ring.get(result.run_id) is result
    assert heard == [result]


async def test_a_sleeping_recorder_costs_nothing(autojump_clock: object) -> None:
    async with open_recorder(listeners=[Heard()]):
        before = trio.lowlevel.current_statistics()
        await trio.sleep(1000)
        assert trio.lowlevel.current_statistics().tasks_living == before.tasks_living


class Steps(trio.abc.Instrument):
    """Counts what the recorder's tasks do."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "Recorder.hand_over" in task.name


async def test_a_full_batch_is_handed_over_at_once_and_wakes_a_task_once(autojump_clock: object) -> None:
    steps, heard = Steps(), Heard()
    async with open_recorder(listeners=[heard]) as recorder:
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        recorder.add(made(0))
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps)
        for at in range(1, 10 * SLICE):
            recorder.add(made(at))
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(steps)
        assert steps.count == 10
        assert (list(map(len, heard.batches)), trio.current_time()) == ([SLICE] * 10, began)


async def test_what_does_not_fill_a_batch_comes_a_moment_later(autojump_clock: object) -> None:
    heard = Heard()
    async with open_recorder(listeners=[heard]) as recorder:
        await trio.testing.wait_all_tasks_blocked()
        for at in range(SLICE + 3):
            recorder.add(made(at))
        await trio.sleep(BATCH_SECONDS / 2)
        assert list(map(len, heard.batches)) == [SLICE]
        await trio.sleep(BATCH_SECONDS)
        assert list(map(len, heard.batches)) == [SLICE, 3]


async def test_a_queue_that_holds_nothing_is_refused() -> None:
    with pytest.raises(DefinitionError, match="most_pending=0"):
        async with open_recorder(most_pending=0):
            pass


async def test_the_wall_clock_knows_when_a_record_was_made(autojump_clock: trio.abc.Clock) -> None:
    async with open_runtime(App()) as runtime:
        at = runtime.clock()
        wall = WallClock()
        await trio.sleep(5)
        assert wall.unix_ns(runtime.clock()) - wall.unix_ns(at) == pytest.approx(5e9)
    assert wall.unix_ns(at) > 1_700_000_000_000_000_000


def test_however_it_is_cancelled_every_run_is_handed_over_once() -> None:
    heard = Heard()
    added: list[int] = []

    async def program() -> None:
        heard.batches.clear()
        added.clear()
        async with open_recorder(listeners=[heard]) as recorder:
            for at in range(4):
                added.append(at)
                recorder.add(made(at))
                await trio.sleep(0.03)

    def check() -> None:
        assert heard.all == added

    cancel_sweep(program, check=check)
