"""The page's API: what a browser, or `zerver top`, may ask of a server below `/_zerver/api/`.

Law: every answer is JSON, bounded, veiled, and never stored. Lengths of time are whole nanoseconds in fields that end
in `_ns`; points in time within a run are nanoseconds since it was received (`at_ns`, `began_ns`, `ended_ns`); times of
day are milliseconds since 1970 in fields that end in `_unix_ms`, for a double holds no nanoseconds since then. What is
not known is null, never left out. Lists that may be long come in windows: {from, next, total, items}; `next` is what to
give as `from` for what follows, null at the end.

Who asks is known by the page's cookie, or by `Authorization: Bearer TOKEN`. With the cookie, whatever is no GET needs
the header `x-zerver-csrf` with the value that GET session gives, and `content-type: application/json`. Errors are
problem+json {type, title, status, detail}: 400 what was asked makes no sense, 401 no token, 403 the Host, the Origin
or the proof is wrong, 404 nothing there, 405, 409 it cannot be done for this run or job (detail says why), 413, 415,
429 too many wrong tokens, 503 too many requests of this page at once, or no jobs or journal to be reached; the last two
with Retry-After.

GET  session
    {csrf: str, version: str, app: str, pid: int, store: bool, replay: bool, jobs: bool, journal: bool, now_unix_ms}

GET  overview                                            also what `zerver top` draws; made once a second at most
    {server: {app, version, pid, addresses: [str], began_unix_ms, now_unix_ms, uptime_ns},
     runs: {running, ended, unresolved, stuck, observer_errors},
     journal: {place, unfinished, parked, parked_due_ns: int | null, by_status: {status: int}} | null,
                ten seconds old at most.
                unfinished: under way somewhere, parked, or left by a process that died. parked_due_ns: until the first
                parked run is to be taken up, 0 if one is; null without any
     window_ns,                                          what rates, counts and percentiles below are measured over
     routes: [{label, flow, rate, count, errors, refused, running, p50_ns, p99_ns, spark: [int]}],
                rate: runs per second. errors: failed + defect + deadline. spark: runs in each second, oldest first.
                p50_ns, p99_ns: of the newest runs that were not refused, parked time left out; null without any
     admission: {running, parked, degraded, queued, admitted, refused, draining, reasons: {reason: count},
                classes: [{priority, running, queued, limit, guaranteed, admitted, refused, overloaded, rate}]},
     tenants: [{name, running, count, errors, refused, p99_ns, weight, rate_limit}],     the busiest, 50 at most
     turns: {waiting: [int, int, int], seconds, demoted: [flow],
                overruns: [{flow, step, count, longest_ns, place}]},
     loop: {lag_ns, worst_ns},                           how late the page's own alarm rang: now, and within the window
     targets: [{name, breaker: "closed" | "open" | "half-open" | null, attempts, failures, retries, refused, throttled,
                limit, at_once, waiting, waiting_by_class, retry_tokens, hedge_tokens, hedges, hedges_held_back,
                p50_ns, p95_ns, p99_ns, operations: [{name, breaker, throttled, p50_ns, p95_ns, p99_ns}]}],
     pools: [{name, kind, numbers: {name: number | bool | str}}],
     actors: {name, kind: "runtime" | "supervisor" | "actor" | "run" | "group", state, note, restarts,
              children: [the same]},                     runs under way are in it, 50 at most
     trace: {ring: {runs, records, added, dropped, failed} | null, recorder: {name: number} | null,
             store: bool, feed: {pages, missed}}}

GET  runs?route=&status=&tenant=&failed=1&unresolved=1&slow_ms=&since=&until=&id=&limit=
    {runs: [summary], more: bool, trouble: str | null}   under way first, then the newest of the ring and of the store
    trouble: why there is nothing of the store.
    route: a label or a flow's name. status: "running", or as below. since, until: unix ms. id: the beginning of one.
    limit: 100 by default, 500 at most. For what is older: until= the last one's began_unix_ms.
    summary: {id, began_unix_ms, label, flow, version, tenant, priority,
              status: "running" "done" "failed" "defect" "deadline" "cancelled" "refused",
              http: int | null, took_ns (parked left out), kept: why it is stored | null, cause: str | null,
              slow_step: str | null, unresolved: bool, records: int | null,
              source: "live" | "ring" | "store"; of one run also "journal"}

GET  runs/{id}?rows=N&spans=N                            id: whole, or a beginning that fits one run alone
    the view of a run (zerver.trace.view says more), with the first N rows and spans; 1,000 and 2,000 by default:
    {header: {id, label, flow, version, tenant, priority, status, http, reason, began_unix_ms, total_ns,
              under_way: bool, parent: str, records: int, source, replayable: bool, why_not: str | null,
              journal: {status | null, aside: why it was set aside | null, reason: why it was called resolved | null,
                        waits: [{signal, expires_unix_ms, came: bool}] | null} | null},
              status: as of a summary, or "parked": then `waits` says for what. journal: of a run that is only there
     accounts: {admission, turn, cpu, io, parked, total},                                        nanoseconds
     gaps: [{began_ns, ended_ns, account}],              long silences, in order, 100 at most: what a waterfall squeezes
     rows: window of {index, at_ns, kind, subject, text},         index: of the record; from, next, total: of records
     spans: window of {id, parent, kind, name, began_ns, ended_ns | null, status,
                       segments: [{account, began_ns, ended_ns}],            256 at most: short ones are put together
                       attributes: {name: value}, events: [{at_ns, name, attributes}]},          100 events at most
              in the order of the tree, parents before children; total: of spans.
              kind: run admission step turn effect join attempt hedge park undo.
              status: ok failed cut late lost unresolved running
     graph: {nodes: [{id, label, shape: "step" | "choice" | "point", step: str | null, pivot: bool, reads: [slot],
                      writes: [slot], status: "ok" "failed" "cut" "running" "waiting" | null (not reached), began_ns,
                      ended_ns, took_ns, cpu_ns, io_ns, parked_ns, effects: int, attempts: int}],
             edges: [{source, target, label, taken: bool}]},
     slots: [{name, secret: bool, type: str, writer: step | "given" | null, readers: [step], written: bool, at_ns,
              value: JSON | null, shown: str, editable: bool}],
              value: as a replay takes it; shown: as text, of what JSON cannot say too
     inputs: [{source, name, secret: bool, value, shown, editable}],       parts of the request; named "header.x-y" and
              "body" in a replay's changes
     effects: window of {id, step, kind, text, access: "read" | "write", key | null, target, asked_ns, ended_ns,
              outcome: "success" "failure" "unknown" "cancelled" | null, error: str | null, shown: str | null,
              attempts, timeouts, committed: bool | null, undone: bool, late: bool, rollback: bool},  the first 500
     causes: [str],                                      the lines that say why, most important first
     unresolved: [{step, kind, target, key | null, text}]}

GET  runs/{id}/records?from=0&count=1000                 {from, next, total, items} as `rows`; count 5,000 at most
GET  runs/{id}/spans?from=0&count=2000                   as `spans`; count 10,000 at most
GET  runs/{id}/text                                      {text}: the timeline as `zerver trace` prints it, 1 MiB at most

POST runs/{id}/replay   {changes: {slot: JSON}, until: step | null}
    {run: id, faithful: bool, divergence: {index, step, recorded, replayed, text, …} | null, until: step | null,
     text: str, not_done: [str],                         "no committed effect in payment.charge (…): …"
     story: what `zerver replay --json` prints, view: as above, of the run as it would have been,
     diff: as below, of recorded and replayed}
    Offline: no effect is performed, ten seconds at most. What is secret cannot be changed here. 409 for a run whose
    flow is not loaded; 400 for a change that names nothing, or has the wrong type.

GET  queues                                              404 where the app keeps no jobs, as for all of jobs
    {queues: [{name, paused: bool, limit: int | null, per_tenant: int | null, counts: {state: int},
               oldest_unix_ms | null}]}                  oldest: since when its first job could have begun
POST queues/{name}/pause   {paused: bool}                as GET queues

GET  jobs?state=&queue=&flow=&tenant=&text=&id=&before=&limit=
    {jobs: [job], before: int | null}                    newest first; `before`: what to give for those that follow
    state: one, or several with commas between them. text: what stands in the error. id: the beginning of one.
    limit: 50 by default, 200 at most.
    job: {id, seq, flow, queue, tenant, priority,
          state: "waiting" "scheduled" "available" "running" "parked" "done" "dead" "cancelled",
          attempt, attempts, rescues, at_unix_ms, ordered_unix_ms, began_unix_ms | null, ended_unix_ms | null,
          error: str | null (of a list: its beginning), origin: str | null,
          progress: {done, total, note} | null, run: id of its last run | null}
GET  jobs/{id}                                           a job, and
    {…, here: bool (the app has its flow), why: why it has not begun | null, owner | null, fence, settled, awaits,
     releases: id | null, unique | null, parent | null, verbs: ["retry" "cancel" "delete"],
     body, result: {value: JSON | null, shown: str} | null,           masked as slots are
     runs: [{id, summary | null}]}                       the newest first, 20 at most; null: it is not known here
    Of a flow that makes secrets, or is not here, nothing is shown that could hold one until its runs are known here.
POST jobs/{id}/retry, jobs/{id}/delete   {}              {changed: 1}; 409 if that does nothing to it
POST jobs/{id}/cancel   {reason: str}
GET  matching?verb=&state=&queue=&flow=&tenant=&text=&id=
    {count, more: bool}                                  of the jobs that are meant, those that the verb can be done to
POST matching   {verb, wanted: {state, queue, …}, count, reason: str}
    {changed: int}                                       409 if it is another count by now: then nothing was done

GET  cases?after=&limit=                                 the journal's runs that somebody must look at, oldest first
    {place, cases: [{run, flow, version, tenant, label, state: "unresolved" | "stuck", since_unix_ms, why: str | null,
                     writes: [{step, kind, text, state: "happened" | "in doubt", key | null, why: str | null}]}],
     after: id | null}                                   404 where there is no journal. 50 by default, 200 at most
POST cases/{run}/retry     {}                            {status, unresolved: int}; 409 if it cannot be tried again here
POST cases/{run}/resolve   {reason: str, by: str}        {run, reason, by}; 409 if it needs nobody

GET  diff?a=id&b=id
    {a: summary, b: summary, same: bool, first: {step, kind, text} | null, text: str,
     steps: [{step, same: bool, a_took_ns, b_took_ns,
              differences: [{kind: "slot" | "decision" | "effect" | "attempts" | "timing" | "missing", name, text,
                             a: JSON | null, b: JSON | null}]}]}

GET  flows                                               {flows: [{name, version, owner, doc, routes: [label]}]}
                                                         served ones, and jobs: their label is "job NAME"
GET  flows/{name}/graph                                  {flow, version, graph} with the timings of nodes null

GET  feed?overview=1                                     text/event-stream; for EventSource
    event: hello     {now_unix_ms, interval_ms}          once
    event: runs      {runs: [summary], missed: int}      those that ended since the last, oldest first, 100 at most;
                     coalesced to one event per interval. missed: runs left out, because the page was slow or there
                     were more than that: ask `runs` for them. Nothing is kept for a page beyond 100 summaries.
    event: running   {runs: [summary], total: int}       under way, 50 at most, oldest first; once a second on change
    event: overview  as GET overview                     once a second, if asked for
    The stream ends when the server drains, and after an hour; EventSource comes back by itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from typing import Final, TypeAlias
from urllib.parse import parse_qsl

import trio

from zerver.core.codec import encode_json
from zerver.errors import InvalidData, JournalError, JournalUnavailable, TraceError
from zerver.http import Exchange, Response, problem, sse
from zerver.jobs import JobDesk
from zerver.trace.comparing.diff import diff, diff_json
from zerver.trace.drawing import drawing
from zerver.trace.summary import Filter
from zerver.trace.text import format_timeline
from zerver.trace.view import ROWS, SPANS
from zerver.ui.access import Session
from zerver.ui.asked import Asked, Refused, as_json, encoded, refuse, wrong_method
from zerver.ui.cases import Cases, standing
from zerver.ui.desk import SMALL, Found, flows_of
from zerver.ui.feed import Feed
from zerver.ui.jobs import Jobs
from zerver.ui.lists import Lists
from zerver.ui.overview import Overviews, Server
from zerver.ui.replays import Wanted, replayed

_REPLAY_SECONDS: Final = 10.0
_MOST_TEXT: Final = 1024 * 1024
_MOST_RUNS: Final = 500
_MOST_ROWS: Final = 5000
_MOST_SPANS: Final = 10_000


class Api:
    """Answers requests below `/_zerver/api/`. server: None until the app is open."""

    def __init__(self, lists: Lists, feed: Feed, overviews: Overviews) -> None:
        self.lists = lists
        self.desk = lists.desk
        self.feed = feed
        self.overviews = overviews
        self.server: Server | None = None
        self.jobs = Jobs(lists, self.open_server)
        self.cases = Cases(lists.desk, self.open_server)

    async def answer(self, exchange: Exchange, session: Session, path: tuple[str, ...]) -> Response:
        """Answer one request. path: behind `api/`, decoded."""
        try:
            method = "GET" if exchange.head.method == "HEAD" else exchange.head.method
            endpoint, rest = _endpoint(method, path)
            query = dict(parse_qsl(exchange.head.query, max_num_fields=50))
            return await endpoint(self, Asked(exchange, session, rest, query))
        except Refused as refused:
            return refused.answer
        except InvalidData as bad:
            return problem(400, detail="; ".join(f"{where} {what}" for where, what in bad.problems))
        except JournalUnavailable as error:
            return problem(503, detail=str(error))
        except (TraceError, JournalError) as error:
            return problem(409, detail=str(error))
        except ValueError:  # a query with too many fields
            return problem(400, detail="the query cannot be read")

    # -- the server --

    async def session(self, asked: Asked) -> Response:
        server = self.open_server()
        return as_json(
            {
                **server.identity(),
                "csrf": asked.session.csrf,
                "version": version("zerver"),
                "store": self.desk.archive is not None,
                "replay": True,
                "jobs": JobDesk in server.runtime.resources,
                "journal": server.runtime.clerk is not None,
                "now_unix_ms": time.time() * 1e3,
            }
        )

    async def overview(self, asked: Asked) -> Response:
        return as_json(await self.overviews.get(self.open_server()))

    async def watch(self, asked: Asked) -> Response:
        self.open_server()
        watcher = self.feed.watch(overview=asked.flag("overview"))
        if watcher is None:
            refuse(503, "too many pages look at once")
        return sse(watcher)

    async def flows(self, asked: Asked) -> Response:
        app = self.open_server().runtime.app
        labels: dict[str, list[str]] = {}
        for route in app.routes:
            for flow in route.flows:
                labels.setdefault(flow.name, []).append(route.label)
        for name, rule in app.jobs.items():
            labels.setdefault(name, []).append(rule.label)
        told = [
            {"name": name, "version": flow.version, "owner": flow.owner, "doc": "", "routes": labels.get(name, [])}
            for name, flow in flows_of(app).items()
        ]
        return as_json({"flows": told})

    async def flow_graph(self, asked: Asked) -> Response:
        (name,) = asked.rest
        flow = flows_of(self.open_server().runtime.app).get(name)
        plan = None if flow is None else self.desk.plan_of("", name)
        if flow is None or plan is None:
            refuse(404, "there is no such flow")
        return as_json({"flow": flow.name, "version": flow.version, "graph": drawing(plan)})

    # -- runs --

    async def runs(self, asked: Asked) -> Response:
        self.open_server()
        query, status = asked.query, asked.query.get("status", "")
        slow = query.get("slow_ms")
        wanted = Filter(
            route=query.get("route", ""),
            status=status,
            tenant=query.get("tenant") or None,
            failed=asked.flag("failed"),
            unresolved=asked.flag("unresolved"),
            slower_than_ns=None if not slow else asked.number("slow_ms", 0, 10**9) * 1_000_000,
            since_unix_ns=_unix_ns(asked, "since"),
            until_unix_ns=_unix_ns(asked, "until"),
        )
        limit = asked.number("limit", 100, _MOST_RUNS)
        found, more = await self.lists.search(wanted, limit, said=query.get("id", ""), live_only=status == "running")
        archive = self.desk.archive
        return as_json({"runs": found, "more": more, "trouble": None if archive is None else archive.trouble})

    async def run(self, asked: Asked) -> Response:
        found = await self.found(asked.rest[0])
        rows, spans = asked.number("rows", ROWS, _MOST_ROWS), asked.number("spans", SPANS, _MOST_SPANS)
        opened = await self.desk.open(found)
        plan, why_not = self.desk.plan(found)

        def make() -> bytes:
            told = opened.view(rows=(0, rows), spans=(0, spans))
            told["header"] |= {"source": found.source, "replayable": plan is not None, "why_not": why_not or None}
            told["header"]["journal"] = None if found.stored is None else standing(found.stored, opened.text)
            if found.stored is not None and told["header"]["journal"]["waits"] is not None:
                told["header"]["status"], told["causes"] = "parked", []
            return encode_json(told)

        return encoded(await self.desk.work(make, not found.is_small))

    async def records(self, asked: Asked) -> Response:
        begin, count = asked.number("from", 0, 10**15), asked.number("count", ROWS, _MOST_ROWS)
        found = await self.found(asked.rest[0])
        opened = await self.desk.open(found)
        return encoded(await self.desk.work(lambda: encode_json(opened.rows(begin, count)), count > SMALL))

    async def spans(self, asked: Asked) -> Response:
        begin, count = asked.number("from", 0, 10**15), asked.number("count", SPANS, _MOST_SPANS)
        found = await self.found(asked.rest[0])
        opened = await self.desk.open(found)
        return encoded(await self.desk.work(lambda: encode_json(opened.spans(begin, count)), count > SMALL))

    async def text(self, asked: Asked) -> Response:
        found = await self.found(asked.rest[0])

        def make() -> str:
            result = found.result
            return format_timeline(result.timeline, unresolved=result.unresolved, hidden=self.desk.hidden)[:_MOST_TEXT]

        return as_json({"text": await self.desk.work(make, not found.is_small)})

    async def diff(self, asked: Asked) -> Response:
        if "a" not in asked.query or "b" not in asked.query:
            refuse(400, "name two runs: a= and b=")
        a, b = await self.found(asked.query["a"]), await self.found(asked.query["b"])
        made = await self.desk.work(
            lambda: diff_json(diff(a.result, b.result, self.desk.hidden)), not (a.is_small and b.is_small)
        )
        sides = {name: {**await self.lists.told_found(one), **made[name]} for name, one in (("a", a), ("b", b))}
        return as_json({**made, **sides})

    async def replay(self, asked: Asked) -> Response:
        found = await self.found(asked.rest[0])
        wanted = await asked.body(Wanted)
        plan, why_not = self.desk.plan(found)
        if plan is None:
            refuse(409, why_not)
        opened = await self.desk.open(found)
        made = None
        with trio.move_on_after(_REPLAY_SECONDS):
            made = await self.desk.rerun(partial(replayed, self.desk, found, opened, plan, wanted))
        if made is None:
            refuse(503, f"the replay took longer than {_REPLAY_SECONDS:g} s")
        return encoded(made)

    # -- finding --

    def open_server(self) -> Server:
        if self.server is None:
            refuse(503, "the app is not open yet")
        return self.server

    async def found(self, said: str) -> Found:
        found = await self.desk.find(said)
        if found is None:
            refuse(404, "there is no such run, or more than one that begins so")
        return found


_Endpoint: TypeAlias = Callable[[Api, Asked], Awaitable[Response]]

#: (method, path): a star stands for one part of it.
_ENDPOINTS: Final[dict[tuple[str, ...], dict[str, _Endpoint]]] = {
    ("session",): {"GET": Api.session},
    ("overview",): {"GET": Api.overview},
    ("feed",): {"GET": Api.watch},
    ("flows",): {"GET": Api.flows},
    ("flows", "*", "graph"): {"GET": Api.flow_graph},
    ("runs",): {"GET": Api.runs},
    ("runs", "*"): {"GET": Api.run},
    ("runs", "*", "records"): {"GET": Api.records},
    ("runs", "*", "spans"): {"GET": Api.spans},
    ("runs", "*", "text"): {"GET": Api.text},
    ("runs", "*", "replay"): {"POST": Api.replay},
    ("diff",): {"GET": Api.diff},
    ("queues",): {"GET": lambda api, asked: api.jobs.queues(asked)},
    ("queues", "*", "pause"): {"POST": lambda api, asked: api.jobs.pause(asked)},
    ("jobs",): {"GET": lambda api, asked: api.jobs.search(asked)},
    ("jobs", "*"): {"GET": lambda api, asked: api.jobs.one(asked)},
    ("jobs", "*", "retry"): {"POST": lambda api, asked: api.jobs.act(asked, "retry")},
    ("jobs", "*", "cancel"): {"POST": lambda api, asked: api.jobs.act(asked, "cancel")},
    ("jobs", "*", "delete"): {"POST": lambda api, asked: api.jobs.act(asked, "delete")},
    ("matching",): {
        "GET": lambda api, asked: api.jobs.count(asked),
        "POST": lambda api, asked: api.jobs.act_on_many(asked),
    },
    ("cases",): {"GET": lambda api, asked: api.cases.search(asked)},
    ("cases", "*", "retry"): {"POST": lambda api, asked: api.cases.retry(asked)},
    ("cases", "*", "resolve"): {"POST": lambda api, asked: api.cases.resolve(asked)},
}


def _endpoint(method: str, path: tuple[str, ...]) -> tuple[_Endpoint, tuple[str, ...]]:
    pattern = tuple("*" if at == 1 else part for at, part in enumerate(path))
    found = _ENDPOINTS.get(pattern)
    if found is None:
        refuse(404, "there is nothing here")
    if method not in found:
        raise Refused(wrong_method(found))
    return found[method], path[1:2]


def _unix_ns(asked: Asked, name: str) -> int | None:
    """A time in milliseconds since 1970, perhaps with a fraction."""
    said = asked.query.get(name)
    if not said:
        return None
    if len(said) > 30 or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", said):
        refuse(400, f"{name} is in milliseconds since 1970")
    return round(float(said) * 1e6)
