"""A client for tests of connections: it sends bytes as they are cut, and reads whatever comes back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import attrs
import h11
import trio
from trio.testing import memory_stream_pair

from zerver.http.connection import Connection, Service
from zerver.http.exchange import DEFAULT_LIMITS, Exchange, Limits
from zerver.http.messages import RequestHead, Response
from zerver.http.parsers import HeadParser, head_parser
from zerver.http.response import text

PARSERS = ("h11", "httptools")

MemoryStream = trio.StapledStream[Any, Any]


class MemoryListener(trio.abc.Listener[MemoryStream]):
    """Connections without sockets."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[MemoryStream](100)

    def connect(self) -> MemoryStream:
        client, server = memory_stream_pair()
        self._send.send_nowait(server)
        return client

    async def accept(self) -> MemoryStream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._receive.close()
        self._send.close()
        await trio.lowlevel.checkpoint()


@attrs.define
class Server:
    """A handler that reads the body and remembers what it was asked. heads and bodies: of what it was asked."""

    heads: list[RequestHead] = attrs.Factory(list)
    bodies: list[bytes] = attrs.Factory(list)
    defects: list[Exception] = attrs.Factory(list)

    async def __call__(self, exchange: Exchange) -> Response:
        self.heads.append(exchange.head)
        self.bodies.append(await exchange.read_body())
        return text("ok")

    @property
    def paths(self) -> list[str]:
        return [head.path for head in self.heads]


async def answers_to(
    pieces: Iterable[bytes],
    handler: Callable[[Exchange], Awaitable[Response]],
    *,
    parser: HeadParser | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_defect: Callable[[Exception], None],
) -> bytes:
    """All that the server says until it closes, to a client that sends the pieces and then waits."""
    client, server = memory_stream_pair()
    service = Service(handler, limits, on_defect, parser or head_parser())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, service).run)
        return await talk(client, pieces)


async def talk(client: MemoryStream, pieces: Iterable[bytes]) -> bytes:
    """Send the pieces, then wait: all that the other side says until it closes."""
    received = bytearray()

    async def send() -> None:
        try:
            for piece in pieces:
                await client.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the server has closed before it had read all

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        try:
            async for data in client:
                received += data
        except trio.BrokenResourceError:
            pass
        await client.aclose()
    return bytes(received)


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def parse_answers(data: bytes) -> list[Answer]:
    """The answers to GETs and POSTs, read by h11; interim ones count. Raises h11's error for half an answer."""
    answers: list[Answer] = []
    while data:
        peer = h11.Connection(h11.CLIENT)
        peer.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
        peer.send(h11.EndOfMessage())
        peer.receive_data(data)
        peer.receive_data(b"")
        head, body = peer.next_event(), b""
        assert isinstance(head, h11.Response | h11.InformationalResponse)
        if isinstance(head, h11.Response):
            while isinstance(event := peer.next_event(), h11.Data):
                body += bytes(event.data)
            assert isinstance(event, h11.EndOfMessage)
            data = peer.trailing_data[0]
        else:
            data = data.partition(b"\r\n\r\n")[2]
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        answers.append(Answer(head.status_code, headers, body))
    return answers


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]
