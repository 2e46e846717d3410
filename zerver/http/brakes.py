"""Brakes: what keeps it cheap to say no.

Law: the more often a server has to refuse, the less a refusal costs it; and nothing here refuses while there is no
need. There are four steps, each cheaper than the one before it:

    0  a connection that is refused three times in a row is not read until it may try again        `Brake`
    1  an answer's fields are checked and written once, not for each refusal                         `wire.Prewritten`
    2  a connection is refused as it comes, and nothing of it read, when the process is short of
       time, files or memory                                                                         `Strain`
    3  when many come to be refused, none is accepted for a moment: the kernel keeps them            `server.py`

Steps 2 and 3 look at the process, not at tenants or classes: they know nobody yet. They are for the time when even the
admission gets no turn to be fair.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio

from zerver.http.exchange import Limits

if sys.platform != "win32":
    import resource


class Brake:
    """Holds back connections that go on asking though they were refused. One for a server.

    held: connections at this moment, at most MOST: those over it are read on, and refused.
    """

    AFTER: Final = 3  # refusals in a row
    LONGEST: Final = 1.0  # seconds; whoever asked for more is told by Retry-After, not by silence
    MOST: Final = 10_000

    def __init__(self) -> None:
        self.held = 0

    async def hold(self, retry_after: str | None) -> None:
        """Wait for what Retry-After said, but not for longer than LONGEST."""
        if self.held >= self.MOST:
            return
        asked = int(retry_after) if retry_after is not None and retry_after.isdecimal() else self.LONGEST
        self.held += 1
        try:
            await trio.sleep(min(asked, self.LONGEST))
        finally:
            self.held -= 1


class Strain(trio.abc.Instrument):
    """Whether this process can take another connection. An instrument of Trio: it sees how long the loop looks away.

    Time: the loop has looked away from its sockets for more than Limits.lag_seconds, three times, and for a third of
    the time between; one pause, as for a garbage collection, is no overload. Ten such spans after the last one, all is
    well again. No timer measures it, so an idle loop stays idle. Files: the kernel gives out the lowest number that is
    free, so a new descriptor's number says how many are open. Memory: of this process, resident, as Linux counts it.
    """

    _PASSES: Final = 3
    _SPANS: Final = 10
    _SHARE: Final = 1 / 3
    _FILES: Final = 0.9
    _MEMORY: Final = 0.95
    _MEMORY_SECONDS: Final = 0.1  # between two looks at it

    def __init__(self, limits: Limits) -> None:
        self._lag = limits.lag_seconds
        self._memory = limits.memory
        self._files = _most_files() * self._FILES
        self._turned = trio.current_time()
        self._long: deque[tuple[float, float]] = deque(maxlen=self._PASSES)  # when the last long passes began and ended
        self._looked = -self._MEMORY_SECONDS
        self._resident = 0

    def after_io_wait(self, timeout: float) -> None:
        self._turned = trio.current_time()

    def before_io_wait(self, timeout: float) -> None:
        now = trio.current_time()
        if now - self._turned > self._lag:
            self._long.append((self._turned, now))

    def shortage(self, descriptor: int) -> str | None:
        """What there is too little of for the connection with this descriptor (-1: none); None if all is well."""
        now = trio.current_time()
        if self._lags(now):
            return "time"
        if descriptor > self._files:
            return "files"
        if self._memory is not None and self._read_resident(now) > self._memory * self._MEMORY:
            return "memory"
        return None

    def _lags(self, now: float) -> bool:
        long = self._long
        if len(long) < self._PASSES or now - long[-1][1] > self._SPANS * self._lag:
            return False
        return sum(ended - began for began, ended in long) > (long[-1][1] - long[0][0]) * self._SHARE

    def _read_resident(self, now: float) -> int:
        if now - self._looked >= self._MEMORY_SECONDS:
            self._looked = now
            self._resident = resident_memory()
        return self._resident


@contextmanager
def watched_loop(limits: Limits) -> Iterator[Strain]:
    """A Strain that watches this loop."""
    strain = Strain(limits)
    trio.lowlevel.add_instrument(strain)
    try:
        yield strain
    finally:
        with suppress(KeyError):  # Trio throws out one that has raised
            trio.lowlevel.remove_instrument(strain)


def resident_memory() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _most_files() -> float:
    if sys.platform == "win32":
        return float("inf")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft
