"""Members are counted as the text of a value must have had them, and only where a type says how many."""

from __future__ import annotations

import json
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from zerver.core.codec import decode_json
from zerver.http.members import compile_members


@attrs.define
class Point:
    x: int
    y: float


@attrs.define
class Shape:
    name: str
    kind: Literal["open", "shut"]
    middle: Point
    corners: list[Point]
    label: Point | None
    rows: tuple[list[Point], ...]
    named: dict[str, Point]
    numbers: dict[str, int]


@attrs.define
class Branch:
    branches: list[Branch]


@attrs.define
class Tree:
    branches: list[Tree] | dict[str, Tree]


@attrs.define
class Filled:
    x: int = 0


POINTS = st.fixed_dictionaries({"x": st.integers(-9, 9), "y": st.floats(-1, 1)})
NAMES = st.text(max_size=3)
SHAPES = st.fixed_dictionaries(
    {
        "name": NAMES,
        "kind": st.sampled_from(["open", "shut"]),
        "middle": POINTS,
        "corners": st.lists(POINTS, max_size=3),
        "label": st.none() | POINTS,
        "rows": st.lists(st.lists(POINTS, max_size=2), max_size=3),
        "named": st.dictionaries(NAMES, POINTS, max_size=3),
        "numbers": st.dictionaries(NAMES, st.integers(), max_size=3),
    }
)


def members_of(text: str) -> int:
    found = 0

    def count(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found += len(pairs)

    json.loads(text, object_pairs_hook=count)
    return found


@pytest.mark.parametrize("type_", [Shape, list[Shape], dict[str, Shape]])
@given(shape=SHAPES)
def test_there_are_as_many_as_in_the_text(type_: Any, shape: dict[str, Any]) -> None:
    text = json.dumps(shape if type_ is Shape else [shape, shape] if type_ == list[Shape] else {"a": shape})
    count = compile_members(inspect.type_info(type_))
    assert count is not None
    assert count(decode_json(text.encode(), type_)) == members_of(text)


@pytest.mark.parametrize("type_", [int, list[str], dict[str, int] | None, str | list[int] | None, tuple[Point, ...]])
def test_plain_types_are_counted_too(type_: Any) -> None:
    assert compile_members(inspect.type_info(type_)) is not None


@pytest.mark.parametrize(
    "type_", [Any, dict[str, Any], list[Any], Branch, Tree, Filled, list[Filled], Point | list[Point]]
)
def test_what_leaves_them_open_is_not_counted(type_: Any) -> None:
    assert compile_members(inspect.type_info(type_)) is None
