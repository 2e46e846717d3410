"""Batches: what many tasks ask for at once is done in one go. No database is known here.

Law: each thing is in one batch, and its caller is told when that batch is over. While one is under way the next one
gathers: that is group commit, and a caller who is alone waits for nobody.
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
    task: trio.lowlevel.Task
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
        self._wake = trio.Event()
        self._closed = False

    @trio.lowlevel.enable_ki_protection  # a Ctrl-C between queueing and parking would leave an order without a task
    async def ask(self, things: Sequence[T]) -> list[R]:
        """Have these done, and wait until they are. Raises what `perform` does."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise JournalUnavailable("the store of jobs was closed")
        asked: _Asked[T, R] = _Asked(things, trio.lowlevel.current_task())

        def leave(_: object) -> trio.lowlevel.Abort:
            if asked.taken:
                return trio.lowlevel.Abort.FAILED
            self._queue.remove(asked)
            return trio.lowlevel.Abort.SUCCEEDED

        self._queue.append(asked)
        self._wake.set()
        await trio.lowlevel.wait_task_rescheduled(leave)
        if asked.error is not None:
            error, asked.error = asked.error, None
            try:
                raise error
            finally:
                del error
        return list(asked.answers)

    async def run(self) -> None:
        """Do what is asked for, until cancelled: then the batch under way ends first, and no other is begun."""
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._queue:
                    await self._batch()
        finally:
            self._closed = True
            while self._queue:
                self._over(self._queue.popleft(), (), JournalUnavailable("the store of jobs was closed"))

    async def _batch(self) -> None:
        batch: list[_Asked[T, R]] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].things) <= self._most):
            asked = self._queue.popleft()
            asked.taken = True
            batch.append(asked)
            size += len(asked.things)
        try:
            await self._done(batch)
        finally:
            for asked in batch:
                if not asked.over:  # cancelled: the store is being closed
                    self._over(asked, (), JournalUnavailable("the store of jobs was closed"))

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
        trio.lowlevel.reschedule(asked.task)


def _again(error: JournalError) -> JournalError:
    """The error as another exception, with its cause: two tasks must not raise the same one."""
    if isinstance(error, JournalUnavailable):
        again: JournalError = JournalUnavailable(str(error), error.retry_after)
    else:
        again = type(error)(str(error))
    again.__cause__ = error.__cause__
    return again
