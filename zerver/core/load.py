"""Load: what the parts that work tell the part that admits.

Law: values only. `Load` goes from the turns to the admission of one process, ten times a second; `Usage` goes between
the processes of one machine.
"""

from __future__ import annotations

from typing import Protocol

import attrs


@attrs.frozen
class Load:
    """One tick of a process, as its turns saw it. Each tuple is by level: interactive, down to default, down to batch;
    a level counts its class and all above it.

    standing: seconds of CPU, as estimated, that stood waiting for a turn through the whole tick: its minimum (CoDel's
    idea, in CPU). starved: seconds of the tick in which runs of the level waited for a ticket while no step of the
    level was runnable. seconds: how long the tick was.
    """

    standing: tuple[float, float, float]
    starved: tuple[float, float, float]
    seconds: float


@attrs.frozen
class Usage:
    """What a tenant takes elsewhere. running: runs at once, those that wait included. refill: seconds until its rate is
    whole again, as far as the others know: all draw on one bucket. cost: seconds of CPU since any fixed moment.
    """

    running: int
    refill: float
    cost: float


class Neighbours(Protocol):
    """The other processes of this machine that serve the same tenants."""

    def publish(self, tenant: str, running: int, refill: float, cost: float) -> None:
        """Say what this process does for a tenant, as in Usage. Must be quick, and must not raise. What is published
        is seen by whoever looks afterwards: of two processes that publish and then look, at least one sees the other.
        """
        ...

    def elsewhere(self, tenant: str) -> Usage:
        """The others' runs and costs, summed up, and the longest refill that one of them knows of. Who has died runs
        nothing.
        """
        ...
