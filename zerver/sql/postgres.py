"""PostgreSQL behind the driver port: a pool of connections that Trio itself waits for. psycopg is loaded on opening.

Law: COMMIT is a message of its own, sent when every answer has been looked at. Before it nothing has happened,
whatever becomes of the server (DatabaseDown, StatementError, Cancelled); its answer says that everything has. Only
between the two can nobody know, and that is ConnectionLost. (`write_at_once` gives the first half of this up.)

- A read is one round trip: connections are read-only by default, so a statement alone is a transaction that reads.
- A write, or a transaction of any number of statements, is two: BEGIN and the statements go together (a pipeline), then
  COMMIT. While COMMIT is on its way a cancellation waits for its answer, but not for ever.
- `write_at_once` is one: COMMIT goes with them, and the server passes it over when one of them fails. It is for those
  who can ask again when nobody knows whether it was done, as Zerver's own tables: that is more often so.
- After a deadlock or a serialization failure the call is done again, CONFLICT_ATTEMPTS times in all: nothing of it has
  happened, and it may well pass. After a lost connection it is not: an operator who ends a backend means it.
- A server that is away is not knocked at by everybody: after a refusal, calls that need a new connection are refused
  for a moment (0.1 s, then twice that, up to BACKOFF_SECONDS), and told how long it will be.

Refused: a second pool for reads (it would halve both), and autocommit for single writes (the answer could not be looked
at before it is final).
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, TypeVar, cast

import trio

from zerver.core.priorities import Priority
from zerver.errors import DatabaseDown, DefinitionError, DriverClosed, StatementError
from zerver.runtime.groups import open_body_nursery
from zerver.sql.driver import Answer, Changed, Driver, DriverStatistics, Rows, Statement
from zerver.sql.postgres_listen import Listener
from zerver.sql.postgres_pool import Pool, PoolStatistics
from zerver.sql.postgres_statements import CONFLICTS, STALE, Query
from zerver.sql.postgres_work import (
    BEGIN,
    Isolation,
    RowSource,
    Transaction,
    copy,
    opening,
    read,
    run_schema,
    write,
    write_at_once,
)

if TYPE_CHECKING:
    from zerver.sql.postgres_dial import Address
    from zerver.sql.postgres_link import Link

CONFLICT_ATTEMPTS: Final = 5
BACKOFF_SECONDS: Final = 2.0
IDLE_CHECK_SECONDS: Final = 30.0  # a connection that was idle for longer is asked whether the server is still there
CLOSE_SECONDS: Final = 3.0

T = TypeVar("T")
AnswerT = TypeVar("AnswerT", Rows, Changed)


@asynccontextmanager
async def open_postgres(
    conninfo: str,
    *,
    size: int = 10,
    least: int = 1,
    idle_seconds: float = 300.0,
    lifetime: float = 3600.0,
    statement_timeout: float = 60.0,
    schema: str | None = None,
) -> AsyncGenerator[PostgresDriver, None]:
    """Open a PostgreSQL database; on leaving the block, end its calls and close its connections.

    conninfo: as libpq has it, `postgresql://user@host/db?sslmode=verify-full` or `host=… dbname=…`; what it does not
    say comes from the environment (PGHOST, PGPASSWORD, PGSSLROOTCERT, ~/.pgpass …). size: the most connections at once,
    those of `listen` not counted; least: so many stay open, however idle. idle_seconds: for which others do.
    lifetime: seconds after which a connection is replaced, give or take a tenth. statement_timeout: seconds after which
    the server gives up a statement by itself, 0 for never: a second line, should this process be unable to ask.
    schema: a script run first, all of it or nothing, one process at a time: `create table if not exists …; …`.

    Raises DefinitionError if psycopg is missing or conninfo is no such thing, DatabaseDown if the server cannot be
    reached (it is tried once), StatementError if the schema is wrong.
    """
    if size < 1 or least < 0:
        raise ValueError(f"size must be at least 1 and least at least 0, not {size} and {least}")
    check_installed()
    from zerver.sql.postgres_dial import read_address
    from zerver.sql.postgres_values import adapters

    address = read_address(conninfo, statement_timeout, adapters())
    pool: Pool[Link] = Pool(size=size, least=least, idle_seconds=idle_seconds, lifetime=lifetime, name=address.name)
    driver = PostgresDriver(address, pool)
    async with open_body_nursery() as nursery:
        nursery.start_soon(pool.reap)
        try:
            await driver.open(schema)
            yield driver
        finally:
            await driver.close()
            nursery.cancel_scope.cancel()


def check_installed() -> None:
    """Raise DefinitionError, with the cure, if psycopg or its libpq is missing."""
    try:
        import zerver.sql.postgres_link  # noqa: F401  (all that is wanted is to know whether it can be)
    except ImportError as error:
        raise DefinitionError(
            f"PostgreSQL needs psycopg, which cannot be imported: {error}", "pip install 'zerver[postgres]'"
        ) from error


class PostgresDriver(Driver):
    """A PostgreSQL database, open. Made by open_postgres().

    Beside the port's verbs it has `begin` (a transaction in several steps, with savepoints), `copy` (many rows at
    once) and `listen` (notifications).
    """

    def __init__(self, address: Address, pool: Pool[Link]) -> None:
        self._address = address
        self._pool = pool
        self._closed = False
        self._scopes: set[trio.CancelScope] = set()  # of all that closing has to end
        self._at_rest = trio.Event()
        self._waiting = 0
        self._running = 0
        self._commits = 0
        self._ended = {"reads": 0, "writes": 0, "failed": 0, "cancelled": 0}
        self._refusals = 0  # in a row
        self._away_until = -float("inf")
        self._away_because = ""

    # ---- the port -----------------------------------------------------------------------------

    async def fetch(self, statement: Statement) -> Rows:
        return await self._call("reads", lambda link: read(link, statement), statement.priority)

    async def execute(self, statement: Statement) -> Changed:
        return await self._write_one(statement, Changed)

    async def execute_returning(self, statement: Statement) -> Rows:
        return await self._write_one(statement, Rows)

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        return await self._write(statements, None)

    def statistics(self) -> DriverStatistics:
        return DriverStatistics(
            connections=self._pool.statistics().idle + self._running,
            commits=self._commits,
            waiting=self._waiting,
            running=self._running,
            **self._ended,
        )

    # ---- beyond the port ----------------------------------------------------------------------

    async def write_at_once(self, statements: Sequence[Statement]) -> list[Answer]:
        """As `transaction`, with half the round trips, for a caller who does no harm when it asks again.

        Law: as the port's; but a connection that breaks before the last answer is always ConnectionLost, never
        DatabaseDown, because the commit was on its way. Statements that `expect` or `accept` have theirs looked at
        before the commit, and so two round trips.
        """
        priority = statements[0].priority if statements else "default"
        answers = await self._call("writes", lambda link: write_at_once(link, statements), priority)
        self._commits += bool(statements)
        return answers

    def pool_statistics(self) -> PoolStatistics:
        """The pool's numbers at this moment."""
        return self._pool.statistics()

    @asynccontextmanager
    async def begin(
        self, *, isolation: Isolation | None = None, read_only: bool = False, priority: Priority = "default"
    ) -> AsyncGenerator[Transaction, None]:
        """A transaction whose next statement may depend on the last answer; committed when the block ends.

        An exception, or a cancellation, undoes it. It holds a connection for as long as it lasts. isolation: the
        server's default unless given. What the commit raises is raised on leaving: StatementError (a deferred
        constraint, a serialization failure: certainly not done) or ConnectionLost (nobody knows).
        """
        kind = "reads" if read_only else "writes"
        async with self._held(kind, priority, opening(isolation, read_only)) as link:
            transaction = Transaction(link)
            yield transaction
            await transaction.commit()
            self._commits += not read_only

    async def copy(self, table: str, columns: Sequence[str], rows: RowSource, *, priority: Priority = "batch") -> int:
        """Insert many rows with COPY, all or none; gives how many they were.

        table: its name, `schema.table` if need be; quoted here. rows: an iterable, or an async one, of sequences with
        a value for each column; what it raises is raised, and nothing is stored.
        """
        async with self._held("writes", priority, BEGIN) as link:
            count = await copy(link, table, columns, rows)
            self._commits += 1
        return count

    @asynccontextmanager
    async def listen(self, *channels: str, keepalive: float = 15.0) -> AsyncGenerator[Listener, None]:
        """What is notified on these channels from now on, as an async iterator, on a connection of its own.

        `async for notification in listener` raises ConnectionLost when the server has gone. What was notified
        meanwhile is lost: listen again, and then look at the tables. keepalive: seconds of silence after which the
        server is asked whether it is there. Raises DatabaseDown if there is no connection to be had.
        """
        self._check_open()
        link = await self._connect()
        try:
            with self._ended_by_close():
                listener = Listener(link, keepalive)
                await listener.start(channels)
                yield listener
        finally:
            link.close()

    # ---- opening and closing ------------------------------------------------------------------

    async def open(self, schema: str | None) -> None:
        """See that the server is there, and run the schema."""
        link = await self._take("default")
        try:
            if schema is not None:
                await run_schema(link, schema)
        finally:
            await self._give_back(link)

    async def close(self) -> None:
        """End every call, then every connection. Bounded; never raises Cancelled."""
        self._closed = True
        self._pool.close()
        for scope in tuple(self._scopes):
            scope.cancel()
        if self._running:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._at_rest.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise DriverClosed(f"{self._address.name} is closed")

    def _closed_meanwhile(self) -> DriverClosed:
        return DriverClosed(f"{self._address.name} was closed meanwhile; the call was stopped and undone")

    @contextmanager
    def _ended_by_close(self) -> Generator[None, None, None]:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise self._closed_meanwhile()

    # ---- calls --------------------------------------------------------------------------------

    async def _write_one(self, statement: Statement, wants: type[AnswerT]) -> AnswerT:
        (answer,) = await self._write([statement], wants)
        return cast(AnswerT, answer)  # check_answer() saw to it, before the commit

    async def _write(self, statements: Sequence[Statement], wants: type[Answer] | None) -> list[Answer]:
        priority = statements[0].priority if statements else "default"
        answers = await self._call("writes", lambda link: write(link, statements, wants), priority)
        self._commits += bool(statements)
        return answers

    async def _call(self, kind: str, work: Callable[[Link], Awaitable[T]], priority: Priority) -> T:
        # What `_counted` and `_ended_by_close` do, spelled out: this is the hot path.
        ended = "failed"
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_open()
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    result = await self._attempts(work, priority)
                    ended = kind
                    return result
                finally:
                    self._scopes.discard(scope)
            raise self._closed_meanwhile()
        except trio.Cancelled:
            ended = "cancelled"
            raise
        finally:
            self._ended[ended] += 1

    @contextmanager
    def _counted(self, kind: str) -> Generator[None, None, None]:
        ended = "failed"
        try:
            yield
            ended = kind
        except trio.Cancelled:
            ended = "cancelled"
            raise
        finally:
            self._ended[ended] += 1

    async def _attempts(self, work: Callable[[Link], Awaitable[T]], priority: Priority) -> T:
        """Do it; and do it again where that may help, because nothing has happened and nobody meant it."""
        conflicts, stale = CONFLICT_ATTEMPTS - 1, 2
        while True:
            link = await self._take(priority)
            try:
                return await work(link)
            except StatementError as error:
                if error.code in CONFLICTS and conflicts:
                    conflicts -= 1
                elif error.code in STALE and stale and link.forget():
                    stale -= 1
                else:
                    raise
            finally:
                await self._give_back(link)

    @asynccontextmanager
    async def _held(self, kind: str, priority: Priority, begin: Query) -> AsyncGenerator[Link, None]:
        """A connection with a transaction begun on it; whatever is not committed in the block is undone."""
        with self._counted(kind):
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_open()
            with self._ended_by_close():
                link = await self._begun(priority, begin)
                try:
                    yield link
                finally:
                    await self._give_back(link)

    async def _begun(self, priority: Priority, begin: Query) -> Link:
        link = await self._take(priority)
        try:
            (result,) = await link.talk([begin])
            link.answer(Statement("begin"), result)
        except BaseException:
            await self._give_back(link)
            raise
        return link

    # ---- connections --------------------------------------------------------------------------

    async def _take(self, priority: Priority) -> Link:
        """A connection, to be given back whatever happens."""
        self._waiting += 1
        try:
            link = await self._pool.acquire(priority)
            try:
                long_idle = link is not None and trio.current_time() - link.used > IDLE_CHECK_SECONDS
                if link is None or (long_idle and not await link.check()):
                    link = await self._connect()
            except BaseException:
                self._pool.release(link)
                raise
        finally:
            self._waiting -= 1
        self._running += 1
        return link

    async def _give_back(self, link: Link) -> None:
        """Never raises Cancelled, and takes STOP_SECONDS at most."""
        try:
            if not link.usable:
                await link.reset()
        finally:
            self._running -= 1
            self._pool.release(link)
            if self._closed and not self._running:
                self._at_rest.set()

    async def _connect(self) -> Link:
        from zerver.sql.postgres_dial import open_link

        left = self._away_until - trio.current_time()
        if left > 0:
            raise DatabaseDown(f"{self._away_because} (not asked again for {left:.1f}s)", retry_after=left)
        try:
            link = await open_link(self._address)
        except DatabaseDown as error:
            pause = min(BACKOFF_SECONDS, 0.1 * 2**self._refusals) * random.uniform(0.5, 1.0)
            self._refusals += 1
            self._away_until = trio.current_time() + pause
            self._away_because = f"{self._address.name} cannot be reached: {error}"
            raise DatabaseDown(self._away_because, retry_after=pause) from error
        self._refusals = 0
        return link
