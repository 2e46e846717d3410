"""The graph of a flow: what follows what, as Mermaid and as DOT.

Law: a picture is derived, never stored: nodes and edges come from the stages alone, in a stable order.
"""

from __future__ import annotations

import attrs

from zerver.core.check import dag_edges
from zerver.core.stages import Block, Branch, Dag, Parallel, Pivot, Stage
from zerver.core.steps import Step


@attrs.frozen
class Node:
    """id: `n0`, `n1`, … label: what is written in it. shape: "step", "choice" or "point"."""

    id: str
    label: str
    shape: str


@attrs.frozen
class Edge:
    source: str
    target: str
    label: str = ""


@attrs.frozen
class Graph:
    """The nodes and edges of a flow."""

    name: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def mermaid(self) -> str:
        """A Mermaid flowchart, as Markdown viewers draw it."""
        lines = ["flowchart TD"]
        for node in self.nodes:
            text = node.label.replace('"', "&quot;")
            lines.append(
                f"    {node.id}" + {"step": f'["{text}"]', "choice": f'{{"{text}"}}'}.get(node.shape, f'(["{text}"])')
            )
        for edge in self.edges:
            arrow = f"-->|{edge.label}|" if edge.label else "-->"
            lines.append(f"    {edge.source} {arrow} {edge.target}")
        return "\n".join(lines) + "\n"

    def dot(self) -> str:
        """A Graphviz digraph."""
        shapes = {"step": "box", "choice": "diamond", "point": "oval"}
        lines = [f"digraph {_quoted(self.name)} {{"]
        lines += [f"    {n.id} [label={_quoted(n.label)}, shape={shapes[n.shape]}];" for n in self.nodes]
        for edge in self.edges:
            label = f" [label={_quoted(edge.label)}]" if edge.label else ""
            lines.append(f"    {edge.source} -> {edge.target}{label};")
        return "\n".join([*lines, "}"]) + "\n"


def draw(block: Block) -> Graph:
    """The graph of a flow, from its start to its end."""
    pen = _Pen()
    start = pen.node(block.name, "point")
    ends = pen.stages(block.stages, [(start, "")])
    pen.link(ends, pen.node("end", "point"))
    return Graph(block.name, tuple(pen.nodes), tuple(pen.edges))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


#: Where the next stage hangs: node ids with the label of the edge that will leave them.
_Ends = list[tuple[str, str]]


class _Pen:
    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []

    def node(self, label: str, shape: str) -> str:
        self.nodes.append(Node(f"n{len(self.nodes)}", label, shape))
        return self.nodes[-1].id

    def link(self, ends: _Ends, target: str) -> None:
        self.edges += [Edge(source, target, label) for source, label in ends]

    def stages(self, stages: tuple[Stage, ...], ends: _Ends) -> _Ends:
        for stage in stages:
            ends = self.stage(stage, ends)
        return ends

    def stage(self, stage: Stage, ends: _Ends, suffix: str = "") -> _Ends:
        if isinstance(stage, Step):
            node = self.node(stage.name + suffix, "step")
            self.link(ends, node)
            return [(node, "")]
        if isinstance(stage, Pivot):
            return self.stage(stage.stage, ends, " ⟂ pivot")
        if isinstance(stage, Block):
            return self.stages(stage.stages, ends)
        if isinstance(stage, Parallel):
            return [end for member in stage.members for end in self.stage(member, ends)]
        if isinstance(stage, Branch):
            return self.branch(stage, ends)
        return self.dag(stage, ends)

    def branch(self, stage: Branch, ends: _Ends) -> _Ends:
        choice = self.node(f"{stage.predicate.__name__}?", "choice")
        self.link(ends, choice)
        return self.stages(stage.then, [(choice, "yes")]) + self.stages(stage.otherwise, [(choice, "no")])

    def dag(self, stage: Dag, ends: _Ends) -> _Ends:
        needs = dag_edges(stage)
        left: dict[int, _Ends] = {}
        while len(left) < len(needs):
            for number, before in needs.items():
                if number not in left and before <= left.keys():
                    into = [end for i in sorted(before) for end in left[i]] or ends
                    left[number] = self.stage(stage.members[number], into)
        waited_for = set().union(*needs.values())
        return [end for number in sorted(left.keys() - waited_for) for end in left[number]]
