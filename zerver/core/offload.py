"""Offloaded steps: an effect of the runtime's own takes the place of the call.

Law: to the machine an offloaded step is a step that answers Need: its records, its place in a replay, its deadline and
its cancellation are those of any effect. What the function raises is carried back as a value, and raised in the step:
it is the step's defect, and no failure of the world.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import attrs

from zerver.core.decisions import Need
from zerver.core.effects import Effect, EffectKind
from zerver.core.steps import Step


@attrs.frozen(eq=False)
class OffloadKind(EffectKind[..., Any]):
    """The effect of one offloaded step. `name` says where to; a read, since a step changes nothing."""

    step: Step[..., Any] = attrs.field(kw_only=True)


@attrs.frozen
class Answered:
    """What the function returned."""

    value: Any


@attrs.frozen
class Raised:
    """What the function raised."""

    error: Exception


def offloaded(step: Step[..., Any]) -> Callable[..., Need]:
    """In place of the step's function: asks for it to be called elsewhere, with the same arguments."""
    kind = OffloadKind(f"offload.{step.offload}", "read", step=step)

    @wraps(step.function)
    def ask(*args: Any, **kwargs: Any) -> Need:
        return Need(Effect(kind, args, kwargs), resume=opened)

    return ask


def opened(answer: Answered | Raised) -> Any:
    """What the function returned; raises what it raised."""
    if isinstance(answer, Raised):
        raise answer.error
    return answer.value
