"""A journal in SQL, on any driver of the port: what SQLite and PostgreSQL have in common, which is nearly all.

Law: one statement decides. Whether a page's lease holds is looked at by the statement that writes the page; that a run
is given to one owner is decided by the update that gives it. Nothing is read first and believed later.

What makes it right when a claim and a late page meet: SQLite has one writer at a time; in PostgreSQL the page holds the
run's row (`for share`) until it is committed, and a claim skips rows that are held.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import trio

from zerver.errors import (
    DamagedJournal,
    JournalError,
    JournalUnavailable,
    LeaseLost,
)
from zerver.journal import parking
from zerver.journal.scribe import Doubtful, Scribe, lease_lost
from zerver.runtime.journal import (
    LISTED,
    RESOLVED,
    UNRESOLVED,
    Entry,
    Glance,
    Journal,
    JournalStatistics,
    Notation,
    Opening,
    Page,
    RunHead,
    Signal,
    StoredRun,
    Which,
)
from zerver.sql.asking import Asker
from zerver.sql.dialects import Dialect
from zerver.sql.driver import Answer, Changed, Driver, Rows, Statement, at_once

T = TypeVar("T")

_HEAD: Final = (
    "run_id, flow, version, tenant, priority, began, owner, label, parent, deadline, durability, "
    "fence, status, zerver_plans.id, zerver_plans.plan, aside, reason, "
    "wakes, cut, seq"
)

#: The claim of a run that its owner has taken anew; those of others are 16 random digits.
_RETAKEN: Final = "anew"

#: Owners without runs are forgotten so long after their lease has lapsed.
_FORGET_NS: Final = 86_400 * 10**9


class SqlJournal(Journal):
    """A journal on a driver. Made by `open_sqlite_journal` or `open_postgres_journal`, which have its scribe run.

    patience: seconds after which a call to the database is taken to get no answer. wall_ns: for when runs have ended.
    """

    def __init__(
        self,
        driver: Driver,
        dialect: Dialect,
        notation: Notation,
        *,
        place: str,
        patience: float = float("inf"),
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.scribe = Scribe(place, self._perform, mute=patience / 2)
        self._driver = driver
        self._write_at_once = at_once(driver)
        self._dialect = dialect
        self._notation = notation
        self._place = place
        self._asked = Asker(place, patience, Doubtful, self._damaged)
        self._wall_ns = wall_ns
        self._plans: set[str] = set()  # that are there for certain
        self._insert_page = _PAGE.format(share=dialect.share)
        self._claiming = trio.Lock()
        self._claims: dict[str, list[str]] = {}  # by owner: claims of which nobody knows what they took
        self._reopening: dict[tuple[str, str], str] = {}  # the same of runs that were to be reopened

    @property
    def notation(self) -> Notation:
        return self._notation

    async def write(self, entry: Entry) -> None:
        await self.scribe.write(entry)

    def write_behind(self, entry: Entry) -> None:
        self.scribe.write_behind(entry)

    async def flush(self) -> None:
        await self.scribe.flush()

    def statistics(self) -> JournalStatistics:
        return self.scribe.statistics()

    # -- leases --

    async def renew(self, owner: str, lease_seconds: float) -> None:
        sql = (
            f"insert into zerver_owners (name, boot, lapses) values (?, ?, {self._dialect.now()} + ?) "
            "on conflict (name) do update set boot = excluded.boot, lapses = excluded.lapses"
        )
        await self._write(Statement(sql, (owner, self._dialect.boot, int(lease_seconds * 1e9))))

    async def claim(self, owner: str, count: int) -> list[StoredRun]:
        async with self._claiming:
            for doubtful in [*self._claims.get(owner, ())]:  # calls that were cancelled, or lost their answer
                if runs := await self._claimed(owner, doubtful):
                    return runs
            token = self._token(owner)
            lapsed = (  # the owner of parked runs, which are nearly all, is "": not one of them is looked at
                "select seq from zerver_runs r where status = '' and aside = '' and owner > '' and owner <> ? "
                "and not exists (select 1 from zerver_owners o where o.name = r.owner and o.boot = ? "
                f"and o.lapses > {self._dialect.now()}) order by +seq limit ? {self._dialect.skip}"
            )
            take = f"update zerver_runs set owner = ?, fence = fence + 1, claim = ? where seq in ({lapsed})"
            lapsing = Statement(take, (owner, token, owner, self._dialect.boot, count))
            due = parking.taking_due(owner, token, count, self._dialect)
            await self._asked(lambda: self._driver.transaction([lapsing, *due]))
            return await self._claimed(owner, token)

    def _token(self, owner: str) -> str:
        token = secrets.token_hex(8)
        self._claims.setdefault(owner, []).append(token)
        return token

    async def _claimed(self, owner: str, token: str) -> list[StoredRun]:
        """What a claim of this owner has taken; then nothing of it is in doubt any more."""
        runs = await self._runs("claim = ? and owner = ? and status = ''", (token, owner))
        self._claims[owner].remove(token)
        return runs

    # -- parked runs --

    async def claim_one(self, run_id: str, owner: str) -> StoredRun | None:
        async with self._claiming:
            token = self._token(owner)
            taking = parking.taking_one(run_id, owner, token, self._dialect)
            await self._asked(lambda: self._driver.transaction(taking))
            found = await self._claimed(owner, token)
            return found[0] if found else None

    async def due(self) -> float | None:
        found = await self._fetch(parking.next_due(self._dialect))
        return max(0.0, _number(found.rows[0][0]) / 1e9) if found.rows else None

    async def signal(self, run_id: str, signal: str, value: bytes, number: int | None = None) -> bool:
        giving = parking.giving(run_id, signal, value, number, self._dialect)
        *_, given = await self._asked(lambda: self._driver.transaction(giving))
        return _count(given) == 1

    async def cancel(self, run_id: str, reason: bytes) -> bool:
        return _count(await self._write(parking.cancelling(run_id, reason, self._dialect))) == 1

    async def parked(self) -> int:
        return _number((await self._fetch(parking.how_many())).rows[0][0])

    async def key(self, name: str) -> bytes:
        made = "insert into zerver_keys (name, key) values (?, ?) on conflict (name) do nothing"
        await self._write(Statement(made, (name, secrets.token_bytes(32))))
        found = await self._fetch(Statement("select key from zerver_keys where name = ?", (name,)))
        key = found.rows[0][0] if found.rows else None
        if not isinstance(key, bytes):
            raise self._damaged("a key is none")
        return key

    async def retake(self, run_id: str, owner: str, fence: int) -> StoredRun | None:
        sql = (
            f"update zerver_runs set owner = ?, fence = fence + 1, claim = '{_RETAKEN}' where run_id = ? "
            "and fence = ? and status = '' and aside = '' and (owner = ? or (owner = '' and wakes is not null))"
        )
        await self._write(Statement(sql, (owner, run_id, fence, owner)))
        given = f"run_id = ? and owner = ? and fence = ? and claim = '{_RETAKEN}' and status = ''"
        runs = await self._runs(given, (run_id, owner, fence + 1))
        return runs[0] if runs else None

    # -- runs that somebody must look at --

    async def set_aside(self, run_id: str, fence: int, why: str) -> None:
        sql = (
            "update zerver_runs set aside = ?, owner = '', fence = ? where run_id = ? and status = '' "
            "and (fence = ? or (fence = ? and aside = ?))"
        )
        params = (why, fence + 1, run_id, fence, fence + 1, why)
        if _count(await self._write(Statement(sql, params))) != 1:
            raise lease_lost(Page(run_id, fence, 0, ()))

    async def reopen(self, run_id: str, owner: str) -> StoredRun | None:
        token = self._reopening.setdefault((owner, run_id), secrets.token_hex(8))
        sql = (
            "update zerver_runs set owner = ?, fence = fence + 1, claim = ?, status = '', aside = '', ended = null "
            f"where run_id = ? and {_OPEN}"
        )
        await self._write(Statement(sql, (owner, token, run_id)))
        runs = await self._runs("claim = ? and run_id = ?", (token, run_id))
        del self._reopening[owner, run_id]
        return runs[0] if runs else None

    async def call_resolved(self, run_id: str, reason: str, by: str) -> bool:
        sql = (
            "update zerver_runs set owner = '', fence = fence + 1, status = ?, aside = '', reason = ?, ended = ? "
            f"where run_id = ? and {_OPEN}"
        )
        params = (RESOLVED, f"{by}: {reason}", self._wall_ns(), run_id)
        return _count(await self._write(Statement(sql, params))) == 1

    async def list_runs(self, which: Which, count: int = LISTED, after: str = "") -> list[Glance]:
        ahead, start, order = ("<", 1 << 62, "desc") if which == "ended" else (">", -1, "asc")
        sql = (
            f"select {_GLANCE} from zerver_runs where {_MEANT[which]} and seq {ahead} "
            f"coalesce((select seq from zerver_runs where run_id = ?), {start}) order by seq {order} limit ?"
        )
        found = await self._fetch(Statement(sql, (after, count)))
        return [self._glance(row) for row in found.rows]

    def _glance(self, row: tuple[object, ...]) -> Glance:
        *head, status, ended, aside = row
        if not all(isinstance(value, known) for value, known in zip(row, _GLANCE_TYPES, strict=True)):
            raise self._damaged("a run has not the columns of one")
        given: Any = dict(zip(_FIELDS, head, strict=True))
        made: Any = Glance  # the types were looked at
        glance: Glance = made(RunHead(**given), status, ended, aside)
        return glance

    # -- looking --

    async def read(self, run_id: str) -> StoredRun | None:
        found = await self._runs("run_id = ?", (run_id,))
        return found[0] if found else None

    async def tallies(self) -> Mapping[str, int]:
        found = await self._fetch(Statement("select status, count(*) from zerver_runs group by status"))
        return {str(status): _number(count) for status, count in found.rows}

    async def prune(self, ended_before_unix_ns: int, count: int = 200) -> int:
        old = "select seq from zerver_runs where ended is not null and ended < ? and status <> ? order by ended limit ?"
        runs = Statement(f"delete from zerver_runs where seq in ({old})", (ended_before_unix_ns, UNRESOLVED, count))
        owners = Statement(
            f"delete from zerver_owners where (boot <> ? or lapses < {self._dialect.now()} - ?) and not exists "
            "(select 1 from zerver_runs r where r.owner = zerver_owners.name and r.status = '')",
            (self._dialect.boot, _FORGET_NS),
        )
        deleted, _ = await self._asked(lambda: self._driver.transaction([runs, owners]))
        return _count(deleted)

    async def _runs(self, where: str, params: tuple[object, ...]) -> list[StoredRun]:
        heads = await self._fetch(
            Statement(
                f"select {_HEAD} from zerver_runs join zerver_plans on zerver_plans.id = zerver_runs.plan "
                f"where {where} order by seq",
                params,
            )
        )
        if not heads.rows:
            return []
        found = [row[-1] for row in heads.rows]  # and not `where` again: another owner may have them by now
        these = ", ".join("?" * len(found))
        pages = await self._fetch(
            Statement(f"select run, body from zerver_pages where run in ({these}) order by run, first", found)
        )
        lines: dict[object, list[bytes]] = {}
        for run, body in pages.rows:
            if not isinstance(body, bytes):
                raise self._damaged("a page is no bytes")
            lines.setdefault(run, []).extend(body.split(b"\n"))
        signals = parking.by_run((await self._fetch(parking.signals_of(where, params))).rows)
        if signals is None:
            raise self._damaged("a signal has not the columns of one")
        return [self._stored(row, lines, signals) for row in heads.rows]

    def _stored(
        self,
        row: tuple[object, ...],
        lines: Mapping[object, list[bytes]],
        signals: Mapping[object, tuple[Signal, ...]],
    ) -> StoredRun:
        *head, fence, status, plan_id, plan, aside, reason, wakes, cut, seq = row
        if not all(isinstance(value, known) for value, known in zip(row, _TYPES, strict=True)):
            raise self._damaged("a run has not the columns of one")
        given: Any = dict(zip(_FIELDS, head, strict=True))
        made: Any = StoredRun  # the types were looked at
        said = tuple(lines.get(seq, ())), aside, reason, wakes, signals.get(seq, ()), cut
        run: StoredRun = made(RunHead(**given), fence, status, plan_id, plan, *said)
        return run

    # -- writing --

    async def _perform(self, entries: Sequence[Entry], withdrawn: Sequence[Opening]) -> list[JournalError | None]:
        """Write a batch in one transaction; one entry at a time, if one of them spoils it for the others."""
        statements = [Statement(self._dialect.first)] if self._dialect.first else []
        statements += [_withdrawal(opening) for opening in withdrawn]
        plans: set[str] = set()
        deciding: list[slice] = []
        for entry in entries:
            if isinstance(entry, Opening) and entry.plan_id not in self._plans | plans:
                plans.add(entry.plan_id)
                statements.append(Statement(_PLAN, (entry.plan_id, entry.plan)))
            begin = len(statements)
            decisive, others = (self._opening(entry), []) if isinstance(entry, Opening) else self._page(entry)
            statements += decisive
            deciding.append(slice(begin, len(statements)))
            statements += others
        try:
            answers = await self._asked(lambda: self._write_at_once(statements))
        except (JournalUnavailable, LeaseLost):
            raise
        except JournalError as error:
            if len(entries) == 1:
                return [error]
            return [outcome for entry in entries for outcome in await self._perform([entry], withdrawn)]
        self._plans |= plans
        held = [all(_count(answer) == 1 for answer in answers[those]) for those in deciding]
        return [None if good else lease_lost(entry) for entry, good in zip(entries, held, strict=True)]

    def _opening(self, opening: Opening) -> list[Statement]:
        head = opening.head
        values = (
            *(head.run_id, opening.plan_id, head.flow, head.version, head.tenant, head.priority, head.label),
            *(head.parent, head.durability, head.began_unix_ns, head.deadline_unix_ns, head.owner),
        )
        begun = [Statement(_RUN, (*values, head.owner))]
        if opening.lines:
            begun.append(self._lines(head.run_id, 1, 0, opening.lines, ""))
        return begun

    def _page(self, page: Page) -> tuple[list[Statement], list[Statement]]:
        """Statements that change one row each if the lease holds, and then others."""
        written = []
        if page.lines:
            written.append(self._lines(page.run_id, page.fence, page.first, page.lines, page.status))
        if page.status or not page.lines:
            ended = self._wall_ns() if page.status else None
            written.append(Statement(_END, (page.status, ended, page.run_id, page.fence, page.status)))
        if page.resumes:
            written.append(parking.resumed(page))
        if page.parked is None:
            return written, []
        letting_go, awaited = parking.put_down(page, page.parked, self._dialect)
        return [*written, *letting_go], awaited

    def _lines(self, run_id: str, fence: int, first: int, lines: Sequence[bytes], status: str) -> Statement:
        return Statement(self._insert_page, (first, b"\n".join(lines), run_id, fence, status, first))

    # -- the driver --

    async def _fetch(self, statement: Statement) -> Rows:
        return await self._asked(lambda: self._driver.fetch(statement))

    async def _write(self, statement: Statement) -> Changed:
        return await self._asked(lambda: self._driver.execute(statement))

    def _damaged(self, what: str) -> DamagedJournal:
        return DamagedJournal(
            f"{self._place} is damaged, or no journal any more: {what}\n"
            "  restore it from a backup; or move it away and a new one is made, without the runs that are in it"
        )


_FIELDS: Final = (
    *("run_id", "flow", "version", "tenant", "priority", "began_unix_ns", "owner", "label", "parent"),
    *("deadline_unix_ns", "durability"),
)
_TYPES: Final[tuple[Any, ...]] = (
    *(str, str, str, str, str, int, str, str, str, int | None, str),
    *(int, str, str, bytes, str, str, int | None, bytes | None, int),
)

_GLANCE: Final = (
    "run_id, flow, version, tenant, priority, began, owner, label, parent, deadline, durability, status, ended, aside"
)
_GLANCE_TYPES: Final[tuple[Any, ...]] = (
    *(str, str, str, str, str, int, str, str, str, int | None, str),
    *(str, int | None, str),
)

#: As the index says it.
_OPEN: Final = "(status = 'unresolved' or aside <> '')"

_MEANT: Final[Mapping[Which, str]] = {"open": _OPEN, "unfinished": "status = ''", "ended": "status <> ''"}

_PLAN: Final = "insert into zerver_plans (id, plan) values (?, ?) on conflict (id) do nothing"

#: Writes lines of a run that is this owner's; the second time the same ones, or none.
_PAGE: Final = (
    "insert into zerver_pages (run, first, body) select seq, ?, ? from zerver_runs r "
    "where run_id = ? and fence = ? and (status = '' or status = ? and exists "
    "(select 1 from zerver_pages p where p.run = r.seq and p.first = ?)) {share} "
    "on conflict (run, first) do update set body = excluded.body where zerver_pages.body = excluded.body"
)

#: The second time it changes nothing, and counts as one row, if the run is as it was.
_RUN: Final = (
    "insert into zerver_runs (run_id, plan, flow, version, tenant, priority, label, parent, durability, began, "
    "deadline, owner, fence) select ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1 from zerver_owners where name = ? "
    "on conflict (run_id) do update set fence = excluded.fence where zerver_runs.fence = 1 "
    "and zerver_runs.owner = excluded.owner and zerver_runs.status = ''"
)

_END: Final = (
    "update zerver_runs set status = ?, ended = coalesce(ended, ?) where run_id = ? and fence = ? and status in ('', ?)"
)


def _withdrawal(opening: Opening) -> Statement:
    gone = "delete from zerver_runs where run_id = ? and owner = ? and fence = 1 and status = ''"
    return Statement(gone, (opening.head.run_id, opening.head.owner))


def _count(answer: Answer) -> int:
    return answer.count if isinstance(answer, Changed) else len(answer.rows)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
