"""Trio's time follows from a runtime's clock, even if the loop stood still while the two were compared."""

from __future__ import annotations

from trio.testing import MockClock

from zerver.runtime.clocks import ahead


async def test_a_look_that_took_long_is_not_believed(mock_clock: MockClock) -> None:
    mock_clock.jump(1000.0)
    looks = iter([7_250_000_000, 7_000_000_000, 7_000_000_000])
    assert ahead(lambda: next(looks)) == 993.0
