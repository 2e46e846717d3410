"""Trying again: a run that has ended with writes of which nobody can say that they are right, once more.

Law: pure. What had ended stays ended, as it had: only its unresolved writes are looked at again, by what is known of
them: one that is in doubt is asked about, else undone by its key; one that had happened is undone. What was settled is
not touched.
"""

from __future__ import annotations

from zerver.core import timeline as t
from zerver.core.commands import Command
from zerver.core.machine import Machine
from zerver.errors import InternalError


def try_again(machine: Machine, by: str) -> Command:
    """The first thing to do: Unwind, or the Ending when there is nothing that could be. by: who tries."""
    ending = machine.ending
    if ending is None or not machine.finished:
        raise InternalError(f"run {machine.run_id} is tried again, and has not ended")
    machine.records.append((t.RETRIED, machine.clock(), machine.plan.flow, by))
    machine.saga.reopen()
    machine.finished = False
    return machine.interrupt(ending)  # nothing is under way; it says what is next
