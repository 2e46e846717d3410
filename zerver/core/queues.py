"""Queues by class: who of those that wait for a place goes next.

Law: inside a class first come, first served. Between classes the higher one, but of any twenty places in a row one is
batch's and five are default's while they wait: each place that is given credits a waiting class with its share, and a
class whose credits make a whole place goes first. So nobody starves, and nothing here needs a clock: ageing is counted
in places. By time it would turn over in a long overload, when all of batch has waited longer than any bound.

Bulkheads, connection pools and the queues of database threads all wait like this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from zerver.core.priorities import GUARANTEES, PRIORITIES, RANK, Priority

W = TypeVar("W")


class Shares:
    """Which class goes next, told which classes wait. `choose` looks; `give` is for when the place was really given."""

    __slots__ = ("_credits",)

    def __init__(self) -> None:
        self._credits = [0.0] * len(GUARANTEES)

    def choose(self, waiting: Iterable[int]) -> int:
        """The rank to be served, of those that wait (at least one; the highest class is the lowest number)."""
        first, due, most = len(GUARANTEES), -1, 0.0
        for rank in waiting:
            first = min(first, rank)
            credit = self._credits[rank]
            if credit >= _WHOLE and credit / GUARANTEES[rank] > most:
                due, most = rank, credit / GUARANTEES[rank]
        return first if due < 0 else due

    def give(self, rank: int, waiting: Iterable[int]) -> None:
        """A place was given to `rank`; waiting: the ranks that waited then, this one included."""
        backlogged = set(waiting)
        for other, share in enumerate(GUARANTEES):
            # Who does not wait saves nothing up: the shares are of what is contended for.
            self._credits[other] = self._credits[other] + share if other in backlogged else 0.0
        self._credits[rank] = max(0.0, self._credits[rank] - 1.0)


_WHOLE = 1.0 - 1e-9  # twenty times 0.05 is not quite 1


class ClassQueues(Generic[W]):
    """Those who wait, by class. Every operation is O(1)."""

    __slots__ = ("_length", "_lines", "_shares")

    def __init__(self) -> None:
        self._lines: tuple[OrderedDict[W, None], ...] = tuple(OrderedDict() for _ in PRIORITIES)
        self._shares = Shares()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[W]:
        """By class, then by age. Not to be changed meanwhile."""
        for line in self._lines:
            yield from line

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many wait: interactive, default, batch."""
        one, two, three = map(len, self._lines)
        return one, two, three

    @property
    def waiting(self) -> tuple[int, ...]:
        """The ranks in which somebody waits, the highest class first."""
        return tuple(rank for rank, line in enumerate(self._lines) if line)

    def ahead_of(self, priority: Priority) -> int:
        """How many of its class and above wait: about how many places a newcomer has to wait for."""
        return sum(map(len, self._lines[: RANK[priority] + 1]))

    def oldest(self, rank: int) -> W:
        """Who has waited longest in a class in which somebody waits."""
        return next(iter(self._lines[rank]))

    def newest(self) -> W:
        """Who will be served last, if nobody comes: the newest of the lowest class. IndexError when nobody waits."""
        if not self.waiting:
            raise IndexError("nobody waits")
        return next(reversed(self._lines[self.waiting[-1]]))

    def add(self, waiter: W, priority: Priority) -> None:
        """Queue up, at the end of one's class."""
        self._lines[RANK[priority]][waiter] = None
        self._length += 1

    def remove(self, waiter: W, priority: Priority) -> None:
        """Give up waiting. KeyError for one that does not wait."""
        del self._lines[RANK[priority]][waiter]
        self._length -= 1

    def pop(self) -> W:
        """Give the next place: who gets it. IndexError when nobody waits."""
        waiting = self.waiting
        if not waiting:
            raise IndexError("nobody waits")
        rank = waiting[0]
        if len(waiting) > 1:
            rank = self._shares.choose(waiting)
        self._shares.give(rank, waiting)
        self._length -= 1
        return self._lines[rank].popitem(last=False)[0]

    def clear(self) -> None:
        """Send everybody away."""
        for line in self._lines:
            line.clear()
        self._length = 0
