"""Replanning: stages that a running step puts into the rest of its plan.

Law: what is inserted is checked against the slots written so far, and against the writers still to come, before any
of it runs; the compiled plan of the flow itself is never changed, the run gets one of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from zerver.core.check import WrittenSlots, check_insertion
from zerver.core.places import Activation, At, Gate
from zerver.core.plan import BlockNode, BranchNode, DagNode, ForkNode, Line, Node, Plan, PlanBuilder, StepNode
from zerver.core.stages import Stage, as_stages
from zerver.errors import DefinitionError


def spliced(
    plan: Plan,
    by: str,
    stages: Sequence[Any],
    written: Mapping[str, object],
    rest: Iterable[Node],
    names: dict[str, int],
) -> tuple[Plan, Line]:
    """The run's plan with room for the new stages, and their line.

    written: slots that were written, and what they hold. rest: nodes that may still run besides the new ones.
    names: how often each step name was used so far; filled and updated.

    Raises DefinitionError when the stages cannot run here.
    """
    listed: tuple[Stage, ...] = as_stages(f"flow {plan.flow!r}: step {by!r}", stages)
    taken = dict.fromkeys(written, "an earlier step")
    for node in steps_in(rest):
        for write in node.step.signature.writes:
            taken.setdefault(write.slot.name, node.name)
    if not names:  # the plan's own steps were named first, and a name is part of an idempotency key
        names.update(Counter(node.step.name for node in steps_in(plan.line)))
    check_insertion(plan.flow, listed, _known(plan, by, written), taken, [node.step for node in steps_in(plan.line)])
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


def _known(plan: Plan, by: str, written: Mapping[str, object]) -> WrittenSlots:
    """What is written, as the checker sees it: a slot that holds None may have been meant to hold nothing."""
    known, takes = WrittenSlots(), {slot.name for slot in plan.takes}
    for name, value in written.items():
        known.add(name, None if value is not None or name in takes else f"it held None when step {by!r} inserted")
    return known


def still_to_run(here: At, waiting: Iterable[Activation], agenda: Iterable[At]) -> Iterable[Node]:
    """Every node that may still run behind `here`, the agenda and the steps that wait; a line of a gate is taken
    whole.
    """
    places = [here, *agenda]
    for activation in waiting:
        yield activation.node
        places.append(activation.place)
    for place in places:
        at: At | Gate | None = place
        while at is not None:
            if isinstance(at, Gate):
                for line in at.node.lines:
                    yield from line
            else:
                yield from at.line[at.at :]
            at = at.parent


def to_drop(flow: str, by: str, here: At) -> Sequence[At]:
    """The places whose lines end here, when a step replaces the rest of the plan.

    Raises DefinitionError inside a fork or a dag, whose other members are under way.
    """
    places, at = [here], here.parent
    while at is not None:
        if isinstance(at, Gate):
            raise DefinitionError(
                f"flow {flow!r}: step {by!r} answers Replace inside {at.node.name}",
                "other members are under way: Insert instead, or decide behind it",
            )
        places.append(at)
        at = at.parent
    return places


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
