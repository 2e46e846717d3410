"""Impure steps: what is said to a step that awaits something that is no effect.

Law: the error names the line that awaited, and is thrown into the step first, so that its own cleanup runs.
"""

from __future__ import annotations

from typing import Any

from zerver.core.places import Activation
from zerver.errors import ImpureStepError


def impure(activation: Activation) -> ImpureStepError:
    """Throw the error into the step, so that its own cleanup runs, and name the line that awaited."""
    coroutine: Any = activation.coroutine
    frame = coroutine.cr_frame
    code = activation.node.step.function.__code__
    line = frame.f_lineno if frame is not None else code.co_firstlineno
    error = ImpureStepError(
        f"step {activation.node.name!r} awaited something that is not an effect, at {code.co_filename}:{line}\n"
        "  make an effect of it with @effect, and await that"
    )
    try:
        coroutine.throw(error)
    except BaseException as raised:
        if raised is not error and not isinstance(raised, StopIteration | Exception):
            raise
    return error
