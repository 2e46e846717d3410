"""The ablations: what others do about overload, so that a figure of ours means something.

Law: each is what it is known for and no more. All three run steps first come, first served, as an event loop does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from scripts.simulations.world import Answer, Job, Refused


class Nothing:
    """Everybody runs at once."""

    name = "none"
    due = math.inf

    def __init__(self) -> None:
        self.running = 0
        self._ready: deque[Job] = deque()

    def arrive(self, job: Job, now: float) -> Answer:
        self.running += 1
        return "admitted"

    def leave(self, job: Job, now: float) -> None:
        self.running -= 1

    def abandon(self, job: Job, now: float) -> None:
        """Nobody waits."""

    def granted(self, now: float) -> Iterable[tuple[Job, Refused | None]]:
        return ()

    def park(self, job: Job, now: float) -> None:
        self._ready.append(job)

    def unpark(self, job: Job, now: float) -> None:
        """`turn` passes over it."""

    def look(self, now: float, slept: float) -> None: ...

    def turn(self, now: float, looked: bool) -> tuple[Job, float] | None:
        while looked and self._ready:
            job = self._ready.popleft()
            if job.state == "ready":
                return job, math.inf
        return None

    def spent(self, job: Job, seconds: float, now: float) -> None: ...

    def tick(self, now: float) -> None: ...

    def gauges(self) -> dict[str, float]:
        return {"running": self.running}


class Fixed(Nothing):
    """uvicorn's --limit-concurrency: 503 above a number."""

    name = "fixed"
    limit: Final = 100

    def arrive(self, job: Job, now: float) -> Answer:
        if self.running >= self.limit:
            return Refused()
        return super().arrive(job, now)


class Gradient2(Nothing):
    """Netflix's concurrency-limits with its defaults: Gradient2Limit in a WindowedLimit, two partitions, no queue.

    Partitions are enforced only when the whole limit is reached; 0.9 of it is for those who wait for an answer.
    """

    name = "gradient2"
    LOWEST: Final = 20.0
    HIGHEST: Final = 200.0

    def __init__(self) -> None:
        super().__init__()
        self.limit = 20.0
        self._inside = [0, 0]
        self._window = [0.0, 0, 0]  # sum of round trips, how many, most in flight
        self._window_until = 1.0
        self._long = 0.0
        self._windows = 0

    def arrive(self, job: Job, now: float) -> Answer:
        part = job.flow.priority == "batch"
        share = max(1, math.ceil(int(self.limit) * (0.1 if part else 0.9)))
        if self.running >= int(self.limit) and self._inside[part] >= share:
            return Refused()
        self._inside[part] += 1
        return super().arrive(job, now)

    def leave(self, job: Job, now: float) -> None:
        super().leave(job, now)
        self._inside[job.flow.priority == "batch"] -= 1
        window = self._window
        window[0] += now - job.admitted
        window[1] += 1
        window[2] = max(window[2], self.running + 1)
        if now >= self._window_until and window[1] >= 10:
            self._update(window[0] / window[1], int(window[2]))
            self._window, self._window_until = [0.0, 0, 0], now + 1.0

    def _update(self, short: float, most: int) -> None:
        self._windows += 1
        if self._windows <= 10:
            self._long += (short - self._long) / self._windows
        else:
            self._long += (short - self._long) * 2 / 601
        if self._long / short > 2:
            self._long *= 0.95
        if most < self.limit / 2:
            return
        gradient = max(0.5, min(1.0, 1.5 * self._long / short))
        limit = 0.8 * self.limit + 0.2 * (self.limit * gradient + 4)
        self.limit = max(self.LOWEST, min(self.HIGHEST, limit))

    def gauges(self) -> dict[str, float]:
        return super().gauges() | {"limit": self.limit}
