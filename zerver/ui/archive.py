"""The archive: kept runs on disk, for a page that must not wait for a disk on its loop.

Law: the file is opened when it is first needed, read in a thread, and never written. It may not be there yet, be moved
or be damaged: then there are no kept runs, and what is wrong is told beside those of memory.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from zerver.errors import TraceError
from zerver.trace.keeping.store import TraceStore, open_store
from zerver.trace.recording import Recording
from zerver.trace.summary import Filter, Summary

T = TypeVar("T")

_THREADS: Final = 2


class Archive:
    """Reads a trace file. path: where it is, or will be. To be closed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._store: TraceStore | None = None
        self._closed = False
        self._opening = threading.Lock()
        self._limiter = trio.CapacityLimiter(_THREADS)
        self.trouble: str | None = None

    async def search(self, wanted: Filter, count: int) -> list[Summary]:
        """The newest kept runs that fit; none when there is no file, or it cannot be read."""
        return await self._ask(lambda store: store.search(wanted, count)) or []

    async def matching(self, said: str, count: int) -> list[Summary]:
        """Those whose id begins so, or that belong to the trace."""
        return await self._ask(lambda store: store.matching(said, count)) or []

    async def find(self, said: str) -> Recording | None:
        """The one that this means."""
        return await self._ask(lambda store: store.find(said))

    async def _ask(self, question: Callable[[TraceStore], T]) -> T | None:
        """The answer of the file. Cancelled, the thread is left to end by itself: it only reads."""
        try:
            answer = await trio.to_thread.run_sync(
                self._answer, question, abandon_on_cancel=True, limiter=self._limiter
            )
        except TraceError as error:
            self.trouble = str(error).partition("\n")[0]
            return None
        self.trouble = None
        return answer

    def close(self) -> None:
        """Close the file, once a reader that was left behind has done with it."""
        with self._opening:
            self._closed = True
            if self._store is not None:
                self._store.close()
                self._store = None

    # -- in a thread --

    def _answer(self, question: Callable[[TraceStore], T]) -> T | None:
        store = self._opened()
        return None if store is None else question(store)

    def _opened(self) -> TraceStore | None:
        with self._opening:
            if self._store is not None and self._store.was_moved:
                self._store.close()
                self._store = None
            if self._store is None and not self._closed and os.path.exists(self._path):
                self._store = open_store(self._path)
            return self._store
