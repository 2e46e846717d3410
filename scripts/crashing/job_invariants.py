"""I3, what must hold of jobs: none is lost, none runs beyond at least once.

Law: as `scripts.crashing.invariants`. What the store says of a job is held against the orders that it was put in with,
and against what the provider saw under its runs' keys.

    ordered    an order has its jobs and a job its order: both were in one transaction
    over       a job is done, dead by the rule, or waits for one that is dead
    performed  what a job that is done stands for was performed, by that run, and was not taken back
    taken back what a run of a durable flow has performed, and that did not succeed, was taken back
    runs       its runs have the numbers that the store has counted; per key 1 + the rescues + the provider's faults
    in turn    who waits for others began when they were done, with their results

A durable flow's calls per key are I2's: the journal knows more of them than the store.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from scripts.crashing import errands
from scripts.crashing.evidence import Evidence
from scripts.crashing.violations import Violation, by_key, run_of
from zerver.core.jobs import job_of_run
from zerver.jobs.port import MOST_RESCUES, Job

UNDO: Final = ".undo"

#: What the provider did to a caller, and had done what was asked for.
DONE_ANYWAY: Final = ("", "cut", "slow")


def check_ordered(evidence: Evidence) -> Iterator[Violation]:
    had: defaultdict[str, Counter[str]] = defaultdict(Counter)
    members = members_of(evidence.jobs)
    for job in evidence.jobs:
        had[order_of(job, members)][job.flow] += 1
    rows = {row.id for row in evidence.rows}
    for row in rows:
        expected = errands.expected_of(row)
        if had[row] != expected:
            yield Violation("I3", "", f"order {row} has the jobs {dict(had[row])}; due are {dict(expected)}")
    for order in had.keys() - rows:
        yield Violation("I3", "", f"{dict(had[order])} were ordered for {order or 'nobody'}, which is no order")


def check_over(evidence: Evidence) -> Iterator[Violation]:
    members = members_of(evidence.jobs)
    for job in evidence.jobs:
        if job.state == "dead" and job.rescues < MOST_RESCUES and job.attempt < job.attempts:
            yield Violation("I3", job.run_id, f"{name(job)} is dead before its time: {job.error}")
        elif job.state == "waiting":
            if not any(member.state == "dead" or member.state == "waiting" for member in members[job.job_id]):
                yield Violation("I3", "", f"{name(job)} waits, and what it waits for is done")
        elif job.state not in ("done", "dead"):
            yield Violation("I3", job.run_id, f"{name(job)} is {job.state}, and never ended: {job.error}")


def check_performed(evidence: Evidence) -> Iterator[Violation]:
    performed = {run_of(key) for key in evidence.performed.keys() - set(evidence.withdrawn)}
    for job in evidence.jobs:
        if job.state == "done" and job.run_id not in performed:
            yield Violation("I3", job.run_id, f"{name(job)} is done, and the provider has nothing of it")


def check_taken_back(evidence: Evidence) -> Iterator[Violation]:
    done = {story.run_id for story in evidence.stories if story.status == "done"}
    known = {story.run_id for story in evidence.stories}
    for key in evidence.performed.keys() - set(evidence.withdrawn):
        if run_of(key) in known and run_of(key) not in done:
            yield Violation("I3", run_of(key), f"{key} was performed, did not succeed, and was not taken back")


def check_runs(evidence: Evidence) -> Iterator[Violation]:
    jobs = {job.job_id: job for job in evidence.jobs}
    for key, calls in by_key(evidence).items():
        if calls[0].verb not in ("errand", "withdrawal"):
            continue
        run_id = run_of(key)
        job = jobs.get(job_of_run(run_id))
        if job is None:
            yield Violation("I3", run_id, f"the provider saw {key}, and there is no such job")
            continue
        number = int(run_id.rpartition(".")[2])
        most = job.settled + (job.rescues >= MOST_RESCUES)
        if not 1 <= number <= most:
            yield Violation("I3", run_id, f"{name(job)} had run {number}, and {most} are known")
        if job.flow not in errands.DURABLE and not key.endswith(UNDO):
            faults = sum(bool(call.fault) for call in calls)
            if len(calls) > 1 + job.rescues + faults:
                what = f"{key} was called {len(calls)} times, with {job.rescues} rescues and {faults} faults of others"
                yield Violation("I3", run_id, what)


def check_in_turn(evidence: Evidence) -> Iterator[Violation]:
    first: dict[str, int] = {}
    performed: dict[str, int] = {}
    for place, call in enumerate(evidence.calls):
        job_id = job_of_run(run_of(call.key))
        if call.verb == "errand" and job_id:
            first.setdefault(job_id, place)
            if call.fault in DONE_ANYWAY:
                performed.setdefault(job_id, place)
    jobs = {job.job_id: job for job in evidence.jobs}
    for successor, members in members_of(evidence.jobs).items():
        job = jobs.get(successor)
        if job is None:
            yield Violation("I3", "", f"{name(members[0])} is awaited by {successor}, which is not there")
        elif job.began_unix_ns or successor in first:
            began = first.get(successor, len(evidence.calls))
            for member in members:
                if member.state != "done" or performed.get(member.job_id, began) >= began:
                    yield Violation("I3", job.run_id, f"{name(job)} began before {name(member)} was done")
            if job.flow == "report":
                results = [json.loads(member.result or "null") for member in members]
                if sorted(json.loads(job.body or "[]"), key=repr) != sorted(results, key=repr):
                    yield Violation("I3", job.run_id, f"{name(job)} was given {job.body}; the results are {results}")


CHECKS: Final = (check_ordered, check_over, check_performed, check_taken_back, check_runs, check_in_turn)

# ---- small questions --------------------------------------------------------------------------


def members_of(jobs: Sequence[Job]) -> Mapping[str, Sequence[Job]]:
    """Those that a job waits for, by its id."""
    members: defaultdict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        if job.releases:
            members[job.releases].append(job)
    return members


def order_of(job: Job, members: Mapping[str, Sequence[Job]]) -> str:
    """What its body says, or that of a job it waits for; "" if none does."""
    for one in (job, *members.get(job.job_id, ())):
        said: Any = json.loads(one.body or "null")
        said = said[0] if isinstance(said, list) and said else said
        if isinstance(said, dict):
            return str(said.get("order", ""))
    return ""


def name(job: Job) -> str:
    return f"{job.flow} {job.job_id[:8]}"
