"""A burst is no queue: a class is overloaded when even its youngest wait of a tick was too long."""

from __future__ import annotations

import pytest

from zerver.core.congestion import TICK, Congestion


def test_a_queue_that_stands_is_overload_and_a_burst_is_not() -> None:
    class_ = Congestion(0.02, 0.25)
    class_.tick(TICK, 0.03)
    assert not class_.overloaded, "what has just begun does not stand yet"
    class_.tick(TICK, 0.13)
    assert class_.overloaded
    class_.seen(0.0)  # the queue was empty once
    class_.tick(TICK, 0.09)
    assert not class_.overloaded
    class_.tick(TICK, 0.19)
    assert class_.overloaded
    class_.tick(TICK, 0.01)
    assert not class_.overloaded


def test_the_rate_is_measured_but_never_below_the_floor() -> None:
    class_ = Congestion(0.02, 0.25)
    assert class_.rate == 0.25
    for _ in range(30):
        class_.served(0.08)
        class_.tick(TICK, 0.0)
    assert class_.rate == pytest.approx(0.8, rel=0.01)
    class_.tick(3600.0, 0.0)
    assert class_.rate == 0.25, "an hour of quiet is many ticks, not one"
    class_.tick(float("inf"), 0.0)
    assert class_.rate == 0.25
