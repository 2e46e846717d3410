"""Dialects: what SQLite and PostgreSQL write differently of Zerver's own tables, and how those are brought up to date.

Law: a database says which version its tables have, and a version's tables never change: a new version is a new script
that makes it of the one before. Whoever opens them brings them up to date first, all of it or nothing; newer ones than
this code knows are refused and left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import attrs

from zerver.core.codec import encode_json
from zerver.errors import DamagedJournal, InvalidData, NotKeepable, StatementError
from zerver.sql.driver import Driver, Statement


@attrs.frozen(eq=False)
class Dialect:
    """What is written differently. words: for scripts. first: a statement with which each transaction begins; durable:
    the same as a condition, which holds, for a statement that is all there is in its transaction.

    now: the time on the clock that leases are kept by, in nanoseconds, as an expression. boot: which clock that is; a
    lease by another one has lapsed. wall: the time since 1970 in nanoseconds, as an expression that is one value for
    all rows.

    skip: locks rows for who changes them, and passes over those that somebody else is changing. lock: locks rows for
    who decides on what they stand for. share: keeps rows as they are for who depends on them. making: a statement that
    lets one process at a time make tables. index: one that answers with a row if there is an index of that name.

    records: a table of the JSON objects in an array, which is its one parameter: of columns (name, type), and `n`,
    their number from 0. texts: the same of columns of texts, whose parameters `as_texts` makes. joined: all values of
    `result`, with commas between. lateral: whether a table in a join may depend on another. notifies: whether the
    database tells its clients when something has happened. taken: the code of the error for a key that a row has, where
    to look for one beforehand costs more than to fail; "" for nowhere.
    """

    words: Mapping[str, str]
    now: Callable[[], str]
    wall: Callable[[], str]
    records: Callable[[Sequence[tuple[str, str]]], str]
    texts: Callable[[Sequence[str]], str]
    as_texts: Callable[[Sequence[Sequence[str | None]]], tuple[str, ...]]
    joined: str
    index: str
    boot: str = ""
    durable: str = "1 = 1"
    taken: str = ""
    first: str = ""
    skip: str = ""
    lock: str = ""
    share: str = ""
    making: str = ""
    lateral: bool = False
    notifies: bool = False


@attrs.frozen
class Tables:
    """Tables that belong together. what: they are, in messages. version: the table that tells which version they have.
    scripts: by the version that they make, beginning with 1. Words in ‹› are the dialect's.
    """

    what: str
    version: str
    scripts: Mapping[int, str]


def script(words: Mapping[str, str], text: str) -> str:
    """A script with a dialect's words in it."""
    for word, meaning in words.items():
        text = text.replace(f"‹{word}›", meaning)
    return text


async def migrate(driver: Driver, words: Mapping[str, str], place: str, tables: Tables) -> None:
    """Bring the tables up to date. Raises DamagedJournal for those of a newer version, or none at all."""
    newest = max(tables.scripts)
    while (version := await _version(driver, place, tables)) < newest:
        bump = f"update {tables.version} set version = version + 1 where version = ?"
        parts = [part.strip() for part in script(words, tables.scripts[version + 1]).split(";") if part.strip()]
        try:
            await driver.transaction([Statement(bump, (version,), expect=1), *map(Statement, parts)])
        except StatementError as error:
            if error.code != "ROW_COUNT":  # else another process was first
                raise
    if version > newest:
        raise DamagedJournal(
            f"{place} is the {tables.what} of a newer Zerver (version {version}; this one knows {newest})\n"
            f"  run the newer Zerver, or give another {tables.what}"
        )


async def _version(driver: Driver, place: str, tables: Tables) -> int:
    try:
        found = await driver.fetch(Statement(f"select version from {tables.version}"))
    except StatementError as error:
        raise not_ours(place, tables.what) from error
    version = found.rows[0][0] if len(found.rows) == 1 else None
    if not isinstance(version, int):
        raise not_ours(place, tables.what)
    return version


def not_ours(place: str, what: str) -> DamagedJournal:
    """The error for something else than these tables."""
    cure = f"give another place for the {what}"
    return DamagedJournal(f"{place} is no {what} of Zerver's, and was left as it is\n  {cure}")


# ---- the two there are ----------------------------------------------------------------------


def since_boot() -> int:
    """The time since the machine was started, in nanoseconds: a clock that nobody sets and all processes share."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the former goes on while the machine sleeps
    return time.clock_gettime_ns(clock)


def _unix_ns() -> int:
    return time.time_ns()


#: What SQLite cannot tell as precisely as it is asked. Each connection of our driver has them as functions: a time that
#: stood in a statement's text would make it another one, to be read and planned each time.
CLOCKS: Final[Mapping[str, Callable[[], int]]] = MappingProxyType(
    {"zerver_wall_ns": _unix_ns, "zerver_boot_ns": since_boot}
)


def boot_id() -> str:
    """What names this start of the machine; "" where nothing does, and then a restart looks like a long pause."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _json_each(columns: Sequence[tuple[str, str]]) -> str:
    values = ", ".join(f"json_extract(value, '$.{name}') as {name}" for name, _ in columns)
    return f"(select key as n, {values} from json_each(?))"


def _json_to_recordset(columns: Sequence[tuple[str, str]]) -> str:
    typed = ", ".join(f"{name} {type_}" for name, type_ in columns)
    names = ", ".join(name for name, _ in columns)
    of = f"rows from (json_to_recordset(?::json) as ({typed}))"
    return f"(select n - 1 as n, {names} from {of} with ordinality as records ({names}, n))"


def _json_texts(names: Sequence[str]) -> str:
    values = ", ".join(f"json_extract(value, '$[{place}]') as {name}" for place, name in enumerate(names))
    return f"(select key as n, {values} from json_each(?))"


def _as_json_texts(columns: Sequence[Sequence[str | None]]) -> tuple[str, ...]:
    try:
        return (encode_json(list(zip(*columns, strict=True))).decode(),)
    except InvalidData as error:
        raise NotKeepable(f"it holds text that no store keeps: {error}") from error


def _unnest(names: Sequence[str]) -> str:
    arrays = ", ".join("?::text[]" for _ in names)
    listed = ", ".join(names)
    return f"(select n - 1 as n, {listed} from unnest({arrays}) with ordinality as texts ({listed}, n))"


def _as_arrays(columns: Sequence[Sequence[str | None]]) -> tuple[str, ...]:
    return tuple(map(_as_array, columns))


def _as_array(texts: Sequence[str | None]) -> str:
    """An array as PostgreSQL writes it. Escaped in one go: text by text takes ten times as long."""
    if None not in texts:
        joined = "\0".join(texts)  # type: ignore[arg-type]  # there is no None in them
        if joined.count("\0") == len(texts) - 1:  # else one holds a zero character, which the driver will refuse
            return '{"' + _escaped(joined).replace("\0", '","') + '"}'
    return "{" + ",".join("null" if text is None else f'"{_escaped(text)}"' for text in texts) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


#: Leases are kept by the time since the machine was started, which nobody sets and all its processes share.
SQLITE: Final = Dialect(
    words=MappingProxyType(
        {
            "serial": "integer primary key autoincrement",
            "bytes": "blob",
            "clustered": "without rowid",
            "busy": "",
        }
    ),
    now=lambda: "(select zerver_boot_ns())",
    boot=boot_id(),
    wall=lambda: "(select zerver_wall_ns())",
    records=_json_each,
    texts=_json_texts,
    as_texts=_as_json_texts,
    joined="group_concat(result, ',')",
    index="select 1 from sqlite_master where type = 'index' and name = ?",
)

#: Rows of a table that changes all the time are to be cleared away sooner than others: each take walks over them.
_BUSY: Final = " with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0)"

#: Leases are kept by the database's clock, because those of the machines differ.
POSTGRES: Final = Dialect(
    words=MappingProxyType({"serial": "bigserial primary key", "bytes": "bytea", "clustered": "", "busy": _BUSY}),
    now=lambda: "(extract(epoch from clock_timestamp()) * 1000000000)::bigint",
    wall=lambda: "(extract(epoch from statement_timestamp()) * 1000000000)::bigint",
    records=_json_to_recordset,
    texts=_unnest,
    as_texts=_as_arrays,
    joined="string_agg(result, ',')",
    index="select 1 where to_regclass(?) is not null",
    first="select set_config('synchronous_commit', 'on', true)",
    durable="(select set_config('synchronous_commit', 'on', true)) = 'on'",
    taken="23505",
    skip="for update skip locked",
    lock="for update",
    share="for share",
    making="select pg_advisory_xact_lock(2053468791)",
    lateral=True,
    notifies=True,
)


async def dialect_of(driver: Driver) -> Dialect:
    """Which of the two a driver's database speaks."""
    try:
        await driver.fetch(Statement("select sqlite_version()"))
    except StatementError:
        return POSTGRES
    return SQLITE
