"""Work that outlives who waits for it.

Law: what was begun in a nursery ends with it, not with the task that asked for it; whoever is cancelled while it waits
leaves it under way. What it raises comes to who waits, and harms nobody else in the nursery.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def done_in(nursery: trio.Nursery, work: Callable[[], Awaitable[T]]) -> T | None:
    """Have it done in this nursery, and wait for what it gives; None when the nursery was cancelled before."""
    ended = trio.Event()
    came: list[T] = []
    wrong: list[Exception] = []

    async def carry() -> None:
        try:
            came.append(await work())
        except Exception as error:
            wrong.append(error)
        finally:
            ended.set()

    nursery.start_soon(carry)
    await ended.wait()
    if wrong:
        raise wrong.pop()
    return came[0] if came else None
