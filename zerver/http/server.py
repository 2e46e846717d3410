"""Listen, accept, and let each connection live its own life. `serve_http` runs in any nursery.

A connection that crashes ends alone. Running out of file descriptors pauses accepting and does not end it; a client
over the limit of connections is told so and costs no task. Cancelling the scope that `serve_http` runs in ends
everything at once; `drain` ends it politely.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import attrs
import trio

from zerver.http.connection import Connection, Service, log_defect
from zerver.http.exchange import DEFAULT_LIMITS, Handler, Limits
from zerver.http.hangups import Hangups, open_hangups
from zerver.http.listeners import address_of, peer_of
from zerver.http.parsers import ParserName, head_parser
from zerver.runtime.groups import unwrapped

_log = logging.getLogger(__name__)

# What accept(2) says when the machine, not the client, is short of something; and how long to wait then.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_PAUSE_SECONDS: Final = 0.1

_FULL_BODY: Final = (
    b'{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"too many connections are open"}'
)
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n"
    b"content-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n%s" % (len(_FULL_BODY), _FULL_BODY)
)


@attrs.frozen
class ServerStatistics:
    """A snapshot. idle: connections between requests. busy: the others. requests: answered since the start.

    connections: accepted since the start, those refused included. refused: over the limit of open connections.
    defects: exceptions given to on_defect.
    """

    idle: int
    busy: int
    connections: int
    refused: int
    requests: int
    defects: int
    draining: bool


async def serve_http(
    handler: Handler,
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
    *,
    limits: Limits = DEFAULT_LIMITS,
    on_defect: Callable[[Exception], None] = log_defect,
    parser: ParserName = "auto",
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve handler on the listeners until cancelled or drained; the listeners are closed then.

        server = await nursery.start(serve_http, handler, await open_http_listeners("127.0.0.1", 8000))
        print(*server.addresses)

    on_defect gets what handlers raise, and what else goes wrong in a connection; by default it is logged.
    parser: what reads request heads; both answer alike, and auto is httptools where it is installed, else h11.

    Raises ImportError for a parser that is not installed, and what a listener raises, bare; no error of a handler or
    a connection.
    """
    server = Server(Service(handler, limits, on_defect, head_parser(parser)), listeners)
    await server._run(task_status)


class Server:
    """A server that is running: what `nursery.start(serve_http, …)` returns.

    addresses: where it listens: "http://127.0.0.1:8000", "unix:/run/shop.sock". None for listeners without sockets.
    """

    def __init__(self, service: Service, listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]) -> None:
        self.addresses = tuple(filter(None, map(address_of, listeners)))
        self._listeners = listeners
        self._defects = 0
        self._service = attrs.evolve(service, on_defect=self._count_defect)
        self._on_defect = service.on_defect
        self._connections: set[Connection] = set()
        self._open = 0  # accepted and not closed yet, those amid a TLS handshake included
        self._accepted = 0
        self._refused = 0
        self._requests = 0  # of connections that have ended
        self._draining = False
        self._hangups: Hangups | None = None
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._ended = trio.Event()

    def statistics(self) -> ServerStatistics:
        idle = sum(connection.idle for connection in self._connections)
        return ServerStatistics(
            idle=idle,
            busy=len(self._connections) - idle,
            connections=self._accepted,
            refused=self._refused,
            requests=self._requests + sum(connection.requests for connection in self._connections),
            defects=self._defects,
            draining=self._draining,
        )

    async def drain(self, seconds: float) -> None:
        """Stop accepting, close idle connections, let the others finish their request; cut those left after
        `seconds`.

        Answers sent meanwhile say `Connection: close`. Returns when serve_http has ended. A second call may
        shorten the time, not lengthen it.
        """
        self._draining = True
        self._accepting.cancel()
        self._serving.deadline = min(self._serving.deadline, trio.current_time() + seconds)
        for connection in list(self._connections):
            connection.close_soon()
        await self._ended.wait()

    async def _run(self, task_status: trio.TaskStatus[Server]) -> None:
        try:
            with unwrapped(), self._serving:
                async with open_hangups() as self._hangups, trio.open_nursery() as connections:
                    with self._accepting:
                        task_status.started(self)
                        await self._accept_all(connections)
        finally:
            self._ended.set()

    async def _accept_all(self, connections: trio.Nursery) -> None:
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener, connections)

    async def _accept(self, listener: trio.abc.Listener[trio.abc.Stream], connections: trio.Nursery) -> None:
        """Like trio.serve_listeners, but bounded, and without a traceback in the log for each failed attempt."""
        short = False
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _SHORTAGES:
                        raise
                    if not short:  # once for each shortage, however long it lasts
                        _log.error("no connection can be accepted for now: %s", error.strerror or error)
                    short = True
                    await trio.sleep(_PAUSE_SECONDS)
                    continue
                short = False
                self._accepted += 1
                if self._open >= self._service.limits.connections:
                    self._refused += 1
                    await _turn_away(stream)
                else:
                    self._open += 1
                    connections.start_soon(self._serve_stream, stream)

    async def _serve_stream(self, stream: trio.abc.Stream) -> None:
        try:
            if not isinstance(stream, trio.SSLStream) or await self._shake_hands(stream):
                await self._serve_connection(stream)
        finally:
            self._open -= 1

    async def _shake_hands(self, stream: trio.SSLStream[Any]) -> bool:
        """Whether there is TLS now; else the stream is closed. Who does not get that far is worth no report: most are
        scanners.
        """
        done = False
        try:
            with trio.move_on_after(self._service.limits.head_seconds):
                await stream.do_handshake()
                done = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            if not done:
                await trio.aclose_forcefully(stream)
        return done

    async def _serve_connection(self, stream: trio.abc.Stream) -> None:
        connection = Connection(stream, self._service, peer_of(stream), self._hangups)
        self._connections.add(connection)
        if self._draining:
            connection.close_soon()
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._requests += connection.requests

    def _count_defect(self, defect: Exception) -> None:
        self._defects += 1
        self._on_defect(defect)


async def _turn_away(stream: trio.abc.Stream) -> None:
    """Refuse a connection without a task: an answer, if it can be written without waiting; over TLS only the end."""
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):
            os.write(stream.socket.fileno(), _FULL)
            os.read(stream.socket.fileno(), 64 * 1024)  # closed with unread input, it would reset its own answer
    await trio.aclose_forcefully(stream)
