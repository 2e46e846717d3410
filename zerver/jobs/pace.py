"""Pace: how many jobs a worker takes before it has a seat for them.

Law: no job waits behind a slow one for long. Ahead is taken what the seats can begin within AHEAD_SECONDS, as jobs have
gone lately; one that has found none within PATIENCE is put back for other workers, and then nothing is taken ahead
until jobs are short again. Where a queue is limited nothing ever is: what is not begun would keep others from it.

Short jobs cost more to fetch than to do: without this the seats would stand empty while the next ones are fetched.
"""

from __future__ import annotations

from typing import Final

#: Seconds within which what is taken ahead is to be begun.
AHEAD_SECONDS: Final = 0.05

#: Seconds after which it is put back.
PATIENCE: Final = 1.0

#: How many are taken ahead at most, for each seat.
_MOST: Final = 32

#: What the last job counts for.
_SHARE: Final = 0.2


class Pace:
    """How long jobs have held their seats lately."""

    def __init__(self, seats: int, *, allowed: bool) -> None:
        self._seats = seats
        self._most = _MOST * seats if allowed else 0
        self._seconds = float("inf")
        self.ahead = 0

    def held(self, seconds: float) -> None:
        """A job has held its seat for so long."""
        known = min(self._seconds, PATIENCE)
        self._seconds = known + _SHARE * (seconds - known)
        within = self._seats * AHEAD_SECONDS
        self.ahead = self._most if self._seconds * self._most <= within else int(within / self._seconds)

    def waited_in_vain(self) -> None:
        """A job that was taken ahead has found no seat."""
        self._seconds, self.ahead = float("inf"), 0
