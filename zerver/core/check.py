"""The checker: follows every path of a flow before the first request does.

Law: it walks stages with what is known to be written, possibly written, and read, and raises DefinitionError at the
first thing that cannot work: flow, stage and slot on the first line, the cure on the second. It runs no step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from zerver.core.discover import Mention
from zerver.core.signatures import SlotRead
from zerver.core.slots import Slot
from zerver.core.stages import Block, Branch, Dag, Parallel, Pivot, Stage
from zerver.core.steps import Step
from zerver.errors import DefinitionError


@attrs.define
class WrittenSlots:
    """What is known at one point of a path.

    sure: slots written on every path to here. maybe: on some path, or written as None; with the reason.
    """

    sure: set[str] = attrs.field(factory=set)
    maybe: dict[str, str] = attrs.field(factory=dict)

    def copy(self) -> WrittenSlots:
        return WrittenSlots(set(self.sure), dict(self.maybe))

    def add(self, slot: str, why_maybe: str | None) -> None:
        if why_maybe is None:
            self.sure.add(slot)
            self.maybe.pop(slot, None)
        elif slot not in self.sure:
            self.maybe[slot] = why_maybe

    def __contains__(self, slot: str) -> bool:
        return slot in self.sure or slot in self.maybe


def check_flow(block: Block, before: Sequence[Stage] = ()) -> None:
    """Check a flow. before: the chain it will run behind, which writes what the flow takes. Raises DefinitionError."""
    checker = _Checker(block.name, (*before, *block.stages))
    checker.learn_types(block.takes)
    checker.learn_types(block.gives)
    written = WrittenSlots() if before else WrittenSlots({slot.name for slot, _ in block.takes})
    ended = checker.sequence(before, written)
    if before:
        checker.takes("the flow", block, written)
    for slot, _ in block.takes:
        checker.writers.setdefault(slot.name, "the caller")
    checker.sequence(block.stages, written, before[-1].name if ended else "")
    for slot, _ in block.gives:
        if slot.name not in written:
            raise checker.error(
                f"gives slot {slot.name!r}, but no step writes it",
                checker.cure_missing(slot.name),
            )
    checker.no_dead_slots({slot.name for slot, _ in block.gives}, exempt=before)
    check_deadlines(block)


def check_insertion(
    flow: str, stages: Sequence[Stage], written: WrittenSlots, taken: Mapping[str, str], steps: Iterable[Step[..., Any]]
) -> None:
    """Check stages that a running step inserts.

    taken: slots that have, or will have, a writer. steps: those of the flow, which say what type each slot has.
    """
    checker = _Checker(flow, stages)
    for step in steps:
        for read in step.signature.slots:
            checker.same_type(read.slot, read.type, step.name)
        for write in step.signature.writes:
            checker.same_type(write.slot, write.type, step.name)
    checker.writers.update(taken)
    checker.sequence(stages, written)


class _Checker:
    """One walk over one flow."""

    def __init__(self, flow: str, stages: Sequence[Stage]) -> None:
        self.flow = flow
        self.stages = stages
        self.types: dict[str, tuple[Any, str]] = {}
        self.writers: dict[str, str] = {}
        self.read: set[str] = set()

    def error(self, problem: str, cure: str) -> DefinitionError:
        return DefinitionError(f"flow {self.flow!r}: {problem}", cure)

    # -- the walk --

    def sequence(self, stages: Sequence[Stage], written: WrittenSlots, ended_by: str = "") -> bool:
        """Walk stages one after another; True when every path through them ends the run."""
        for stage in stages:
            if ended_by:
                raise self.error(
                    f"stage {stage.name!r} can never run: {ended_by!r} before it always ends the run",
                    f"let {ended_by!r} return something else on some path, or remove {stage.name!r}",
                )
            if self.stage(stage, written):
                ended_by = stage.name
        return bool(ended_by)

    def stage(self, stage: Stage, written: WrittenSlots) -> bool:
        if isinstance(stage, Step):
            return self.step(stage, written)
        if isinstance(stage, Pivot):
            return self.stage(stage.stage, written)
        if isinstance(stage, Parallel):
            return self.parallel(stage, written)
        if isinstance(stage, Branch):
            return self.branch(stage, written)
        if isinstance(stage, Dag):
            ends = [self.stage(member, written) for member in dag_order(self.flow, stage)]
            return any(ends)
        return self.nested(stage, written)

    def step(self, step: Step[..., Any], written: WrittenSlots) -> bool:
        where = f"step {step.name!r}"
        self.reads(where, step.name, step.signature.slots, written)
        for write in step.signature.writes:
            self.same_type(write.slot, write.type, step.name)
            other = self.writers.get(write.slot.name)
            if other is not None:
                raise self.error(
                    f"slot {write.slot.name!r} is written by {other!r} and by {step.name!r}",
                    "a slot has exactly one writer: let one of them write a slot of its own",
                )
            self.writers[write.slot.name] = step.name
            written.add(write.slot.name, f"step {step.name!r} may write None to it" if write.optional else None)
        self.effects(where, step)
        return step.signature.ends

    def reads(self, where: str, name: str, reads: Sequence[SlotRead], written: WrittenSlots) -> None:
        for read in reads:
            slot = read.slot.name
            self.same_type(read.slot, read.type, name)
            self.read.add(slot)
            if slot in written.sure or (read.optional and slot in written.maybe):
                continue
            if slot in written.maybe:
                raise self.error(
                    f"{where} reads slot {slot!r}, which may be unwritten: {written.maybe[slot]}",
                    f"read it as `{read.param}: … | None`",
                )
            raise self.error(
                f"{where} reads slot {slot!r}, but no earlier step writes it", self.cure_missing(slot, name)
            )

    def parallel(self, stage: Parallel, written: WrittenSlots) -> bool:
        start, ends = written.copy(), False
        for member in stage.members:
            inside = start.copy()
            ends = self.stage(member, inside) or ends
            for slot in inside.sure - start.sure:
                written.add(slot, None)
            for slot, why in inside.maybe.items():
                written.add(slot, why)
        return ends

    def branch(self, stage: Branch, written: WrittenSlots, around: tuple[Branch, ...] = ()) -> bool:
        where = f"predicate {stage.predicate.__name__!r}"
        self.reads(where, stage.predicate.__name__, stage.signature.slots, written)
        self.reachable(stage)
        outside = dict(self.writers)
        ways: list[WrittenSlots] = []
        ends: list[bool] = []
        writers: dict[str, str] = {}
        for stages in (stage.then, stage.otherwise):
            self.writers = dict(outside)  # the two ways exclude each other, so both may write one slot
            way = written.copy()
            ends.append(self.sequence(stages, way))
            ways.append(way)
            writers |= self.writers
        self.writers = writers
        live = [way for way, ended in zip(ways, ends, strict=True) if not ended] or ways
        for slot in set().union(*(way.sure | set(way.maybe) for way in live)):
            everywhere = all(slot in way.sure for way in live)
            why = f"not every way of branch {stage.predicate.__name__!r} writes it"
            reasons = [way.maybe[slot] for way in live if slot in way.maybe]
            written.add(slot, None if everywhere else (reasons or [why])[0])
        return all(ends)

    def reachable(self, stage: Branch) -> None:
        """A way that asks the same question again can only be answered one way."""
        if stage.signature.wants_deadline:
            return  # time alone may change the answer
        for stages, side in ((stage.then, "otherwise"), (stage.otherwise, "then")):
            for inner in branches_of(stages):
                if inner.predicate is stage.predicate:
                    raise self.error(
                        f"branch {stage.predicate.__name__!r} asks the same again inside: "
                        f"its inner {side!r} can never run",
                        "remove the inner branch and keep the way that can run",
                    )

    def nested(self, block: Block, written: WrittenSlots) -> bool:
        for slot, type_ in (*block.takes, *block.gives):
            self.same_type(slot, type_, block.name)
        self.takes(f"nested flow {block.name!r}", block, written)
        self.read.update(slot.name for slot, _ in block.gives)  # given to whoever nests it, who need not want it
        return self.sequence(block.stages, written)

    # -- single laws --

    def takes(self, where: str, block: Block, written: WrittenSlots) -> None:
        for slot, _ in block.takes:
            self.read.add(slot.name)
            if slot.name in written.maybe:
                raise self.error(
                    f"{where} takes slot {slot.name!r}, which may be unwritten: {written.maybe[slot.name]}",
                    f"write {slot.name!r} on every path to {block.name!r}",
                )
            if slot.name not in written.sure:
                raise self.error(
                    f"{where} takes slot {slot.name!r}, but no earlier step writes it",
                    self.cure_missing(slot.name, block.name),
                )

    def same_type(self, slot: Slot, type_: Any, by: str) -> None:
        known = self.types.setdefault(slot.name, (type_, by))
        if known[0] != type_:
            raise self.error(
                f"slot {slot.name!r} is {_name(known[0])} to {known[1]!r} and {_name(type_)} to {by!r}",
                "define one alias for the slot and use it in both places",
            )

    def learn_types(self, slots: Sequence[tuple[Slot, Any]]) -> None:
        for slot, type_ in slots:
            self.same_type(slot, type_, self.flow)

    def effects(self, where: str, step: Step[..., Any]) -> None:
        for mention in step.mentions:
            kind = mention.kind
            retries = mention.policy.get("retries")
            if retries and kind.access == "write" and not kind.takes_key and not kind.exact:
                raise self.error(
                    f"{where} retries the write {kind.name!r}, but its handler takes no key",
                    "give the handler a parameter `key: IdempotencyKey` and send it along, or drop the retries",
                )
            if mention.compensated and kind.access == "read":
                raise self.error(
                    f"{where} compensates {kind.name!r}, which is a read",
                    'drop .compensate(), or declare the kind with access="write"',
                )

    def no_dead_slots(self, given: set[str], exempt: Sequence[Stage]) -> None:
        free = {write.slot.name for step in steps_of(exempt) for write in step.signature.writes}
        for slot, writer in self.writers.items():
            if slot not in self.read | given | free and writer != "the caller":
                raise self.error(
                    f"slot {slot!r}, written by {writer!r}, is read by nobody",
                    f"read it, name it in gives=[…], or let {writer!r} write nothing",
                )

    def cure_missing(self, slot: str, before: str = "") -> str:
        """before: who needs the slot; nobody in particular when the flow gives it."""
        later = [step.name for step in steps_of(self.stages) if _writes(step, slot)]
        if later and before:
            return f"move {later[0]!r}, which writes {slot!r}, before {before!r}"
        able = sorted({name for step in steps_of(self.stages) for name in _neighbours_writing(step, slot)})
        cure = f"add a step that writes {slot!r}" + (f" before {before!r}" if before else "")
        return cure + (f"; these steps can: {', '.join(able)}" if able else ", or name it in takes=[…]")


# ---- deadlines ------------------------------------------------------------------------------


def check_deadlines(block: Block) -> None:
    """Deadlines and timeouts that cannot add up: something inside waits longer than what is around it allows."""
    for inner in blocks_of(block.stages):
        if inner.deadline is not None and block.deadline is not None and inner.deadline > block.deadline:
            raise DefinitionError(
                f"flow {block.name!r}: nested flow {inner.name!r} has a deadline of {inner.deadline:g} s, "
                f"but {block.deadline:g} s are all there is",
                f"shorten it, or give {block.name!r} a deadline of {inner.deadline:g} s or more",
            )
    for step in steps_of(block.stages):
        for mention in step.mentions:
            _check_timeout(block, step, mention)


def _check_timeout(block: Block, step: Step[..., Any], mention: Mention) -> None:
    if mention.handed_on:  # a compensation has the undo deadline, which begins when the run's own is over
        return
    own = mention.kind.policy.timeout if mention.kind.policy is not None else None
    timeout = mention.policy.get("timeout", own)
    if timeout is not None and block.deadline is not None and timeout > block.deadline:
        raise DefinitionError(
            f"flow {block.name!r}: step {step.name!r} gives {mention.kind.name!r} a timeout of {timeout:g} s, "
            f"but the flow's deadline is {block.deadline:g} s",
            f"shorten the timeout below {block.deadline:g} s, or lengthen the deadline",
        )
    after = mention.hedge_after
    if timeout is not None and isinstance(after, int | float) and after >= timeout:
        raise DefinitionError(
            f"flow {block.name!r}: step {step.name!r} hedges {mention.kind.name!r} after {after:g} s, "
            f"but its timeout is {timeout:g} s",
            "hedge before the timeout, or not at all",
        )


# ---- walking --------------------------------------------------------------------------------


def steps_of(stages: Iterable[Stage]) -> Iterable[Step[..., Any]]:
    """Every step, depth first, in order of writing."""
    for stage in stages:
        if isinstance(stage, Step):
            yield stage
        else:
            yield from steps_of(children_of(stage))


def blocks_of(stages: Iterable[Stage]) -> Iterable[Block]:
    """Every nested flow, outer before inner."""
    for stage in stages:
        if isinstance(stage, Block):
            yield stage
        if not isinstance(stage, Step):
            yield from blocks_of(children_of(stage))


def branches_of(stages: Iterable[Stage]) -> Iterable[Branch]:
    """Every branch, outer before inner."""
    for stage in stages:
        if isinstance(stage, Branch):
            yield stage
        if not isinstance(stage, Step):
            yield from branches_of(children_of(stage))


def children_of(stage: Stage) -> tuple[Stage, ...]:
    """The stages directly inside a stage."""
    if isinstance(stage, Step):
        return ()
    if isinstance(stage, Pivot):
        return (stage.stage,)
    if isinstance(stage, Branch):
        return (*stage.then, *stage.otherwise)
    return stage.stages if isinstance(stage, Block) else stage.members


def reads_of(stage: Stage) -> set[str]:
    """Slots that a stage reads and does not write itself."""
    if isinstance(stage, Step):
        return {read.slot.name for read in stage.signature.slots}
    own: set[str] = set()
    if isinstance(stage, Branch):
        own = {read.slot.name for read in stage.signature.slots}
    elif isinstance(stage, Block):
        own = {slot.name for slot, _ in stage.takes}
    inside = [reads_of(child) for child in children_of(stage)]
    return own.union(*inside) - writes_of(stage)


def writes_of(stage: Stage) -> set[str]:
    """Slots that a stage writes on some path."""
    return {write.slot.name for step in steps_of((stage,)) for write in step.signature.writes}


def dag_edges(dag: Dag) -> dict[int, set[int]]:
    """For each member number, the numbers of the members it must wait for."""
    writer = {slot: i for i, member in enumerate(dag.members) for slot in writes_of(member)}
    numbers = {id(member): i for i, member in enumerate(dag.members)}
    edges: dict[int, set[int]] = {}
    for i, member in enumerate(dag.members):
        edges[i] = {writer[slot] for slot in reads_of(member) if slot in writer and writer[slot] != i}
        edges[i] |= {numbers[id(earlier)] for earlier in dag.after.get(member, ())}
    return edges


def dag_order(flow: str, dag: Dag) -> list[Stage]:
    """The members in an order that respects the edges. Raises DefinitionError for a cycle, naming it."""
    edges = dag_edges(dag)
    done: list[int] = []
    while len(done) < len(edges):
        ready = [i for i, needs in edges.items() if i not in done and needs <= set(done)]
        if not ready:
            path = _cycle({i: needs - set(done) for i, needs in edges.items() if i not in done})
            names = " → ".join(repr(dag.members[i].name) for i in path)
            raise DefinitionError(
                f"flow {flow!r}: the dag has a cycle: {names}",
                "let one of them read something that is written before the dag",
            )
        done += ready
    return [dag.members[i] for i in done]


def _cycle(edges: Mapping[int, set[int]]) -> list[int]:
    at = next(iter(edges))
    path: list[int] = []
    while at not in path:
        path.append(at)
        at = min(edges[at])
    return [*path[path.index(at) :], at][::-1]


def _writes(step: Step[..., Any], slot: str) -> bool:
    return any(write.slot.name == slot for write in step.signature.writes)


def _neighbours_writing(step: Step[..., Any], slot: str) -> Iterable[str]:
    """Steps of the module that the given step lives in, which write the slot."""
    module = getattr(step.function, "__globals__", {})
    return [other.name for other in module.values() if isinstance(other, Step) and _writes(other, slot)]


def _name(type_: Any) -> str:
    return getattr(type_, "__name__", None) or str(type_)
