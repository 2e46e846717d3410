"""Listen, accept, and let each connection live its own life. `serve_http` runs in any nursery.

Law: a connection that crashes ends alone. Running out of file descriptors pauses accepting and does not end it; a
client over the limit of connections, or one that comes when the process is short of something (`brakes.py`), is told so
and costs no task. Cancelling the scope that `serve_http` runs in ends everything at once; `drain` ends it politely.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import attrs
import trio

from zerver.errors import InternalError
from zerver.http.alarms import Alarms, open_alarms
from zerver.http.brakes import Strain, watched_loop
from zerver.http.connection import Connection, Service, late_head, log_defect, random_id
from zerver.http.exchange import DEFAULT_LIMITS, Handler, Limits
from zerver.http.hangups import Hangups, open_hangups
from zerver.http.listeners import UnixListener, address_of, peer_of
from zerver.http.lobby import Lobby, open_lobby
from zerver.http.parsers import ParserName, head_parser
from zerver.http.wire import ServerWire
from zerver.runtime.groups import unwrapped

_log = logging.getLogger(__name__)

# What accept(2) says when the machine, not the client, is short of something; and how long to wait then.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_PAUSE_SECONDS: Final = 0.1

# What it says of a connection that has failed before it was accepted: of the next one it may say something else.
_PASSING: Final = frozenset(
    {errno.EPERM, errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN,
     errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH}
)  # fmt: skip

_AT_ONCE: Final = 16  # connections accepted between two turns of the others
_MANY: Final = 100  # connections refused one after another; then those that come next wait in the kernel for a moment

_REFUSED_BODY: Final = b'{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"%s"}'
_REFUSED: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nx-request-id: %s\r\n"
    b"content-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n%s"
)


@attrs.frozen
class ServerStatistics:
    """A snapshot. idle: connections between requests. busy: the others. requests: answered since the start.

    connections: accepted since the start, those refused included. refused: as they came, for want of room. held: idle,
    and not read, because they went on asking after they had been refused. defects: exceptions given to on_defect.
    """

    idle: int
    busy: int
    connections: int
    refused: int
    held: int
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
    new_id: Callable[[], str] = random_id,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve handler on the listeners until cancelled or drained; the listeners are closed then.

        server = await nursery.start(serve_http, handler, await open_http_listeners("127.0.0.1", 8000))
        print(*server.addresses)

    on_defect gets what handlers raise, and what else goes wrong in a connection; by default it is logged.
    parser: what reads request heads; both answer alike, and auto is httptools where it is installed, else h11.
    new_id: makes the X-Request-Id of answers that the handler has not made.

    Raises ImportError for a parser that is not installed, and what a listener raises, bare; no error of a handler or
    a connection.
    """
    server = Server(Service(handler, limits, on_defect, head_parser(parser), new_id), listeners)
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
        self._alarms: Alarms | None = None
        self._hangups: Hangups | None = None
        self._lobby: Lobby | None = None
        self._nursery: trio.Nursery | None = None  # of the connections
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._ended = trio.Event()

    def statistics(self) -> ServerStatistics:
        idle = sum(connection.idle for connection in self._connections)
        busy = len(self._connections) - idle
        silent, begun = (self._lobby.silent, self._lobby.begun) if self._lobby is not None else (0, 0)
        return ServerStatistics(
            idle=idle + silent,
            busy=busy + begun,
            connections=self._accepted,
            refused=self._refused,
            held=self._service.brake.held,
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
        if self._lobby is not None:
            self._lobby.close()
        for connection in list(self._connections):
            connection.close_soon()
        await self._ended.wait()

    async def _run(self, task_status: trio.TaskStatus[Server]) -> None:
        try:
            with unwrapped(), self._serving:
                async with (
                    open_hangups() as self._hangups,
                    open_alarms() as self._alarms,
                    trio.open_nursery() as self._nursery,
                    open_lobby(self, self._service.limits) as self._lobby,
                ):
                    with self._accepting, watched_loop(self._service.limits) as strain:
                        task_status.started(self)
                        await self._accept_all(strain)
        finally:
            self._ended.set()

    async def _accept_all(self, strain: Strain) -> None:
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener, strain)

    async def _accept(self, listener: trio.abc.Listener[trio.abc.Stream], strain: Strain) -> None:
        """Like trio.serve_listeners, but bounded, and without a traceback in the log for each failed attempt."""
        short, refused = False, 0
        async with listener:
            with _door_of(listener) as door:
                while True:
                    try:
                        arrivals = await _arrivals(listener, door)
                    except OSError as error:
                        if error.errno not in _SHORTAGES:
                            raise
                        if not short:  # once for each shortage, however long it lasts
                            _log.error("no connection can be accepted for now: %s", error.strerror or error)
                        short = True
                        await trio.sleep(_PAUSE_SECONDS)
                        continue
                    short = False
                    for arrival in arrivals:
                        refused = 0 if await self._let_in(arrival, strain) else refused + 1
                    if refused >= _MANY:
                        refused = 0
                        await trio.sleep(_PAUSE_SECONDS)

    async def _let_in(self, arrival: socket.socket | trio.abc.Stream, strain: Strain) -> bool:
        """Take a connection in, or turn it away. Whether it was taken in. For what is a socket, nothing is awaited."""
        self._accepted += 1
        reason = self._lacking(arrival.fileno() if isinstance(arrival, socket.socket) else -1, strain)
        if reason is not None:
            self._refused += 1
            if isinstance(arrival, socket.socket):
                self._turn_away(arrival, reason)
            else:  # over TLS, an answer would need a handshake
                await trio.aclose_forcefully(arrival)
        elif isinstance(arrival, socket.socket):
            self._receive(trio.SocketStream(trio.socket.from_stdlib_socket(arrival)))
        else:
            self._receive(arrival)
        return reason is None

    def _lacking(self, descriptor: int, strain: Strain) -> str | None:
        """Why this connection cannot be served; None if it can."""
        if self._open >= self._service.limits.connections:
            return "too many connections are open"
        short_of = strain.shortage(descriptor)
        return None if short_of is None else f"the server is short of {short_of}"

    def _turn_away(self, client: socket.socket, reason: str) -> None:
        """Refuse a connection without a task: with an answer, if it can be written without waiting."""
        request_id = self._service.new_id().encode()
        body = _REFUSED_BODY % reason.encode()
        with suppress(OSError):
            client.send(_REFUSED % (request_id, len(body), body), socket.MSG_DONTWAIT)
        if self._lobby is None or not self._lobby.see_out(client):
            with suppress(OSError):  # closed with unread input, it would reset its own answer
                client.recv(64 * 1024, socket.MSG_DONTWAIT)
            client.close()

    def _receive(self, stream: trio.abc.Stream) -> None:
        self._open += 1
        if self._lobby is not None and isinstance(stream, trio.SocketStream):
            self._lobby.enter(stream)
        else:
            self._start(stream, b"")

    def _start(self, stream: trio.abc.Stream, heard: bytes) -> None:
        if self._nursery is None:
            raise InternalError("a connection came before the server ran")
        self._nursery.start_soon(self._serve_stream, stream, heard)

    # As the host of the lobby.

    def send_in(self, stream: trio.SocketStream, heard: bytes) -> None:
        """See `Host`."""
        self._start(stream, heard)

    def farewell(self) -> bytes:
        """See `Host`."""
        answer = self._service.refuse(late_head())
        body = answer.body if isinstance(answer.body, bytes) else b""
        return ServerWire().send_head(answer.status, answer.headers, len(body), close=True) + body

    def see_off(self) -> None:
        """See `Host`."""
        self._open -= 1

    # ---- one connection -----------------------------------------------------------------------

    async def _serve_stream(self, stream: trio.abc.Stream, heard: bytes) -> None:
        try:
            if not isinstance(stream, trio.SSLStream) or await self._shake_hands(stream):
                await self._serve_connection(stream, heard)
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

    async def _serve_connection(self, stream: trio.abc.Stream, heard: bytes) -> None:
        connection = Connection(stream, self._service, peer_of(stream), self._hangups, heard, self._alarms)
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


# ---- accepting --------------------------------------------------------------------------------


@contextmanager
def _door_of(listener: trio.abc.Listener[trio.abc.Stream]) -> Iterator[socket.socket | None]:
    """The listening socket itself, for a listener that is no more than that: see `_arrivals`."""
    if os.name != "posix" or not isinstance(listener, trio.SocketListener | UnixListener):
        yield None
        return
    bound = listener.socket
    with socket.fromfd(bound.fileno(), bound.family, bound.type) as door:
        door.setblocking(False)
        yield door


async def _arrivals(
    listener: trio.abc.Listener[trio.abc.Stream], door: socket.socket | None
) -> Sequence[socket.socket | trio.abc.Stream]:
    """Who has connected, at least one after another. Raises OSError.

    From the door itself come all who wait there, up to 16, and without what a stream costs to make: when many
    come, most of them may have to be turned away. Trio's `accept` takes a pass of the loop for each.
    """
    if door is None:
        return [await listener.accept()]
    await trio.lowlevel.wait_readable(door)
    found: list[socket.socket] = []
    try:
        while len(found) < _AT_ONCE:
            found.append(door.accept()[0])
    except BlockingIOError:
        pass
    except OSError as error:
        if not found and error.errno not in _PASSING:
            raise
    return found
