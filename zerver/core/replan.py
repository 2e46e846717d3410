"""Replanning: stages that a running step puts into the rest of its plan.

Law: what is inserted is checked against the slots written so far, and against the writers still to come, before any
of it runs; the compiled plan of the flow itself is never changed, the run gets one of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from zerver.core.check import check_insertion
from zerver.core.plan import BlockNode, BranchNode, DagNode, ForkNode, Line, Node, Plan, PlanBuilder, StepNode
from zerver.core.stages import Stage, as_stages
from zerver.errors import DefinitionError


def spliced(
    plan: Plan,
    by: str,
    stages: Sequence[Any],
    written: Iterable[str],
    rest: Sequence[Node],
    names: dict[str, int],
) -> tuple[Plan, Line]:
    """The run's plan with room for the new stages, and their line.

    written: slots that hold a value. rest: nodes still to run behind the new ones. names: how often each step name was
    used by earlier insertions; updated.

    Raises DefinitionError when the stages cannot run here.
    """
    listed: tuple[Stage, ...] = as_stages(f"flow {plan.flow!r}: step {by!r}", stages)
    taken = dict.fromkeys(written, "an earlier step")
    for node in steps_in((*plan.line, *rest)):
        names.setdefault(node.step.name, 1)
    for node in steps_in(rest):
        for write in node.step.signature.writes:
            taken.setdefault(write.slot.name, node.name)
    check_insertion(plan.flow, listed, written, taken)
    builder = PlanBuilder(plan, names)
    line = builder.line(listed)
    if len(builder.parts) > len(plan.parts):
        part = builder.parts[-1]
        raise DefinitionError(
            f"flow {plan.flow!r}: step {by!r} inserts a step that reads {part.part.source} {part.name!r}, "
            "which was not extracted",
            "let a step of the flow read it, and hand it on in a slot",
        )
    names.update(builder.names)
    return attrs.evolve(plan, slots=builder.slots, size=builder.size, secret=frozenset(builder.secret)), line


def steps_in(line: Iterable[Node]) -> Iterable[StepNode]:
    """Every compiled step of a line, depth first."""
    for node in line:
        if isinstance(node, StepNode):
            yield node
        else:
            for inner in lines_of(node):
                yield from steps_in(inner)


def lines_of(node: Node) -> tuple[Line, ...]:
    """The lines directly inside a compiled node."""
    if isinstance(node, ForkNode | DagNode):
        return node.lines
    if isinstance(node, BranchNode):
        return (node.then, node.otherwise)
    return (node.line,) if isinstance(node, BlockNode) else ()
