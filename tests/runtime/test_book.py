"""A run that is cut, or whose journal does not answer, while it is put down: it is undone once, and never goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import trio

from tests.runtime.dying import Watched, Witness, statuses
from tests.runtime.test_parked import BOTH, shop
from zerver import App, IdempotencyKey
from zerver.errors import JournalUnavailable
from zerver.journal import open_memory_journal
from zerver.runtime import Result, open_runtime
from zerver.runtime.journal import Entry, Journal, Page

Trouble = Literal["unsent", "unheard", "lost"]


class Parking(Watched):
    """A journal whose pages that put a run down are troubled: never taken, taken and not acknowledged, or lost."""

    def __init__(self, journal: Journal, witness: Witness, trouble: Trouble) -> None:
        super().__init__(journal, witness)
        self._trouble: Trouble | None = trouble

    async def write(self, entry: Entry) -> None:
        if isinstance(entry, Page) and entry.parked is not None and self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            if trouble == "unsent":
                await trio.sleep_forever()
            if trouble == "unheard":
                await super().write(entry)
            raise JournalUnavailable("nobody knows whether it was written")
        await super().write(entry)


def seen_while_undoing(witness: Witness) -> tuple[dict[str, Callable[..., Any]], list[str]]:
    """Handlers, and who has the run whenever a refund is asked for; "" is nobody."""
    handlers, seen = witness.handlers(), []
    refund = handlers["bank.refund"]

    async def on_refund(made: str, *, key: IdempotencyKey) -> None:
        (run,) = witness.disk.runs.values()
        seen.append(run.owner)
        await refund(made, key=key)

    return {**handlers, "bank.refund": on_refund}, seen


@BOTH
async def test_a_run_cut_before_it_was_put_down_is_its_workers_while_it_is_undone(
    durability: Any, autojump_clock: object
) -> None:
    """The page that was to put it down is never written behind its back."""
    witness, flow, results = Witness(), shop(durability), []
    handlers, seen = seen_while_undoing(witness)
    async with (
        open_memory_journal(witness.disk) as journal,
        open_runtime(
            App(), handlers=handlers, journal=Parking(journal, witness, "unsent"), flows=[flow], owner="me"
        ) as runtime,
    ):

        async def go() -> None:
            results.append(await runtime.run(flow))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            await trio.sleep(0.5)
            (run,) = runtime.under_way()
            assert runtime.cancel_nowait(run.run_id, "no more")
        await trio.sleep(60)
        assert results[0].status == "cancelled"
        assert seen == ["me"]
        assert statuses(witness.disk) == ["cancelled"]
        assert not await runtime.signal(run.run_id, "go", "yes")


@BOTH
@pytest.mark.parametrize("trouble", ["unheard", "lost"])
async def test_a_run_of_which_nobody_knows_whether_it_was_put_down_is_undone_once(
    trouble: Trouble, durability: Any, autojump_clock: object
) -> None:
    """Its caller has heard that it is over: it does not wait for a signal, and what it had paid is given back."""
    witness, flow = Witness(), shop(durability)
    ended: list[Result] = []
    handlers, seen = seen_while_undoing(witness)
    async with (
        open_memory_journal(witness.disk) as journal,
        open_runtime(
            App(),
            handlers=handlers,
            journal=Parking(journal, witness, trouble),
            flows=[flow],
            owner="me",
            observers=[ended.append],
        ) as runtime,
    ):
        result = await runtime.run(flow)
        assert (result.status, result.reason) == ("cancelled", "the journal could not be reached")
        assert seen == []  # before the journal knows
        await trio.sleep(60)
        assert seen == ["me"]
        assert statuses(witness.disk) == ["cancelled"]
        assert len(witness.world.undone) == 1
        assert not await runtime.signal(result.run_id, "go", "yes")
    assert ended[-1].status == "cancelled"
