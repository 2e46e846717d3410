"""`--limit NAME=VALUE`: the limits of the HTTP server, from the command line.

Law: a limit has the name that docs/reference/limits.md gives it, and each of them can be said; a name that does not
exist and a value that makes no sense are refused with what would have been right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

import attrs
import click

from zerver.http import DEFAULT_LIMITS, Limits


class WrongLimit(click.ClickException):
    """A limit that there is not, or cannot be."""

    exit_code = 2


_SIZES: Final = {"": 1, "b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_TIMES: Final = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0}
_COUNTS: Final = {"": 1}
_COUNTED: Final = ("connections", "head.fields")
_MAY_BE_NONE: Final = ("body", "drain")  # 0 bytes of these is a limit; of others it would refuse everybody

_VALUE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+) *([A-Za-z]*)")


def flat_limits(limits: Limits) -> dict[str, Any]:
    """Limits by the names that they have here; those of a head have `head.` before it."""
    head = {f"head.{name}": value for name, value in attrs.asdict(limits.head).items()}
    return head | {name: value for name, value in attrs.asdict(limits, recurse=False).items() if name != "head"}


def limit_names() -> tuple[str, ...]:
    """Every limit there is."""
    return tuple(flat_limits(DEFAULT_LIMITS))


def read_limits(given: Sequence[str]) -> Limits:
    """The limits that `NAME=VALUE` words say, the last one of a name, over the defaults. Raises WrongLimit."""
    head: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    for word in given:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            raise WrongLimit(f"--limit {word}: write it as NAME=VALUE, as body=10MiB or head_seconds=5")
        if name not in limit_names():
            close = get_close_matches(name, limit_names(), 1)
            raise WrongLimit(
                f"--limit {word}: there is no limit {name!r}"
                + (f"; did you mean {close[0]}?" if close else f"; there are {', '.join(limit_names())}")
            )
        place, _, field = name.rpartition(".")
        (head if place else whole)[field] = _number(word, name, value)
    return attrs.evolve(DEFAULT_LIMITS, head=attrs.evolve(DEFAULT_LIMITS.head, **head), **whole)


def _number(word: str, name: str, value: str) -> int | float:
    units, cure = _units(name)
    found = _VALUE.fullmatch(value)
    unit = units.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise WrongLimit(f"--limit {word}: {value!r} is not {cure}")
    number = float(found[1]) * unit
    if not math.isfinite(number) or (number == 0 and name not in _MAY_BE_NONE):
        raise WrongLimit(f"--limit {word}: {value} would refuse everybody, or nobody; give {cure}")
    if units is _TIMES:
        return number
    if number != int(number):
        raise WrongLimit(f"--limit {word}: {value} is no whole number; give {cure}")
    return int(number)


def _units(name: str) -> tuple[Mapping[str, float], str]:
    if name in _COUNTED:
        return _COUNTS, "a number, as 100"
    if name.endswith("_seconds"):
        return _TIMES, "a time, as 5, 500ms or 2min"
    return _SIZES, "a size, as 4096, 64KiB or 10MB"
