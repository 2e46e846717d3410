"""PostgreSQL behind the driver port, on a triopg pool that the service owns already.

Law: the pool is its owner's. It is borrowed from, a connection for a call, and each comes back clean or closed; it is
neither opened nor closed here, and its codecs, settings and sizes stay as they are.

The outcomes are those of `open_postgres`: COMMIT is a message of its own, so that before it nothing has happened, its
answer says that everything has, and only between the two can nobody know (ConnectionLost). What it cannot do as well:

- A call is six round trips (BEGIN, parse, execute, COMMIT, asyncpg's reset, the close of a prepared statement), each of
  them through two event loops. A service without a triopg pool takes `postgres()`.
- Calls wait for a connection in the order in which they came, whatever their class: asyncpg's pool has one queue.
- A server that is away is asked by every call: when to knock again is the pool's to say, and it does not.
- asyncpg does not convert: a parameter is of the type the server names, and `dict` is jsonb only with a codec.

Refused: `begin`, `copy` and `listen`, which the pool itself has; and a loop of our own beside the host's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from zerver.core.app import Capability
from zerver.errors import DatabaseDown, DefinitionError, DriverClosed, StatementError
from zerver.sql.capability import sql_capability
from zerver.sql.driver import Answer, Changed, Driver, DriverStatistics, Rows, Statement, check_answer
from zerver.sql.postgres import CLOSE_SECONDS, CONFLICT_ATTEMPTS
from zerver.sql.postgres_statements import CONFLICTS, STALE

if TYPE_CHECKING:
    from zerver.sql.triopg_loan import Lender, Loan, TriopgPool

T = TypeVar("T")
AnswerT = TypeVar("AnswerT", Rows, Changed)


def triopg(pool: TriopgPool) -> Capability:
    """The `sql` effects on a `triopg.create_pool(…)` of yours; see `open_triopg` for what is promised.

    A handler of yours may take `Driver` as a resource. Needs the extra `triopg`: without it, DefinitionError.
    """
    _check_installed()
    return sql_capability(lambda: open_triopg(pool), "triopg")


@asynccontextmanager
async def open_triopg(pool: TriopgPool) -> AsyncGenerator[Driver, None]:
    """A driver on a triopg pool; on leaving the block its calls are ended, and the pool stays as it is.

    pool: open, and to be kept open around this block; the task is inside of its `trio_asyncio.open_loop()`. Tasks that
    use the driver need not be.

    Raises DefinitionError if triopg cannot be imported, if there is no loop, or if the pool is not open; DatabaseDown
    if the server cannot be reached.
    """
    _check_installed()
    from zerver.sql.triopg_loan import Lender

    driver = TriopgDriver(Lender(pool))
    await driver.check()
    try:
        yield driver
    finally:
        await driver.close()


def _check_installed() -> None:
    """Raise DefinitionError, with the cure, if triopg or what it needs is missing."""
    try:
        import zerver.sql.triopg_loan  # noqa: F401  (all that is wanted is to know whether it can be)
    except ImportError as error:
        raise DefinitionError(
            f"triopg() needs triopg, which cannot be imported: {error}", "pip install 'zerver[triopg]'"
        ) from error


class TriopgDriver(Driver):
    """A triopg pool, as a driver. Made by open_triopg()."""

    def __init__(self, lender: Lender) -> None:
        self._lender = lender
        self._closed = False
        self._scopes: set[trio.CancelScope] = set()  # of all that closing has to end
        self._at_rest = trio.Event()
        self._waiting = 0
        self._running = 0
        self._commits = 0
        self._ended = {"reads": 0, "writes": 0, "failed": 0, "cancelled": 0}

    # ---- the port -----------------------------------------------------------------------------

    async def fetch(self, statement: Statement) -> Rows:
        async def read(loan: Loan) -> Answer:
            await loan.begin("read only")
            answer = await loan.perform(statement)
            check_answer(statement, answer, Rows)
            return answer  # the transaction is undone on the way back: it has changed nothing

        return cast(Rows, await self._call("reads", read))  # check_answer() saw to it

    async def execute(self, statement: Statement) -> Changed:
        return await self._write_one(statement, Changed)

    async def execute_returning(self, statement: Statement) -> Rows:
        return await self._write_one(statement, Rows)

    async def transaction(self, statements: Sequence[Statement]) -> list[Answer]:
        return await self._write(statements, None)

    def statistics(self) -> DriverStatistics:
        """The driver's numbers; `connections` are those it has borrowed, the pool's others are the owner's to count."""
        return DriverStatistics(
            connections=self._running,
            commits=self._commits,
            waiting=self._waiting,
            running=self._running,
            **self._ended,
        )

    # ---- opening and closing ------------------------------------------------------------------

    async def check(self) -> None:
        """See that the pool is open and the server there."""
        with self._lender.inside():
            await self._give_back(await self._borrow())

    async def close(self) -> None:
        """End every call. Bounded; never raises Cancelled."""
        self._closed = True
        for scope in tuple(self._scopes):
            scope.cancel()
        if self._running:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._at_rest.wait()

    # ---- calls --------------------------------------------------------------------------------

    async def _write_one(self, statement: Statement, wants: type[AnswerT]) -> AnswerT:
        (answer,) = await self._write([statement], wants)
        return cast(AnswerT, answer)  # check_answer() saw to it, before the commit

    async def _write(self, statements: Sequence[Statement], wants: type[Answer] | None) -> list[Answer]:
        async def write(loan: Loan) -> list[Answer]:
            answers: list[Answer] = []
            if not statements:
                return answers
            await loan.begin("read write")
            for statement in statements:
                answer = await loan.perform(statement)
                check_answer(statement, answer, wants)
                answers.append(answer)
            await loan.commit(statements[0])
            self._commits += 1
            return answers

        return await self._call("writes", write)

    async def _call(self, kind: str, work: Callable[[Loan], Awaitable[T]]) -> T:
        ended = "failed"
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._closed:
                raise DriverClosed("the triopg driver is closed")
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    with self._lender.inside():
                        result = await self._attempts(work)
                    ended = kind
                    return result
                finally:
                    self._scopes.discard(scope)
            raise DriverClosed("the triopg driver was closed meanwhile; the call was stopped and undone")
        except trio.Cancelled:
            ended = "cancelled"
            raise
        finally:
            self._ended[ended] += 1

    async def _attempts(self, work: Callable[[Loan], Awaitable[T]]) -> T:
        """Do it; and do it again where that may help, because nothing has happened and nobody meant it."""
        conflicts, again = CONFLICT_ATTEMPTS - 1, 1
        while True:
            loan = await self._borrow()
            try:
                return await work(loan)
            except StatementError as error:
                if error.code in CONFLICTS and conflicts:
                    conflicts -= 1
                elif error.code in STALE and again:
                    again -= 1
                else:
                    raise
            except DatabaseDown:
                if loan.begun or not again:
                    raise
                again -= 1  # it had died in the pool, and there may be a live one
            finally:
                await self._give_back(loan)

    async def _borrow(self) -> Loan:
        self._waiting += 1
        try:
            loan = await self._lender.borrow()
        finally:
            self._waiting -= 1
        self._running += 1
        return loan

    async def _give_back(self, loan: Loan) -> None:
        """Never raises, and is over within STOP_SECONDS."""
        try:
            await loan.give_back()
        finally:
            self._running -= 1
            if self._closed and not self._running:
                self._at_rest.set()
