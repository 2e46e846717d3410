"""Commands: what the machine asks of whoever pumps it.

Law: a command is an order, not a report: it names what to do next and holds nothing that the machine still changes.
Every command is answered with an event, but Wait, which needs none, and the last one: an Ending says that the run has
ended, and how.
"""

from __future__ import annotations

from typing import TypeAlias

from zerver.core.calls import Call
from zerver.core.saga import Task
from zerver.core.timeline import Ending
from zerver.core.values import value


@value(eq=False)
class Perform:
    """Perform these calls; more than one: at once. Tell `settled` for each."""

    calls: tuple[Call, ...]


@value(eq=False)
class Wait:
    """Nothing new: other calls are still under way."""


@value(eq=False)
class Breathe:
    """Its turn has been long enough: let others go first, then tell `resume`. What was asked for meanwhile is handed
    out with a later command.
    """


@value(eq=False)
class Cancel:
    """The run is over: cut the calls that are still under way, then tell `interrupt`."""


@value(eq=False)
class Unwind:
    """Perform this task of the rollback, shielded, then tell `undone`."""

    task: Task


@value(eq=False)
class Park:
    """Nothing runs until one of these signals comes, or its time (ns) is over."""

    until: tuple[tuple[str, int], ...]


Command: TypeAlias = Perform | Wait | Breathe | Cancel | Unwind | Park | Ending
