"""Workers share a place, are replaced when they die, drain when told, and never outlive their supervisor."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from tests.cli.commands import BROKEN, SHOP, Server, serving, zerver
from zerver.cli.workers import Backoff

LONG = 60.0  # seconds for what takes a second or two; on a busy machine, more

#: The shop, with a route that says which process answers.
TELLING = (
    SHOP
    + """
import os


@step
def tell() -> Done:
    return Done(os.getpid())


app.route("GET", "/pid", Flow("tell", [tell]))
"""
)


async def pid_of(server: Server) -> int | None:
    """Who answers; None for a connection that went to one who was dying."""
    try:
        answer = await server.ask("GET /pid")
    except (OSError, trio.BrokenResourceError):
        return None
    return int(answer.rpartition("\r\n")[2]) if answer.startswith("HTTP/1.1 200 ") else None


async def wait_pids(server: Server, count: int) -> set[int]:
    """Ask until so many processes have answered."""
    seen: set[int] = set()
    while len(seen) < count:
        seen |= {pid} if (pid := await pid_of(server)) else set()
    return seen


async def test_connections_are_spread_and_the_place_is_announced_once(tmp_path: Path) -> None:
    with trio.fail_after(LONG):
        async with serving(tmp_path, "--workers", "3", source=TELLING) as server:
            pids = await wait_pids(server, 3)
            assert server.process.pid not in pids
            server.process.terminate()
            assert await server.process.wait() == 0
            assert await server.rest() == ""


async def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    with trio.fail_after(LONG):
        async with serving(tmp_path, "--workers", "2", source=TELLING) as server:
            before = await wait_pids(server, 2)
            victim, survivor = sorted(before)
            for pid in (victim, survivor):  # one after the other: at any time somebody answers
                os.kill(pid, signal.SIGKILL)
                told = await server.err_line()
                assert told.startswith(f"worker {pid} was killed by SIGKILL; another one starts in 0.")
                assert await server.ask("GET /pid")  # now that its socket is gone, nothing goes to it
                before = (before | await wait_pids(server, 2)) - {pid}
                assert len(before) == 2
            assert not before & {victim, survivor}
            server.process.terminate()
            assert await server.process.wait() == 0


async def test_a_signal_drains_all_workers(tmp_path: Path) -> None:
    with trio.fail_after(LONG):
        async with serving(tmp_path, "--workers", "2") as server:
            async with await server.connect() as stream:
                await server.say(stream, "POST /buy")
                assert await server.line() == "taken"
                server.process.send_signal(signal.SIGINT)
                answer = b"".join([bytes(data) async for data in stream])
                assert answer.startswith(b"HTTP/1.1 200 ")
            assert await server.process.wait() == 0
            assert await server.rest() == ""
            assert await server.err() == "draining; a second signal ends at once\n"


async def test_a_second_signal_kills_all_workers(tmp_path: Path) -> None:
    with trio.fail_after(LONG):
        async with serving(tmp_path, "--workers", "2", "--drain", "1000") as server, await server.connect() as stream:
            await server.say(stream, "POST /wait")
            assert await server.line() == "taken"
            server.process.terminate()
            assert (await server.err_line()).startswith("draining")
            server.process.terminate()
            assert await server.process.wait() == 128 + signal.SIGTERM
            assert await server.rest() == ""  # it ends when nobody holds it any more: the workers are gone


async def test_a_supervisor_that_is_killed_leaves_no_orphans_and_what_is_under_way_finishes(tmp_path: Path) -> None:
    with trio.fail_after(LONG):
        async with serving(tmp_path, "--workers", "2") as server:
            async with await server.connect() as stream:
                await server.say(stream, "POST /buy")
                assert await server.line() == "taken"
                server.process.kill()
                answer = b"".join([bytes(data) async for data in stream])
                assert answer.startswith(b"HTTP/1.1 200 ")
            assert await server.process.wait() == -signal.SIGKILL
            assert await server.rest() == ""


async def test_workers_share_a_unix_socket_whose_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"
    with trio.fail_after(LONG):
        async with serving(tmp_path, "--workers", "2", source=TELLING, place=("--unix", str(path))) as server:
            assert server.address == f"unix:{path}"
            (pid, *_) = await wait_pids(server, 2)
            os.kill(pid, signal.SIGKILL)
            assert (await server.err_line()).startswith(f"worker {pid} was killed")
            assert pid not in await wait_pids(server, 2)
            server.process.terminate()
            assert await server.process.wait() == 0
    assert path.name not in os.listdir(tmp_path)


def test_an_app_that_cannot_work_is_told_of_once(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "serve", "broken:app", "--port", "0", "--workers", "3", broken=BROKEN)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.count("DefinitionError: ") == 1
    assert len(ended.err.splitlines()) == 2


def test_a_worker_that_never_comes_up_ends_the_supervisor(tmp_path: Path) -> None:
    dying = "import os\nos.kill(os.getpid(), 9)\n"
    ended = zerver(tmp_path, "serve", "dying:app", "--port", "0", "--workers", "2", dying=dying)
    assert (ended.status, ended.out) == (1, "")
    told = [line.partition(" ")[2].partition(" ")[2] for line in ended.err.splitlines()]
    assert told == [
        "was killed by SIGKILL; another one starts in 0.1 s",
        "was killed by SIGKILL; another one starts in 0.2 s",
        "was killed by SIGKILL; no worker can start",
    ]


def test_the_pause_doubles_up_to_ten_seconds_and_is_forgotten_after_a_minute_of_health() -> None:
    backoff = Backoff()
    pauses = [backoff.after(0.0) for _ in range(9)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert backoff.after(59.9) == 10.0
    assert [backoff.after(60.0), backoff.after(0.0)] == [0.1, 0.2]
