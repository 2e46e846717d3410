"""Bare sockets are read and written without Trio's methods between, and still wait, take turns and notice ends."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.http.connection import Connection, Service
from zerver.http.exchange import Exchange
from zerver.http.messages import Response
from zerver.http.response import text
from zerver.http.streams import Inlet, Outlet, PeerGone

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@asynccontextmanager
async def sockets() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
    async with ours, theirs:
        yield ours, theirs


def no_defect(defect: Exception) -> None:
    raise defect


async def test_what_one_side_sends_soon_the_other_receives() -> None:
    async with sockets() as (ours, theirs):
        await Outlet(ours, 30).send_soon(b"hello")
        inlet = Inlet(theirs, no_defect)
        assert await inlet.receive() == b"hello"
        await ours.send_eof()
        assert [await inlet.receive(), await inlet.receive()] == [b"", b""]
        assert inlet.gone


async def test_what_the_buffer_does_not_take_is_sent_when_there_is_room() -> None:
    data = bytes(range(256)) * 20_000
    async with sockets() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(Outlet(ours, 30).send_soon, data)
        received = b""
        while len(received) < len(data):
            received += await theirs.receive_some()
        assert received == data


async def test_a_peer_that_takes_nothing_is_given_up(autojump_clock: MockClock) -> None:
    async with sockets() as (ours, _):
        start = trio.current_time()
        with pytest.raises(PeerGone, match="in time"):
            await Outlet(ours, 30).send_soon(bytes(10_000_000))
        assert trio.current_time() - start == pytest.approx(30)


async def test_a_peer_that_has_closed_is_gone() -> None:
    async with sockets() as (ours, theirs):
        await theirs.aclose()
        with pytest.raises(PeerGone, match="closed"):
            await Outlet(ours, 30).send_soon(b"hello")
        assert await Inlet(ours, no_defect).receive() == b""


async def test_whoever_pipelines_lets_others_have_their_turn() -> None:
    turns: list[str] = []

    async def handler(exchange: Exchange) -> Response:
        turns.append("request")
        return text("")

    async def other() -> None:
        while turns.count("request") < 20:
            turns.append("other")
            await trio.lowlevel.checkpoint()

    async with sockets() as (ours, theirs), trio.open_nursery() as nursery:
        await theirs.send_all(GET * 20)
        nursery.start_soon(Connection(ours, Service(handler)).run)
        nursery.start_soon(other)
        await wait_all_tasks_blocked()
        await theirs.aclose()
    first, last = turns.index("request"), len(turns) - turns[::-1].index("request")
    assert turns[first:last].count("other") >= 18  # once in each pass; before or after us is chance


async def test_a_task_that_was_woken_to_read_reads_nothing_of_who_has_the_number_now() -> None:
    said: list[bytes] = []
    other, writer = socket.socketpair()
    writer.send(b"of somebody else")

    class Replaced(trio.abc.Instrument):
        """Before the woken reader runs, its stream is closed, and the next connection has its number."""

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task.name == "reader" and ours.socket.fileno() >= 0:
                inlet.close()
                outlet.close()
                ours.socket.close()
                os.dup2(other.fileno(), number)

    async def read() -> None:
        said.append(await inlet.receive())

    with other, writer:
        async with sockets() as (ours, theirs), trio.open_nursery() as nursery:
            inlet, outlet, number = Inlet(ours, no_defect), Outlet(ours, 30), ours.socket.fileno()
            nursery.start_soon(read, name="reader")
            await wait_all_tasks_blocked()
            replaced = Replaced()
            trio.lowlevel.add_instrument(replaced)
            await theirs.send_all(b"x")
            while not said:
                await trio.lowlevel.checkpoint()
            trio.lowlevel.remove_instrument(replaced)
            with pytest.raises(PeerGone):
                await outlet.send_soon(b"not for somebody else")
            os.close(number)
        assert said == [b""]
        assert other.recv(100) == b"of somebody else"
