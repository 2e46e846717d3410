"""Turns: whose steps run next on a loop, when more than one wants to.

Law: decisions over nanoseconds that the caller brings; nothing here knows a clock or a task. The highest class that
waits goes first, unless a lower one has earned its turn. What it earns: for each nanosecond of steps that somebody
runs, every class that waits is credited its guaranteed share; it has earned a turn when its credit covers what the
turn is expected to cost, and pays what it did cost. Of several the one that has waited for its share the longest goes
first. Within a class: first come, first served.

So no class that waits starves, and none saves up: the credit ends with the queue, and at 40 ms.

Source: credits as in deficit round robin (Shreedhar and Varghese, 1995), with priorities for what nobody has earned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import attrs

from zerver.core.priorities import GUARANTEES, PRIORITIES, RANK, Priority

#: What a class can save up while others are served (ns), and what one turn of it is counted for at most.
CREDIT_CAP: Final = 40_000_000

#: How long the steps of one turn may take (ns), by rank: a step that takes longer is an overrun.
BUDGETS: Final = (3_000_000, 10_000_000, 20_000_000)

#: When a turn ends between two steps (ns), by rank. Batch work, which nobody waits for, is cut shorter than it may take
#: in one step: at 5 ms the interactive p99 stays within a fifth of what it is without any batch work.
SLICES: Final = (3_000_000, 10_000_000, 5_000_000)

#: Steps run for so long (ns) at most before the loop looks at I/O, timers and refusals again.
PASS: Final = 3_000_000

#: A turn that is expected to take so long (ns) is worth a look at I/O before it is given to a class below the highest:
#: somebody more urgent may have come by then. A shorter one is over sooner than anybody would notice.
LONG: Final = 1_000_000


@attrs.frozen(eq=False)
class Pace:
    """How the turns of a run go. rank: of its class, after a demotion. slice_ns: when a turn ends between two steps.
    budget_ns: what a step may take in the run's own class: a demoted run is not excused by the class it was put in.
    look_ns: after how long the loop is looked at, to see what takes so long.
    """

    rank: int
    slice_ns: int
    budget_ns: int
    look_ns: int


def _paces(own: int) -> tuple[Pace, Pace]:
    """Of the runs of a class, by whether they are demoted: there is no class below batch."""
    first, *lower = (Pace(rank, SLICES[rank], BUDGETS[own], 2 * BUDGETS[own]) for rank in range(own, len(PRIORITIES)))
    return first, lower[0] if lower else first


#: The pace of the runs of a class, by how many classes they are demoted: 0 or 1.
PACES: Final[Mapping[Priority, tuple[Pace, Pace]]] = {priority: _paces(rank) for priority, rank in RANK.items()}


class Waiter:
    """Somebody who waits for a turn. cost: what it is expected to take (ns). waits: whether it is in the queue."""

    __slots__ = ("cost", "rank", "task", "waits")

    def __init__(self, rank: int, cost: float, task: object) -> None:
        self.rank = rank
        self.cost = cost
        self.task = task
        self.waits = True

    @property
    def worth_a_look(self) -> bool:
        """Whether the loop is to look at I/O, and to choose again, before this one has its turn."""
        return self.rank > 0 and self.cost >= LONG


class TurnQueue:
    """Who waits for a turn, and who is next."""

    __slots__ = ("_costs", "_counts", "_credits", "_lowest", "_queues", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self._queues: tuple[deque[Waiter], ...] = tuple(deque() for _ in PRIORITIES)
        self._counts = [0] * len(PRIORITIES)
        self._costs = [0.0] * len(PRIORITIES)
        self._credits = [0.0] * len(PRIORITIES)
        self._lowest = [0.0] * len(PRIORITIES)

    # -- coming and going --

    def add(self, entry: Waiter) -> None:
        """Queue up."""
        self._queues[entry.rank].append(entry)
        self._counts[entry.rank] += 1
        self._costs[entry.rank] += entry.cost
        self.waiting += 1

    def withdraw(self, entry: Waiter) -> None:
        """Somebody waits no more. Nothing happens to one that is out of the queue already."""
        if entry.waits:
            self._take_out(entry)
            queue = self._queues[entry.rank]
            while queue and not queue[0].waits:  # heads are alive, so that their cost is that of the next turn
                queue.popleft()

    def first(self) -> Waiter | None:
        """Who would have the next turn, as things are; it stays in the queue. None when nobody waits."""
        return self._queues[self._chosen()][0] if self.waiting else None

    def next(self) -> Waiter | None:
        """Who has the next turn; it is out of the queue. None when nobody waits."""
        entry = self.first()
        if entry is not None:
            self.withdraw(entry)
        return entry

    def charge(self, rank: int, took: int) -> None:
        """A turn of this class took so long (ns): whoever waits has come nearer to his, and the class has paid."""
        credits = self._credits
        for other, guarantee in enumerate(GUARANTEES):
            if self._counts[other]:
                paid = took if other == rank else 0
                credits[other] = max(-CREDIT_CAP, min(CREDIT_CAP, credits[other] + guarantee * took - paid))
        if not self._counts[rank]:
            credits[rank] = 0.0

    # -- what is told of it --

    def count(self, rank: int) -> int:
        """How many of a class wait."""
        return self._counts[rank]

    def standing(self) -> tuple[float, float, float]:
        """What stood waiting all the time since this was last asked: the least expected cost (ns) of those who waited,
        by level, which is a class with all above it.
        """
        lowest = self._lowest
        interactive, default, batch = lowest
        now = 0.0
        for rank in range(len(PRIORITIES)):
            now += self._costs[rank]
            lowest[rank] = now
        return interactive, default, batch

    # -- inside --

    def _chosen(self) -> int:
        """The rank whose turn it is."""
        best, longest, highest = -1, 0.0, -1
        for rank, count in enumerate(self._counts):
            if not count:
                continue
            if highest < 0:
                highest = rank
            credit, due = self._credits[rank], self._queues[rank][0].cost
            if credit > 0 and credit >= min(due, CREDIT_CAP) and credit / GUARANTEES[rank] > longest:
                best, longest = rank, credit / GUARANTEES[rank]
        return best if best >= 0 else highest

    def _take_out(self, entry: Waiter) -> None:
        entry.waits = False
        rank = entry.rank
        self.waiting -= 1
        self._counts[rank] -= 1
        self._costs[rank] = self._costs[rank] - entry.cost if self._counts[rank] else 0.0  # no rounding is kept
        if not self._counts[rank]:
            self._credits[rank] = 0.0
        standing = 0.0
        for level in range(len(PRIORITIES)):
            standing += self._costs[level]
            self._lowest[level] = min(self._lowest[level], standing)
