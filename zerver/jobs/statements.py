"""What is asked of the tables of jobs, as statements.

Law: one statement decides. That a job is given to one worker is decided by the update that gives it; whether a verdict
counts is looked at by the statement that writes it. Nothing is read first and believed later, and all of it by an
index.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from zerver.core.jobs import RUN_PREFIX
from zerver.core.priorities import PRIORITIES, RANK
from zerver.jobs.port import MOST_RESCUES, STATES, SUSPECT, Job, JobState, QueueRule, Verdict, Wanted
from zerver.sql.dialects import Dialect
from zerver.sql.driver import Statement
from zerver.sql.enqueueing import as_json, wake

#: Jobs whose time has come, made available by one take.
_MOST_DUE: Final = 1000

#: Jobs that one call rescues.
_MOST_RESCUED: Final = 500

_FINAL: Final = "('done', 'dead', 'cancelled')"

#: States that people look for, and few jobs are in: the index `zerver_jobs_aside` has them by an expression.
_ASIDE: Final[tuple[JobState, ...]] = ("waiting", "parked", "dead", "cancelled")

#: A job j is in that index, in its own words. Of one state alone, SQLite would put the text in the expression's place.
_IS_ASIDE: Final = "({})".format(" or ".join(f"j.state = '{state}'" for state in _ASIDE))

#: The columns of a Job, in the order of its fields.
COLUMNS: Final = (
    "job_id, seq, flow, queue, body, tenant, rank, state, due, attempt, attempts, fence, rescues, owner, run_id, "
    "error, result, ordered, began, ended, releases, awaits, uniq, origin, parent, done, total, note, settled"
)


def job_of(row: Sequence[Any]) -> Job:
    """The job that a row of COLUMNS says."""
    given = list(row)
    given[6] = PRIORITIES[given[6]]
    return Job(*given)


def order_of(job: Job) -> tuple[int, int, int]:
    """By priority, then by time, then as they were ordered."""
    return RANK[job.priority], job.at_unix_ns, job.seq


# ---- taking ---------------------------------------------------------------------------------


def take(dialect: Dialect, owner: str, rules: Sequence[QueueRule], count: int) -> list[Statement]:
    """Make available what is due; and take. The last answers with the jobs; the first with the count of wakes, where
    the database does not tell its clients.
    """
    wall = dialect.wall()
    statements = [] if dialect.notifies else [Statement("select wakes from zerver_jobs_store")]
    statements.append(
        Statement(
            "update zerver_jobs set state = 'available' where seq in (select seq from zerver_jobs "
            f"where state = 'scheduled' and due <= {wall} order by due limit {_MOST_DUE} {dialect.skip})"
        )
    )
    limited = sorted(rule.name for rule in rules if rule.limit is not None or rule.per_tenant is not None)
    if limited and dialect.lock:
        # Counting and taking are one step only if nobody else takes of this queue meanwhile.
        marks = ", ".join("?" * len(limited))
        text = f"select name from zerver_queues where name in ({marks}) order by name {dialect.lock}"
        statements.append(Statement(text, limited))
    params: list[object] = []
    suspect = _suspect(dialect, owner, rules, params)
    sources = [_candidates(dialect, rule, count, params) for rule in rules]
    ready = " union all ".join(f"select seq, rank, due from {source} as of_{i}" for i, source in enumerate(sources))
    text = (
        f"with suspect as materialized ({suspect}), "
        f"picked as materialized (select seq from ({ready}) as ready where {dialect.durable} "
        "order by rank, due, seq limit ?) "
        "update zerver_jobs set state = 'running', owner = ?, fence = fence + 1, attempt = attempt + 1, "
        f"run_id = case when underway = 1 then run_id else '{RUN_PREFIX}' || job_id || '.' || (settled + 1) end, "
        f"began = {wall} where seq in (select seq from picked) and state = 'available' returning {COLUMNS}"
    )
    statements.append(Statement(text, (*params, count, owner)))
    return statements


#: A job k may be taken beside others; or it is the one suspect that may be. Whoever finds none asks no further.
_BESIDE: Final = f"(k.rescues < {SUSPECT} or k.seq = (select seq from suspect))"


def _suspect(dialect: Dialect, owner: str, rules: Sequence[QueueRule], params: list[object]) -> str:
    """The first job that may begin of those that a worker has died with, if this one has none of them under way."""
    room = ""
    params += [rule.name for rule in rules]
    runs = "select count(*) from zerver_jobs r where r.state = 'running' and r.queue = j.queue"
    for rule in rules:
        for most, of in ((rule.limit, ""), (rule.per_tenant, " and r.tenant = j.tenant")):
            if most is not None:
                room += f"and (j.queue <> ? or ({runs}{of}) < ?) "
                params += [rule.name, most]
    params.append(owner)
    return (
        f"select j.seq from zerver_jobs j where j.state = 'available' and j.owner = '' and j.rescues >= {SUSPECT} "
        f"and j.queue in ({', '.join('?' * len(rules))}) "
        f"and not exists (select 1 from zerver_queues q where q.name = j.queue and q.paused = 1) {room}"
        "and not exists (select 1 from zerver_jobs s "
        f"where s.state = 'running' and s.owner = ? and s.rescues >= {SUSPECT}) "
        f"order by j.rank, j.due, j.seq limit 1 {dialect.skip}"
    )


def _candidates(dialect: Dialect, rule: QueueRule, count: int, params: list[object]) -> str:
    """The first jobs of a queue that may begin, as a table; its parameters are added to `params`."""
    open_ = "not exists (select 1 from zerver_queues q where q.name = ? and q.paused = 1)"
    if rule.limit is None and rule.per_tenant is None:
        params += [rule.name, rule.name, count]
        return (
            f"(select seq, rank, due from zerver_jobs k where state = 'available' and queue = ? and {open_} "
            f"and {_BESIDE} order by rank, due, seq limit ? {dialect.skip})"
        )
    if rule.per_tenant is None:
        source = f"zerver_jobs k where state = 'available' and queue = ? and {open_} and {_BESIDE}"
        params += [rule.name, rule.name]
    else:
        source = f"{_of_tenants(dialect)} as of_tenants where {open_}"
        room = [rule.per_tenant, rule.name]
        params += [rule.name, rule.name, *_ordered(dialect, rule, room), rule.name]
    if rule.limit is None:
        params.append(count)
        return f"(select seq, rank, due from {source} order by rank, due, seq limit ?)"
    params += [rule.limit, rule.limit, count, count, rule.limit, rule.name]
    return f"(select seq, rank, due from {source} order by rank, due, seq limit {_ROOM})"


#: How many more of a queue may run: at least none, and at most as many as are asked for.
_ROOM: Final = (
    "(select case when count(*) > ? then 0 when ? - count(*) > ? then ? else ? - count(*) end "
    "from zerver_jobs r where r.state = 'running' and r.queue = ?)"
)

#: Tenants that have something to begin, one step of the index each.
_TENANTS: Final = (
    "with recursive tenants (tenant) as (select min(tenant) from zerver_jobs where state = 'available' and queue = ? "
    "union all select (select min(k.tenant) from zerver_jobs k where k.state = 'available' and k.queue = ? "
    "and k.tenant > tenants.tenant) from tenants where tenants.tenant is not null) "
)

_RUNS: Final = (
    "select count(*) from zerver_jobs r where r.state = 'running' and r.queue = ? and r.tenant = tenants.tenant"
)


def _of_tenants(dialect: Dialect) -> str:
    """Of each tenant as many as may still run, as a table."""
    of_tenant = (
        "from zerver_jobs k where k.state = 'available' and k.queue = ? and k.tenant = tenants.tenant "
        f"and {_BESIDE} order by k.rank, k.due, k.seq limit"
    )
    if dialect.lateral:
        some = f"select k.seq, k.rank, k.due {of_tenant} (select greatest(0, ? - ({_RUNS})))"
        return f"({_TENANTS} select c.seq, c.rank, c.due from tenants cross join lateral ({some}) c)"
    first = f"select k.seq, k.rank, k.due {of_tenant} ?"
    numbered = f"select seq, row_number() over (order by rank, due, seq) as number from ({first})"
    some = f"select seq from ({numbered}) where number <= ? - ({_RUNS})"
    return f"({_TENANTS} select j.seq, j.rank, j.due from tenants cross join zerver_jobs j on j.seq in ({some}))"


def _ordered(dialect: Dialect, rule: QueueRule, room: list[object]) -> list[object]:
    """The parameters of `_of_tenants` behind those of the tenants."""
    return [rule.name, *room] if dialect.lateral else [rule.name, rule.per_tenant, *room]


def keep_rules(rules: Sequence[QueueRule]) -> list[Statement]:
    """Note how queues are limited: who takes has a row to lock, and who asks why is told."""
    text = (
        "insert into zerver_queues (name, most, most_of_tenant) values (?, ?, ?) "
        "on conflict (name) do update set most = excluded.most, most_of_tenant = excluded.most_of_tenant"
    )
    return [Statement(text, (rule.name, rule.limit, rule.per_tenant)) for rule in sorted(rules, key=lambda r: r.name)]


def rescue(dialect: Dialect) -> Statement:
    """Take jobs away from workers that live no more; answers with them, in any order."""
    wall, spent = dialect.wall(), f"rescues + 1 >= {MOST_RESCUES}"
    lapsed = (
        "select seq from zerver_jobs j where state = 'running' and not exists (select 1 from zerver_job_owners o "
        f"where o.name = j.owner and o.boot = ? and o.lapses > {dialect.now()}) limit {_MOST_RESCUED} {dialect.skip}"
    )
    return Statement(
        f"with lapsed as materialized ({lapsed}) update zerver_jobs set "
        f"state = case when stopping <> '' then 'cancelled' when {spent} then 'dead' else 'available' end, "
        f"ended = case when stopping <> '' or {spent} then {wall} else 0 end, "
        "error = case when stopping <> '' then stopping else 'its worker ' || owner || ' died while it ran' end, "
        "rescues = rescues + 1, attempt = attempt - 1, fence = fence + 1, owner = '' "
        f"where seq in (select seq from lapsed) and state = 'running' returning {COLUMNS}",
        (dialect.boot,),
    )


# ---- what an attempt came to ----------------------------------------------------------------

_VERDICT: Final = (
    *(("its_id", "text"), ("its_fence", "bigint"), ("state", "text"), ("due", "bigint"), ("result", "text")),
    *(("error", "text"), ("free", "bigint"), ("ran", "bigint")),
)


def settle(dialect: Dialect, verdicts: Sequence[tuple[str, int, Verdict]]) -> list[Statement]:
    """Attempts have ended. The first one answers with the id and the fence of those that it has settled; `freed` is to
    follow, if anybody may wait for one of them.
    """
    given = as_json([{"its_id": job_id, "its_fence": fence, **_said(verdict)} for job_id, fence, verdict in verdicts])
    return [Statement(_settles(dialect), (given,))]


@lru_cache
def _settles(dialect: Dialect) -> str:
    return (
        f"update zerver_jobs as j set {_settled(dialect)} from {dialect.records(_VERDICT)} v "
        f"where j.job_id = v.its_id and j.fence = v.its_fence and j.state = 'running' and {dialect.durable} "
        "returning job_id, fence"
    )


def settled(verdicts: Sequence[tuple[str, int, Verdict]]) -> Statement:
    """Which of them are settled, by id and fence: a verdict that is given again is true, and changes nothing."""
    ids = [job_id for job_id, _, _ in verdicts]
    text = f"select job_id, fence from zerver_jobs where job_id in ({', '.join('?' * len(ids))}) and state <> 'running'"
    return Statement(text, ids)


def unpark(dialect: Dialect, run_id: str, verdict: Verdict) -> list[Statement]:
    """The run of this id has ended, wherever. The first one answers with the job, if there is one."""
    given = as_json([{"its_id": "", "its_fence": 0, **_said(verdict)}])
    return [
        Statement(
            f"update zerver_jobs as j set {_settled(dialect)}, fence = j.fence + 1 from {dialect.records(_VERDICT)} v "
            f"where j.run_id = ? and j.underway = 1 and j.state not in {_FINAL} returning seq",
            (given, run_id),
        ),
        *freed(dialect),
    ]


def _said(verdict: Verdict) -> dict[str, Any]:
    return {
        "state": verdict.state,
        "due": verdict.at_unix_ns,
        "result": verdict.result,
        "error": verdict.error,
        "free": int(not verdict.counts),
        "ran": int(verdict.ran),
    }


def _settled(dialect: Dialect) -> str:
    """What becomes of a job j by a verdict v. One that is to be stopped is not begun again."""
    wall = dialect.wall()
    stopped = "(j.stopping <> '' and v.state in ('scheduled', 'parked'))"
    return (
        f"state = case when {stopped} then 'cancelled' when v.state = 'scheduled' and v.due <= {wall} then 'available' "
        "else v.state end, "
        f"due = case when v.state <> 'scheduled' then j.due when v.due > {wall} then v.due else {wall} end, "
        "settled = case when v.state = 'parked' then j.settled else j.settled + v.ran end, "
        "attempt = j.attempt - v.free, result = v.result, owner = '', stopping = '', "
        f"error = case when {stopped} or (v.error = '' and v.state <> 'done') then j.stopping else v.error end, "
        f"underway = case when v.state = 'parked' and not {stopped} then 1 else 0 end, "
        f"ended = case when {stopped} or v.state in {_FINAL} then {wall} else 0 end, "
        "frees = case when v.state = 'done' and j.releases <> '' then 1 else 0 end"
    )


def freed(dialect: Dialect) -> list[Statement]:
    """Tell those who wait for jobs that are done by this transaction: others' are not seen, they have ended theirs."""
    return [
        Statement(
            "update zerver_jobs as j set awaits = awaits - f.number from (select releases, count(*) as number "
            "from zerver_jobs where frees = 1 group by releases) f where j.job_id = f.releases"
        ),
        Statement("update zerver_jobs set frees = 0 where frees = 1"),
        *begin_awaited(dialect),
    ]


def begin_awaited(dialect: Dialect) -> list[Statement]:
    """Those who wait for nobody any more may begin."""
    wall = dialect.wall()
    ready = "state = 'waiting' and awaits <= 0"
    results = (
        "(select coalesce(m.result, 'null') as result from zerver_jobs m "
        "where m.releases = j.job_id and m.releases <> '' order by m.place, m.seq)"
    )
    one = f"(select result from {results} as one)"
    many = f"(select '[' || {dialect.joined} || ']' from {results} as several)"
    return [
        wake(dialect, f"exists (select 1 from zerver_jobs where {ready})"),
        Statement(
            f"update zerver_jobs as j set body = case when j.body is not null then j.body "
            f"when j.awaited = 1 then {one} when j.awaited > 1 then {many} end, "
            f"state = case when j.due > {wall} then 'scheduled' else 'available' end, "
            f"due = case when j.due > {wall} then j.due else {wall} end where {ready}"
        ),
    ]


# ---- by hand --------------------------------------------------------------------------------


def where(wanted: Wanted) -> tuple[str, list[object]]:
    """A condition on zerver_jobs as j, and its parameters."""
    parts: list[str] = []
    params: list[object] = []
    if wanted.states:
        parts.append(_of_states([state for state in STATES if state in wanted.states]))
    chosen = (("j.queue", wanted.queues), ("j.flow", wanted.flows), ("j.tenant", wanted.tenants))
    for column, among in (*chosen, ("j.job_id", wanted.ids)):
        if among:
            parts.append(f"{column} in ({', '.join('?' * len(among))})")
            params += among
    if wanted.prefix:
        # Not `like`: it takes % and _ for signs of its own, and SQLite's passes over the case of letters.
        parts.append("substr(j.job_id, 1, ?) = ?")
        params += [len(wanted.prefix), wanted.prefix]
    if wanted.text:
        parts.append("replace(j.error, ?, '') <> j.error")
        params.append(wanted.text)
    return " and ".join(parts) or "1 = 1", params


def _of_states(states: Sequence[JobState]) -> str:
    """A condition on zerver_jobs as j. The states stand in the text: of parameters no planner knows which index holds
    them.
    """
    if not states:
        return "1 = 0"
    listed = ", ".join(map(repr, states))
    return f"{_IS_ASIDE} and j.state || '' in ({listed})" if {*states} <= {*_ASIDE} else f"j.state in ({listed})"


def search(wanted: Wanted, count: int, before_seq: int | None) -> Statement:
    condition, params = where(wanted)
    if before_seq is not None:
        condition += " and j.seq < ?"
        params.append(before_seq)
    return Statement(
        f"select {COLUMNS} from zerver_jobs j where {condition} order by j.seq desc limit ?", (*params, count)
    )


#: Jobs that nobody who waits has still to read the result of.
_UNREAD: Final = "not exists (select 1 from zerver_jobs s where s.job_id = j.releases and s.state = 'waiting')"


#: Jobs by queue and state. Those that are to be done are found by the indexes of their states; those that are over are
#: as many as there ever were, and all walked over.
COUNTS: Final = " union all ".join(
    f"select queue, state, count(*) from zerver_jobs j where {condition} group by queue, state"
    for condition in (
        *("j.state = 'available'", "j.state = 'scheduled'", "j.state = 'running'"),
        _of_states(["waiting", "parked"]),
    )
)
COUNTS_OVER: Final = f"select queue, state, count(*) from zerver_jobs where state in {_FINAL} group by queue, state"

#: Of a queue, three times: since when the first job that may begin has been able to.
OLDEST: Final = "select min(due) from ({}) as firsts".format(
    " union all ".join(
        f"select min(due) as due from zerver_jobs where state = 'available' and queue = ? and rank = {rank}"
        for rank in RANK.values()
    )
)

#: What stands around a job; see `Circumstances`. Parameters: its queue, twice, its tenant, its queue.
CIRCUMSTANCES: Final = (
    "select coalesce(max(q.paused), 0), max(q.most), max(q.most_of_tenant), "
    "(select count(*) from zerver_jobs where state = 'running' and queue = ?), "
    "(select count(*) from zerver_jobs where state = 'running' and queue = ? and tenant = ?), "
    "(select count(*) from zerver_job_owners) from zerver_queues q where q.name = ?"
)


def retry(dialect: Dialect, wanted: Wanted) -> list[Statement]:
    """The first one tells how many. Of those with one unique text only the newest may begin again."""
    condition, params = where(wanted)
    newer = "select 1 from zerver_jobs k where k.uniq = j.uniq and k.uniq <> '' and k.seq > j.seq"
    newest = f"j.uniq = '' or not exists ({newer})"
    return [
        Statement(
            "update zerver_jobs as j set state = case when awaited > 0 and began = 0 then 'waiting' else 'available' "
            f"end, due = {dialect.wall()}, attempt = 0, rescues = 0, fence = fence + 1, error = '', stopping = '', "
            "ended = 0, underway = 0, holds = nullif(uniq, '') "
            f"where {condition} and j.state in ('dead', 'cancelled', 'scheduled') and ({newest})",
            params,
        ),
        *begin_awaited(dialect),
    ]


def cancel(dialect: Dialect, wanted: Wanted, reason: str) -> Statement:
    condition, params = where(wanted)
    return Statement(
        "update zerver_jobs as j set stopping = case when j.state = 'running' then ? else '' end, "
        "error = case when j.state = 'running' then j.error else ? end, "
        "underway = case when j.state = 'running' then j.underway else 0 end, "
        f"ended = case when j.state = 'running' then 0 else {dialect.wall()} end, "
        "state = case when j.state = 'running' then j.state else 'cancelled' end "
        f"where {condition} and j.state not in {_FINAL} and j.stopping = ''",
        (reason, reason, *params),
    )


def delete(wanted: Wanted) -> Statement:
    condition, params = where(wanted)
    return Statement(f"delete from zerver_jobs as j where {condition} and j.state in {_FINAL} and {_UNREAD}", params)


def prune(dialect: Dialect, ended_before_unix_ns: int, count: int) -> Statement:
    """Not those whose unique text still holds: without them it could be ordered again."""
    return Statement(
        "delete from zerver_jobs where seq in (select seq from zerver_jobs j where state in ('done', 'cancelled') "
        f"and ended < ? and (holds is null or holds_until <= {dialect.wall()}) and {_UNREAD} order by ended limit ?)",
        (ended_before_unix_ns, count),
    )


def forget_owners(dialect: Dialect, seconds: float) -> Statement:
    """Forget workers whose lease has lapsed so long ago, and that have nothing any more."""
    return Statement(
        f"delete from zerver_job_owners where (boot <> ? or lapses < {dialect.now()} - ?) and not exists "
        "(select 1 from zerver_jobs j where j.owner = zerver_job_owners.name and j.state = 'running')",
        (dialect.boot, int(seconds * 1e9)),
    )
