"""Flows: what is kept of them, and what a flow cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from zerver import Flow, step
from zerver.errors import DefinitionError


@step
def a() -> None: ...


@step
def first() -> None: ...


def test_a_flow_keeps_what_it_was_told() -> None:
    flow = Flow("f", [a], before=[first], version="7", owner="payments", priority="batch", deadline=2.0)
    assert flow.stages == (first, a)
    assert (flow.name, flow.version, flow.owner, flow.priority, flow.deadline) == ("f", "7", "payments", "batch", 2.0)
    assert repr(flow) == "<flow f v7, 2 stages>"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"priority": "urgent"}, "flow 'f': priority 'urgent' is unknown\n  choose one of interactive, default, batch"),
        ({"deadline": 0}, "flow 'f': deadline=0"),
        ({"deadline": float("inf")}, "flow 'f': deadline=inf"),
        ({"undo_deadline": -1.0}, "flow 'f': undo_deadline=-1.0"),
        ({"takes": [str]}, "names no slot"),
        ({"name": ""}, "a flow has no name"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Flow(**{"name": "f", "stages": [a], **options})
    assert words in str(caught.value)
