"""What runs cost is learnt: quickly at first, slowly later, and odd ones move the duration little."""

from __future__ import annotations

import pytest

from zerver.core.work import Work


def test_the_first_runs_count_alike() -> None:
    work = Work()
    assert work.cpu is None
    for cpu in (0.001, 0.003, 0.005):
        work.learn(cpu, 0.1)
    assert work.cpu == pytest.approx(0.003)


def test_later_runs_move_it_slowly() -> None:
    work = Work()
    for _ in range(100):
        work.learn(0.001, 0.1)
    work.learn(0.101, 0.1)
    assert work.cpu == pytest.approx(0.003)
    for _ in range(500):
        work.learn(0.010, 0.1)
    assert work.cpu == pytest.approx(0.010, rel=0.05)


def test_the_duration_is_a_median() -> None:
    work = Work()
    for number in range(300):
        work.learn(0.001, 3600.0 if number % 10 == 0 else 0.1)
    assert 0.08 < work.duration < 0.14
    for _ in range(200):
        work.learn(0.001, 2.0)
    assert work.duration == pytest.approx(2.0, rel=0.06)
    for _ in range(1000):
        work.learn(0.0, 0.0)
    assert 0.0 < work.duration < 0.001
