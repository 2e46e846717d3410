"""The constructors of zerver.effects.sql make data of the right kind, and refuse what cannot work."""

from __future__ import annotations

from typing import Any

import pytest

from zerver import Done, Effect, Policy, join, step
from zerver.effects import clock, sql
from zerver.errors import DefinitionError


@pytest.mark.parametrize(
    ("made", "kind", "access", "args", "kwargs"),
    [
        (sql.fetch_one(int, "select ?", 1), sql.FETCH_ONE, "read", (int, "select ?", (1,)), {}),
        (sql.fetch_all(int, "select 1"), sql.FETCH_ALL, "read", (int, "select 1", ()), {}),
        (sql.fetch_value(int, "select ?, ?", 1, 2), sql.FETCH_VALUE, "read", (int, "select ?, ?", (1, 2)), {}),
        (sql.execute("delete from t"), sql.EXECUTE, "write", ("delete from t", ()), {"expect": None}),
        (sql.execute("update t set a = ?", 1, expect=1), sql.EXECUTE, "write",
         ("update t set a = ?", (1,)), {"expect": 1}),
        (
            sql.execute_returning(int, "insert into t values (?) returning a", 1, expect=1),
            sql.EXECUTE_RETURNING,
            "write",
            (int, "insert into t values (?) returning a", (1,)),
            {"expect": 1},
        ),
    ],
)  # fmt: skip
def test_an_effect_is_data(made: Effect[Any], kind: object, access: str, args: object, kwargs: object) -> None:
    assert (made.kind, made.kind.access, made.args, made.kwargs) == (kind, access, args, kwargs)
    assert made.target == "sql"
    assert (made.policy, made.compensation, made.form) == (None, None, "value")


def test_a_transaction_holds_its_statements_in_order() -> None:
    members = (sql.execute("a"), sql.fetch_one(int, "b"), sql.execute_returning(int, "c"))
    made = sql.transaction(*members)
    assert (made.kind, made.kind.access, made.args) == (sql.TRANSACTION, "write", members)


@pytest.mark.parametrize(
    ("member", "problem", "cure"),
    [
        (clock.now(), "sql.transaction was given 'clock.now'", "give it sql.execute"),
        (sql.transaction(), "was given 'sql.transaction'", "give it sql.execute"),
        (join.all(sql.execute("a"), sql.execute("b")), "was given 'join.all'", "give it sql.execute"),
        ("delete from t", "was given 'delete from t'", "give it sql.execute"),
        (sql.execute("a").with_policy(timeout=1), "a sql.execute in it has a policy", "on the transaction"),
        (sql.execute("a").compensate(lambda _: sql.execute("b")), "or compensation of its own", "on the transaction"),
        (sql.fetch_one(int, "a").optional(), "of its own", "on the transaction"),
    ],
)
def test_a_transaction_takes_plain_statements_only(member: Any, problem: str, cure: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        sql.transaction(sql.execute("ok"), member)
    assert problem in raised.value.problem
    assert cure in raised.value.cure


def test_a_refused_member_does_not_show_its_parameters() -> None:
    with pytest.raises(DefinitionError) as raised:
        sql.transaction(sql.execute("insert into cards values (?)", "4111 1111").optional())
    assert "4111" not in str(raised.value)


def test_writes_may_be_retried_and_compensated_and_reads_may_not_be_undone() -> None:
    retried = sql.execute("a").with_policy(retries=3)  # takes no key: a statement's failures are certain
    assert retried.policy == Policy(retries=3)
    assert sql.execute("a").compensate(lambda _: sql.execute("b")).compensation is not None
    with pytest.raises(DefinitionError, match="is a read and cannot be compensated"):
        sql.fetch_one(int, "a").compensate(lambda _: sql.execute("b"))


def test_every_constructor_is_found_in_the_code_of_a_step() -> None:
    def helper() -> Effect[int]:
        return sql.execute("b").with_policy(retries=1)

    @step
    async def ask() -> Done:
        await sql.fetch_one(int, "a")
        await sql.fetch_all(int, "a")
        await sql.fetch_value(int, "a")
        await helper()
        await sql.transaction(sql.execute_returning(int, "a")).compensate(lambda _: sql.execute("undo"))
        return Done()

    found = {mention.kind for mention in ask.mentions}
    assert found == {*sql.STATEMENTS, sql.TRANSACTION}
    assert [mention.compensated for mention in ask.mentions if mention.kind is sql.TRANSACTION] == [True]
    assert {"retries": 1} in [mention.policy for mention in ask.mentions]
