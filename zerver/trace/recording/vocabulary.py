"""Vocabularies: which names in a recording stand for which classes.

Law: nothing is imported because a recording names it. A class is known because code that is loaded has been seen to use
it: in the annotations of steps and handlers, or at the top of the modules that they stand in.
"""

from __future__ import annotations

import builtins
import dataclasses
import datetime
import decimal
import typing
import uuid
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

import attrs
import msgspec

from zerver import errors
from zerver.core import decisions, effects, joins, offload, overruns, policy, slots, tickets
from zerver.core.app import App
from zerver.core.flows import Flow
from zerver.core.plan import Plan, compile_plan
from zerver.core.quotas import Quota
from zerver.core.replan import steps_in
from zerver.core.steps import Step
from zerver.effects import http
from zerver.trace.inert import is_inert, type_name

#: However deep type annotations nest.
_DEEPEST: Final = 20


@attrs.frozen
class Vocabulary:
    """Classes by their names in recordings, as `shop.domain:Cart`. Those of Zerver and of Python itself are known to
    all.
    """

    classes: Mapping[str, type] = MappingProxyType({})

    def find(self, name: str) -> type | None:
        """The class of this name; None for one that is not known."""
        return _OURS.get(name) or self.classes.get(name)

    @classmethod
    def of(cls, *code: Any) -> Vocabulary:
        """What this code uses. code: apps, flows, plans, steps, or classes themselves."""
        found: dict[str, type] = {}
        for thing in code:
            for known in _classes_of(thing):
                found.setdefault(type_name(known), known)
        return cls(MappingProxyType(found))


NO_VOCABULARY: Final = Vocabulary()


def is_ours(name: str) -> bool:
    """Whether a class is Zerver's or Python's own: then its fields are checked by `zerver.trace.recording.revive`."""
    return name in _OURS


_BUILTIN_TYPES: Final = (
    *(bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, object, type(None)),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID),
)
_ERRORS: Final = (
    *(known for known in vars(errors).values() if isinstance(known, type) and issubclass(known, Exception)),
    *(known for known in vars(builtins).values() if isinstance(known, type) and issubclass(known, Exception)),
)
_VALUES: Final = (
    *decisions.DECISIONS,
    *(effects.Success, effects.Failure, effects.Unknown, effects.Cancelled),
    *(joins.JoinRule, policy.Policy, slots.Deadline, overruns.Overrun, tickets.Refusal, Quota),
    *(offload.Answered, offload.Raised, http.Exchange, http.Reply),
)
_OURS: Final[Mapping[str, type]] = {type_name(known): known for known in (*_BUILTIN_TYPES, *_ERRORS, *_VALUES)}


# ---- what code uses -------------------------------------------------------------------------


def _classes_of(thing: Any) -> Iterator[type]:
    if isinstance(thing, Plan):
        yield from _of_steps(node.step for node in steps_in(thing.line))
        for read in (*thing.parts,):
            yield from _in_hint(read.type)
    elif isinstance(thing, Flow):
        yield from _classes_of(compile_plan(thing))
        for _, hint in (*thing.takes, *thing.gives):
            yield from _in_hint(hint)
    elif isinstance(thing, Step):
        yield from _of_steps([thing])
    elif isinstance(thing, type):
        yield from _in_hint(thing)
    elif isinstance(thing, App):
        for route in thing.routes:
            yield from _classes_of(route.plan())  # the before-chain is in it
            for flow in route.flows:
                yield from _classes_of(flow)
        for job in thing.jobs.values():
            yield from _classes_of(job.flow)


def _of_steps(steps: Iterable[Step[..., Any]]) -> Iterator[type]:
    modules: dict[int, Mapping[str, Any]] = {}
    for step in steps:
        function = step.function
        if is_inert(function):
            continue
        for read in step.signature.reads:
            yield from _in_hint(getattr(read, "type", None))
        for write in step.signature.writes:
            yield from _in_hint(write.type)
        seen = [function, *(mention.kind.handler for mention in step.mentions)]
        for used in seen:
            names = getattr(used, "__globals__", None)
            if isinstance(names, dict):
                modules[id(names)] = names
            if used is not None:
                yield from _in_hints(used)
    for names in modules.values():
        for value in list(names.values()):
            if _is_worth_knowing(value):
                yield from _in_hint(value)
            elif isinstance(value, effects.EffectKind) and value.handler is not None:
                yield from _in_hints(value.handler)
                other = getattr(value.handler, "__globals__", {})
                yield from (known for known in list(other.values()) if _is_worth_knowing(known))


def _in_hints(function: Any) -> Iterator[type]:
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # a name under TYPE_CHECKING: what it stands for is found elsewhere, or not known
        return
    for hint in hints.values():
        yield from _in_hint(hint)


def _in_hint(hint: Any, seen: set[Any] | None = None, deep: int = 0) -> Iterator[type]:
    """The classes in an annotation, and in those of their fields."""
    seen = set() if seen is None else seen
    if deep > _DEEPEST:
        return
    inner = typing.get_args(hint)
    if inner:
        for member in inner:
            yield from _in_hint(member, seen, deep + 1)
    known = typing.get_origin(hint) or hint
    if not isinstance(known, type) or known in seen or not _is_worth_knowing(known):
        return
    seen.add(known)
    yield known
    if issubclass(known, Enum):
        return
    try:
        hints = typing.get_type_hints(known)
    except Exception:  # as above
        return
    for member in hints.values():
        yield from _in_hint(member, seen, deep + 1)


def _is_worth_knowing(known: Any) -> bool:
    return isinstance(known, type) and (
        attrs.has(known)
        or dataclasses.is_dataclass(known)
        or issubclass(known, Enum | msgspec.Struct | Exception | str | int | float | bytes)
        or (issubclass(known, tuple) and hasattr(known, "_fields"))
    )
