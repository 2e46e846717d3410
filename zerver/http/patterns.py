"""Patterns: a route's path, cut into literals and parameters, and what a parameter takes.

Law: a pattern is written decoded, and its parameters are whole segments, so that matching one is a comparison for each
segment. No regular expression ever sees a path.

Refused on purpose:
- A parameter takes no empty and no dot segment, and nothing resolves "..": such a path has no route.
- A wildcard takes no segment with "/" or "\\" in it, and no empty one but the last: what a step joins to a directory
  stays below it (CVE-2017-16762 was `..%2f`).
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Final

import attrs

from zerver.errors import DefinitionError


@attrs.frozen
class Param:
    """`{name:kind}`, a whole segment. kind: "str" (by default), "int", "uuid", or "path" for all that is left."""

    name: str
    kind: str = "str"


@attrs.frozen
class Pattern:
    """A route's path, cut into segments: literals and parameters. Made by `parse_pattern`."""

    text: str
    segments: tuple[str | Param, ...]

    @property
    def params(self) -> tuple[Param, ...]:
        return tuple(segment for segment in self.segments if isinstance(segment, Param))

    @property
    def names(self) -> frozenset[str]:
        """The names of its parameters: what `Path()` may read."""
        return frozenset(param.name for param in self.params)


def parse_pattern(path: str, label: str = "") -> Pattern:
    """The pattern of a path like `/v2/orders/{id:int}`. Raises DefinitionError, which names `label`."""
    label = label or f"route {path}"
    if not path.startswith("/"):
        raise DefinitionError(f"{label}: the path does not start with '/'", f'write "/{path}"')
    if bad := set(path) & set("%?#*\\") | {c for c in path if c < " " or c == "\x7f"}:
        raise DefinitionError(
            f"{label}: {min(bad)!r} cannot stand in a route's path",
            "write the path decoded and without a query; a wildcard is {rest:path}",
        )
    segments = tuple(_parse_segment(segment, label) for segment in path.split("/")[1:])
    pattern = Pattern(path, segments)
    names = [param.name for param in pattern.params]
    for name in names:
        if names.count(name) > 1:
            raise DefinitionError(f"{label}: parameter {name!r} appears twice", "give each parameter a name of its own")
    if any(isinstance(segment, Param) and segment.kind == "path" for segment in segments[:-1]):
        raise DefinitionError(f"{label}: a wildcard is followed by more", "put {name:path} last")
    if "" in segments[:-1]:
        raise DefinitionError(f"{label}: the path has an empty segment", "write each '/' once")
    return pattern


def _parse_segment(segment: str, label: str) -> str | Param:
    if "{" not in segment and "}" not in segment:
        if segment in (".", ".."):
            raise DefinitionError(f"{label}: a dot segment is never requested", "write the path without it")
        return segment
    name, colon, kind = segment[1:-1].partition(":")
    if not (segment.startswith("{") and segment.endswith("}") and name.isidentifier()):
        raise DefinitionError(
            f"{label}: {segment!r} is no parameter", "a parameter is a whole segment, like {id} or {id:int}"
        )
    if (kind or not colon) and (kind or "str") in FITS:
        return Param(name, kind or "str")
    raise DefinitionError(f"{label}: parameter type {kind!r} is unknown", f"choose one of {', '.join(FITS)}")


# ---- what a parameter takes -----------------------------------------------------------------

NO_VALUE: Final = frozenset(("", ".", ".."))
_HEX: Final = frozenset(string.hexdigits)


def _is_text(segment: str) -> bool:
    return segment not in NO_VALUE


def _is_int(segment: str) -> bool:
    """One spelling for each number: not "007", nor "+7", which `int` would take. No negative ones."""
    return segment.isascii() and segment.isdigit() and (segment[0] != "0" or segment == "0")


def _is_uuid(segment: str) -> bool:
    """The form of RFC 9562 §4, and no other that `uuid.UUID` would take."""
    if len(segment) != 36 or not (segment[8] == segment[13] == segment[18] == segment[23] == "-"):
        return False
    return _HEX.issuperset(segment.replace("-", "", 4))


def _is_tail(text: str) -> bool:
    return tail_start(tuple(text.split("/"))) == 0


def tail_start(segments: tuple[str, ...]) -> int:
    """The first index from which on a wildcard may take all segments; at most len(segments)."""
    start = len(segments)
    for at in range(start - 1, -1, -1):
        segment = segments[at]
        allowed_empty = not segment and at == len(segments) - 1
        if (segment in NO_VALUE and not allowed_empty) or "/" in segment or "\\" in segment:
            break
        start = at
    return start


FITS: Final[dict[str, Callable[[str], bool]]] = {"str": _is_text, "int": _is_int, "uuid": _is_uuid, "path": _is_tail}
