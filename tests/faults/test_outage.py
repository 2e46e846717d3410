"""A journal that is away for half a minute, or mute for as long: 503 within a second, and work again within five of its
return, with nothing lost and nothing done twice. The journal's time is Trio's, so that half a minute is a moment here;
what a real server does that goes away is in `test_database.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import trio

from tests.runtime.dying import SHOP, Witness, check_once
from zerver import App
from zerver.errors import JournalUnavailable
from zerver.journal import Disk, open_memory_journal
from zerver.runtime.journal import Opening
from zerver.testing import client

#: Seconds.
LONG = 30.0
PATIENCE = 1.0  # of a journal in PostgreSQL
BACK = 5.0

How = Literal["away", "mute"]


class Outage:
    """A journal as one in PostgreSQL is: away, it says so; mute, nobody hears of it until its patience is over. What
    was sent has happened or has not: `heard` says whether it has.
    """

    def __init__(self, journal: Any) -> None:
        self._journal = journal
        self.how: How | None = None
        self.heard = False
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._journal, name)
        return verb if name in ("notation", "statistics", "write_behind") else self._through(verb)

    def _through(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*given: Any, **named: Any) -> Any:
            if self.how is None:
                return await verb(*given, **named)
            self.asked += 1
            if self.heard and not (given and isinstance(given[0], Opening)):  # the port: such a run has not begun
                await verb(*given, **named)
            await trio.sleep(PATIENCE if self.how == "mute" else 0.01)
            raise JournalUnavailable("the database is away", 1.0)

        return call


@pytest.mark.parametrize("how", ["away", "mute"])
@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
async def test_half_a_minute(how: How, heard: bool, autojump_clock: object) -> None:
    witness, disk, app = Witness(), Disk(), App()
    app.route("POST", "/orders", SHOP)
    async with open_memory_journal(disk) as memory:
        outage: Any = Outage(memory)
        async with client(app, handlers=witness.handlers(), journal=outage) as asking:
            assert [(await asking.post("/orders")).status for _ in range(3)] == [200] * 3
            under_way: list[int] = []

            async def order() -> None:
                under_way.append((await asking.post("/orders")).status)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(order)
                await trio.sleep(0.015)  # its first charge is made
                outage.how, outage.heard = how, heard
            assert under_way == [503]
            ends = trio.current_time() + LONG
            while trio.current_time() < ends:
                began = trio.current_time()
                reply = await asking.post("/orders")
                assert (reply.status, int(reply.headers["retry-after"]) > 0) == (503, True)
                assert trio.current_time() - began <= PATIENCE
                await trio.sleep(2.0)
            assert outage.asked < 8 * LONG, "it knocks without end"
            outage.how, began = None, trio.current_time()
            while (await asking.post("/orders")).status != 200:
                await trio.sleep(0.1)
            assert trio.current_time() - began < BACK
            await trio.sleep(LONG)  # for what was under way to be found and undone
            assert {run.status for run in disk.runs.values()} <= {"done", "cancelled"}
    done = sum(run.status == "done" for run in disk.runs.values())
    world = witness.world
    assert done == 4
    assert len(world.done) - len(world.undone) == 2 * done, "a charge is left without its order"
    check_once(world)
