"""What `zerver jobs` prints: tables, a job in full, and both for programs.

Law: pure. All that comes from outside is on one line of printable characters; members of a body or a result that the
settings hide are masked, wherever they stand in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import attrs

from zerver.core.jobs import run_id_for
from zerver.core.secret import MASK
from zerver.jobs.cron import in_words
from zerver.jobs.port import STATES, Job, QueueState
from zerver.trace.hidden import Hidden
from zerver.trace.veil import escaped

#: Runs of a job that are named; the others have their numbers.
_RUNS: Final = 3

_SECOND: Final = 1_000_000_000


def job_table(jobs: Sequence[Job], now: int) -> Iterator[str]:
    """One line for each. now: wall time in nanoseconds."""
    rows = [("JOB", "FLOW", "QUEUE", "TENANT", "STATE", "TRY", "SINCE", "WHAT")]
    rows += [
        (
            job.job_id, job.flow, job.queue, job.tenant, job.state, f"{job.attempt}/{job.attempts}",
            moment(_since(job)), _what(job, now),
        )
        for job in jobs
    ]  # fmt: skip
    return table(rows)


def queue_table(queues: Sequence[QueueState], now: int) -> Iterator[str]:
    """One line for each queue: how many of its jobs are in which state, its bounds, how long the first one waits."""
    rows = [("QUEUE", *(state.upper() for state in STATES), "LIMIT", "OLDEST", "")]
    for queue in queues:
        limits = [str(queue.rule.limit)] if queue.rule.limit is not None else []
        limits += [f"{queue.rule.per_tenant} of a tenant"] if queue.rule.per_tenant is not None else []
        oldest = _span(now - queue.oldest_unix_ns) if queue.oldest_unix_ns else "-"
        counts = [str(queue.counts.get(state, 0)) for state in STATES]
        rows.append((queue.rule.name, *counts, ", ".join(limits) or "-", oldest, "PAUSED" if queue.paused else ""))
    return table(rows)


@attrs.frozen
class Due:
    """When a schedule is due. unix_ns: 0 for not known. note: what is strange about it."""

    name: str
    expression: str
    zone: str
    unix_ns: int
    note: str = ""

    @property
    def when(self) -> str:
        """Its expression in words."""
        return in_words(self.expression)


def due_table(dues: Sequence[Due], now: int) -> Iterator[str]:
    """One line for each schedule."""
    rows = [("SCHEDULE", "WHEN", "ZONE", "DUE", "IN", "")]
    for due in dues:
        left = until(due.unix_ns, now) if due.unix_ns else "-"
        rows.append((due.name, due.when, due.zone, moment(due.unix_ns), left, due.note))
    return table(rows)


def plain_due(due: Due) -> dict[str, Any]:
    """A schedule for programs."""
    at = moment(due.unix_ns) if due.unix_ns else None
    told = {"schedule": due.name, "expression": due.expression, "when": due.when, "zone": due.zone}
    return {**told, "due": at, "note": due.note or None}


def job_lines(job: Job, why: str, hidden: Hidden) -> Iterator[str]:
    """All that is known of a job. why: it has not begun."""
    return map(escaped, _job_lines(job, why, hidden))


def _job_lines(job: Job, why: str, hidden: Hidden) -> Iterator[str]:
    yield f"job       {job.job_id}"
    yield f"flow      {job.flow}"
    yield f"queue     {job.queue} · {job.priority}"
    yield f"tenant    {job.tenant}"
    yield f"state     {job.state}" + (f": {why}" if why else "")
    yield f"attempt   {job.attempt} of {job.attempts}" + (f" · its worker died {job.rescues} times" * bool(job.rescues))
    yield f"ordered   {moment(job.ordered_unix_ns)}" + (f" by {job.origin}" if job.origin else "")
    if job.state in ("waiting", "scheduled", "available"):
        yield f"due       {moment(job.at_unix_ns)}"
    if job.began_unix_ns:
        yield f"began     {moment(job.began_unix_ns)}" + (f" at {job.owner}" if job.owner else "")
    if job.ended_unix_ns:
        yield f"ended     {moment(job.ended_unix_ns)}"
    if job.done or job.total or job.note:
        yield f"progress  {_progress(job)}"
    if job.awaits:
        yield f"awaits    {job.awaits} others"
    if job.releases:
        yield f"awaited   by {job.releases}"
    if job.unique:
        yield f"unique    {job.unique}"
    if job.parent:
        yield f"parent    {job.parent}"
    if job.body is not None:
        yield f"body      {_masked_text(job.body, hidden)}"
    if job.result is not None:
        yield f"result    {_masked_text(job.result, hidden)}"
    if job.error:
        first, *rest = job.error.splitlines() or [""]
        yield f"error     {first}"
        yield from (f"          {line}" for line in rest)
    runs = runs_of(job)
    if runs:
        earlier = f" · {len(runs) - _RUNS} before them" if len(runs) > _RUNS else ""
        yield f"runs      {', '.join(runs[-_RUNS:])}{earlier}"
        yield f"          zerver trace {runs[-1]}"


def runs_of(job: Job) -> list[str]:
    """The ids of its runs, as far as they have begun: each is what `zerver trace` asks for."""
    begun = job.settled + (job.state in ("running", "parked"))
    known = [run_id_for(job.job_id, number) for number in range(1, begun + 1)]
    return known if not job.run_id or job.run_id in known else [*known, job.run_id]


def plain_job(job: Job, hidden: Hidden, **more: object) -> dict[str, Any]:
    """A job for programs: times as ISO 8601 or null, the body and the result as JSON."""
    told: dict[str, Any] = {}
    for name, value in attrs.asdict(job).items():
        if name.endswith("_unix_ns"):
            told[name.removesuffix("_unix_ns")] = moment(value) if value else None
        elif name in ("body", "result"):
            told[name] = None if value is None else _masked(_parsed(value), hidden)
        else:
            told[name] = value
    return {**told, **more}


def plain_queue(queue: QueueState) -> dict[str, Any]:
    """A queue for programs."""
    return {
        "queue": queue.rule.name,
        "paused": queue.paused,
        "limit": queue.rule.limit,
        "per_tenant": queue.rule.per_tenant,
        "oldest": moment(queue.oldest_unix_ns) if queue.oldest_unix_ns else None,
        "counts": dict(queue.counts),
    }


def table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows with their columns below each other; the first one is the header."""
    cells = [tuple(map(escaped, row)) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(rows[0]) - 1)]
    for row in cells:
        yield "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1])).rstrip()


def moment(unix_ns: int) -> str:
    """As 2026-11-21T15:30:00Z; "-" for never."""
    if not unix_ns:
        return "-"
    try:
        return datetime.fromtimestamp(unix_ns // _SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "?"


def until(unix_ns: int, now: int) -> str:
    """As "in 3m", or "2h late"."""
    return f"in {_span(unix_ns - now)}" if unix_ns > now else f"{_span(now - unix_ns)} late"


def _span(ns: int) -> str:
    seconds = max(0, ns) // _SECOND
    for unit, worth in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * worth:
            return f"{seconds // worth}{unit}"
    return f"{seconds}s"


def _since(job: Job) -> int:
    """Since when it is in its state, or for one that is to begin, when."""
    if job.ended_unix_ns:
        return job.ended_unix_ns
    return job.began_unix_ns if job.state in ("running", "parked") else job.at_unix_ns or job.ordered_unix_ns


def _what(job: Job, now: int) -> str:
    error = (job.error.splitlines() or [""])[0]
    match job.state:
        case "waiting":
            return f"waits for {job.awaits} job{'s' * (job.awaits != 1)}"
        case "scheduled":
            return until(job.at_unix_ns, now) + (f": {error}" if error else "")
        case "running":
            return _progress(job)
        case "parked":
            return "waits for a signal"
        case _:
            return error


def _progress(job: Job) -> str:
    total = f"/{job.total}" if job.total else ""
    counted = f"{job.done}{total}" if job.done or job.total else ""
    return " ".join(word for word in (counted, job.note) if word)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _masked(value: Any, hidden: Hidden) -> Any:
    if isinstance(value, dict):
        return {name: MASK if hidden.hides(name) else _masked(inner, hidden) for name, inner in value.items()}
    return [_masked(inner, hidden) for inner in value] if isinstance(value, list) else value


def _masked_text(text: str, hidden: Hidden) -> str:
    return json.dumps(_masked(_parsed(text), hidden), ensure_ascii=False)
