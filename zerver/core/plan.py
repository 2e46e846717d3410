"""Plans: a checked flow, compiled so that the machine has nothing left to look up.

Law: signatures are read here for the last time. Slots and request parts become indexes into one list of cells, a step
becomes a compiled call on that list; a plan is immutable and shared by all runs of its flow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, Final, TypeAlias

import attrs

from zerver.core.check import dag_edges, writes_of
from zerver.core.offload import offloaded
from zerver.core.signatures import DeadlineRead, PartRead, Read, Signature, SlotRead
from zerver.core.slots import Slot
from zerver.core.stages import Block, Branch, Parallel, Pivot, Stage
from zerver.core.steps import Step


class _Unwritten:
    def __repr__(self) -> str:
        return "UNWRITTEN"


#: What a cell holds before its writer has run.
UNWRITTEN: Final[Any] = _Unwritten()

#: The cell that a Deadline parameter reads; the machine fills it just before the call.
DEADLINE_CELL: Final = 0

Cells: TypeAlias = list[Any]


class StepNode:
    """A step, compiled.

    call: from the cells to the step's answer. writes: cell indexes. write: the only index, -1 for none, -2 for several.
    required: whether None is no answer for the only slot.
    """

    __slots__ = ("call", "is_async", "name", "required", "step", "wants_deadline", "write", "writes")

    def __init__(self, step: Step[..., Any], name: str, call: Callable[[Cells], Any], writes: tuple[int, ...]) -> None:
        shape = step.signature
        self.step = step
        self.name = name
        self.call = call
        self.is_async = step.is_async
        self.writes = writes
        self.write = -2 if shape.several else (writes[0] if writes else -1)
        self.required = bool(shape.writes) and not shape.several and not shape.writes[0].none_fits
        self.wants_deadline = shape.wants_deadline

    def put(self, cells: Cells, answer: Any) -> str:
        """Write a value to its cells. What is wrong with one that does not fit them; "" when it fits."""
        if self.write >= 0 and (answer is not None or not self.required):
            cells[self.write] = answer
        elif self.write == -2 and isinstance(answer, tuple) and len(answer) == len(self.writes):
            for cell, value, write in zip(self.writes, answer, self.step.signature.writes, strict=True):
                if value is None and not write.none_fits:
                    return f"step {self.name!r} gave None for slot {write.slot.name!r}"
                cells[cell] = value
        elif not (self.write == -1 and answer is None):
            return f"step {self.name!r} answered {answer!r}, which its annotation does not say"
        return ""

    def __repr__(self) -> str:
        return f"<{self.name}>"


@attrs.frozen(eq=False)
class ForkNode:
    """Lines of nodes that run at once."""

    name: str
    lines: tuple[Line, ...]


@attrs.frozen(eq=False)
class DagNode:
    """Lines of nodes with edges: needs[i] is how many lines must end before line i, unlocks[i] whom its end serves."""

    name: str
    lines: tuple[Line, ...]
    needs: tuple[int, ...]
    unlocks: tuple[tuple[int, ...], ...]


@attrs.frozen(eq=False)
class BranchNode:
    """A pure question, and the line for each answer."""

    name: str
    ask: Callable[[Cells], bool]
    wants_deadline: bool
    then: Line
    otherwise: Line


@attrs.frozen(eq=False)
class PivotNode:
    """The point of no return."""

    name: str


@attrs.frozen(eq=False)
class BlockNode:
    """A nested flow with a deadline of its own, in nanoseconds."""

    name: str
    line: Line
    deadline_ns: int


Node: TypeAlias = StepNode | ForkNode | DagNode | BranchNode | PivotNode | BlockNode
Line: TypeAlias = tuple[Node, ...]


@attrs.frozen(eq=False)
class Plan:
    """A flow ready to run.

    slots: the cell of each slot. parts: what the edge must bring, in the order of `part_cells`. takes: slots the caller
    brings, those of the before-chain excepted. gives: cells whose values are the result when no step returns Done.
    """

    flow: str
    line: Line
    size: int
    slots: Mapping[str, int]
    parts: tuple[PartRead, ...]
    part_cells: tuple[int, ...]
    takes: tuple[Slot, ...]
    gives: tuple[int, ...]
    secret: frozenset[str]

    def written(self, cells: Cells) -> dict[str, Any]:
        """What the slots hold that were written, by name."""
        return {name: cells[cell] for name, cell in self.slots.items() if cells[cell] is not UNWRITTEN}

    def given(self, cells: Cells) -> object:
        """What the flow gives when no step returned Done; a slot that no step came to write is None."""
        values = [None if cells[cell] is UNWRITTEN else cells[cell] for cell in self.gives]
        return values[0] if len(values) == 1 else tuple(values) or None


def compile_plan(block: Block, before: Sequence[Stage] = ()) -> Plan:
    """The plan of a checked flow behind a before-chain."""
    builder = PlanBuilder()
    for slot, _ in (*block.takes, *block.gives):
        builder.cell(slot)
    brought = {name for stage in before for name in writes_of(stage)}
    line = builder.line((*before, *block.stages))
    return Plan(
        flow=block.name,
        line=line,
        size=builder.size,
        slots=builder.slots,
        parts=tuple(builder.parts),
        part_cells=tuple(builder.part_cells),
        takes=tuple(slot for slot, _ in block.takes if slot.name not in brought),
        gives=tuple(builder.slots[slot.name] for slot, _ in block.gives),
        secret=frozenset(builder.secret),
    )


class PlanBuilder:
    """Gives out cells and compiles stages. A run that changes its plan continues with a builder of its own."""

    def __init__(self, plan: Plan | None = None, names: Mapping[str, int] | None = None) -> None:
        self.slots: dict[str, int] = dict(plan.slots) if plan else {}
        self.parts: list[PartRead] = list(plan.parts) if plan else []
        self.part_cells: list[int] = list(plan.part_cells) if plan else []
        self.secret: set[str] = set(plan.secret) if plan else set()
        self.size = plan.size if plan else DEADLINE_CELL + 1
        self.names: dict[str, int] = dict(names or {})

    def cell(self, slot: Slot) -> int:
        if slot.secret:
            self.secret.add(slot.name)
        if slot.name not in self.slots:
            self.slots[slot.name] = self._new_cell()
        return self.slots[slot.name]

    def line(self, stages: Sequence[Stage]) -> Line:
        return tuple(node for stage in stages for node in self._nodes(stage))

    def _new_cell(self) -> int:
        self.size += 1
        return self.size - 1

    def _part_cell(self, read: PartRead) -> int:
        wanted = (read.part, read.name, read.type, read.default, read.optional)
        for known, cell in zip(self.parts, self.part_cells, strict=True):
            if (known.part, known.name, known.type, known.default, known.optional) == wanted:
                return cell
        self.parts.append(read)
        self.part_cells.append(self._new_cell())
        return self.part_cells[-1]

    def _cell_of(self, read: Read) -> int:
        if isinstance(read, SlotRead):
            return self.cell(read.slot)
        return DEADLINE_CELL if isinstance(read, DeadlineRead) else self._part_cell(read)

    def _nodes(self, stage: Stage) -> Line:
        if isinstance(stage, Step):
            return (self._step(stage),)
        if isinstance(stage, Pivot):
            return (*self._nodes(stage.stage), PivotNode(stage.name))
        if isinstance(stage, Block):
            line = self.line(stage.stages)
            return line if stage.deadline is None else (BlockNode(stage.name, line, int(stage.deadline * 1e9)),)
        if isinstance(stage, Branch):
            ask = self._call(stage.predicate, stage.signature)
            timed = stage.signature.wants_deadline
            return (BranchNode(stage.name, ask, timed, self.line(stage.then), self.line(stage.otherwise)),)
        lines = tuple(self._nodes(member) for member in stage.members)
        if isinstance(stage, Parallel):
            return (ForkNode(stage.name, lines),)
        edges = dag_edges(stage)
        unlocks = tuple(tuple(later for later, before in edges.items() if i in before) for i in edges)
        return (DagNode(stage.name, lines, tuple(len(edges[i]) for i in edges), unlocks),)

    def _step(self, step: Step[..., Any]) -> StepNode:
        writes = tuple(self.cell(write.slot) for write in step.signature.writes)
        count = self.names[step.name] = self.names.get(step.name, 0) + 1
        name = step.name if count == 1 else f"{step.name}#{count}"
        function = step.function if step.offload is None else offloaded(step)
        return StepNode(step, name, self._call(function, step.signature), writes)

    def _call(self, function: Callable[..., Any], shape: Signature) -> Callable[[Cells], Any]:
        perhaps = any(isinstance(read, SlotRead) and read.optional for read in shape.reads)
        return compile_call(function, [self._cell_of(read) for read in shape.reads], perhaps)


def compile_call(function: Callable[..., Any], cells: Sequence[int], perhaps: bool = False) -> Callable[[Cells], Any]:
    """A function of the cells that calls `function` with the values at these indexes.

    perhaps: some of the cells may be unwritten, which the function sees as None.
    The small arities are spelled out: building an argument list costs as much as the call itself.
    """
    if perhaps:
        picked, call = tuple(cells), compile_call(function, range(len(cells)))
        return lambda values: call([None if values[i] is UNWRITTEN else values[i] for i in picked])
    named = [p.name for p in signature(function).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    if named:
        split = len(cells) - len(named)
        plain, keyed = tuple(cells[:split]), tuple(zip(named, cells[split:], strict=True))
        return lambda values: function(*[values[i] for i in plain], **{name: values[i] for name, i in keyed})
    if not cells:
        return lambda values: function()
    if len(cells) == 1:
        (only,) = cells
        return lambda values: function(values[only])
    if len(cells) == 2:
        first, second = cells
        return lambda values: function(values[first], values[second])
    if len(cells) == 3:
        one, two, three = cells
        return lambda values: function(values[one], values[two], values[three])
    indexes = tuple(cells)
    return lambda values: function(*[values[i] for i in indexes])
