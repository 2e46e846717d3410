"""Changes: other values for the slots and inputs of a recorded run.

Law: a value gets in only as the type that the code declares, or not at all; whoever names something that the flow does
not have is told what it has.

A name is a slot's, as `cart`, or an input's with its source before it, as `header.authorization`, `path.id`, `query.n`;
the source alone will do when there is one of it, as `body`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

import attrs

from zerver.core import timeline as t
from zerver.core.codec import decode_json
from zerver.core.decisions import Continue, Done, Insert, Need, Pause, Replace
from zerver.core.following import Inputs, fitted
from zerver.core.plan import BlockNode, BranchNode, Cells, DagNode, ForkNode, Line, Node, Plan, StepNode
from zerver.core.replan import steps_in
from zerver.core.signatures import PartRead, SlotRead
from zerver.core.timeline import Timeline
from zerver.errors import EffectError, InvalidData

_AS_IT_IS: Final[Any] = object()


@attrs.frozen(eq=False)
class Changes:
    """What is other than recorded. inputs: of the plan, changed ones included; None for those recorded. pins: what is
    written to slots, whatever their steps would write.
    """

    inputs: Inputs | None = None
    pins: Mapping[str, Any] = attrs.field(factory=dict)


def read_changes(plan: Plan, timeline: Timeline, changes: Mapping[str, object]) -> Changes:
    """The changes as values. changes: from a name to JSON as bytes, or to a value that is used as it is.

    Raises InvalidData for a name that the flow does not have, and for JSON that is not of the declared type.
    """
    if not changes:
        return Changes()
    inputs = next((fitted(record, plan) for record in timeline.records if record[0] == t.INPUT), Inputs())
    parts, takes, pins = list(inputs.parts), list(inputs.takes), dict[str, Any]()
    types, taken = dict(_slot_types(plan)), [slot.name for slot in plan.takes]
    for name, given in changes.items():
        at = _part_at(plan, name)
        if name in plan.slots:
            value = _read(name, given, types.get(name, Any))
            if name in taken:
                takes[taken.index(name)] = value
            else:
                pins[name] = value
        elif at is None:
            raise InvalidData([(name, f"is no slot or input of flow {plan.flow!r}; {_near(plan, name)}")])
        else:
            parts[at] = _read(name, given, plan.parts[at].type)
    return Changes(attrs.evolve(inputs, parts=parts, takes=takes), pins)


def pinned(plan: Plan, pins: Mapping[str, Any]) -> Plan:
    """The plan with steps that write these values to these slots.

    Such a step runs as ever, and asks for what it asks for; but what it wrote, or that it failed instead of writing,
    is not what counts: "what if the cart had been found?" One that writes several slots keeps its failure.
    """
    return attrs.evolve(plan, line=_pinned_line(plan.line, pins)) if pins else plan


def writers(plan: Plan, slots: Collection[str]) -> tuple[str, ...]:
    """The steps that write these slots."""
    nodes = steps_in(plan.line)
    return tuple(n.name for n in nodes if any(write.slot.name in slots for write in n.step.signature.writes))


def _pinned_line(line: Line, pins: Mapping[str, Any]) -> Line:
    return tuple(_pinned_node(node, pins) for node in line)


def _pinned_node(node: Node, pins: Mapping[str, Any]) -> Node:
    if isinstance(node, StepNode):
        wanted = [pins.get(write.slot.name, _AS_IT_IS) for write in node.step.signature.writes]
        return node if all(one is _AS_IT_IS for one in wanted) else _pinned_step(node, wanted)
    if isinstance(node, BranchNode):
        return attrs.evolve(node, then=_pinned_line(node.then, pins), otherwise=_pinned_line(node.otherwise, pins))
    if isinstance(node, BlockNode):
        return attrs.evolve(node, line=_pinned_line(node.line, pins))
    if isinstance(node, ForkNode | DagNode):
        return attrs.evolve(node, lines=tuple(_pinned_line(line, pins) for line in node.lines))
    return node


def _pinned_step(node: StepNode, wanted: list[Any]) -> StepNode:
    several, call = node.write == -2, node.call

    def written(answer: Any) -> Any:
        if isinstance(answer, Done):
            return answer
        if isinstance(answer, Need):
            return attrs.evolve(answer, resume=lambda value: written(answer.resume(value)))
        if isinstance(answer, Pause):
            resume = answer.resume or (lambda value: value)
            return attrs.evolve(answer, resume=lambda value: written(resume(value)))
        if isinstance(answer, Insert | Replace):
            return attrs.evolve(answer, value=written(answer.value))
        if isinstance(answer, Continue):
            return written(answer.value)
        if not several:
            return wanted[0]
        if isinstance(answer, tuple) and len(answer) == len(wanted):
            return tuple(mine if other is _AS_IT_IS else other for mine, other in zip(answer, wanted, strict=True))
        return answer

    def plain(cells: Cells) -> Any:
        return written(call(cells))

    async def waiting(cells: Cells) -> Any:
        try:
            answer = await call(cells)
        except EffectError:
            if several:
                raise
            return wanted[0]
        return written(answer)

    return StepNode(node.step, node.name, waiting if node.is_async else plain, node.writes)


def input_name(read: PartRead) -> str:
    """What an input is called: `header.authorization`, `body`."""
    return "body" if read.part.source == "body" else f"{read.part.source}.{read.name}"


def type_name(type_: Any) -> str:
    """A type in a message."""
    return getattr(type_, "__name__", None) or str(type_).replace("typing.", "")


def _read(name: str, given: object, type_: Any) -> Any:
    if not isinstance(given, bytes):
        return given
    try:
        return decode_json(given, type_, name)
    except InvalidData as bad:
        declared = f"{name} is declared as {type_name(type_)}"
        raise InvalidData([(where, f"{what}; {declared}") for where, what in bad.problems]) from bad
    except TypeError as error:  # a class that JSON has no form for, as a whole request
        raise InvalidData([(name, f"is declared as {type_name(type_)}, which JSON cannot say")]) from error


def _part_at(plan: Plan, name: str) -> int | None:
    source, _, rest = name.partition(".")
    of_source = [at for at, read in enumerate(plan.parts) if read.part.source == source]
    if not rest:
        return of_source[0] if len(of_source) == 1 else None
    alike = {rest, rest.lower().replace("-", "_"), rest.lower().replace("_", "-")}
    return next((at for at in of_source if plan.parts[at].name in alike or plan.parts[at].name.lower() in alike), None)


def _slot_types(plan: Plan) -> Iterator[tuple[str, Any]]:
    """What steps say about slots; who writes one has the last word."""
    nodes = list(steps_in(plan.line))
    for node in nodes:
        for read in node.step.signature.reads:
            if isinstance(read, SlotRead):
                yield read.slot.name, read.type
    for node in nodes:
        for write in node.step.signature.writes:
            yield write.slot.name, write.type | None if write.optional else write.type


def _near(plan: Plan, name: str) -> str:
    known = sorted({*plan.slots, *map(input_name, plan.parts)})
    near = get_close_matches(name, known, 3, 0.6)
    return f"near are: {', '.join(near)}" if near else f"it has: {', '.join(known) or 'none'}"
