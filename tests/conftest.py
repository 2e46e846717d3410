"""What holds for all tests: thousands of them are in memory, and whoever collects garbage is not to look at each.

Processes that tests start leave no compiled code behind: a test may write a module, run it, and write it again within
the second that a cache tells apart. They read what is there, and pytest's own processes leave all of zerver there.

The fixture of PostgreSQL is here and is not imported: in each module that imports it, it is another one, and starts a
server of its own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sql.postgresql import Server


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()
    gc.freeze()  # leak checks collect thousands of times; beside all that was collected here that took half of the time
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # now: processes of xdist have started


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One PostgreSQL server for all tests of this process that leave it running."""
    from tests.sql.postgresql import running_server  # now: most tests do without its driver

    with running_server(settings=["autovacuum=off"]) as started:  # of hundreds of databases it would never rest
        yield started


@pytest.fixture
def conninfo(server: Server) -> str:
    """A database of the test's own."""
    return server.make_database()
