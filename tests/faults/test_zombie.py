"""A worker that stands still for longer than its lease loses its runs to another one; when it goes on, nothing that it
writes is taken, and nothing is done twice."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

from tests.faults.served import Reply, balanced, books, check_books, shop, until
from tests.sql.postgresql import Server, as_url, database_of

LEASE = 1.0


TAKEN_OVER = "select status, fence from zerver_runs where fence > 1"


def test_a_worker_that_stands_still(tmp_path: Path) -> None:
    stands_still(f"sqlite:///{tmp_path}/journal.db", tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as journal:
        assert journal.execute(TAKEN_OVER).fetchall() == [("done", 2)]


def test_a_worker_that_stands_still_with_a_journal_in_postgresql(server: Server, conninfo: str, tmp_path: Path) -> None:
    stands_still(as_url(conninfo), tmp_path)
    assert server.ask(TAKEN_OVER, database_of(conninfo)) == [("done", 2)]


def stands_still(journal: str, folder: Path) -> None:
    gate = folder / "gate"
    with shop(journal, folder, lease=LEASE) as zombie, shop(journal, folder, lease=LEASE) as other:
        gate.touch()
        replies: list[Reply] = []
        asking = threading.Thread(target=lambda: replies.append(zombie.order(1, "key")))
        asking.start()
        until(lambda: 1 in books(folder).standing, "the charge never came")
        zombie.stop()
        gate.unlink()
        time.sleep(2 * LEASE)
        until(lambda: balanced(folder), "nobody has taken the run over")
        before = books(folder)
        zombie.go_on()
        asking.join(30)
        assert [reply.status for reply in replies] == [503]
        assert books(folder) == before, "the zombie has done something"
        again = [served.order(1, "key") for served in (zombie, other)]
        assert [(reply.status, reply.replayed) for reply in again] == [(201, True)] * 2
        assert [served.order(number).status for number, served in ((2, zombie), (3, other))] == [201, 201]
    check_books(folder, [1, 2, 3], crashes=1)
