"""Which statements and parameters SQLite is given, and what is said of those it refuses.

Law: a value that would not come back as it went in is refused, not bent; and an error says on its second
line what to do about it, if anybody can know.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping

import attrs

from zerver.errors import StatementError
from zerver.sql.driver import Statement, check_sendable, leading_word, statement_error

# Words that change one connection of several, or cannot work inside a transaction.
_REFUSED: Mapping[str, str] = {
    "attach": "open the other file with a driver of its own",
    "detach": "nothing can be attached, so there is nothing to detach",
    "pragma": "settings are open_sqlite()'s; to ask, read a table: select * from pragma_table_info('orders')",
    "vacuum": "it cannot run inside a transaction; run it while the service is down",
}

# What to do about an error, by the beginning of its code or of its message.
_CURES: Mapping[str, str] = {
    "SQLITE_BUSY": "another process has held the write lock for busy_timeout; make its transactions shorter",
    "SQLITE_FULL": "the disk is full, or max_page_count is reached; nothing was written",
    "SQLITE_CONSTRAINT_FOREIGNKEY": "first insert the row it points to, or delete the rows that point to it",
    "no such table": "create it in open_sqlite(schema=…)",
    "You can only execute one statement": "give the statements, one by one, to transaction()",
    "Incorrect number of bindings": "params holds one value for each ?",
}

_UPSERT = re.compile(r"\bdo\s+update\b", re.IGNORECASE)


def sendable(statement: Statement) -> Statement:
    """The statement with its parameters as SQLite stores them; StatementError if it cannot be sent."""
    check_sendable(statement)
    word = leading_word(statement.sql)
    if word in _REFUSED:
        raise statement_error(statement, f"{word.upper()} is refused", "REFUSED", _REFUSED[word])
    if all(map(_is_stored_as_it_is, statement.params)):
        return statement
    params = [_stored(value, place, statement) for place, value in enumerate(statement.params, 1)]
    return attrs.evolve(statement, params=params)


def _is_stored_as_it_is(value: object) -> bool:
    """Whether it is what most parameters are, and needs no look at what else it might be."""
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value.isascii() if type(value) is str else type(value) is bytes or value is None


def _stored(value: object, place: int, statement: Statement) -> object:
    match value:
        case None | bytes():
            return value
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:  # sqlite3 says so once, and something else the next time
                problem, cure = f"is no Unicode text: {error.reason}", "decode it with errors='replace'"
            else:
                return value
        case int():  # bool too: SQLite has none, and 0 or 1 comes back
            if -(2**63) <= value < 2**63:
                return int(value)
            problem, cure = "does not fit into 64 bits", "pass it as text"
        case float():
            if not math.isnan(value):
                return value
            problem, cure = "is NaN, which SQLite would store as NULL", "pass None if that is what you mean"
        case bytearray() | memoryview():
            return bytes(value)
        case datetime.date() | datetime.time():  # a datetime is a date
            return value.isoformat()
        case _:
            problem = f"is of type {type(value).__name__}, which SQLite cannot store"
            cure = "pass None, bool, int, float, str, bytes, or a date, time or datetime (stored as ISO 8601 text)"
    raise statement_error(statement, f"parameter {place} {problem}", "PARAMETER", cure)


def makes_a_key(sql: str) -> bool:
    """Whether sqlite3's lastrowid is this statement's own; after others it is left over from somebody's insert."""
    return leading_word(sql) in ("insert", "replace") and not _UPSERT.search(sql)


def code_of(error: BaseException) -> str:
    """SQLite's name for the error; Python's, if it was raised before SQLite was asked."""
    return getattr(error, "sqlite_errorname", "") or type(error).__name__


def explained(error: Exception, statement: Statement, *, reads: bool = False) -> StatementError:
    """The StatementError that says what sqlite3's error means to the one who sent the statement."""
    code, message = code_of(error), str(error)
    cure = next((cure for start, cure in _CURES.items() if code.startswith(start) or message.startswith(start)), "")
    if reads and code.startswith("SQLITE_READONLY"):
        cure = "fetch() only reads; use execute(), or execute_returning() for a write with rows"
    return statement_error(statement, message, code, cure)
