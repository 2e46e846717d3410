"""Sources: values as Python source, for tests that somebody is to read.

Law: what is written evaluates to an equal value, or it is not written: NoSource is raised for what has no source, as a
connection or a function. A placeholder for a secret becomes a word that is none.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

import zerver
from zerver.errors import EffectError, JoinFailed, StatementError
from zerver.trace.inert import Masked
from zerver.trace.veil import MASK

#: What stands in for a secret.
STAND_IN: Final = "secret"

_WIDTH: Final = 110


class NoSource(Exception):
    """A value cannot be written down."""


@attrs.frozen
class Group:
    """Source in brackets, which may be broken after each item."""

    opening: str
    items: tuple[Source, ...]
    closing: str


Source: TypeAlias = "str | Group"


class Sources:
    """Writes values, and remembers what has to be imported. hide: masks what is secret in a text."""

    def __init__(self, hide: Callable[[str], str]) -> None:
        self.hide = hide
        self.imports: dict[str, set[str]] = {}
        self.modules: set[str] = set()

    def of(self, value: Any) -> Source:
        """The source of a value. Raises NoSource."""
        for kinds, write in _WRITERS:
            if isinstance(value, kinds) and (type(value) in kinds or kinds in _OPEN):
                return write(self, value)
        if isinstance(value, Masked):
            raise NoSource("a secret that is no text")
        if type(value).__module__ in ("datetime", "decimal", "uuid"):
            return self._standard(value)
        if isinstance(value, Exception):
            return self._error(value)
        if attrs.has(type(value)):
            fields = [field for field in attrs.fields(type(value)) if field.init]
            return self.call(type(value), {field.alias: getattr(value, field.name) for field in fields})
        raise NoSource(f"a {type(value).__name__}")

    def name(self, thing: Any) -> str:
        """The name of a class at the top of its module, imported."""
        module, name = thing.__module__, thing.__qualname__
        if getattr(zerver, name, None) is thing:
            module = "zerver"
        if getattr(sys.modules.get(module), name, None) is not thing:
            raise NoSource(f"{module}.{name}, which cannot be imported")
        self.imports.setdefault(module, set()).add(name)
        return str(name)

    def call(self, class_: type, fields: Mapping[str, Any]) -> Group:
        """A call with keywords."""
        items = tuple(_prefixed(f"{name}=", self.of(value)) for name, value in fields.items())
        return Group(f"{self.name(class_)}(", items, ")")

    def text(self, value: str) -> str:
        """A text with every secret in it replaced."""
        if MASK in value:  # a recording has hidden what is secret in it, and has left the rest as code expects it
            return value.replace(MASK, STAND_IN)
        return self.hide(value).replace(MASK, STAND_IN)

    # -- one kind of value each --

    def _plain(self, value: Any) -> str:
        return repr(value)

    def _whole(self, value: int) -> str:
        return self._shown(repr(value))

    def _shown(self, digits: str) -> str:
        return digits if self.hide(digits) == digits else "0"

    def _text(self, value: str) -> str:
        return quoted(self.text(value))

    def _octets(self, value: bytes) -> str:
        text = value.decode("latin-1").replace(MASK.encode().decode("latin-1"), MASK)
        return repr(self.text(text).encode("latin-1", "replace"))

    def _number(self, value: float) -> str:
        return self._shown(repr(float(value))) if math.isfinite(value) else f'float("{value}")'

    def _choice(self, value: enum.Enum) -> str:
        return f"{self.name(type(value))}.{value.name}"

    def _mapping(self, value: Mapping[Any, Any]) -> Group:
        items = []
        for key, held in value.items():
            name = self.of(key)
            items.append(_prefixed(f"{flat(name)}: ", self.of(held)))
        return Group("{", tuple(items), "}")

    def _list(self, value: Sequence[Any]) -> Group:
        return Group("[", tuple(map(self.of, value)), "]")

    def _tuple(self, value: tuple[Any, ...]) -> Group:
        items = tuple(map(self.of, value))
        return Group("(", items, ",)" if len(items) == 1 else ")")

    def _set(self, value: Any) -> Group:
        word = type(value).__name__
        return Group(f"{word}([", tuple(self.of(item) for item in sorted(value, key=repr)), "])")

    def _standard(self, value: Any) -> str:
        module, name = type(value).__module__, type(value).__name__
        if module == "datetime":
            self.modules.add("datetime")
        else:
            self.imports.setdefault(module, set()).add(name)
        return repr(value)

    def _error(self, error: Exception) -> Group:
        name = self.name(type(error))
        arguments: tuple[Any, ...] = error.args
        if isinstance(error, JoinFailed):
            arguments = (error.kind, error.reason, list(error.failures))
        elif isinstance(error, EffectError):
            arguments = (error.kind, error.reason) if error.cause is None else (error.kind, error.reason, error.cause)
        elif isinstance(error, StatementError):
            arguments = (str(error), error.code)
        return Group(f"{name}(", tuple(map(self.of, arguments)), ")")


_Writer: TypeAlias = Callable[[Sources, Any], Source]

_WRITERS: Sequence[tuple[tuple[type, ...], _Writer]] = (
    ((type(None), bool), Sources._plain),
    ((int,), Sources._whole),
    ((float,), Sources._number),
    ((str,), Sources._text),
    ((bytes,), Sources._octets),
    ((enum.Enum,), Sources._choice),
    ((dict,), Sources._mapping),
    ((list,), Sources._list),
    ((tuple,), Sources._tuple),
    ((set, frozenset), Sources._set),
)

#: Of these, subclasses are written in the same way; a subclass of anything else is something else.
_OPEN: Final = ((enum.Enum,),)


def quoted(text: str) -> str:
    """A text in double quotes where that needs no backslash."""
    shown = repr(text)
    return f'"{shown[1:-1]}"' if shown[0] == "'" and '"' not in text else shown


# ---- lines ----------------------------------------------------------------------------------


def flat(source: Source) -> str:
    """On one line."""
    if isinstance(source, str):
        return source
    return f"{source.opening}{', '.join(map(flat, source.items))}{source.closing}"


def lines(source: Source, indent: int, before: str = "", after: str = "") -> str:
    """Broken where it is too long. indent: columns; before, after: what stands around it."""
    one = " " * indent + before + flat(source) + after
    if isinstance(source, str) or len(one) <= _WIDTH or not source.items:
        return one
    inner = "\n".join(lines(item, indent + 4, after=",") for item in source.items)
    closing = source.closing.lstrip(",")
    return f"{' ' * indent}{before}{source.opening}\n{inner}\n{' ' * indent}{closing}{after}"


def _prefixed(prefix: str, source: Source) -> Source:
    return prefix + source if isinstance(source, str) else Group(prefix + source.opening, source.items, source.closing)
