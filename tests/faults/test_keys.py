"""A request with an idempotency key whose worker dies, or whose journal goes away, is carried out once: whoever repeats
it is told to wait, and gets its answer then, whichever worker has carried it on; or it was undone, and begins anew."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from tests.faults.served import Reply, Shop, books, check_books, shop, until
from tests.sql.postgresql import as_url, running_server

LEASE = 1.0


@pytest.fixture(params=["sqlite", "postgres"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.db"
    return as_url(request.getfixturevalue("conninfo"))


@contextmanager
def dying(journal: str, folder: Path) -> Iterator[Callable[[], None]]:
    """A worker in the midst of its charge; what kills it is given."""
    (folder / "gate").touch()
    with shop(journal, folder, lease=LEASE) as served:
        asking = Thread(target=served.order, args=(1, "key"))
        asking.start()
        until(lambda: 1 in books(folder).standing, "the charge never came")

        def die() -> None:
            served.process.kill()
            asking.join(30)
            (folder / "gate").unlink()

        yield die


def repeat(served: Shop) -> Reply:
    """Ask until there is an answer; there is none but the first one's."""
    replies: list[Reply] = []

    def answered() -> bool:
        replies.append(served.order(1, "key"))
        return replies[-1].status != 409

    until(answered, "the key is in use for ever")
    return replies[-1]


def test_another_worker_carries_it_on(journal: str, tmp_path: Path) -> None:
    with dying(journal, tmp_path) as die, shop(journal, tmp_path, lease=LEASE) as other:
        assert other.order(1, "key").status == 409
        die()
        reply = repeat(other)
        assert (reply.status, reply.replayed) == (201, True)
    check_books(tmp_path, [1], crashes=1)


def test_a_worker_without_http_carries_it_on(journal: str, tmp_path: Path) -> None:
    with dying(journal, tmp_path) as die, shop(journal, tmp_path, lease=LEASE, says="nothing"):
        die()
        until(lambda: 1 in books(tmp_path).orders, "nobody has taken the run over")
        with shop(journal, tmp_path, lease=LEASE) as later:
            reply = repeat(later)
            assert (reply.status, reply.replayed) == (201, True)
    check_books(tmp_path, [1], crashes=1)


def test_a_run_that_lost_its_journal_is_undone_before_its_key_is_free(tmp_path: Path) -> None:
    with running_server() as server:
        journal = as_url(server.make_database())
        with shop(journal, tmp_path, lease=LEASE) as served:
            (tmp_path / "gate").touch()
            replies: list[Reply] = []
            asking = Thread(target=lambda: replies.append(served.order(1, "key")))
            asking.start()
            until(lambda: 1 in books(tmp_path).standing, "the charge never came")
            server.stop(signal.SIGQUIT)
            (tmp_path / "gate").unlink()
            asking.join(30)
            assert [(reply.status, bool(reply.retry_after)) for reply in replies] == [(503, True)]
            assert books(tmp_path).standing == {1: 1}, "it was undone before the journal knew"
            server.start()
            until(lambda: served.order(1, "key").status == 201, "the key is in use for ever")
            assert served.order(1, "key").replayed
        check_books(tmp_path, [1])
