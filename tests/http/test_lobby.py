"""Who has sent no whole head costs no task, is heard however slowly it speaks, and leaves in time."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.http.exchange import Exchange, Limits
from zerver.http.listeners import open_http_listeners
from zerver.http.messages import Response
from zerver.http.response import text
from zerver.http.server import Server, serve_http

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the lobby needs epoll")

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def hello(exchange: Exchange) -> Response:
    return text("hello")


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[Server, int]]:
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(partial(serve_http, hello, await open_http_listeners(), **options))
        yield server, int(server.addresses[0].rpartition(":")[2])
        nursery.cancel_scope.cancel()


async def connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def settled(server: Server, idle: int, busy: int) -> None:
    """Wait until the server counts so many; sockets take their time, whatever the clock says."""
    while (server.statistics().idle, server.statistics().busy) != (idle, busy):
        await trio.lowlevel.checkpoint()


async def rest_of(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


async def test_who_says_nothing_or_little_costs_no_task() -> None:
    async with serving() as (server, port):
        tasks = trio.lowlevel.current_statistics().tasks_living
        silent = [await connect(port) for _ in range(5)]
        halting = [await connect(port) for _ in range(5)]
        for stream in halting:
            await stream.send_all(GET[:9])
        await settled(server, 5, 5)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        for stream in (*silent, *halting):
            await stream.aclose()
        await settled(server, 0, 0)


@pytest.mark.parametrize("size", [1, 7, 300])
async def test_a_head_in_pieces_is_heard_whole(size: int) -> None:
    request = GET[:-2] + b"X: " + b"y" * 1000 + b"\r\n\r\n" if size > 100 else GET
    async with serving() as (server, port):
        async with await connect(port) as stream:
            for at in range(0, len(request), size):
                await stream.send_all(request[at : at + size])
                await trio.lowlevel.checkpoint()
            assert (await stream.receive_some()).endswith(b"hello")
            await stream.send_all(GET + GET)  # and from then on it is a connection as any other
            seen = b""
            while seen.count(b"hello") < 2:
                seen += await stream.receive_some()
        await settled(server, 0, 0)
        assert server.statistics().requests == 3


async def test_what_is_no_head_is_refused_by_its_first_bytes() -> None:
    async with serving() as (_, port):
        async with await connect(port) as stream:
            await stream.send_all(b"\x16\x03\x01")
            answer = await rest_of(stream)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"x-request-id: req_" in answer


async def test_silence_ends_without_a_word_and_half_a_head_with_408(autojump_clock: MockClock) -> None:
    async with serving(new_id=lambda: "one") as (server, port):
        silent, halting = await connect(port), await connect(port)
        start = trio.current_time()
        await halting.send_all(GET[:5])
        await settled(server, 1, 1)
        assert await rest_of(silent) == b""
        answer = await rest_of(halting)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nx-request-id: one\r\n" in answer
        assert b"\r\nconnection: close\r\n" in answer
        assert 10 <= trio.current_time() - start < 11
        await trio.sleep(3)
        assert (server.statistics().idle, server.statistics().busy) == (0, 0)
        for stream in (silent, halting):
            await stream.aclose()


async def test_a_head_has_its_deadline_however_often_a_byte_comes(autojump_clock: MockClock) -> None:
    async with serving(limits=Limits(head_seconds=3)) as (server, port):
        stream = await connect(port)
        await settled(server, 1, 0)
        start = trio.current_time()
        for byte in GET[:4]:
            await stream.send_all(bytes([byte]))
            await trio.sleep(1)
        assert (await rest_of(stream)).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - start < 6
        await stream.aclose()


async def test_draining_sends_the_silent_away_and_hears_who_has_begun() -> None:
    async with serving() as (server, port):
        silent, begun = await connect(port), await connect(port)
        await begun.send_all(GET[:5])
        await settled(server, 1, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 60)
            assert await rest_of(silent) == b""
            await begun.send_all(GET[5:])
            answer = await rest_of(begun)
            assert answer.endswith(b"hello")
            assert b"\r\nconnection: close\r\n" in answer
            await begun.aclose()
        await silent.aclose()


async def test_cancelled_it_leaves_nobody_behind() -> None:
    async with serving() as (server, port):
        streams = [await connect(port) for _ in range(3)]
        await streams[0].send_all(GET[:5])
        await settled(server, 2, 1)
    for stream in streams:
        try:
            assert await stream.receive_some() == b""
        except trio.BrokenResourceError:
            pass  # what it had said was not read to the end
        await stream.aclose()
    assert (server.statistics().idle, server.statistics().busy) == (0, 0)


async def test_nobody_in_the_lobby_means_no_timer(autojump_clock: MockClock) -> None:
    async with serving():
        await wait_all_tasks_blocked()
        with trio.move_on_after(100_000):
            await trio.sleep_forever()
        assert trio.current_time() == pytest.approx(100_000)
