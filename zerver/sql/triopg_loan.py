"""A connection that somebody's triopg pool lends for one call: used, and given back clean or closed.

Law: nothing here waits for a server that does not answer. A cancellation asks it to stop (asyncpg does, over a second
connection); what is left is rolled back and handed in within STOP_SECONDS, or the connection is closed, and the pool
makes another when it needs one.

asyncpg says once that a statement is to stop, and a wish that comes before its statement has begun is forgotten by the
server: such a connection is closed, where the driver on psycopg asks again and keeps it. Who is closed out finds the
server's work undone all the same: it stood in a transaction.

Importing this imports trio_asyncio, which replaces asyncio's event loop policy for the whole process. Whoever has a
pool to lend has done that already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Final, Protocol

import asyncpg  # type: ignore[import-untyped]  # it has no types of its own
import trio
import trio_asyncio  # type: ignore[import-untyped]  # it has no types of its own
import triopg  # type: ignore[import-untyped]  # noqa: F401  (it has no types; to fail here if it cannot be imported)

from zerver.errors import ConnectionLost, DatabaseDown, DefinitionError, DriverClosed, DriverError, StatementError
from zerver.sql.driver import Answer, Changed, Rows, Statement, statement_error
from zerver.sql.postgres_statements import UNDECIDED, explained, sendable

STOP_SECONDS: Final = 0.8  # from the end of a call to its connection's being free or closed
COMMIT_SECONDS: Final = 0.8  # for which a cancelled COMMIT is waited for

_BEGIN: Final = Statement("begin")
_OVER: Final = frozenset({"FATAL", "PANIC"})  # severities after which the server hangs up


class TriopgPool(Protocol):
    """What is asked of a pool: `triopg.create_pool()` gives one."""

    def acquire(self) -> AbstractAsyncContextManager[Any]:
        """Lend a connection for a block."""
        ...


class Lender:
    """A pool, and the trio_asyncio loop in which it lives: the one around the task that makes this.

    DefinitionError if there is none.
    """

    def __init__(self, pool: TriopgPool) -> None:
        self._pool = pool
        loop: Any = trio_asyncio.current_loop.get()
        if loop is None:
            raise DefinitionError(
                "triopg() needs the loop in which its pool lives, and the runtime was opened outside of it",
                "open them in this order: trio_asyncio.open_loop(), the pool, the runtime",
            )
        self._loop = loop

    @contextmanager
    def inside(self) -> Generator[None, None, None]:
        """Let this task find the loop: triopg looks it up in a context variable, which actors begun elsewhere lack."""
        if self._loop.is_closed():
            raise DriverClosed("the trio_asyncio loop of the pool has ended")
        token = trio_asyncio.current_loop.set(self._loop)
        try:
            yield
        finally:
            trio_asyncio.current_loop.reset(token)

    async def borrow(self) -> Loan:
        """A connection, to be given back whatever happens; both `inside`. DatabaseDown if there is none to be had,
        DriverClosed if the pool's owner has closed it, DefinitionError if it was never opened.
        """
        try:
            lent = self._pool.acquire()
        except AttributeError as error:  # triopg's way to say so: it holds no asyncpg pool yet
            problem = f"the triopg pool is not open: {error}"
            raise DefinitionError(problem, "open it before the runtime: async with pool: …") from error
        try:
            connection = await lent.__aenter__()
        except (asyncpg.PostgresError, asyncpg.InternalClientError, OSError, asyncio.CancelledError) as error:
            raise _down(error) from error
        except asyncpg.InterfaceError as error:
            if "pool is" in str(error):  # closing, or closed: asyncpg has one class for all misuse
                raise DriverClosed(f"the pool was closed by its owner: {error}") from error
            raise _down(error) from error
        return Loan(lent, connection, self._loop)


class Loan:
    """A connection for one call, which is one transaction. begun: the server has answered on it."""

    def __init__(self, lent: AbstractAsyncContextManager[Any], connection: Any, loop: Any) -> None:
        self.begun = False
        self._lent = lent
        self._connection = connection
        self._loop = loop
        self._open = False  # there may be a transaction to undo

    async def begin(self, mode: str) -> None:
        """Begin a transaction: "read only" or "read write"."""
        self._open = True
        with self._explaining(_BEGIN):
            await self._connection.execute(f"begin {mode}")
        self.begun = True

    async def perform(self, statement: Statement) -> Answer:
        """Perform one statement. StatementError if it failed, DatabaseDown if the connection broke."""
        text = sendable(statement).decode()
        with self._explaining(statement):
            # Prepared each time: nothing else in asyncpg tells the columns of an answer without rows.
            prepared = await self._connection.prepare(text)
            rows = await prepared.fetch(*statement.params)
            if columns := tuple([column.name for column in prepared.get_attributes()]):
                return Rows(columns, [tuple(row) for row in rows])
            return Changed(_count(prepared.get_statusmsg()))

    async def commit(self, subject: Statement) -> None:
        """Commit. StatementError about the subject: certainly not done. ConnectionLost, and closed, if no answer came:
        because the connection broke, or because the caller was cancelled and the server did not answer within
        COMMIT_SECONDS. Never Cancelled.
        """
        with trio.CancelScope(shield=True) as scope:
            impatience = self._loop.call_later(COMMIT_SECONDS, setattr, scope, "shield", False)
            try:
                said = await self._connection.execute("commit")
            except trio.Cancelled:
                self._close()
                raise ConnectionLost(
                    "cancelled while COMMIT was not answered: nobody knows whether it happened"
                ) from None
            except (Exception, asyncio.CancelledError) as error:
                raise self._uncommitted(subject, error) from error
            finally:
                impatience.cancel()
            self._open = False
            if said != "COMMIT":
                raise statement_error(subject, "the transaction had failed, and was undone", "UNDONE")

    async def give_back(self) -> None:
        """Undo what is open, and return the connection to its pool. Shielded, and over within STOP_SECONDS; never
        raises: how the call ended is decided.
        """
        with trio.CancelScope(shield=True):
            # Triopg shields its own cleanup, so no scope around it could end it. A closed connection does.
            patience = self._loop.call_later(STOP_SECONDS, self._close)
            try:
                if self._open:
                    await self._connection.execute("rollback")
            except (Exception, asyncio.CancelledError):
                self._close()
            try:
                await self._lent.__aexit__(None, None, None)
            except (Exception, asyncio.CancelledError):
                self._close()  # asyncpg has, if its `reset` failed; the pool has its place back
            finally:
                patience.cancel()

    def _close(self) -> None:
        try:
            self._connection.terminate()
        except RuntimeError:
            pass  # the loop has ended, and its sockets with it

    # ---- what errors mean ---------------------------------------------------------------------

    @contextmanager
    def _explaining(self, statement: Statement) -> Generator[None, None, None]:
        try:
            yield
        except (Exception, asyncio.CancelledError) as error:
            raise self._meaning(statement, error) from error

    def _meaning(self, statement: Statement, error: BaseException) -> DriverError:
        """What it means before COMMIT that asyncpg, or a codec of the pool's owner, raised this."""
        if isinstance(error, TimeoutError):
            return explained(statement, "57014", "the server did not answer within the pool's command_timeout")
        if isinstance(error, asyncpg.OutdatedSchemaCacheError):
            return explained(statement, "0A000", str(error))
        if self._is_broken(error):
            self._close()
            return _down(error)
        if (refused := _refused(statement, error)) is not None:
            return refused
        if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
            cure = "asyncpg takes only values of the very type that the server names: cast the ?, or pass another"
            return statement_error(statement, f"a parameter cannot be sent: {error}", "PARAMETER", cure)
        return statement_error(
            statement, f"a value cannot be read: {error!r}", "TYPE", "cast it in the statement, to text"
        )

    def _uncommitted(self, subject: Statement, error: BaseException) -> DriverError:
        """What it means that COMMIT raised this."""
        refused = None if self._is_broken(error) else _refused(subject, error)
        if refused is not None and refused.code not in UNDECIDED:
            return refused
        self._close()
        return ConnectionLost(f"COMMIT was sent, and not answered: {_said(error)}")

    def _is_broken(self, error: BaseException) -> bool:
        if self._connection.is_closed():
            return True
        if isinstance(error, asyncpg.PostgresError):
            return isinstance(error, asyncpg.PostgresConnectionError) or error.as_dict().get("severity_en") in _OVER
        return isinstance(error, OSError | asyncpg.InternalClientError | asyncio.CancelledError)


def _refused(statement: Statement, error: BaseException) -> StatementError | None:
    """The server's own error; None if asyncpg has raised it, of the same classes, for a fault of its caller."""
    said = error.as_dict() if isinstance(error, asyncpg.PostgresError) else {}
    if "severity" not in said:
        return None
    return explained(
        statement, said.get("sqlstate", ""), str(error.args[0]), said.get("detail", ""), said.get("hint", "")
    )


def _down(error: BaseException) -> DatabaseDown:
    return DatabaseDown(f"the triopg pool has no connection to the server: {_said(error)}")


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _count(status: str | None) -> int:
    """The rows in a command's status: `INSERT 0 3`, `UPDATE 2`, `CREATE TABLE`."""
    last = (status or "").rpartition(" ")[2]
    return int(last) if last.isdigit() else 0
