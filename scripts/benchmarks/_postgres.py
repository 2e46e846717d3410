"""A PostgreSQL for benchmarks: the one of the tests, with what makes it keep its word (fsync) turned on again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[2] / "tests" / "sql"

#: The last one counts. What a page costs and how often is flushed stays as it comes.
SETTINGS = ("fsync=on", "synchronous_commit=on", "full_page_writes=on")


@contextmanager
def postgres(folder: Path) -> Iterator[Any]:
    """A server that works in this folder: the tests' `Server`."""
    sys.path.insert(0, str(TESTS))
    from postgresql import Server  # now: a benchmark that does without one need not load what tests load

    folder.mkdir(mode=0o755)
    server = Server(folder, settings=SETTINGS)
    server.init()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def as_url(conninfo: str, scheme: str) -> str:
    """The same database, as SQLAlchemy and asyncpg call it."""
    said = dict(part.split("=", 1) for part in conninfo.split())
    return f"{scheme}://{said['user']}@/{said['dbname']}?host={said['host']}&port={said['port']}"
