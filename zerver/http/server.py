"""Listen, accept, and let each connection live its own life. `serve_http` runs in any nursery.

A connection that crashes ends alone. Running out of file descriptors pauses accepting and does not end it.
Cancelling the scope that `serve_http` runs in ends everything at once; `drain` ends it politely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio

from zerver.http.connection import Connection, Service, log_defect
from zerver.http.exchange import DEFAULT_LIMITS, Handler, Limits
from zerver.http.parsers import ParserName, head_parser
from zerver.runtime.groups import unwrapped


@attrs.frozen
class ServerStatistics:
    """A snapshot. idle: connections between requests. busy: the others. requests: answered since the start.

    connections: accepted since the start. defects: exceptions given to on_defect.
    """

    idle: int
    busy: int
    connections: int
    requests: int
    defects: int
    draining: bool


async def open_http_listeners(host: str = "127.0.0.1", port: int = 0) -> list[trio.SocketListener]:
    """TCP listeners for serve_http; several if the host has several addresses. port 0: any free one.

    Raises OSError when an address cannot be bound. Whoever gets them closes them; serve_http does.
    """
    return list(await trio.open_tcp_listeners(port, host=host))


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

    addresses: where it listens, as URLs: "http://127.0.0.1:8000". Empty for listeners that are no sockets.
    """

    def __init__(self, service: Service, listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]) -> None:
        self.addresses = tuple(filter(None, map(_address, listeners)))
        self._listeners = listeners
        self._defects = 0
        self._service = attrs.evolve(service, on_defect=self._count_defect)
        self._on_defect = service.on_defect
        self._connections: set[Connection] = set()
        self._accepted = 0
        self._requests = 0  # of connections that have ended
        self._draining = False
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._ended = trio.Event()

    def statistics(self) -> ServerStatistics:
        idle = sum(connection.idle for connection in self._connections)
        return ServerStatistics(
            idle=idle,
            busy=len(self._connections) - idle,
            connections=self._accepted,
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
                async with trio.open_nursery() as connections:
                    with self._accepting:
                        task_status.started(self)
                        # It survives EMFILE and its like: one line to the log, a pause of 0.1 s, and on.
                        await trio.serve_listeners(
                            self._serve_stream, list(self._listeners), handler_nursery=connections
                        )
        finally:
            self._ended.set()

    async def _serve_stream(self, stream: trio.abc.Stream) -> None:
        connection = Connection(stream, self._service, _peer_of(stream))
        self._accepted += 1
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


def _address(listener: trio.abc.Listener[Any]) -> str:
    scheme = "https" if isinstance(listener, trio.SSLListener) else "http"
    sock = getattr(getattr(listener, "transport_listener", listener), "socket", None)
    if sock is None or sock.family not in (trio.socket.AF_INET, trio.socket.AF_INET6):
        return ""
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _peer_of(stream: trio.abc.Stream) -> str:
    """The client's IP address, without its port."""
    sock = getattr(getattr(stream, "transport_stream", stream), "socket", None)
    if sock is None or sock.family not in (trio.socket.AF_INET, trio.socket.AF_INET6):
        return ""
    try:
        return str(sock.getpeername()[0])
    except OSError:  # it has left already
        return ""
