"""How a Trio task hands a job to a thread, and gets it back. No database is known here.

Law: exactly one side owns a job. Until a thread claims it, it is its caller's, who may withdraw it; from
then on the thread alone decides how it ends, and hands it back. So a cancelled call is never in doubt: either
it was withdrawn, or its thread says that it was stopped, or it is done and its result is returned.

Precedent: `trio.to_thread.run_sync`, which has one thread for one call and cannot stop it. A long-lived thread
saves the hand-over, can take many jobs at once, and keeps what belongs to a thread, as a connection does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import NoReturn, Protocol

import attrs
import trio

from zerver.core.priorities import Priority
from zerver.core.queues import ClassQueues
from zerver.errors import DriverClosed
from zerver.sql.driver import Answer, Statement


class Stopped(Exception):
    """The job was stopped, because its caller was cancelled or the driver closes. It was not done."""


class Worker(Protocol):
    """A thread that performs jobs."""

    def interrupt(self, job: Job) -> None:
        """Stop what keeps this job from ending soon. Called from any thread, for a job of this worker's."""
        ...


@attrs.define(eq=False)
class Job:
    """One call: what is to be done, and in the end its answers or its error.

    reads: it changes nothing. wants: the shape of the answers, None for any.
    """

    statements: Sequence[Statement]
    reads: bool = False
    wants: type[Answer] | None = None
    answers: list[Answer] = attrs.Factory(list)
    error: Exception | None = None
    worker: Worker | None = None  # who has claimed it
    stop_requested: bool = False
    task: trio.lowlevel.Task | None = None
    raise_cancel: Callable[[], NoReturn] | None = None
    _ticket: threading.Lock = attrs.Factory(threading.Lock)  # whoever holds it decides how the job ends

    @property
    def priority(self) -> Priority:
        """The class in which the job waits. One run asks for all its statements, so the first says it."""
        return self.statements[0].priority if self.statements else "interactive"

    @property
    def subject(self) -> Statement:
        """The statement that stands for the job in an error about all of it."""
        return self.statements[0] if self.statements else Statement("")

    def claim(self, worker: Worker) -> bool:
        """Become the job's owner, in order to perform it. False: it was withdrawn, leave it alone."""
        if not self._ticket.acquire(blocking=False):
            return False
        self.worker = worker
        return True

    def put_back(self) -> None:
        """Give up a claim: nothing is done of the job. Look at `stop_requested` after this, not before."""
        self.worker = None
        self._ticket.release()

    def stop(self) -> bool:
        """Withdraw the job (True), or ask its owner to stop; no effect once its work is being committed."""
        if self._withdraw():
            return True
        self.stop_requested = True  # before `worker` is read: one that has just claimed the job looks here next
        if (worker := self.worker) is not None:
            worker.interrupt(self)
        return self._withdraw()  # its owner may have put it back before it could see the request

    def _withdraw(self) -> bool:
        return self._ticket.acquire(blocking=False)


class JobQueue:
    """Jobs on their way to the threads, by class. Any number of threads may put and get.

    A SimpleQueue of bells carries the waking, and the word to stop: waiting in C costs a fraction of a Condition. For
    each bell there is a job, put before it was rung.
    """

    def __init__(self) -> None:
        self._bells: SimpleQueue[bool] = SimpleQueue()
        self._guard = threading.Lock()
        self._jobs: ClassQueues[Job] = ClassQueues()

    def put(self, job: Job) -> None:
        """Queue up, at the end of the job's class."""
        with self._guard:
            self._jobs.add(job, job.priority)
        self._bells.put(True)

    def stop(self) -> None:
        """Have one thread get None, after as many jobs as are queued now."""
        self._bells.put(False)

    def get(self) -> Job | None:
        """Wait for the next job. None: stop."""
        return self._next() if self._bells.get() else None

    def get_nowait(self) -> Job | None:
        """The next job, None when there is none to be had; the word to stop is left for `get`."""
        try:
            bell = self._bells.get_nowait()
        except Empty:
            return None
        if bell:
            return self._next()
        self._bells.put(False)
        return None

    def empty(self) -> bool:
        """Whether nothing is to be got now."""
        return self._bells.empty()

    def _next(self) -> Job:
        with self._guard:
            return self._jobs.pop()


class Desk:
    """Trio's side of the counter: parks a task for each job, and wakes it when the job is handed back."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._parked: set[Job] = set()

    @property
    def waiting(self) -> int:
        """Jobs nobody has claimed yet."""
        return sum(job.worker is None for job in self._parked)

    @property
    def running(self) -> int:
        """Jobs claimed and not handed back."""
        return len(self._parked) - self.waiting

    @trio.lowlevel.enable_ki_protection  # a Ctrl-C between `submit` and parking would leave a job without a task
    async def settle(self, job: Job, submit: Callable[[Job], None]) -> None:
        """Submit the job, and wait until it is over; raise what it failed with.

        Cancelled: it was not done. A cancellation that comes too late to stop it has no effect here.
        """

        def abort(raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
            if job.stop():
                self._parked.discard(job)
                return trio.lowlevel.Abort.SUCCEEDED
            job.raise_cancel = raise_cancel
            return trio.lowlevel.Abort.FAILED

        job.task = trio.lowlevel.current_task()
        self._parked.add(job)
        submit(job)
        await trio.lowlevel.wait_task_rescheduled(abort)
        error, job.error = job.error, None  # its traceback leads back to the job: no cycle
        try:
            if isinstance(error, Stopped):
                if job.raise_cancel is not None:
                    job.raise_cancel()
                raise DriverClosed("the driver was closed meanwhile; the call was stopped and undone")
            if error is not None:
                raise error
        finally:
            del error

    def hand_back(self, jobs: Sequence[Job]) -> None:
        """Called by the workers: one wake-up of the event loop for all these jobs.

        Raises trio.RunFinishedError if the event loop is gone.
        """
        self._token.run_sync_soon(self._wake, jobs)

    def close(self) -> None:
        """Fail every job nobody has claimed, and ask the workers to stop the others."""
        for job in tuple(self._parked):
            if job.stop():
                job.error = DriverClosed("the driver was closed before the call's turn came")
                self._wake([job])

    def abandon(self, error: Callable[[], Exception]) -> None:
        """Fail every job that is left, after the workers were given up."""
        for job in tuple(self._parked):
            job.error = error()  # an exception for each: two tasks must not raise the same one
            self._wake([job])

    def _wake(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if job in self._parked and job.task is not None:
                self._parked.remove(job)
                task, job.task = job.task, None
                trio.lowlevel.reschedule(task)
