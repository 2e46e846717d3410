"""The watchdog sees where a turn hangs, once, and only while it is the same turn."""

from __future__ import annotations

import threading

from zerver.runtime.watchdog import PERIOD, WATCHES, Watchdog


def test_it_looks_when_a_turn_is_due_and_sees_its_line() -> None:
    now, due = [0], [0]
    watchdog = Watchdog(lambda: now[0], lambda: due[0])
    assert watchdog.look() == PERIOD
    due[0] = 20_000_000
    now[0] = 15_000_000
    assert watchdog.look() == 0.005
    now[0] = 21_000_000
    assert watchdog.look() == PERIOD
    assert watchdog.seen(20_000_000).startswith("runtime/test_watchdog.py:")
    assert watchdog.seen(19_000_000) == ""


def test_what_is_seen_after_the_turn_is_not_believed() -> None:
    answers = iter([5, 0])
    watchdog = Watchdog(lambda: 10, lambda: next(answers))
    watchdog.look()
    assert watchdog.seen(5) == ""


def test_its_thread_wakes_looks_parks_and_ends() -> None:
    looked = threading.Event()

    def due() -> int:
        looked.set()
        return 0

    before, now = threading.active_count(), [0]
    watchdog = Watchdog(lambda: now[0], due)
    for _ in range(3):
        watchdog.wake()
        looked.clear()
        assert looked.wait(10)
        now[0] += WATCHES
        while watchdog._working.is_set():  # it looks once more, and parks
            assert looked.wait(10)
    watchdog.wake()
    watchdog.close()
    assert threading.active_count() == before
    Watchdog(lambda: 0, due).close()
