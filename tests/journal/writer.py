"""A process of its own that writes to a journal, for tests that kill it, trace it or take its disk away.

python writer.py FILE write COUNT    writes runs, and prints the id of each when it is acknowledged
python writer.py FILE claim OWNER    claims runs, one at a time, and prints their ids
python writer.py FILE full           writes until the disk is full; makes room; writes again
"""

from __future__ import annotations

import os
import resource
import signal
import sys

import trio

from zerver.errors import JournalUnavailable
from zerver.journal import open_sqlite_journal
from zerver.runtime.journal import Journal, Opening, Page, RunHead


def opening(run_id: str, line: bytes = b"0") -> Opening:
    return Opening(RunHead(run_id, "flow", "1", "acme", "default", 1, "writer"), "plan", b"plan", [line])


def tell(word: str) -> None:
    os.write(1, f"{word}\n".encode())


async def write(journal: Journal, count: str, tasks: str = "4") -> None:
    await journal.renew("writer", 600.0)
    numbers = iter(range(int(count)))

    async def one() -> None:
        for number in numbers:
            await journal.write(opening(f"run{number}"))
            await journal.write(Page(f"run{number}", 1, 1, [b"1" * 100], "done"))
            tell(f"run{number}")

    async with trio.open_nursery() as nursery:
        for _ in range(int(tasks)):
            nursery.start_soon(one)


async def claim(journal: Journal, owner: str) -> None:
    await journal.renew(owner, 600.0)
    tell("ready")
    sys.stdin.readline()
    while runs := await journal.claim(owner, 1):
        for run in runs:
            tell(run.head.run_id)


async def full(journal: Journal) -> None:
    await journal.renew("writer", 600.0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, most))
    number = 0
    while True:
        try:
            await journal.write(opening(f"run{number}", b"x" * 20_000))
        except JournalUnavailable:
            break
        tell(f"run{number}")
        number += 1
    tell(f"full {journal.statistics().trouble}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    while True:
        try:
            await journal.write(opening("afterwards"))
        except JournalUnavailable as error:
            await trio.sleep(error.retry_after)
        else:
            break
    tell("afterwards")


async def main(file: str, what: str, *rest: str) -> None:
    async with open_sqlite_journal(file) as journal:
        await {"write": write, "claim": claim, "full": full}[what](journal, *rest)  # type: ignore[operator]  # by name


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
