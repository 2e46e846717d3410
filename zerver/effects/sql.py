"""SQL as effects: one statement, or several as one transaction.

Law: a statement is text and parameters; values never become part of the text. Parameters are written `?`, in order, on
every database; a driver translates. A single write is its own transaction, and `transaction` is all or nothing.
"""

from __future__ import annotations

from typing import Any, TypeVar

from zerver.core.effects import Effect, EffectKind
from zerver.effects import queue
from zerver.effects.catalogue import makes
from zerver.errors import DefinitionError

T = TypeVar("T")


def _kind(name: str, access: Any) -> EffectKind[..., Any]:
    # exact: a driver's verbs end in one of four ways, and say which; see the driver port in zerver.sql.
    return EffectKind(f"sql.{name}", access, target="sql", exact=True)


FETCH_ONE = _kind("fetch_one", "read")
FETCH_ALL = _kind("fetch_all", "read")
FETCH_VALUE = _kind("fetch_value", "read")
EXECUTE = _kind("execute", "write")
EXECUTE_RETURNING = _kind("execute_returning", "write")
TRANSACTION = _kind("transaction", "write")

#: Kinds that `transaction` takes as members.
STATEMENTS = (EXECUTE, EXECUTE_RETURNING, FETCH_ONE, FETCH_ALL, FETCH_VALUE)


@makes(FETCH_ONE)
def fetch_one(row: type[T], sql: str, /, *params: object) -> Effect[T | None]:
    """The first row as a `row` (an attrs class, by column names), or None if there is none."""
    return Effect(FETCH_ONE, (row, sql, params))


@makes(FETCH_ALL)
def fetch_all(row: type[T], sql: str, /, *params: object) -> Effect[list[T]]:
    """Every row as a `row` (an attrs class by column names, or a plain type for one column)."""
    return Effect(FETCH_ALL, (row, sql, params))


@makes(FETCH_VALUE)
def fetch_value(type_: type[T], sql: str, /, *params: object) -> Effect[T | None]:
    """The first column of the first row, or None if there is no row or the value is null."""
    return Effect(FETCH_VALUE, (type_, sql, params))


@makes(EXECUTE)
def execute(sql: str, /, *params: object, expect: int | None = None) -> Effect[int]:
    """Perform a write; gives the number of rows it touched.

    expect: how many it must be. Any other number undoes the write and is a failure (StatementError "ROW_COUNT").
    """
    return Effect(EXECUTE, (sql, params), {"expect": expect})


@makes(EXECUTE_RETURNING)
def execute_returning(row: type[T], sql: str, /, *params: object, expect: int | None = None) -> Effect[list[T]]:
    """Perform a write that answers with rows, as `insert … returning id`."""
    return Effect(EXECUTE_RETURNING, (row, sql, params), {"expect": expect})


@makes(TRANSACTION)
def transaction(*statements: Effect[Any]) -> Effect[tuple[Any, ...]]:
    """Perform the statements in order, all or none; gives their results, as each alone would.

    A statement's `expect=` decides about all of them; a fetch among them sees the writes before it. `queue.enqueue` and
    its kin may be members, where the app keeps its jobs in this database: a job is there if and only if the writes are.
    Raises DefinitionError for what is neither.
    """
    for statement in statements:
        kind = getattr(statement, "kind", None)
        if kind not in STATEMENTS and kind not in queue.ORDERING:
            given = repr(statement) if kind is None else repr(kind.name)
            raise DefinitionError(
                f"sql.transaction was given {given}", "give it sql.execute, sql.fetch_one, queue.enqueue, …"
            )
        if statement.policy is not None or statement.compensation is not None or statement.form != "value":
            raise DefinitionError(
                f"sql.transaction: a {statement.kind.name} in it has a policy or compensation of its own",
                "put .with_policy(), .compensate() and .optional() on the transaction",
            )
    return Effect(TRANSACTION, statements)
