"""Priority classes: whose work comes first when not all of it can.

Law: three classes, in this order, and no fourth. `interactive`: somebody waits and looks. `default`: a program waits.
`batch`: nobody waits.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Priority: TypeAlias = Literal["interactive", "default", "batch"]
PRIORITIES: Final[tuple[Priority, ...]] = ("interactive", "default", "batch")

#: The number of a class: 0 is the highest. What admission and turns index their tables with.
RANK: Final[dict[Priority, int]] = {priority: rank for rank, priority in enumerate(PRIORITIES)}


#: The part of whatever is contended for (CPU, turns, connections) that a class has for certain while it waits, by rank.
#: The rest goes by priority.
GUARANTEES: Final = (0.50, 0.25, 0.05)


def lower_of(one: Priority, other: Priority | None) -> Priority:
    """The lower of two classes; None lowers nothing."""
    return one if other is None or RANK[other] <= RANK[one] else other


def demoted_by(priority: Priority, classes: int) -> Priority:
    """The class so many below; there is none below batch."""
    return PRIORITIES[min(RANK[priority] + classes, len(PRIORITIES) - 1)] if classes else priority
