"""A row is made, read, changed and deleted by one request, each of it a transaction; and one is read. On SQLite and on
PostgreSQL, beside FastAPI with SQLAlchemy's async sessions, and with the drivers it takes, asyncpg and aiosqlite, bare.

Commits are on the disk for all of them: SQLite has a write-ahead log and synchronous=FULL, PostgreSQL has fsync on. Ten
connections each, but for aiosqlite, which has one that writes and one that reads. PostgreSQL is on the core of the
load. Needs `wrk`. Takes a minute.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from _load import Ask
from _postgres import as_url, postgres
from _rates import System, arguments, present, rates, uvicorn, zerver
from _report import Figures, write_json

ASKS = {"read": Ask("/items/1"), "create, read, update, delete": Ask("/crud", "POST", b"{}")}
SCHEMA = "create table items (id {} primary key, name text not null, quantity integer not null)"
ROW = "insert into items (name, quantity) values ('first', 1)"


def main() -> None:
    parser = arguments(__doc__, seconds=1.0, connections=16)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), help="one of them alone")
    options = parser.parse_args()
    figures: Figures = []
    bases: dict[str, Callable[[ExitStack, Path], list[System]]] = {"SQLite": on_sqlite, "PostgreSQL": on_postgresql}
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        Path(made).chmod(0o755)  # PostgreSQL works as somebody else when this is run by root
        for name, systems in bases.items():
            if options.database in (None, name.lower()):
                figures += _measured(name, systems(stack, Path(made)), options)
    write_json(options.json, figures)


def _measured(name: str, systems: list[System], options: argparse.Namespace) -> Figures:
    return rates(present(systems, options), {f"{name}: {about}": ask for about, ask in ASKS.items()}, options)


def on_sqlite(stack: ExitStack, folder: Path) -> list[System]:
    """Each with a file of its own."""

    def file(name: str) -> str:
        path = folder / f"{name}.db"
        with sqlite3.connect(path) as db:
            db.execute("pragma journal_mode = wal")
            db.execute(SCHEMA.format("integer"))
            db.execute(ROW)
        db.close()
        return str(path)

    return [
        zerver("zerver", "crud_zerver:app", env={"DATABASE": file("zerver")}),
        uvicorn(
            "fastapi, SQLAlchemy", "crud_sqlalchemy:app", "fastapi", "sqlalchemy", "aiosqlite",
            env={"DATABASE": f"sqlite+aiosqlite:///{file('sqlalchemy')}"},
        ),
        uvicorn(
            "fastapi, aiosqlite", "crud_aiosqlite:app", "fastapi", "aiosqlite", env={"DATABASE": file("aiosqlite")}
        ),
    ]  # fmt: skip


def on_postgresql(stack: ExitStack, folder: Path) -> list[System]:
    """Each with a database of its own, on one server."""
    server = stack.enter_context(postgres(folder / "postgres"))
    print(f"PostgreSQL {server.ask('show server_version')[0][0]}")

    def database() -> str:
        conninfo = server.make_database()
        name = conninfo.partition("dbname=")[2].split()[0]
        server.ask(SCHEMA.format("bigint generated always as identity"), name)
        server.ask(ROW, name)
        return conninfo

    return [
        zerver("zerver", "crud_zerver:app", env={"DATABASE": database()}),
        uvicorn(
            "fastapi, SQLAlchemy", "crud_sqlalchemy:app", "fastapi", "sqlalchemy", "asyncpg",
            env={"DATABASE": as_url(database(), "postgresql+asyncpg")},
        ),
        uvicorn(
            "fastapi, asyncpg", "crud_asyncpg:app", "fastapi", "asyncpg",
            env={"DATABASE": as_url(database(), "postgresql")},
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
