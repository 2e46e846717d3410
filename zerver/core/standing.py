"""What stands: what a run has done to the world that nothing took back.

Law: pure, and read from the records alone, so that it is the same for a live run and for one out of a file. Whatever is
not known to have been undone, stands.
"""

from __future__ import annotations

from collections.abc import Iterable

from zerver.core import timeline as t
from zerver.core.calls import Call
from zerver.core.timeline import Record


def standing(records: Iterable[Record]) -> tuple[Call, ...]:
    """The run's writes that have happened, or may have, and were not undone, in order.

    Empty after a rollback that undid everything: the run might as well never have been, and doing it again is safe.
    Writes without a compensation stand, whatever became of their run; so do those behind a pivot.
    """
    left: dict[Call, None] = {}
    for kind, _, subject, _ in records:
        if kind in (t.COMMITTED, t.DOUBTED):
            left[subject] = None
        elif kind == t.UNDONE and subject.state in ("undone", "absent"):
            left.pop(subject.call, None)
    return tuple(left)
