"""SQL as a capability: the handlers of `zerver.effects.sql`, on any driver.

Law: a handler translates an effect into statements, and answers into values, the latter before the commit; whether
something happened is the driver's to say. Nothing here knows which database it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import attrs

from zerver.core.app import App, Capability
from zerver.core.effects import INJECTED, CallInfo, Effect, EffectKind
from zerver.core.jobs import Asker
from zerver.core.priorities import Priority
from zerver.effects import queue, sql
from zerver.sql.driver import Answer, Changed, Driver, Rows, Statement, check_answer
from zerver.sql.enqueueing import Enqueueing, ordered_ids
from zerver.sql.postgres import PostgresDriver, check_installed, open_postgres
from zerver.sql.rows import as_values
from zerver.sql.sqlite import open_sqlite


def sql_capability(open_driver: Callable[[], AbstractAsyncContextManager[Driver]], name: str = "sql") -> Capability:
    """The `sql` effects on a driver that `open_driver` opens. A handler of yours may take `Driver` as a resource."""
    return Capability(name=name, handlers=_HANDLERS, resources={_DRIVER: open_driver, Enqueueing: _open_enqueueing})


def postgres(
    conninfo: str,
    *,
    schema: str | None = None,
    size: int = 10,
    least: int = 1,
    idle_seconds: float = 300.0,
    lifetime: float = 3600.0,
    statement_timeout: float = 60.0,
) -> Capability:
    """The `sql` effects on a PostgreSQL database; see `open_postgres` for what is promised, and in which units.

    A handler of yours may take `Driver` or `PostgresDriver` as a resource. Needs the extra `postgres`: without it,
    DefinitionError.
    """
    check_installed()

    def open_driver() -> AbstractAsyncContextManager[PostgresDriver]:
        return open_postgres(
            conninfo,
            schema=schema,
            size=size,
            least=least,
            idle_seconds=idle_seconds,
            lifetime=lifetime,
            statement_timeout=statement_timeout,
        )

    return Capability(
        name="postgres",
        handlers=_HANDLERS,
        resources={PostgresDriver: open_driver, _DRIVER: _as_driver, Enqueueing: _open_enqueueing},
    )


@asynccontextmanager
async def _open_enqueueing(app: App) -> AsyncGenerator[Enqueueing, None]:
    """Where `jobs()` says that it keeps them here."""
    yield Enqueueing(app.declared)


@asynccontextmanager
async def _as_driver(postgres: PostgresDriver) -> AsyncGenerator[Driver, None]:
    """The same driver, under the port's name."""
    yield postgres


def sqlite(
    path: str | os.PathLike[str], *, schema: str | None = None, readers: int = 4, busy_timeout: float = 5.0
) -> Capability:
    """The `sql` effects on a SQLite file, or ":memory:"; see `open_sqlite` for what is promised.

    schema: a script run when the runtime opens: `create table if not exists …; …`.
    """
    made = sql_capability(
        lambda: open_sqlite(path, schema=schema, readers=readers, busy_timeout=busy_timeout), "sqlite"
    )
    return attrs.evolve(made, file=os.fspath(path))


_DRIVER: Any = Driver  # a protocol is a type to those who annotate with it, and no class to type checkers


async def _fetch_one(
    type_: Any, text: str, params: tuple[object, ...], *, info: CallInfo = INJECTED, driver: Driver = INJECTED
) -> Any:
    return await _fetched(driver, Wish(info.priority, partial(_first, type_), text, params))


async def _fetch_all(
    type_: Any, text: str, params: tuple[object, ...], *, info: CallInfo = INJECTED, driver: Driver = INJECTED
) -> Any:
    return await _fetched(driver, Wish(info.priority, partial(as_values, type_), text, params))


async def _fetch_value(
    type_: Any, text: str, params: tuple[object, ...], *, info: CallInfo = INJECTED, driver: Driver = INJECTED
) -> Any:
    return await _fetched(driver, Wish(info.priority, partial(_value, type_), text, params))


async def _fetched(driver: Driver, wish: Wish) -> Any:
    await driver.fetch(wish.statement)
    return wish.value


async def _execute(
    text: str, params: tuple[object, ...], *, expect: int | None, info: CallInfo = INJECTED, driver: Driver = INJECTED
) -> int:
    return (await driver.execute(Statement(text, params, expect, priority=info.priority))).count


async def _execute_returning(
    type_: Any,
    text: str,
    params: tuple[object, ...],
    *,
    expect: int | None,
    info: CallInfo = INJECTED,
    driver: Driver = INJECTED,
) -> Any:
    wish = Wish(info.priority, partial(as_values, type_), text, params, expect)
    await driver.execute_returning(wish.statement)
    return wish.value


async def _transaction(
    *effects: Effect[Any], info: CallInfo = INJECTED, driver: Driver = INJECTED, enqueueing: Enqueueing = INJECTED
) -> tuple[Any, ...]:
    members: list[Wish | Enqueued] = []
    for effect in effects:
        if effect.kind in queue.ORDERING:
            # Of each member its own key: the same orders, when the transaction is asked for again.
            key = f"{info.key}.{len(members)}"
            asker = Asker(key, info.tenant, info.traceparent, time.time_ns())
            members.append(Enqueued(effect, enqueueing.parts(effect, asker)))
        else:
            members.append(_wish(info.priority, effect))
    answers = await driver.transaction([statement for member in members for statement in member.statements])
    at = 0
    for member in members:
        begin, at = at, at + len(member.statements)
        if isinstance(member, Enqueued):
            member.read(answers[begin:at])
            enqueueing.ordered()
    return tuple(member.value for member in members)


_HANDLERS: dict[str, Callable[..., Any]] = {
    sql.FETCH_ONE.name: _fetch_one,
    sql.FETCH_ALL.name: _fetch_all,
    sql.FETCH_VALUE.name: _fetch_value,
    sql.EXECUTE.name: _execute,
    sql.EXECUTE_RETURNING.name: _execute_returning,
    sql.TRANSACTION.name: _transaction,
}


# ---- statements and their answers -----------------------------------------------------------


class Wish:
    """A statement, and the value to make of its answer.

    The value is made before the commit, by `Statement.accept`: a write whose answer is not what the step asked for must
    not have happened, because the step is told that it failed. make is None for a statement without rows.
    """

    __slots__ = ("_make", "statement", "value")

    def __init__(
        self,
        priority: Priority,
        make: Callable[[Rows], Any] | None,
        text: str,
        params: tuple[object, ...],
        expect: int | None = None,
    ) -> None:
        self._make = make
        self.value: Any = None
        self.statement = Statement(text, params, expect, self._accept, priority)

    @property
    def statements(self) -> list[Statement]:
        return [self.statement]

    def _accept(self, answer: Answer) -> None:
        # In a transaction the driver takes answers of any shape; a member is to answer as it would alone.
        check_answer(attrs.evolve(self.statement, accept=None), answer, Rows if self._make else Changed)
        if isinstance(answer, Changed):
            self.value = answer.count
        elif self._make is not None:
            self.value = self._make(answer)


class Enqueued:
    """Orders of jobs among the members of a transaction, and the ids that it has answered with."""

    __slots__ = ("_effect", "_parts", "value")

    def __init__(self, effect: Effect[Any], parts: list[list[Statement]]) -> None:
        self._effect = effect
        self._parts = parts
        self.value: Any = None

    @property
    def statements(self) -> list[Statement]:
        return [statement for part in self._parts for statement in part]

    def read(self, answers: Sequence[Answer]) -> None:
        """Make the value of the answers to `statements`."""
        lasts = accumulate(map(len, self._parts))
        self.value = queue.answer_of(self._effect, [one for last in lasts for one in ordered_ids(answers[last - 1])])


def _wish(priority: Priority, effect: Effect[Any]) -> Wish:
    """A member of a transaction; its last two positional arguments are the text and the parameters."""
    *types, text, params = effect.args
    make = _MAKERS.get(effect.kind)
    return Wish(priority, make and partial(make, *types), text, params, effect.kwargs.get("expect"))


def _first(type_: Any, rows: Rows) -> Any:
    values = as_values(type_, Rows(rows.columns, rows.rows[:1]))
    return values[0] if values else None


def _value(type_: Any, rows: Rows) -> Any:
    if not rows.rows or rows.rows[0][0] is None:
        return None
    return _first(type_, Rows(rows.columns[:1], [rows.rows[0][:1]]))


#: What is made of the rows of a transaction's member, given the type that was asked for.
_MAKERS: Mapping[EffectKind[..., Any], Callable[[Any, Rows], Any]] = {
    sql.FETCH_ONE: _first,
    sql.FETCH_ALL: as_values,
    sql.FETCH_VALUE: _value,
    sql.EXECUTE_RETURNING: as_values,
}
