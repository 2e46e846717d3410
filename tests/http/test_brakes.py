"""Saying no stays cheap: who asks on is not read, and a process that is short of something takes nobody in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from zerver.http.brakes import Brake, Strain, resident_memory
from zerver.http.connection import Connection, Service
from zerver.http.exchange import Exchange, Limits
from zerver.http.listeners import open_http_listeners
from zerver.http.messages import Response
from zerver.http.server import Server, serve_http

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"


async def refusing(exchange: Exchange) -> Response:
    if exchange.head.path == "/good":
        return Response()
    return Response(429, {"retry-after": exchange.head.headers.get("x-wait") or "1"}, refusal=True)


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[tuple[trio.StapledStream[Any, Any], Connection]]:
    client, server = memory_stream_pair()
    connection = Connection(server, service)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        yield client, connection
        await client.aclose()


async def statuses(client: trio.StapledStream[Any, Any], *requests: bytes) -> list[int]:
    found = []
    for request in requests:
        await client.send_all(request)
        found.append(int(bytes(await client.receive_some())[9:12]))
    return found


async def test_three_refusals_in_a_row_are_answered_at_once_and_the_next_after_a_second(
    autojump_clock: MockClock,
) -> None:
    service = Service(refusing)
    async with connected(service) as (client, _):
        assert await statuses(client, GET, GET, GOOD, GET, GET, GET) == [429, 429, 200, 429, 429, 429]
        assert trio.current_time() == 0
        await wait_all_tasks_blocked()
        assert service.brake.held == 1
        assert await statuses(client, GET) == [429]
        assert trio.current_time() == pytest.approx(1)
        assert await statuses(client, GOOD, GOOD) == [200, 200]  # held once more, and then free
        assert trio.current_time() == pytest.approx(2)
        assert service.brake.held == 0


async def test_nobody_is_held_longer_than_a_second_nor_longer_than_told(autojump_clock: MockClock) -> None:
    async with connected(Service(refusing)) as (client, _):
        for wait, seconds in ((b"30", 1), (b"0", 0), (b"soon", 1)):
            asked = GET[:-2] + b"X-Wait: " + wait + b"\r\n\r\n"
            await statuses(client, GOOD, asked, asked, asked)
            start = trio.current_time()
            await statuses(client, GOOD)
            assert trio.current_time() - start == pytest.approx(seconds)


async def test_over_the_limit_nobody_is_held(autojump_clock: MockClock) -> None:
    service = Service(refusing)
    service.brake.held = Brake.MOST
    async with connected(service) as (client, _):
        await statuses(client, *[GET] * 10)
        assert trio.current_time() == 0


async def test_a_held_connection_closes_when_its_server_drains(autojump_clock: MockClock) -> None:
    async with connected(Service(refusing)) as (client, connection):
        await statuses(client, GET, GET, GET)
        await wait_all_tasks_blocked()
        assert connection.idle
        connection.close_soon()
        assert await client.receive_some() == b""
        assert trio.current_time() == 0


async def test_what_was_pipelined_is_answered_once_the_hold_is_over(autojump_clock: MockClock) -> None:
    async with connected(Service(refusing)) as (client, connection):
        await client.send_all(GET * 5)
        await wait_all_tasks_blocked()
        assert not connection.idle
        connection.close_soon()
        seen = b"".join([bytes(data) async for data in client])
        assert (seen.count(b"HTTP/1.1 429"), seen.count(b"connection: close")) == (4, 1)


# ---- the process -----------------------------------------------------------------------------


class Loop:
    """A loop as its Strain sees it."""

    def __init__(self, clock: MockClock, **limits: float) -> None:
        self.clock = clock
        self.strain = Strain(Limits(**limits))  # type: ignore[arg-type]  # all that are given are numbers

    def work(self, *passes: float) -> str | None:
        """Pass after pass of so many seconds, with something to do at the end of each. What is short then."""
        for seconds in passes:
            self.clock.jump(seconds)
            self.strain.before_io_wait(0)
            self.strain.after_io_wait(0)
        return self.strain.shortage(-1)

    def rest(self, seconds: float = 0.002) -> str | None:
        self.strain.before_io_wait(seconds)
        self.clock.jump(seconds)
        self.strain.after_io_wait(seconds)
        return self.strain.shortage(-1)


async def test_time_is_short_when_the_loop_lags_for_a_second_and_has_no_rest(mock_clock: MockClock) -> None:
    loop = Loop(mock_clock, lag_seconds=0.125)
    assert loop.work(*[0.25] * 4) is None  # not long enough
    assert loop.work(0.25) == "time"
    assert loop.work(*[0.25] * 20) == "time"
    assert loop.rest() is None
    assert loop.work(*[0.25] * 4) is None
    assert loop.work(5) == "time"  # one pass may be longer than all of that
    assert loop.work(*[0.01] * 200) is None  # busy still, and prompt again


async def test_work_that_lets_the_loop_look_often_turns_nobody_away(mock_clock: MockClock) -> None:
    loop = Loop(mock_clock)
    assert {loop.work(0.003) for _ in range(10_000)} == {None}  # steps of one tenant, as long as turns allow
    assert {loop.work(0.09, 0.1) for _ in range(100)} == {None}


async def test_pauses_turn_nobody_away_however_many_they_are(mock_clock: MockClock) -> None:
    loop = Loop(mock_clock)
    for _ in range(20):
        assert loop.work(0.3) is None  # as for a collection of garbage, or a neighbour that has the core
        assert loop.rest() is None
    for _ in range(20):
        assert loop.work(0.3, *[0.01] * 70) is None  # and in the midst of work


async def test_who_is_turned_away_hears_it_even_if_it_asks_on() -> None:
    async with trio.open_nursery() as nursery:
        start = partial(serve_http, refusing, await open_http_listeners(), limits=Limits(connections=0))
        server: Server = await nursery.start(start)
        async with await trio.open_tcp_stream("127.0.0.1", int(server.addresses[0].rpartition(":")[2])) as client:
            while not server.statistics().refused:
                await trio.lowlevel.checkpoint()
            for _ in range(5):  # with a broken pipe, if its connection had been closed at once
                await client.send_all(GET)
                await wait_all_tasks_blocked()
            answer = b"".join([bytes(data) async for data in client])
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b'"detail":"too many connections are open"}')
        nursery.cancel_scope.cancel()


async def test_those_turned_away_are_let_go_in_time(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        start = partial(serve_http, refusing, await open_http_listeners(), limits=Limits(connections=0))
        server: Server = await nursery.start(start)
        port = int(server.addresses[0].rpartition(":")[2])
        clients = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(40)]
        while server.statistics().refused < 40:
            await trio.lowlevel.checkpoint()
        await trio.sleep(3)
        for client in clients:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await client.send_all(GET)
            await client.aclose()
        nursery.cancel_scope.cancel()


async def test_files_are_short_at_nine_tenths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerver.http.brakes._most_files", lambda: 100.0)
    strain = Strain(Limits())
    assert [strain.shortage(number) for number in (-1, 90, 91)] == [None, None, "files"]


async def test_memory_is_short_when_it_is_limited_and_nearly_used(mock_clock: MockClock) -> None:
    used = resident_memory()
    assert Strain(Limits()).shortage(-1) is None
    assert Strain(Limits(memory=used * 100)).shortage(-1) is None
    if used:  # the system says
        assert Strain(Limits(memory=1)).shortage(-1) == "memory"


async def test_a_connection_that_comes_at_a_bad_time_is_told_so_and_costs_no_task() -> None:
    async with trio.open_nursery() as nursery:
        start = partial(serve_http, refusing, await open_http_listeners(), limits=Limits(memory=1), new_id=lambda: "me")
        server: Server = await nursery.start(start)
        if not resident_memory():
            pytest.skip("this system does not say how much memory is in use")
        port = int(server.addresses[0].rpartition(":")[2])
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            answer = b"".join([bytes(data) async for data in client])
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nretry-after: 1\r\n" in answer
        assert b"\r\nx-request-id: me\r\n" in answer
        assert answer.endswith(b'"detail":"the server is short of memory"}')
        assert (server.statistics().refused, server.statistics().busy) == (1, 0)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        nursery.cancel_scope.cancel()
