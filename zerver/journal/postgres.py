"""The journal in PostgreSQL, or an engine that speaks its protocol: for many machines that share the work.

Law: an acknowledged page is in the server's log on disk, whatever the server's default for `synchronous_commit`; a
server that acknowledges before its standbys have it may lose it with its machine, and that is the operator's to choose.
Leases are kept by the database's clock, because those of the machines differ. A call that gets no answer within
`patience` counts as lost: whoever waits for it has to be told something, and soon.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from zerver.errors import DatabaseDown, DriverError, JournalUnavailable
from zerver.journal.lines import Cipher, Lines
from zerver.journal.schema import first_script, migrate
from zerver.journal.scribe import open_scribe
from zerver.journal.sql import SqlJournal
from zerver.runtime.journal import Journal
from zerver.sql.dialects import POSTGRES
from zerver.sql.driver import Driver, Statement
from zerver.sql.postgres import open_postgres

#: Seconds for what is left to be written when the journal is closed.
CLOSE_SECONDS: Final = 3.0


@asynccontextmanager
async def open_postgres_journal(
    conninfo: str,
    *,
    cipher: Cipher | None = None,
    keep_secrets: bool = False,
    patience: float = 1.0,
    size: int = 4,
) -> AsyncGenerator[Journal, None]:
    """Open the journal in this database; its tables, `zerver_…`, are made if they are missing.

    conninfo: as `open_postgres` takes it. cipher, keep_secrets: see `zerver.journal.lines`. patience: seconds after
    which a call that has no answer counts as lost. size: connections at most; batches take one, recovery and lookups
    the others.

    Raises DefinitionError without psycopg or for a wrong conninfo, JournalUnavailable when the server cannot be
    reached, DamagedJournal for tables of a newer version.
    """
    async with AsyncExitStack() as stack:
        try:
            driver = await stack.enter_async_context(open_postgres(conninfo, size=size, schema=_SCHEMA))
            name = await _place_of(driver)
            await migrate(driver, POSTGRES, name)
        except DatabaseDown as error:
            raise JournalUnavailable(f"cannot open the journal: {error}", error.retry_after) from error
        except DriverError as error:
            raise JournalUnavailable(f"cannot open the journal: {error}") from error
        journal = SqlJournal(driver, POSTGRES, Lines(cipher, keep_secrets), place=name, patience=patience)
        await stack.enter_async_context(open_scribe(journal.scribe, close_seconds=CLOSE_SECONDS))
        yield journal


async def _place_of(driver: Driver) -> str:
    """How errors and statistics call the database: without a password."""
    found = await driver.fetch(Statement("select current_database()"))
    return f"postgresql {found.rows[0][0]}"


#: Made by the first who comes; the driver lets one process at a time run it.
_SCHEMA: Final = f"""
do $zerver$ begin
    if to_regclass('zerver_journal') is null then
        {first_script(POSTGRES)}
    end if;
end $zerver$
"""
