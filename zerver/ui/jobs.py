"""Jobs: what the page shows of an app's jobs, and what may be done about them.

Law: what is changed is named before it is: one job by its id, or what a filter finds and how many that are; if that is
not what is found when it is done, nothing is. The store is asked through its port alone, and what is shown of a job is
veiled as its runs are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NoReturn, TypeAlias, cast

import attrs
import trio

from zerver.core.jobs import QueueLimit, run_id_for
from zerver.core.plan import Plan
from zerver.http import Response
from zerver.jobs import JobDesk
from zerver.jobs.port import FINAL, STATES, Job, JobState, JobStore, QueueRule, QueueState, Wanted
from zerver.runtime import Result
from zerver.trace.summary import Filter
from zerver.trace.veil import escaped
from zerver.ui.asked import Asked, as_json, keepable, refuse
from zerver.ui.desk import SMALL
from zerver.ui.jobveil import JobVeil, needs_runs
from zerver.ui.lists import Lists
from zerver.ui.overview import Server

Document: TypeAlias = dict[str, Any]
Verb: TypeAlias = Literal["retry", "cancel", "delete"]

_JOBS: Final = 50
_MOST_JOBS: Final = 200
_MOST_RUNS: Final = 20  # of one job
_MOST_TEXT: Final = 300  # characters of an error in a list
_AT_ONCE: Final = 10  # jobs veiled between two looks at others
_LARGE: Final = 50_000  # characters of JSON that are looked through in the desk's thread

#: Jobs that are counted one by one, before somebody does something about all of them.
_MOST_COUNTED: Final = 2000
_COUNTED_AT_ONCE: Final = 200

#: What each verb can be done to.
MEANT: Final[dict[Verb, tuple[JobState, ...]]] = {
    "retry": ("scheduled", "dead", "cancelled"),
    "cancel": tuple(state for state in STATES if state not in FINAL),
    "delete": FINAL,
}

_FILTERS: Final = ("state", "queue", "flow", "tenant", "text", "id")

_BY_HAND: Final = "somebody cancelled it on the live page"


@attrs.frozen
class Pausing:
    """The body of a pause."""

    paused: bool


@attrs.frozen
class Acting:
    """The body of what is done to one job. reason: for a cancellation."""

    reason: str = ""


@attrs.frozen
class ActingOnMany:
    """The body of what is done to all jobs that a filter finds. wanted: as the query of a list. count: how many it
    finds, as was told before.
    """

    verb: Verb
    count: int
    wanted: dict[str, str] = attrs.field(factory=dict)
    reason: str = ""


class Jobs:
    """The endpoints for jobs. server: gives what is looked at, or raises Refused."""

    def __init__(self, lists: Lists, server: Callable[[], Server]) -> None:
        self._lists = lists
        self._desk = lists.desk
        self._server = server

    # -- looking --

    async def queues(self, asked: Asked) -> Response:
        return as_json({"queues": [_queue(one) for one in await self._states()]})

    async def search(self, asked: Asked) -> Response:
        wanted = wanted_by(asked.query)
        limit = min(asked.number("limit", _JOBS, _MOST_JOBS) or 1, _MOST_JOBS)
        before = asked.number("before", 0, 2**62) or None
        found = await self._store().search(wanted, limit + 1, before)
        more = found[limit - 1].seq if len(found) > limit else None
        told = []
        for number, job in enumerate(found[:limit]):
            if number % _AT_ONCE == _AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            told.append(_summary(job, await self._veil(job, self._remembered(job)), _MOST_TEXT))
        return as_json({"jobs": told, "before": more})

    async def count(self, asked: Asked) -> Response:
        verb = asked.query.get("verb", "")
        if verb not in MEANT:
            refuse(400, f"verb is one of {', '.join(MEANT)}")
        count, more = await self._count(meant(verb, wanted_by(asked.query)))
        return as_json({"count": count, "more": more})

    async def one(self, asked: Asked) -> Response:
        return as_json(await self._whole(await self._find(asked)))

    # -- doing --

    async def pause(self, asked: Asked) -> Response:
        pausing = await asked.body(Pausing)
        name = asked.name()
        declared = self._server().runtime.app.declared.queue_names
        if name not in declared and all(one.rule.name != name for one in await self._states()):
            refuse(404, "there is no such queue")
        await self._store().pause(name, pausing.paused)
        return as_json({"queues": [_queue(one) for one in await self._states()]})

    async def act(self, asked: Asked, verb: Verb) -> Response:
        acting = await asked.body(Acting)
        job = await self._find(asked)
        if not await self._do(verb, meant(verb, Wanted(ids=(job.job_id,))), acting.reason):
            _refuse_verb(verb, job)
        return as_json({"changed": 1})

    async def act_on_many(self, asked: Asked) -> Response:
        acting = await asked.body(ActingOnMany)
        strange = acting.wanted.keys() - _FILTERS
        if strange:  # a filter that means nothing would mean everything
            refuse(400, f"there is no filter {min(strange)!r}; there are {', '.join(_FILTERS)}")
        wanted = meant(acting.verb, wanted_by(acting.wanted))
        count, _ = await self._count(wanted)
        if count != acting.count:
            refuse(409, f"there are {count} by now, and not {acting.count}: look again")
        return as_json({"changed": 0 if not count else await self._do(acting.verb, wanted, acting.reason)})

    async def _do(self, verb: Verb, wanted: Wanted, reason: str) -> int:
        store = self._store()
        if verb == "retry":
            return await store.retry(wanted)
        if verb == "delete":
            return await store.delete(wanted)
        return await store.cancel(wanted, keepable(reason.strip()) or _BY_HAND)

    # -- the store --

    def _store(self) -> JobStore:
        desk = self._server().runtime.resources.get(JobDesk)
        if not isinstance(desk, JobDesk):
            refuse(404, "this app keeps no jobs")
        return desk.store

    async def _find(self, asked: Asked) -> Job:
        job = await self._store().find(asked.name())
        if job is None:
            refuse(404, "there is no such job")
        return job

    async def _states(self) -> Sequence[QueueState]:
        """All queues: those of the store, and those that are only declared yet."""
        found = {one.rule.name: one for one in await self._store().queues()}
        app = self._server().runtime.app
        for name in app.declared.queue_names - found.keys():
            found[name] = QueueState(_rule(app.queues.get(name), name), False, {}, 0)
        return [found[name] for name in sorted(found)]

    async def _count(self, wanted: Wanted) -> tuple[int, bool]:
        """How many are meant, and whether that is only where the counting has stopped."""
        if not wanted.states:
            return 0, False
        if attrs.evolve(wanted, states=(), queues=()) == Wanted():  # then the queues know
            among = [one for one in await self._states() if not wanted.queues or one.rule.name in wanted.queues]
            return sum(one.counts.get(state, 0) for one in among for state in wanted.states), False
        count, before = 0, None
        while count < _MOST_COUNTED:
            page = await self._store().search(wanted, _COUNTED_AT_ONCE, before)
            count += len(page)
            if len(page) < _COUNTED_AT_ONCE:
                return count, False
            before = page[-1].seq
        return count, True

    # -- telling --

    async def _veil(self, job: Job, runs: Sequence[Result | None]) -> JobVeil:
        """runs: those that its texts come from, None for one that is not to be had."""
        known = [run for run in runs if run is not None]
        make = partial(JobVeil, job, self._plan(job), self._desk.hidden, known, whole=len(known) == len(runs) > 0)
        records = sum(len(run.timeline.records) for run in known)
        size = len(job.body or "") + len(job.result or "")
        return await self._desk.work(make, records > SMALL or size > _LARGE)

    def _remembered(self, job: Job) -> Sequence[Result | None]:
        """Of the runs that its texts come from, those in memory; none where they have nothing to tell."""
        ring = self._desk.ring
        if ring is None or not needs_runs(self._plan(job), self._desk.hidden):
            return ()
        found = [(run_id, ring.get(run_id)) for run_id in _runs_behind(job)]
        return [run if run is not None and run.run_id == run_id else None for run_id, run in found]

    async def _whole(self, job: Job) -> Document:
        store = self._store()
        found = [await self._desk.find(run_id) for run_id in _runs_behind(job)]
        veil = await self._veil(job, [None if one is None else one.result for one in found])
        rule = self._server().runtime.app.jobs.get(job.flow)
        return {
            **_summary(job, veil),
            "here": rule is not None,
            "why": veil.said(await store.why(job.job_id)) or None,
            "body": veil.value(job.body, of_caller=True),
            "result": veil.value(job.result),
            "owner": escaped(job.owner) or None,
            "fence": job.fence,
            "settled": job.settled,
            "releases": escaped(job.releases) or None,
            "awaits": job.awaits,
            "unique": escaped(job.unique) or None,
            "parent": escaped(job.parent) or None,
            "verbs": [verb for verb, states in MEANT.items() if job.state in states],
            "runs": await self._runs(job),
        }

    async def _runs(self, job: Job) -> list[Document]:
        """Its runs, the newest first: those that are known here with their summary."""
        last = job.settled + (job.state in ("running", "parked"))
        ids = [run_id_for(job.job_id, number) for number in range(max(1, last - _MOST_RUNS + 1), last + 1)]
        found, _ = await self._lists.search(Filter(), _MOST_RUNS * 2, said=run_id_for(job.job_id, 0)[:-1])
        known = {one["id"]: one for one in found}
        return [{"id": run_id, "summary": known.get(run_id)} for run_id in reversed(ids)]

    def _plan(self, job: Job) -> Plan | None:
        rule = self._server().runtime.app.jobs.get(job.flow)
        return None if rule is None else self._desk.plan_of(rule.label, job.flow)


# ---- what is meant --------------------------------------------------------------------------


def wanted_by(query: Mapping[str, str]) -> Wanted:
    """Which jobs a query means. Raises Refused."""
    query = {name: keepable(query[name]) for name in _FILTERS if name in query}
    states = tuple(said for said in query.get("state", "").split(",") if said)
    strange = [said for said in states if said not in STATES]
    if strange:
        refuse(400, f"state is one of {', '.join(STATES)}, or several with commas between them")

    def one(name: str) -> tuple[str, ...]:
        return (query[name],) if query.get(name) else ()

    return Wanted(
        states=cast("tuple[JobState, ...]", states),
        queues=one("queue"),
        flows=one("flow"),
        tenants=one("tenant"),
        prefix=query.get("id", ""),
        text=query.get("text", ""),
    )


def meant(verb: Verb, wanted: Wanted) -> Wanted:
    """Of those, the ones that it can be done to; without states there are none."""
    return attrs.evolve(wanted, states=tuple(s for s in MEANT[verb] if not wanted.states or s in wanted.states))


def _runs_behind(job: Job) -> list[str]:
    """The runs that its texts come from: the last one that has ended, and the one that has begun since."""
    settled = [run_id_for(job.job_id, job.settled)] if job.settled else []
    return list(dict.fromkeys([*settled, *([job.run_id] if job.run_id else [])]))


def _refuse_verb(verb: Verb, job: Job) -> NoReturn:
    why = "somebody waits for its result" if verb == "delete" and job.state in FINAL else f"it is {job.state}"
    refuse(409, f"{why}: {verb} does nothing to it")


# ---- as documents ---------------------------------------------------------------------------


def _rule(limit: QueueLimit | None, name: str) -> QueueRule:
    return QueueRule(name) if limit is None else QueueRule(name, limit.limit, limit.per_tenant)


def _queue(one: QueueState) -> Document:
    return {
        "name": escaped(one.rule.name),
        "paused": one.paused,
        "limit": one.rule.limit,
        "per_tenant": one.rule.per_tenant,
        "counts": {state: one.counts.get(state, 0) for state in STATES},
        "oldest_unix_ms": _ms(one.oldest_unix_ns),
    }


def _summary(job: Job, veil: JobVeil, most: int | None = None) -> Document:
    error = veil.text(job.error)
    return {
        "id": escaped(job.job_id),
        "seq": job.seq,
        "flow": escaped(job.flow),
        "queue": escaped(job.queue),
        "tenant": veil.said(job.tenant),
        "priority": job.priority,
        "state": job.state,
        "attempt": job.attempt,
        "attempts": job.attempts,
        "rescues": job.rescues,
        "at_unix_ms": _ms(job.at_unix_ns),
        "ordered_unix_ms": _ms(job.ordered_unix_ns),
        "began_unix_ms": _ms(job.began_unix_ns),
        "ended_unix_ms": _ms(job.ended_unix_ns),
        "error": (error if most is None or len(error) <= most else f"{error[:most]}…") or None,
        "origin": escaped(job.origin) or None,
        "progress": None
        if not (job.total or job.done or job.note)
        else {"done": job.done, "total": job.total, "note": veil.text(job.note)},
        "run": escaped(job.run_id) or None,
    }


def _ms(unix_ns: int) -> float | None:
    return unix_ns / 1e6 if unix_ns else None
