"""A path is a pattern or a DefinitionError naming the route, and a pattern knows its parameters and what they take."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.errors import DefinitionError
from zerver.http.patterns import FITS, Param, Pattern, parse_pattern, tail_start


def test_patterns_tell_their_parameters() -> None:
    pattern = parse_pattern("/a/{id:int}/{rest:path}")
    assert pattern.params == (Param("id", "int"), Param("rest", "path"))
    assert pattern.names == {"id", "rest"}
    assert parse_pattern("/").segments == ("",)
    assert parse_pattern("/a/") == Pattern("/a/", ("a", ""))


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "",
        "/a//b",
        "/a/./b",
        "/a/..",
        "/a?b",
        "/a#b",
        "/a%20b",
        "/*",
        "/a\\b",
        "/a\nb",
        "/a{id}",
        "/{id}a",
        "/{id",
        "/id}",
        "/{}",
        "/{1d}",
        "/{i-d}",
        "/{id:}",
        "/{id:float}",
        "/{:int}",
        "/{a}/{a}",
        "/{p:path}/b",
        "/{p:path}/{q:path}",
    ],
)
def test_a_path_that_is_no_pattern_is_a_definition_error_naming_the_route(path: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(f"route GET {path}")) as refused:
        parse_pattern(path, f"route GET {path}")
    assert refused.value.cure


def test_a_pattern_without_a_label_is_named_by_its_path() -> None:
    with pytest.raises(DefinitionError, match=r"route /a\{id\}"):
        parse_pattern("/a{id}")


@given(st.text())
def test_any_text_is_a_pattern_or_a_definition_error(path: str) -> None:
    try:
        pattern = parse_pattern("/" + path)
    except DefinitionError:
        return
    written = ("{" + f"{s.name}:{s.kind}" + "}" if isinstance(s, Param) else s for s in pattern.segments)
    assert parse_pattern("/" + "/".join(written)).segments == pattern.segments


@pytest.mark.parametrize(
    ("kind", "segment", "fits"),
    [
        ("str", "a", True),
        ("str", "...", True),
        ("str", "", False),
        ("str", ".", False),
        ("str", "..", False),
        ("int", "0", True),
        ("int", "007", False),
        ("int", "", False),
        ("int", "1_0", False),
        ("int", "+1", False),
        ("int", "²", False),
        ("uuid", "0190F3C4-7b1e-7c33-9d5e-2f6a8b9c0d1e", True),
        ("uuid", "0190f3c4-7b1e-7c33-9d5e-2f6a8b9c0d1g", False),
        ("uuid", "-190f3c4-7b1e-7c33-9d5e-2f6a8b9c0d1e", False),
        ("uuid", "{190f3c4-7b1e-7c33-9d5e-2f6a8b9c0d1}", False),
        ("path", "a/b/", True),
        ("path", "", True),
        ("path", "/a", False),
        ("path", "a//b", False),
        ("path", "a/../b", False),
        ("path", "a\\b", False),
    ],
)
def test_what_a_parameter_takes(kind: str, segment: str, fits: bool) -> None:
    assert FITS[kind](segment) is fits


def test_a_tail_starts_behind_the_last_segment_it_cannot_take() -> None:
    assert tail_start(("a", "..", "b", "c")) == 2
    assert tail_start(("a", "b", "")) == 0
    assert tail_start(("a", "..")) == 2
    assert tail_start(()) == 0
