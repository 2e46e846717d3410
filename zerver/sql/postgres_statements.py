"""Which statements PostgreSQL is given, and what is said of those it refuses. Nothing here does I/O or knows a client.

Law: `?` is a parameter wherever SQL allows one, and a plain sign everywhere else: inside quotes, dollar quotes and
comments it is left alone. `??` is a question mark, for those operators of jsonb that are written with one (PgJDBC's
rule, and its reason: no other sign is free).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from zerver.core.values import value
from zerver.errors import StatementError
from zerver.sql.driver import Statement, check_sendable, leading_word, statement_error


@value
class Query:
    """A statement ready to be sent: its text with `$n`, and for each parameter its bytes, type and format."""

    text: bytes
    values: Sequence[Any] = ()
    types: tuple[int, ...] = ()
    formats: Sequence[int] = ()


# What may hold a `?` that is none of ours, and the `?` itself. A quote that is never closed runs to the end: the server
# says what is wrong with it. `e'…'` alone knows backslashes (standard_conforming_strings has been on since 9.1).
_PIECES: Final = re.compile(
    r"""
      (?<![\w$]) [eE] ' (?: [^'\\] | \\. | '' )* (?:'|\Z)
    | ' (?: [^'] | '' )* (?:'|\Z)
    | " [^"]* (?:"|\Z)
    | (?<![\w$]) (?P<tag> \$ (?: [^\W\d]\w* )? \$ ) .*? (?: (?P=tag) | \Z )
    | -- [^\n]*
    | (?P<comment> /\* )
    | (?P<mark> \?\?? )
    """,
    re.DOTALL | re.VERBOSE,
)
_COMMENT_SIGNS: Final = re.compile(r"/\*|\*/")

# Words that change a connection which others use next, or cannot stand inside a transaction.
_REFUSED: Final[Mapping[str, str]] = {
    "close": "cursors end with their transaction; fetch what you need with a `limit`",
    "copy": "use the driver's copy(): it feeds the rows and counts them",
    "deallocate": "prepared statements are the driver's",
    "declare": "cursors end with their transaction; fetch what you need with a `limit`",
    "discard": "connections are shared: it would undo their settings",
    "execute": "prepared statements are the driver's: send the statement itself",
    "listen": "use the driver's listen(): notifications need a connection of their own",
    "load": "name the library in shared_preload_libraries or session_preload_libraries",
    "prepare": "prepared statements are the driver's: send the statement itself",
    "reset": "connections are shared; settings stand in conninfo: options=-csearch_path=shop",
    "unlisten": "use the driver's listen(): notifications need a connection of their own",
    "vacuum": "it cannot run inside a transaction; autovacuum does it, or psql",
}
# `set local`, `set constraints` and `set transaction` end with the transaction.
_SET: Final = re.compile(
    r"(?:\s|--[^\n]*|/\*.*?\*/)*set\s+(local|constraints|transaction)\b", re.IGNORECASE | re.DOTALL
)
_SET_CURE: Final = "connections are shared: use `set local` in a transaction, or conninfo: options=-csearch_path=shop"

#: The server undid the transaction through no fault of its own: the same statements may pass the next time.
CONFLICTS: Final = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected
#: What was prepared no longer fits the tables, or is not there: to be sent again, unprepared.
STALE: Final = frozenset({"0A000", "26000"})
#: COMMIT was answered, and the answer is that nobody knows: servers that are several machines say so.
UNDECIDED: Final = frozenset({"40003", "08007"})  # statement_completion_unknown, transaction_resolution_unknown

#: An answer that Python has no place for. Not the server's code, and so not a sign that nothing was done.
UNREADABLE: Final = "TYPE"

# What to do about an error, by the beginning of its code.
_CURES: Final[Mapping[str, str]] = {
    "23503": "first insert the row it points to, or delete the rows that point to it",
    "25006": "fetch() only reads; use execute(), or execute_returning() for a write with rows",
    "25P02": "an earlier statement of the transaction failed; use a savepoint around what may fail",
    "40001": "it was tried again several times; make transactions shorter, or let them touch rows in one order",
    "40P01": "it was tried again several times; make transactions lock rows in one order",
    "42601": "give several statements, one by one, to transaction()",
    "42P01": "create it first: postgres(schema=…), or a migration",
    "53100": "the server's disk is full; nothing was written",
    "53300": "the server allows no more connections: lower the pool's size, or raise max_connections",
    "55P03": "somebody else has held the lock for lock_timeout",
    "57014": "it ran into statement_timeout, or somebody cancelled it",
}


@lru_cache(maxsize=1024)
def translated(sql: str) -> tuple[bytes, int]:
    """The statement with `$1`, `$2` … for each `?`, as the server gets it, and how many they are."""
    parts: list[str] = []
    marks = at = 0
    while (piece := _PIECES.search(sql, at)) is not None:
        parts.append(sql[at : piece.start()])
        at = piece.end()
        if piece["comment"]:
            at = _end_of_comment(sql, at)
            parts.append(sql[piece.start() : at])
        elif piece["mark"] == "?":
            marks += 1
            # A space: `limit?` would be `limit$1`, one word to the server.
            parts.append(f" ${marks}")
        else:
            parts.append("?" if piece["mark"] else piece[0])
    parts.append(sql[at:])
    return "".join(parts).encode(), marks


def _end_of_comment(sql: str, at: int) -> int:
    """Where a comment ends whose beginning ends at `at`: PostgreSQL's nest, unlike SQLite's."""
    depth = 1
    while depth:
        sign = _COMMENT_SIGNS.search(sql, at)
        if sign is None:
            return len(sql)
        depth += 1 if sign[0] == "/*" else -1
        at = sign.end()
    return at


def sendable(statement: Statement) -> bytes:
    """The statement's text as the server gets it; StatementError if it cannot be sent."""
    check_sendable(statement)
    word = leading_word(statement.sql)
    if word in _REFUSED:
        raise statement_error(statement, f"{word.upper()} is refused", "REFUSED", _REFUSED[word])
    if word == "set" and not _SET.match(statement.sql):
        raise statement_error(statement, "SET is refused", "REFUSED", _SET_CURE)
    try:
        text, marks = translated(statement.sql)
    except UnicodeEncodeError as error:
        raise statement_error(statement, f"the text is no Unicode: {error.reason}", "TEXT") from error
    if b"\0" in text:
        raise statement_error(statement, "the text holds a zero character", "TEXT", "pass values as parameters")
    if marks != len(statement.params):
        problem = f"{marks} parameter{'s' * (marks != 1)} in the text, {len(statement.params)} given"
        raise statement_error(statement, problem, "PARAMETERS", "params holds one value for each ?; an operator is ??")
    return text


def quoted(name: str) -> str:
    """A name as an identifier. StatementError for one that cannot be: empty, or with a zero character."""
    if not name or "\0" in name:
        raise StatementError(f"{name!r} is no name", "NAME")
    return '"' + name.replace('"', '""') + '"'


def explained(statement: Statement, code: str, message: str, detail: str = "", hint: str = "") -> StatementError:
    """The StatementError that says what the server's error means to the one who sent the statement. code: SQLSTATE."""
    cure = next((cure for start, cure in _CURES.items() if code.startswith(start)), "")
    said = f"{message} ({detail.rstrip('.')})" if detail else message
    return statement_error(statement, said, code or "UNKNOWN", cure or hint)
