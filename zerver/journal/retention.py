"""Retention: runs that ended long ago leave the journal by themselves.

Law: what is unfinished, unresolved or set aside stays, however old it is; and nobody waits for what is deleted: it goes
in small pieces, now and then, by every process that has the journal open, and a piece that another one took is no harm.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import trio

from zerver.errors import JournalError
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.journal import Journal

#: Seconds between two looks.
LOOKS: Final = 600.0

#: Runs that are deleted at once, and seconds of rest between two such pieces: others want to write.
PIECE: Final = 200
REST: Final = 0.05


@asynccontextmanager
async def keeping(
    opened: AbstractAsyncContextManager[Journal], seconds: float, wall_ns: Callable[[], int] = time.time_ns
) -> AsyncGenerator[Journal, None]:
    """The journal, open; runs leave it that ended more than `seconds` ago. wall_ns: the time, as people have it."""
    async with opened as journal, open_body_nursery() as nursery:
        nursery.start_soon(prune, journal, seconds, wall_ns)
        try:
            yield journal
        finally:
            nursery.cancel_scope.cancel()


async def prune(journal: Journal, seconds: float, wall_ns: Callable[[], int]) -> None:
    """Delete what is old enough, again and again. A journal that is away is left alone until the next look."""
    while True:
        try:
            deleted = PIECE
            while deleted == PIECE:
                deleted = await journal.prune(wall_ns() - int(seconds * 1e9), PIECE)
                await trio.sleep(REST)
        except JournalError:
            pass  # the clerk hears of it too, and says so
        await trio.sleep(LOOKS)
