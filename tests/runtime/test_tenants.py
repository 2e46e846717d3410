"""A file of tenants is followed: what makes sense applies within two seconds, what does not is told of once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zerver.core.tenants import Tenant, Tenants
from zerver.errors import DefinitionError
from zerver.runtime.tenants import TenantsFile, load_tenants, watch_tenants


class Taker:
    """Keeps what it is given, as a runtime does."""

    def __init__(self) -> None:
        self.send, self.taken = trio.open_memory_channel[Tenants](10)

    def set_tenants(self, tenants: Tenants) -> None:
        self.send.send_nowait(tenants)


def write(path: Path, text: str) -> None:
    """As editors that care do: at once, or not at all."""
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


def rate(number: int) -> str:
    return f"[default]\nrate = {number}\n"


async def look(clock: MockClock, times: int) -> None:
    """Let so many seconds pass. The clock cannot jump by itself: it would not wait for a thread that reads a file."""
    limiter = trio.to_thread.current_default_thread_limiter()
    for _ in range(times):
        clock.jump(1.0)
        await wait_all_tasks_blocked()
        while limiter.statistics().borrowed_tokens:
            await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked()


async def test_it_is_set_at_first_and_when_it_changes(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    path, taker = tmp_path / "tenants.toml", Taker()
    write(path, rate(1))
    nursery.start_soon(watch_tenants, str(path), taker)
    for number in (1, 2, 3):
        assert await taker.taken.receive() == Tenants({}, Tenant(rate=number))
        write(path, rate(number + 1))
    nursery.cancel_scope.cancel()


async def test_what_makes_no_sense_is_told_of_once_and_the_old_ones_stay(
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    path, taker = tmp_path / "tenants.toml", Taker()
    write(path, rate(1))
    told: list[str] = []
    nursery.start_soon(TenantsFile(str(path), told.append).follow, taker)
    await wait_all_tasks_blocked()
    write(path, "[default]\nrat = 2\n")
    await look(mock_clock, 10)
    assert told == [
        f"tenants are not reloaded, the old ones stay: {path}: default.rat is unknown; "
        "there are weight, rate, burst, runs, effects, parallel, priority: did you mean rate?"
    ]
    path.unlink()
    await look(mock_clock, 10)
    assert told[1:] == [
        f"tenants are not reloaded, the old ones stay: {path}: No such file or directory; name a file that can be read"
    ]
    write(path, rate(2))
    await look(mock_clock, 3)
    assert taker.taken.receive_nowait() == Tenants({}, Tenant(rate=2))
    assert len(told) == 2
    nursery.cancel_scope.cancel()


async def test_a_file_that_is_being_written_is_left_alone(
    tmp_path: Path, nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    path, taker = tmp_path / "tenants.toml", Taker()
    path.write_text(rate(1))
    file = TenantsFile(str(path))
    nursery.start_soon(file.follow, taker)
    await wait_all_tasks_blocked()
    for length in range(1, 8):  # it never stands still
        path.write_text(rate(2)[:length])
        await look(mock_clock, 1)
    with pytest.raises(trio.WouldBlock):
        taker.taken.receive_nowait()
    path.write_text(rate(20))  # of another length, because all of this takes less than a tick of the file's time
    await look(mock_clock, 3)
    assert taker.taken.receive_nowait() == Tenants({}, Tenant(rate=20))
    nursery.cancel_scope.cancel()


async def test_it_is_reloaded_at_once_when_asked(tmp_path: Path) -> None:
    path, taker = tmp_path / "tenants.toml", Taker()
    path.write_text(rate(1))
    file = TenantsFile(str(path))
    path.write_text(rate(2))
    assert await file.reload(taker)
    assert taker.taken.receive_nowait() == Tenants({}, Tenant(rate=2))
    path.write_bytes(b"\xef\xbb\xbf" + rate(3).encode())  # as some editors write it
    assert await file.reload(taker)
    path.write_text("[")
    assert not await file.reload(taker)
    assert file.tenants == Tenants({}, Tenant(rate=3))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        (b"\xff", "it is not UTF-8"),
        (b"[default]\nrate = 0", "default: tenant rate=0 is not a number above 0"),
        (b"x = [1,\n2", "it is not TOML: "),
        (b"x = " + 9999 * b"[", "it is nested too deeply"),
        (b"[default]\nruns = " + 9999 * b"9", "it is not TOML: "),
    ],
)
async def test_a_file_that_makes_no_sense_at_first_is_an_error(
    content: bytes | None, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "tenants.toml"
    if content is not None:
        path.write_bytes(content)
    for load in (lambda: watch_tenants(str(path), Taker()), lambda: trio.to_thread.run_sync(load_tenants, str(path))):
        with pytest.raises(DefinitionError) as raised:
            await load()
        assert raised.value.problem.startswith(f"{path}: {problem}")
