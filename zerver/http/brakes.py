"""Brakes: what keeps it cheap to say no.

Law: the more often a server has to refuse, the less a refusal costs it; and nothing here refuses while there is no
need. There are four steps, each cheaper than the one before it:

    0  a connection that is refused three times in a row is not read until it may try again        `Brake`
    1  an answer's fields are checked and written once, not for each refusal                         `prewritten.py`
    2  a connection is refused as it comes, and nothing of it read, when the process is short of
       time, files or memory                                                                         `Strain`
    3  when many come to be refused, none is accepted for a moment: the kernel keeps them            `server.py`

Steps 2 and 3 look at the process, not at tenants or classes: they know nobody yet. They are for the time when even the
admission gets no turn to be fair.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Final

import trio

from zerver.http.exchange import Limits

if sys.platform != "win32":
    import resource


class Brake:
    """Which connections are held back: those that go on asking though they were refused. One for a server.

    held: connections at this moment, at most MOST: those over it are read on, and refused.
    """

    AFTER: Final = 3  # refusals in a row
    LONGEST: Final = 1.0  # seconds; whoever asked for more is told by Retry-After, not by silence
    MOST: Final = 10_000

    def __init__(self) -> None:
        self.held = 0

    def seconds(self, retry_after: str | None) -> float:
        """How long to hold a connection: for what Retry-After said, but not for longer than LONGEST."""
        if self.held >= self.MOST:
            return 0.0
        asked = int(retry_after) if retry_after is not None and retry_after.isdecimal() else self.LONGEST
        return min(asked, self.LONGEST)


class Strain(trio.abc.Instrument):
    """Whether this process can take another connection. An instrument of Trio: it sees how long the loop looks away.

    Time: for ten times Limits.lag_seconds the loop had no rest, and looked at its sockets less than ten times. A rest
    is a wait of a millisecond: by then, all that was to be done is done. So it is the lag that stays which counts, as
    in CoDel the queue that stands: a collection of garbage, a step that took too long, a neighbour that has the core
    turn nobody away, and nor does a loop that is always busy and looks often. The next rest, or the next such span that
    was better, and all is well again. No timer measures it, so an idle loop stays idle.

    Files: the kernel gives out the lowest number that is free, so a new descriptor's number says how many are open.
    Memory: of this process, resident, as Linux counts it.
    """

    _SPANS: Final = 10
    _REST_SECONDS: Final = 0.001
    _FILES: Final = 0.9
    _MEMORY: Final = 0.95
    _MEMORY_SECONDS: Final = 0.1  # between two looks at it

    def __init__(self, limits: Limits) -> None:
        self._window = limits.lag_seconds * self._SPANS
        self._memory = limits.memory
        self._files = _most_files() * self._FILES
        self._lags = False
        self._now = trio.lowlevel.current_clock().current_time  # `trio.current_time` goes through three calls to it
        self._began = self._now()  # the window
        self._waited = inf  # since when the loop waits; it does not while it has something to do
        self._looks = 0  # of the loop at its sockets, in the window
        self._looked = -self._MEMORY_SECONDS
        self._resident = 0

    def before_io_wait(self, timeout: float) -> None:
        self._waited = self._now() if timeout > 0 else inf

    def after_io_wait(self, timeout: float) -> None:
        now = self._now()
        self._looks += 1
        rested = now - self._waited >= self._REST_SECONDS
        if rested or now - self._began >= self._window:
            self._lags = not rested and self._looks < self._SPANS
            self._began, self._looks = now, 0

    def shortage(self, descriptor: int) -> str | None:
        """What there is too little of for the connection with this descriptor (-1: none); None if all is well."""
        if self._lags:
            return "time"
        if descriptor > self._files:
            return "files"
        if self._memory is not None and self._read_resident(self._now()) > self._memory * self._MEMORY:
            return "memory"
        return None

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
