"""Inert values: what stands in a recorded run for a thing that is not here.

Law: nothing here does anything. A stand-in shows itself as the original would, is equal to another that says the same,
and gives what it holds by name; it has no behaviour of the original's, and calling one is an error.

A placeholder stands for a secret. It has the type that code expects, and stays a placeholder for as long as it is
handed on: a text says MASK itself, a number is a subclass that shows MASK and counts as 0.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import CodeType, FunctionType, MappingProxyType
from typing import Any, Final, NoReturn

import attrs

from zerver.core.secret import MASK as MASK
from zerver.core.secret import Secret
from zerver.errors import TraceError

#: However deep values nest.
_DEEPEST: Final = 50

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


def type_name(cls: type) -> str:
    """How a class is called in a recording: `shop.domain:Cart`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def short_name(name: str) -> str:
    """`Cart` of `shop.domain:Cart`, and of a class that was made inside a function: as attrs shows it."""
    return name.rpartition(":")[2].rsplit(">.", 1)[-1]


class Opaque:
    """A value of a class that is not known here.

    type: as `shop.domain:Cart`. fields: what it held; they are attributes too. text: its own repr, "" if it had none of
    its own. quiet: fields that its repr leaves out. afterwards: what it said would become of it after the run.
    declared: whether its class names its fields, as attrs classes do.
    """

    __slots__ = ("_afterwards", "_declared", "_fields", "_quiet", "_text", "_type")

    def __init__(
        self,
        type_: str,
        fields: Mapping[str, Any] = NOTHING,
        text: str = "",
        quiet: frozenset[str] = frozenset(),
        afterwards: str | None = None,
        *,
        declared: bool = True,
    ) -> None:
        self._type = type_
        self._fields = fields
        self._text = text
        self._quiet = quiet
        self._afterwards = afterwards
        self._declared = declared

    def __getattr__(self, name: str) -> Any:
        fields: Mapping[str, Any] = object.__getattribute__(self, "_fields")
        if name in fields:
            return fields[name]
        raise AttributeError(f"a recorded {short_name(self._type)} has no {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and content(self) == content(other)

    def __hash__(self) -> int:
        return hash((self._type, self._text, *self._fields))

    def __repr__(self) -> str:
        if self._text:
            return self._text
        shown = [f"{name}={value!r}" for name, value in self._fields.items() if name not in self._quiet]
        return f"{short_name(self._type)}({', '.join(shown)})"

    def __zerver_after_run__(self) -> str:
        return self._afterwards or ""


@attrs.frozen
class Content:
    """What an Opaque is made of. A function of its own gives it, since every name of an Opaque may be a field's."""

    type: str
    fields: Mapping[str, Any]
    text: str
    quiet: frozenset[str]
    afterwards: str | None
    declared: bool


def content(opaque: Opaque) -> Content:
    """What a stand-in holds."""
    return Content(opaque._type, opaque._fields, opaque._text, opaque._quiet, opaque._afterwards, opaque._declared)


def unknown_class(value: object, deep: int = 0) -> str:
    """The name of the first class in a value that was recorded and is not known here; "" if there is none."""
    if isinstance(value, Opaque):
        return content(value).type
    if isinstance(value, NamedType | NamedMember):
        return value.name if isinstance(value, NamedType) else value.type
    if deep > _DEEPEST:
        return ""
    inner: Iterable[object] = ()
    if isinstance(value, Mapping):
        inner = (*value.keys(), *value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = value
    elif attrs.has(cls := type(value)):
        inner = [getattr(value, field.name, None) for field in attrs.fields(cls)]
    elif dataclasses.is_dataclass(value):
        inner = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return next(filter(None, (unknown_class(one, deep + 1) for one in inner)), "")


@attrs.frozen(repr=False)
class Cut:
    """What is left of a value that was too large, or too deep, to record. size: bytes or items, 0 if nobody counted.
    head: how it began.
    """

    type: str
    size: int
    head: str

    def __repr__(self) -> str:
        return f"{self.head}…" if self.head else f"<{short_name(self.type)}…>"


@attrs.frozen(repr=False)
class NamedType:
    """A class that is not known here, named as a value: the row class of a query, or the type of a slot."""

    name: str

    @property
    def __name__(self) -> str:
        return short_name(self.name)

    def __repr__(self) -> str:
        module, _, qualname = self.name.partition(":")
        return f"<class '{module}.{qualname}'>" if qualname else self.name


@attrs.frozen(repr=False)
class NamedMember:
    """A member of an enum that is not known here."""

    type: str
    name: str
    value: Any

    def __repr__(self) -> str:
        return f"<{short_name(self.type)}.{self.name}: {self.value!r}>"


# ---- placeholders ---------------------------------------------------------------------------


class Masked:
    """Mixed into every placeholder that is no text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return MASK

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK


class MaskedInt(Masked, int):
    __slots__ = ()


class MaskedBool(Masked, int):
    """bool has no subclasses; this is false, as 0 is."""

    __slots__ = ()


class MaskedFloat(Masked, float):
    __slots__ = ()


class MaskedDecimal(Masked, decimal.Decimal):  # type: ignore[misc]  # Decimal's format takes a context, for itself
    __slots__ = ()


class MaskedDatetime(Masked, datetime.datetime):
    __slots__ = ()


class MaskedDate(Masked, datetime.date):
    __slots__ = ()


class MaskedTime(Masked, datetime.time):
    __slots__ = ()


class MaskedTimedelta(Masked, datetime.timedelta):
    __slots__ = ()


class MaskedUUID(Masked, uuid.UUID):
    __slots__ = ()


_EPOCH: Final = (1970, 1, 1)

#: The one placeholder of each type, by the name that a recording has for it.
PLACEHOLDERS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "str": MASK,
        "bytes": MASK.encode(),
        "int": MaskedInt(),
        "bool": MaskedBool(),
        "float": MaskedFloat(),
        "Decimal": MaskedDecimal(),
        "datetime": MaskedDatetime(*_EPOCH, tzinfo=datetime.timezone.utc),  # noqa: UP017 - as datetime.UTC shows itself
        "date": MaskedDate(*_EPOCH),
        "time": MaskedTime(),
        "timedelta": MaskedTimedelta(),
        "UUID": MaskedUUID(int=0),
        "Secret": Secret(MASK),
    }
)

#: The name of a placeholder, by its class.
PLACEHOLDER_NAMES: Final[Mapping[type, str]] = MappingProxyType(
    {type(value): name for name, value in PLACEHOLDERS.items() if isinstance(value, Masked)}
)


# ---- code -----------------------------------------------------------------------------------


def _gone(*args: Any, **kwargs: Any) -> NoReturn:
    raise TraceError("this function is only recorded: its code is not here")


async def _gone_async(*args: Any, **kwargs: Any) -> NoReturn:
    raise TraceError("this function is only recorded: its code is not here")


#: In front of recorded file names, so that nobody takes one for a file to open.
RECORDED: Final = "<recorded>"


def inert_function(name: str, file: str = "", line: int = 0, *, is_async: bool = False) -> Callable[..., Any]:
    """A function of this name (`shop.steps:charge`) that says where the original stands, and cannot be called."""
    gone = _gone_async if is_async else _gone
    module, _, qualname = name.rpartition(":")
    code: CodeType = gone.__code__.replace(
        co_filename=f"{RECORDED}/{file}" if file else RECORDED,
        co_firstlineno=min(max(line, 0), 1 << 24),
        co_name=qualname.rpartition(".")[2] or "recorded",
    )
    function = FunctionType(code, {"__name__": module, "TraceError": TraceError}, qualname)
    function.__module__, function.__qualname__ = module, qualname
    function.__zerver_recorded__ = True  # type: ignore[attr-defined]  # a function has room for names
    return function


def is_inert(function: object) -> bool:
    """Whether a function is a recorded one."""
    return getattr(function, "__zerver_recorded__", False) is True


# ---- errors ---------------------------------------------------------------------------------

#: Attributes of a recorded error: (file, line) where it was raised, and its traceback as Python printed it.
PLACE: Final = "__zerver_place__"
TRACE: Final = "__zerver_trace__"


class _Inert:
    """Mixed into the class of an error that is not known here: it says what the original said."""

    __zerver_text__ = ""

    def __str__(self) -> str:
        return self.__zerver_text__


@lru_cache(maxsize=256)
def inert_error_class(name: str, base: type[Exception]) -> type[Exception]:
    """A class for errors of a class that is not known here. base: the nearest one that is, which `except` may name."""
    module, _, qualname = name.rpartition(":")
    made: type[Exception] = type(short_name(qualname)[:100] or "Error", (_Inert, base), {"__module__": module})
    made.__qualname__ = qualname
    return made


def is_inert_error(error: BaseException) -> bool:
    return isinstance(error, _Inert)
