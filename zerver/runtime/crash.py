"""Crash points: places where a process can be made to die, so that tests prove what the next one makes of it.

Law: off, passing one is a comparison, and only durable runs and answers pass any. On, the process is killed as by
`kill -9`, at the n-th time that it comes to the place: no `finally` runs, nothing is flushed.

    ZERVER_CRASH_AT=effect.reply:2 zerver serve shop:app

    begin.before, begin.after      a run is written into the journal, with the intent of its first write
    write.before, write.after      further records of it are
    effect.send, effect.reply      a write is sent; it has been answered, and nobody has heard of it yet
    undo.send, undo.reply          the same for a task of the rollback
    end.before, end.after          the last records of a run are written; its answer may leave
    park.before, park.after        a parked run is put down; it is nobody's then
    signal.before, signal.after    a run that was put down is given a signal
    cancel.before, cancel.after    it is cancelled
    fsync.before, fsync.after      a batch of entries is committed, those of many runs; they are told of it
    ack.before, ack.after          an answer leaves; it has left
    renew.before, renew.after      a worker says that it lives
    claim.before, claim.after      it takes over the runs of one that does not

Precedent: SQLite's crash tests.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from zerver.errors import DefinitionError

#: The environment variable that turns one of them on.
VARIABLE: Final = "ZERVER_CRASH_AT"

#: All of them, for tests that go through them.
SITES: Final = (
    *("begin.before", "begin.after", "write.before", "write.after", "end.before", "end.after"),
    *("effect.send", "effect.reply", "undo.send", "undo.reply"),
    *("fsync.before", "fsync.after", "ack.before", "ack.after"),
    *("renew.before", "renew.after", "claim.before", "claim.after"),
)


#: Those that only runs come to which are put down while they are parked.
PARKED_SITES: Final = ("park.before", "park.after", "signal.before", "signal.after", "cancel.before", "cancel.after")


class CrashPoint:
    """Where this process dies, if it does: `crash_point("effect.send")` says that it is there."""

    def __init__(self, said: str) -> None:
        self._site = ""
        self._left = 0
        self.arm(said)

    def arm(self, said: str) -> None:
        """Die there. said: as the environment has it, "" for nowhere. Raises DefinitionError for no place."""
        site, _, number = said.partition(":")
        places = (*SITES, *PARKED_SITES)
        if site and (site not in places or not (number or "1").isdecimal()):
            raise DefinitionError(f"{VARIABLE}={said} names no place", f"write site:n with one of {', '.join(places)}")
        self._site, self._left = site, int(number or 1)

    def __call__(self, site: str) -> None:
        if site == self._site:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


crash_point: Final = CrashPoint(os.environ.get(VARIABLE, ""))
