"""Chance as an effect: drawn by the runtime, recorded and so replayed.

Law: a step never draws. `uniform` and `choice` come from a generator that a test can seed; `token` and `uuid` come
from the operating system's, because they are secrets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

from zerver.core.effects import Effect, EffectKind
from zerver.effects.catalogue import makes

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
    """One of the options."""
    return Effect(CHOICE, (options,))


@makes(TOKEN)
def token(octets: int = 16) -> Effect[str]:
    """A secret of so many random bytes, as URL-safe text."""
    return Effect(TOKEN, (octets,))


@makes(UUID4)
def uuid() -> Effect[UUID]:
    """A random UUID (version 4)."""
    return Effect(UUID4)
