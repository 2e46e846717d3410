"""What a runtime owes to its journal is told once, whoever comes to it first."""

from __future__ import annotations

import trio

from tests.runtime.dying import SHOP, Watched, Witness, statuses
from zerver import App
from zerver.errors import JournalUnavailable
from zerver.journal import open_memory_journal
from zerver.runtime import open_runtime
from zerver.runtime.journal import Entry, Journal, Page


class Slow(Watched):
    """Does not take the last page at first, and is then slow to take it, whoever is cancelled meanwhile."""

    def __init__(self, journal: Journal, witness: Witness) -> None:
        super().__init__(journal, witness)
        self.tries = 0

    async def write(self, entry: Entry) -> None:
        if isinstance(entry, Page) and entry.status:
            self.tries += 1
            if self.tries == 1:
                raise JournalUnavailable("away")
            with trio.CancelScope(shield=True):
                await trio.sleep(0.3)
                return await super().write(entry)
        return await super().write(entry)


async def test_what_is_owed_is_told_though_the_runtime_is_closed_just_then(autojump_clock: object) -> None:
    witness = Witness()
    async with open_memory_journal(witness.disk) as journal:
        slow = Slow(journal, witness)
        async with open_runtime(App(), handlers=witness.handlers(), journal=slow, lease=4.0) as runtime:
            result = await runtime.run(SHOP)
            assert result.status == "cancelled"
            while slow.tries == 1:  # until it is told again, with the lease
                await trio.sleep(0.01)
    assert slow.tries == 2
    assert statuses(witness.disk) == ["done"]
