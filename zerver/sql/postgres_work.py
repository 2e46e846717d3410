"""What is done on a connection: a read, a write, a transaction in steps, COPY, a schema. No client library is known.

Law: an answer is looked at before COMMIT is sent, and COMMIT is sent only if nothing was wrong with any of them. Where
there is nothing to look for but failure (`write_at_once`), the server does it: behind a statement that failed it passes
COMMIT over. What is left open when an error leaves here is the driver's to undo.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar, cast

import trio

from zerver.errors import ConnectionLost, StatementError
from zerver.sql.driver import Answer, Changed, Rows, Statement, check_answer, statement_error
from zerver.sql.postgres_statements import UNREADABLE, Query, quoted

if TYPE_CHECKING:
    from zerver.sql.postgres_link import Link

Isolation: TypeAlias = Literal["read committed", "repeatable read", "serializable"]
RowSource: TypeAlias = Iterable[Sequence[object]] | AsyncIterable[Sequence[object]]
AnswerT = TypeVar("AnswerT", Rows, Changed)

BEGIN: Final = Query(b"begin read write")
_BEGIN: Final = Statement("begin")
_COPY_BYTES: Final = 64 * 1024  # a chunk of COPY's data: what a socket's buffer takes
# Taken by whoever runs a schema: `create table if not exists` fails when two do it at once (a unique violation in
# the catalogue). Any number that nobody else uses.
_SCHEMA_LOCK: Final = 0x7A657276


def opening(isolation: Isolation | None, read_only: bool) -> Query:
    """The statement that begins such a transaction."""
    if isolation is not None and isolation not in _ISOLATIONS:
        raise ValueError(f"isolation must be one of {', '.join(_ISOLATIONS)}, not {isolation!r}")
    level = f"isolation level {isolation} " if isolation is not None else ""
    return Query(f"begin {level}read {'only' if read_only else 'write'}".encode())


_ISOLATIONS: Final = ("read committed", "repeatable read", "serializable")


async def read(link: Link, statement: Statement) -> Rows:
    """One statement that reads: alone, it is a transaction that cannot write."""
    (result,) = await link.talk([link.query(statement)])
    answer = link.answer(statement, result)
    check_answer(statement, answer, Rows)
    return cast(Rows, answer)


async def write(link: Link, statements: Sequence[Statement], wants: type[Answer] | None) -> list[Answer]:
    """The statements as one transaction, in two round trips. wants: the shape of each answer, None for any."""
    if not statements:
        await trio.lowlevel.checkpoint()
        return []
    begun, *results = await link.talk([BEGIN, *[link.query(statement) for statement in statements]])
    link.answer(_BEGIN, begun)
    answers = []
    for statement, result in zip(statements, results, strict=True):
        answer = link.answer(statement, result)
        check_answer(statement, answer, wants)
        answers.append(answer)
    await link.commit(statements[0])
    return answers


async def write_at_once(link: Link, statements: Sequence[Statement]) -> list[Answer]:
    """The same in one round trip, if no statement expects anything of its answer."""
    if not statements or any(one.expect is not None or one.accept is not None for one in statements):
        return await write(link, statements, None)
    queries = [link.query(statement) for statement in statements]
    begun, *results = await link.talk_and_commit([BEGIN, *queries], statements[0])
    link.answer(_BEGIN, begun)
    try:
        return [link.answer(statement, result) for statement, result in zip(statements, results, strict=True)]
    except StatementError as error:
        if error.code == UNREADABLE:
            raise ConnectionLost(f"it may have been done, but its answer cannot be read: {error}") from error
        raise


class Transaction:
    """A transaction in several steps, on one connection; made by `PostgresDriver.begin`. One task at a time.

    A statement that fails spoils it: what follows is refused (StatementError "25P02"), and so is the commit; unless it
    stood in a `savepoint`, which is then as if it had not been begun. `execute` and `fetch` raise as the driver's do.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._savepoints = 0
        self._spoiled = False
        self._over = False

    async def fetch(self, statement: Statement) -> Rows:
        """Perform one statement that answers with rows; it may write, `update … returning`."""
        return await self._one(statement, Rows)

    async def execute(self, statement: Statement) -> Changed:
        """Perform one statement that answers with no rows."""
        return await self._one(statement, Changed)

    async def many(self, statements: Sequence[Statement]) -> list[Answer]:
        """Perform several, in one round trip; an answer for each, in order."""
        return await self._perform(statements, None)

    async def copy(self, table: str, columns: Sequence[str], rows: RowSource) -> int:
        """Insert many rows; see `PostgresDriver.copy`."""
        self._check()
        with _Watch(self):
            return await _copied(self._link, table, columns, rows)

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None, None]:
        """An exception that leaves the block undoes what was done in it, and the transaction can go on.

        A cancellation undoes the whole transaction: nobody would be there to go on.
        """
        self._savepoints += 1
        name = f"zerver_{self._savepoints}"
        await self._word(f"savepoint {name}")
        try:
            yield
        except Exception:
            if not self._over:
                self._spoiled = False
                await self._word(f"rollback to savepoint {name}")
                await self._word(f"release savepoint {name}")
            raise
        await self._word(f"release savepoint {name}")

    async def commit(self) -> None:
        """The driver's: on leaving the block."""
        if self._over or self._spoiled:
            raise statement_error(Statement("commit"), "a statement of the transaction failed: it was undone", "UNDONE")
        self._over = True
        await self._link.commit(Statement("commit"))

    async def _one(self, statement: Statement, wants: type[AnswerT]) -> AnswerT:
        (answer,) = await self._perform([statement], wants)
        return cast(AnswerT, answer)

    async def _perform(self, statements: Sequence[Statement], wants: type[Answer] | None) -> list[Answer]:
        self._check()
        queries = [self._link.query(statement) for statement in statements]
        with _Watch(self):
            results = await self._link.talk(queries)
            answers = []
            for statement, result in zip(statements, results, strict=True):
                answer = self._link.answer(statement, result)
                check_answer(statement, answer, wants)
                answers.append(answer)
        return answers

    async def _word(self, sql: str) -> None:
        self._check()
        with _Watch(self):
            (result,) = await self._link.talk([Query(sql.encode())])
            self._link.answer(Statement(sql), result)

    def _check(self) -> None:
        if self._over:
            raise statement_error(Statement("-- transaction"), "the transaction is over", "TRANSACTION")
        if self._spoiled:
            problem = "an earlier statement of the transaction failed"
            raise statement_error(Statement("-- transaction"), problem, "25P02", "use a savepoint around what may fail")


class _Watch:
    """Notes what an exception leaves of a transaction: a statement's own spoils it, any other ends it."""

    __slots__ = ("_transaction",)

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception) and self._transaction._link.in_transaction:
            self._transaction._spoiled = True
        elif error is not None:
            self._transaction._over = True


# ---- COPY and scripts -------------------------------------------------------------------------


async def copy(link: Link, table: str, columns: Sequence[str], rows: RowSource) -> int:
    """Feed the rows, and commit."""
    count = await _copied(link, table, columns, rows)
    await link.commit(Statement(f"copy {table}"))
    return count


async def _copied(link: Link, table: str, columns: Sequence[str], rows: RowSource) -> int:
    names = ", ".join(map(quoted, columns))
    command = f"copy {'.'.join(map(quoted, table.split('.')))} ({names}) from stdin"
    async with aclosing(_chunks(link, rows, len(columns))) as chunks:
        result = await link.copy(command.encode(), chunks)
    answer = link.answer(Statement(command), result)
    return answer.count if isinstance(answer, Changed) else 0


async def _chunks(link: Link, rows: RowSource, width: int) -> AsyncGenerator[bytes, None]:
    lines: list[bytes] = []
    size = 0
    async with aclosing(_each(rows)) as each:
        async for row in each:
            if len(row) != width:
                raise StatementError(f"a row for COPY has {len(row)} values, the columns are {width}", "PARAMETERS")
            line = link.line(row)
            lines.append(line)
            size += len(line)
            if size >= _COPY_BYTES:
                yield b"".join(lines)
                lines.clear()
                size = 0
                await trio.lowlevel.checkpoint()
    yield b"".join(lines)


async def _each(rows: RowSource) -> AsyncGenerator[Sequence[object], None]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row


async def run_schema(link: Link, schema: str) -> None:
    """Run a script as one transaction, one process at a time. StatementError: nothing of it was done."""
    script = f"begin read write; select pg_advisory_xact_lock({_SCHEMA_LOCK});\n{schema}\n;commit"
    statement = Statement(schema)
    for result in await link.run_script(script.encode()):
        link.answer(statement, result)
