"""The scribe: one task that writes entries, many at a time. No database is known here.

Law: entries are written in the order in which they were handed over, each in one batch that is written whole or not at
all; a caller is told when its batch is on the disk, and not before. While one batch is being written the next one
gathers: that is group commit, and with one caller alone it costs nothing.

    write ────────▶ ┌────────┐  at once
                    │ queue  │ ───────────▶ batch ──▶ commit ──▶ its callers are told
    write_behind ─▶ └────────┘  after BEHIND_SECONDS, or with the next `write`

When a batch gets no answer it is written once more, at once: entries may be written twice without harm, and most often
the second try tells that the first one had worked. When that fails too, its callers are told JournalUnavailable, and
for a moment so is everybody else, at once: a server must say 503 within a second, and not queue up for a database that
is away. An Opening that may be there all the same is withdrawn as soon as the journal answers. What is written behind
waits, up to MOST_BEHIND bytes.

A caller that is cancelled while its batch is being written hears how that went; unless the journal has been mute for
too long: then it is told that nobody knows, since both tries may take seconds to fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import attrs
import trio

from zerver.errors import JournalError, JournalUnavailable, LeaseLost
from zerver.runtime.crash import crash_point
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.journal import Entry, JournalStatistics, Opening, Page

BEHIND_SECONDS: Final = 0.05  # how long what is written behind may gather: so much a crash takes along at most …
MOST_BATCH: Final = 500  # entries
MOST_BEHIND: Final = 64 << 20  # … unless the journal cannot be written: then so many bytes, and what comes is dropped
FIRST_BACKOFF: Final = 0.1  # seconds for which a journal that could not be written is left alone; then twice that …
LAST_BACKOFF: Final = 1.0  # … up to this

#: Writes a batch, and tells of each entry what was wrong with it alone, as LeaseLost. Raises JournalError, and nothing
#: is written then, but for Doubtful. The openings in the second argument are undone first, if they are there.
Perform: TypeAlias = Callable[[Sequence[Entry], Sequence[Opening]], Awaitable[Sequence[JournalError | None]]]


class Doubtful(JournalUnavailable):
    """Nobody can say whether it was written."""


@attrs.define(eq=False)
class _Order:
    """One entry on its way. task: who waits for it, None when it is written behind, or its caller has left. left: that
    it has, and was told that nobody knows.
    """

    entry: Entry
    task: trio.lowlevel.Task | None = None
    error: Exception | None = None
    taken: bool = False
    left: bool = False


class Scribe:
    """Takes entries from any task, and gives batches to `perform`. place: as statistics call the journal. mute: seconds
    after which a batch is taken to get no answer soon, and its callers may leave.
    """

    def __init__(self, place: str, perform: Perform, mute: float = float("inf")) -> None:
        self._place = place
        self._perform = perform
        self._mute = mute
        self._began = 0.0  # when the batch that is being written was taken, on Trio's clock
        self._queue: deque[_Order] = deque()
        self._wake = trio.Event()
        self._urgent = trio.Event()
        self._at_rest = trio.Event()
        self._at_rest.set()
        self._withdrawn: Sequence[Opening] = ()
        self._holed: set[str] = set()  # runs of which something was dropped: what follows would leave a hole
        self._behind_bytes = self._behind = self._waiting = 0
        self._written = self._written_behind = self._refused = self._dropped = 0
        self._closing, self._ended = trio.Event(), trio.Event()
        self._trouble: JournalError | None = None
        self._backoff = FIRST_BACKOFF
        self._again_at = -float("inf")

    # -- for callers --

    @trio.lowlevel.enable_ki_protection  # a Ctrl-C between queueing and parking would leave an order without a task
    async def write(self, entry: Entry) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check()
        order = _Order(entry, trio.lowlevel.current_task())

        def leave(_: object) -> trio.lowlevel.Abort:
            if order.taken:
                if trio.current_time() - self._began >= self._mute:
                    order.left = True
                    self._answer(order, JournalUnavailable(f"{self._place} has not answered for {self._mute:g} s"))
                return trio.lowlevel.Abort.FAILED
            self._queue.remove(order)
            self._waiting -= 1
            return trio.lowlevel.Abort.SUCCEEDED

        self._queue.append(order)
        self._waiting += 1
        self._hurry()
        await trio.lowlevel.wait_task_rescheduled(leave)
        if order.error is not None:
            error, order.error = order.error, None
            try:
                raise error
            finally:
                del error

    def write_behind(self, entry: Entry) -> None:
        run_id = _run_of(entry)
        size = sum(map(len, entry.lines))
        if run_id in self._holed or self._closing.is_set() or self._behind_bytes + size > MOST_BEHIND:
            self._drop(entry)
            return
        self._queue.append(_Order(entry))
        self._behind += 1
        self._behind_bytes += size
        self._wake.set()
        if self._at_rest.is_set():
            self._at_rest = trio.Event()

    async def flush(self) -> None:
        self._urgent.set()
        await trio.lowlevel.checkpoint()
        await self._at_rest.wait()

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(
            place=self._place,
            written=self._written,
            written_behind=self._written_behind,
            refused=self._refused,
            dropped=self._dropped,
            waiting=self._waiting,
            behind=self._behind,
            behind_bytes=self._behind_bytes,
            trouble="" if self._trouble is None else str(self._trouble),
        )

    # -- the task --

    async def run(self) -> None:
        """Write what is handed over, until closed."""
        try:
            while self._queue or not self._closing.is_set():
                await self._wake.wait()
                if not self._waiting:
                    with trio.move_on_after(BEHIND_SECONDS):
                        await self._urgent.wait()
                self._wake, self._urgent = trio.Event(), trio.Event()
                while self._queue or self._withdrawn:
                    await self._write_batch()
        finally:
            self._ended.set()

    async def close(self, seconds: float) -> None:
        """Have what is left written, within so many seconds; nothing is taken any more."""
        self._closing.set()
        self._hurry()
        with trio.move_on_after(seconds, shield=True):
            await self._ended.wait()
        for order in [*self._queue]:
            self._over(order, JournalUnavailable(f"{self._place} was closed"))
        self._queue.clear()

    async def _write_batch(self) -> None:
        pause = self._again_at - trio.current_time()
        if pause > 0 and not self._closing.is_set():
            with trio.move_on_after(pause):
                await self._closing.wait()
        batch = [self._queue.popleft() for _ in range(min(MOST_BATCH, len(self._queue)))]
        for order in batch:
            order.taken = True
        self._began = trio.current_time()
        try:
            crash_point("fsync.before")
            outcomes = await self._attempts([order.entry for order in batch])
            crash_point("fsync.after")
        except JournalError as error:
            self._failed(batch, error)
        except BaseException:
            self._failed(batch, Doubtful(f"{self._place} was closed"))
            raise
        else:
            self._trouble, self._backoff = None, FIRST_BACKOFF
            for order, wrong in zip(batch, outcomes, strict=True):
                self._over(order, wrong)

    async def _attempts(self, entries: Sequence[Entry]) -> Sequence[JournalError | None]:
        try:
            outcomes = await self._perform(entries, self._withdrawn)
        except Doubtful:
            try:
                outcomes = await self._perform(entries, self._withdrawn)
            except JournalUnavailable as error:  # that the second try has not worked says nothing of the first
                raise Doubtful(str(error), error.retry_after) from error
        self._withdrawn = ()
        return outcomes

    def _failed(self, batch: Sequence[_Order], error: JournalError) -> None:
        """Tell those who wait, those in the queue too: they would fail as well, only later. What is written behind
        keeps its place.
        """
        self._trouble = error
        self._again_at = trio.current_time() + self._backoff
        self._backoff = min(LAST_BACKOFF, 2 * self._backoff)
        kept: deque[_Order] = deque()
        for order in (*batch, *self._queue):
            is_behind = order.task is None and not order.left
            if is_behind and isinstance(error, JournalUnavailable) and not self._closing.is_set():
                order.taken = False
                kept.append(order)
                continue
            if order.taken and isinstance(order.entry, Opening) and isinstance(error, Doubtful):
                self._withdrawn = (*self._withdrawn, order.entry)
            self._over(order, self._again(error))
        self._queue = kept
        if self._closing.is_set() or not isinstance(error, JournalUnavailable):
            self._withdrawn = ()  # nobody can do it any more

    def _over(self, order: _Order, error: Exception | None) -> None:
        refused = isinstance(error, LeaseLost)
        self._refused += refused
        if order.left:
            self._written += error is None
            if error is None and isinstance(order.entry, Opening):  # the run has not begun, says its caller
                self._withdrawn = (*self._withdrawn, order.entry)
        elif order.task is None:
            self._behind -= 1
            self._behind_bytes -= sum(map(len, order.entry.lines))
            if error is None:
                self._written_behind += 1
            else:
                self._drop(order.entry)
        else:
            self._written += error is None
            self._answer(order, error)
        if not self._behind:
            self._at_rest.set()

    def _answer(self, order: _Order, error: Exception | None) -> None:
        self._waiting -= 1
        order.error = error
        task, order.task = order.task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    # -- nothing below waits --

    def _check(self) -> None:
        if self._closing.is_set():
            raise JournalUnavailable(f"{self._place} was closed")
        if self._trouble is not None and trio.current_time() < self._again_at:
            raise self._again(self._trouble)

    def _again(self, trouble: JournalError) -> JournalError:
        """The trouble, as another exception: two tasks must not raise the same one."""
        if not isinstance(trouble, JournalUnavailable):
            return type(trouble)(str(trouble))
        return JournalUnavailable(str(trouble), max(trouble.retry_after, self._again_at - trio.current_time(), 0.0))

    def _hurry(self) -> None:
        self._wake.set()
        self._urgent.set()

    def _drop(self, entry: Entry) -> None:
        """It will never be written: nor is what follows, but for the next life of a run of this id."""
        self._dropped += 1
        ended = isinstance(entry, Page) and bool(entry.status)
        (self._holed.discard if ended else self._holed.add)(_run_of(entry))


def _run_of(entry: Entry) -> str:
    return entry.head.run_id if isinstance(entry, Opening) else entry.run_id


def lease_lost(entry: Entry) -> LeaseLost:
    """The error for an entry whose lease has not held."""
    if isinstance(entry, Opening):
        return LeaseLost(f"run {entry.head.run_id}: owner {entry.head.owner!r} has not renewed its lease, or it exists")
    return LeaseLost(f"run {entry.run_id} is another owner's by now, or over; this one's fence was {entry.fence}")


@asynccontextmanager
async def open_scribe(scribe: Scribe, *, close_seconds: float) -> AsyncGenerator[None, None]:
    """Have a scribe work; when the block is left, what was handed over is written first, within so many seconds."""
    async with open_body_nursery() as nursery:
        nursery.start_soon(scribe.run)
        try:
            yield
        finally:
            await scribe.close(close_seconds)
            nursery.cancel_scope.cancel()
