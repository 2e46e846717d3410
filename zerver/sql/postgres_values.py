"""Values to PostgreSQL and back: with psycopg's adapters, and a short way for the types that nearly every value has.

Law: a value comes back as it went in, or is refused before anything is sent. Types are the server's to infer where they
can be: a str goes as "unknown", as a literal in quotes would; an int as the smallest of integer, bigint and numeric
that holds it, and never as a smallint, whose products overflow (`select ? * ?` of 300 and 300).

dict is stored as jsonb, list as an array. `timestamptz` comes back in UTC: an instant has no zone of its own. What a
program registers with `psycopg.adapters` before it opens a driver is honoured, for types without a short way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import psycopg
from psycopg import pq
from psycopg.abc import Buffer, Transformer
from psycopg.adapt import AdaptersMap, PyFormat
from psycopg.types.json import JsonbDumper

from zerver.errors import StatementError
from zerver.sql.driver import Answer, Changed, Rows, Statement, statement_error
from zerver.sql.postgres_statements import UNREADABLE, Query, sendable

_TEXT, _BINARY = int(pq.Format.TEXT), int(pq.Format.BINARY)
_UNKNOWN, _BOOL, _BYTEA, _INT8, _INT4, _FLOAT8, _NUMERIC = 0, 16, 17, 20, 23, 701, 1700  # pg_type.oid, fixed for ever

#: A value as it is sent: its bytes (None for null), the type's number, and text or binary.
Sent: TypeAlias = tuple[Buffer | None, int, int]


def adapters() -> AdaptersMap:
    """What is known of types now; to be taken when a driver is opened."""
    known = AdaptersMap(psycopg.adapters)
    known.register_dumper(dict, JsonbDumper)
    return known


# ---- there ------------------------------------------------------------------------------------


def _of_str(value: str) -> Sent:
    data = value.encode()
    if b"\0" in data:
        raise ValueError("holds a zero character, which PostgreSQL's text cannot")
    return data, _UNKNOWN, _TEXT


def _of_int(value: int) -> Sent:
    if -(2**31) <= value < 2**31:
        type_ = _INT4
    else:
        type_ = _INT8 if -(2**63) <= value < 2**63 else _NUMERIC
    return b"%d" % value, type_, _TEXT


_SHORT: Final[dict[type, Callable[..., Sent]]] = {
    type(None): lambda value: (None, _UNKNOWN, _TEXT),
    bool: lambda value: (b"t" if value else b"f", _BOOL, _TEXT),
    bytes: lambda value: (value, _BYTEA, _BINARY),
    float: lambda value: (repr(value).encode(), _FLOAT8, _TEXT),
    int: _of_int,
    str: _of_str,
}


def as_query(statement: Statement, dumps: Transformer) -> Query:
    """The statement ready to be sent. StatementError if it, or one of its parameters, cannot be."""
    text = sendable(statement)
    if not statement.params:
        return Query(text)
    sent: list[Sent] = []
    for value in statement.params:
        try:
            short = _SHORT.get(type(value))
            sent.append(short(value) if short is not None else _dumped(value, dumps, PyFormat.AUTO))
        except (psycopg.Error, ValueError, OverflowError, RecursionError, TypeError) as error:
            problem = f"parameter {len(sent) + 1} ({type(value).__name__}) cannot be sent: {error}"
            cure = "pass what PostgreSQL has a type for: None, bool, int, float, str, bytes, Decimal, UUID, dates, …"
            raise statement_error(statement, problem, "PARAMETER", cure) from error
    values, types, formats = zip(*sent, strict=True)
    return Query(text, values, types, formats)


def _dumped(value: object, dumps: Transformer, format_: PyFormat) -> Sent:
    dumper = dumps.get_dumper(value, format_)
    return dumper.dump(value), dumper.oid, int(dumper.format)


def copy_line(row: Iterable[object], dumps: Transformer) -> bytes:
    """A row in COPY's text format. ValueError or psycopg.Error for a value that cannot be stored."""
    return b"\t".join([rb"\N" if value is None else _copied(value, dumps) for value in row]) + b"\n"


_COPY_SIGNS: Final = {
    sign: b"\\" + name
    for sign, name in zip(b"\\\b\t\n\v\f\r", (b"\\", b"b", b"t", b"n", b"v", b"f", b"r"), strict=True)
}


def _copied(value: object, dumps: Transformer) -> bytes:
    short = _SHORT.get(type(value))
    sent = short(value) if short is not None and type(value) is not bytes else _dumped(value, dumps, PyFormat.TEXT)
    data = bytes(sent[0] or b"")
    if not data.isalnum() and any(sign in data for sign in _COPY_SIGNS):
        data = b"".join([_COPY_SIGNS.get(sign) or bytes((sign,)) for sign in data])
    return data


# ---- and back ---------------------------------------------------------------------------------


def as_answer(statement: Statement, result: pq.abc.PGresult, loads: Transformer) -> Answer:
    """What the server answered. StatementError for a value that Python has no place for (`infinity` as a date)."""
    if result.status != pq.ExecStatus.TUPLES_OK:
        return Changed(result.command_tuples or 0)
    loads.set_pgresult(result)
    try:
        rows = loads.load_rows(0, result.ntuples, tuple)
    except (psycopg.Error, ValueError, OverflowError) as error:
        raise unreadable(statement, error) from error
    finally:
        loads.set_pgresult(None)
    return Rows(tuple([(result.fname(place) or b"").decode() for place in range(result.nfields)]), rows)


def unreadable(statement: Statement, error: Exception) -> StatementError:
    """The StatementError for an answer that cannot be made into Python's values."""
    return statement_error(
        statement, f"a value cannot be read: {error}", UNREADABLE, "cast it in the statement, to text"
    )
