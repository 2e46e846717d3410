"""Receipts in PostgreSQL: one for all workers of all machines, beside their journal or the app's own tables.

Law: as in SQLite (`zerver.journal.receipts`): a claim is one statement, and what is said is in the server's log on
disk, whatever its default for `synchronous_commit`. Leases and lifetimes are counted on the database's clock, because
those of the machines differ. A call that gets no answer within `patience` counts as lost: each may be asked again.

What makes a claim right when two come at once: `on conflict do update` waits for the row that the other one holds, and
then looks at it as it is (postgresql.org/docs/current/transaction-iso.html, "read committed").
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec
import trio

from zerver.core.app import Capability
from zerver.errors import DamagedJournal, DatabaseDown, DriverError, JournalUnavailable
from zerver.journal.receipts import TABLES, placed, receipt_of, written_fields
from zerver.runtime.receipts import (
    LONGEST_LEASE,
    Claim,
    Receipt,
    Receipts,
    ReceiptTally,
    StoredAnswer,
    check_lease,
    receipts_capability,
)
from zerver.sql.dialects import POSTGRES, migrate
from zerver.sql.driver import Answer, Driver, Rows, Statement
from zerver.sql.postgres import open_postgres

#: As in SQLite: more expired receipts are deleted than made, and lapsed claims that nobody wants are forgotten.
_SWEPT: Final = 8
_FORGOTTEN: Final = 7 * 86_400.0

# until: of a claim its lease, null for ever; of an answer its lifetime. ends: when it may be swept.
_SCHEMA: Final = """
do $zerver$ begin
    if to_regclass('zerver_receipts_schema') is null then
        create table zerver_receipts (
            place bytea primary key, run_id text not null unique, head bytea not null, body bytea not null,
            size bigint not null, before text not null, until double precision, ends double precision not null,
            status integer, fields bytea, answer bytea
        );
        create index zerver_receipts_by_end on zerver_receipts (ends);
        create table zerver_receipts_schema (version integer not null);
        insert into zerver_receipts_schema values (1);
    end if;
end $zerver$
"""

_DURABLE: Final = "select set_config('synchronous_commit', 'on', true)"

# A lease with more left than the longest there is was given before the server's clock was set back.
_FREE: Final = """(
  case when r.status is not null then r.until <= :now
  else r.run_id = :run_id or coalesce(r.until <= :now or r.until > :now + :longest, false) end
)"""

_CLAIM: Final = f"""
insert into zerver_receipts as r (place, run_id, head, body, size, before, until, ends)
values (:place, :run_id, :head, :body, :size, '', :now + :lease, :now + :forgotten)
on conflict (place) do update set
  before = case when r.status is not null then '' when r.run_id = :run_id or r.before <> '' then r.before
    else r.run_id end,
  asked_head = case when r.status is not null then null when r.run_id = :run_id or r.before <> '' then r.asked_head
    else r.head end,
  asked_body = case when r.status is not null then null when r.run_id = :run_id or r.before <> '' then r.asked_body
    else r.body end,
  asked_size = case when r.status is not null then null when r.run_id = :run_id or r.before <> '' then r.asked_size
    else r.size end,
  run_id = excluded.run_id, head = excluded.head, body = excluded.body, size = excluded.size,
  until = excluded.until, ends = excluded.ends, status = null, fields = null, answer = null
where {_FREE}
"""

_READ: Final = (
    "select run_id, head, body, size, before, asked_head, asked_body, asked_size, status, fields, answer "
    "from zerver_receipts r where place = :place"
)
_FIND: Final = f"{_READ} and not {_FREE}"
_RENEW: Final = """
update zerver_receipts set until = :now + :lease
where run_id = any(:run_ids) and status is null and until is not null
"""
_STORE: Final = """
update zerver_receipts set status = :status, fields = :fields, answer = :answer, until = :now + :lifetime,
  ends = :now + :lifetime
where run_id = :run_id and status is null
"""
_IS_STORED: Final = "select count(*) from zerver_receipts where run_id = :run_id and status is not null"
_RELEASE: Final = "delete from zerver_receipts where run_id = :run_id and status is null"
_BEGIN: Final = """
update zerver_receipts set before = '', asked_head = null, asked_body = null, asked_size = null
where run_id = :run_id and status is null
"""
_GIVE_BACK: Final = """
update zerver_receipts set run_id = :earlier, head = coalesce(asked_head, ''::bytea),
  body = coalesce(asked_body, ''::bytea), size = coalesce(asked_size, 0), before = '', asked_head = null,
  asked_body = null, asked_size = null, until = :now + :lease
where run_id = :run_id and status is null
"""
_SWEEP: Final = f"""
delete from zerver_receipts where place in (
  select place from zerver_receipts
  where ends <= :now and (status is not null or until <= :now or until > :now + :longest)
  limit {_SWEPT} for update skip locked
)
"""
_TALLY: Final = """
select count(*) filter (where status is null), count(status), coalesce(sum(length(answer)), 0)::bigint
from zerver_receipts
"""

#: The database's clock, in seconds since 1970.
_NOW: Final = "extract(epoch from clock_timestamp())::double precision"


class PostgresReceipts:
    """Receipts in PostgreSQL, open. Made by `open_postgres_receipts`."""

    def __init__(self, driver: Driver, patience: float, now: Callable[[], float] | None) -> None:
        self._driver = driver
        self._patience = patience
        self._now = now

    async def find(self, place: bytes) -> Receipt | None:
        rows = await self._fetch(self._statement(_FIND, place=place, run_id=""))
        return receipt_of(rows[0]) if rows else None

    async def claim(self, claim: Claim, lease: float | None) -> Receipt:
        check_lease(lease)
        said: dict[str, Any] = {
            "place": claim.place,
            "run_id": claim.run_id,
            "head": claim.head,
            "body": claim.body,
            "size": claim.size,
            "lease": lease,
        }
        *_, stands = await self._change(
            self._statement(_SWEEP), self._statement(_CLAIM, **said), self._statement(_READ, place=claim.place)
        )
        if not isinstance(stands, Rows) or not stands.rows:
            raise DamagedJournal("a receipt is gone the moment it was made: its table is not as it was made")
        return receipt_of(stands.rows[0])

    async def renew(self, run_ids: Sequence[str], lease: float) -> None:
        check_lease(lease)
        await self._change(self._statement(_RENEW, run_ids=list(run_ids), lease=lease))

    async def store(self, run_id: str, answer: StoredAnswer, lifetime: float) -> bool:
        said = {"status": answer.status, "fields": written_fields(answer), "answer": answer.body, "lifetime": lifetime}
        *_, stored = await self._change(
            self._statement(_STORE, run_id=run_id, **said), self._statement(_IS_STORED, run_id=run_id)
        )
        return isinstance(stored, Rows) and stored.rows[0][0] == 1

    async def release(self, run_id: str) -> bool:
        *_, gone = await self._change(self._statement(_RELEASE, run_id=run_id))
        return not isinstance(gone, Rows) and gone.count == 1

    async def begin(self, run_id: str) -> None:
        await self._change(self._statement(_BEGIN, run_id=run_id))

    async def give_back(self, run_id: str, before: str, lease: float) -> bool:
        check_lease(lease)
        *_, given = await self._change(self._statement(_GIVE_BACK, run_id=run_id, earlier=before, lease=lease))
        return not isinstance(given, Rows) and given.count == 1

    async def tally(self) -> ReceiptTally:
        (numbers,) = await self._fetch(self._statement(_TALLY))
        return ReceiptTally(*msgspec.convert(numbers, tuple[int, int, int]))

    # -- inside --

    def _statement(self, sql: str, **said: Any) -> Statement:
        """A statement with its parameters by name; the port knows them by their place."""
        known: dict[str, Any] = {"longest": LONGEST_LEASE, "forgotten": _FORGOTTEN, **said}
        if self._now is None:
            sql = sql.replace(":now", _NOW)
        else:
            sql, known["now"] = sql.replace(":now", ":now::double precision"), self._now()
        text, names = placed(sql)
        return Statement(text, [known[name] for name in names])

    async def _fetch(self, statement: Statement) -> list[tuple[object, ...]]:
        with trio.move_on_after(self._patience):
            try:
                return (await self._driver.fetch(statement)).rows
            except DriverError as error:
                raise _trouble("read", error) from error
        raise JournalUnavailable(f"receipts: no answer for {self._patience:g} s")

    async def _change(self, *statements: Statement) -> list[Answer]:
        with trio.move_on_after(self._patience):
            try:
                return await self._driver.transaction([Statement(_DURABLE), *statements])
            except DriverError as error:
                raise _trouble("written", error) from error
        raise JournalUnavailable(f"receipts: no answer for {self._patience:g} s")


def _trouble(what: str, error: DriverError) -> JournalUnavailable:
    again = error.retry_after if isinstance(error, DatabaseDown) else 1.0
    return JournalUnavailable(f"receipts cannot be {what}: {error}", again)


@asynccontextmanager
async def open_postgres_receipts(
    conninfo: str, *, patience: float = 1.0, size: int = 4, now: Callable[[], float] | None = None
) -> AsyncGenerator[PostgresReceipts, None]:
    """Open the receipts in this database; their tables, `zerver_receipts…`, are made if they are missing.

    conninfo: as `open_postgres` takes it. patience: seconds after which a call that has no answer counts as lost. size:
    connections at most. now: seconds since 1970, for tests; by default the database's clock.

    Raises DefinitionError without psycopg or for a wrong conninfo, JournalUnavailable when the server cannot be
    reached, DamagedJournal for tables of another version.
    """
    async with AsyncExitStack() as stack:
        try:
            driver = await stack.enter_async_context(open_postgres(conninfo, size=size, schema=_SCHEMA))
            await migrate(driver, POSTGRES.words, "the database", TABLES)
        except DriverError as error:
            raise _trouble("opened", error) from error
        yield PostgresReceipts(driver, patience, now)


def postgres_receipts(conninfo: str) -> Capability:
    """Idempotency keys in PostgreSQL, for `App(capabilities=[…])`: shared by all workers of all machines.

    Each answer is on the server's disk before it is sent. See `open_postgres_receipts`.
    """

    def open_receipts() -> AbstractAsyncContextManager[Receipts]:
        return open_postgres_receipts(conninfo)

    return receipts_capability(open_receipts)
