"""SQL as a capability: the handlers of `zerver.effects.sql`, on any driver.

Law: a handler translates an effect into statements, and answers into values; whether something happened is the
driver's to say. Nothing here knows which database it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from zerver.core.app import Capability
from zerver.core.effects import INJECTED, Effect
from zerver.effects import sql
from zerver.sql.driver import Answer, Changed, Driver, Rows, Statement
from zerver.sql.rows import as_values
from zerver.sql.sqlite import open_sqlite


def sql_capability(open_driver: Callable[[], AbstractAsyncContextManager[Driver]], name: str = "sql") -> Capability:
    """The `sql` effects on a driver that `open_driver` opens. A handler of yours may take `Driver` as a resource."""
    return Capability(name=name, handlers=_HANDLERS, resources={_DRIVER: open_driver})


def sqlite(
    path: str | os.PathLike[str], *, schema: str | None = None, readers: int = 4, busy_timeout: float = 5.0
) -> Capability:
    """The `sql` effects on a SQLite file, or ":memory:"; see `open_sqlite` for what is promised.

    schema: a script run when the runtime opens: `create table if not exists …; …`.
    """
    return sql_capability(
        lambda: open_sqlite(path, schema=schema, readers=readers, busy_timeout=busy_timeout), "sqlite"
    )


_DRIVER: Any = Driver  # a protocol is a type to those who annotate with it, and no class to type checkers


async def _fetch_one(type_: Any, text: str, params: tuple[object, ...], *, driver: Driver = INJECTED) -> Any:
    values = as_values(type_, await driver.fetch(Statement(text, params)))
    return values[0] if values else None


async def _fetch_all(type_: Any, text: str, params: tuple[object, ...], *, driver: Driver = INJECTED) -> list[Any]:
    return as_values(type_, await driver.fetch(Statement(text, params)))


async def _fetch_value(type_: Any, text: str, params: tuple[object, ...], *, driver: Driver = INJECTED) -> Any:
    return _first_value(type_, await driver.fetch(Statement(text, params)))


async def _execute(text: str, params: tuple[object, ...], *, expect: int | None, driver: Driver = INJECTED) -> int:
    return (await driver.execute(Statement(text, params, expect))).count


async def _execute_returning(
    type_: Any, text: str, params: tuple[object, ...], *, expect: int | None, driver: Driver = INJECTED
) -> list[Any]:
    return as_values(type_, await driver.execute_returning(Statement(text, params, expect)))


async def _transaction(*effects: Effect[Any], driver: Driver = INJECTED) -> tuple[Any, ...]:
    answers = await driver.transaction([_statement(effect) for effect in effects])
    return tuple(_value(effect, answer) for effect, answer in zip(effects, answers, strict=True))


_HANDLERS: dict[str, Callable[..., Any]] = {
    sql.FETCH_ONE.name: _fetch_one,
    sql.FETCH_ALL.name: _fetch_all,
    sql.FETCH_VALUE.name: _fetch_value,
    sql.EXECUTE.name: _execute,
    sql.EXECUTE_RETURNING.name: _execute_returning,
    sql.TRANSACTION.name: _transaction,
}


def _statement(effect: Effect[Any]) -> Statement:
    """A member of a transaction; its last two positional arguments are the text and the parameters."""
    text, params = effect.args[-2:]
    return Statement(text, params, effect.kwargs.get("expect"))


def _value(effect: Effect[Any], answer: Answer) -> Any:
    if isinstance(answer, Changed):
        return answer.count
    if effect.kind is sql.FETCH_VALUE:
        return _first_value(effect.args[0], answer)
    if effect.kind is sql.EXECUTE:
        return len(answer.rows)
    values = as_values(effect.args[0], answer)
    return (values[0] if values else None) if effect.kind is sql.FETCH_ONE else values


def _first_value(type_: Any, rows: Rows) -> Any:
    if not rows.rows or rows.rows[0][0] is None:
        return None
    return as_values(type_, Rows(rows.columns[:1], [rows.rows[0][:1]]))[0]
