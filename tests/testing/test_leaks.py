"""`no_leaks` names what a block has left behind, and is silent about what it has replaced or ended."""

import os
import socket
import threading
import warnings
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
import trio.testing

from zerver.testing.leaks import LeakFound, no_leaks

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted by /proc")


class Connection:
    itself: object = None


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Ends the threads of a test, and joins those it has started."""
    before = set(threading.enumerate())
    event = threading.Event()
    yield event
    event.set()
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("Trio thread"):
            thread.join()


@needs_proc
def test_an_open_file_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pytest.raises(LeakFound) as caught, no_leaks():
        fd = os.open(path, os.O_CREAT)
    os.close(fd)
    assert caught.value.leaks == (f"file descriptor {fd} → {path}",)


@needs_proc
def test_an_open_socket_is_named_by_its_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(LeakFound) as caught, no_leaks():
            client = socket.create_connection(("127.0.0.1", port))
        mine = client.getsockname()[1]
        client.close()
    assert len(caught.value.leaks) == 1
    assert caught.value.leaks[0].endswith(f"127.0.0.1:{mine} → 127.0.0.1:{port}")


@needs_proc
def test_a_replaced_connection_is_no_leak() -> None:
    first = socket.socket()
    with no_leaks():
        second = socket.socket()
        first.close()
    second.close()


def test_a_thread_is_named(release: threading.Event) -> None:
    with pytest.raises(LeakFound) as caught, no_leaks(grace=0):
        threading.Thread(target=release.wait, name="writer", daemon=True).start()
    assert caught.value.leaks == ("thread 'writer'",)


def test_a_thread_that_is_about_to_end_is_waited_for() -> None:
    ends = threading.Event()
    with no_leaks(grace=60):
        threading.Thread(target=ends.wait, name="slow").start()
        ends.set()


async def test_an_idle_worker_of_trio_is_no_leak() -> None:
    with no_leaks():
        await trio.to_thread.run_sync(lambda: None)


async def test_an_abandoned_worker_is_a_leak_until_it_ends(release: threading.Event) -> None:
    started = trio.Event()

    def query() -> None:
        trio.from_thread.run_sync(started.set)
        release.wait()

    async def ask() -> None:
        await trio.to_thread.run_sync(query, abandon_on_cancel=True)

    with pytest.raises(LeakFound, match=r"1 leaked:\n  thread 'query from .*'"), no_leaks(grace=0):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await started.wait()
            nursery.cancel_scope.cancel()
    release.set()
    await trio.testing.wait_all_threads_completed()


async def test_a_task_is_named_with_the_line_it_waits_at(nursery: trio.Nursery) -> None:
    async def pump() -> None:
        await trio.sleep_forever()  # the line

    with pytest.raises(LeakFound) as caught, no_leaks():
        nursery.start_soon(pump)
        await trio.testing.wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()
    assert len(caught.value.leaks) == 1
    assert ".pump' at " in caught.value.leaks[0]
    assert caught.value.leaks[0].endswith("await trio.sleep_forever()  # the line")


async def test_tasks_that_have_ended_are_no_leak() -> None:
    with no_leaks():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)


def test_objects_are_counted_by_type_when_asked() -> None:
    kept: list[Connection] = []
    with no_leaks():
        kept.append(Connection())
    with no_leaks(Connection):
        Connection()
    with pytest.raises(LeakFound, match=r"1 leaked:\n  object .*Connection at 0x"), no_leaks(Connection):
        kept.append(Connection())


def test_objects_in_a_cycle_are_collected_first() -> None:
    with no_leaks(Connection):
        one = Connection()
        one.itself = one
        del one


def test_a_socket_dropped_unclosed_is_a_leak_though_its_descriptor_is_gone() -> None:
    with pytest.raises(LeakFound, match="ResourceWarning: unclosed <socket"), no_leaks():
        socket.socket()


def test_a_coroutine_never_awaited_is_a_leak() -> None:
    with pytest.raises(LeakFound, match="RuntimeWarning: coroutine 'sleep' was never awaited"), no_leaks():
        make_coroutine = trio.sleep
        make_coroutine(1)


async def test_an_async_generator_that_is_not_closed_is_a_leak() -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        yield 1
        yield 2

    with no_leaks():
        async with aclosing(numbers()) as closed:
            await anext(closed)
    with pytest.raises(LeakFound, match=r"1 leaked:\n  async generator '.*numbers' at .*:\d+"), no_leaks():
        left = numbers()
        await anext(left)
    await left.aclose()


def test_other_warnings_go_where_they_would_have_gone() -> None:
    with pytest.warns(DeprecationWarning, match="old"), no_leaks():
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def test_an_error_of_the_block_is_the_better_news() -> None:
    kept: list[Connection] = []
    with pytest.raises(ZeroDivisionError), no_leaks(Connection):
        kept.append(Connection())
        raise ZeroDivisionError


def test_what_cannot_be_counted_is_noted() -> None:
    with no_leaks() as check:
        pass
    counted = Path("/proc/self/fd").is_dir()
    assert check.notes == (() if counted else ("file descriptors are not counted: there is no /proc/self/fd here",))
