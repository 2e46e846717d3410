"""Signatures: what a function reads, by its parameters, and writes, by its return annotation.

Law: annotations are read once, when the step is made, and never again. Whatever cannot be explained is a
DefinitionError that names the function, the place and the cure.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias, Union

import attrs

from zerver.core.decisions import DECISIONS, Done, Fail
from zerver.core.slots import Deadline, Part, Slot
from zerver.errors import DefinitionError


@attrs.frozen
class SlotRead:
    """A parameter filled from a slot. optional: `X | None`, so the slot may be unwritten or None."""

    param: str
    slot: Slot
    type: Any
    optional: bool


@attrs.frozen
class PartRead:
    """A parameter filled from the request. default: `inspect.Parameter.empty` when the part is required."""

    param: str
    part: Part
    type: Any
    optional: bool
    default: Any

    @property
    def name(self) -> str:
        """What the part is called in the request."""
        return self.part.named(self.param)

    @property
    def required(self) -> bool:
        """Whether a request without it is refused."""
        return self.default is inspect.Parameter.empty and not self.optional


@attrs.frozen
class DeadlineRead:
    """A parameter filled with the time that is left."""

    param: str


Read: TypeAlias = SlotRead | PartRead | DeadlineRead


@attrs.frozen
class Write:
    """A slot that the function writes. optional: it may write None instead, and who reads it must be ready for that."""

    slot: Slot
    type: Any
    optional: bool

    @property
    def none_fits(self) -> bool:
        """Whether None may be written: as no value, or because the slot's own type has it among its values."""
        return self.optional or self.type in (Any, object, None) or type(None) in _union_members(self.type)


@attrs.frozen
class Signature:
    """What a step's function reads and writes.

    several: the writes come as one tuple. ends: every path of it ends the run (it returns only Done or Fail).
    decisions: the decision classes it may return.
    """

    reads: tuple[Read, ...]
    writes: tuple[Write, ...]
    several: bool
    ends: bool
    decisions: frozenset[type]

    @property
    def slots(self) -> tuple[SlotRead, ...]:
        return tuple(read for read in self.reads if isinstance(read, SlotRead))

    @property
    def wants_deadline(self) -> bool:
        return any(isinstance(read, DeadlineRead) for read in self.reads)

    @property
    def parts(self) -> tuple[PartRead, ...]:
        return tuple(read for read in self.reads if isinstance(read, PartRead))


def read_signature(label: str, function: Callable[..., Any]) -> Signature:
    """The signature of a step; label names it in errors, as "step 'charge'"."""
    hints = _hints(label, function)
    if "return" not in hints:
        raise DefinitionError(
            f"{label} has no return annotation", "annotate what it writes, or `-> None` if it writes nothing"
        )
    reads = _reads(label, function, hints)
    writes, several, decisions, returns_none = _writes(label, hints["return"])
    return Signature(
        reads=reads,
        writes=writes,
        several=several,
        ends=not writes and not returns_none and bool(decisions) and decisions <= {Done, Fail},
        decisions=decisions,
    )


def read_predicate(label: str, function: Callable[..., Any]) -> Signature:
    """The signature of a branch's predicate: reads like a step, and returns bool."""
    hints = _hints(label, function)
    if hints.get("return") is not bool or inspect.iscoroutinefunction(function):
        raise DefinitionError(f"{label} must be a plain function that returns bool", "annotate it with `-> bool`")
    return Signature(_reads(label, function, hints), (), False, False, frozenset())


def slot_of(alias: Any) -> tuple[Slot, Any]:
    """The slot and the type of an alias like `Annotated[User, Slot("auth.user")]`."""
    found = _annotated(alias, Slot)
    if found is None:
        raise DefinitionError(
            f"{alias!r} names no slot",
            'give the alias itself, as in `CurrentUser = Annotated[User, Slot("auth.user")]`',
        )
    return found


def _hints(label: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise DefinitionError(
            f"{label}: an annotation cannot be resolved: {error}",
            "define slot aliases and types at module level, and import them outside `if TYPE_CHECKING`",
        ) from error


# ---- parameters -----------------------------------------------------------------------------


def _reads(label: str, function: Callable[..., Any], hints: dict[str, Any]) -> tuple[Read, ...]:
    reads: list[Read] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise DefinitionError(f"{label} takes *{name}", "name each parameter: a step says what it reads")
        if name not in hints:
            raise DefinitionError(
                f"{label}: parameter {name!r} has no annotation",
                "annotate it with a slot alias or a request part",
            )
        reads.append(_read(label, parameter, hints[name]))
    return tuple(reads)


def _read(label: str, parameter: inspect.Parameter, hint: Any) -> Read:
    inner, optional = _without_none(hint)
    if inner is Deadline:
        return DeadlineRead(parameter.name)
    slot = _annotated(inner, Slot)
    if slot is not None:
        if parameter.default is not inspect.Parameter.empty:
            raise DefinitionError(
                f"{label}: parameter {parameter.name!r} reads slot {slot[0].name!r} and has a default",
                "make it `X | None` if the slot may be unwritten",
            )
        return SlotRead(parameter.name, slot[0], slot[1], optional)
    # `Annotated[str | None, Header()]` says the same as `Annotated[str, Header()] | None`.
    part = _annotated(inner, Part)
    if part is not None:
        marker, type_ = part
        return PartRead(parameter.name, marker, type_, optional or _without_none(type_)[1], parameter.default)
    own = getattr(inner, "__zerver_part__", None)
    if isinstance(own, Part):
        return PartRead(parameter.name, own, inner, optional, parameter.default)
    raise DefinitionError(
        f"{label}: parameter {parameter.name!r} is neither a slot nor a part of the request",
        f'annotate it: Annotated[{_type_name(inner)}, Slot("…")], or with Path, Query, Header, Cookie or Body',
    )


# ---- return annotation ----------------------------------------------------------------------


def _writes(label: str, hint: Any) -> tuple[tuple[Write, ...], bool, frozenset[type], bool]:
    writes: tuple[Write, ...] = ()
    several = returns_none = False
    decisions: set[type] = set()
    alternatives = 0
    for member in _union_members(hint):
        slot = _annotated(member, Slot)
        if member is type(None):
            returns_none = True
        elif isinstance(member, type) and member in DECISIONS:
            decisions.add(member)
        elif slot is not None:
            alternatives += 1
            writes = (Write(slot[0], slot[1], False),)
        elif typing.get_origin(member) is tuple:
            alternatives += 1
            several, writes = True, _tuple_writes(label, member)
        else:
            raise DefinitionError(
                f"{label} returns {_type_name(member)}, which is neither a slot nor a decision",
                f'annotate it: Annotated[{_type_name(member)}, Slot("…")], or return Done(value)',
            )
    if alternatives > 1:
        raise DefinitionError(
            f"{label} writes one slot or another",
            "write a tuple of optional slots, or make two steps and a branch",
        )
    if several and returns_none:
        raise DefinitionError(f"{label} writes a tuple or None", "make the members of the tuple optional instead")
    if returns_none and writes:
        writes = (attrs.evolve(writes[0], optional=True),)
        returns_none = False
    return writes, several, frozenset(decisions), returns_none


def _tuple_writes(label: str, hint: Any) -> tuple[Write, ...]:
    writes = []
    for member in typing.get_args(hint):
        inner, optional = _without_none(member)
        slot = _annotated(inner, Slot)
        if slot is None:
            raise DefinitionError(
                f"{label} returns a tuple with {_type_name(member)}, which is not a slot",
                "make every member of the tuple a slot alias",
            )
        writes.append(Write(slot[0], slot[1], optional))
    names = [write.slot.name for write in writes]
    for name in names:
        if names.count(name) > 1:
            raise DefinitionError(f"{label} writes slot {name!r} twice", "write each slot once")
    return tuple(writes)


# ---- annotations ----------------------------------------------------------------------------

M = typing.TypeVar("M")


def _annotated(hint: Any, marker: type[M]) -> tuple[M, Any] | None:
    if typing.get_origin(hint) is Annotated:
        inner, *metadata = typing.get_args(hint)
        for item in metadata:
            # `Header` for `Header()`; what else is said about the type, as msgspec.Meta(ge=1), stays with it.
            found = item() if isinstance(item, type) and issubclass(item, Part) else item
            if isinstance(found, marker):
                others = tuple(other for other in metadata if other is not item)
                return found, Annotated[(inner, *others)] if others else inner
    return None


def _union_members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _without_none(hint: Any) -> tuple[Any, bool]:
    members = _union_members(hint)
    rest = [member for member in members if member is not type(None)]
    if len(rest) == len(members) or not rest:
        return hint, False
    return (rest[0] if len(rest) == 1 else Union[tuple(rest)]), True  # noqa: UP007 - a union made at run time


def _type_name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint)
