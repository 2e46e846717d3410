"""Drawings: the graph of the plan that a run was begun with, and what the run did at each of its nodes.

Law: nodes and edges come from the plan in the run's own records, so a run out of a file is drawn as one in memory; the
times come from its spans, so a picture and a waterfall cannot disagree. Steps that a step put into the plan hang on it.
Linear in the plan and the records.

The shape is that of `zerver.core.graph`, which draws stages; a plan has no stages any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zerver.core import timeline as t
from zerver.core.plan import BlockNode, BranchNode, DagNode, ForkNode, Line, Node, PivotNode, Plan, StepNode
from zerver.trace.bars import Span
from zerver.trace.facts import Facts, StepFacts
from zerver.trace.veil import escaped

#: Where the next node hangs: ids with the label of the edge that will leave them.
_Ends = list[tuple[str, str]]

_ACCOUNTS = ("cpu", "io", "turn", "parked")


def drawing(plan: Plan | None, facts: Facts | None = None, spans: Iterable[Span] = ()) -> dict[str, Any]:
    """The graph as {nodes, edges}, as `zerver.trace.view` has it. facts, spans: of the run; none for the bare plan."""
    pen = _Pen(facts, {span.name: span for span in spans if span.kind == "step"})
    if plan is not None:
        start = pen.point(plan.flow, True)
        ends = pen.line(plan.line, [(start, "")])
        pen.link(
            ends, pen.point("end", facts is not None and facts.ending is not None and facts.ending.status == "done")
        )
    pen.inserted()
    return {"nodes": pen.nodes, "edges": pen.edges}


class _Pen:
    def __init__(self, facts: Facts | None, spans: Mapping[str, Span]) -> None:
        self.facts = facts
        self.spans = spans
        self.nodes: list[dict[str, Any]] = []
        self.edges: list[dict[str, Any]] = []
        self.reached: set[str] = set()
        self.chosen: dict[str, str] = {}  # id of a choice -> the label of the edge that was taken
        self.drawn: dict[str, str] = {}  # a step's name -> its id
        records = () if facts is None else facts.timeline.records
        self.answers = {subject.name: detail for kind, _, subject, detail in records if kind == t.BRANCH}

    # -- the plan --

    def line(self, line: Line, ends: _Ends) -> _Ends:
        for node in line:
            ends = self.hang(node, ends)
        return ends

    def hang(self, node: Node, ends: _Ends) -> _Ends:
        if isinstance(node, StepNode):
            made = self.step(node)
            self.link(ends, made)
            return [(made, "")]
        if isinstance(node, PivotNode):
            for made, _ in ends:
                self.nodes[int(made[1:])]["pivot"] = True
            return ends
        if isinstance(node, BlockNode):
            return self.line(node.line, ends)
        if isinstance(node, ForkNode):
            return [end for line in node.lines for end in self.line(line, ends)]
        if isinstance(node, BranchNode):
            return self.branch(node, ends)
        return self.dag(node, ends)

    def branch(self, node: BranchNode, ends: _Ends) -> _Ends:
        answer = self.answers.get(node.name)
        choice = self.node(node.name, "choice", answer is not None)
        if answer is not None:
            self.chosen[choice] = "yes" if answer else "no"
            self.nodes[-1]["status"] = "ok"
        self.link(ends, choice)
        return self.line(node.then, [(choice, "yes")]) + self.line(node.otherwise, [(choice, "no")])

    def dag(self, node: DagNode, ends: _Ends) -> _Ends:
        before: list[list[int]] = [[] for _ in node.lines]
        for earlier, unlocked in enumerate(node.unlocks):
            for later in unlocked:
                before[later].append(earlier)
        left: dict[int, _Ends] = {}
        ready = [number for number, needs in enumerate(before) if not needs]
        missing = [len(needs) for needs in before]
        for number in ready:  # grows while it is walked
            into = [end for earlier in before[number] for end in left[earlier]] or ends
            left[number] = self.line(node.lines[number], into)
            for later in node.unlocks[number]:
                missing[later] -= 1
                if not missing[later]:
                    ready.append(later)
        return [end for number in left if not node.unlocks[number] for end in left[number]]

    # -- what steps put into it --

    def inserted(self) -> None:
        """Steps that ran and are not of the plan, in a chain behind the step that asked for them."""
        if self.facts is None:
            return
        for kind, _, by, detail in self.facts.timeline.records:
            if kind != t.PLAN:
                continue
            at = self.drawn.get(by.name)
            label = "inserted" if detail[0] == "insert" else "instead"
            for name in detail[1]:
                known = self.facts.steps.get(name)
                if known is None or known.node is None or name in self.drawn:
                    continue
                made = self.step(known.node)
                if at is not None:
                    self.link([(at, label)], made)
                at, label = made, ""
        for name, known in self.facts.steps.items():
            if name not in self.drawn and known.node is not None:
                self.step(known.node)

    # -- nodes and edges --

    def link(self, ends: _Ends, target: str) -> None:
        for source, label in ends:
            taken = source in self.reached and target in self.reached and self.chosen.get(source, label) == label
            self.edges.append({"source": source, "target": target, "label": label, "taken": taken})

    def point(self, label: str, reached: bool) -> str:
        return self.node(label, "point", reached and self.facts is not None)

    def node(self, label: str, shape: str, reached: bool) -> str:
        made = f"n{len(self.nodes)}"
        if reached:
            self.reached.add(made)
        self.nodes.append(
            {"id": made, "label": escaped(label), "shape": shape, "step": None, "pivot": False, **_NOTHING}
        )
        return made

    def step(self, node: StepNode) -> str:
        known = None if self.facts is None else self.facts.steps.get(node.name)
        made = self.node(node.name, "step", known is not None and known.began is not None)
        signature = node.step.signature
        drawn = self.nodes[-1]
        drawn["step"] = node.name
        drawn["reads"] = [read.slot.name for read in signature.slots]
        drawn["writes"] = [write.slot.name for write in signature.writes]
        if known is not None and known.began is not None and self.facts is not None:
            drawn |= _times(self.facts, known, self.spans.get(node.name))
        self.drawn[node.name] = made
        return made


_NOTHING: Mapping[str, Any] = {
    "reads": (), "writes": (), "status": None, "began_ns": None, "ended_ns": None, "took_ns": None, "cpu_ns": None,
    "io_ns": None, "turn_ns": None, "parked_ns": None, "effects": 0, "attempts": 0,
}  # fmt: skip


def _times(facts: Facts, step: StepFacts, span: Span | None) -> dict[str, Any]:
    sums: dict[str, int] = dict.fromkeys(_ACCOUNTS, 0)
    for account, began, ended in () if span is None else span.segments:
        sums[account] = sums.get(account, 0) + ended - began
    return {
        "status": _status(facts, step),
        "began_ns": None if step.began is None else step.began - facts.began,
        "ended_ns": None if step.ended is None else step.ended - facts.began,
        "took_ns": facts.took(step),
        **{f"{account}_ns": sums[account] for account in _ACCOUNTS},
        "effects": len(step.calls),
        "attempts": len(step.calls) + step.count("retries") + step.count("hedges"),
    }


def _status(facts: Facts, step: StepFacts) -> str:
    if step.ended is None and not facts.over:
        return "waiting" if step.parked_at is not None else "running"
    if step.ended is None or step.cut:
        return "cut"
    return "ok" if step.ok else "failed"
