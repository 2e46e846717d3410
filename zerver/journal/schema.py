"""The tables of a journal, in both dialects, and how an older one becomes one of today.

Law: a database says which version its tables have, and a version's tables never change: a new version is a new script
that makes it of the one before. Whoever opens a journal brings it up to date first, all of it or nothing; a newer one
than this code knows is refused and left alone.

    zerver_journal  version                                                one row
    zerver_plans    id, plan                                               as skeletons: once for each flow version
    zerver_owners   name, boot, lapses                                     who lives until when, on which clock
    zerver_runs     seq, run_id, …, owner, fence, claim, status, ended     status '' while unfinished
                    wakes                  of a parked run: when it is to be taken up (wall time); 0: a signal has come
                    aside                  why nobody can carry it on, until somebody says that it may be tried again
                    reason                 by whom and why an unresolved one was called resolved
                    cut                    why it was cancelled while it was parked, sealed
    zerver_pages    run, first, body                                       lines joined by newlines
    zerver_signals  run, number, signal, expires, value                    what a parked run waits for; NULL: not yet
    zerver_keys     name, key                                              what continuation URLs are signed with
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from zerver.errors import DamagedJournal
from zerver.sql import dialects
from zerver.sql.dialects import Dialect
from zerver.sql.driver import Driver

#: Scripts by the version that they make, beginning with the tables of version 1. Words in ‹› are the dialect's.
SCRIPTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: """
        create table zerver_plans (id text primary key, plan ‹bytes› not null);
        create table zerver_owners (name text primary key, boot text not null, lapses bigint not null);
        create table zerver_runs (
            seq ‹serial›,
            run_id text not null unique,
            plan text not null references zerver_plans,
            flow text not null,
            version text not null,
            tenant text not null,
            priority text not null,
            label text not null,
            parent text not null,
            durability text not null,
            began bigint not null,
            deadline bigint,
            owner text not null,
            fence bigint not null,
            claim text not null default '',
            status text not null default '',
            ended bigint
        );
        create index zerver_unfinished on zerver_runs (owner) where status = '';
        create index zerver_ended on zerver_runs (ended) where ended is not null;
        create table zerver_pages (
            run bigint not null references zerver_runs on delete cascade,
            first bigint not null,
            body ‹bytes› not null,
            primary key (run, first)
        ) ‹clustered›;
        """,
        2: """
        alter table zerver_runs add column wakes bigint;
        alter table zerver_runs add column aside text not null default '';
        alter table zerver_runs add column reason text not null default '';
        create index zerver_parked on zerver_runs (wakes) where status = '' and wakes is not null;
        create index zerver_aside on zerver_runs (seq) where status = 'unresolved' or aside <> '';
        create table zerver_signals (
            run bigint not null references zerver_runs on delete cascade,
            number bigint not null,
            signal text not null,
            expires bigint not null,
            value ‹bytes›,
            primary key (run, number)
        ) ‹clustered›;
        create table zerver_keys (name text primary key, key ‹bytes› not null);
        """,
        3: """
        alter table zerver_runs add column cut ‹bytes›;
        """,
    }
)


def script(dialect: Dialect, version: int, scripts: Mapping[int, str] = SCRIPTS) -> str:
    """What makes this version of the one before."""
    return dialects.script(dialect.words, scripts[version])


def first_script(dialect: Dialect) -> str:
    """What makes the tables of version 1, and the row that says so."""
    row = "create table zerver_journal (version bigint not null); insert into zerver_journal values (1);"
    return f"{row}\n{script(dialect, 1)}"


async def migrate(driver: Driver, dialect: Dialect, place: str, scripts: Mapping[int, str] = SCRIPTS) -> None:
    """Bring the tables up to date. Raises DamagedJournal for a journal of a newer version, or none at all."""
    await dialects.migrate(driver, dialect.words, place, dialects.Tables("journal", "zerver_journal", scripts))


def not_ours(place: str) -> DamagedJournal:
    """The error for something else than a journal."""
    return dialects.not_ours(place, "journal")
