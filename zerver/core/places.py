"""Places: where a run is in its plan, and which of its steps wait there.

Law: these are the machine's bookmarks and nothing else: they decide nothing, and only the machine moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeAlias

from zerver.core.plan import DagNode, ForkNode, Line, StepNode


class At:
    """A place in a line of nodes. until_ns: when the nested flow around it is out of time."""

    __slots__ = ("at", "line", "parent", "until_ns")

    def __init__(self, line: Line, parent: Frame | None, until_ns: int | None) -> None:
        self.line = line
        self.at = 0
        self.parent = parent
        self.until_ns = until_ns


class Gate:
    """A fork or a dag under way: `left` lines have not ended. needs: per line of a dag, how many must end before it.
    inside: whether it stands in a line of another gate.
    """

    __slots__ = ("inside", "left", "needs", "node", "parent")

    def __init__(self, node: ForkNode | DagNode, parent: At) -> None:
        self.node = node
        self.parent = parent
        self.left = len(node.lines)
        self.needs = list(node.needs) if isinstance(node, DagNode) else []
        at: Frame | None = parent
        while at is not None and not isinstance(at, Gate):
            at = at.parent
        self.inside = at is not None


class Member(At):
    """A line of a gate."""

    __slots__ = ("number",)

    def __init__(self, line: Line, parent: Gate, number: int) -> None:
        super().__init__(line, parent, parent.parent.until_ns)
        self.number = number


Frame: TypeAlias = At | Gate


def postpone(places: Iterable[At], ns: int) -> None:
    """Move the end of every nested flow around these places."""
    moved: set[Frame] = set()
    for place in places:
        at: Frame | None = place
        while at is not None and at not in moved:
            moved.add(at)
            if isinstance(at, At) and at.until_ns is not None:
                at.until_ns += ns
            at = at.parent


class Activation:
    """A step that waits: for an effect (coroutine or resume function) or for a signal."""

    __slots__ = ("began", "coroutine", "node", "ordinal", "place", "resume")

    def __init__(self, node: StepNode, place: At, began: int) -> None:
        self.node = node
        self.place = place
        self.began = began
        self.ordinal = 0
        self.coroutine: Coroutine[Any, Any, Any] | None = None
        self.resume: Callable[[Any], object] | None = None
