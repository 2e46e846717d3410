"""Stages: shapes, and what cannot be one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from zerver import Flow, branch, dag, parallel, pivot, step
from zerver.errors import DefinitionError


@step
def a() -> None: ...


@step
def b() -> None: ...


def plain() -> None: ...


def yes() -> bool:
    return True


def test_names() -> None:
    shapes = [parallel(a, b), dag(a, b), branch(yes, a), pivot(a), pivot(parallel(a, b))]
    assert [shape.name for shape in shapes] == [
        "parallel(a, b)",
        "dag(a, b)",
        "branch(yes)",
        "pivot(a)",
        "pivot(parallel(a, b))",
    ]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: parallel(a), "parallel was given 1 stages"),
        (dag, "dag was given no stages"),
        (lambda: dag(a, a), "dag was given the same stage twice"),
        (lambda: dag(a, after={a: b}), "after= names 'b', which is not a member"),
        (lambda: dag(a, after={b: [a]}), "after= names 'b', which is not a member"),
        (lambda: parallel(a, plain), "parallel: plain is not a stage\n  put @step on plain"),
        (lambda: branch(yes, [a, 3]), "branch: 3 is not a stage\n  a stage is a step, parallel, branch"),
        (lambda: Flow("f", [plain]), "flow 'f': plain is not a stage"),
        (lambda: Flow("f", []), "flow 'f' has no stages"),
        (lambda: branch(plain, a), "predicate 'plain' must be a plain function that returns bool"),
    ],
)
def test_what_is_refused(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        build()
    assert words in str(caught.value)
