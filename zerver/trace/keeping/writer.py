"""The writer: a listener that keeps what is worth it in a trace file.

Law: the server comes first. Of its loop the writer takes a fifth at most, two milliseconds at a time; of memory so many
runs; and whatever becomes of the disk, nothing is raised and nobody waits for it. What was lost on the way is counted,
and each trouble is reported once.

    take ── keep? ──▶ pending ── encoded on the loop, in slices ──▶ a thread ── compressed, committed, pruned

Why runs are encoded on the loop, though there is a thread: their values are live objects, and in a thread they would be
read while steps of other runs write to what they share. And a thread that computes takes the interpreter for 5 ms at a
time each time the loop enters the kernel, which a loop does for every byte it sends; 2 ms that it gives by itself are
less. Compressing and committing let go of the interpreter, so that is what the thread is for. One exception: a run of
thousands of records would hold the loop for too long, and is encoded in the thread; if its values change
meanwhile, it is lost, and counted.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

import attrs
import trio

from zerver.errors import DefinitionError, TraceError
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.result import Result
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.keeping.keep import Keeper, KeeperStatistics, Kept
from zerver.trace.keeping.schema import check_file, is_empty
from zerver.trace.keeping.store import DamagedTrace, TraceStore, make_store
from zerver.trace.recorder import WallClock
from zerver.trace.recording import Recording, encode_run
from zerver.trace.summary import Summary, summarize

GATHER_SECONDS: Final = 0.25  # for which runs come together: a transaction costs as much as writing several of them
SLICE_SECONDS: Final = 0.002  # of the loop at once …
REST: Final = 4.0  # … and then none for so many times as long
MOST_PENDING: Final = 2_000  # runs that wait to be encoded
MOST_QUEUED: Final = 1_000  # runs that wait for the disk
LONG: Final = 2_000  # records: from so many on a run is encoded in the thread
RETRY_SECONDS: Final = 10.0  # after which a file that could not be opened is tried again
CLOSE_SECONDS: Final = 10.0  # for what is left, when the server ends
_PRUNE_SECONDS: Final = 60.0  # at least so often something old is looked for
_SLICES: Final = 20  # of pruning after one batch, so that the next one does not wait for ever

_log = logging.getLogger("zerver.trace")

_Chosen: TypeAlias = tuple[Result, Kept, int]  # and when it began
_Encoded: TypeAlias = tuple[Summary, Recording]


@attrs.frozen
class WriterStatistics:
    """Runs since the start: written; pending, of which some wait for the disk; and lost: overrun because there were too
    many at once, unencodable because a value could not be, failed because the file could not be written. trouble: what
    is wrong with the file now, "" while nothing is. keeper: what was kept, and why.
    """

    path: str
    written: int
    pending: int
    overrun: int
    unencodable: int
    failed: int
    trouble: str
    keeper: KeeperStatistics


def log_trouble(trouble: Exception) -> None:
    """The default of `on_trouble`: a line to the logger `zerver.trace`."""
    _log.error("traces are not kept: %s", trouble)


class TraceWriter:
    """Keeps runs in a file. Made by `open_trace_writer`; a Listener, for `open_recorder(listeners=[writer])`."""

    def __init__(self, keeper: Keeper, encode: Encode, scribe: Scribe) -> None:
        self.path = scribe.path
        self._keeper = keeper
        self._encode = encode
        self._scribe = scribe
        self._pending: deque[_Chosen] = deque()
        self._wake = trio.Event()
        self._overrun = 0

    def take(self, results: Sequence[Result], /) -> None:
        """Choose which of these are kept. The rest is done later, and elsewhere."""
        wall = WallClock()
        for result, kept in self._keeper.choose(results):
            if len(self._pending) >= MOST_PENDING:
                self._overrun += 1
                continue
            self._pending.append((result, kept, wall.began(result)))
        if self._pending:
            self._wake.set()

    def statistics(self) -> WriterStatistics:
        scribe = self._scribe
        return WriterStatistics(
            path=str(self.path),
            written=scribe.written,
            pending=len(self._pending) + scribe.queued,
            overrun=self._overrun,
            unencodable=scribe.unencodable,
            failed=scribe.failed,
            trouble=scribe.trouble,
            keeper=self._keeper.statistics(),
        )

    async def run(self) -> None:
        """Encode what was chosen, a little at a time, until cancelled."""
        while True:
            await self._wake.wait()
            await trio.sleep(GATHER_SECONDS)
            self._wake = trio.Event()
            while self._pending:
                began = time.perf_counter()
                if self._scribe.queued < MOST_QUEUED:
                    self.encode_until(began + SLICE_SECONDS)
                await trio.sleep(REST * max(SLICE_SECONDS, time.perf_counter() - began))

    def encode_until(self, until: float) -> None:
        """Encode for that long (seconds of `perf_counter`), but one run at least, and hand it to the thread."""
        batch: list[_Chosen | _Encoded] = []
        while self._pending:
            chosen = self._pending.popleft()
            if len(chosen[0].timeline.records) >= LONG:
                batch.append(chosen)
            else:
                batch.extend(self._scribe.encoded(self._encode, chosen))
            if time.perf_counter() >= until:
                break
        self._scribe.put(batch)

    async def close(self) -> None:
        """Write what is left, for ten seconds at most."""
        self.encode_until(time.perf_counter() + CLOSE_SECONDS / 2)
        self._overrun += len(self._pending)
        self._pending.clear()
        # Bounded by join(), in real time, and not by a deadline: a mock clock would jump over a working thread.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._scribe.stop, limiter=trio.CapacityLimiter(1))


@attrs.frozen
class Encode:
    """From a run that was chosen to what is stored of it. hidden: what is masked beside secret slots."""

    hidden: Hidden

    def __call__(self, chosen: _Chosen) -> _Encoded:
        result, kept, began = chosen
        summary = summarize(
            result, began_unix_ns=began, kept=kept.why, beside=kept.beside, slow=kept.slow, hidden=self.hidden
        )
        return summary, encode_run(result, began_unix_ns=began, hidden=self.hidden)


class Scribe:
    """The thread that writes. Counters are written by it, or under the interpreter's lock, and read by all."""

    def __init__(
        self, path: Path, encode: Encode, most_bytes: int, most_age: float, on_trouble: Callable[[Exception], None]
    ) -> None:
        self.path = path
        self.written = self.unencodable = self.failed = self.queued = 0
        self.trouble = ""
        self._encode = encode
        self._most_bytes = most_bytes
        self._most_age = most_age
        self._on_trouble = on_trouble
        self._queue: queue.SimpleQueue[list[_Chosen | _Encoded] | None] = queue.SimpleQueue()
        self._store: TraceStore | None = None
        self._retry = float("-inf")
        self._guard = threading.Lock()  # of `queued`, which two threads change
        self._thread = threading.Thread(target=self._main, name=f"zerver trace {path}", daemon=True)
        self._thread.start()

    def put(self, batch: list[_Chosen | _Encoded]) -> None:
        """Have a batch written."""
        with self._guard:
            self.queued += len(batch)
        self._queue.put(batch)

    def stop(self) -> None:
        """Write what is queued, and end; not waiting for longer than ten seconds."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._report(TraceError(f"the thread that writes {self.path} did not end; is the disk stuck?"))

    def encoded(self, encode: Encode, chosen: _Chosen) -> Iterable[_Encoded]:
        """The run encoded, or nothing when that did not work: a value's own code may do anything."""
        try:
            return (encode(chosen),)
        except Exception as error:
            self.unencodable += 1
            if self.unencodable == 1:
                self._report(error)
            return ()

    # Everything from here on runs in the thread.

    def _main(self) -> None:
        self._opened()
        try:
            while True:
                try:
                    batch = self._queue.get(timeout=_PRUNE_SECONDS)
                except queue.Empty:
                    batch = []
                if batch is None:
                    return
                self._serve(batch)
        finally:
            if self._store is not None:
                self._store.close()

    def _serve(self, batch: list[_Chosen | _Encoded]) -> None:
        try:
            ready = [pair for item in batch for pair in self._ready(item)]
            store = self._opened()
            if store is None:
                self.failed += len(ready)
                return
            if ready:
                self._write(store, ready)
            self._prune(store)
        except Exception as error:  # whatever it is, the next batch may go well
            self._fell(error)
        finally:
            with self._guard:
                self.queued -= len(batch)

    def _ready(self, item: _Chosen | _Encoded) -> Iterable[_Encoded]:
        if len(item) == 2:
            return (item,)
        return self.encoded(self._encode, item)

    def _opened(self) -> TraceStore | None:
        """The store; None while it cannot be opened, which is tried again now and then."""
        if self._store is not None and self._store.was_moved:
            self._store.close()
            self._store, self._retry = None, float("-inf")
        if self._store is None and time.monotonic() >= self._retry:
            try:
                self._store = make_store(self.path)
            except TraceError as error:
                self._fell(error)
        return self._store

    def _write(self, store: TraceStore, ready: Sequence[_Encoded]) -> None:
        try:
            store.write(ready)
        except TraceError as error:
            self.failed += len(ready)
            if isinstance(error, DamagedTrace):
                store.close()
                self._store = None
            self._fell(error)
        else:
            self.written += len(ready)
            self.trouble = ""

    def _prune(self, store: TraceStore) -> None:
        oldest = time.time_ns() - int(self._most_age * 1e9)
        for _ in range(_SLICES):
            if self._store is None or not store.prune(most_bytes=self._most_bytes, oldest_unix_ns=oldest):
                return

    def _fell(self, error: Exception) -> None:
        """Something is wrong with the file. Reported once, until a write goes well or something else is wrong."""
        self._retry = time.monotonic() + RETRY_SECONDS
        said = str(error)
        if said != self.trouble:
            self.trouble = said
            self._report(error)

    def _report(self, error: Exception) -> None:
        try:
            self._on_trouble(error)
        except Exception:  # whoever is told of troubles may have one: there is nobody left to tell
            _log.exception("on_trouble has a defect")


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise TraceError when there is something else where traces are to be kept: to be said before serving begins."""
    if not is_empty(Path(path)):
        check_file(Path(path))


@asynccontextmanager
async def open_trace_writer(
    path: str | os.PathLike[str],
    *,
    keeper: Keeper | None = None,
    hidden: Hidden = NOTHING_HIDDEN,
    most_bytes: int = 512 << 20,
    most_age: float = 7 * 86_400.0,
    on_trouble: Callable[[Exception], None] = log_trouble,
) -> AsyncGenerator[TraceWriter, None]:
    """Keep runs in a trace file; when the block is left, what was taken is written first.

        async with open_trace_writer(".zerver/traces.db") as writer, open_recorder(listeners=[writer]) as recorder: ...

    path: made when it is missing, its folder too; several processes may give the same. most_bytes: of it in use; the
    least wanted runs are deleted beyond that. most_age: seconds after which a run is deleted. on_trouble: told, in
    whatever thread, that runs are lost, and why: a full disk, a file of somebody else. It is tried again every ten
    seconds, so moving the wrong file away is all there is to do.

    Raises DefinitionError for bounds that hold nothing; nothing else, whatever is wrong with the file.
    """
    if most_bytes < 1 << 20 or not most_age > 0:
        raise DefinitionError(
            f"open_trace_writer(most_bytes={most_bytes}, most_age={most_age})",
            "give 1 MiB or more, and seconds above 0",
        )
    encode = Encode(hidden)
    scribe = Scribe(Path(path), encode, most_bytes, most_age, on_trouble)
    writer = TraceWriter(keeper or Keeper(), encode, scribe)
    async with open_body_nursery() as nursery:
        nursery.start_soon(writer.run)
        try:
            yield writer
        finally:
            await writer.close()
            nursery.cancel_scope.cancel()
