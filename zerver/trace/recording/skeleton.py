"""Skeletons: a plan as data, and back as a plan that says everything and can do nothing.

Law: what a plan says of itself is kept (its nodes in their order, what each step reads and writes, where it stands in
the code); what it does is not. A plan is written once, however many runs it has.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from inspect import Parameter
from types import NoneType
from typing import Any, Final, get_args, get_origin

import attrs
import msgspec

from zerver.core.plan import (
    BlockNode,
    BranchNode,
    DagNode,
    ForkNode,
    Line,
    Node,
    PivotNode,
    Plan,
    StepNode,
)
from zerver.core.replan import lines_of
from zerver.core.signatures import DeadlineRead, PartRead, Read, Signature, SlotRead, Write
from zerver.core.slots import Part, Slot
from zerver.core.steps import Step
from zerver.errors import TraceError
from zerver.trace.inert import RECORDED, NamedType, inert_function, type_name

#: The version of what is written here. Another one is refused.
VERSION: Final = 1

Tree = Any


@attrs.frozen(eq=False)
class Skeleton:
    """A plan, written. id: the hash of `body`. numbers: which place each of its nodes has in the order of `nodes_in`;
    by identity, and the plan keeps them alive.
    """

    id: str
    body: bytes
    numbers: Mapping[int, int]


_KNOWN: weakref.WeakKeyDictionary[Plan, Skeleton] = weakref.WeakKeyDictionary()


def skeleton_of(plan: Plan) -> Skeleton:
    """The skeleton of a plan; made at the first look."""
    known = _KNOWN.get(plan)
    if known is None:
        body = msgspec.json.encode(_plan_tree(plan))
        numbers = {id(node): number for number, node in enumerate(nodes_in(plan.line))}
        known = _KNOWN[plan] = Skeleton(plan_id(body), body, numbers)
    return known


def plan_id(body: bytes) -> str:
    """What names a written plan."""
    return hashlib.sha256(body).hexdigest()[:32]


def nodes_in(line: Line) -> Iterator[Node]:
    """Every node of a line, depth first, each before what is inside it."""
    for node in line:
        yield node
        for inner in lines_of(node):
            yield from nodes_in(inner)


# ---- writing --------------------------------------------------------------------------------


def _plan_tree(plan: Plan) -> Tree:
    slots = {cell: name for name, cell in plan.slots.items()}
    return {
        "v": VERSION,
        "flow": plan.flow,
        "line": line_tree(plan.line),
        "size": plan.size,
        "slots": dict(plan.slots),
        "parts": [_read_tree(read) for read in plan.parts],
        "part_cells": plan.part_cells,
        "takes": [_slot_tree(slot) for slot in plan.takes],
        "gives": [cell for cell in plan.gives if cell in slots],
        "secret": sorted(plan.secret),
    }


def line_tree(line: Line) -> Tree:
    """A line, written."""
    return [_node_tree(node) for node in line]


def _node_tree(node: Node) -> Tree:
    if isinstance(node, StepNode):
        return _step_tree(node)
    if isinstance(node, ForkNode):
        return {"is": "fork", "name": node.name, "lines": [line_tree(line) for line in node.lines]}
    if isinstance(node, DagNode):
        lines = [line_tree(line) for line in node.lines]
        return {"is": "dag", "name": node.name, "lines": lines, "needs": node.needs, "unlocks": node.unlocks}
    if isinstance(node, BranchNode):
        then, otherwise = line_tree(node.then), line_tree(node.otherwise)
        return {"is": "branch", "name": node.name, "then": then, "otherwise": otherwise, "timed": node.wants_deadline}
    if isinstance(node, PivotNode):
        return {"is": "pivot", "name": node.name}
    return {"is": "block", "name": node.name, "line": line_tree(node.line), "deadline_ns": node.deadline_ns}


def _step_tree(node: StepNode) -> Tree:
    step, shape = node.step, node.step.signature
    tree: Tree = {
        "is": "step",
        "name": node.name,
        "step": step.name,
        "reads": [_read_tree(read) for read in shape.reads],
        "writes": [{**_slot_tree(w.slot), "type": _hint(w.type), "optional": w.optional} for w in shape.writes],
        "cells": node.writes,
    }
    for flag, said in (("several", shape.several), ("ends", shape.ends), ("async", node.is_async)):
        if said:
            tree[flag] = True
    if step.offload is not None:
        tree["offload"] = step.offload
    function = step.function
    tree["function"] = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    code = getattr(function, "__code__", None)
    if code is not None:
        file = code.co_filename.replace("\\", "/").removeprefix(f"{RECORDED}/")
        tree["at"] = ["/".join(file.split("/")[-2:]), code.co_firstlineno]
    return tree


def _slot_tree(slot: Slot) -> Tree:
    return {"slot": slot.name, "secret": True} if slot.secret else {"slot": slot.name}


def _read_tree(read: Read) -> Tree:
    if isinstance(read, DeadlineRead):
        return {"param": read.param}
    tree: Tree = {"param": read.param, "type": _hint(read.type)}
    if read.optional:
        tree["optional"] = True
    if isinstance(read, SlotRead):
        return {**tree, **_slot_tree(read.slot)}
    if read.default is not Parameter.empty:
        tree["default"] = True
    return {**tree, "part": read.part.source, "name": read.part.name}


def _hint(hint: Any) -> str:
    """A type in a signature, as people write it."""
    if isinstance(hint, NamedType):
        return hint.name
    if hint is Any or hint is object or hint is None or NoneType in get_args(hint):
        return "None" if hint is None else _shown(hint)
    if isinstance(hint, type) and get_origin(hint) is None:
        return type_name(hint)
    return _shown(hint)


def _shown(hint: Any) -> str:
    try:
        text = repr(hint) if not isinstance(hint, type) else type_name(hint)
    except Exception:  # metadata of an Annotated with a repr of its own
        return "?"
    return text.replace("typing.", "")[:300]


# ---- reading --------------------------------------------------------------------------------

#: How deep nodes may nest; hardly any flow is deeper than ten.
_DEEPEST: Final = 60


def read_plan(body: bytes) -> Plan:
    """The inert plan of a written one. Raises TraceError for what is none.

    Kept for the last ones: a store has one for hundreds of runs.
    """
    try:
        return _read_plan(body)
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(f"a plan that cannot be read: {type(error).__name__}") from error


@lru_cache(maxsize=64)
def _read_plan(body: bytes) -> Plan:
    tree = msgspec.json.decode(body)
    if tree["v"] != VERSION:
        raise TraceError(f"a plan of version {tree['v']!r}, and this code reads {VERSION}")
    return Plan(
        flow=_text(tree["flow"]),
        line=read_line(tree["line"]),
        size=_number(tree["size"]),
        slots={_text(name): _number(cell) for name, cell in tree["slots"].items()},
        parts=tuple(_part(read) for read in tree["parts"]),
        part_cells=tuple(map(_number, tree["part_cells"])),
        takes=tuple(_slot(slot) for slot in tree["takes"]),
        gives=tuple(map(_number, tree["gives"])),
        secret=frozenset(map(_text, tree["secret"])),
    )


def read_line(trees: Sequence[Tree], deep: int = 0) -> Line:
    """An inert line of nodes."""
    if deep > _DEEPEST or not isinstance(trees, list):
        raise TraceError("a plan that nests too deeply")
    return tuple(_node(tree, deep + 1) for tree in trees)


def bare_step(name: str, *, several: bool = False) -> Step[..., Any]:
    """A step of which nothing is known but its name."""
    return _made_step(name, Signature((), (), several, False, frozenset()), inert_function(f":{name}"), None)


def _node(tree: Tree, deep: int) -> Node:
    read = _NODES.get(tree["is"])
    if read is None:
        raise TraceError("a plan with a node of no kind")
    return read(tree, _text(tree["name"]), deep)


def _step(tree: Tree, name: str, deep: int) -> Node:
    reads = tuple(_read(read) for read in tree["reads"])
    writes = tuple(Write(_slot(w), _type(w["type"], w), w["optional"] is True) for w in tree["writes"])
    shape = Signature(reads, writes, tree.get("several") is True, tree.get("ends") is True, frozenset())
    file, line = tree.get("at", ("", 0))
    is_async = tree.get("async") is True
    function = inert_function(_text(tree["function"]), _file(file), _number(line), is_async=is_async)
    step = _made_step(_text(tree["step"]), shape, function, tree.get("offload"))
    return StepNode(step, name, function, tuple(map(_number, tree["cells"])))


def _made_step(name: str, shape: Signature, function: Callable[..., Any], offload: Any) -> Step[..., Any]:
    """A Step, past its `__init__`: that reads the signature of a function which is not here."""
    step: Step[..., Any] = object.__new__(Step)
    step.function = function
    step.name = name
    step.offload = offload if offload in ("thread", "process") else None
    step.signature = shape
    step._declared = ()
    step._mentions = ()
    step.__name__ = name
    return step


_NODES: Final[Mapping[str, Callable[[Tree, str, int], Node]]] = {
    "step": _step,
    "fork": lambda tree, name, deep: ForkNode(name, _lines(tree, deep)),
    "dag": lambda tree, name, deep: DagNode(
        name,
        _lines(tree, deep),
        tuple(map(_number, tree["needs"])),
        tuple(tuple(map(_number, line)) for line in tree["unlocks"]),
    ),
    "branch": lambda tree, name, deep: BranchNode(
        name,
        inert_function(f":{name}"),
        tree["timed"] is True,
        read_line(tree["then"], deep),
        read_line(tree["otherwise"], deep),
    ),
    "pivot": lambda tree, name, deep: PivotNode(name),
    "block": lambda tree, name, deep: BlockNode(name, read_line(tree["line"], deep), _number(tree["deadline_ns"])),
}


def _lines(tree: Tree, deep: int) -> tuple[Line, ...]:
    return tuple(read_line(line, deep) for line in tree["lines"])


@attrs.frozen
class RecordedPart(Part):
    """A part of a request, of which its source and name are known."""

    source: str = ""  # type: ignore[misc]  # a class has one source; here each instance stands for another class


def _read(tree: Tree) -> Read:
    if "slot" in tree:
        return SlotRead(_text(tree["param"]), _slot(tree), NamedType(_text(tree["type"])), tree.get("optional") is True)
    return _part(tree) if "part" in tree else DeadlineRead(_text(tree["param"]))


def _part(tree: Tree) -> PartRead:
    name = tree["name"]
    part = RecordedPart(None if name is None else _text(name), _text(tree["part"]))
    default = None if tree.get("default") is True else Parameter.empty
    return PartRead(_text(tree["param"]), part, NamedType(_text(tree["type"])), tree.get("optional") is True, default)


def _slot(tree: Tree) -> Slot:
    return Slot(_text(tree["slot"]), secret=tree.get("secret") is True)


def _type(hint: Any, tree: Tree) -> Any:
    return NamedType(_text(hint))


def _file(file: Any) -> str:
    return "/".join(part for part in _text(file).split("/")[-2:] if part not in ("", ".", ".."))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TraceError("a plan with something else where a text belongs")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TraceError("a plan with something else where a number belongs")
    return value
