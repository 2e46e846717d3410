"""Graphs: to the letter for one flow of every shape; connected for all of them."""

from __future__ import annotations

from typing import Annotated

from hypothesis import HealthCheck, given, settings

from tests.core.strategies import DrawFlow, flows
from zerver import Flow, Slot, branch, dag, parallel, pivot, step

A = Annotated[int, Slot("a")]


@step
def load() -> A:
    return 1


@step
def use(a: A) -> None: ...


@step
def log() -> None: ...


def big(a: A) -> bool:
    return a > 1


FLOW = Flow('shop "1"', [dag(use, load, log), branch(big, parallel(log, use)), pivot(log)])


def test_mermaid() -> None:
    assert FLOW.graph().mermaid() == (
        "flowchart TD\n"
        '    n0(["shop &quot;1&quot;"])\n'
        '    n1["load"]\n'
        '    n2["log"]\n'
        '    n3["use"]\n'
        '    n4{"big?"}\n'
        '    n5["log"]\n'
        '    n6["use"]\n'
        '    n7["log ⟂ pivot"]\n'
        '    n8(["end"])\n'
        "    n0 --> n1\n"
        "    n0 --> n2\n"
        "    n1 --> n3\n"
        "    n3 --> n4\n"
        "    n2 --> n4\n"
        "    n4 -->|yes| n5\n"
        "    n4 -->|yes| n6\n"
        "    n5 --> n7\n"
        "    n6 --> n7\n"
        "    n4 -->|no| n7\n"
        "    n7 --> n8\n"
    )


def test_dot() -> None:
    text = FLOW.graph().dot()
    assert text.startswith('digraph "shop \\"1\\"" {\n    n0 [label="shop \\"1\\"", shape=oval];\n')
    assert '    n4 [label="big?", shape=diamond];\n' in text
    assert '    n4 -> n5 [label="yes"];\n' in text
    assert text.endswith("    n7 -> n8;\n}\n")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(flows())
def test_every_node_lies_between_start_and_end(flow: DrawFlow) -> None:
    graph = flow.build().graph()
    start, end = graph.nodes[0].id, graph.nodes[-1].id
    for at, forward in ((start, True), (end, False)):
        seen, todo = {at}, [at]
        while todo:
            node = todo.pop()
            for edge in graph.edges:
                near, far = (edge.source, edge.target) if forward else (edge.target, edge.source)
                if near == node and far not in seen:
                    seen.add(far)
                    todo.append(far)
        assert seen == {node.id for node in graph.nodes}
