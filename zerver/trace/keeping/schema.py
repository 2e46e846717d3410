"""The schema of a trace file, and what makes a file one.

Law: a file is known by its first bytes before anything opens it, so that no other program's database is ever written
into; and it is made whole beside its place and then moved there, so that nobody ever sees half of one.

    runs    a row of summary for each run, newest last: what lists are made of
    bodies  the records of each run, compressed, apart from the rows so that lists do not read past them
    routes  label, flow, version and plan: rows hold a number, which keeps their indexes small
    plans   once per version of a flow: what the records' names mean, and the dictionary that bodies are compressed with
    tallies how many runs there are of each kind, and their bytes; kept by triggers, so that it is true whoever writes

Every index ends with `began`, so that each filter reads its newest rows first and stops when a page is full; those for
what is seldom (failed, slow, unresolved) have rows for nothing else.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import struct
from contextlib import closing, suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from zerver.errors import TraceError

APPLICATION_ID: Final = 0x5A54524B  # "ZTRK"
VERSION: Final = 1

_MAGIC: Final = b"SQLite format 3\x00"
_HEADER: Final = 100  # bytes; sqlite.org/fileformat2.html#the_database_header

SCHEMA: Final = f"""
pragma auto_vacuum = incremental;
pragma page_size = 4096;
begin;
create table plans (id integer primary key, hash text not null unique, plan blob not null);
create table routes (
  id integer primary key, label text not null, flow text not null, version text not null,
  plan integer not null references plans,
  unique (flow, label, version, plan)
);
create index routes_by_label on routes (label);
create table runs (
  seq integer primary key autoincrement, run_id text not null unique, began integer not null,
  route integer not null references routes, tenant text not null, priority text not null, status text not null,
  http integer, took integer not null, kept text not null, beside integer not null, slow integer not null,
  cause text not null, slow_step text not null, unresolved integer not null, trace_id text not null,
  records integer not null, bytes integer not null
);
create table bodies (seq integer primary key, body blob not null);
create table tallies (kept text primary key, runs integer not null, bytes integer not null) without rowid;
create index runs_by_age on runs (began, took);
create index runs_by_route on runs (route, began, took);
create index runs_by_tenant on runs (tenant, began, took);
create index runs_by_kept on runs (kept, began);
create index runs_by_http on runs (http, began) where http is not null;
create index failed_by_age on runs (began) where status <> 'done';
create index failed_by_route on runs (route, began) where status <> 'done';
create index slow_by_age on runs (began) where slow;
create index slow_by_route on runs (route, began) where slow;
create index unresolved_by_age on runs (began) where unresolved > 0;
create index runs_by_trace on runs (trace_id) where trace_id <> '';
create trigger run_added after insert on runs begin
  insert into tallies values (new.kept, 1, new.bytes)
    on conflict do update set runs = runs + 1, bytes = bytes + excluded.bytes;
end;
create trigger run_gone after delete on runs begin
  delete from bodies where seq = old.seq;
  update tallies set runs = runs - 1, bytes = bytes - old.bytes where kept = old.kept;
end;
pragma application_id = {APPLICATION_ID};
pragma user_version = {VERSION};
commit;
"""


def check_file(path: Path) -> None:
    """Raise TraceError unless the file is there, and a trace file that this Zerver reads. It is only read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER)
    except FileNotFoundError:
        raise TraceError(f"there is no trace file {path}") from None
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from None
    if len(head) < _HEADER or not head.startswith(_MAGIC):
        raise TraceError(f"{path} is no trace file, and was left as it is; {_CURE}")
    (version,) = struct.unpack(">I", head[60:64])
    (application,) = struct.unpack(">I", head[68:72])
    if application != APPLICATION_ID:
        raise TraceError(f"{path} is the database of another program, and was left as it is; {_CURE}")
    if version != VERSION:
        age = "a newer" if version > VERSION else "an older"
        raise TraceError(f"{path} is the trace file of {age} Zerver (schema {version}); {_CURE}")


def check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Raise TraceError unless the tables are ours to the letter: views and triggers are programs."""
    if _definitions(db) != _expected():
        raise TraceError(f"{path} is no trace file as Zerver makes them, and was left as it is; {_CURE}")


def make_file(path: Path) -> None:
    """Make an empty trace file, and its folder, unless one is there by then. Raises TraceError."""
    made = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.unlink(missing_ok=True)  # of a process that had this number before
        os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # for its owner alone
        with closing(sqlite3.connect(made, isolation_level=None)) as db:
            db.executescript(SCHEMA)
            db.execute("pragma journal_mode = wal")
        put_in_place(made, path)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"cannot make the trace file {path}: {reason}; {_CURE}") from None
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)  # another process was first


def _definitions(db: sqlite3.Connection) -> list[tuple[str, str]]:
    # What `analyze` leaves behind is not ours, and does no harm.
    named = "select name, sql from sqlite_master where name not like 'sqlite%' order by name"
    return db.execute(named).fetchall()


@lru_cache(maxsize=1)
def _expected() -> list[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.executescript(SCHEMA)
        return _definitions(db)


def is_empty(path: Path) -> bool:
    """Whether there is no such file, or nothing in it. A device has no size, and is nothing to be replaced."""
    try:
        about = path.stat()
        return about.st_size == 0 and stat.S_ISREG(about.st_mode)
    except OSError:
        return not path.exists()


def put_in_place(made: Path, path: Path) -> None:
    """Put the file in its place, unless another process was first."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if is_empty(path):
            # The log of a file that was deleted or moved away: SQLite would take it for the new one's.
            for rest in ("-wal", "-shm"):
                path.with_name(path.name + rest).unlink(missing_ok=True)
            os.replace(made, path)
    finally:
        os.close(folder)


_CURE: Final = "give another path by --db or ZERVER_TRACE_DB"
