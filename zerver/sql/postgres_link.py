"""One connection to a PostgreSQL server: a call's worth of it at a time, whole or given up.

Law: whatever was sent is answered, or the connection is closed; and nobody gets the rest of somebody else's answer.
`usable` says whether the next one may have it: open, outside any transaction, with nothing left to read.

Cancelled while the server works, it is asked to stop over a second connection, as the protocol has it (encrypted like
the first, unlike `PQcancel`'s), and its answer is read: the connection is kept. The server closes that second
connection after it has passed the wish on, so by then it cannot hit the statement after. A wish that comes before its
statement has begun is forgotten by the server, so it is said again. All of this has STOP_SECONDS; a server that takes
longer loses the connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Sequence
from typing import Final

import psycopg
import trio
from psycopg import capabilities, pq
from psycopg.adapt import AdaptersMap, Transformer

from zerver.errors import ConnectionLost, DatabaseDown, StatementError
from zerver.sql.driver import Answer, Statement, statement_error
from zerver.sql.postgres_line import Line, forget_waits, wait_for
from zerver.sql.postgres_statements import UNDECIDED, Query, explained
from zerver.sql.postgres_values import as_answer, as_query, copy_line

STOP_SECONDS: Final = 0.8  # from the cancellation to the connection's being usable or closed
ASK_AGAIN_SECONDS: Final = 0.02  # after the first wish; then twice that, and so on
COMMIT_SECONDS: Final = 0.8  # for which a COMMIT is waited for, cancelled or not
CHECK_SECONDS: Final = 1.0

_ROLLBACK: Final = Query(b"rollback")
COMMIT: Final = Query(b"commit")
_ALIVE: Final = Query(b"")

_STATUS = pq.ExecStatus
_FIELD = pq.DiagnosticField
_ANSWERS: Final = frozenset({_STATUS.TUPLES_OK, _STATUS.COMMAND_OK})
_COPYING: Final = frozenset({_STATUS.COPY_IN, _STATUS.COPY_OUT, _STATUS.COPY_BOTH})


class Link(Line):
    """A connection, as calls use it."""

    def __init__(self, pgconn: pq.abc.PGconn, known: AdaptersMap) -> None:
        super().__init__(pgconn)
        self._dumps = Transformer(known)
        self._loads = Transformer(known)

    # ---- values -------------------------------------------------------------------------------

    def query(self, statement: Statement) -> Query:
        """The statement ready to be sent; StatementError if it cannot be."""
        return as_query(statement, self._dumps)

    def answer(self, statement: Statement, result: pq.abc.PGresult) -> Answer:
        """What a result says; StatementError if it is that the statement failed."""
        if result.status in _ANSWERS:
            return as_answer(statement, result, self._loads)
        raise _error_of(statement, result)

    def line(self, row: Iterable[object]) -> bytes:
        """A row for `copy`. StatementError for a value that cannot be stored."""
        try:
            return copy_line(row, self._dumps)
        except (psycopg.Error, ValueError, TypeError) as error:
            raise StatementError(f"a row for COPY cannot be sent: {error}", "PARAMETER") from error

    # ---- talking ------------------------------------------------------------------------------

    async def talk(self, queries: Sequence[Query]) -> list[pq.abc.PGresult]:
        """Send the queries together, and give the server's answer to each: those after one that failed are
        PIPELINE_ABORTED. DatabaseDown, and closed, if the connection breaks.

        Cancelled: none is at work any more; what they did in a transaction stands until `reset`.
        """
        self._check_free()
        try:
            self._send(queries)
            await self._receive()
        except trio.Cancelled:
            await self._stop()
            raise
        except psycopg.Error as error:
            raise self._broken(error) from error
        except BaseException:
            self.close()
            raise
        return self._take()

    async def check(self) -> bool:
        """Whether the server answers, within CHECK_SECONDS; one that does not loses the connection."""
        with trio.move_on_after(CHECK_SECONDS):
            try:
                await self.talk([_ALIVE])
            except DatabaseDown:
                return False
            return True
        self.close()
        return False

    async def commit(self, subject: Statement) -> None:
        """Commit. StatementError about the subject: certainly not done. ConnectionLost, and closed, if no answer came:
        because the connection broke, or because the caller was cancelled and the server did not answer within
        COMMIT_SECONDS. Never Cancelled.
        """
        self._check_free()
        try:
            self._send([COMMIT])
            with trio.move_on_after(COMMIT_SECONDS, shield=True) as patience:
                await self._receive()
            if patience.cancelled_caught:
                await self._receive()
        except trio.Cancelled:
            self.close()
            raise ConnectionLost("cancelled while COMMIT was not answered: nobody knows whether it happened") from None
        except (psycopg.Error, DatabaseDown) as error:
            self.close()
            said = " ".join(str(error).split())
            raise ConnectionLost(f"COMMIT was sent, and not answered: {said}") from error
        except BaseException:
            self.close()
            raise
        (result,) = self._take()
        self._committed(subject, result)

    async def talk_and_commit(self, queries: Sequence[Query], subject: Statement) -> list[pq.abc.PGresult]:
        """Send the queries, of which the first begins a transaction, and COMMIT behind them; and give the answers to
        the queries. One that failed has kept the server from the COMMIT: the transaction stands open until `reset`.

        StatementError about the subject: the COMMIT failed, certainly not done. ConnectionLost, and closed, if not all
        was answered. Cancelled: certainly not done; if it came too late for that, this returns.
        """
        self._check_free()
        try:
            self._send([*queries, COMMIT])
            await self._receive()
        except trio.Cancelled:
            await self._halt()
            if self.closed:
                raise ConnectionLost("cancelled, and COMMIT may have been performed: nobody knows") from None
            if any(result.status not in _ANSWERS for result in self._results[:-1]):
                self._take()
                raise
            # COMMIT was performed before the wish to stop came there: the next checkpoint delivers the cancellation.
        except (psycopg.Error, DatabaseDown) as error:
            self.close()
            said = " ".join(str(error).split())
            raise ConnectionLost(f"COMMIT was sent with the statements, and not all was answered: {said}") from error
        except BaseException:
            self.close()
            raise
        *answers, end = self._take()
        if all(answer.status in _ANSWERS for answer in answers):
            self._committed(subject, end)
        return answers

    @staticmethod
    def _committed(subject: Statement, result: pq.abc.PGresult) -> None:
        """Look at the answer to COMMIT; see `commit`."""
        if result.status == _STATUS.COMMAND_OK and result.command_status == b"COMMIT":
            return
        if result.status == _STATUS.COMMAND_OK:
            raise statement_error(subject, "the transaction had failed, and was undone", "UNDONE")
        failure = _error_of(subject, result)
        if failure.code in UNDECIDED:
            raise ConnectionLost(f"COMMIT was answered, without a decision: {failure}") from failure
        raise failure

    async def reset(self) -> None:
        """Roll back what is open. Shielded, and over within STOP_SECONDS; a connection that cannot is closed."""
        if not self.usable:
            await self._stop()

    async def run_script(self, text: bytes) -> list[pq.abc.PGresult]:
        """Perform several statements in one string, without parameters; the answers up to the first failure."""
        try:
            self._pgconn.send_query(text)
            results = []
            await self._flush()
            while (result := await self._next()) is not None:
                results.append(result)
                if result.status in _COPYING:
                    raise DatabaseDown("COPY cannot stand in a script")
            return results
        except psycopg.Error as error:
            raise self._broken(error) from error
        except BaseException:
            self.close()
            raise

    async def copy(self, command: bytes, chunks: AsyncIterable[bytes]) -> pq.abc.PGresult:
        """Feed `copy … from stdin`, and give the answer. What `chunks` raises is raised, and nothing is stored.

        Cancelled, or given up by `chunks`: the server has been told so, or the connection is closed.
        """
        feeding = False
        try:
            self._pgconn.send_query(command)
            await self._flush()
            feeding = await self._copy_begins()
            if feeding:
                async for chunk in chunks:
                    await self._put(chunk)
                await self._end_copy(None)
                feeding = False
            return await self._last_result()
        except psycopg.Error as error:
            raise self._broken(error) from error
        except BaseException:
            await self._give_up_copy(feeding)
            raise

    async def _copy_begins(self) -> bool:
        """Whether the server takes rows now; if not, its answer says why."""
        result = await self._next()
        if result is None:
            raise DatabaseDown("COPY was not answered")
        if result.status != _STATUS.COPY_IN:
            self._last = result
            return False
        return True

    async def _give_up_copy(self, feeding: bool) -> None:
        if self.closed:
            return
        with trio.move_on_after(STOP_SECONDS, shield=True):
            try:
                if feeding:
                    await self._end_copy(b"given up by the client")
                await self._last_result()
                return
            except (psycopg.Error, DatabaseDown):
                pass  # closed below
        self.close()

    async def notifications(self) -> list[tuple[str, str, int]]:
        """Wait for something to come, and give what are notifications in it: channel, payload, and the sender's pid.
        DatabaseDown when the server hangs up.
        """
        if self.closed:
            raise DatabaseDown("the connection is closed")
        if come := self.notifications_nowait():
            return come
        try:
            await trio.lowlevel.wait_readable(self._fd)
            self._pgconn.consume_input()
        except psycopg.Error as error:
            raise self._broken(error) from error
        return self.notifications_nowait()

    def notifications_nowait(self) -> list[tuple[str, str, int]]:
        """The notifications that have come, perhaps with the answers of statements."""
        found = []
        while self._fd >= 0 and (note := self._pgconn.notifies()) is not None:
            found.append((note.relname.decode(), note.extra.decode(), note.be_pid))
        return found

    async def _put(self, chunk: bytes) -> None:
        while not self._pgconn.put_copy_data(chunk):
            await self._flush()
        await self._flush()

    async def _end_copy(self, error: bytes | None) -> None:
        while not self._pgconn.put_copy_end(error):
            await self._flush()
        await self._flush()

    async def _last_result(self) -> pq.abc.PGresult:
        """Read to the end of an answer that has no pipeline, and give the last part of it."""
        while (result := await self._next()) is not None:
            if result.status in _COPYING:
                raise DatabaseDown("COPY was begun and cut")  # it would come again and again
            self._last = result
        last, self._last = self._last, None
        if last is None:
            raise DatabaseDown("COPY was not answered")
        return last

    # ---- stopping -----------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Stop the server's work and roll back, or close; within STOP_SECONDS."""
        if self.closed:
            return
        with trio.move_on_after(STOP_SECONDS, shield=True):
            try:
                await self._stopped()
                self._take()
                if self.in_transaction:
                    self._send([_ROLLBACK])
                    await self._receive()
                    self._take()
            except (psycopg.Error, DatabaseDown, OSError):
                pass  # it is not usable, then
        if not self.usable:
            self.close()

    async def _halt(self) -> None:
        """Stop the server's work and read what it answers, or close; within STOP_SECONDS."""
        if self.closed:
            return
        with trio.move_on_after(STOP_SECONDS, shield=True):
            try:
                await self._stopped()
            except (psycopg.Error, DatabaseDown, OSError):
                pass  # closed below
        if self._awaited or self._piped:
            self.close()

    async def _stopped(self) -> None:
        pause = ASK_AGAIN_SECONDS
        while self._awaited or self._piped:
            await self._ask_to_stop()
            with trio.move_on_after(pause):
                await self._receive()
            pause *= 2

    async def _ask_to_stop(self) -> None:
        if not capabilities.has_cancel_safe():  # libpq before 17 has only a way that blocks, and is not encrypted
            await trio.to_thread.run_sync(self._pgconn.get_cancel().cancel, abandon_on_cancel=True)
            return
        asking = self._pgconn.cancel_conn()
        try:
            asking.start()
            while (status := asking.poll()) != pq.PollingStatus.OK:
                if status == pq.PollingStatus.FAILED:
                    raise DatabaseDown(asking.get_error_message())
                await wait_for(asking.socket, status)
        finally:
            forget_waits(lambda: asking.socket)
            asking.finish()


def _error_of(statement: Statement, result: pq.abc.PGresult) -> StatementError:
    def field(which: pq.DiagnosticField) -> str:
        return (result.error_field(which) or b"").decode("utf-8", "replace")

    message = field(_FIELD.MESSAGE_PRIMARY) or result.get_error_message().strip() or "the server did not perform it"
    return explained(
        statement, field(_FIELD.SQLSTATE), message, field(_FIELD.MESSAGE_DETAIL), field(_FIELD.MESSAGE_HINT)
    )
