"""The watchdog: a thread that looks what the loop is doing when a turn takes twice what it may.

Law: it reads and never interferes. It sleeps until a turn can have become too long, looks at one number, and sleeps
again; soon after the last turn it parks on a lock and costs nothing. A loop that hangs in a step cannot say where: only
another thread can.

Refused: sys.setprofile and signals, which slow down or interrupt what they watch. Precedent: faulthandler's
`dump_traceback_later`, which tells only a file.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Final

from zerver.core.frames import at_work

#: How often to look (seconds) while turns come and go: twice the smallest budget, since none can overrun sooner.
PERIOD: Final = 0.006

#: How long (ns) it watches after `wake`. It is woken ten times a second while there are turns.
WATCHES: Final = 200_000_000

#: How long (seconds) closing waits for the thread, which has nothing to finish.
_PATIENCE: Final = 1.0


class Watchdog:
    """Watches the thread that makes it. due: when (ns, on `clock`) the turn under way is to be looked at; 0: none is.

    `look` is all that the thread does; tests call it themselves.
    """

    def __init__(self, clock: Callable[[], int], due: Callable[[], int]) -> None:
        self._clock = clock
        self._due = due
        self._watched = threading.get_ident()
        self._until = 0
        self._sample: tuple[int, str] = (0, "")  # replaced whole: the two are read by another thread
        self._working = threading.Event()
        self._open = threading.Lock()  # held until it is closed: to wait for a lock takes no Python code, as Event does
        self._open.acquire()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There are turns to watch."""
        self._until = self._clock() + WATCHES
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="zerver watchdog", daemon=True)
            self._thread.start()
        self._working.set()

    def close(self) -> None:
        """End the thread."""
        if self._open.locked():
            self._open.release()
        self._working.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def look(self) -> float:
        """Look at the loop if its turn is due; seconds until the next look."""
        due, now = self._due(), self._clock()
        if not due or self._sample[0] == due:
            return PERIOD
        if now < due:
            return (due - now) / 1e9
        place = at_work(sys._current_frames().get(self._watched))
        if self._due() == due:  # otherwise the turn ended in between, and something else was seen
            self._sample = (due, place)
        return PERIOD

    def seen(self, due: int) -> str:
        """Where the turn that was to be looked at then was found; "" when nobody looked."""
        at, place = self._sample
        return place if at == due else ""

    def _watch(self) -> None:
        while not self._open.acquire(timeout=self.look()):
            if self._is_over():
                self._working.clear()
                if self._is_over() and self._open.locked():  # otherwise it was woken, or closed, just then
                    self._working.wait()

    def _is_over(self) -> bool:
        return self._clock() >= self._until and not self._due()
