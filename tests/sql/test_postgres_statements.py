"""Proves what becomes of a statement on its way to PostgreSQL: which `?` are parameters, which words are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.errors import StatementError
from zerver.sql.driver import Statement
from zerver.sql.postgres_statements import explained, quoted, sendable, translated


@pytest.mark.parametrize(
    ("sql", "text", "marks"),
    [
        ("select ?", "select  $1", 1),
        ("select ? + ?", "select  $1 +  $2", 2),
        ("select 'a?''b?' || ?", "select 'a?''b?' ||  $1", 1),
        (r"select e'a\'?' || ?", r"select e'a\'?' ||  $1", 1),
        (r"select 'a\' || ?", r"select 'a\' ||  $1", 1),
        (r"select name'?' || ?", r"select name'?' ||  $1", 1),
        ('select "od?d" = ?', 'select "od?d" =  $1', 1),
        ("select $$ ? ' $$ || ?", "select $$ ? ' $$ ||  $1", 1),
        ("select $a$ ? $$ $b$ ? $a$ || ?", "select $a$ ? $$ $b$ ? $a$ ||  $1", 1),
        ("select a$b$c, ? from t where d$b$ = 1", "select a$b$c,  $1 from t where d$b$ = 1", 1),
        ("select 1 -- ?\n+ ?", "select 1 -- ?\n+  $1", 1),
        ("select /* ? /* ? */ ? */ ?", "select /* ? /* ? */ ? */  $1", 1),
        ("select a ?? 'b', a ??| array[?]", "select a ? 'b', a ?| array[ $1]", 1),
        ("select ?::int[]", "select  $1::int[]", 1),
        ("limit?", "limit $1", 1),
        ("select 'never closed ?", "select 'never closed ?", 0),
        ("select /* never closed ?", "select /* never closed ?", 0),
        ("select $$ never closed ?", "select $$ never closed ?", 0),
    ],
)
def test_question_marks(sql: str, text: str, marks: int) -> None:
    assert translated(sql) == (text.encode(), marks)


@given(st.text(alphabet="?'\"$a-/*\n\\eE b", max_size=60))
def test_translation_keeps_everything_but_question_marks(sql: str) -> None:
    text, marks = translated(sql)
    back = text.decode()
    for place in range(marks, 0, -1):
        assert f" ${place}" in back
        head, _, rest = back.rpartition(f" ${place}")
        back = f"{head}?{rest}"
    assert back.replace("??", "?") == sql.replace("??", "?") or "??" in sql


@pytest.mark.parametrize(
    "sql",
    [
        "listen a", "copy t from stdin", "prepare a as select 1", "execute a", "deallocate all", "discard all",
        "vacuum t", "set search_path = x", "SET SESSION a = b", "reset all", "declare c cursor for select 1",
        "prepare transaction 'x'", "load 'x'",
    ],
)  # fmt: skip
def test_what_would_change_a_shared_connection_is_refused(sql: str) -> None:
    with pytest.raises(StatementError, match="is refused") as caught:
        sendable(Statement(sql))
    assert caught.value.code == "REFUSED"


@pytest.mark.parametrize("sql", ["set local lock_timeout = 1", "/* a */ set constraints all deferred", "lock table t"])
def test_what_ends_with_the_transaction_is_not(sql: str) -> None:
    assert sendable(Statement(sql)) == sql.encode()


@pytest.mark.parametrize("params", [(), (1, 2)])
def test_a_wrong_number_of_parameters(params: tuple[int, ...]) -> None:
    with pytest.raises(StatementError, match="1 parameter in the text") as caught:
        sendable(Statement("select ?", params))
    assert caught.value.code == "PARAMETERS"


@pytest.mark.parametrize("sql", ["select '\0'", "select '\ud800'"])
def test_what_is_no_text(sql: str) -> None:
    with pytest.raises(StatementError) as caught:
        sendable(Statement(sql))
    assert caught.value.code == "TEXT"


def test_an_error_says_what_to_do() -> None:
    error = explained(Statement("insert into t values (1)"), "23503", "violates a foreign key", "Key (1) is not there.")
    assert error.code == "23503"
    assert str(error).splitlines() == [
        "violates a foreign key (Key (1) is not there): insert into t values (1)",
        "  first insert the row it points to, or delete the rows that point to it",
    ]


def test_names_are_quoted() -> None:
    assert quoted('a"b') == '"a""b"'
    with pytest.raises(StatementError):
        quoted("")
