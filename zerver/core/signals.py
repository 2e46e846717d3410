"""Signals: what a step that waits for one can take, and a signal's value as that.

Law: pure. What a pause waits for is said by the code: by the first parameter of its `resume`, or by what its step
writes. A value that comes as JSON becomes that type or is InvalidData, to who gives it; one that is no JSON, as an
object given inside the process, is whatever it is. Records keep the value as it came, so that a replay reads it as the
run did.
"""

from __future__ import annotations

import inspect
import typing
from functools import partial
from typing import Any, Final, Union

from zerver.core.codec import convert, decode_json, encode_json
from zerver.core.decisions import Pause
from zerver.core.plan import StepNode
from zerver.errors import InvalidData

#: What JSON can be.
_JSON: Final = (dict, list, tuple, str, int, float, bool, type(None))


def wanted(node: StepNode, pause: Pause) -> Any:
    """The type of the value that a paused step waits for; Any where nothing says."""
    if pause.resume is not None:
        return _first_of(pause.resume)
    shape = node.step.signature
    types = tuple(Union[write.type, None] if write.optional else write.type for write in shape.writes)  # noqa: UP007 - made at run time
    return tuple[types] if shape.several else types[0] if types else None  # type: ignore[valid-type]  # the same


def fitted(value: object, type_: Any, where: str = "value") -> Any:
    """A signal's value as this type. where: how paths in the problems begin. Raises InvalidData with all of them."""
    if type_ is Any or type_ is object or not isinstance(value, _JSON):
        return value
    try:
        return convert(value, type_, where)
    except InvalidData as first:
        raise _all_of(value, type_, where) or first from None
    except TypeError:  # a type that nobody could read from JSON: what comes is for the step to look at
        return value


def _all_of(value: object, type_: Any, where: str) -> InvalidData | None:
    """Everything that is wrong with it."""
    try:
        decode_json(encode_json(value), type_, where)
    except InvalidData as found:
        return found
    return None


def _first_of(function: Any) -> Any:
    """The type of the first parameter that a function has still to be given."""
    try:
        names = list(inspect.signature(function).parameters)
        while isinstance(function, partial):
            function = function.func
        hints = typing.get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError):  # a builtin, a callable object, a name that is not there at run time
        return Any
    return hints.get(names[0], Any) if names else Any
