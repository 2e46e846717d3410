"""What has ended long ago goes by itself, in pieces, and nothing else does."""

import trio
from trio.testing import MockClock

from tests.journal.test_scribe import opening, page
from zerver.errors import JournalUnavailable
from zerver.journal.memory import Disk, open_memory_journal
from zerver.journal.retention import LOOKS, PIECE, keeping, prune
from zerver.runtime.journal import UNRESOLVED, Journal

DAY = 86_400.0


def on_the_clock() -> int:
    """The time as a journal in memory has it."""
    return round(trio.current_time() * 1e9)


async def write(journal: Journal, *runs: tuple[str, str]) -> None:
    """Runs by their id and the status with which they end; "" for one that does not."""
    await journal.renew("me", DAY * 100)
    for run_id, status in runs:
        await journal.write(opening(run_id))
        if status:
            await journal.write(page(1, run_id, status))


async def test_what_is_over_goes_after_its_time_and_the_rest_stays(autojump_clock: MockClock) -> None:
    disk = Disk()
    async with open_memory_journal(disk) as other:
        await write(other, ("done", "done"), ("failed", "failed"), ("open", ""), ("doubtful", UNRESOLVED))
    async with keeping(open_memory_journal(disk), 3 * LOOKS, on_the_clock):
        await trio.sleep(LOOKS * 2.5)
        assert set(disk.runs) == {"done", "failed", "open", "doubtful"}
        await trio.sleep(LOOKS)
        assert set(disk.runs) == {"open", "doubtful"}


async def test_a_great_many_go_in_pieces_at_one_look(autojump_clock: MockClock) -> None:
    disk = Disk()
    async with open_memory_journal(disk) as other:
        await write(other, *((f"run {number}", "done") for number in range(2 * PIECE + 1)))
    async with keeping(open_memory_journal(disk), 0.0, lambda: on_the_clock() + 1):
        await trio.sleep(1.0)
        assert not disk.runs


async def test_a_journal_that_is_away_is_looked_at_again(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    asked: list[int] = []

    class Away:
        async def prune(self, ended_before_unix_ns: int, count: int = 200) -> int:
            await trio.lowlevel.checkpoint()
            asked.append(ended_before_unix_ns)
            if len(asked) == 1:
                raise JournalUnavailable("away")
            return 0

    nursery.start_soon(prune, Away(), 1.0, lambda: 5 * 10**9)
    await trio.sleep(LOOKS * 1.5)
    assert asked == [4 * 10**9, 4 * 10**9]
    nursery.cancel_scope.cancel()
