"""The port every store of jobs stands behind. A job is a run asked for now, and made later, elsewhere, again.

Law: a job that was acknowledged is never lost, and is in one state at a time; whoever works on it holds a lease and a
fence, and what anybody else says about it is refused. A store knows nothing of flows: bodies and results are JSON text.

    waiting ──▶ scheduled ──▶ available ──▶ running ──▶ done
    (for others)  (for a time)     ▲           │ ├────▶ dead        (given up: attempts spent, or never to work)
                                   └───────────┘ └────▶ parked      (its run waits for a signal; nobody holds it)
                         failed, snoozed, rescued          any of them ──▶ cancelled

What is asked for is an Order. Orders that are made together are in the store together or not at all.

Leases belong to workers, as in the journal: one row is renewed, however many jobs a worker has. A fence grows with each
take of a job, and with each rescue; so a worker that stood still for longer than its lease, and goes on, is harmless.

A job that would be dead with the next rescue is a suspect: it may be what its workers died of, or have been beside
that. A worker has one of them at a time. Were they taken together again, what kills workers would take its neighbours
with it until all are dead. After a first rescue they are taken together: most workers die of something else.

`zerver.testing.check_jobs` is this page as a program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

import attrs

from zerver.core.orders import Order as Order
from zerver.core.priorities import Priority
from zerver.core.values import value

JobState: TypeAlias = Literal["waiting", "scheduled", "available", "running", "parked", "done", "dead", "cancelled"]
STATES: Final[tuple[JobState, ...]] = get_args(JobState)

#: States that a job leaves only by somebody's hand.
FINAL: Final[tuple[JobState, ...]] = ("done", "dead", "cancelled")

#: A job that so many workers have died with is dead: it may be what kills them.
MOST_RESCUES: Final = 3

#: And with one that so many have died with, no other such job is taken.
SUSPECT: Final = MOST_RESCUES - 1


@attrs.frozen
class Job:
    """A job as the store has it. Times are wall time in nanoseconds, 0 for never.

    attempt: how often it has been begun, snoozed and rescued attempts left out. settled: how often an attempt of it has
    ended, counted or not; rescued and parked ones have not, so the number of its run is settled + 1. fence: grows with
    each take, and whenever the job is taken away from its worker. rescues: how often its worker died. run_id: of its
    last run. error: why the last attempt did not succeed, and why it is dead; result: JSON text. done, total, note: its
    progress as it last said.
    """

    job_id: str
    seq: int
    flow: str
    queue: str
    body: str | None
    tenant: str
    priority: Priority
    state: JobState
    at_unix_ns: int
    attempt: int
    attempts: int
    fence: int
    rescues: int
    owner: str
    run_id: str
    error: str
    result: str | None
    ordered_unix_ns: int
    began_unix_ns: int
    ended_unix_ns: int
    releases: str
    awaits: int
    unique: str
    origin: str
    parent: str
    done: int
    total: int
    note: str
    settled: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it is dead if its next worker dies, too."""
        return self.rescues >= SUSPECT


@attrs.frozen
class QueueRule:
    """How a queue is worked on, over all workers. limit: jobs at once, None for no bound. per_tenant: of one tenant."""

    name: str
    limit: int | None = None
    per_tenant: int | None = None


@attrs.frozen
class QueueState:
    """paused: nothing of it is begun. counts: jobs by state. oldest_unix_ns: since when the first one that may begin
    has been able to; 0 for none.
    """

    rule: QueueRule
    paused: bool
    counts: Mapping[JobState, int]
    oldest_unix_ns: int


@attrs.frozen
class ScheduleState:
    """A schedule as the store has it. spec: its expression and its time zone. due_unix_ns: when it is due next."""

    name: str
    spec: str
    due_unix_ns: int


@value
class Verdict:
    """What an attempt came to, and so what becomes of its job.

    state: "done" with a result; "scheduled" to be tried again at `at_unix_ns`; "dead"; "cancelled"; "parked".
    counts: whether the attempt does, as one that was snoozed does not. ran: whether a run of it has ended, and not been
    put back before it began: then the next run has its number, as that of an attempt before it that crashed.
    """

    state: JobState
    at_unix_ns: int = 0
    result: str | None = None
    error: str = ""
    counts: bool = True
    ran: bool = True


@attrs.frozen
class Wanted:
    """Which jobs are meant; empty means all. prefix: of the id. text: in the error."""

    states: tuple[JobState, ...] = ()
    queues: tuple[str, ...] = ()
    flows: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    prefix: str = ""
    text: str = ""


class JobStore(Protocol):
    """A store of jobs, open. Any number of tasks and processes may use one.

    Every async verb is a checkpoint, and raises JournalUnavailable while the store cannot be reached or written. A call
    that raised Cancelled has not happened, unless it came too late to stop it.
    """

    async def order(self, orders: Sequence[Order]) -> list[str]:
        """Put jobs in, all or none, on disk when this returns: for each its id, or the id of the one that stands there
        for its `unique` or `job_id`. Workers that wait are woken. Any number: they go in in bulk.

        Raises DefinitionError for an order that no store takes (`check_orders`), NotKeepable for text that none keeps.
        """
        ...

    async def renew(self, owner: str, lease_seconds: float) -> None:
        """A worker lives, for so long from now; 0.0 gives up what it has at once."""
        ...

    async def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        """Jobs that may begin become this worker's, `count` at most: of these queues if they are not paused, within
        their limits, by priority, then by time. Each has a new fence, state "running", and the id of its next run,
        `run_id_for(job_id, settled + 1)`, or of the one that may still be under way.

        Of suspects, it is the first that may begin and no other, and none while this worker has one
        that is not settled. `wait` tells of that as of an order.
        """
        ...

    async def rescue(self) -> list[Job]:
        """Jobs whose worker's lease has lapsed: they may be taken again, with rescues one more; from MOST_RESCUES they
        are dead. As they are now.
        """
        ...

    async def began(self, job_id: str, fence: int, run_id: str) -> None:
        """Its run of this id is about to begin. Raises LeaseLost."""
        ...

    async def settle(self, verdicts: Sequence[tuple[str, int, Verdict]]) -> list[bool]:
        """Attempts have ended: (job id, fence, verdict), in bulk. False for one that is another's by now; a verdict
        that is given again is True again, and changes nothing. A job that was cancelled meanwhile is not tried again,
        nor parked: it is cancelled, and its error is the reason that was given for that.

        Whoever waits for a job that is done by this has one less to wait for, and may begin when that was the last; the
        results of all are its body if it has none: of the one job it awaited, or as a list in their order.
        """
        ...

    async def unpark(self, run_id: str, verdict: Verdict) -> bool:
        """The same for the job whose run was parked, or was carried on by another worker: one that was begun with this
        run id, and of which no attempt has ended since. Whether there is one.
        """
        ...

    async def progress(self, job_id: str, done: int, total: int, note: str) -> None:
        """How far it is. Passed over when it does not run."""
        ...

    async def wait(self) -> None:
        """Wait until there may be something to take that was not there at the last `take`: an order, here or in another
        process, or a time that has come. May return without reason; polls where nothing tells it.
        """
        ...

    # -- for people --

    async def find(self, job_id: str) -> Job | None:
        """The job of this id."""
        ...

    async def search(self, wanted: Wanted, count: int = 50, before_seq: int | None = None) -> list[Job]:
        """Jobs that are meant, the newest first."""
        ...

    async def retry(self, wanted: Wanted) -> int:
        """Let jobs that are dead, cancelled or scheduled begin now, with all their attempts again; one that waited for
        others waits for them again. Of those with one unique text it is the newest that may. How many.
        """
        ...

    async def cancel(self, wanted: Wanted, reason: str) -> int:
        """Cancel jobs that are not final. One that runs is ended by its worker, which finds it out soon. How many."""
        ...

    async def cancelled(self, owner: str) -> dict[str, str]:
        """Of this worker's jobs, those that somebody has cancelled, and why, by id."""
        ...

    async def delete(self, wanted: Wanted) -> int:
        """Forget jobs that are final, but for those whose result somebody still waits to be given. How many."""
        ...

    async def pause(self, queue: str, paused: bool) -> None:
        """Begin nothing of this queue from now on, or again."""
        ...

    async def queues(self) -> list[QueueState]:
        """All queues that have a job or were ever paused. Where many jobs are over, how many those are is what was
        counted some seconds ago, so that who looks often costs little.
        """
        ...

    async def why(self, job_id: str) -> str:
        """Why a job has not begun, as a sentence; "" for one that has."""
        ...

    async def prune(self, ended_before_unix_ns: int, count: int = 1000) -> int:
        """Delete jobs that ended before then: done and cancelled ones; dead ones stay, and so do those whose result
        somebody waits for, or whose `unique_seconds` are not over. The oldest first. How many.
        """
        ...

    # -- schedules --

    async def due(self, name: str, spec: str, first_unix_ns: int) -> int:
        """When this schedule is due next; told by whoever first asks after it, or has changed its spec."""
        ...

    async def fire(self, name: str, due_unix_ns: int, next_unix_ns: int, orders: Sequence[Order]) -> bool:
        """Put the orders in and move the schedule on, in one step, if it is still due then: of all workers that try,
        one does. Whether it was this one.
        """
        ...

    async def schedules(self) -> list[ScheduleState]:
        """All schedules that a worker has ever asked after, by name."""
        ...

    def statistics(self) -> Mapping[str, Any]: ...
