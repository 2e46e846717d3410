"""Chance as an effect: drawn by the runtime, recorded and so replayed.

Law: a step never draws. `uniform`, `choice` and `uuid` come from a generator that a test can seed; `token` comes from
the operating system's, because it is a secret. A uuid is a name and no secret: do not let it open anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

from zerver.core.effects import Effect, EffectKind
from zerver.effects.catalogue import makes
from zerver.errors import DefinitionError

T = TypeVar("T")

UNIFORM: EffectKind[..., float] = EffectKind("random.uniform", "read", target="random", instant=True)
CHOICE: EffectKind[..., object] = EffectKind("random.choice", "read", target="random", instant=True)
TOKEN: EffectKind[..., str] = EffectKind("random.token", "read", target="random", instant=True)
UUID4: EffectKind[..., UUID] = EffectKind("random.uuid", "read", target="random", instant=True)


@makes(UNIFORM)
def uniform(low: float = 0.0, high: float = 1.0) -> Effect[float]:
    """A number between low and high."""
    return Effect(UNIFORM, (low, high))


@makes(CHOICE)
def choice(options: Sequence[T]) -> Effect[T]:
    """One of the options. Raises DefinitionError when there are none."""
    if not options:
        raise DefinitionError("random.choice was given no options", "give it at least one")
    return Effect(CHOICE, (options,))


@makes(TOKEN)
def token(octets: int = 16) -> Effect[str]:
    """A secret of so many random bytes, as URL-safe text. Raises DefinitionError for less than one byte."""
    if octets < 1:
        raise DefinitionError(f"random.token({octets!r})", "give 16 bytes or more for a secret")
    return Effect(TOKEN, (octets,))


@makes(UUID4)
def uuid() -> Effect[UUID]:
    """A random UUID (version 4)."""
    return Effect(UUID4)
