"""A connection's two directions: statements to libpq and results from it, waited for by Trio. No task, no thread.

Law: every result is taken in the order in which it was asked for, and each wait may be cut and taken up again: libpq
keeps the protocol's state, and what is still to come is counted here.

It stands on `psycopg.pq`, psycopg's published wrapper of libpq, and on none of psycopg's own connections: those wait
for asyncio. Statements that are sent together are one pipeline, one round trip. The second time a connection sees a
statement it is prepared, in the pipeline of that call.
"""

from __future__ import annotations

import select
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import psycopg
import trio
from psycopg import capabilities, pq

from zerver.errors import DatabaseDown, InternalError
from zerver.runtime.groups import unwrapped
from zerver.sql.postgres_statements import Query

PREPARED: Final = 256  # statements each connection keeps prepared

_OK: Final = int(pq.ConnStatus.OK)
_IDLE: Final = int(pq.TransactionStatus.IDLE)
_IN_TRANSACTION: Final = frozenset({int(pq.TransactionStatus.INTRANS), int(pq.TransactionStatus.INERROR)})
_FATAL: Final = frozenset({b"FATAL", b"PANIC"})
_STATUS = pq.ExecStatus

# What a statement is prepared under: its text, and the types of its parameters.
_Key: TypeAlias = tuple[bytes, tuple[int, ...]]
_NO_KEY: Final[_Key] = (b"", ())


class Line:
    """One connection, as bytes there and results back. One task at a time may use it.

    born, used: when it was opened, and used last, by Trio's clock. pid: the backend's.
    """

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self._fd = pgconn.socket
        self._look = select.poll()
        self._look.register(self._fd, select.POLLIN)
        self._awaited: deque[_Key | None] = deque()  # what is to come: an answer (None), or word that this is prepared
        self._piped = False  # and a pipeline's end after it
        self._last: pq.abc.PGresult | None = None
        self._failed: pq.abc.PGresult | None = None
        self._results: list[pq.abc.PGresult] = []
        self._prepared: OrderedDict[_Key, bytes | None] = OrderedDict()  # its name; None: seen once, and not prepared
        self._outdated: list[bytes] = []  # names the server may forget
        self._names = 0
        self.pid = pgconn.backend_pid
        self.born = self.used = trio.current_time()

    # ---- what state it is in ------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether it is open, with nothing left to read and no transaction."""
        return (
            not self._awaited
            and not self._piped
            and self._pgconn.status == _OK
            and self._pgconn.transaction_status == _IDLE
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called: by its holder, or because it broke."""
        return self._fd < 0

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, be it one that has failed."""
        return not self.closed and self._pgconn.transaction_status in _IN_TRANSACTION

    def is_alive(self) -> bool:
        """A look without waiting: an idle connection on which the server has hung up is not."""
        if self._pgconn.status != _OK:
            return False
        while self._look.poll(0):
            try:
                # A notice perhaps, or a changed setting; or a backend's last words, and then there is more to read.
                self._pgconn.consume_input()
            except psycopg.Error:
                return False
        return True

    def close(self) -> None:
        """Close it, whatever its state. The server undoes what was not committed."""
        if self._fd >= 0:
            trio.lowlevel.notify_closing(self._fd)
            self._fd = -1
            self._pgconn.finish()

    def forget(self) -> bool:
        """Take no statement to be prepared any more. False: none was."""
        names = [name for name in self._prepared.values() if name is not None]
        if capabilities.has_send_close_prepared():
            self._outdated += names
        self._prepared.clear()
        return bool(names)

    # ---- sending: nothing here waits ----------------------------------------------------------

    def _check_free(self) -> None:
        if self.closed:
            raise DatabaseDown("the connection is closed")
        if self._awaited or self._piped:
            raise InternalError("two tasks use one connection at once")

    def _send(self, queries: Sequence[Query]) -> None:
        pgconn = self._pgconn
        # In a batch of more statements than are kept, one would be forgotten before its turn has come.
        plans = [self._plan(query) if len(queries) <= PREPARED else (b"", False) for query in queries]
        if len(queries) == 1 and not plans[0][1] and not self._outdated:
            self._send_one(queries[0], plans[0][0])
            return
        pgconn.enter_pipeline_mode()
        self._piped = True
        for name in self._outdated:
            pgconn.send_close_prepared(name)
            self._awaited.append(_NO_KEY)
        self._outdated.clear()
        for query, (name, new) in zip(queries, plans, strict=True):
            if new:
                pgconn.send_prepare(name, query.text, query.types)
                self._awaited.append((query.text, query.types))
            self._send_one(query, name)
        pgconn.pipeline_sync()

    def _send_one(self, query: Query, name: bytes) -> None:
        if name:
            self._pgconn.send_query_prepared(name, query.values, query.formats)
        else:
            self._pgconn.send_query_params(query.text, query.values, query.types, query.formats)
        self._awaited.append(None)

    def _plan(self, query: Query) -> tuple[bytes, bool]:
        """The name under which the statement is prepared, or b"" to send its text; and whether that is still to do."""
        key = query.text, query.types
        if key not in self._prepared:
            if len(self._prepared) < PREPARED or self._make_room():
                self._prepared[key] = None
            return b"", False
        name = self._prepared[key]
        self._prepared.move_to_end(key)
        if name is not None:
            return name, False
        self._names += 1
        name = self._prepared[key] = b"z%d" % self._names
        return name, True

    def _make_room(self) -> bool:
        """Forget the statement that was used longest ago. False: this libpq is too old to (it is of before 17)."""
        if not capabilities.has_send_close_prepared():
            return False
        _, name = self._prepared.popitem(last=False)
        if name is not None:
            self._outdated.append(name)
        return True

    # ---- receiving: each of these may be cut by a cancellation, and called again ----------------

    async def _receive(self) -> None:
        """Read all that is awaited."""
        await self._flush()
        is_busy = self._pgconn.is_busy
        while self._awaited:
            if is_busy():
                await self._come()
            result = self._result()
            if result is not None:
                self._last = result
                continue
            key, last, self._last = self._awaited.popleft(), self._last, None
            if last is None:
                raise DatabaseDown("the server's answer came to an end too early")
            if key is None:
                failed, self._failed = self._failed, None
                # A statement whose preparation failed is only "aborted": the preparation's error says why.
                self._results.append(failed if failed is not None else last)
            elif last.status != _STATUS.COMMAND_OK and self._prepared.pop(key, None) is not None:
                self._failed = last if last.status == _STATUS.FATAL_ERROR else None
        if self._piped:
            end = await self._next()
            if end is None or end.status != _STATUS.PIPELINE_SYNC:
                raise DatabaseDown("the server's answer did not end where it should")
            self._pgconn.exit_pipeline_mode()
            self._piped = False

    async def _next(self) -> pq.abc.PGresult | None:
        """The next result; None between the results of one statement and the next."""
        await self._come()
        return self._result()

    async def _come(self) -> None:
        """Wait until a result is there."""
        pgconn = self._pgconn
        while pgconn.is_busy():
            await trio.lowlevel.wait_readable(self._fd)
            pgconn.consume_input()

    def _result(self) -> pq.abc.PGresult | None:
        """The next result, which is there."""
        pgconn = self._pgconn
        result = pgconn.get_result()
        # The last words of a backend come before its connection is seen to break.
        if (
            result is not None
            and result.status == _STATUS.FATAL_ERROR
            and (pgconn.status != _OK or result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in _FATAL)
        ):
            raise self._broken(result.get_error_message())
        return result

    async def _flush(self) -> None:
        """Send what libpq holds back; read meanwhile, or two full buffers would wait for each other."""
        while self._pgconn.flush():
            await _either_way(self._fd)
            self._pgconn.consume_input()

    def _take(self) -> list[pq.abc.PGresult]:
        results, self._results = self._results, []
        self.used = trio.current_time()
        return results

    def _broken(self, why: object) -> DatabaseDown:
        self.close()
        return DatabaseDown(f"the connection to PostgreSQL broke: {' '.join(str(why).split())}")


async def wait_for(fd: int, status: int) -> None:
    """Wait as a `poll` of libpq's has it."""
    if status == pq.PollingStatus.READING:
        await trio.lowlevel.wait_readable(fd)
    else:
        await trio.lowlevel.wait_writable(fd)


def forget_waits(socket: Callable[[], int]) -> None:
    """Tell Trio that this descriptor is about to be closed, if there is one (libpq raises when there is none)."""
    try:
        trio.lowlevel.notify_closing(socket())
    except psycopg.Error:
        pass


async def _either_way(fd: int) -> None:
    """Wait until something can be read or written."""

    async def one(wait: Callable[[int], Awaitable[None]]) -> None:
        await wait(fd)
        nursery.cancel_scope.cancel()

    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, trio.lowlevel.wait_readable)
            nursery.start_soon(one, trio.lowlevel.wait_writable)
