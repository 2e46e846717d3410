"""How a catalogue names what it makes.

Law: a constructor of built-in effects is a plain, well-typed function; the kind it makes is written on it, so that the
checker finds the effect in a step's code without running it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from zerver.core.effects import EffectKind

F = TypeVar("F", bound=Callable[..., Any])


def makes(kind: EffectKind[..., Any]) -> Callable[[F], F]:
    """Write on a constructor which kind of effect it makes."""

    def mark(function: F) -> F:
        function.__zerver_kind__ = kind  # type: ignore[attr-defined] # functions take attributes; F does not say so
        return function

    return mark
