"""SQLite behind the driver port: one thread that writes, a few that read. Nothing else knows sqlite3.

Law: a connection is opened, used and closed by one thread, and no caller ever pays for another's statement.

Group commit. SQLite has one writer at a time, and an fsync costs more than a hundred small statements. So the
writer takes every job at hand into one transaction, each behind its own savepoint, and answers them all after
one COMMIT. Savepoints alone do not keep neighbours apart, though:

- an interrupted INSERT, UPDATE or DELETE rolls back the whole transaction, savepoints and all (documented at
  sqlite3_interrupt; I/O errors and `on conflict rollback` do the same);
- a deferred foreign key is checked at COMMIT, when its culprit's savepoint is long released;
- a full disk may refuse a batch, and still have room for most of it;
- a caller is cancelled whose statement has ended, while a neighbour's goes on for minutes.

One rule answers all four: a batch that cannot be committed whole is done again, each job alone, in a
transaction of its own. Nobody has been answered by then and nothing was committed, so nothing happens twice.

When COMMIT itself fails: SQLITE_CONSTRAINT, SQLITE_BUSY and SQLITE_FULL come before the log holds a commit
frame, so it is a StatementError and has not happened. Anything else (SQLITE_IOERR: an fsync that failed) is
ConnectionLost: the frame may be on the disk, and a crash before the next write would bring it back to life.

Refused: a pool of connections that write (they would only queue for SQLite's lock); `synchronous=NORMAL` as
the default (it answers before the fsync); a shared cache (its readers fail while somebody writes).
`scripts/benchmarks/sqlite_commits.py` measures what the thread and the batches gain over `to_thread`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import attrs
import trio

from zerver.errors import ConnectionLost, DriverError, StatementError
from zerver.sql.dialects import CLOCKS
from zerver.sql.driver import Answer, Changed, Rows, Statement, check_answer
from zerver.sql.jobs import Desk, Job, JobQueue, Stopped
from zerver.sql.sqlite_statements import code_of, explained, makes_a_key, sendable
from zerver.sql.threaded import ThreadedDriver

BATCH_JOBS = 256  # a batch takes in at most so many jobs …
BATCH_SECONDS = 0.005  # … and none after so long: a few fsyncs' worth of waiting for one's neighbours
STATEMENT_CACHE = 512  # prepared statements each connection keeps

# A statement that, once begun, is always running: it reads no table and has a second row to give.
ALWAYS_RUNNING = "values (1), (2)"

# COMMIT failed before the log held a commit frame.
NOT_COMMITTED = ("SQLITE_CONSTRAINT", "SQLITE_BUSY", "SQLITE_FULL")

Synchronous: TypeAlias = Literal["OFF", "NORMAL", "FULL", "EXTRA"]
T = TypeVar("T")


@asynccontextmanager
async def open_sqlite(
    path: str | os.PathLike[str],
    *,
    readers: int = 4,
    synchronous: Synchronous = "FULL",
    busy_timeout: float = 5.0,
    schema: str | None = None,
) -> AsyncGenerator[SqliteDriver, None]:
    """Open a SQLite database; on leaving the block, close it and end its threads.

    path: a file, made if it is missing, or ":memory:" (read and written by one thread). readers: how many
    threads read, each with a connection of its own. synchronous: "FULL" answers a write after its fsync,
    "NORMAL" before, so that a power cut may take the last writes with it. busy_timeout: seconds to wait for a
    lock that another process holds. schema: a script to run first, all of it or nothing: `create table if not
    exists …; …`.

    The file is put into WAL mode; foreign keys are enforced. bool is stored as 0 or 1; dates, times and
    datetimes as ISO 8601 text. Calls under way when the block is left: a call in the queue and a running
    statement raise DriverClosed and are not done; a batch that is being committed is, and is answered.

    Raises DriverError if the file cannot be opened, StatementError if the schema is wrong.
    """
    if readers < 1:
        raise ValueError(f"readers must be at least 1, not {readers}")
    driver = SqliteDriver(_Options(os.fspath(path), synchronous, busy_timeout, schema), readers)
    try:
        await driver.open()
        yield driver
    finally:
        await driver.close()


def has_table(path: str | os.PathLike[str], name: str) -> bool:
    """Whether the database in this file has a table of this name, of which nothing is changed: for tools that look.

    Raises DriverError for a file that cannot be read, or is no database.
    """
    try:
        with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = database.execute("select 1 from sqlite_master where type = 'table' and name = ?", (name,))
            return found.fetchone() is not None
    except sqlite3.Error as error:
        raise DriverError(f"cannot read {os.fspath(path)}: {error}") from error


@attrs.frozen
class _Options:
    path: str
    synchronous: Synchronous
    busy_timeout: float
    schema: str | None

    @property
    def in_memory(self) -> bool:
        return self.path == ":memory:"


class SqliteDriver(ThreadedDriver):
    """A SQLite database, open. Made by open_sqlite()."""

    def __init__(self, options: _Options, readers: int) -> None:
        desk = Desk()
        writes = JobQueue()
        reads = writes if options.in_memory else JobQueue()
        lanes: list[_Lane] = [_Writer(options, writes, desk)]  # first: it makes the file, the log and the schema
        if not options.in_memory:
            lanes += [_Lane(options, reads, desk) for _ in range(readers)]
        super().__init__(f"sqlite {options.path}", desk, lanes, writes=writes.put, reads=reads.put)

    def _sendable(self, statement: Statement) -> Statement:
        return sendable(statement)


# ---- the threads --------------------------------------------------------------------------------


class _BrokenUp(Exception):
    """The batch must be given up for the sake of one of its jobs."""


class _Lane:
    """A thread with a connection of its own, performing jobs one at a time until it is told to stop."""

    noun = "reader"

    def __init__(self, options: _Options, queue: JobQueue, desk: Desk) -> None:
        self.options = options
        self.commits = 0
        self._queue = queue
        self._desk = desk
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._guard = threading.Lock()  # taken to change the next three, and to interrupt
        self._held: dict[Job, None] = {}  # claimed and not handed back yet, in order; more than one is a batch
        self._performing: Job | None = None
        self._break_up = False  # somebody in the batch cannot wait for its end
        self._db: sqlite3.Connection  # the thread's alone, but for interrupt()

    # These are called from other threads.

    def start(self, opening: Job) -> None:
        """Start the thread. `opening` is handed back when the connection is open, or cannot be opened."""
        self._claim(opening)
        name = f"zerver sqlite {self.noun} {self.options.path}"
        self._thread = threading.Thread(target=self._main, args=(opening,), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Have the thread end after the job in hand."""
        self._closing.set()
        self._queue.stop()

    def join(self, until: float) -> bool:
        """Wait for the thread to end, at most until time.monotonic() says `until`. True if it has."""
        if self._thread is None:
            return True
        self._thread.join(max(0.0, until - time.monotonic()))
        return not self._thread.is_alive()

    def interrupt(self, job: Job) -> None:
        """Stop the job's statement; or a neighbour's that it has to wait for, which is then done again."""
        with self._guard:
            if job in self._held:
                self._break_up = True
                if self._performing is not None:
                    self._db.interrupt()

    # Everything from here on runs in the lane's own thread.

    def _main(self, opening: Job) -> None:
        try:
            try:
                self._db = sqlite3.connect(
                    self.options.path,
                    timeout=self.options.busy_timeout,
                    isolation_level=None,  # autocommit: sqlite3 must not guess where transactions begin
                    cached_statements=STATEMENT_CACHE,
                )
            except sqlite3.Error as error:
                opening.error = self._cannot_open(error)
                return self._hand_back(opening)
            with closing(self._db):
                for name, clock in CLOCKS.items():
                    self._db.create_function(name, 0, clock)
                self._guarded(opening, self._prepare)
                if isinstance(opening.error, sqlite3.Error):
                    opening.error = self._cannot_open(opening.error)
                self._hand_back(opening)
                while (job := self._queue.get()) is not None:
                    self._safely(self._serve, job)
        except trio.RunFinishedError:
            pass  # the Trio run is over, and with it everybody who waited

    def _cannot_open(self, error: sqlite3.Error) -> DriverError:
        return DriverError(f"cannot open {self.options.path}: {error} ({code_of(error)})")

    def _prepare(self) -> list[Answer]:
        self._db.execute("pragma query_only = on")
        self._db.execute("pragma schema_version").fetchall()  # so that its files are open from now on, and none later
        return []

    def _safely(self, act: Callable[[Job], None], job: Job) -> None:
        try:
            act(job)
        except trio.RunFinishedError:
            raise
        except Exception as error:  # not a statement's: those are in their jobs. There are others to serve
            self._roll_back()
            self._lose(error)

    def _serve(self, job: Job) -> None:
        if self._claim(job):
            self._perform(job)
            self._hand_back(job)

    def _claim(self, job: Job) -> bool:
        with self._guard:
            if claimed := job.claim(self):
                self._held[job] = None
        return claimed

    def _hand_back(self, *jobs: Job) -> None:
        self._let_go(*jobs)
        if jobs:
            self._desk.hand_back(jobs)

    def _let_go(self, *jobs: Job) -> None:
        with self._guard:
            for job in jobs:
                del self._held[job]
            self._break_up = self._break_up and bool(self._held)

    def _lose(self, error: Exception) -> None:
        """Hand back all that is held: what has not failed by itself may have happened."""
        for job in self._held:
            job.error = job.error or ConnectionLost(f"sqlite {self.options.path}: {error}")
        self._hand_back(*self._held)

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("rollback")
            except sqlite3.Error:
                pass  # whatever made it fail has rolled back already; if not, the next BEGIN will say so

    def _perform(self, job: Job) -> bool:
        """Perform the job's statements, leaving the answers or the error in it. True if all went well."""
        return self._guarded(job, lambda: [self._answer(statement, job) for statement in job.statements])

    def _guarded(self, job: Job, work: Callable[[], list[Answer]]) -> bool:
        # SQLite forgets an interrupt that comes when no statement is running, as between two of a job's. While
        # one is, it also stops each that begins (documented at sqlite3_interrupt): so one is, from end to end.
        with closing(self._db.execute(ALWAYS_RUNNING)):
            with self._guard:
                self._performing = job
            try:
                if job.stop_requested:
                    raise Stopped
                if self._break_up:
                    raise _BrokenUp
                job.answers = work()
            except _BrokenUp:
                raise
            except Exception as error:  # whatever it is, it is this job's; there are others to serve
                interrupted = code_of(error) == "SQLITE_INTERRUPT"
                if interrupted and not job.stop_requested:
                    raise _BrokenUp from None
                job.error = Stopped() if interrupted else error
            finally:
                with self._guard:
                    self._performing = None
        return job.error is None

    def _answer(self, statement: Statement, job: Job) -> Answer:
        try:
            answer = self._execute(statement)
        except Exception as error:
            if code_of(error) == "SQLITE_INTERRUPT":
                raise
            raise explained(error, statement, reads=job.reads) from error
        check_answer(statement, answer, job.wants)
        return answer

    def _execute(self, statement: Statement) -> Answer:
        total_before = self._db.total_changes
        with closing(self._db.execute(statement.sql, statement.params)) as cursor:
            if cursor.description is not None:
                return Rows(tuple(column[0] for column in cursor.description), cursor.fetchall())
            count, last_id = cursor.rowcount, cursor.lastrowid
        if count < 0:  # sqlite3 counts for insert, update, delete and replace, but not for `with … insert`
            moved = self._db.total_changes > total_before
            count = self._db.execute("select changes()").fetchone()[0] if moved else 0
        return Changed(count, last_id if count and makes_a_key(statement.sql) else None)


class _Writer(_Lane):
    """The one lane that writes, by the rules of the module's docstring."""

    noun = "writer"

    def _prepare(self) -> list[Answer]:
        db, options = self._db, self.options
        db.execute("pragma busy_timeout = 0")  # locks are waited for in _patiently, where closing ends the wait
        # It reads the schema, which another process may have locked that turns the log on just now.
        self._patiently(lambda: db.execute(f"pragma synchronous = {options.synchronous}"))
        db.execute("pragma foreign_keys = on")
        if not options.in_memory:
            mode = self._patiently(lambda: db.execute("pragma journal_mode = wal").fetchone()[0])
            if mode != "wal":
                raise DriverError(f"sqlite {options.path}: no write-ahead log is possible here, only {mode!r}")
        if options.schema is not None:
            # One transaction, begun inside the script: executescript() commits one that is begun outside.
            script = f"begin immediate;\n{options.schema}\n;commit;"
            try:
                self._patiently(lambda: db.executescript(script))
            except sqlite3.Error as error:
                self._roll_back()
                if code_of(error) == "SQLITE_INTERRUPT":
                    raise
                raise StatementError(f"{error}: in the schema of {options.path}", code_of(error)) from error
        return []

    def _serve(self, job: Job) -> None:
        if job.reads:
            self._read(job)
        elif self.options.in_memory or self._queue.empty():  # in memory there is no fsync to share
            self._alone(job)
        else:
            self._together(job)

    def _read(self, job: Job) -> None:
        """Perform a read of an in-memory database, which no other connection can see."""
        if self._claim(job):
            self._db.execute("pragma query_only = on")
            self._perform(job)
            self._db.execute("pragma query_only = off")
            self._hand_back(job)

    def _alone(self, job: Job) -> None:
        """Perform one job in a transaction of its own."""
        if not self._begin(job):
            return
        if not self._claim(job):
            self._roll_back()  # withdrawn while we waited for the lock
            return
        if self._perform(job):
            try:
                self._commit()
            except sqlite3.Error as error:
                job.error = explained(error, job.subject)
            except ConnectionLost as error:
                job.error = error
        else:
            self._roll_back()
        self._hand_back(job)

    def _together(self, first: Job) -> None:
        """Perform the jobs at hand in one transaction; if it cannot be committed whole, each alone."""
        if not self._begin(first):
            return
        try:
            for job in self._at_hand(first):
                if self._claim(job):
                    self._behind_savepoint(job)
            if all(job.error is not None for job in self._held):
                self._roll_back()
            else:
                self._commit()
        except ConnectionLost as error:
            self._lose(error)
        except (sqlite3.Error, _BrokenUp):
            self._roll_back()
            self._hand_back(*[job for job in self._held if job.error is not None])
            undone = tuple(self._held)
            for job in undone:
                self._put_back(job)
            for job in undone:
                self._safely(self._alone, job)
        else:
            self._hand_back(*self._held)

    def _put_back(self, job: Job) -> None:
        self._let_go(job)
        job.put_back()
        if job.stop_requested and self._claim(job):
            job.error = Stopped()
            self._hand_back(job)

    def _at_hand(self, first: Job) -> Iterator[Job]:
        """The first job and those queued behind it, within the limits of a batch."""
        yield first
        until = time.monotonic() + BATCH_SECONDS
        for _ in range(BATCH_JOBS - 1):
            if time.monotonic() > until or (job := self._queue.get_nowait()) is None:
                return
            yield job

    def _behind_savepoint(self, job: Job) -> None:
        """Perform a job so that its failure undoes only itself. sqlite3.Error: the transaction is lost."""
        self._db.execute("savepoint job")
        if not self._perform(job):
            self._db.execute("rollback to job")  # fails if the transaction is gone, savepoints and all
        self._db.execute("release job")

    def _begin(self, job: Job) -> bool:
        """Begin to write. If that is impossible, refuse the job and everybody who waits behind it."""
        try:
            self._patiently(lambda: self._db.execute("begin immediate"))
        except sqlite3.Error as error:
            refused = []
            waiting: Job | None = job
            while waiting is not None:
                if self._claim(waiting):
                    waiting.error = explained(error, waiting.subject)
                    refused.append(waiting)
                waiting = self._queue.get_nowait()
            self._hand_back(*refused)
            return False
        return True

    def _commit(self) -> None:
        """Commit. sqlite3.Error: certainly not done, and rolled back. ConnectionLost: nobody knows."""
        try:
            self._db.execute("commit")
        except sqlite3.Error as error:
            self._roll_back()
            if code_of(error).startswith(NOT_COMMITTED):
                raise
            raise ConnectionLost(f"COMMIT failed: {error} ({code_of(error)})") from error
        self.commits += 1

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Attempt until no other process holds the lock, for busy_timeout seconds; closing ends the wait."""
        until = time.monotonic() + self.options.busy_timeout
        pause = 0.001
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                if not code_of(error).startswith("SQLITE_BUSY") or time.monotonic() >= until:
                    raise
                if self._closing.wait(pause):
                    raise
            pause = min(2 * pause, 0.05)  # SQLite's own busy handler goes from 1 to 100 ms
