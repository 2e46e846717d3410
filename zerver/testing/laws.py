"""Laws: what a proof kit is made of.

Law: a law has a name, which is a sentence, and stands in the kit in the order in which it was written. What it finds
is raised, not asserted, so that kits work under `python -O` too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

import trio

C = TypeVar("C")


class Laws(Generic[C]):
    """The laws of one kit, each an async function of a case.

    law = Laws[Store]()

    @law("a missing key has no value")
    async def missing(store: Store) -> None: ...
    """

    def __init__(self) -> None:
        self._laws: list[tuple[str, Callable[[C], Awaitable[None]]]] = []

    def __call__(self, name: str) -> Callable[[Callable[[C], Awaitable[None]]], Callable[[C], Awaitable[None]]]:
        """Make a function a law with this name."""

        def register(law: Callable[[C], Awaitable[None]]) -> Callable[[C], Awaitable[None]]:
            self._laws.append((name, law))
            return law

        return register

    def __iter__(self) -> Iterator[tuple[str, Callable[[C], Awaitable[None]]]]:
        return iter(self._laws)


def require(holds: bool, otherwise: str) -> None:
    """Raise AssertionError, saying so, for what does not hold."""
    if not holds:
        raise AssertionError(otherwise)


async def cut_after(call: Callable[[], Awaitable[object]], steps: int) -> str:
    """Call, and cancel it after so many turns of the loop: "done" or "cancelled"."""
    ended = "cancelled"

    async def cut() -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(cut)
        with scope:
            await call()
            ended = "done"
        nursery.cancel_scope.cancel()
    return ended
