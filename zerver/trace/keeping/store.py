"""The trace store: kept runs in one SQLite file, for whoever asks later, from whatever process.

Law: this room's one place, with its schema, that knows sqlite3. Many processes may write and read one file at a time.
A file that is not ours is refused before it is opened, a damaged one is said to be damaged, and what is read out of any
file is bounded and never executed. It holds no more than it was told to.

`synchronous=NORMAL`: a power cut may take the last seconds' traces along, and never more than these: the file stays
whole (sqlite.org/pragma.html#pragma_synchronous). Nobody was promised anything by a trace, as somebody was by a
payment, and so no fsync is waited for.

What goes first when there is too much: the oldest of what is ordinary (samples, refusals, answers that were the
callers' own doing) while that has more than half of the file, then the oldest of all. A busy day must not push out the
errors of the day before.

Each call is synchronous and takes its time in the disk: from Trio, call it in a thread. A store may be handed from
thread to thread; calls wait for each other.
"""

from __future__ import annotations

import heapq
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import attrs

from zerver.errors import TraceError
from zerver.trace.keeping.keep import ORDINARY
from zerver.trace.keeping.packing import dictionary, pack, unpack
from zerver.trace.keeping.queries import after, cleaned, queries
from zerver.trace.keeping.schema import check_file, check_schema, is_empty, make_file
from zerver.trace.recording import Recording
from zerver.trace.summary import Filter, Summary, trace_id

#: Seconds to wait for a lock that another process holds.
BUSY_SECONDS: Final = 5.0

#: A slice of pruning: so many runs, or so many bytes of them. Others that want to write wait for one of these at most.
PRUNED_RUNS: Final = 200
PRUNED_BYTES: Final = 4 << 20

_DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_VACUUMED: Final = 256  # pages at a time
_ROW_BYTES: Final = 300  # of a run, beside its body: about what its row and the entries of its indexes take
_COLUMNS: Final = (
    "runs.seq, run_id, began, label, flow, version, tenant, priority, status, http, took, kept, beside, slow, cause, "
    "slow_step, unresolved, trace_id, records"
)

_TYPES: Final = (
    *(int, str, int, str, str, str, str, str, str, int | None, int, str, int, int, str),
    *(str, int, str, int),
)


class DamagedTrace(TraceError):
    """A trace file is damaged: writing to it has to stop."""


@attrs.frozen
class StoreStatistics:
    """file_bytes: the file's size. used_bytes: what of it is in use. runs, bytes: by why they were kept. oldest: when
    the oldest run began, in nanoseconds since 1970; None in an empty store.
    """

    file_bytes: int
    used_bytes: int
    runs: Mapping[str, int]
    bytes: Mapping[str, int]
    oldest_unix_ns: int | None


class TraceStore:
    """A trace file, open; `with open_store(path) as store` reads one, `with make_store(path) as store` writes one."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db
        self._inode = _inode(path)
        self._lock = threading.Lock()
        self._version = -1

    def __enter__(self) -> TraceStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Calls after it raise TraceError."""
        with self._lock:
            self._db.close()

    # -- reading --

    def search(self, filter: Filter | None = None, count: int = 50) -> list[Summary]:
        """The newest runs that fit, newest first. Raises TraceError.

        What one filter alone finds costs a read for each run shown. Where a filter takes most runs and a second one
        hardly any of these, all that fit the first are looked at, as all errors for those of a tenant that has none.
        """
        wanted = filter or Filter()
        with self._told():
            routes = self._route_ids(wanted.route) if wanted.route else ()
            codes = self._http(*wanted.http) if wanted.http else ()
            parts = [self._rows(*query, count) for query in queries(wanted, routes, codes)]
        newest = heapq.merge(*parts, key=lambda row: -row[1].began_unix_ns)
        return [summary for _, summary in islice(newest, count)]

    def matching(self, said: str, count: int = 10) -> list[Summary]:
        """The runs that somebody may mean: whose id begins so, with or without `req_`, or that belong to the trace.

        said: as it was copied: "req_7a8f", "[7a8f…]", a trace id, or a whole `traceparent`. The very id means one run.
        """
        wanted = cleaned(said)
        if not wanted:
            return []
        trace = trace_id(wanted) or (wanted if len(wanted) == 32 else "")
        with self._told():
            exact = self._rows("", "run_id in (?, ?)", (wanted, f"req_{wanted}"), count)
            if exact:
                return [summary for _, summary in exact]
            found = {
                summary
                for prefix in (wanted, f"req_{wanted}")
                for _, summary in self._rows("", "run_id >= ? and run_id < ?", (prefix, after(prefix)), count)
            }
            if trace:
                found |= {
                    it for _, it in self._rows("runs_by_trace", "trace_id <> '' and trace_id = ?", (trace,), count)
                }
        return sorted(found, key=lambda summary: -summary.began_unix_ns)[:count]

    def read(self, run_id: str) -> Recording | None:
        """The run of this id, None if there is none. Raises TraceError for one that cannot be read."""
        with self._told():
            found = self._db.execute(
                "select began, plans.hash, plans.plan, body from runs cross join routes on routes.id = runs.route "
                "cross join plans on plans.id = routes.plan cross join bodies on bodies.seq = runs.seq "
                "where run_id = ?",
                (run_id,),
            ).fetchone()
        if found is None:
            return None
        began, plan_id, packed_plan, packed = found
        try:
            plan = unpack(packed_plan)
            if not isinstance(began, int) or not isinstance(plan_id, str):
                raise TypeError("its row does not have the types of one")
            return Recording(
                run_id=run_id, began_unix_ns=began, plan_id=plan_id, plan=plan, body=unpack(packed, dictionary(plan))
            )
        except (zlib.error, ValueError, TypeError) as error:
            raise TraceError(f"run {run_id} in {self.path} is damaged: {error}") from None

    def find(self, said: str) -> Recording | None:
        """The one run that this means, see `matching`; None when there is none, or more than one."""
        matching = self.matching(said, 2)
        return self.read(matching[0].run_id) if len(matching) == 1 else None

    def last(self) -> int:
        """The number of the run that was written last, 0 in a new store: what `after` takes."""
        with self._told():
            found = self._db.execute("select seq from sqlite_sequence where name = 'runs'").fetchone()
        return int(found[0]) if found else 0

    def after(self, number: int, count: int = 100) -> list[tuple[int, Summary]]:
        """Runs that were written after that one, oldest first, with their numbers."""
        with self._told():
            return self._rows("", "runs.seq > ?", (number,), count, order="runs.seq")

    def has_changed(self) -> bool:
        """Whether another process, or another store, has written since this was asked last. Costs next to nothing."""
        with self._told():
            (version,) = self._db.execute("pragma data_version").fetchone()
        before, self._version = self._version, int(version)
        return before != self._version

    def statistics(self) -> StoreStatistics:
        with self._told():
            total, used = self._sizes()
            tallies = self._db.execute("select kept, runs, bytes from tallies").fetchall()
            (oldest,) = self._db.execute("select min(began) from runs").fetchone()
        if not all(isinstance(kept, str) and isinstance(runs + size, int) for kept, runs, size in tallies):
            raise DamagedTrace(f"{self.path} is damaged: its sums are no numbers")
        runs = {kept: count for kept, count, _ in tallies}
        return StoreStatistics(total, used, runs, {kept: size for kept, _, size in tallies}, oldest)

    # -- writing --

    @property
    def was_moved(self) -> bool:
        """Whether the file is no longer where it was: somebody has moved or deleted it, and it is to be made anew."""
        return _inode(self.path) != self._inode

    def write(self, kept: Sequence[tuple[Summary, Recording]]) -> None:
        """Write some runs, all or none; one that is there already is replaced. Raises TraceError."""
        packed = [(summary, recording, pack(recording.body, recording.plan)) for summary, recording in kept]
        with self._told(), self._transaction():
            for summary, recording, body in packed:
                self._write(summary, recording, body)

    def prune(self, *, most_bytes: int, oldest_unix_ns: int) -> bool:
        """Delete one slice of what is too old or too much. Whether there may be more to delete. Raises TraceError."""
        with self._told():
            with self._transaction():
                deleted = self._delete("runs_by_age", "began < ?", (oldest_unix_ns,), PRUNED_BYTES)
                excess = self._sizes()[1] - most_bytes
                if not deleted and excess > 0:
                    deleted = self._delete(*self._least_wanted(), min(PRUNED_BYTES, excess))
                    if deleted:
                        self._sweep()
            total, used = self._sizes()
            if total - used > total // 8:  # else the next runs take these pages
                self._db.executescript(f"pragma incremental_vacuum({_VACUUMED})")  # execute() would stop at one page
        return deleted > 0

    def _write(self, summary: Summary, recording: Recording, body: bytes) -> None:
        execute = self._db.execute
        execute("delete from runs where run_id = ?", (summary.run_id,))
        done = execute(
            "insert into runs (run_id, began, route, tenant, priority, status, http, took, kept, beside, slow, cause, "
            "slow_step, unresolved, trace_id, records, bytes) "
            "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(summary.run_id, summary.began_unix_ns, self._route(summary, recording), summary.tenant),
                *(summary.priority, summary.status, summary.http, summary.took_ns, summary.kept, summary.beside),
                *(summary.slow, summary.cause, summary.slow_step, summary.unresolved, summary.trace_id),
                *(summary.records, len(body) + _ROW_BYTES),
            ),
        )
        execute("insert into bodies values (?, ?)", (done.lastrowid, body))

    def _route(self, summary: Summary, recording: Recording) -> int:
        """The number of the run's route. Looked up each time: another process may have swept it away."""
        execute = self._db.execute
        named = (summary.flow, summary.label, summary.version, recording.plan_id)
        found = execute(
            "select routes.id from routes join plans on plans.id = routes.plan "
            "where flow = ? and label = ? and version = ? and hash = ?",
            named,
        ).fetchone()
        if found is None:
            plan = zlib.compress(recording.plan)
            execute("insert into plans (hash, plan) values (?, ?) on conflict do nothing", (recording.plan_id, plan))
            found = execute(
                "insert into routes (flow, label, version, plan) "
                "values (?, ?, ?, (select id from plans where hash = ?)) returning id",
                named,
            ).fetchone()
        return int(found[0])

    def _least_wanted(self) -> tuple[str, str, tuple[Any, ...]]:
        """Which of the oldest go first: see the law."""
        tallies = dict(self._db.execute("select kept, bytes from tallies").fetchall())
        ordinary = {kept: size for kept, size in tallies.items() if kept in ORDINARY}
        if 2 * sum(ordinary.values()) > sum(tallies.values()):
            return "runs_by_kept", "kept = ?", (max(ordinary, key=lambda kept: ordinary[kept]),)
        return "runs_by_age", "true", ()

    def _delete(self, index: str, where: str, params: tuple[Any, ...], most: int) -> int:
        """Delete the oldest of these runs, until so many bytes are free. How many."""
        listed = self._db.execute(
            f"select seq, bytes from runs indexed by {index} where {where} order by began limit {PRUNED_RUNS}", params
        )
        freed = 0
        victims: list[tuple[int]] = []
        for seq, size in listed.fetchall():
            victims.append((seq,))
            freed += size
            if freed >= most:
                break
        self._db.executemany("delete from runs where seq = ?", victims)
        return len(victims)

    def _sweep(self) -> None:
        """Delete the routes and plans of versions that no run is left of."""
        self._db.execute("delete from routes where not exists (select 1 from runs where route = routes.id)")
        self._db.execute("delete from plans where id not in (select plan from routes)")

    # -- questions to the file --

    def _route_ids(self, route: str) -> list[int]:
        found = self._db.execute(
            "select id from routes where flow = ? union select id from routes where label = ?", (route, route)
        )
        return [row[0] for row in found.fetchall()]

    def _http(self, first: int, last: int) -> list[int]:
        """The statuses between these that there are, each found by one step in the index."""
        found = self._db.execute(
            "with recursive codes (code) as (select min(http) from runs where http >= ? union all "
            "select (select min(http) from runs where http > code) from codes where code is not null) "
            "select code from codes where code <= ?",
            (first, last),
        )
        return [row[0] for row in found.fetchall()]

    def _rows(
        self, index: str, where: str, params: Iterable[Any], count: int, order: str = "began desc"
    ) -> list[tuple[int, Summary]]:
        """Runs, with the numbers in whose order they were written."""
        by = f"indexed by {index}" if index else ""
        found = self._db.execute(
            f"select {_COLUMNS} from runs {by} cross join routes on routes.id = runs.route "
            f"where {where} order by {order} limit ?",
            (*params, count),
        )
        return [(row[0], _summary(row)) for row in found.fetchall()]

    def _sizes(self) -> tuple[int, int]:
        """Bytes of the file, and of what of it is in use."""
        (pages,), (free,), (size,) = (
            self._db.execute(f"pragma {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        return pages * size, (pages - free) * size

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("begin immediate")  # deferred, it could find out too late that another process has written
        try:
            yield
            self._db.execute("commit")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """One call at a time, and its troubles in words."""
        with self._lock, _in_words(self.path):
            yield


def open_store(path: str | os.PathLike[str]) -> TraceStore:
    """Open a trace file to read it; use it in a `with`. Raises TraceError, whose message says what to do."""
    where = Path(path)
    check_file(where)
    uri = where.absolute().as_uri()
    with _in_words(where):
        try:
            return TraceStore(where, _connect(where, f"{uri}?mode=ro"))
        except sqlite3.OperationalError:
            if os.access(where.parent, os.W_OK) or Path(f"{where}-wal").exists():
                raise
        # A copy in a folder where nothing can be written: without the log's index, for nobody writes to it.
        return TraceStore(where, _connect(where, f"{uri}?mode=ro&immutable=1"))


def make_store(path: str | os.PathLike[str]) -> TraceStore:
    """Open a trace file to write to it, made if it is missing, for its owner's eyes only. Raises TraceError."""
    where = Path(path)
    if is_empty(where):
        make_file(where)
    check_file(where)
    with _in_words(where):
        db = _connect(where, f"{where.absolute().as_uri()}?mode=rw")
        db.execute("pragma synchronous = normal")
        return TraceStore(where, db)


def _connect(path: Path, uri: str) -> sqlite3.Connection:
    """A connection that has read something."""
    db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        db.execute("pragma trusted_schema = off")  # a file may come from anywhere
        db.execute("pragma cell_size_check = on")
        check_schema(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _summary(row: Sequence[Any]) -> Summary:
    """Raises TraceError for a row that was not written by this room: SQLite lets any type stand in any column."""
    if not all(isinstance(field, type_) for field, type_ in zip(row, _TYPES, strict=True)):
        raise TraceError(f"run {row[1]!r} is damaged: its row does not have the types of one")
    (_, run_id, began, label, flow, version, tenant, priority, status, http, took, kept, beside, slow, *rest) = row
    cause, slow_step, unresolved, trace, records = rest
    return Summary(
        *(run_id, began, label, flow, version, tenant, priority, status, http, took, kept, beside, bool(slow)),
        *(cause, slow_step, unresolved, trace, records),
    )


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """What goes wrong, as a TraceError."""
    try:
        yield
    except sqlite3.Error as error:
        raise _trouble(path, error) from error
    except UnicodeError as error:  # of what was asked, or of what was found
        raise TraceError(f"{path}: this is no text: {error}") from None


def _trouble(path: Path, error: sqlite3.Error) -> TraceError:
    """The error in words, with what to do about it."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(_DAMAGED):
        return DamagedTrace(
            f"{path} is damaged ({error}); move it away, and {path.name}-wal with it: a new one is made then; "
            f"`sqlite3 {path} .recover` saves what can be saved"
        )
    if name.startswith("SQLITE_FULL"):
        return TraceError(f"the disk of {path} is full")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return TraceError(f"another process has held {path} for longer than {BUSY_SECONDS:g} s")
    return TraceError(f"{path}: {error}{f' ({name})' if name else ''}")
