"""`zerver serve --tenants`: read first, followed later, and its caps hold over all workers, the dead not counted."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from tests.cli.commands import SHOP, Server, serving, zerver

LONG = 60.0  # seconds for what takes a second or two; on a busy machine, more

#: The shop, with a route that says which process answers, and one that says so and then waits.
TELLING = (
    SHOP
    + """
import os


@step
def tell() -> Done:
    return Done(os.getpid())


@effect(kind="stock.pid", access="write")
async def pid() -> None:
    print(os.getpid(), flush=True)


@step
async def hold() -> Done:
    await pid()
    await clock.sleep(1000)
    return Done()


app.route("GET", "/pid", Flow("tell", [tell]))
app.route("POST", "/hold", Flow("hold", [hold]))
"""
)


def write(folder: Path, text: str) -> None:
    """Write the file of tenants at once, or not at all."""
    (folder / "new.toml").write_text(text)
    os.replace(folder / "new.toml", folder / "tenants.toml")


def runs(number: int) -> str:
    return f"[default]\nruns = {number}\n"


async def pid_of(server: Server) -> int | None:
    """Who answers; None for a refusal."""
    answer = await server.ask("GET /pid")
    if answer.startswith("HTTP/1.1 200 "):
        return int(answer.rpartition("\r\n")[2])
    assert answer.startswith(("HTTP/1.1 429 ", "HTTP/1.1 503 "))
    return None


async def wait_admitted(server: Server) -> None:
    while await pid_of(server) is None:
        await trio.sleep(0.05)


async def wait_pids(server: Server, count: int) -> set[int | None]:
    seen: set[int | None] = set()
    while len(seen) < count:
        seen.add(await pid_of(server))
    return seen


# ---- what is read ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "tenants.toml: No such file or directory; name a file that can be read"),
        ("[tenants.acme\n", "tenants.toml: it is not TOML: "),
        (
            "[tenants.acme]\nrats = 3\n",
            "tenants.toml: tenants.acme.rats is unknown; "
            "there are weight, rate, burst, runs, effects, parallel, priority: did you mean rate?",
        ),
    ],
)
def test_a_file_that_makes_no_sense_at_first_ends_the_command(
    text: str | None, said: str, workers: str, tmp_path: Path
) -> None:
    if text is not None:
        write(tmp_path, text)
    ended = zerver(
        tmp_path, "serve", "shop:app", "--port", "0", "--tenants", "tenants.toml", "--workers", workers, shop=SHOP
    )
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"Error: {said}")


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_file_that_changes_applies_without_a_restart(workers: str, tmp_path: Path) -> None:
    write(tmp_path, runs(1))
    with trio.fail_after(LONG):
        options = ("--tenants", "tenants.toml", "--workers", workers)
        async with serving(tmp_path, *options, source=TELLING) as server, await server.connect() as stream:
            await server.say(stream, "POST /wait")
            assert await server.line() == "taken"
            assert await pid_of(server) is None
            write(tmp_path, "[default]\nrun = 2\n")
            told = await server.err_line()
            assert told.startswith("tenants are not reloaded, the old ones stay: tenants.toml: default.run is unknown")
            assert await pid_of(server) is None
            write(tmp_path, runs(2))
            await wait_admitted(server)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_sighup_reloads_at_once(workers: str, tmp_path: Path) -> None:
    write(tmp_path, runs(1))
    path = tmp_path / "tenants.toml"
    with trio.fail_after(LONG):
        async with serving(tmp_path, "--tenants", "tenants.toml", "--workers", workers, source=TELLING) as server:
            async with await server.connect() as stream:
                await server.say(stream, "POST /wait")
                assert await server.line() == "taken"
                assert await pid_of(server) is None
                before = path.stat()
                path.write_text(runs(9))
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nobody had touched it
                server.process.send_signal(signal.SIGHUP)
                await wait_admitted(server)
            server.process.terminate()
            assert await server.process.wait() == 0


async def test_sighup_ends_a_server_that_has_no_file(tmp_path: Path) -> None:
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below nohup it is ignored
    try:
        async with serving(tmp_path) as server:
            server.process.send_signal(signal.SIGHUP)
            with trio.fail_after(LONG):
                assert await server.process.wait() == -signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, inherited)


# ---- over all workers -----------------------------------------------------------------------


async def test_a_cap_holds_over_all_workers_and_the_runs_of_the_dead_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, runs(1))
    with trio.fail_after(LONG):
        async with serving(tmp_path, "--tenants", "tenants.toml", "--workers", "2", source=TELLING) as server:
            both = await wait_pids(server, 2)
            async with await server.connect() as stream:
                await server.say(stream, "POST /hold")
                holder = int(await server.line())
                assert holder in both
                for _ in range(30):
                    assert await pid_of(server) is None
                os.kill(holder, signal.SIGKILL)
                assert (await server.err_line()).startswith(f"worker {holder} was killed by SIGKILL; ")
                assert await pid_of(server) not in (holder, None)
            assert len(await wait_pids(server, 2) - {holder}) == 2  # the new one holds to it as well
            async with await server.connect() as stream:
                await server.say(stream, "POST /hold")
                await server.line()
                for _ in range(30):
                    assert await pid_of(server) is None
