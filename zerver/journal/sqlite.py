"""The journal in a SQLite file: embedded, for the processes of one machine.

Law: nothing is acknowledged before its fsync (`synchronous=FULL`, a write-ahead log). A file that is not ours is
refused before it is opened, and left as it was. The file is for its owner alone: the values of runs are in it.

Leases are kept by the time since the machine was started, which nobody sets and no summer changes, and which all its
processes share; a lease from before the last start has lapsed. A file on a network is no place for a journal: SQLite's
log does not work there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from zerver.errors import DamagedJournal, DriverError, JournalUnavailable
from zerver.journal.lines import Cipher, Lines
from zerver.journal.schema import first_script, migrate, not_ours
from zerver.journal.scribe import open_scribe
from zerver.journal.sql import SqlJournal
from zerver.runtime.journal import Journal
from zerver.sql.dialects import SQLITE
from zerver.sql.sqlite import open_sqlite
from zerver.trace.keeping.schema import is_empty, put_in_place

#: "zvj1", as `file` and SQLite's header have it.
APPLICATION_ID: Final = 0x7A766A31

_MAGIC: Final = b"SQLite format 3\x00"
_HEADER: Final = 100


@asynccontextmanager
async def open_sqlite_journal(
    path: str | os.PathLike[str],
    *,
    cipher: Cipher | None = None,
    keep_secrets: bool = False,
    busy_timeout: float = 5.0,
) -> AsyncGenerator[Journal, None]:
    """Open the journal in this file; made, with its folder, if it is missing. Any number of processes may share it.

    cipher, keep_secrets: see `zerver.journal.lines`. busy_timeout: seconds to wait for a lock that another process
    holds. When the block is left, what was to be written behind is written first.

    Raises DamagedJournal for a file that is no journal, torn, or of a newer version; JournalUnavailable when it cannot
    be made or opened.
    """
    place = Path(path)
    async with AsyncExitStack() as stack:
        with _explained(place):
            if is_empty(place):
                await _make(place)
            _check(place)
            driver = await stack.enter_async_context(open_sqlite(place, readers=2, busy_timeout=busy_timeout))
            await migrate(driver, SQLITE, str(place))
        journal = SqlJournal(driver, SQLITE, Lines(cipher, keep_secrets), place=str(place))
        # No bound of Trio's clock for the end: a mock one would jump over the working thread. The driver has a bound.
        await stack.enter_async_context(open_scribe(journal.scribe, close_seconds=float("inf")))
        yield journal


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """What keeps a journal from being opened, in its words."""
    try:
        yield
    except (OSError, DriverError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JournalUnavailable(f"cannot open the journal {place}: {reason}") from error


async def _make(place: Path) -> None:
    """Make an empty journal, in one move, unless another process is first."""
    made = place.with_name(f".{place.name}.{os.getpid()}.new")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.unlink(missing_ok=True)  # of a process that had this number before
        os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        script = f"pragma application_id = {APPLICATION_ID};\n{first_script(SQLITE)}"
        async with open_sqlite(made, readers=1, schema=script):
            pass  # closing takes the log into the file
        put_in_place(made, place)
    finally:
        for rest in ("", "-wal", "-shm"):
            with suppress(OSError):
                made.with_name(made.name + rest).unlink(missing_ok=True)


def _check(place: Path) -> None:
    """Raise DamagedJournal unless the file begins as ours do, and is as long as it says."""
    with place.open("rb") as file:
        header = file.read(_HEADER)
    size = place.stat().st_size
    log = place.with_name(place.name + "-wal")
    if not header.startswith(_MAGIC[: len(header)]) or int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise not_ours(str(place))
    page = int.from_bytes(header[16:18], "big")
    due = int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page)
    if len(header) < _HEADER or (size < due and is_empty(log)):
        raise DamagedJournal(
            f"the journal {place} is torn: {size} bytes of {due}\n"
            "  restore it from a backup, with its -wal file; or move it away and a new one is made, without its runs"
        )
