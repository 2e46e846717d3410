"""Shares: whose turn it is among those who wait, and what a class is owed.

Law: pure state over costs, in seconds of CPU; nothing here knows what is queued, or what time it is.

`FairQueue` is start-time fair queueing (Goyal, Vin and Cheng 1996) over the shares of one class: the share with the
smallest tag is served, and its tag moves on by cost / weight. The virtual time is the tag last served; who comes back
after a pause starts there, so a pause earns nothing. Costs are estimates, and corrected when the run has ended, as
Kubernetes' API Priority and Fairness does (KEP-1040). Every decision is O(log n) in the shares that wait.

`Credits` decide between classes: the highest goes first, but whatever is spent on anybody credits every class that
waits with its guaranteed part, and a class that can pay for its next run goes before all others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Seconds of CPU at weight 1: what a share is behind more than this is forgiven, so that one monstrous run does not
#: shut its tenant out for longer than others would notice.
DEBT: Final = 1.0

INF: Final = float("inf")


class Share(Generic[T]):
    """One tenant's place in one class. line: what waits, oldest first, with its cost. backlog: the sum of these.
    running: runs under way; counted by whoever starts and ends them.
    """

    __slots__ = ("_serial", "backlog", "line", "running", "tag", "weight")

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.tag = 0.0
        self.line: OrderedDict[T, float] = OrderedDict()
        self.backlog = 0.0
        self.running = 0
        self._serial = 0  # of its valid entry in the heap; 0 while it has none


class FairQueue(Generic[T]):
    """What waits in one class. backlog: seconds of CPU in all. weight: the sum over the shares that wait."""

    __slots__ = ("_heap", "_order", "_serial", "_waiting", "backlog", "virtual", "weight")

    def __init__(self) -> None:
        self.virtual = 0.0
        self.backlog = 0.0
        self.weight = 0.0
        self._order: OrderedDict[T, Share[T]] = OrderedDict()
        self._heap: list[tuple[float, int, Share[T]]] = []  # entries whose serial is not their share's are stale
        self._serial = 0
        self._waiting = 0  # shares with a line

    def __len__(self) -> int:
        return len(self._order)

    @property
    def oldest(self) -> T | None:
        """What has waited longest, whoever's it is."""
        return next(iter(self._order), None)

    def push(self, share: Share[T], item: T, cost: float) -> None:
        """Queue an item behind all others of its share."""
        if not share.line:
            share.tag = max(self.virtual, min(share.tag, self.virtual + DEBT / share.weight))
            self.weight += share.weight
            self._waiting += 1
            self._enter(share)
        share.line[item] = cost
        share.backlog += cost
        self.backlog += cost
        self._order[item] = share

    def pop(self, *, newest: bool = False, most: float = INF) -> T:
        """Serve the share with the smallest tag: its oldest item, or its newest. Raises IndexError when none waits.

        most: shares that run so many already let others go first; when all do, the first of them is served anyway.
        """
        share = self._first(most)
        item = next(reversed(share.line)) if newest else next(iter(share.line))
        self.virtual = max(self.virtual, share.tag)
        share.tag += share.line[item] / share.weight
        self._take(share, item)
        if share.line:
            self._enter(share)
        return item

    def remove(self, item: T) -> None:
        """Take an item out unserved: nothing is charged. Raises KeyError when it does not wait."""
        self._take(self._order[item], item)

    def charge(self, share: Share[T], cost: float) -> None:
        """Correct what a share has been charged: by a positive or a negative cost."""
        most = max(share.tag, self.virtual + DEBT / share.weight)
        share.tag = min(most, share.tag + cost / share.weight)
        if share.line:
            self._enter(share)

    def reweigh(self, share: Share[T], weight: float) -> None:
        """Give a share another weight. What it has been charged stays as it is."""
        if share.line:
            self.weight += weight - share.weight
        share.weight = weight

    def ahead(self, share: Share[T]) -> float:
        """Seconds of CPU that are served before a new item of this share, as things are: its own line, and what all
        others get meanwhile by their weights; never more than all that waits.
        """
        weight = self.weight if share.line else self.weight + share.weight
        return min(self.backlog, share.backlog * weight / share.weight)

    def over(self, share: Share[T]) -> bool:
        """Whether others wait too, and this share's line is longer than its part."""
        return bool(share.line) and share.backlog * self.weight > self.backlog * share.weight * 1.000001

    def settled(self, share: Share[T]) -> bool:
        """Whether a share that does not wait could be forgotten: it has no debt that anybody is waiting for."""
        return not share.line and (share.tag <= self.virtual or not self._order)

    # ---- the heap: lazy, because a correction can come at any moment ------------------------------------------

    def _enter(self, share: Share[T]) -> None:
        self._serial += 1
        share._serial = self._serial
        heappush(self._heap, (share.tag, self._serial, share))
        if len(self._heap) > 64 + 2 * self._waiting:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2]._serial]
            heapify(self._heap)

    def _first(self, most: float) -> Share[T]:
        """The share to serve, taken off the heap. Those passed over are few: each has a good part of all the seats."""
        aside: list[tuple[float, int, Share[T]]] = []
        while self._heap:
            entry = heappop(self._heap)
            if entry[1] != entry[2]._serial:
                continue
            if entry[2].running < most:
                break
            aside.append(entry)
        else:
            entry = aside.pop(0)
        for other in aside:
            heappush(self._heap, other)
        return entry[2]

    def _take(self, share: Share[T], item: T) -> None:
        cost = share.line.pop(item)
        del self._order[item]
        share.backlog -= cost
        self.backlog -= cost
        if not share.line:
            share.backlog = 0.0  # sums of floats drift; an empty line weighs nothing
            share._serial = 0
            self.weight -= share.weight
            self._waiting -= 1
        if not self._order:
            self.backlog = self.weight = 0.0


class Credits:
    """What each class is owed, in seconds of CPU. Classes are numbers, 0 is the highest.

    shares: the guaranteed part of each. cap: seconds of all classes' CPU for which credit is kept: a class that could
    not use its share (its seats were taken) does not take the whole machine afterwards.
    """

    __slots__ = ("_caps", "_shares", "owed")

    def __init__(self, shares: Sequence[float], cap: float = 1.0) -> None:
        self._shares = tuple(shares)
        self._caps = tuple(share * cap for share in shares)
        self.owed = [0.0] * len(self._shares)

    def choose(self, heads: Sequence[float | None]) -> int:
        """The class to serve; -1 when none can be. heads: the cost of what each would run next; None for those that
        cannot run now.
        """
        best, most = -1, -1.0
        first = -1
        for rank, cost in enumerate(heads):
            if cost is None:
                continue
            if first < 0:
                first = rank
            # A run that costs more than can be saved goes when all that can be saved is there, and leaves a debt.
            if self.owed[rank] >= min(cost, self._caps[rank]):
                relative = self.owed[rank] / self._shares[rank]
                if relative > most:
                    best, most = rank, relative
        return best if best >= 0 else first

    def spend(self, rank: int, cost: float, waits: Sequence[object]) -> None:
        """A run of class `rank` begins. waits: per class, true when something waits (the run itself included)."""
        owed = self.owed
        before = owed[rank]
        for other, share in enumerate(self._shares):
            if waits[other]:
                owed[other] = min(self._caps[other], owed[other] + share * cost)
        if before >= min(cost, self._caps[rank]):
            owed[rank] -= cost  # it paid
        else:
            owed[rank] = max(min(0.0, before), owed[rank] - cost)  # it was its turn anyway: it keeps no credit for that

    def forget(self, rank: int) -> None:
        """Nothing of the class waits any more: nobody is owed anything."""
        self.owed[rank] = 0.0
