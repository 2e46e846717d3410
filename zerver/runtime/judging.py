"""Judging stored runs: what the code that is here would do with each of them, with nothing performed.

Law: pure. The very same is done as by a takeover, up to the place where it would perform something; so what is said of
a run here is what would become of it, and `zerver upgrade-check` can say it before a deploy.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

from zerver.core import timeline as t
from zerver.core.timeline import Ending, Timeline
from zerver.errors import JournalError
from zerver.runtime.journal import Reader, StoredRun
from zerver.runtime.recovery import CRASHED, Astray, Recovered, recover
from zerver.runtime.versions import Found, Versions

#: What a run comes to whose version of the flow is not known any more, and which is not to go on with another one.
UPGRADED = Ending("cancelled", reason="its version of the flow is not known any more")

#: What one comes to that was cancelled while it was put down; by whom and why is not looked at here.
_CUT = Ending("cancelled", reason="it was cancelled while it was parked")

#: Records whose values steps and compensations read.
_READ = frozenset({t.SETTLED, t.COMMITTED, t.SIGNALLED, t.UNDONE})

#: What becomes of a run: it goes on by its own version, or by another one that agrees with it; it is undone; it is only
#: closed; or no code here can carry it on.
Fate: TypeAlias = Literal["goes on", "compensated", "closed", "stuck"]


@attrs.frozen
class Prospect:
    """What would become of a run, and why. upgraded: by code of another version than it began with. astray: of one that
    is stuck because the code goes another way.
    """

    fate: Fate
    why: str = ""
    upgraded: bool = False
    astray: Astray | None = None


def lead(
    timeline: Timeline, code: Found, reader: Reader, ending: Ending | None = None, *, crashed: bool = True
) -> tuple[Recovered, Ending | None]:
    """Lead the code along the records. ending: what the run has come to, if it is not to go on; else the code says, and
    what it says is given back. crashed: whether its process has died, or it was only put down.

    Raises Astray.
    """
    if not timeline.records:
        raise Astray("it has no records")
    if ending is None:
        if code.upgraded and code.flow.on_upgrade == "compensate":
            ending = UPGRADED
        elif crashed and code.flow.on_crash == "compensate":
            ending = CRASHED
    found = recover(code.plan, timeline, to_undo=ending is not None)
    machine = found.machine
    read = (detail for kind, _, _, detail in machine.records if kind in _READ)
    for value in (*machine.cells, *read):
        unknown = reader.unknown(value)
        if unknown:
            raise Astray(f"a step would read a value of the class {unknown}, which the code that is here does not know")
    return found, ending


def judge(stored: StoredRun, versions: Versions, reader: Reader) -> Prospect:
    """What would become of a stored run if its worker died now; of one that is parked, when it is taken up."""
    parked = stored.wakes_unix_ns is not None
    if stored.head.durability != "sync" and not parked:
        return Prospect("closed", 'of durability "async": it is never carried on')
    try:
        timeline = reader.read(stored)
    except JournalError as error:
        return Prospect("stuck", str(error))
    try:
        code = versions.find(stored.head)
    except Astray as error:
        return Prospect("stuck", str(error))
    try:
        cut = _CUT if parked and stored.cut is not None else None
        found, ending = lead(timeline, code, reader, cut, crashed=not parked)
    except Exception as error:  # whatever a stored run makes code stumble over
        return Prospect("stuck", why_stuck(error), code.upgraded, error if isinstance(error, Astray) else None)
    machine = found.machine
    over = machine.ending is not None
    if machine.under_way:
        machine.interrupt(CRASHED)  # so that no step is left to the garbage collector
    undone = ending is not None and not over
    return Prospect("compensated" if undone else "goes on", "" if ending is None else ending.reason, code.upgraded)


def check_signal(stored: StoredRun, versions: Versions, reader: Reader, signal: str, value: object, where: str) -> None:
    """Raise InvalidData for a value that a run which is put down could not take, DamagedJournal when the run cannot be
    read here. Where nobody here can say, because the code for it is not here, nothing is raised: whoever takes it up
    can.
    """
    if stored.status:
        return
    timeline = reader.read(stored)
    if stored.wakes_unix_ns is None:
        return
    try:
        machine = recover(versions.find(stored.head).plan, timeline).machine
    except Exception:  # whatever a stored run makes code stumble over: it is told when it is taken up
        return
    try:
        machine.check_signal(signal, value, where)
    finally:
        if machine.under_way:
            machine.interrupt(CRASHED)  # so that no step is left to the garbage collector


def why_stuck(error: Exception) -> str:
    """Why a run cannot be carried on, as text that any database takes, and without values: it is kept in the clear."""
    text = str(error) if isinstance(error, Astray | JournalError) else f"{type(error).__name__} while it was taken up"
    return text.replace("\0", "").encode("utf-8", "replace").decode()[:4000] or type(error).__name__
