"""A worker's sign of life, as the worker itself sees it: for how long nobody can have taken its jobs away.

Law: counted from when it was asked for, and not from the answer: the store counts from some moment between the two. A
worker that stood still, or could not reach the store, does not know whose its jobs are; it does not go by what it knew.
"""

from __future__ import annotations

import trio


class Living:
    """lease: seconds. It holds when this is made."""

    def __init__(self, lease: float) -> None:
        self.lease = lease
        self.said = trio.current_time()
        self._again = trio.Event()

    @property
    def has_lapsed(self) -> bool:
        """Whether its jobs may be others' by now."""
        return trio.current_time() - self.said > self.lease

    def hear(self, asked: float) -> None:
        """The store has heard of this worker, which asked for it then, and knows again whose its jobs are."""
        self.said = asked
        self._again.set()
        self._again = trio.Event()

    async def wait_known(self, seconds: float) -> bool:
        """Wait until it is known whose its jobs are; False if it is not within these seconds."""
        with trio.move_on_after(seconds):
            while self.has_lapsed:
                await self._again.wait()
            return True
        return False
