"""A client that hangs up is noticed by one epoll for all connections: no task, no read, nothing for each request."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from zerver.http.exchange import Exchange
from zerver.http.hangups import Hangups, open_hangups
from zerver.http.listeners import open_http_listeners
from zerver.http.messages import Response
from zerver.http.response import text
from zerver.http.server import serve_http

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no epoll")

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Watching:
    """A handler that waits for its client to go; answers /now at once."""

    def __init__(self) -> None:
        self.waiting = trio.Event()
        self.left = trio.Event()

    async def __call__(self, exchange: Exchange) -> Response:
        if exchange.head.path == "/now":
            return text("now")
        gone = trio.Event()
        exchange.watch_disconnect(gone.set)
        self.waiting.set()
        await gone.wait()
        self.left.set()
        return text("gone")


@asynccontextmanager
async def connected(handler: Watching) -> AsyncIterator[trio.SocketStream]:
    async with trio.open_nursery() as nursery:
        listeners = await open_http_listeners()
        await nursery.start(serve_http, handler, listeners)
        stream = await trio.open_tcp_stream(*listeners[0].socket.getsockname()[:2])
        async with stream:
            yield stream
        nursery.cancel_scope.cancel()


async def rest_of(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def test_a_client_that_closes_its_sending_side_is_seen_leaving() -> None:
    handler = Watching()
    async with connected(handler) as client:
        await client.send_all(GET)
        await handler.waiting.wait()
        await wait_all_tasks_blocked()
        assert not handler.left.is_set()
        await client.send_eof()
        assert (await rest_of(client)).endswith(b"gone")


async def test_so_is_one_that_had_gone_before_anybody_watched() -> None:
    handler = Watching()
    async with connected(handler) as client:
        await client.send_all(GET)
        await client.send_eof()
        assert (await rest_of(client)).endswith(b"gone")


async def test_one_that_pipelines_is_seen_too_and_what_it_asked_for_is_still_answered() -> None:
    handler = Watching()
    async with connected(handler) as client:
        await client.send_all(GET + GET.replace(b"/ ", b"/now "))
        await handler.waiting.wait()
        await client.send_eof()
        answers = await rest_of(client)
    assert (answers.count(b"HTTP/1.1 200"), answers.count(b"gone")) == (2, 1)
    assert answers.endswith(b"now")


async def test_a_reset_is_a_way_of_leaving() -> None:
    handler = Watching()
    async with connected(handler) as client:
        await client.send_all(GET)
        await handler.waiting.wait()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()
        await handler.left.wait()


async def test_a_watch_takes_no_task() -> None:
    handler = Watching()
    async with connected(handler) as client:
        await client.send_all(GET.replace(b"/ ", b"/now "))
        await client.receive_some()
        await wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        await client.send_all(GET)
        await handler.waiting.wait()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        await client.send_eof()
        await rest_of(client)


@asynccontextmanager
async def hangups_open() -> AsyncIterator[Hangups]:
    async with open_hangups() as hangups:
        assert hangups is not None
        yield hangups


async def test_a_number_that_was_given_to_another_connection_stays_its_own() -> None:
    told: list[str] = []
    second_told = trio.Event()

    def first() -> None:
        told.append("first")

    def second() -> None:
        told.append("second")
        second_told.set()

    async with hangups_open() as hangups:
        ours, old_peer = socket.socketpair()
        other, new_peer = socket.socketpair()
        with ours, old_peer, new_peer:
            number = ours.fileno()
            assert hangups.add(number, first)
            os.dup2(other.fileno(), number)  # closes the first connection, and gives its number to the other
            other.close()
            assert hangups.add(number, second)
            hangups.discard(number, first)
            new_peer.shutdown(socket.SHUT_WR)
            await second_told.wait()
            assert told == ["second"]


async def test_what_cannot_be_watched_is_said_so() -> None:
    async with hangups_open() as hangups:
        with open(os.devnull, "rb") as file:  # noqa: ASYNC230 (nothing is read)
            assert not hangups.add(file.fileno(), lambda: None)
