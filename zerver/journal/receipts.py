"""Receipts in a SQLite file: one for all workers of a machine, and for the process that comes after a crash.

Law: a claim is one statement, so that of all who ask at once, in whatever process, one gets the place; what is said is
on the disk (`synchronous=FULL`). An answer that is stored is given until it expires, and an expired one never again.

Two clocks. Answers expire by the wall clock, which goes on while the machine is off. Leases are counted on the
machine's monotonic clock, which all its processes share and nobody sets: were they counted on the wall clock, a step of
it would let live claims lapse. A file in WAL mode belongs to one machine (sqlite.org/wal.html), so there is one such
clock. It begins anew when the machine does; a claim that seems to have more than LONGEST_LEASE left is from before.

The table may live in a file with others, as that of a journal or of the app itself: its names are its own.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from zerver.core.app import Capability
from zerver.errors import DamagedJournal, DriverError, JournalUnavailable
from zerver.runtime.receipts import (
    LONGEST_LEASE,
    Asked,
    Claim,
    Receipt,
    Receipts,
    ReceiptTally,
    StoredAnswer,
    check_lease,
    receipts_capability,
)
from zerver.sql.dialects import SQLITE, Tables, migrate
from zerver.sql.driver import Answer, Driver, Rows, Statement
from zerver.sql.sqlite import open_sqlite

#: What makes the tables of a version of those before. A claim of version 1 that was taken over has nothing of what the
#: earlier request had said: its place, given back, is no request's.
SCRIPTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "",
        2: """
        alter table zerver_receipts add column asked_head ‹bytes›;
        alter table zerver_receipts add column asked_body ‹bytes›;
        alter table zerver_receipts add column asked_size bigint;
        """,
    }
)
TABLES: Final = Tables("store of receipts", "zerver_receipts_schema", SCRIPTS)

#: Each claim may be followed by the deletion of so many expired receipts: more than are made, so that they end.
_SWEPT: Final = 8

#: Seconds after which a lapsed claim that nobody has taken over is forgotten.
_FORGOTTEN: Final = 7 * 86_400.0

# status is null while the run is under way; then lease says until when, on the monotonic clock, and null for ever.
# ends is of the wall clock: of an answer its lifetime, of a claim when it may be swept once it has lapsed.
_SCHEMA: Final = """
create table if not exists zerver_receipts (
  place blob primary key, run_id text not null unique, head blob not null, body blob not null, size integer not null,
  before text not null, lease real, ends real not null, status integer, fields blob, answer blob
);
create index if not exists zerver_receipts_by_end on zerver_receipts (ends);
create table if not exists zerver_receipts_schema (one integer primary key check (one = 1), version integer not null);
insert or ignore into zerver_receipts_schema values (1, 1);
"""

_IS_FREE: Final = """(
  case when status is not null then ends <= :now
  else run_id = :run_id or ifnull(lease <= :tick or lease > :tick + :longest, 0) end
)"""

_CLAIM: Final = f"""
insert into zerver_receipts (place, run_id, head, body, size, before, lease, ends)
values (:place, :run_id, :head, :body, :size, '', :lease, :ends)
on conflict (place) do update set
  before = case when status is not null then '' when run_id = :run_id or before <> '' then before
    else run_id end,
  asked_head = case when status is not null then null when run_id = :run_id or before <> '' then asked_head
    else head end,
  asked_body = case when status is not null then null when run_id = :run_id or before <> '' then asked_body
    else body end,
  asked_size = case when status is not null then null when run_id = :run_id or before <> '' then asked_size
    else size end,
  run_id = excluded.run_id, head = excluded.head, body = excluded.body, size = excluded.size,
  lease = excluded.lease, ends = excluded.ends, status = null, fields = null, answer = null
where {_IS_FREE}
"""

_READ: Final = (
    "select run_id, head, body, size, before, asked_head, asked_body, asked_size, status, fields, answer "
    "from zerver_receipts where place = :place"
)
_FIND: Final = f"{_READ} and not {_IS_FREE}"
_RENEW: Final = """
update zerver_receipts set lease = :lease
where run_id in (select value from json_each(:run_ids)) and status is null and lease is not null
"""
_STORE: Final = """
update zerver_receipts set status = :status, fields = :fields, answer = :answer, ends = :ends, lease = null
where run_id = :run_id and status is null
"""
_IS_STORED: Final = "select count(*) from zerver_receipts where run_id = :run_id and status is not null"
_RELEASE: Final = "delete from zerver_receipts where run_id = :run_id and status is null"
_BEGIN: Final = """
update zerver_receipts set before = '', asked_head = null, asked_body = null, asked_size = null
where run_id = :run_id and status is null
"""
_GIVE_BACK: Final = """
update zerver_receipts set run_id = :earlier, head = coalesce(asked_head, x''),
  body = coalesce(asked_body, x''), size = coalesce(asked_size, 0), before = '', asked_head = null,
  asked_body = null, asked_size = null, lease = :lease
where run_id = :run_id and status is null
"""
_SWEEP: Final = f"""
delete from zerver_receipts where rowid in (
  select rowid from zerver_receipts
  where ends <= :now and (status is not null or lease <= :tick or lease > :tick + :longest) limit {_SWEPT}
)
"""
_TALLY: Final = """
select count(*) filter (where status is null), count(status), coalesce(sum(length(answer)), 0) from zerver_receipts
"""

_NAMED: Final = re.compile(r"(?<!:):([a-z_]+)")


class SqliteReceipts:
    """Receipts in a SQLite file, open. Made by `open_sqlite_receipts`."""

    def __init__(self, driver: Driver, now: Callable[[], float], tick: Callable[[], float]) -> None:
        self._driver = driver
        self._now = now
        self._tick = tick

    async def find(self, place: bytes) -> Receipt | None:
        rows = await self._fetch(self._statement(_FIND, place=place, run_id=""))
        return receipt_of(rows[0]) if rows else None

    async def claim(self, claim: Claim, lease: float | None) -> Receipt:
        check_lease(lease)
        until = None if lease is None else self._tick() + lease
        said: dict[str, Any] = {
            "place": claim.place,
            "run_id": claim.run_id,
            "head": claim.head,
            "body": claim.body,
            "size": claim.size,
            "lease": until,
            "ends": self._now() + _FORGOTTEN,
        }
        *_, stands = await self._change(
            self._statement(_SWEEP), self._statement(_CLAIM, **said), self._statement(_READ, place=claim.place)
        )
        if not isinstance(stands, Rows) or not stands.rows:
            raise DamagedJournal("a receipt is gone the moment it was made: the file is damaged; move it away")
        return receipt_of(stands.rows[0])

    async def renew(self, run_ids: Sequence[str], lease: float) -> None:
        check_lease(lease)
        await self._change(self._statement(_RENEW, run_ids=json.dumps(list(run_ids)), lease=self._tick() + lease))

    async def store(self, run_id: str, answer: StoredAnswer, lifetime: float) -> bool:
        said = {
            "status": answer.status,
            "fields": written_fields(answer),
            "answer": answer.body,
            "ends": self._now() + lifetime,
        }
        _, stored = await self._change(
            self._statement(_STORE, run_id=run_id, **said), self._statement(_IS_STORED, run_id=run_id)
        )
        return isinstance(stored, Rows) and stored.rows[0][0] == 1

    async def release(self, run_id: str) -> bool:
        (gone,) = await self._change(self._statement(_RELEASE, run_id=run_id))
        return not isinstance(gone, Rows) and gone.count == 1

    async def begin(self, run_id: str) -> None:
        await self._change(self._statement(_BEGIN, run_id=run_id))

    async def give_back(self, run_id: str, before: str, lease: float) -> bool:
        check_lease(lease)
        until = self._tick() + lease
        *_, given = await self._change(self._statement(_GIVE_BACK, run_id=run_id, earlier=before, lease=until))
        return not isinstance(given, Rows) and given.count == 1

    async def tally(self) -> ReceiptTally:
        (numbers,) = await self._fetch(self._statement(_TALLY))
        return ReceiptTally(*msgspec.convert(numbers, tuple[int, int, int]))

    # -- inside --

    def _statement(self, sql: str, **said: Any) -> Statement:
        """A statement with its parameters by name; the port knows them by their place."""
        text, names = placed(sql)
        known = {"now": self._now(), "tick": self._tick(), "longest": LONGEST_LEASE, **said}
        return Statement(text, [known[name] for name in names])

    async def _fetch(self, statement: Statement) -> list[tuple[object, ...]]:
        try:
            return (await self._driver.fetch(statement)).rows
        except DriverError as error:
            raise JournalUnavailable(f"receipts cannot be read: {error}") from error

    async def _change(self, *statements: Statement) -> list[Answer]:
        try:
            return await self._driver.transaction(statements)
        except DriverError as error:
            raise JournalUnavailable(f"receipts cannot be written: {error}") from error


@lru_cache(maxsize=32)
def placed(sql: str) -> tuple[str, tuple[str, ...]]:
    """The statement with question marks, and the names that stood there."""
    return _NAMED.sub("?", sql), tuple(_NAMED.findall(sql))


def written_fields(answer: StoredAnswer) -> bytes:
    """An answer's fields, as they are kept."""
    return msgspec.json.encode([(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.fields])


def receipt_of(row: tuple[Any, ...]) -> Receipt:
    run_id, head, body, size, before, asked_head, asked_body, asked_size, status, fields, answer = row
    answered = None
    if status is not None:
        pairs = msgspec.json.decode(fields, type=list[tuple[str, str]])
        answered = StoredAnswer(
            status, tuple((name.encode("latin-1"), said.encode("latin-1")) for name, said in pairs), answer
        )
    asked = None if asked_head is None else Asked(asked_head, asked_body, asked_size)
    return Receipt(run_id, head, body, size, answered, before, asked)


@asynccontextmanager
async def open_sqlite_receipts(
    path: str | os.PathLike[str],
    *,
    now: Callable[[], float] = time.time,
    tick: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[SqliteReceipts, None]:
    """Open receipts in a SQLite file, which is made, for its owner alone, if it is missing.

    now: the wall clock, in seconds since 1970. tick: the machine's monotonic clock, in seconds.

    Raises DamagedJournal for a file that is no database, or was made by another version; JournalUnavailable for one
    that cannot be opened.
    """
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise JournalUnavailable(f"cannot open {place}: {error.strerror or error}") from None
    async with AsyncExitStack() as stack:
        try:
            driver = await stack.enter_async_context(open_sqlite(place, readers=2, schema=_SCHEMA))
            await migrate(driver, SQLITE.words, str(place), TABLES)
        except DriverError as error:
            if "SQLITE_NOTADB" in str(error) or "SQLITE_CORRUPT" in str(error) or "not a database" in str(error):
                raise DamagedJournal(f"{place} is no database, or damaged, and was left as it is; {_CURE}") from error
            raise JournalUnavailable(f"cannot open {place}: {error}") from error
        yield SqliteReceipts(driver, now, tick)


_CURE: Final = "give another path, and remember that keys in the old file protect nothing then"


def sqlite_receipts(path: str | os.PathLike[str]) -> Capability:
    """Idempotency keys in a SQLite file, for `App(capabilities=[…])`: shared by all workers of the machine.

    Each answer is on the disk before it is sent. See `open_sqlite_receipts`.
    """

    def open_receipts() -> AbstractAsyncContextManager[Receipts]:
        return open_sqlite_receipts(path)

    return receipts_capability(open_receipts)
