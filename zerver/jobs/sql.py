"""A store of jobs in SQL, on any driver of the port: an own database, or one that the app has open.

Law: every verb is one transaction, and what is acknowledged is as durable as the driver was opened to make it. Orders
and verdicts of tasks that come at once go in one transaction.

What makes it right when two take at once: SQLite has one writer at a time; in PostgreSQL those who take pass over rows
that somebody else is taking (`skip locked`), and a limit is counted by who holds the queue's row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from zerver.core.orders import check_orders
from zerver.errors import DriverError, JournalUnavailable, LeaseLost, StatementError
from zerver.jobs import statements as s
from zerver.jobs.batches import Batches
from zerver.jobs.port import (
    STATES,
    Job,
    JobState,
    JobStore,
    Order,
    QueueRule,
    QueueState,
    ScheduleState,
    Verdict,
    Wanted,
)
from zerver.jobs.reasons import Circumstances, reason
from zerver.jobs.schema import index_tenants
from zerver.jobs.waking import Waking
from zerver.sql.asking import Asker
from zerver.sql.dialects import Dialect
from zerver.sql.driver import Answer, Changed, Driver, Rows, Statement, at_once
from zerver.sql.enqueueing import MOST_ORDERS, inserting, order_statements, standing, told, wake

#: Orders of several tasks in one transaction; more at once than these are no small ones, and have their own.
_MOST_SHARED: Final = 500

#: Rounds in which an order is put in whose place is taken by a job that is gone when its name is asked for.
_ROUNDS: Final = 5

#: Verdicts in one transaction.
_MOST_SETTLED: Final = 500

#: Jobs taken here of which it is kept that nobody waits for them.
_MOST_ALONE: Final = 20_000

#: Seconds that a count of what is over may take to be made each time; and else, for how many times as long it stands.
_LONG: Final = 0.02
_SPARSE: Final = 100.0

#: Seconds after which workers that have nothing any more are forgotten.
_FORGET_SECONDS: Final = 86_400.0


class SqlJobs(JobStore):
    """A store on a driver; made by `open_jobs_of` and the other openers, which have its tasks run."""

    def __init__(self, driver: Driver, dialect: Dialect, *, place: str, patience: float = float("inf")) -> None:
        self.driver = driver
        self.dialect = dialect
        self.waking = Waking(driver, dialect)
        self.ordering = Batches(self._order, _MOST_SHARED)
        self.settling = Batches(self._settle, _MOST_SETTLED)
        self._place = place
        self._write = at_once(driver)
        self._ask = Asker(place, patience)
        self._kept: dict[str, QueueRule] = {}
        self._alone: set[str] = set()  # jobs taken here, and not settled, that nobody waits for: nobody is to be told
        self._suspects: set[str] = set()  # jobs taken here, and not settled, beside which no other suspect is taken
        self._counting = trio.Lock()
        self._over: Sequence[tuple[object, ...]] = ()
        self._count_again = -float("inf")
        self._counts = {"ordered": 0, "taken": 0, "settled": 0, "refused": 0, "rescued": 0}

    # -- for those who order, and for workers --

    async def order(self, orders: Sequence[Order]) -> list[str]:
        check_orders(orders)
        return await (self.ordering.ask(orders) if len(orders) <= _MOST_SHARED else self._order(orders))

    async def _order(self, orders: Sequence[Order]) -> list[str]:
        """They are in when the first round is over. What it put in has the ids that it was given; for the others it is
        looked up afterwards what stands there, and ordered again if that has been deleted meanwhile.
        """
        if self.dialect.taken and not any(order.unique for order in orders):
            try:
                await self._insert(orders, range(len(orders)), new=True)
            except _Taken:  # asked for again: what of them stands there is to be looked up
                pass
            else:
                self._counts["ordered"] += len(orders)
                return [order.job_id for order in orders]
        ids: dict[int, str] = {}
        for _ in range(_ROUNDS):
            left = [number for number in range(len(orders)) if number not in ids]
            for part, inserted in await self._insert(orders, left, new=False):
                ids.update(await self._ids(part, orders, inserted))
            if len(ids) == len(orders):
                self._counts["ordered"] += len(orders)
                return [ids[number] for number in range(len(orders))]
        raise JournalUnavailable(f"{self._place}: what stood in an order's way was deleted, again and again")

    async def _insert(
        self, orders: Sequence[Order], numbers: Sequence[int], *, new: bool
    ) -> list[tuple[Sequence[int], int]]:
        """Put in those of these numbers, in one transaction: parts of the numbers, and how many of each were put in.

        new: see `inserting`. Raises _Taken, and nothing is put in.
        """
        parts = [numbers[at : at + MOST_ORDERS] for at in range(0, len(numbers), MOST_ORDERS)]
        inserts = [inserting([orders[number] for number in part], self.dialect, new=new) for part in parts]
        statements = [*(one for insert in inserts for one in insert), *told(self.dialect)]
        answers = iter(await self._ask(lambda: self._put(statements, new=new)))
        self.waking.ordered()
        return [
            (part, [_count(next(answers)) for _ in insert][-1]) for part, insert in zip(parts, inserts, strict=True)
        ]

    async def _put(self, statements: Sequence[Statement], *, new: bool) -> list[Answer]:
        try:
            return await self._write(statements)
        except StatementError as error:
            if new and error.code == self.dialect.taken:
                raise _Taken from None
            raise

    async def _ids(self, part: Sequence[int], orders: Sequence[Order], inserted: int) -> dict[int, str]:
        """By the number of an order, the id of the job that stands there, if there is one still."""
        if inserted == len(part):
            return {number: orders[number].job_id for number in part}
        statement = standing([orders[number] for number in part], self.dialect)
        found = await self._ask(lambda: self.driver.fetch(statement))
        return {number: str(row[1]) for number, row in zip(part, found.rows, strict=True) if row[1] is not None}

    def _parts(self, orders: Sequence[Order]) -> list[list[Statement]]:
        """What puts orders in; the last statement of each part answers with its ids."""
        parts = [orders[at : at + MOST_ORDERS] for at in range(0, len(orders), MOST_ORDERS)]
        return [order_statements(part, self.dialect) for part in parts]

    async def renew(self, owner: str, lease_seconds: float) -> None:
        text = (
            f"insert into zerver_job_owners (name, boot, lapses) values (?, ?, {self.dialect.now()} + ?) "
            "on conflict (name) do update set boot = excluded.boot, lapses = excluded.lapses"
        )
        await self._one(Statement(text, (owner, self.dialect.boot, int(lease_seconds * 1e9))))

    async def take(self, owner: str, rules: Sequence[QueueRule], count: int) -> list[Job]:
        self.waking.seen()
        if not rules or count < 1:
            await trio.lowlevel.checkpoint()
            return []
        changed = [rule for rule in rules if self._kept.get(rule.name, QueueRule(rule.name)) != rule]
        if changed:
            if any(rule.per_tenant is not None for rule in changed):
                # However long it takes: cut short, it would begin anew with each take, and never come to its end.
                await Asker(self._place)(lambda: index_tenants(self.driver, self.dialect))
            await self._all(s.keep_rules(changed))
            self._kept.update((rule.name, rule) for rule in changed)
        *first, taken = await self._ask(lambda: self._write(s.take(self.dialect, owner, rules, count)))
        if not self.dialect.notifies:
            self.waking.seen_wakes(_rows(first[0])[0][0])
        jobs = _jobs(taken)
        if len(self._alone) > _MOST_ALONE:  # those that were taken away: of all others it has to be looked up, then
            self._alone.clear()
        self._alone.update(job.job_id for job in jobs if not job.releases)
        self._suspects.update(job.job_id for job in jobs if job.is_suspect)
        self._counts["taken"] += len(jobs)
        return sorted(jobs, key=s.order_of)

    async def rescue(self) -> list[Job]:
        jobs = _jobs((await self._all([s.rescue(self.dialect)]))[0])
        if jobs:
            self._counts["rescued"] += len(jobs)
            await self._woken()
        return sorted(jobs, key=s.order_of)

    async def began(self, job_id: str, fence: int, run_id: str) -> None:
        text = "update zerver_jobs set run_id = ?, underway = 1 where job_id = ? and fence = ? and state = 'running'"
        if not await self._one(Statement(text, (run_id, job_id, fence))):
            raise LeaseLost(f"job {job_id} is another worker's by now, or over; this one's fence was {fence}")

    async def settle(self, verdicts: Sequence[tuple[str, int, Verdict]]) -> list[bool]:
        if not verdicts:
            await trio.lowlevel.checkpoint()
            return []
        return await self.settling.ask(verdicts)

    async def _settle(self, verdicts: Sequence[tuple[str, int, Verdict]]) -> list[bool]:
        ids = {job_id for job_id, _, _ in verdicts}
        frees = not ids <= self._alone
        statements = [*s.settle(self.dialect, verdicts), *(s.freed(self.dialect) if frees else ())]
        answers = await self._ask(lambda: self._write(statements))
        self._alone -= ids
        held = {tuple(row) for row in _rows(answers[0])}
        if len(held) < len(verdicts):  # given again, or another's by now
            held |= {tuple(row) for row in (await self._ask(lambda: self.driver.fetch(s.settled(verdicts)))).rows}
        theirs = [(job_id, fence) in held for job_id, fence, _ in verdicts]
        self._counts["settled"] += sum(theirs)
        self._counts["refused"] += len(theirs) - sum(theirs)
        makes_room = bool(ids & self._suspects) or any(rule != QueueRule(rule.name) for rule in self._kept.values())
        self._suspects -= ids
        begins = frees and _count(answers[-1])
        if makes_room or begins or any(verdict.state == "scheduled" for _, _, verdict in verdicts):
            self.waking.wake()  # there may be room where there was a limit, or something to begin
        return theirs

    async def unpark(self, run_id: str, verdict: Verdict) -> bool:
        answers = await self._all(s.unpark(self.dialect, run_id, verdict))
        self.waking.wake()
        return bool(_rows(answers[0]))

    async def progress(self, job_id: str, done: int, total: int, note: str) -> None:
        text = "update zerver_jobs set done = ?, total = ?, note = ? where job_id = ? and state = 'running'"
        await self._one(Statement(text, (done, total, note, job_id)))

    async def wait(self) -> None:
        try:
            await self.waking.wait()
        except DriverError as error:
            raise JournalUnavailable(f"{self._place}: {error}", getattr(error, "retry_after", 0.0)) from error

    # -- for people --

    async def find(self, job_id: str) -> Job | None:
        found = _jobs(await self._read(f"select {s.COLUMNS} from zerver_jobs where job_id = ?", job_id))
        return found[0] if found else None

    async def search(self, wanted: Wanted, count: int = 50, before_seq: int | None = None) -> list[Job]:
        statement = s.search(wanted, count, before_seq)
        return _jobs(await self._ask(lambda: self.driver.fetch(statement)))

    async def retry(self, wanted: Wanted) -> int:
        answers = await self._all([*s.retry(self.dialect, wanted), wake(self.dialect)])
        self.waking.wake()
        return _count(answers[0])

    async def cancel(self, wanted: Wanted, reason: str) -> int:
        return await self._one(s.cancel(self.dialect, wanted, reason or "cancelled"))

    async def cancelled(self, owner: str) -> dict[str, str]:
        text = "select job_id, stopping from zerver_jobs where owner = ? and stopping <> '' and state = 'running'"
        return {str(job_id): str(why) for job_id, why in (await self._read(text, owner)).rows}

    async def delete(self, wanted: Wanted) -> int:
        return await self._one(s.delete(wanted))

    async def pause(self, queue: str, paused: bool) -> None:
        text = (
            "insert into zerver_queues (name, paused) values (?, ?) "
            "on conflict (name) do update set paused = excluded.paused"
        )
        await self._all([Statement(text, (queue, int(paused))), wake(self.dialect)])
        self.waking.wake()

    async def queues(self) -> list[QueueState]:
        counted = [*(await self._read(s.COUNTS)).rows, *await self._counted_over()]
        kept = await self._read("select name, paused, most, most_of_tenant from zerver_queues")
        rows: list[Any] = [*kept.rows, *((row[0], 0, None, None) for row in counted)]
        known: dict[str, Any] = {}
        for name, *rest in rows:
            known.setdefault(name, rest)
        found = []
        for name in sorted(known):
            paused, most, most_of_tenant = known[name]
            counts: dict[JobState, int] = dict.fromkeys(STATES, 0)
            counts.update({row[1]: row[2] for row in counted if row[0] == name})  # type: ignore[misc]  # as stored
            oldest = await self._read(s.OLDEST, *[name] * 3) if counts["available"] else None
            since: Any = oldest.rows[0][0] if oldest is not None else 0
            found.append(QueueState(QueueRule(name, most, most_of_tenant), bool(paused), counts, since or 0))
        return found

    async def _counted_over(self) -> Sequence[tuple[object, ...]]:
        """How many are over, by queue and state: counted now, or, where that takes long, lately."""
        async with self._counting:
            began = trio.current_time()
            if began >= self._count_again:
                self._over = (await self._read(s.COUNTS_OVER)).rows
                took = trio.current_time() - began
                self._count_again = began + took * _SPARSE if took > _LONG else began
            return self._over

    async def why(self, job_id: str) -> str:
        job = await self.find(job_id)
        if job is None:
            return "there is no such job"
        rows: Any = (await self._read(s.CIRCUMSTANCES, job.queue, job.queue, job.tenant, job.queue)).rows
        return reason(job, Circumstances(*rows[0]))

    async def prune(self, ended_before_unix_ns: int, count: int = 1000) -> int:
        statements = [
            s.prune(self.dialect, ended_before_unix_ns, count),
            s.forget_owners(self.dialect, _FORGET_SECONDS),
        ]
        return _count((await self._all(statements))[0])

    # -- schedules --

    async def due(self, name: str, spec: str, first_unix_ns: int) -> int:
        text = (
            "insert into zerver_schedules (name, spec, due) values (?, ?, ?) on conflict (name) do update "
            "set spec = excluded.spec, due = excluded.due where zerver_schedules.spec <> excluded.spec"
        )
        due = Statement("select due from zerver_schedules where name = ?", (name,))
        _, found = await self._all([Statement(text, (name, spec, first_unix_ns)), due])
        return int(str(_rows(found)[0][0]))

    async def fire(self, name: str, due_unix_ns: int, next_unix_ns: int, orders: Sequence[Order]) -> bool:
        move = "update zerver_schedules set due = ? where name = ? and due = ?"
        check_orders(orders)
        parts = self._parts(orders)
        statements = [Statement(move, (next_unix_ns, name, due_unix_ns), expect=1)]
        try:
            await self._ask(lambda: self._moved([*statements, *(one for part in parts for one in part)]))
        except _Moved:
            return False
        self._counts["ordered"] += len(orders)
        self.waking.ordered()
        return True

    async def schedules(self) -> list[ScheduleState]:
        rows: Any = (await self._read("select name, spec, due from zerver_schedules order by name")).rows
        return [ScheduleState(name, spec, due) for name, spec, due in rows]

    async def _moved(self, statements: Sequence[Statement]) -> None:
        try:
            await self.driver.transaction(statements)
        except StatementError as error:
            if error.code == "ROW_COUNT":
                raise _Moved from None
            raise

    def statistics(self) -> Mapping[str, Any]:
        return {"place": self._place, **self._counts}

    # -- the driver --

    async def _all(self, statements: Sequence[Statement]) -> list[Answer]:
        first = [Statement(self.dialect.first)] if self.dialect.first else []
        return (await self._ask(lambda: self._write([*first, *statements])))[len(first) :]

    async def _one(self, statement: Statement) -> int:
        return _count((await self._all([statement]))[0])

    async def _read(self, text: str, *params: object) -> Rows:
        return await self._ask(lambda: self.driver.fetch(Statement(text, params)))

    async def _woken(self) -> None:
        await self._one(wake(self.dialect))
        self.waking.wake()


class _Taken(Exception):
    """A job of the same id stands there."""


class _Moved(Exception):
    """The schedule was moved on by somebody else."""


def _rows(answer: Answer) -> list[tuple[object, ...]]:
    return answer.rows if isinstance(answer, Rows) else []


def _jobs(answer: Answer) -> list[Job]:
    return [s.job_of(row) for row in _rows(answer)]


def _count(answer: Answer) -> int:
    return answer.count if isinstance(answer, Changed) else len(answer.rows)
