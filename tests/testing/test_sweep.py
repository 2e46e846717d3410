"""A sweep finds each kind of bug that cancellation uncovers, says where, and passes the mended code."""

import contextlib
import os
import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from zerver.errors import InternalError
from zerver.testing import sweep
from zerver.testing.sweep import SweepFailure, SweepReport, cancel_sweep, sweep_calls

Program = Callable[[], Awaitable[object]]


def failure_of(program: Program, check: Callable[[], object] | None = None) -> SweepFailure:
    with pytest.raises(SweepFailure) as caught:
        cancel_sweep(program, check=check)
    return caught.value


# ---- planted bugs, each beside its mended twin ----------------------------------------------


async def swallows() -> None:
    try:
        await trio.sleep(1)
    except BaseException:
        pass


async def lets_through() -> None:
    try:
        await trio.sleep(1)
    except Exception:
        pass


async def swallows_in_a_loop() -> None:
    while True:
        with contextlib.suppress(BaseException):
            await trio.sleep(1)
            return


async def cleans_up_for_ever() -> None:
    try:
        await trio.sleep(1)
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)  # longer than a sweep has patience


async def cleans_up_in_time() -> None:
    try:
        await trio.sleep(1)
    finally:
        with trio.move_on_after(5, shield=True):
            await trio.sleep(100)


async def replaces() -> None:
    try:
        await trio.sleep(1)
    except trio.Cancelled:
        raise ConnectionError("peer is gone") from None


async def replaces_in_a_group() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replaces)
        nursery.start_soon(trio.sleep, 2)


async def leaves_a_task() -> None:
    ended = trio.Event()

    async def helper() -> None:
        await ended.wait()  # the helper's line

    trio.lowlevel.spawn_system_task(helper)
    await trio.sleep(1)
    ended.set()


async def ends_its_task() -> None:
    ended = trio.Event()

    async def helper() -> None:
        await ended.wait()

    trio.lowlevel.spawn_system_task(helper)
    try:
        await trio.sleep(1)
    finally:
        ended.set()


async def leaves_a_socket() -> None:
    sock = trio.socket.socket()
    await trio.sleep(1)
    sock.close()


async def closes_its_socket() -> None:
    with trio.socket.socket():
        await trio.sleep(1)


async def leaves_a_descriptor() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    _descriptors.append(fd)
    await trio.sleep(1)
    os.close(fd)
    _descriptors.remove(fd)


_descriptors: list[int] = []


@pytest.fixture(autouse=True)
def _close_descriptors() -> Iterator[None]:
    yield
    while _descriptors:
        os.close(_descriptors.pop())


async def numbers() -> AsyncGenerator[int, None]:
    for number in range(3):
        yield number


_kept: list[object] = []


async def leaves_a_generator() -> None:
    _kept[:] = [generator := numbers()]
    await anext(generator)
    await trio.sleep(1)
    await generator.aclose()


async def closes_its_generator() -> None:
    async with aclosing(numbers()) as generator:
        await anext(generator)
        await trio.sleep(1)


async def forgets_a_coroutine() -> None:
    make_coroutine = trio.sleep
    later = make_coroutine(1)
    await trio.sleep(1)
    await later


async def makes_it_when_needed() -> None:
    await trio.sleep(1)
    await trio.sleep(1)


BUGS: list[tuple[Program, Program, str]] = [
    (swallows, lets_through, "swallowed Cancelled: the call returned as if nothing had happened"),
    (swallows_in_a_loop, lets_through, "catches Cancelled again and again"),
    (cleans_up_for_ever, cleans_up_in_time, "did not end: task"),
    (replaces, lets_through, "raised instead of Cancelled: ConnectionError: peer is gone"),
    (replaces_in_a_group, lets_through, "raised instead of Cancelled: ConnectionError: peer is gone"),
    (leaves_a_task, ends_its_task, "await ended.wait()  # the helper's line"),
    (leaves_a_socket, closes_its_socket, "ResourceWarning: unclosed <socket.socket"),
    (leaves_a_generator, closes_its_generator, "leaked: async generator 'numbers'"),
    (forgets_a_coroutine, makes_it_when_needed, "RuntimeWarning: coroutine 'sleep' was never awaited"),
]


@pytest.mark.parametrize(("bug", "mended", "message"), BUGS, ids=lambda item: getattr(item, "__name__", ""))
def test_a_planted_bug_is_found_and_its_mended_twin_passes(bug: Program, mended: Program, message: str) -> None:
    failure = failure_of(bug)
    assert any(message in problem for finding in failure.findings for problem in finding.problems), failure
    assert message in str(failure)
    report = cancel_sweep(mended)
    assert report.points == report.moments > 0
    assert report.delivered > 0


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted by /proc")
def test_an_open_descriptor_is_found_and_told_where_it_leads() -> None:
    assert f"→ {os.devnull}" in str(failure_of(leaves_a_descriptor))


# ---- invariants of the user's own -----------------------------------------------------------


class Pool:
    """Two slots. `careful` gives a slot back although it was cancelled."""

    def __init__(self, careful: bool) -> None:
        self.careful = careful
        self.borrowed = 0
        self.lock = trio.Lock()

    async def use(self) -> None:
        self.borrowed += 1
        if self.careful:
            try:
                await trio.sleep(1)
            finally:
                self.borrowed -= 1
        else:
            await trio.sleep(1)
            self.borrowed -= 1

    async def use_locked(self) -> None:
        if self.careful:
            async with self.lock:
                await trio.sleep(1)
        else:
            await self.lock.acquire()
            await trio.sleep(1)
            # A lock whose owner has ended stays locked for ever.
            self.lock.release()

    def check(self) -> None:
        assert self.borrowed == 0, f"{self.borrowed} slots are out"


@pytest.mark.parametrize("careful", [False, True])
def test_a_slot_that_is_not_given_back_is_found_by_check(careful: bool) -> None:
    pool = Pool(careful)

    async def program() -> None:
        pool.borrowed = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.use)
            nursery.start_soon(pool.use)

    if careful:
        assert cancel_sweep(program, check=pool.check).delivered > 0
    else:
        assert "check: AssertionError: 2 slots are out" in str(failure_of(program, pool.check))


@pytest.mark.parametrize("careful", [False, True])
async def test_a_lock_that_stays_locked_is_found_by_an_async_check(
    careful: bool, autojump_clock: trio.testing.MockClock
) -> None:
    pool = Pool(careful)

    async def renew() -> None:
        pool.lock = trio.Lock()

    async def still_usable() -> None:
        await pool.use_locked()

    if careful:
        assert (await sweep_calls(pool.use_locked, check=still_usable)).delivered > 0
    else:
        with pytest.raises(SweepFailure, match=r"check: (did not end within 60 s|BrokenResourceError)"):
            await sweep_calls(pool.use_locked, setup=renew, check=still_usable)


async def test_what_stays_open_is_not_swept_on_once_it_is_broken(autojump_clock: trio.testing.MockClock) -> None:
    pool = Pool(careful=False)
    with pytest.raises(SweepFailure, match="3 later points were not tried") as caught:
        await sweep_calls(pool.use, check=pool.check)
    assert len(caught.value.findings) == 1


async def test_with_a_setup_that_renews_it_every_moment_is_tried(autojump_clock: trio.testing.MockClock) -> None:
    pool = Pool(careful=False)

    async def renew() -> None:
        pool.borrowed = 0

    with pytest.raises(SweepFailure) as caught:
        await sweep_calls(pool.use, setup=renew, check=pool.check)
    assert [finding.point for finding in caught.value.findings] == [1, 2, 3]


# ---- where and when -------------------------------------------------------------------------


def test_a_finding_names_the_moment_the_task_and_the_line_of_the_await() -> None:
    async def worker() -> None:
        try:
            await trio.sleep(1)  # the await that is cut
        except trio.Cancelled:
            raise ValueError from None

    async def program() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker)

    finding = failure_of(program).findings[0]
    assert finding.point == 1
    assert finding.moment.startswith("cancelled before a step of task ")
    assert finding.moment.endswith(".program' at its start")
    assert any(".worker' at " in cut and cut.endswith("# the await that is cut") for cut in finding.cuts)
    assert all(f"{__file__.rpartition(os.sep)[2]}:" in cut for cut in finding.cuts)
    assert finding.problems == ("raised instead of Cancelled: ValueError",)


def test_steps_of_every_task_are_moments() -> None:
    async def several(tasks: int) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(trio.sleep, 1)

    # Each child starts, and wakes up: two steps, two moments each.
    assert cancel_sweep(several, 5).moments - cancel_sweep(several, 2).moments == 3 * 4


async def test_a_call_is_cancelled_at_the_steps_of_its_server_too(autojump_clock: trio.testing.MockClock) -> None:
    progress = 0
    seen: set[int] = set()
    ask, asked = trio.open_memory_channel[trio.Event](1)

    async def serve() -> None:
        nonlocal progress
        async for answer in asked:
            while progress < 5:
                progress += 1
                await trio.sleep(1)
            answer.set()

    async def begin_afresh() -> None:
        nonlocal progress
        await trio.sleep(10)  # the server may still be at work for the call before
        progress = 0

    async def call() -> None:
        await ask.send(answer := trio.Event())
        try:
            await answer.wait()
        finally:
            seen.add(progress)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await sweep_calls(call, setup=begin_afresh)
        nursery.cancel_scope.cancel()
    assert seen >= {1, 2, 3, 4, 5}


def test_a_wait_is_cut_after_it_has_begun_and_before_it_goes_on() -> None:
    """Cancelled in the middle of a wait, and cancelled although what was waited for has come: both happen."""
    endings: set[str] = set()

    async def program() -> None:
        event = trio.Event()
        async with trio.open_nursery() as nursery:

            async def waiter() -> None:
                try:
                    await event.wait()
                except trio.Cancelled:
                    endings.add("cut while it waited")
                    raise
                try:
                    await trio.sleep(1)
                except trio.Cancelled:
                    endings.add("cut with what it waited for in hand")
                    raise
                endings.add("in time")

            nursery.start_soon(waiter)
            await trio.sleep(1)
            event.set()

    cancel_sweep(program)
    assert endings == {"cut while it waited", "cut with what it waited for in hand", "in time"}


def test_the_same_seed_gives_the_same_sweep() -> None:
    async def program() -> None:
        async with trio.open_nursery() as nursery:
            for delay in range(4):
                nursery.start_soon(trio.sleep, delay % 2)

    assert cancel_sweep(program, seed=1) == cancel_sweep(program, seed=1)
    assert str(failure_of(replaces_in_a_group)) == str(failure_of(replaces_in_a_group))


def test_the_report_adds_up() -> None:
    report = cancel_sweep(lets_through)
    assert (report.moments, report.points, report.delivered, report.missed) == (4, 4, 2, 0)
    assert len(report.places) == 1
    assert report.places[0].endswith("await trio.sleep(1)")


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [1]), (2, [1, 4]), (3, [1, 3, 4]), (4, [1, 2, 3, 4]), (9, [1, 2, 3, 4])]
)
def test_max_points_thins_a_sweep_out_evenly(most: int, expected: list[int]) -> None:
    assert cancel_sweep(lets_through, max_points=most).points == len(expected)
    assert sweep._spread(4, most) == expected


def test_max_points_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_points must be at least 1, not 0"):
        cancel_sweep(lets_through, max_points=0)


# ---- programs that are not simply clean -----------------------------------------------------


def test_an_error_without_cancellation_comes_out_as_it_is() -> None:
    async def broken() -> None:
        await trio.sleep(1)
        raise LookupError("no such cart")

    with pytest.raises(LookupError, match="no such cart"):
        cancel_sweep(broken)


def test_harm_without_cancellation_is_told_apart() -> None:
    async def leaves_a_task_always() -> None:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)

    failure = failure_of(leaves_a_task_always)
    assert "harm without any cancellation" in str(failure)
    assert [finding.point for finding in failure.findings] == [0]


def test_a_cancellation_that_comes_too_late_is_no_swallowing() -> None:
    async def ends_at_once() -> None:
        pass

    report = cancel_sweep(ends_at_once)
    assert report.points > 0
    assert report.delivered == 0


def test_a_shielded_cleanup_that_times_out_is_no_swallowing() -> None:
    async def program() -> None:
        with trio.move_on_after(2, shield=True):
            await trio.sleep(100)

    assert isinstance(cancel_sweep(program), SweepReport)


def test_a_program_that_is_not_deterministic_ends_the_sweep_all_the_same() -> None:
    runs = 0

    async def gets_shorter() -> None:
        nonlocal runs
        runs += 1
        for _ in range(20 - runs):
            await trio.lowlevel.checkpoint()

    report = cancel_sweep(gets_shorter)
    assert report.missed > 0
    assert report.points == report.moments


def test_threads_are_swept_on_the_real_clock() -> None:
    async def program() -> None:
        await trio.to_thread.run_sync(lambda: None)

    assert cancel_sweep(program, clock=None).points > 0


def test_a_thread_left_running_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_GRACE", 0)  # nobody is going to end it
    stop = threading.Event()

    async def program() -> None:
        thread = threading.Thread(target=stop.wait, name="flusher")
        thread.start()
        await trio.lowlevel.checkpoint()
        stop.set()
        thread.join()
        stop.clear()

    try:
        assert "leaked: thread 'flusher'" in str(failure_of(program))
    finally:
        stop.set()


def test_arguments_reach_the_program() -> None:
    async def program(first: int, second: str) -> None:
        if (first, second) != (1, "two"):
            raise ValueError

    assert cancel_sweep(program, 1, "two").points > 0


def test_warnings_of_other_kinds_are_not_held_back() -> None:
    async def program() -> None:
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    with pytest.warns(DeprecationWarning, match="old"):
        cancel_sweep(program)


# ---- inside a running program ---------------------------------------------------------------


async def test_the_host_may_cancel_a_sweep(autojump_clock: trio.testing.MockClock) -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        await trio.sleep(10)

    with trio.move_on_after(5) as scope:
        await sweep_calls(call)
    assert scope.cancelled_caught
    assert calls == 1


async def test_tasks_outside_the_call_get_time_to_finish_what_it_caused(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async def call() -> None:
        nursery.start_soon(trio.sleep, 0.5)  # an actor that winds down by itself
        await trio.sleep(0.1)

    assert (await sweep_calls(call)).points > 0


async def test_a_task_the_call_leaves_in_an_outer_nursery_is_found(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async def call() -> None:
        nursery.start_soon(trio.sleep_forever)

    with pytest.raises(SweepFailure, match=r"leaked: task 'trio\.sleep_forever'"):
        await sweep_calls(call)
    nursery.cancel_scope.cancel()


async def test_a_clock_that_stands_still_is_refused(mock_clock: trio.testing.MockClock) -> None:
    with pytest.raises(ValueError, match="this MockClock stands still"):
        await sweep_calls(lets_through)


async def test_a_living_resource_is_swept_and_still_works(autojump_clock: trio.testing.MockClock) -> None:
    @asynccontextmanager
    async def open_echo() -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
        near, far = trio.testing.memory_stream_pair()
        turn = trio.Lock()

        async def echo() -> None:
            async for chunk in far:
                await far.send_all(chunk)

        async def call(data: bytes) -> bytes:
            async with turn:
                # The exchange is finished even if nobody wants it any more: a half-read answer would be
                # taken for the next one's.
                with trio.move_on_after(5, shield=True):
                    await near.send_all(data)
                    return bytes(await near.receive_some(len(data)))
                raise TimeoutError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            yield call
            nursery.cancel_scope.cancel()

    async with open_echo() as call:

        async def one_call() -> None:
            await call(b"one")

        async def the_next_answer_is_its_own() -> None:
            assert await call(b"two") == b"two"

        report = await sweep_calls(one_call, check=the_next_answer_is_its_own)
    assert report.delivered > 0


# ---- what a sweep needs of Trio -------------------------------------------------------------


def test_a_trio_without_the_private_hooks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherScope:
        pass

    monkeypatch.setattr(trio, "CancelScope", OtherScope)
    with pytest.raises(InternalError, match="this Trio has no _cancel_status"):
        cancel_sweep(lets_through)


def test_the_failure_is_an_assertion_error() -> None:
    assert isinstance(failure_of(swallows), AssertionError)
