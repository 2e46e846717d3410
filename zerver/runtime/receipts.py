"""Receipts: which requests with an idempotency key have come, whose run has each, and what it answered.

Law: of all who claim a place at once, one gets it; whoever has it keeps it until it stores an answer or lets go, or
until its lease lapses because its process is dead. A stored answer is the same to everybody until it expires.

    find      what is known of a place
    claim     take a place for a run, or learn who has it
    renew     the runs are still under way
    store     the run's answer is this: it is final, and its place is no longer under way
    release   the run has come to nothing that would have to be kept: its place is free
    begin     the run begins: what had its place before has come to nothing
    give_back the place is an earlier run's, which had it before and is found to go on

A lease is measured on a clock that nobody sets, because a claim that lapses early is a request carried out twice; the
lifetime of an answer that outlives its process on the wall clock, because it is promised in hours of the client's day.

Every verb may be asked again after JournalUnavailable: the same run claims its own place again, stores its answer
again, and releases what it does not have. Claims belong to runs, not to processes: whoever carries a run on after a
crash renews, stores and releases by its id, and finds its place held.

`zerver.testing.check_receipts` is this page as a program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final, Protocol

import attrs
import trio

from zerver.core.app import App, Capability
from zerver.core.timeline import Ending
from zerver.errors import DefinitionError, JournalUnavailable

#: Seconds: how long a claim outlives its process. Long beside any pause of an event loop: a loop that stands still for
#: longer loses its claims to others, and what it does then is done twice.
LEASE: Final = 30.0

#: The longest lease there is. A claim that seems to have more left was made before the machine started last.
LONGEST_LEASE: Final = 300.0

#: Bytes of an answer's body that can be kept.
MOST_ANSWER: Final = 1024 * 1024


@attrs.frozen
class StoredAnswer:
    """An answer as it was given: fields in order, names in lower case."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen
class Claim:
    """What a request with a key says. place: of its tenant, its flow and its key. head: of all else but its body; body:
    of its body; both digests. size: of the body, in bytes. run_id: who asks.
    """

    place: bytes
    run_id: str
    head: bytes
    body: bytes
    size: int


@attrs.frozen
class Asked:
    """What a request has said, as in a Claim."""

    head: bytes
    body: bytes
    size: int


@attrs.frozen
class Receipt:
    """What is known of a place. run_id: of the run that has it; head, body, size: of that run's request. answer: None
    while the run is under way. before: of a run that had it for the same key and was cut off, "" if none was, or it is
    known that nothing has come of it; of several, the first. asked: what that one's request had said.
    """

    run_id: str
    head: bytes
    body: bytes
    size: int
    answer: StoredAnswer | None = None
    before: str = ""
    asked: Asked | None = None


@attrs.frozen
class ReceiptTally:
    """under_way: claims without an answer, those that have lapsed included. stored: answers. bytes: of their bodies."""

    under_way: int
    stored: int
    bytes: int


class Receipts(Protocol):
    """A store of receipts. Every verb is a checkpoint, and raises JournalUnavailable; cancelled, it may have happened.

    Places are bytes, 64 at most.
    """

    async def find(self, place: bytes) -> Receipt | None:
        """The receipt, or None where a claim would be granted: for no receipt, an expired answer, a lapsed claim."""
        ...

    async def claim(self, claim: Claim, lease: float | None) -> Receipt:
        """Take the place if nobody has it. The receipt that stands there now: the caller's own if it bears its run_id.

        lease: seconds until it lapses, at most LONGEST_LEASE. None: never, because whoever recovers the run lets go; a
        journal that brings its runs back to life after a crash claims so.
        """
        ...

    async def renew(self, run_ids: Sequence[str], lease: float) -> None:
        """Begin the leases of these runs anew; those that have no claim, or one that never lapses, are passed over."""
        ...

    async def store(self, run_id: str, answer: StoredAnswer, lifetime: float) -> bool:
        """Keep the answer for `lifetime` seconds. False when the run has no claim any more: another one has taken over,
        and what that one answers is the answer.
        """
        ...

    async def release(self, run_id: str) -> bool:
        """Free the run's place. Whether it had one; an answer that is stored stays."""
        ...

    async def begin(self, run_id: str) -> None:
        """Nothing has come of the run that had this one's place before: it is forgotten, and what comes now is this
        one's. To be called before anything of the run is done; until then whoever takes the place over finds it too.
        """
        ...

    async def give_back(self, run_id: str, before: str, lease: float) -> bool:
        """The run's place is the earlier run's again, from whom it was taken when that one's lease had lapsed, with
        what that one's request had said and a new lease; nobody else can take it in between. Whether the run had a
        place, without an answer.
        """
        ...

    async def tally(self) -> ReceiptTally:
        """How much there is."""
        ...


class Foregone(Exception):
    """Raised by a run's Reader: there is nothing to run, what it comes to is known. It never leaves the runtime."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.status)
        self.ending = ending


# ---- the capability -------------------------------------------------------------------------

_RECEIPTS: Any = Receipts  # a protocol is a type to those who annotate with it, and no class to type checkers


def receipts_capability(open_receipts: Callable[[], AbstractAsyncContextManager[Receipts]]) -> Capability:
    """For `App(capabilities=[…])`: the app's idempotency keys are kept in the store that this opens."""
    return Capability(name="receipts", resources={_RECEIPTS: open_receipts})


def receipts_in(resources: Mapping[type, Any]) -> Receipts | None:
    """The store among an app's resources; None if no capability has brought one."""
    found: Receipts | None = resources.get(_RECEIPTS)
    return found


def brings_receipts(app: App) -> bool:
    """Whether a capability of the app brings a store, which several processes may share."""
    return any(_RECEIPTS in capability.resources for capability in app.capabilities)


# ---- in memory ------------------------------------------------------------------------------


class _Row:
    """A receipt and when it ends: of a claim its lease, of an answer its lifetime."""

    __slots__ = ("place", "receipt", "until")

    def __init__(self, place: bytes, receipt: Receipt, until: float) -> None:
        self.place = place
        self.receipt = receipt
        self.until = until


class MemoryReceipts:
    """Receipts of one process, that end with it: two workers know nothing of each other's keys.

    It has room for `most` receipts and `most_bytes` of answers. When it is full, new claims are refused and nothing is
    forgotten before its time: an answer that is gone early is a payment made twice, a refused request is asked again.
    Answers to claims that were granted are always taken, so that it may exceed its bytes by those under way.
    """

    def __init__(
        self, *, most: int = 100_000, most_bytes: int = 64 * 1024 * 1024, clock: Callable[[], float] | None = None
    ) -> None:
        """clock: seconds, by default Trio's, which nobody sets. Raises DefinitionError for no room at all."""
        if most < 1 or most_bytes < 1:
            raise DefinitionError(
                f"MemoryReceipts(most={most!r}, most_bytes={most_bytes!r})", "give it room for one at least"
            )
        self._most = most
        self._most_bytes = most_bytes
        self._now = clock or trio.current_time
        self._rows: dict[bytes, _Row] = {}
        self._runs: dict[str, _Row] = {}
        self._ends: list[tuple[float, int, _Row]] = []  # a heap, of answers alone
        self._number = count()
        self._bytes = 0

    async def find(self, place: bytes) -> Receipt | None:
        await trio.lowlevel.checkpoint()
        row = self._standing(place)
        return None if row is None else row.receipt

    async def claim(self, claim: Claim, lease: float | None) -> Receipt:
        check_lease(lease)
        await trio.lowlevel.checkpoint()
        self._forget_expired()
        until = _NEVER if lease is None else self._now() + lease
        row = self._standing(claim.place)
        if row is not None and row.receipt.answer is None and row.receipt.run_id == claim.run_id:
            row.until = until
        if row is not None:
            return row.receipt
        old = self._rows.get(claim.place)
        before, asked = "", None
        if old is not None:  # it has lapsed, or was this very run's
            before, asked = _before(old.receipt, claim.run_id)
            self._drop(old)
        elif len(self._rows) >= self._most or self._bytes >= self._most_bytes:
            raise JournalUnavailable("no room for another idempotency key", 1.0)
        receipt = Receipt(claim.run_id, claim.head, claim.body, claim.size, None, before, asked)
        row = _Row(claim.place, receipt, until)
        self._rows[claim.place] = self._runs[claim.run_id] = row
        return receipt

    async def renew(self, run_ids: Sequence[str], lease: float) -> None:
        check_lease(lease)
        await trio.lowlevel.checkpoint()
        for run_id in run_ids:
            row = self._runs.get(run_id)
            if row is not None and row.receipt.answer is None and row.until != _NEVER:
                row.until = self._now() + lease

    async def store(self, run_id: str, answer: StoredAnswer, lifetime: float) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._runs.get(run_id)
        if row is None:
            return False
        if row.receipt.answer is None:
            row.receipt = attrs.evolve(row.receipt, answer=answer)
            row.until = self._now() + lifetime
            self._bytes += len(answer.body)
            heappush(self._ends, (row.until, next(self._number), row))
        return True

    async def release(self, run_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._runs.get(run_id)
        if row is None or row.receipt.answer is not None:
            return False
        self._drop(row)
        return True

    async def begin(self, run_id: str) -> None:
        await trio.lowlevel.checkpoint()
        row = self._runs.get(run_id)
        if row is not None:
            row.receipt = attrs.evolve(row.receipt, before="", asked=None)

    async def give_back(self, run_id: str, before: str, lease: float) -> bool:
        check_lease(lease)
        await trio.lowlevel.checkpoint()
        row = self._runs.get(run_id)
        if row is None or row.receipt.answer is not None:
            return False
        del self._runs[run_id]
        self._runs[before] = row
        asked = row.receipt.asked or Asked(b"", b"", 0)
        row.receipt = Receipt(before, asked.head, asked.body, asked.size)
        row.until = self._now() + lease
        return True

    async def tally(self) -> ReceiptTally:
        await trio.lowlevel.checkpoint()
        self._forget_expired()
        stored = len(self._ends)
        return ReceiptTally(len(self._rows) - stored, stored, self._bytes)

    # -- inside, where nothing is awaited --

    def _standing(self, place: bytes) -> _Row | None:
        row = self._rows.get(place)
        return row if row is not None and row.until > self._now() else None

    def _forget_expired(self) -> None:
        while self._ends and self._ends[0][0] <= self._now():
            _, _, row = heappop(self._ends)
            self._drop(row)

    def _drop(self, row: _Row) -> None:
        del self._rows[row.place]
        del self._runs[row.receipt.run_id]
        if row.receipt.answer is not None:
            self._bytes -= len(row.receipt.answer.body)


_NEVER: Final = float("inf")


def _before(old: Receipt, run_id: str) -> tuple[str, Asked | None]:
    """What a run finds whose claim takes the place of this one, which has lapsed or is its own."""
    if old.answer is not None:
        return "", None
    if old.run_id == run_id or old.before:
        return old.before, old.asked
    return old.run_id, Asked(old.head, old.body, old.size)


def check_lease(lease: float | None) -> None:
    """Raise ValueError for a lease that is none."""
    if lease is not None and not 0 < lease <= LONGEST_LEASE:
        raise ValueError(f"a lease of {lease!r} seconds; it is above 0 and at most {LONGEST_LEASE:g}, or None")
