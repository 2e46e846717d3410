"""Neighbours in shared memory: what tenants take in the other processes of this machine.

Law: every word has one writer, and nobody waits for anybody. A process writes its own row and reads those of others;
who started them clears the row of one that has died. Sharing may fall short, and never fails a run: what finds no place
is counted as `crowded`, and stays that process's own affair.

The file is a hash table. A tenant has one bucket, and in it each row has 8 entries for the tenants that its process has
met. All words have 8 bytes:

    header     magic, rows, the key of the hash (2 words), 4 unused
    sequences  for each bucket: one word for each row
    entries    for each bucket, for each row: 8 times name (2 words), running, full, cost

Processors load and store an aligned word whole. What more than one word must agree on is whose entry it is; so while an
entry changes hands the sequence word of its row and bucket is odd, and afterwards another even number: a reader that
finds it as it was has read of one tenant only (a seqlock, as Linux's).

Names are strangers', and of any length: 16 bytes of a keyed BLAKE2 stand for them, so nobody can aim at a bucket. Where
all entries are taken, a tenant without runs gives up its own: the one whose rate is whole again the soonest, and of
those where it is, the one that was silent the longest. A sum that falls by that, or because a process has died, is
lifted by as much for whoever reads it: `cost` does not start again. `full` is when a tenant's rate is whole again, on
the machine's monotonic clock; the latest that any of them knows is the truth.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from struct import Struct
from threading import Lock
from typing import Final

import attrs

from zerver.core.load import Usage

BUCKETS: Final = 1024
WAYS: Final = 8  # entries of a row in a bucket

_MAGIC: Final = 0x5A45525645520002  # "ZERVER", and the number of this layout
_HEADER: Final = 8
_RUNNING, _FULL, _COST, _ENTRY = 2, 3, 4, 5  # words into an entry, and its length
_KNOWN: Final = BUCKETS * WAYS  # tenants whose places a process keeps in mind
_TRIES: Final = 8
_PAIR: Final = Struct("@QQ")
_BLANK: Final = memoryview(bytes(_ENTRY * 8)).cast("Q")


# ---- the file -------------------------------------------------------------------------------


def open_neighbourhood(rows: int) -> int:
    """The descriptor of an anonymous file for so many processes, which is gone when the last of them is."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("zerver-neighbours", os.MFD_CLOEXEC)
    else:  # macOS: a file that has lost its name
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, 8 * _words(rows))
    os.pwrite(fd, _PAIR.pack(_MAGIC, rows) + os.urandom(16), 0)
    return fd


def _words(rows: int) -> int:
    return _HEADER + BUCKETS * rows * (1 + WAYS * _ENTRY)


class Neighbourhood:
    """The file, mapped; the descriptor may be closed then. Raises ValueError for a file that is another.

    words, counts, reals: the same words as unsigned, signed and floating numbers. secret: the key of the hash.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self.words = memoryview(self._map).cast("Q")
        self.counts = memoryview(self._map).cast("q")
        self.reals = memoryview(self._map).cast("d")
        self.rows = self.words[1]
        self.secret = self._map[16:32]
        if self.words[0] != _MAGIC or len(self.words) != _words(self.rows):
            self.close()
            raise ValueError("this is no file of neighbours")

    def __enter__(self) -> Neighbourhood:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file: nothing that was made of this can be used any more."""
        for view in (self.words, self.counts, self.reals):
            view.release()
        self._map.close()

    def clear(self, row: int) -> None:
        """Forget what a process has said. It must have died, or be the caller: a row has one writer."""
        words = self.words
        for bucket in range(BUCKETS):
            sequence = self.sequences(bucket) + row
            if words[sequence]:  # else nothing was ever written, and what nobody touches costs no memory
                words[sequence] |= 1  # it is odd already if the process died at the wrong moment
                for entry in self.entries(bucket, row):
                    words[entry : entry + _ENTRY] = _BLANK
                words[sequence] += 1

    def sequences(self, bucket: int) -> int:
        """Where the sequence words of a bucket are."""
        return _HEADER + bucket * self.rows

    def entries(self, bucket: int, row: int) -> range:
        """Where the entries of a row in a bucket are."""
        first = _HEADER + BUCKETS * self.rows + (bucket * self.rows + row) * WAYS * _ENTRY
        return range(first, first + WAYS * _ENTRY, _ENTRY)


# ---- one process's part of it ---------------------------------------------------------------


class _Known:
    """A tenant, as one process knows it.

    entry: ours, or 0. running, full, cost: as last published; base_cost: as it was when the entry was taken, so that it
    starts at zero. heard: when we last published it, in publications.
    cells: the others' entries, as they were at the sequence words `seen`. their_cost: what these came to; lift_cost:
    what has fallen out of them.
    """

    __slots__ = (
        "base_cost", "bucket", "cells", "cost", "entry", "full", "heard", "lift_cost", "name", "running", "seen",
        "sequences", "their_cost",
    )  # fmt: skip

    def __init__(self, name: tuple[int, int], bucket: int, sequences: int) -> None:
        self.name = name
        self.bucket = bucket
        self.sequences = sequences
        self.entry = self.running = self.heard = 0
        self.full = self.cost = self.base_cost = 0.0
        self.seen: tuple[int, ...] = ()
        self.cells: tuple[int, ...] = ()
        self.their_cost = self.lift_cost = 0.0


@attrs.frozen
class NeighbourStatistics:
    """tenants: those with an entry of this process. forgotten: those that had to give theirs to another. crowded: how
    often a tenant was not published, because all entries were of tenants with runs under way.
    """

    tenants: int
    forgotten: int
    crowded: int


class SharedNeighbours:
    """A process among its neighbours: `zerver.core.load.Neighbours`. row: its own, which nobody else uses. clock:
    seconds, the same for all processes of the machine.

    What was published is seen by the others when `publish` returns. So a cap holds over all processes if each claims
    first and looks then: of two that claim at once, at least one sees the other.
    """

    def __init__(self, neighbourhood: Neighbourhood, row: int, clock: Callable[[], float] = time.monotonic) -> None:
        if not 0 <= row < neighbourhood.rows:
            raise ValueError(f"there are {neighbourhood.rows} rows, and no row {row}")
        self._hood = neighbourhood
        self._row = row
        self._read_sequences = Struct(f"@{neighbourhood.rows}Q").unpack_from
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._owners: dict[int, _Known] = {}  # of our entries
        self._clock = clock
        self._lock = Lock()
        self._published = self._forgotten = self._crowded = 0
        neighbourhood.clear(row)

    def publish(self, tenant: str, running: int, refill: float, cost: float) -> None:
        """Say what this process does for a tenant: the runs it has now, the seconds until its rate is whole again, and
        the seconds of CPU in all, from its first publication on. A cost that falls is one that has started again, and
        is added.
        """
        known = self._get(tenant)
        if not known.heard:
            known.base_cost = cost
        elif cost < known.cost:
            known.base_cost -= known.cost
        self._published += 1
        known.heard = self._published
        entry = known.entry or self._take_entry(known)
        known.running, known.cost = running, cost
        known.full = self._clock() + refill if refill > 0.0 else 0.0
        if not entry:
            self._crowded += 1
            known.base_cost = cost
            return
        self._hood.counts[entry + _RUNNING] = running
        self._hood.reals[entry + _FULL] = known.full
        self._hood.reals[entry + _COST] = cost - known.base_cost
        self._fence()

    def elsewhere(self, tenant: str) -> Usage:
        """What the other processes have published."""
        known = self._get(tenant)
        words, counts, reals = self._hood.words, self._hood.counts, self._hood.reals
        at = known.sequences * 8
        now = self._read_sequences(words, at)
        running, full, cost = 0, 0.0, 0.0
        for _ in range(_TRIES):  # who changes an entry is done at once, or has died of it: then its words are settled
            if now != known.seen:
                self._look_around(known, now)
            running, full, cost = 0, 0.0, 0.0
            for cell in known.cells:
                running += counts[cell + _RUNNING]
                full = max(full, reals[cell + _FULL])
                cost += reals[cell + _COST]
            then, now = now, self._read_sequences(words, at)
            if then == now:
                break
        if cost < known.their_cost:  # an entry is gone
            known.lift_cost += known.their_cost - cost
        known.their_cost = cost
        return Usage(running, max(0.0, full - self._clock()) if full else 0.0, cost + known.lift_cost)

    def statistics(self) -> NeighbourStatistics:
        return NeighbourStatistics(len(self._owners), self._forgotten, self._crowded)

    # -- tenants --

    def _get(self, tenant: str) -> _Known:
        known = self._known.get(tenant)
        if known is None:
            return self._learn(tenant)
        self._known.move_to_end(tenant)
        return known

    def _learn(self, tenant: str) -> _Known:
        if len(self._known) >= _KNOWN:
            self._forget_one()
        digest = blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=16, key=self._hood.secret).digest()
        name: tuple[int, int] = _PAIR.unpack(digest)
        bucket = name[0] % BUCKETS
        known = self._known[tenant] = _Known(name, bucket, self._hood.sequences(bucket))
        return known

    def _forget_one(self) -> None:
        """Forget the tenant that nobody has asked for the longest; one with runs has another round."""
        tenant, known = self._known.popitem(last=False)
        if known.running:
            self._known[tenant] = known  # and the memory grows by one, which admission bounds
        elif known.entry:
            self._give_up(known)

    # -- our entries --

    def _take_entry(self, known: _Known) -> int:
        """An entry of our row: a free one, or one that another tenant gives up; 0 for none."""
        places = self._hood.entries(known.bucket, self._row)
        entry = next((place for place in places if place not in self._owners), 0)
        if not entry:
            idle = [owner for place in places if not (owner := self._owners[place]).running]
            if not idle:
                return 0
            now = self._clock()
            least = min(idle, key=lambda owner: (max(now, owner.full), owner.heard))
            entry = least.entry
            self._give_up(least)
        self._hand_over(known, entry, known.name)
        self._owners[entry] = known
        known.entry = entry
        return entry

    def _give_up(self, known: _Known) -> None:
        self._forgotten += 1
        self._hand_over(known, known.entry, (0, 0))
        del self._owners[known.entry]
        known.entry = 0
        known.base_cost = known.cost

    def _hand_over(self, known: _Known, entry: int, name: tuple[int, int]) -> None:
        words, sequence = self._hood.words, known.sequences + self._row
        words[sequence] += 1
        self._fence()
        words[entry : entry + _ENTRY] = _BLANK  # first: an entry without a name is nobody's
        words[entry], words[entry + 1] = name
        self._fence()
        words[sequence] += 1

    def _fence(self) -> None:
        """Let others see what was stored before what comes next is stored or loaded: processors may do it in another
        order. To take a lock is an atomic operation, and Python has no plainer one. Twice, because what comes next may
        overtake the release of a lock, but not the next taking of it.
        """
        with self._lock:
            pass
        with self._lock:
            pass

    # -- their entries --

    def _look_around(self, known: _Known, seen: tuple[int, ...]) -> None:
        """Find the others' entries of a tenant anew."""
        words, (first, second) = self._hood.words, known.name
        self._fence()
        known.cells = tuple(
            entry
            for row in range(self._hood.rows)
            if row != self._row and seen[row]
            for entry in self._hood.entries(known.bucket, row)
            if words[entry] == first and words[entry + 1] == second
        )
        known.seen = seen
        self._fence()
