"""Batches: what many tasks ask for at once is done in one go. No database is known here.

Law: each thing is in one batch, and its caller is told when that batch is over. While one is under way the next one
gathers: that is group commit, and a caller who is alone waits for nobody.

A batch is performed by the task whose turn it is, for all that have asked by then; the next one waits until that is
over, and performs what has gathered. A task of its own for that was refused: who is alone would wait for two more
rounds of the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import attrs
import trio

from zerver.errors import JournalError, JournalUnavailable, NotKeepable

T = TypeVar("T")
R = TypeVar("R")


@attrs.define(eq=False)
class _Asked(Generic[T, R]):
    """What one caller asks for, and what it was told."""

    things: Sequence[T]
    task: trio.lowlevel.Task | None = None  # while it waits
    taken: bool = False
    over: bool = False
    answers: Sequence[R] = ()
    error: Exception | None = None


class Batches(Generic[T, R]):
    """Gives what tasks ask for to `perform`, `most` things at once, and each caller its part of the answers.

    A caller who is cancelled before its things are taken has not asked; later, the batch ends first.
    """

    def __init__(self, perform: Callable[[Sequence[T]], Awaitable[Sequence[R]]], most: int) -> None:
        self._perform = perform
        self._most = most
        self._queue: deque[_Asked[T, R]] = deque()
        self._scope: trio.CancelScope | None = None  # around the batch under way
        self._gathers = False  # whether the last batch was one of several callers
        self._closed = False

    @trio.lowlevel.enable_ki_protection  # a Ctrl-C between queueing and parking would leave an order without a task
    async def ask(self, things: Sequence[T]) -> list[R]:
        """Have these done, and wait until they are. Raises what `perform` does."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise JournalUnavailable("the store of jobs was closed")
        asked: _Asked[T, R] = _Asked(things)
        self._queue.append(asked)
        if self._scope is not None:
            await self._wait(asked)
        if not asked.over:
            await self._lead()
        if asked.error is not None:
            error, asked.error = asked.error, None
            try:
                raise error
            finally:
                del error
        return list(asked.answers)

    async def _wait(self, asked: _Asked[T, R]) -> None:
        """Until these things were done by another task, or it is this one's turn to do the next."""

        def leave(_: object) -> trio.lowlevel.Abort:
            if asked.taken:
                return trio.lowlevel.Abort.FAILED
            self._queue.remove(asked)
            return trio.lowlevel.Abort.SUCCEEDED

        asked.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(leave)

    async def _lead(self) -> None:
        """Perform a batch, for this task and others; then it is the next one's turn."""
        try:
            with trio.CancelScope(shield=True) as scope:
                self._scope = scope
                if self._gathers:  # those of the batch that is over may ask again: they go with this one
                    await trio.lowlevel.checkpoint()  # in this round some of them run after this task
                    await trio.lowlevel.checkpoint()
                several = await self._batch()
                self._gathers = several or bool(self._queue)
        finally:
            if self._queue and not self._closed:
                self._queue[0].taken = True  # it wakes up, and cannot be cancelled before it is asked for
                self._wake(self._queue[0])
            else:
                self._scope = None

    async def run(self) -> None:
        """Wait to be cancelled: then the batch under way is cut, and no other is begun."""
        try:
            await trio.sleep_forever()
        finally:
            self._closed = True
            if self._scope is not None:
                self._scope.cancel()
            while self._queue:
                self._over(self._queue.popleft(), (), JournalUnavailable("the store of jobs was closed"))

    async def _batch(self) -> bool:
        """Whether it was one of several callers."""
        batch: list[_Asked[T, R]] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].things) <= self._most):
            asked = self._queue.popleft()
            asked.taken = True
            batch.append(asked)
            size += len(asked.things)
        try:
            if batch:  # else the store was closed meanwhile
                await self._done(batch)
        finally:
            for asked in batch:
                if not asked.over:  # cancelled: the store is being closed
                    self._over(asked, (), JournalUnavailable("the store of jobs was closed"))
        return len(batch) > 1

    async def _done(self, batch: Sequence[_Asked[T, R]]) -> None:
        try:
            answers = await self._perform([thing for asked in batch for thing in asked.things])
        except NotKeepable as error:
            if len(batch) == 1:
                self._over(batch[0], (), _again(error))
                return
            for asked in batch:  # one of them has spoilt it for the others
                await self._done([asked])
        except JournalError as error:
            for asked in batch:
                self._over(asked, (), _again(error))
        else:
            at = 0
            for asked in batch:
                self._over(asked, answers[at : at + len(asked.things)], None)
                at += len(asked.things)

    def _over(self, asked: _Asked[T, R], answers: Sequence[R], error: Exception | None) -> None:
        asked.answers, asked.error, asked.over = answers, error, True
        self._wake(asked)

    @staticmethod
    def _wake(asked: _Asked[T, R]) -> None:
        if asked.task is not None:  # else it is the one that leads, and awake
            task, asked.task = asked.task, None
            trio.lowlevel.reschedule(task)


def _again(error: JournalError) -> JournalError:
    """The error as another exception, with its cause: two tasks must not raise the same one."""
    if isinstance(error, JournalUnavailable):
        again: JournalError = JournalUnavailable(str(error), error.retry_after)
    else:
        again = type(error)(str(error))
    again.__cause__ = error.__cause__
    return again
