"""What stores of jobs in memory keep: the port's rules, each as one function of a table that is there.

Law: it decides what the statements in `zerver.jobs.statements` decide, said in the plainest way, so that one can be
held against the other. Nothing here waits: each method is one transaction.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import trio

from zerver.core.jobs import run_id_for
from zerver.core.priorities import RANK
from zerver.jobs.port import FINAL, MOST_RESCUES, Job, JobState, Order, QueueRule, Verdict, Wanted


@attrs.define(eq=False)
class Row:
    """A job on the disk, and what a Job does not say: see the columns in `zerver.jobs.schema`."""

    job: Job
    place: int
    awaited: int
    holds: bool
    holds_until: int
    underway: bool = False
    stopping: str = ""

    def set(self, **changes: Any) -> None:
        self.job = attrs.evolve(self.job, **changes)

    @property
    def turn(self) -> tuple[int, int, int]:
        return RANK[self.job.priority], self.job.at_unix_ns, self.job.seq


class JobDisk:
    """What stores in memory keep. wall_ns: wall time in nanoseconds; by default the time of making, and Trio's
    since then.
    """

    def __init__(self, wall_ns: Callable[[], int] | None = None) -> None:
        self.rows: dict[str, Row] = {}
        self.lapses: dict[str, float] = {}
        self.rules: dict[str, QueueRule] = {}
        self.paused: dict[str, bool] = {}
        self.schedules: dict[str, tuple[str, int]] = {}
        self.seq = 0
        self.changes = trio.Event()  # set, and replaced, when there may be something to take
        self.changed = 0
        self._wall_ns = wall_ns
        self._made_ns = time.time_ns()
        self._made: float | None = None

    def wall_ns(self) -> int:
        if self._wall_ns is not None:
            return self._wall_ns()
        if self._made is None:
            self._made = trio.current_time()
        return self._made_ns + round((trio.current_time() - self._made) * 1e9)

    def wake(self) -> None:
        self.changed += 1
        self.changes.set()
        self.changes = trio.Event()

    def of_state(self, *states: JobState) -> list[Row]:
        return [row for row in self.rows.values() if row.job.state in states]

    # -- orders --

    def order(self, orders: Sequence[Order]) -> list[str]:
        return [self._order(order) for order in orders]

    def _order(self, order: Order) -> str:
        now = self.wall_ns()
        if order.job_id in self.rows:
            return order.job_id
        holder = self._holder(order.unique, now) if order.unique else None
        if holder is not None:
            return holder.job.job_id
        state: JobState = "waiting" if order.awaits else "scheduled" if order.at_unix_ns > now else "available"
        self.seq += 1
        job = Job(
            job_id=order.job_id,
            seq=self.seq,
            flow=order.flow,
            queue=order.queue,
            body=order.body,
            tenant=order.tenant,
            priority=order.priority,
            state=state,
            at_unix_ns=max(order.at_unix_ns, now),
            attempt=0,
            attempts=order.attempts,
            fence=0,
            rescues=0,
            owner="",
            run_id="",
            error="",
            result=None,
            ordered_unix_ns=now,
            began_unix_ns=0,
            ended_unix_ns=0,
            releases=order.releases,
            awaits=order.awaits,
            unique=order.unique,
            origin=order.origin,
            parent=order.parent,
            done=0,
            total=0,
            note="",
        )
        until = now + int(order.unique_seconds * 1e9)
        self.rows[order.job_id] = Row(job, order.place, order.awaits, bool(order.unique), until)
        return order.job_id

    def _holder(self, unique: str, now: int) -> Row | None:
        """The job that no other may be beside; one that is over, and its window too, gives its place up."""
        for row in self.rows.values():
            if row.holds and row.job.unique == unique:
                if row.job.state not in FINAL or row.holds_until > now:
                    return row
                row.holds = False
        return None

    # -- taking --

    def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        now = self.wall_ns()
        for row in self.of_state("scheduled"):
            if row.job.at_unix_ns <= now:
                row.set(state="available")
        suspect = self._suspect(owner, rules)
        found = (
            row for rule in rules for row in self._ready(rule, lambda row: not row.job.is_suspect or row is suspect)
        )
        ready = sorted(found, key=lambda row: row.turn)
        for row in ready[: max(count, 0)]:
            row.set(
                state="running",
                owner=owner,
                fence=row.job.fence + 1,
                attempt=row.job.attempt + 1,
                run_id=row.job.run_id if row.underway else run_id_for(row.job.job_id, row.job.settled + 1),
                began_unix_ns=now,
            )
        return [row.job for row in ready[: max(count, 0)]]

    def _suspect(self, owner: str, rules: Sequence[QueueRule]) -> Row | None:
        """The first suspect that may begin, if this one has none of them under way."""
        if any(row.job.owner == owner and row.job.is_suspect for row in self.of_state("running")):
            return None
        found = (row for rule in rules for row in self._ready(rule, lambda row: row.job.is_suspect))
        return min(found, key=lambda row: row.turn, default=None)

    def _ready(self, rule: QueueRule, may: Callable[[Row], bool]) -> list[Row]:
        """What of a queue may begin, and no more than may run beside what runs."""
        if self.paused.get(rule.name):
            return []
        of_queue = [row for row in self.rows.values() if row.job.queue == rule.name]
        running = Counter(row.job.tenant for row in of_queue if row.job.state == "running")
        total, found = running.total(), []
        available = (row for row in of_queue if row.job.state == "available" and may(row))
        for row in sorted(available, key=lambda row: row.turn):
            tenant = row.job.tenant
            if rule.limit is not None and total >= rule.limit:
                break
            if rule.per_tenant is None or running[tenant] < rule.per_tenant:
                found.append(row)
                running[tenant] += 1
                total += 1
        return found

    def rescue(self, now: float) -> list[Job]:
        rescued = [row for row in self.of_state("running") if self.lapses.get(row.job.owner, now) <= now]
        for row in rescued:
            job = row.job
            spent = job.rescues + 1 >= MOST_RESCUES
            over = bool(row.stopping) or spent
            row.set(
                state="cancelled" if row.stopping else "dead" if spent else "available",
                ended_unix_ns=self.wall_ns() if over else 0,
                error=row.stopping or f"its worker {job.owner} died while it ran",
                rescues=job.rescues + 1,
                attempt=job.attempt - 1,
                fence=job.fence + 1,
                owner="",
            )
        return [row.job for row in rescued]

    # -- what an attempt came to --

    def settle(self, job_id: str, fence: int, verdict: Verdict) -> bool:
        row = self.rows.get(job_id)
        if row is None or row.job.fence != fence:
            return False
        if row.job.state == "running":
            self._settle(row, verdict)
        return True

    def unpark(self, run_id: str, verdict: Verdict) -> bool:
        for row in self.rows.values():
            if row.underway and row.job.run_id == run_id and row.job.state not in FINAL:
                row.set(fence=row.job.fence + 1)
                self._settle(row, verdict)
                return True
        return False

    def _settle(self, row: Row, verdict: Verdict) -> None:
        now, state = self.wall_ns(), verdict.state
        error = verdict.error or ("" if state == "done" else row.stopping)
        if row.stopping and state in ("scheduled", "parked"):
            state, error = "cancelled", row.stopping
        changes: dict[str, Any] = {}
        if verdict.state == "scheduled":
            changes["at_unix_ns"] = max(verdict.at_unix_ns, now)
            state = "available" if state == "scheduled" and verdict.at_unix_ns <= now else state
        row.set(
            state=state,
            attempt=row.job.attempt - (not verdict.counts),
            settled=row.job.settled + (verdict.ran and verdict.state != "parked"),
            result=verdict.result,
            error=error,
            owner="",
            ended_unix_ns=now if state in FINAL else 0,
            **changes,
        )
        row.stopping, row.underway = "", state == "parked"
        if state == "done" and row.job.releases in self.rows:
            awaiting = self.rows[row.job.releases]
            awaiting.set(awaits=awaiting.job.awaits - 1)
            self.begin_awaited()

    def begin_awaited(self) -> None:
        now = self.wall_ns()
        for row in self.of_state("waiting"):
            if row.job.awaits <= 0:
                later = row.job.at_unix_ns > now
                state: JobState = "scheduled" if later else "available"
                body = row.job.body if row.job.body is not None else self._results(row)
                row.set(state=state, at_unix_ns=max(now, row.job.at_unix_ns), body=body)

    def _results(self, row: Row) -> str | None:
        """The results of those that a job has waited for."""
        before = sorted(self._awaited_by(row), key=lambda member: (member.place, member.job.seq))
        results = [member.job.result or "null" for member in before]
        if row.awaited == 1 and results:
            return results[0]
        return f"[{','.join(results)}]" if row.awaited > 1 else None

    def _awaited_by(self, row: Row) -> Iterator[Row]:
        return (member for member in self.rows.values() if member.job.releases == row.job.job_id)

    # -- by hand --

    def wanted(self, wanted: Wanted) -> list[Row]:
        return [row for row in self.rows.values() if _is_wanted(row.job, wanted)]

    def retry(self, wanted: Wanted) -> int:
        newest = {row.job.unique: row for row in self.rows.values() if row.job.unique}
        again = [
            row
            for row in self.wanted(wanted)
            if row.job.state in ("dead", "cancelled", "scheduled") and newest.get(row.job.unique, row) is row
        ]
        for row in again:
            waits = row.awaited > 0 and not row.job.began_unix_ns
            row.set(
                state="waiting" if waits else "available",
                at_unix_ns=self.wall_ns(),
                attempt=0,
                rescues=0,
                fence=row.job.fence + 1,
                error="",
                ended_unix_ns=0,
            )
            row.stopping, row.underway, row.holds = "", False, bool(row.job.unique)
        self.begin_awaited()
        return len(again)

    def cancel(self, wanted: Wanted, why: str) -> int:
        cancelled = [row for row in self.wanted(wanted) if row.job.state not in FINAL and not row.stopping]
        for row in cancelled:
            if row.job.state == "running":
                row.stopping = why
            else:
                row.set(state="cancelled", error=why, ended_unix_ns=self.wall_ns())
                row.underway = False
        return len(cancelled)

    def delete(self, wanted: Wanted) -> int:
        return self._forget([row for row in self.wanted(wanted) if row.job.state in FINAL and not self._is_unread(row)])

    def prune(self, ended_before_unix_ns: int, count: int) -> int:
        now = self.wall_ns()
        old = [
            row
            for row in self.of_state("done", "cancelled")
            if row.job.ended_unix_ns < ended_before_unix_ns
            and not (row.holds and row.holds_until > now)
            and not self._is_unread(row)
        ]
        return self._forget(sorted(old, key=lambda row: row.job.ended_unix_ns)[:count])

    def _forget(self, rows: Sequence[Row]) -> int:
        for row in rows:
            del self.rows[row.job.job_id]
        return len(rows)

    def _is_unread(self, row: Row) -> bool:
        awaiting = self.rows.get(row.job.releases)
        return awaiting is not None and awaiting.job.state == "waiting"


def _is_wanted(job: Job, wanted: Wanted) -> bool:
    among = (
        (job.state, wanted.states),
        (job.queue, wanted.queues),
        (job.flow, wanted.flows),
        (job.tenant, wanted.tenants),
        (job.job_id, wanted.ids),
    )
    return (
        all(not chosen or value in chosen for value, chosen in among)
        and job.job_id.startswith(wanted.prefix)
        and wanted.text in job.error
    )
