"""A PostgreSQL for benchmarks: the one of the tests, with what makes it keep its word (fsync) turned on again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "sql"))
from postgresql import Server

#: The last one counts. What a page costs and how often is flushed stays as it comes.
SETTINGS = ("fsync=on", "synchronous_commit=on", "full_page_writes=on")


@contextmanager
def postgres(folder: Path) -> Iterator[Server]:
    """A server that works in this folder."""
    folder.mkdir(mode=0o755)
    server = Server(folder, settings=SETTINGS)
    server.init()
    server.start()
    try:
        yield server
    finally:
        server.stop()
