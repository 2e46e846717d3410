"""A database that is away, or is frozen: who asks is told 503 within a second and when to come back, nobody knocks
without end, nothing acknowledged is lost, and service is resumed within five seconds of its return."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.served import Shop, balanced, check_books, shop, until
from tests.sql.postgresql import Server, as_url, running_server

#: Seconds, of a busy machine too. What is promised is five; what it takes is one.
BACK = 5.0


def processes(server: Server) -> list[int]:
    """All processes of the server: its first one, and those that it has begun."""
    first = int((server.data / "postmaster.pid").read_text().split()[0])
    found = [first]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has ended meanwhile
            continue
        if parent == first:
            found.append(int(stat.parent.name))
    return found


@contextmanager
def stopped(server: Server) -> Iterator[Callable[[], None]]:
    """Without a clean end, as in a crash; what starts it again is given."""
    server.stop(signal.SIGQUIT)
    yield server.start


@contextmanager
def frozen(server: Server) -> Iterator[Callable[[], None]]:
    """There, and mute."""
    stopped_processes = processes(server)
    for process in stopped_processes:
        os.kill(process, signal.SIGSTOP)

    def thaw() -> None:
        for process in stopped_processes:
            with suppress(ProcessLookupError):  # one that has ended since
                os.kill(process, signal.SIGCONT)

    try:
        yield thaw
    finally:
        thaw()


@pytest.mark.parametrize("takes_away", [stopped, frozen])
def test_a_database_that_goes_away(
    takes_away: Callable[[Server], AbstractContextManager[Callable[[], None]]], tmp_path: Path
) -> None:
    with running_server() as server:
        url = as_url(server.make_database())
        with shop(url, tmp_path, lease=2.0) as served, ThreadPoolExecutor(4) as threads:
            acknowledged = [number for number in range(20, 40) if served.order(number).status == 201]
            assert len(acknowledged) == 20
            with takes_away(server) as bring_back:
                under_way = list(threads.map(served.order, range(100, 108)))
                assert min(reply.seconds for reply in under_way[:4]) < 2.0  # of those who were the first to find it so
                check_refused(served, [*range(200, 206)])
                assert all(reply.status == 503 and reply.retry_after for reply in under_way), under_way
                bring_back()
                numbers = iter(range(1000, 10_000))
                answered: list[int] = []

                def serves() -> bool:
                    answered.append(next(numbers))
                    return served.order(answered[-1]).status == 201

                assert until(serves, "the database is back, and the shop is not") < BACK
            acknowledged.append(answered[-1])
            acknowledged += [number for number in range(300, 310) if served.order(number).status == 201]
            assert len(acknowledged) == 31
            until(lambda: balanced(tmp_path), "what was under way then was never undone")
        check_books(tmp_path, acknowledged, crashes=1)


def check_refused(served: Shop, numbers: list[int]) -> None:
    """Refused within a second, and without much work."""
    cpu, began = served.cpu_seconds(), time.monotonic()
    replies = []
    for number in numbers:
        replies.append(served.order(number))
        time.sleep(0.2)  # as a client that comes again
    assert all(reply.status == 503 and int(reply.retry_after or 0) > 0 for reply in replies), replies
    assert min(reply.seconds for reply in replies) < 1.0
    assert (served.cpu_seconds() - cpu) / (time.monotonic() - began) < 0.5, "it knocks without end"
