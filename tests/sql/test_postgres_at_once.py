"""`write_at_once` on a real server: COMMIT goes with the statements, and what is promised of a transaction holds."""

from __future__ import annotations

import pytest
import trio

from tests.sql.postgresql import Server, open_proxy, through
from tests.sql.test_postgres import SCHEMA, SLOW_INSERT, cancelled_once, insert, keys, until_busy
from tests.sql.test_postgres import db as db
from zerver.errors import ConnectionLost, StatementError
from zerver.sql import PostgresDriver, Statement, open_postgres
from zerver.sql.driver import Changed, Rows


@pytest.mark.parametrize("statement", [SLOW_INSERT, insert(1)], ids=["at work", "at once"])
async def test_cancelled_has_not_happened_or_returns(db: PostgresDriver, server: Server, statement: Statement) -> None:
    """Cut while a statement works it is undone, and its connection kept; cut anywhere else it is all or nothing."""
    if statement is SLOW_INSERT:
        async with cancelled_once(db, lambda: until_busy(db, server)):
            await db.write_at_once([insert(1), statement])
        assert await keys(db) == []
        assert db.statistics().cancelled == 1
    else:
        for key in range(20):
            returned = False
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def cancel(checkpoints: int = key) -> None:
                        for _ in range(checkpoints):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    await db.write_at_once([insert(key), insert(100 + key)])
                    returned = True
            found = await keys(db)
            assert (key in found) is (100 + key in found) is returned


async def test_answers_as_a_transaction_does(db: PostgresDriver) -> None:
    for key in range(3):  # sent as text, then prepared, then as prepared
        answers = await db.write_at_once([insert(key), Statement("select id from t where id = ?", (key,))])
        assert answers == [Changed(1), Rows(("id",), [(key,)])]
    assert await db.write_at_once([]) == []
    assert db.statistics().commits == 3


async def test_passes_over_the_commit_behind_a_statement_that_fails(db: PostgresDriver) -> None:
    await db.execute(insert(7))
    for _ in range(3):
        with pytest.raises(StatementError) as caught:
            await db.write_at_once([insert(1), insert(7), insert(2)])
        assert caught.value.code == "23505"
    assert await keys(db) == [7]
    assert db.statistics().connections == 1


async def test_looks_first_at_what_is_expected(db: PostgresDriver) -> None:
    changed_none = Statement("update t set label = 'y' where id = 99", expect=1)
    with pytest.raises(StatementError) as caught:
        await db.write_at_once([insert(1), changed_none])
    assert caught.value.code == "ROW_COUNT"

    def refuse(_: object) -> None:
        raise ValueError("not this one")

    with pytest.raises(ValueError, match="not this one"):
        await db.write_at_once([Statement("insert into t (id) values (2) returning id", accept=refuse)])
    assert await keys(db) == []


async def test_finds_a_deferred_constraint_at_the_commit(db: PostgresDriver) -> None:
    await db.transaction([
        Statement("create table later (id integer references t (id) deferrable initially deferred)")
    ])  # fmt: skip
    with pytest.raises(StatementError) as caught:
        await db.write_at_once([Statement("insert into later values (5)")])
    assert caught.value.code == "23503"
    await db.write_at_once([Statement("insert into later values (5)"), insert(5)])
    assert await keys(db) == [5]


async def test_a_connection_that_breaks_is_lost_and_never_down(server: Server, conninfo: str) -> None:
    async with (
        open_postgres(conninfo, schema=SCHEMA) as direct,
        open_proxy(server) as proxy,
        open_postgres(through(proxy.port, conninfo), size=1) as db,
    ):
        proxy.lose_request = b"insert into t"
        with pytest.raises(ConnectionLost):
            await db.write_at_once([insert(1)])
        proxy.lose_request, proxy.lose_reply = None, b"insert into t"
        with pytest.raises(ConnectionLost):
            await db.write_at_once([insert(2)])
        assert await keys(direct) == [2]  # 1 has not happened, and 2 has: the driver could not tell
        proxy.lose_reply = None
        await db.write_at_once([insert(3)])


async def test_whose_answer_cannot_be_read_does_not_claim_that_nothing_was_done(
    db: PostgresDriver,
) -> None:
    with pytest.raises(ConnectionLost, match="cannot be read"):
        await db.write_at_once([insert(1), Statement("select 'infinity'::date")])
    assert await keys(db) == [1]


async def test_that_nobody_answers_does_not_hold_a_cancelled_caller(
    server: Server, conninfo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerver.sql.postgres_link.STOP_SECONDS", 0.05)
    async with (
        open_proxy(server) as proxy,
        open_postgres(through(proxy.port, conninfo), size=1, schema=SCHEMA) as db,
    ):
        proxy.lose_request, proxy.hang_up = b"insert into t", False
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    await proxy.lost.wait()
                    scope.cancel()

                nursery.start_soon(cancel)
                with pytest.raises(ConnectionLost, match="nobody knows"):
                    await db.write_at_once([insert(1)])
        assert db.statistics().connections == 0
