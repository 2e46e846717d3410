"""The agenda: where a run goes on next, and how many lines of its forks and dags are under way at once.

Law: newest first. A line that has begun is carried as far as it goes before another one begins, inner forks before
what stands beside them, members in the order of the plan: so the order of a run depends on its plan and its events
alone, and a replay finds the same one.

A line that comes to a fork of its own stands still until that has ended, and gives its place up meanwhile; it gets the
place of the last member back. Otherwise a limit of 1 would let no nested fork begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from zerver.core.places import At, Gate, Member
from zerver.core.plan import DagNode


class Agenda:
    """limit: how many lines of forks and dags may be under way at once, None for all. ahead: places that go on, last
    first; held: lines that have not begun, last first.
    """

    __slots__ = ("_limit", "_lines", "ahead", "held")

    def __init__(self, limit: int | None) -> None:
        self.ahead: list[At] = []
        self.held: list[Member] = []
        self._limit = limit
        self._lines = 0  # under way, those that stand still before an inner fork excepted

    def __iter__(self) -> Iterator[At]:
        return iter((*self.ahead, *self.held))

    def next(self) -> At | None:
        """Where to go on; None when everything waits."""
        if self.ahead:
            return self.ahead.pop()
        if self.held and (self._limit is None or self._lines < self._limit):
            self._lines += 1
            return self.held.pop()
        return None

    def enter(self, gate: Gate) -> None:
        """A line has come to a fork or a dag."""
        if gate.inside:
            self._lines -= 1
        self._hold(gate, [i for i in range(len(gate.node.lines)) if not (gate.needs and gate.needs[i])])

    def leave(self, place: At) -> At | None:
        """A line of a gate has ended: where the run goes on behind the gate, unless that still waits for others."""
        gate = place.parent
        if not isinstance(gate, Gate):
            return gate
        gate.left -= 1
        if not gate.left:
            if not gate.inside:
                self._lines -= 1
            return gate.parent
        self._lines -= 1
        if isinstance(gate.node, DagNode) and isinstance(place, Member):
            self._hold(gate, list(self._unlocked(gate, gate.node.unlocks[place.number])))
        return None

    def clear(self) -> None:
        """The run is over: nothing goes on."""
        self.ahead.clear()
        self.held.clear()

    def _unlocked(self, gate: Gate, laters: Iterable[int]) -> Iterator[int]:
        for later in laters:
            gate.needs[later] -= 1
            if not gate.needs[later]:
                yield later

    def _hold(self, gate: Gate, numbers: Sequence[int]) -> None:
        self.held += [Member(gate.node.lines[number], gate, number) for number in reversed(numbers)]
