"""The sql effects, and the shop's own statements, give the same on PostgreSQL as on SQLite."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
import pytest

from examples.checkout import store
from examples.checkout.domain import Cart, Charge, Line, Order, User
from tests.sql.postgresql import Server, open_proxy, through
from zerver import App, Capability, Done, Effect, Flow, effect, step
from zerver.core.effects import INJECTED
from zerver.effects import sql
from zerver.errors import DatabaseDown, EffectError, OutcomeUnknown, StatementError
from zerver.runtime import Result, Runtime, open_runtime
from zerver.sql import Driver, PostgresDriver, Statement, postgres, sqlite

# PostgreSQL has no `insert or ignore`; the database is new, so that there is nothing to ignore.
SHOP = store.SCHEMA.replace("insert or ignore", "insert")

CART = Cart("cart_1", [Line("pot", 1, 3900), Line("tea", 2, 450)])
ADA = User("user_1", "Ada", "gold")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path, server: Server) -> Callable[[str], Capability]:
    """Makes the capability of a new database, with a schema, on either of the two."""
    if request.param == "sqlite":
        return lambda schema: sqlite(tmp_path / "shop.db", schema=schema)
    return lambda schema: postgres(server.make_database(), schema=schema, size=2)


@asynccontextmanager
async def opened(capability: Capability, *more: Capability) -> AsyncIterator[Runtime]:
    async with open_runtime(App(capabilities=[capability, *more])) as runtime:
        yield runtime


async def result_of(runtime: Runtime, made: Effect[Any]) -> Result:
    @step(effects=sql.STATEMENTS)
    async def ask() -> Done:
        return Done(await made)

    return await runtime.run(Flow("ask", [ask]))


async def value_of(runtime: Runtime, made: Effect[Any]) -> Any:
    return (await result_of(runtime, made)).unwrap()


async def test_the_shops_statements(database: Callable[[str], Capability]) -> None:
    async with opened(database(SHOP)) as runtime:
        assert await value_of(runtime, store.user_by_token("token-user_1")) == ADA
        assert await value_of(runtime, store.user_by_token("'; drop table users; --")) is None
        assert await value_of(runtime, store.cart_lines("cart_1")) == CART.lines
        placed = store.insert_order("order_1", ADA, CART, Charge("key_1", CART.total))
        assert await value_of(runtime, placed) == 1
        order = Order("order_1", "user_1", "cart_1", CART.total, "key_1", "placed")
        assert await value_of(runtime, store.order_of("order_1", ADA)) == order
        assert await value_of(runtime, store.take_stock(CART)) == (1, 1)
        assert await value_of(runtime, store.return_stock(CART)) == (1, 1)
        sold_out = Cart("cart_soldout", [Line("tea", 1, 450), Line("samovar", 1, 19900)])
        refused = await result_of(runtime, store.take_stock(sold_out))
        assert isinstance(refused.cause, EffectError)
        assert isinstance(refused.cause.cause, StatementError)
        assert refused.cause.cause.code == "ROW_COUNT"
        assert await value_of(runtime, sql.fetch_value(int, "select quantity from stock where sku = 'tea'")) == 10**9
        assert await value_of(runtime, store.cancel_order("order_1")) == 1


@attrs.frozen
class Thing:
    id: int
    name: str | None
    price: Decimal
    seen: datetime.datetime
    active: bool


THINGS = """
create table if not exists things (
    id integer primary key, name text, price {numeric} not null, seen timestamp not null, active boolean not null
);
"""


async def test_rows_as_values(database: Callable[[str], Capability]) -> None:
    capability = database(THINGS.format(numeric="text"))
    thing = Thing(1, None, Decimal("12.50"), datetime.datetime(2031, 5, 6, 7, 8, 9), True)
    async with opened(capability) as runtime:
        add = "insert into things values (?, ?, ?, ?, ?) returning *"
        made = sql.execute_returning(Thing, add, thing.id, thing.name, str(thing.price), thing.seen, thing.active)
        assert await value_of(runtime, made) == [thing]
        both = sql.transaction(
            sql.execute("update things set name = ? where id = ?", "x", 1, expect=1),
            sql.fetch_one(Thing, "select * from things"),
            sql.fetch_value(bool, "select active from things"),
            sql.fetch_all(int, "select id from things where id > ?", 1),
        )
        assert await value_of(runtime, both) == (1, attrs.evolve(thing, name="x"), True, [])


async def test_types_that_postgresql_has_itself(conninfo: str) -> None:
    @attrs.frozen
    class Row:
        id: UUID
        price: Decimal
        tags: list[str]
        about: dict[str, Any]

    row = Row(UUID(int=7), Decimal("0.1"), ["a", "b"], {"c": [1, 2.5, None]})
    schema = "create table rows (id uuid, price numeric, tags text[], about jsonb)"
    async with opened(postgres(conninfo, schema=schema)) as runtime:
        add = sql.execute("insert into rows values (?, ?, ?, ?)", row.id, row.price, row.tags, row.about)
        assert await value_of(runtime, add) == 1
        assert await value_of(runtime, sql.fetch_one(Row, "select * from rows where tags @> ?", ["a"])) == row


async def test_a_lost_commit_leaves_a_run_in_doubt_and_a_lost_statement_does_not(server: Server, conninfo: str) -> None:
    schema = "create table if not exists t (n integer)"
    async with (
        open_proxy(server) as proxy,
        opened(postgres(through(proxy.port, conninfo), schema=schema, size=1)) as runtime,
    ):
        proxy.lose_request = b"insert into t"
        certain = await result_of(runtime, sql.execute("insert into t values (1)"))
        assert isinstance(certain.cause, EffectError)
        assert isinstance(certain.cause.cause, DatabaseDown)
        assert certain.unresolved == ()
        proxy.lose_request, proxy.lose_reply = None, b"commit"
        made = sql.execute("insert into t values (2)").compensate(lambda _: sql.execute("delete from t"))
        doubtful = await result_of(runtime, made)
        assert isinstance(doubtful.cause, OutcomeUnknown)


async def test_a_handler_may_take_the_driver_by_either_name(conninfo: str) -> None:
    @effect(kind="things.load", access="write")
    async def load(count: int, *, database: PostgresDriver = INJECTED) -> int:
        return await database.copy("t", ["n"], ((n,) for n in range(count)))

    @effect(kind="things.count", access="read")
    async def count(*, database: Driver = INJECTED) -> object:
        return (await database.fetch(Statement("select count(*) from t"))).rows[0][0]

    @step
    async def both() -> Done:
        return Done((await load(1000), await count()))

    async with opened(postgres(conninfo, schema="create table t (n integer)")) as runtime:
        assert (await runtime.run(Flow("both", [both]))).unwrap() == (1000, 1000)
