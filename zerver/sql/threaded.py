"""A driver whose connections live in threads: Trio's side of it. No database is known here.

Law: every call becomes one job, is counted once, and ends; closing ends all of them and waits for the
threads, but not for ever.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, cast

import trio

from zerver.errors import ConnectionLost, DriverClosed
from zerver.sql.driver import Answer, Changed, Driver, DriverStatistics, Rows, Statement
from zerver.sql.jobs import Desk, Job

CLOSE_SECONDS = 10.0  # a thread that has not ended by then is stuck in the disk

AnswerT = TypeVar("AnswerT", Rows, Changed)


class Lane(Protocol):
    """A thread with a connection of its own."""

    commits: int

    def start(self, opening: Job) -> None:
        """Start the thread. `opening` is handed back when the connection is open, or cannot be opened."""
        ...

    def stop(self) -> None:
        """Have the thread end after the job in hand."""
        ...

    def join(self, until: float) -> bool:
        """Wait for the thread to end, at most until time.monotonic() says `until`. True if it has."""
        ...


class ThreadedDriver(Driver):
    """The port's verbs on lanes. A subclass says which statements may be sent.

    name: as errors call the database. lanes: opened in this order. writes, reads: where jobs are put.
    """

    def __init__(
        self,
        name: str,
        desk: Desk,
        lanes: Sequence[Lane],
        *,
        writes: Callable[[Job], None],
        reads: Callable[[Job], None],
    ) -> None:
        self._name = name
        self._desk = desk
        self._lanes = lanes
        self._writes = writes
        self._reads = reads
        self._closed = False
        self._ended = {"reads": 0, "writes": 0, "failed": 0, "cancelled": 0}

    async def fetch(self, statement: Statement) -> Rows:
        return await self._call_one(statement, Rows, reads=True)

    async def execute(self, statement: Statement) -> Changed:
        return await self._call_one(statement, Changed)

    async def execute_returning(self, statement: Statement) -> Rows:
        return await self._call_one(statement, Rows)

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        return await self._call(statements)

    def statistics(self) -> DriverStatistics:
        return DriverStatistics(
            connections=0 if self._closed else len(self._lanes),
            commits=sum(lane.commits for lane in self._lanes),
            waiting=self._desk.waiting,
            running=self._desk.running,
            **self._ended,
        )

    def _sendable(self, statement: Statement) -> Statement:
        """The statement as the database takes it; StatementError if it does not."""
        raise NotImplementedError

    async def _call_one(self, statement: Statement, wants: type[AnswerT], *, reads: bool = False) -> AnswerT:
        (answer,) = await self._call([statement], wants, reads=reads)
        return cast(AnswerT, answer)  # check_answer() saw to it, before the commit

    async def _call(
        self, statements: Sequence[Statement], wants: type[Answer] | None = None, *, reads: bool = False
    ) -> list[Answer]:
        ended = "failed"
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._closed:
                raise DriverClosed(f"{self._name} is closed")
            job = Job([self._sendable(statement) for statement in statements], reads, wants)
            await self._desk.settle(job, self._reads if reads else self._writes)
            ended = "reads" if reads else "writes"
        except trio.Cancelled:
            ended = "cancelled"
            raise
        finally:
            self._ended[ended] += 1
        return job.answers

    async def open(self) -> None:
        """Open the lanes, one after the other. Raises what the first one that fails says; close() in any case."""
        for lane in self._lanes:
            await self._desk.settle(Job([]), lane.start)

    async def close(self) -> None:
        """End every call, then every thread."""
        self._closed = True
        self._desk.close()
        ended = False
        # Bounded by join(), in real time, and not by a deadline: a mock clock would jump over a working thread.
        with trio.CancelScope(shield=True):
            ended = await trio.to_thread.run_sync(self._end, limiter=trio.CapacityLimiter(1))
        if not ended:
            stuck = f"{self._name}: a thread did not end within {CLOSE_SECONDS} s; is the disk stuck?"
            self._desk.abandon(lambda: ConnectionLost(stuck))
            warnings.warn(stuck, ResourceWarning, stacklevel=2)

    def _end(self) -> bool:
        """End the threads, the first one last: whoever closes a SQLite file last takes its log away, and of two that
        close it at the same moment each sees the other, and leaves it.
        """
        until = time.monotonic() + CLOSE_SECONDS
        first, *others = self._lanes
        for lane in others:
            lane.stop()
        ended = [lane.join(until) for lane in others]
        first.stop()
        return all([*ended, first.join(until)])
