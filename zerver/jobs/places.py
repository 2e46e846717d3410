"""Places: a store of jobs by its URL, in a database of its own, or in one that the app has open.

Law: the URL says all, and what it says wrong is named with the cure. `sqlite:///jobs.db` is a file below the working
directory, `sqlite:////var/lib/jobs.db` one by its whole path, `postgresql://…` a database. Tables that are missing are
made, beside whatever else is there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Final
from urllib.parse import unquote, urlsplit

from zerver.errors import DatabaseDown, DefinitionError, DriverError, JournalUnavailable
from zerver.jobs.schema import make_tables
from zerver.jobs.sql import SqlJobs
from zerver.runtime.groups import open_body_nursery
from zerver.sql.dialects import SQLITE, dialect_of
from zerver.sql.driver import Driver
from zerver.sql.postgres import open_postgres
from zerver.sql.sqlite import open_sqlite
from zerver.trace.keeping.schema import is_empty, put_in_place

_CURE: Final = "write sqlite:///jobs.db, or postgresql://user@host/database"

#: Seconds after which a server that does not answer is taken to be away.
_PATIENCE: Final = 30.0


def open_jobs(url: str) -> AbstractAsyncContextManager[SqlJobs]:
    """The store of jobs at a URL; made, if it is missing. Any number of processes may share it.

    Raises DefinitionError for a URL that names none; entered, DamagedJournal for tables of a newer version and files
    that are no database, JournalUnavailable when it cannot be reached or made.
    """
    parts = urlsplit(url)
    if parts.scheme in ("postgresql", "postgres"):
        return open_postgres_jobs(url)
    path = unquote(parts.path).removeprefix("/")
    if parts.scheme != "sqlite" or parts.netloc or not path or parts.query or parts.fragment:
        # The URL is not repeated: it may hold a password.
        raise DefinitionError(f"jobs were given a URL of {parts.scheme or 'no scheme'!r} that names no store", _CURE)
    return open_sqlite_jobs(path)


def file_of(url: str) -> str:
    """The file that such a URL names; "" for none."""
    parts = urlsplit(url)
    return unquote(parts.path).removeprefix("/") if parts.scheme == "sqlite" else ""


@asynccontextmanager
async def open_jobs_of(
    driver: Driver, *, place: str = "jobs", patience: float = float("inf")
) -> AsyncGenerator[SqlJobs, None]:
    """The store of jobs in a database that somebody else has open, as the app's own, and keeps open around this block.

    place: as errors call it. patience: seconds after which a call that has no answer counts as lost.
    """
    with _explained(place):
        dialect = await dialect_of(driver)
        await make_tables(driver, dialect, place)
    store = SqlJobs(driver, dialect, place=place, patience=patience)
    async with open_body_nursery() as nursery:
        nursery.start_soon(store.ordering.run)
        nursery.start_soon(store.settling.run)
        nursery.start_soon(store.waking.listen)
        nursery.start_soon(store.waking.tell)
        try:
            yield store
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_sqlite_jobs(path: str | os.PathLike[str], *, busy_timeout: float = 5.0) -> AsyncGenerator[SqlJobs, None]:
    """The store of jobs in this file; made, with its folder and for its owner alone, if it is missing.

    busy_timeout: seconds to wait for a lock that another process holds.
    """
    place = Path(path)
    async with AsyncExitStack() as stack:
        with _explained(f"the jobs {place}"):
            if is_empty(place):
                await _make(place)
            driver = await stack.enter_async_context(open_sqlite(place, readers=2, busy_timeout=busy_timeout))
        yield await stack.enter_async_context(open_jobs_of(driver, place=f"the jobs {place}"))


async def _make(place: Path) -> None:
    """Make an empty store, in one move, unless another process is first: one that is half made is never seen."""
    made = place.with_name(f".{place.name}.{token_hex(4)}.new")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        async with open_sqlite(made, readers=1) as driver:
            await make_tables(driver, SQLITE, str(place))  # closing takes the log into the file
        put_in_place(made, place)
    finally:
        for rest in ("", "-wal", "-shm"):
            with suppress(OSError):
                made.with_name(made.name + rest).unlink(missing_ok=True)


@asynccontextmanager
async def open_postgres_jobs(
    conninfo: str, *, size: int = 6, patience: float = _PATIENCE
) -> AsyncGenerator[SqlJobs, None]:
    """The store of jobs in this PostgreSQL database. conninfo, size: as `open_postgres` takes them."""
    place = "the jobs in PostgreSQL"
    async with AsyncExitStack() as stack:
        with _explained(place):
            driver = await stack.enter_async_context(open_postgres(conninfo, size=size))
        yield await stack.enter_async_context(open_jobs_of(driver, place=place, patience=patience))


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """What keeps a store from being opened, in the journal's words."""
    try:
        yield
    except OSError as error:
        raise JournalUnavailable(f"cannot open {place}: {error.strerror or error}") from error
    except DatabaseDown as error:
        raise JournalUnavailable(f"cannot open {place}: {error}", error.retry_after) from error
    except DriverError as error:
        raise JournalUnavailable(f"cannot open {place}: {error}") from error
