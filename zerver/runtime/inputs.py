"""Inputs: what an embedding program gives a flow to run on, in the order of its plan.

Law: all that is missing is said at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter

from zerver.core.codec import convert
from zerver.core.plan import Plan
from zerver.errors import InvalidData


def inputs(plan: Plan, body: object, given: Mapping[str, object]) -> tuple[list[object], list[object]]:
    """Request parts and taken slots. body: for a parameter that reads the request's body; a dict is read as JSON would
    be. given: the others, by name. Raises InvalidData.
    """
    problems: list[tuple[str, str]] = []
    parts: list[object] = []
    for read in plan.parts:
        if read.name in given:
            parts.append(given[read.name])
        elif read.part.source == "body" and body is not None:
            parts.append(convert(body, read.type, "body") if isinstance(body, dict) else body)
        elif read.required:
            problems.append((f"{read.part.source} {read.name}", "is required: give it in given={…}"))
        else:
            parts.append(None if read.default is Parameter.empty else read.default)
    takes: list[object] = []
    for slot in plan.takes:
        if slot.name in given:
            takes.append(given[slot.name])
        else:
            problems.append((f"slot {slot.name}", "is taken by the flow: give it in given={…}"))
    if problems:
        raise InvalidData(problems)
    return parts, takes
