"""`zerver serve` as a process: it says where it listens, drains on a signal, and says shortly why it cannot begin."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from tests.cli.commands import BROKEN, SHOP, serving, zerver


async def test_it_says_where_it_listens_and_answers_there(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert server.address.startswith("http://127.0.0.1:")
        answer = await server.ask("GET /")
        assert answer.startswith("HTTP/1.1 200 ")
        assert answer.endswith('"hello"')


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_what_is_under_way_and_ends_with_status_0(number: signal.Signals, tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        async with await server.connect() as stream:
            await server.say(stream, "POST /buy")
            assert await server.line() == "taken"
            server.process.send_signal(number)
            answer = b"".join([bytes(data) async for data in stream])
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert await server.process.wait() == 0
        assert await server.rest() == ""
        assert await server.err() == "draining; a second signal ends at once\n"


async def test_what_does_not_end_in_time_is_undone_and_answered(tmp_path: Path) -> None:
    async with serving(tmp_path, "--drain", "0") as server:
        async with await server.connect() as stream:
            await server.say(stream, "POST /wait")
            assert await server.line() == "taken"
            server.process.send_signal(signal.SIGTERM)
            answer = b"".join([bytes(data) async for data in stream])
            assert answer.startswith(b"HTTP/1.1 503 ")
        assert await server.process.wait() == 0
        assert await server.rest() == "given back\n"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(second: signal.Signals, tmp_path: Path) -> None:
    async with serving(tmp_path, "--drain", "1000") as server, await server.connect() as stream:
        await server.say(stream, "POST /wait")
        assert await server.line() == "taken"
        server.process.send_signal(signal.SIGINT)
        assert server.process.stderr is not None
        assert (await server.process.stderr.receive_some()).startswith(b"draining")
        server.process.send_signal(second)
        assert await server.process.wait() == 128 + second
        assert await server.rest() == ""


async def test_timelines_are_printed_before_their_answers_are_sent(tmp_path: Path) -> None:
    async with serving(tmp_path, "--timeline") as server:
        answer = await server.ask("GET /")
        (run_id,) = [
            line.partition(": ")[2] for line in answer.split("\r\n") if line.lower().startswith("x-request-id")
        ]
        first = await server.line()
        assert first.startswith("GET /  200 ")
        assert f"[{run_id}]" in first
        while await server.line():
            pass  # an empty line ends the timeline


async def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        ended = await trio.to_thread.run_sync(
            lambda: zerver(tmp_path, "serve", "shop:app", "--port", str(port), shop=SHOP)
        )
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == f"Error: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(
    ("arguments", "status", "err"),
    [
        (("nosuch:app",), 2, "Error: there is no module 'nosuch' here or on PYTHONPATH\n"),
        (("shop:nosuch",), 2, "Error: shop:nosuch does not exist; there is shop:app, shop:other\n"),
        (
            ("broken:app", "--port", "0"),
            1,
            "DefinitionError: route GET /items: parameter 'id' reads path parameter 'id', "
            "which the route does not have\n  add {id} to the path\n",
        ),
        (
            ("lost:app", "--port", "0"),
            1,
            "DriverError: cannot open nowhere/shop.db: unable to open database file (SQLITE_CANTOPEN)\n",
        ),
    ],
)
def test_what_cannot_begin_says_why_and_shows_no_traceback(
    arguments: tuple[str, ...], status: int, err: str, tmp_path: Path
) -> None:
    lost = (
        "from zerver import App\nfrom zerver.sql import sqlite\napp = App(capabilities=[sqlite('nowhere/shop.db')])\n"
    )
    ended = zerver(tmp_path, "serve", *arguments, shop=SHOP, broken=BROKEN, lost=lost)
    assert (ended.status, ended.out, ended.err) == (status, "", err)
