"""The tables of a store of jobs, in both dialects. They may stand in a database of the app's: their names are ours.

Law: whatever is asked often is answered from an index, and each index holds what it is for and nothing else: a million
old jobs cost disk, and no time. A job that is ordered, taken, and done goes through as few of them as can be, for each
change of a job is an entry in every index that holds it:

    seq, job_id    every job: its place, and its name; a name is taken once
    ready          available: what a queue has to begin next
    running        running: how many of a queue and of a tenant; and all of them, for who rescues
    old            done and cancelled: what is to be forgotten first

Those that most jobs are in none of, and so cost nothing to the others:

    later          scheduled: what is due
    holds, unique  the job that keeps others of its text out, and the newest of a text
    run            under way without a worker of ours: whose run this is
    members, freeing, released    those another one waits for; and the next to begin, within the settling transaction
    stopping       running, and to be cut: what a worker asks for several times per lease
    suspects       available and running, of those that would be dead with the next rescue: a worker has one at a time
    aside          waiting, parked, dead, cancelled: those that people look for. By an expression, so that a planner
                   without statistics does not take it for what a smaller one is for

And one that costs each order a fifth of the server's time, and is there from when a queue first bounds its tenants:

    ready_of       available: the same as `ready`, by tenant

People who look for jobs of other states are answered from these and from `seq`: what is common is found soon by walking
back from the newest. Version 1 had all jobs in an index by state: one more entry for each change, for their sake.
Older workers go on with the tables of a newer version; those of before 4 take slowly from queues that bound tenants,
until a newer one does.

    zerver_jobs_store  version, wakes                  one row. wakes: counts what waiting workers have to be told of
    zerver_jobs        seq, job_id, …                  see `Order` and `Job`
        rank           the number of the priority
        due            not before this time; and the order within a priority
        uniq, holds    the order's `unique`; and the same while no other job may have it, until holds_until
        awaited        how many jobs it was to wait for; awaits: how many are left
        underway       1 while its run `run_id` may go on without a worker of ours: it was parked, or its worker died
        stopping       why its worker is to stop it
        frees          1 within the transaction in which it is done and its successor has not been told
    zerver_queues      name, paused, most, most_of_tenant    those that were ever paused or limited
    zerver_job_owners  name, boot, lapses              who lives until when, on which clock
    zerver_schedules   name, spec, due
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from zerver.errors import StatementError
from zerver.sql.dialects import Dialect, Tables, migrate
from zerver.sql.driver import Driver, Statement

TABLES: Final = Tables(
    "store of jobs",
    "zerver_jobs_store",
    MappingProxyType(
        {
            1: """
            create table zerver_jobs (
                seq ‹serial›,
                job_id text not null unique,
                flow text not null,
                queue text not null,
                body text,
                tenant text not null,
                rank bigint not null,
                state text not null,
                due bigint not null,
                attempt bigint not null default 0,
                attempts bigint not null,
                fence bigint not null default 0,
                rescues bigint not null default 0,
                settled bigint not null default 0,
                owner text not null default '',
                run_id text not null default '',
                underway bigint not null default 0,
                stopping text not null default '',
                error text not null default '',
                result text,
                ordered bigint not null,
                began bigint not null default 0,
                ended bigint not null default 0,
                uniq text not null,
                holds text,
                holds_until bigint not null,
                releases text not null,
                frees bigint not null default 0,
                place bigint not null,
                awaited bigint not null,
                awaits bigint not null,
                origin text not null,
                parent text not null,
                done bigint not null default 0,
                total bigint not null default 0,
                note text not null default ''
            )‹busy›;
            create unique index zerver_jobs_holds on zerver_jobs (holds) where holds is not null;
            create index zerver_jobs_ready on zerver_jobs (queue, rank, due, seq) where state = 'available';
            create index zerver_jobs_ready_of on zerver_jobs (queue, tenant, rank, due, seq) where state = 'available';
            create index zerver_jobs_later on zerver_jobs (due) where state = 'scheduled';
            create index zerver_jobs_running on zerver_jobs (queue, tenant) where state = 'running';
            create index zerver_jobs_owned on zerver_jobs (owner) where state = 'running';
            create index zerver_jobs_run on zerver_jobs (run_id) where underway = 1;
            create index zerver_jobs_freeing on zerver_jobs (releases) where frees = 1;
            create index zerver_jobs_released on zerver_jobs (seq) where state = 'waiting' and awaits <= 0;
            create index zerver_jobs_members on zerver_jobs (releases) where releases <> '';
            create index zerver_jobs_unique on zerver_jobs (uniq, seq) where uniq <> '';
            create index zerver_jobs_old on zerver_jobs (ended) where state in ('done', 'cancelled');
            create index zerver_jobs_states on zerver_jobs ((state || ''), seq);
            create table zerver_queues (
                name text primary key, paused bigint not null default 0, most bigint, most_of_tenant bigint
            );
            create table zerver_job_owners (name text primary key, boot text not null, lapses bigint not null);
            create table zerver_schedules (name text primary key, spec text not null, due bigint not null);
            """,
            2: """
            drop index zerver_jobs_states;
            drop index zerver_jobs_owned;
            create index zerver_jobs_stopping on zerver_jobs (owner) where stopping <> '';
            create index zerver_jobs_aside on zerver_jobs ((state || ''), seq)
                where state = 'waiting' or state = 'parked' or state = 'dead' or state = 'cancelled';
            """,
            3: """
            create index zerver_jobs_suspects on zerver_jobs (state, owner, rank, due, seq)
                where rescues >= 2 and (state = 'available' or state = 'running');
            """,
            4: "drop index zerver_jobs_ready_of",
        }
    ),
)


_READY_OF: Final = (
    "create index if not exists zerver_jobs_ready_of on zerver_jobs (queue, tenant, rank, due, seq) "
    "where state = 'available'"
)


async def index_tenants(driver: Driver, dialect: Dialect) -> None:
    """Make the index of those who bound tenants, if it is missing. Looked for first: to make it locks the jobs.

    Who may not make one, as a role that does not own the tables, takes slowly, and takes all the same.
    """
    if not (await driver.fetch(Statement(dialect.index, ("zerver_jobs_ready_of",)))).rows:
        try:
            await driver.transaction([*_alone(dialect), Statement(_READY_OF)])
        except StatementError as error:
            if error.passes:
                raise


def _alone(dialect: Dialect) -> list[Statement]:
    """What lets one process at a time make tables."""
    return [Statement(dialect.making)] if dialect.making else []


async def make_tables(driver: Driver, dialect: Dialect, place: str, tables: Tables = TABLES) -> None:
    """Make the tables in this database if they are missing, and bring them up to date. Raises DamagedJournal for those
    of a newer version. tables: older ones, for tests.
    """
    await driver.transaction(
        [
            *_alone(dialect),
            Statement("create table if not exists zerver_jobs_store (version bigint not null, wakes bigint not null)"),
            Statement("insert into zerver_jobs_store select 0, 0 where not exists (select 1 from zerver_jobs_store)"),
        ]
    )
    await migrate(driver, dialect.words, place, tables)
