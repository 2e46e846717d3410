"""A call that is at work: whoever cancels it, or looks meanwhile, finds it there, whichever task Trio wakes first."""

from __future__ import annotations

from typing import Final

import trio

#: Turns of the loop. Of two tasks that wake together, chance says which is first: one turn would be missed at times.
_TURNS: Final = 12


async def at_work() -> None:
    for _ in range(_TURNS):
        await trio.lowlevel.checkpoint()
