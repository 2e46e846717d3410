"""A server accepts, isolates, counts, drains and ends cleanly, on loopback sockets and on listeners made of memory."""

from __future__ import annotations

import errno
import gc
import json
import logging
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from zerver.http.exchange import Exchange, Limits
from zerver.http.listeners import open_http_listeners, over_tls
from zerver.http.messages import Response
from zerver.http.response import text
from zerver.http.server import Server, serve_http

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
MemoryStream = trio.StapledStream[Any, Any]


class MemoryListener(trio.abc.Listener[MemoryStream]):
    """Connections without sockets; `failures` are raised by accept, in order, before the next connection."""

    def __init__(self, *failures: OSError) -> None:
        self.failures = list(failures)
        self.closed = False
        self._send, self._receive = trio.open_memory_channel[MemoryStream](100)

    def connect(self) -> MemoryStream:
        client, server = memory_stream_pair()
        self._send.send_nowait(server)
        return client

    async def accept(self) -> MemoryStream:
        if self.failures:
            raise self.failures.pop(0)
        return await self._receive.receive()

    async def aclose(self) -> None:
        self.closed = True
        self._receive.close()
        self._send.close()
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def serving(
    handler: Callable[[Exchange], Awaitable[Response]], listener: trio.abc.Listener[Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Server, Any]]:
    """A server and its listener; cancelled at the end."""
    async with trio.open_nursery() as nursery:
        listener = listener or MemoryListener()
        yield (
            await nursery.start(
                lambda task_status: serve_http(handler, [listener], task_status=task_status, **options)
            ),
            listener,
        )
        nursery.cancel_scope.cancel()


async def hello(exchange: Exchange) -> Response:
    return text("hello " + exchange.peer)


async def ask(stream: trio.abc.Stream, data: bytes = GET) -> bytes:
    await stream.send_all(data)
    return bytes(await stream.receive_some())


async def test_it_serves_real_sockets_and_says_where() -> None:
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve_http, hello, await open_http_listeners())
        (address,) = server.addresses
        assert address.startswith("http://127.0.0.1:")
        async with await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2])) as stream:
            for _ in range(3):
                assert (await ask(stream)).endswith(b"hello 127.0.0.1")
        nursery.cancel_scope.cancel()


async def test_a_client_on_a_socket_that_resets_is_seen_leaving() -> None:
    seen = trio.Event()

    async def watching(exchange: Exchange) -> Response:
        exchange.watch_disconnect(seen.set)
        await seen.wait()
        return text("")

    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve_http, watching, await open_http_listeners())
        stream = await trio.open_tcp_stream("127.0.0.1", int(server.addresses[0].rpartition(":")[2]))
        await stream.send_all(GET)
        while server.statistics().busy == 0:
            await trio.lowlevel.checkpoint()
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
        await seen.wait()
        nursery.cancel_scope.cancel()


async def test_a_refused_upload_gets_its_answer_through_a_real_socket() -> None:
    """Closing with unread input would reset the connection and lose the answer; lingering keeps it."""

    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(serve_http, hello, await open_http_listeners())
        stream = await trio.open_tcp_stream("127.0.0.1", int(server.addresses[0].rpartition(":")[2]))
        await stream.send_all(
            GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 60000\r\nExpect: x\r\n\r\n") + b"x" * 60_000
        )
        received = b"".join([bytes(data) async for data in stream])
        assert received.startswith(b"HTTP/1.1 417 ")
        await stream.aclose()
        await server.drain(5)


async def test_a_connection_that_crashes_ends_alone() -> None:
    defects: list[Exception] = []

    class Crashing(trio.abc.Stream):
        """A stream that breaks the rules of streams, once in each method."""

        def __init__(self) -> None:
            self.failures = [ValueError("in aclose"), ValueError("in receive_some")]

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise self.failures.pop()

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()
            if self.failures:
                raise self.failures.pop()

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            raise NotImplementedError

        async def wait_send_all_might_not_block(self) -> None:
            raise NotImplementedError

    async with serving(hello, on_defect=defects.append) as (server, listener):
        client = listener.connect()
        listener._send.send_nowait(Crashing())
        assert (await ask(client)).endswith(b"hello ")
        await wait_all_tasks_blocked()
        assert [str(defect) for defect in defects] == ["in receive_some", "in aclose"]
        assert (server.statistics().idle, server.statistics().defects) == (1, 2)


async def test_accepting_survives_running_out_of_files(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "zerver.http.server")
    failures = [OSError(code, "") for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)]
    async with serving(hello, MemoryListener(*failures)) as (_, listener):
        assert (await ask(listener.connect())).endswith(b"hello ")
        assert trio.current_time() >= 0.1 * len(failures)
        listener.failures.append(OSError(errno.EMFILE, "again"))
        assert (await ask(listener.connect())).endswith(b"hello ")
        assert (await ask(listener.connect())).endswith(b"hello ")
    assert len(caplog.records) == 2  # one for each shortage, not for each attempt
    assert all(record.exc_info is None for record in caplog.records)


async def test_connections_over_the_limit_are_turned_away_and_room_is_made_by_those_who_leave() -> None:
    async with serving(hello, (await open_http_listeners())[0], limits=Limits(connections=2)) as (server, listener):
        port = listener.socket.getsockname()[1]
        first, second = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        assert (await ask(first)).endswith(b"hello 127.0.0.1")
        assert (await ask(second)).endswith(b"hello 127.0.0.1")
        tasks = trio.lowlevel.current_statistics().tasks_living
        for _ in range(3):
            async with await trio.open_tcp_stream("127.0.0.1", port) as refused:
                answer = b"".join([bytes(data) async for data in refused])
                answer_head, _, body = answer.partition(b"\r\n\r\n")
                assert answer_head.startswith(b"HTTP/1.1 503 ")
                assert b"connection: close" in answer_head
                assert b"content-length: %d\r\n" % len(body) in answer_head
                assert json.loads(body)["status"] == 503
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert (server.statistics().connections, server.statistics().refused) == (5, 3)
        await first.aclose()
        while server.statistics().idle + server.statistics().busy == 2:
            await trio.lowlevel.checkpoint()
        async with await trio.open_tcp_stream("127.0.0.1", port) as third:
            assert (await ask(third)).endswith(b"hello 127.0.0.1")
        await second.aclose()


async def test_a_connection_over_the_limit_that_is_no_socket_is_closed() -> None:
    async with serving(hello, limits=Limits(connections=0)) as (server, listener):
        assert await listener.connect().receive_some() == b""
        assert server.statistics().refused == 1


async def test_a_large_answer_that_nobody_reads_is_there_once_and_not_once_for_each() -> None:
    size, readers = 8 * 1024 * 1024, 6
    answer = Response(200, {}, b"x" * size)

    async def large(exchange: Exchange) -> Response:
        return answer

    async with serving(large, (await open_http_listeners())[0]) as (server, listener):
        clients = [await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) for _ in range(readers)]
        tracemalloc.start()
        try:
            for client in clients:
                await client.send_all(GET)
                assert await client.receive_some(1) == b"H"
            await wait_all_tasks_blocked(0.05)
            assert server.statistics().busy == readers
            assert tracemalloc.get_traced_memory()[0] < size
        finally:
            tracemalloc.stop()
        for client in clients:
            await client.aclose()


async def test_a_handshake_has_a_deadline_and_is_no_defect(autojump_clock: MockClock) -> None:
    defects: list[Exception] = []
    memory = MemoryListener()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with serving(hello, over_tls(memory, context), on_defect=defects.append) as (server, _):
        silent, halting, other, gone = (memory.connect() for _ in range(4))
        await halting.send_all(b"\x16\x03\x01")
        await other.send_all(GET)
        await gone.aclose()
        await wait_all_tasks_blocked()
        assert await other.receive_some() == b""  # what is no TLS ends at once
        assert trio.current_time() < 1
        for stream in (silent, halting):
            assert await stream.receive_some() == b""
        assert 10 <= trio.current_time() < 11
        assert defects == []
        seen = server.statistics()
        assert (seen.connections, seen.idle, seen.busy) == (4, 0, 0)


async def test_a_listener_that_fails_ends_the_server_with_the_bare_error() -> None:
    listener = MemoryListener(OSError(errno.EINVAL, "bad listener"))
    with pytest.raises(OSError, match="bad listener"):
        await serve_http(hello, [listener])
    assert listener.closed


async def test_statistics_count_connections_and_requests() -> None:
    go_on = trio.Event()

    async def waiting(exchange: Exchange) -> Response:
        if exchange.head.path == "/wait":
            await go_on.wait()
        return text("")

    async with serving(waiting) as (server, listener):
        one, two, three = (listener.connect() for _ in range(3))
        await ask(one)
        await ask(one)
        await ask(two)
        await one.aclose()
        await three.send_all(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        await wait_all_tasks_blocked()
        seen = server.statistics()
        assert (seen.idle, seen.busy, seen.connections, seen.requests) == (1, 1, 3, 3)
        assert (seen.defects, seen.draining) == (0, False)
        go_on.set()
        await wait_all_tasks_blocked()
        assert server.statistics().requests == 4


async def test_draining_closes_idle_connections_at_once_and_lets_busy_ones_finish(autojump_clock: MockClock) -> None:
    async def slow(exchange: Exchange) -> Response:
        await trio.sleep(3)
        return text("finished")

    async with serving(slow) as (server, listener):
        idle, busy = listener.connect(), listener.connect()
        await busy.send_all(GET + GET)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 60)
            await wait_all_tasks_blocked()
            assert bytes(await idle.receive_some()) == b""
            assert listener.closed
            assert server.statistics().draining
            answer = b"".join([bytes(data) async for data in busy])
            assert answer.count(b"HTTP/1.1 200") == 1
            assert b"connection: close" in answer
            assert answer.endswith(b"finished")
            await busy.aclose()
        assert trio.current_time() - start == pytest.approx(3)


async def test_draining_cuts_what_is_left_at_its_deadline(autojump_clock: MockClock) -> None:
    cancelled: list[bool] = []

    async def endless(exchange: Exchange) -> Response:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(True)
        return text("")

    async with serving(endless) as (server, listener):
        client = listener.connect()
        await client.send_all(GET)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 60)
            await trio.sleep(1)
            await server.drain(5)  # the shorter one counts
        assert trio.current_time() - start == pytest.approx(6)
        assert cancelled == [True]
        assert bytes(await client.receive_some()) == b""
        assert server.statistics().busy == 0


async def test_serve_http_returns_when_it_has_drained() -> None:
    returned = trio.Event()

    async def serve(task_status: Any) -> None:
        await serve_http(hello, [MemoryListener()], task_status=task_status)
        returned.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve)
        await server.drain(0)
        await returned.wait()


async def test_cancelling_the_host_ends_everything(autojump_clock: MockClock) -> None:
    started = trio.Event()

    async def endless(exchange: Exchange) -> Response:
        started.set()
        await trio.sleep_forever()
        return text("")

    tasks = trio.lowlevel.current_statistics().tasks_living
    async with serving(endless) as (server, listener):
        client = listener.connect()
        await client.send_all(GET)
        await started.wait()
    assert bytes(await client.receive_some()) == b""
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert (server.statistics().idle, server.statistics().busy) == (0, 0)
    await server.drain(1)  # of a server that has ended: nothing to wait for


async def test_limits_reach_the_connections(autojump_clock: MockClock) -> None:
    async def reading(exchange: Exchange) -> Response:
        return text((await exchange.read_body()).decode())

    async with serving(reading, limits=Limits(body=1)) as (_, listener):
        request = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"
        assert (await ask(listener.connect(), request)).startswith(b"HTTP/1.1 413 ")


async def test_bytes_that_are_no_tls_end_a_tls_connection_only() -> None:
    listeners = [
        trio.SSLListener(listener, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) for listener in await open_http_listeners()
    ]
    defects: list[Exception] = []
    async with serving(hello, listeners[0], on_defect=defects.append) as (server, _):
        (address,) = server.addresses
        assert address.startswith("https://127.0.0.1:")
        async with await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2])) as stream:
            await stream.send_all(GET)
            with suppress(trio.BrokenResourceError):  # whether it ends or breaks is for the kernels to say
                while await stream.receive_some():
                    pass
        assert defects == []


async def test_many_connections_leave_nothing_behind() -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living

    async def watching(exchange: Exchange) -> Response:
        exchange.watch_disconnect(lambda: None)
        await trio.lowlevel.checkpoint()
        return text("")

    async with serving(watching) as (server, listener):

        async def visit() -> None:
            client = listener.connect()
            await ask(client)
            await client.aclose()

        await visit()
        await wait_all_tasks_blocked()
        gc.collect()
        before = len(gc.get_objects())
        living = trio.lowlevel.current_statistics().tasks_living
        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(visit)
            await wait_all_tasks_blocked()
        gc.collect()
        assert server.statistics().connections == 1001
        assert trio.lowlevel.current_statistics().tasks_living == living
        assert len(gc.get_objects()) - before < 1000  # less than one for each connection
    assert trio.lowlevel.current_statistics().tasks_living == tasks
