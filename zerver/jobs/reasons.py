"""Why a job has not begun, as a sentence. Pure: what stands around it is given.

Law: the first reason that holds is told, the one nearest to the job first; and it says what would change it.
"""

from __future__ import annotations

from datetime import UTC, datetime

import attrs

from zerver.jobs.port import Job


@attrs.frozen
class Circumstances:
    """paused, limit, per_tenant: of its queue. running, of_tenant: jobs of the queue, and of the job's tenant in it,
    that run now. workers: how many were ever seen, and not forgotten.
    """

    paused: int
    limit: int | None
    per_tenant: int | None
    running: int
    of_tenant: int
    workers: int


def reason(job: Job, around: Circumstances) -> str:
    """Why it has not begun; "" for one that has."""
    match job.state:
        case "waiting":
            return f"it waits for {_jobs(job.awaits)} to be done"
        case "scheduled":
            at = datetime.fromtimestamp(job.at_unix_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            return f"it is to begin at {at}" + (f", after attempt {job.attempt} failed: {job.error}" * bool(job.error))
        case "cancelled" if not job.began_unix_ns:
            return f"it was cancelled: {job.error}"
        case "available":
            return _held_up(job, around)
        case _:
            return ""


def _held_up(job: Job, around: Circumstances) -> str:
    if around.paused:
        return f"queue {job.queue} is paused"
    if around.limit is not None and around.running >= around.limit:
        return f"queue {job.queue} runs {_jobs(around.running)}, and {around.limit} is its limit"
    if around.per_tenant is not None and around.of_tenant >= around.per_tenant:
        return (
            f"queue {job.queue} runs {_jobs(around.of_tenant)} of tenant {job.tenant}, "
            f"and {around.per_tenant} is the limit for each tenant"
        )
    if not around.workers:
        return "no worker was ever seen: start one with `zerver work`"
    if job.is_suspect:
        return f"{job.rescues} workers have died with it: of such jobs a worker has one at a time, in their turn"
    return f"it is its turn when the jobs before it in queue {job.queue} have begun"


def _jobs(number: int) -> str:
    return f"{number} job{'s' * (number != 1)}"
