"""Concurrency: how many runs may be under way, by what the steps themselves show.

Law: no round-trip time is looked at, so a slow dependency is never taken for a busy CPU, and no lucky minimum has to be
remembered or probed for (what made Netflix's, Envoy's and others' limits drift or collapse). The runtime owns its
steps: it sees when work stands waiting for the CPU through a whole tick, and when it has nothing to do although runs
wait.

Limits are nested. Level 0 counts interactive runs, level 1 these and default ones, level 2 all. A class is limited at
its own level, so the lower never take the seats of the higher. So that the higher cannot take everything, each class
has guaranteed seats, as many as it needs to use its guaranteed part of the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final

import attrs

from zerver.core.load import Load

#: Levels, as classes.
_LEVELS: Final = 3

_UNKNOWN: Final = 40.0  # seats, until a run has ended and something is known

_GROW, _GROW_MOST, _SHRINK = 0.10, 0.50, 0.05
_STARVED: Final = 0.02  # of a tick
_ALPHA: Final = 0.02

_QUIET: Final = 10.0  # seconds


@attrs.frozen
class Seats:
    """How many runs may be under way at once on each level: never fewer than `least`, never more than `most`.

    The same number for both fixes it for all classes together, with no seats guaranteed.
    """

    least: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    most: int = attrs.field(default=400)

    def __attrs_post_init__(self) -> None:
        if self.most < self.least:
            raise ValueError(f"most={self.most} is below least={self.least}")


class Concurrency:
    """The limits, and who is under way.

    shares: the guaranteed part of the CPU of each class. standing: seconds of CPU that may stand waiting on each level.

    running: runs under way, by class; counted by whoever starts and ends them. limits: by level. guaranteed: seats by
    class that are given beyond the limit of its level. cpu: seconds that a run takes, moving means by class; None: not
    known.
    """

    __slots__ = (
        "_ended", "_fixed", "_io", "_moved", "_quiet", "_seats", "_shares", "_standing", "_sums", "cpu", "guaranteed",
        "limits", "running",
    )  # fmt: skip

    def __init__(self, seats: Seats, shares: Sequence[float], standing: Sequence[float]) -> None:
        self._seats = seats
        self._shares = tuple(shares)
        self._standing = tuple(standing)
        self._fixed = seats.least == seats.most
        start = float(min(seats.most, max(seats.least, _UNKNOWN)))
        self.limits = [start] * _LEVELS
        self.guaranteed = [0] * _LEVELS if self._fixed else [1] * _LEVELS
        self.running = [0] * _LEVELS
        self._moved = [False] * _LEVELS  # since the controller has moved a limit, the first guess is not asked
        self._quiet = [0.0] * _LEVELS  # seconds in which it had no reason to
        self.cpu: list[float | None] = [None] * _LEVELS
        self._io = [0.0] * _LEVELS  # the same for what is not CPU
        self._sums = [[0.0, 0.0] for _ in range(_LEVELS)]  # by class since the last tick: cpu, io
        self._ended = [0] * _LEVELS

    def free(self, rank: int) -> bool:
        """Whether one more run of a class may begin."""
        running = self.running
        if running[rank] < self.guaranteed[rank]:
            return True
        first, second, third = running
        level = first + second + third if rank == 2 or self._fixed else first + second if rank else first
        return level < self.limits[rank]

    @property
    def levels(self) -> list[int]:
        """Runs under way, by level."""
        first, second, third = self.running
        return [first, first + second, first + second + third]

    def ended(self, rank: int, cpu: float, io: float) -> None:
        """What a run was: seconds of CPU, and seconds in which it neither had the CPU nor waited for it."""
        sums = self._sums[rank]
        sums[0] += cpu
        if io > 0.0:  # two clocks may differ by a hair
            sums[1] += io
        self._ended[rank] += 1

    def learn(self) -> None:
        """Take what has ended since the last time into the means; ten times a second is often enough."""
        for rank, count in enumerate(self._ended):
            if count:
                sums, known = self._sums[rank], self.cpu[rank]
                cpu, io = sums[0] / count, sums[1] / count
                part = 1.0 if known is None else 1.0 - (1.0 - _ALPHA) ** count
                self.cpu[rank] = cpu if known is None else known + part * (cpu - known)
                self._io[rank] += part * (io - self._io[rank])
                sums[0] = sums[1] = 0.0
        if not self._fixed and any(self._ended):
            self._guarantee()
            self._guess()
        self._ended = [0] * _LEVELS

    def tick(self, load: Load) -> None:
        """Move the limits. Standing work is looked at first: where both are seen, the CPU is not the one that waits.

        A level grows only when its own seats are all taken: runs of the class above, which wait for theirs, say nothing
        about it. After ten quiet seconds a limit starts again from the guess: a few seats that were right for the steps
        of the last rush are not for the waits of the next.
        """
        if self._fixed:
            return
        levels = self.levels
        for level, limit in enumerate(self.limits):
            if load.standing[level] > self._standing[level]:
                self.limits[level] = max(float(self._seats.least), limit - max(0.5, _SHRINK * limit))
                self._moved[level], self._quiet[level] = True, 0.0
            elif load.starved[level] > _STARVED * load.seconds and levels[level] + 1 > limit:
                # By as much of the tick as there was nothing to do, too: when a dependency becomes slow, its runs hold
                # their seats for longer, and by a tenth at a time the others would be refused for seconds meanwhile.
                grow = max(_GROW, min(_GROW_MOST, load.starved[level] / load.seconds))
                self.limits[level] = min(float(self._seats.most), limit + max(1.0, grow * limit))
                self._moved[level], self._quiet[level] = True, 0.0
            elif not load.starved[level]:
                self._quiet[level] += load.seconds
                if self._quiet[level] >= _QUIET:
                    self._moved[level] = False

    def _guarantee(self) -> None:
        """Seats by share of the CPU, not by share of the seats: G of the CPU is a CPU of speed G, on which a run of
        `cpu` seconds takes cpu / G; (cpu / G + io) / (cpu / G) of them keep it busy if they never meet, and twice as
        many if they do. Of shares of the seats, rounding took a fifth of the default class's part at a limit of 11.
        """
        for rank, share in enumerate(self._shares):
            cpu = self.cpu[rank]
            if cpu is not None:
                wanted = 2.0 * (1.0 + share * self._io[rank] / cpu) if cpu > 0.0 else self._seats.most
                self.guaranteed[rank] = max(1, ceil(min(wanted, share * self._seats.most)))

    def _guess(self) -> None:
        """Where a limit starts: twice what keeps the CPU busy if runs never meet, by the means of the level's runs."""
        cpu = io = 0.0
        for level in range(_LEVELS):
            cpu += self.cpu[level] or 0.0
            io += self._io[level]
            if not self._moved[level] and cpu + io > 0.0:
                wanted = 2.0 * (cpu + io) / cpu if cpu > 0.0 else float(self._seats.most)
                self.limits[level] = min(float(self._seats.most), max(float(self._seats.least), wanted))
