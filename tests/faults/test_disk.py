"""A disk that is full, or fails: who asks is told 503 and when to come back, nothing is acknowledged that is not there,
and service is resumed when there is room again."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from tests.faults.served import Shop, balanced, check_books, shop, until


def fill(served: Shop, acknowledged: list[int], numbers: Sequence[int]) -> None:
    """Order, some at once, until the shop can take no more: some runs find that out in their midst."""
    with ThreadPoolExecutor(4) as threads:
        for some in batched(numbers, 4):
            replies = list(threads.map(served.order, some))
            acknowledged += [number for number, reply in zip(some, replies, strict=True) if reply.status == 201]
            refused = [reply for reply in replies if reply.status != 201]
            assert all(reply.status == 503 and int(reply.retry_after or 0) > 0 for reply in refused)
            if refused:
                return
    pytest.fail("the disk was never full")


def batched(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


def check_resumed(served: Shop, folder: Path, acknowledged: list[int]) -> None:
    numbers = count(10_001)
    answered: list[int] = []

    def orders_again() -> bool:
        answered.append(next(numbers))
        return served.order(answered[-1]).status == 201

    assert until(orders_again, "it has room again, and serves nobody") < 10
    acknowledged.append(answered[-1])
    acknowledged += [number for number in range(20_001, 20_006) if served.order(number).status == 201]
    assert len(acknowledged) >= 6
    until(lambda: balanced(folder), "what was under way then was never undone")
    integrity, statuses = served.close()
    assert integrity == "ok"
    assert statuses.split().count("done") >= len(acknowledged)
    check_books(folder, acknowledged, crashes=1)


def private_mounts() -> list[str]:
    """What gives a command mounts of its own; skips where nobody may have them."""
    for options in (["--mount"], ["--mount", "--map-root-user"]):
        command = ["unshare", *options]
        if (
            shutil.which("unshare")
            and not subprocess.run(
                [*command, "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", "/mnt"], capture_output=True, check=False
            ).returncode
        ):
            return command
    pytest.skip("this machine lets nobody mount a small disk")


def test_a_full_disk(tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "provider"
    disk.mkdir()
    folder.mkdir()
    script = f'mount -t tmpfs -o size=2m tmpfs "{disk}" && head -c 1000000 /dev/zero > "{disk}/ballast" && exec "$@"'
    before = [*private_mounts(), "sh", "-c", script, "sh"]
    with shop(f"sqlite:///{disk}/journal.db", folder, lease=2.0, before=before) as served:
        acknowledged: list[int] = []
        fill(served, acknowledged, range(1000, 3000))
        for number in range(5000, 5020):
            reply = served.order(number)
            assert (reply.status, reply.retry_after is not None) == (503, True)
        os.unlink(f"/proc/{served.process.pid}/root{disk}/ballast")
        check_resumed(served, folder, acknowledged)


def test_a_disk_that_refuses_to_write(tmp_path: Path) -> None:
    """The kernel answers each write beyond a place with EFBIG, which SQLite reports as an I/O error."""
    journal = tmp_path / "journal.db"
    with shop(f"sqlite:///{journal}", tmp_path, lease=2.0) as served:
        acknowledged: list[int] = []
        for number in range(20, 50):
            assert served.order(number).status == 201
            acknowledged.append(number)
        _, most = resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE)
        place = tmp_path.joinpath("journal.db-wal").stat().st_size + 10_000
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (place, most))
        fill(served, acknowledged, range(1000, 3000))
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (most, most))
        check_resumed(served, tmp_path, acknowledged)
