"""Seats: what a worker is told, what it says of itself, and what it keeps of each job that it has taken.

Law: values, and one record that the worker alone changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import trio

from zerver.errors import DefinitionError
from zerver.jobs.port import Job


@attrs.frozen
class WorkerSettings:
    """seats: jobs that run at once in this worker. queues: that it works on; none means all of the app's. owner: its
    name, of which there must be no other, nor have been. lease: seconds without a sign of life after which its jobs are
    for others. keep: seconds for which done and cancelled jobs are kept; dead ones stay.
    """

    seats: int = 16
    queues: tuple[str, ...] = ()
    owner: str = ""
    lease: float = 10.0
    keep: float = 7 * 86_400.0

    def __attrs_post_init__(self) -> None:
        if self.seats < 1:
            raise DefinitionError(f"a worker with seats={self.seats!r}", "give 1 or more")
        if not self.lease > 0:
            raise DefinitionError(f"a worker with lease={self.lease!r}", "give seconds above 0")


@attrs.frozen
class WorkerStatistics:
    """running: by queue, now. Since it was opened: taken; done; again: to be tried again; back: put back uncounted,
    snoozed ones too; dead; cancelled; parked; lost: that were another worker's by then; rescued: of other workers.
    """

    owner: str
    seats: int
    running: Mapping[str, int]
    taken: int
    done: int
    again: int
    back: int
    dead: int
    cancelled: int
    parked: int
    lost: int
    rescued: int


@attrs.define(eq=False)
class Seat:
    """A job that was taken. taken: when, by Trio's clock. older: the seat that this worker gave it before, if that one
    may still be about it. scope: around what is asked before its run. leave_queue: while it waits for a ticket, what
    ends that. runs: it has a place among those that run at once. over: its run has ended, or is not to be, and the
    store is told. cut: why its run is not to be begun, or is to end; "" if it may. drained: it is ended because the
    worker is. lost: it is another worker's by now, or of another seat. gone: nothing of it is under way any more;
    on_gone: while somebody waits for that.
    """

    job: Job
    taken: float
    older: Seat | None = None
    began: float = 0.0
    scope: trio.CancelScope | None = None
    leave_queue: Callable[[], None] | None = None
    runs: bool = False
    over: bool = False
    cut: str = ""
    drained: bool = False
    lost: bool = False
    gone: bool = False
    on_gone: trio.Event | None = None

    async def wait_gone(self) -> None:
        """Wait until nothing of it is under way any more."""
        while not self.gone:
            self.on_gone = self.on_gone or trio.Event()
            await self.on_gone.wait()

    def go(self) -> None:
        """Nothing of it is under way any more."""
        self.gone = True
        if self.on_gone is not None:
            self.on_gone.set()
