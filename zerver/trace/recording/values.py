"""Values as JSON: what slots, arguments and results are written down as.

Law: any value can be written, and none costs more than it may. What JSON has is itself; anything else is an object with
a tag "$" that says what it is. No code of a value's class decides what is written, but for its repr where nothing else
tells, and that may fail. Secrets are masked before anything is cut.

    {"$": 7}                           what entry 7 of the run's values says
    {"$": "tuple", "items": […]}       set and frozenset too
    {"$": "bytes", "text" | "b64": …}  {"$": "dict", "items": [[k, v], …]}
    {"$": "datetime" | "date" | "time" | "UUID" | "Decimal" | "int" | "float" | "surrogates", "is": …}
    {"$": "timedelta", "is": [days, seconds, microseconds]}            {"$": "enum", "type": …, "name": …, "is": …}
    {"$": "object", "type": "shop.domain:Cart", "fields": {…}}         attrs, dataclass, Struct, NamedTuple
    {"$": "opaque", "type": …, "repr": …, "fields": {…}}               any other object
    {"$": "sub", "type": …, "is": …}                                   a subclass of str, int, float or bytes
    {"$": "error", "type": …, "base": …, "text": …, "args": […], "fields": {…}, "at": [file, line], "trace": …}
    {"$": "class" | "function", "name": "shop.domain:Cart"}            {"$": "masked", "of": "int"}
    {"$": "secret", "is": …}                           a Secret in a journal that may keep it
    {"$": "effect", "kind": 3, "args": […], "kwargs": {…}, …}          {"$": "join", "rule": […], "members": […], …}
    {"$": "cut", "type": …, "size": …, "head": …}                      what was too large, or too deep
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MappingProxyType, MethodType
from typing import Any, Final, TypeAlias

from zerver.core.effects import Effect, EffectKind
from zerver.core.joins import Join
from zerver.core.secret import Secret
from zerver.errors import EffectError
from zerver.trace import inert
from zerver.trace.failures import known_base, place_of, said, shown, traceback_of
from zerver.trace.hidden import Hidden, Secrets
from zerver.trace.inert import Masked, type_name
from zerver.trace.naming import Namer
from zerver.trace.plain import plain as plain
from zerver.trace.recording.asked import Asked, written_function
from zerver.trace.recording.masking import Bare, credentials, masked, placeholder
from zerver.trace.shapes import shape_of

#: What a value is written as.
Tree: TypeAlias = Any

#: How deep values may nest.
DEEPEST: Final = 40

#: However little room is left, so many characters of a text stay.
_LEAST: Final = 64
_REPR: Final = 400
_TEXT: Final = 4 * 1024
_TRACE: Final = 16 * 1024

#: Objects of these modules are no data: from a connection all of the server can be reached.
_MACHINERY: Final = ("trio.", "zerver.runtime.", "zerver.http.")

_MISSING: Final[Any] = object()


class Encoder:
    """Writes the values of one run. most_bytes: about how much one of them may take; most_in_all: all of them.

    values: the entries that {"$": number} refers to. asked: the kinds of effects that they refer to. namer: has found
    what names show to be secret; when that is something `secrets` does not know, all is to be written once more.
    """

    def __init__(self, secrets: Secrets, hidden: Hidden, most_bytes: int, most_in_all: int) -> None:
        self.secrets = secrets
        self.namer = Namer(hidden)
        self.values: list[Tree] = []
        self.asked = Asked()
        self._named = bool(hidden.names)
        self._most = most_bytes
        self._in_all = most_in_all
        self._left = most_bytes
        self._weights: list[int] = []
        self._places: dict[int, int] = {}
        self._wholes: dict[int, int] = {}  # of values that are written as secrets
        self._alive: list[object] = []  # whose ids are in the tables above

    # -- entries --

    def refer(self, value: object, *, whole: bool = False, trace: bool = False) -> Tree:
        """A value of a record. whole: all of it is secret. trace: an error is written with its traceback."""
        if value.__class__ in _SMALL:
            return self._masked(value) if whole else self._fresh(value)
        places = self._wholes if whole else self._places
        place = places.get(id(value))
        if place is None:
            if whole:
                tree = self._start(lambda: self._masked(value))
            elif trace and isinstance(value, BaseException):
                tree = self._start(lambda: self._error(value, 0, trace=True))
            else:
                tree = self._fresh(value)
            self.values.append(tree)
            self._weights.append(max(8, self._most - self._left))
            place = len(self.values) - 1
            places[id(value)] = place
            self._alive.append(value)
        else:
            self._in_all -= self._weights[place]
        return {"$": place}

    def named(self, value: object, name: str) -> Tree:
        """A value of a record that is known to be secret by its name."""
        kept = credentials(value, name)
        return self.refer(value, whole=True) if kept is None else kept

    def text(self, text: str) -> str:
        """A text of the runtime or of an error, masked."""
        masked = self.secrets.text(text)
        return masked if len(masked) <= _TEXT else masked[:_TEXT] + "…"

    def _fresh(self, value: object) -> Tree:
        return self._start(lambda: self._node(value, 0))

    def _start(self, write: Callable[[], Tree]) -> Tree:
        before = self._left = self._most if self._in_all > 0 else min(self._most, 256)
        tree = write()
        self._in_all -= before - self._left
        return tree

    # -- one node --

    def _node(self, value: Any, deep: int) -> Tree:
        self._left -= 8
        cls = value.__class__
        if cls is str:
            return self._str(value)
        if cls is int:
            return self._int(value)
        if value is None or cls is bool:
            return value
        if deep > DEEPEST:
            return self._cut(value)
        write = _WRITERS.get(cls)
        try:
            return write(self, value, deep) if write is not None else self._other(value, cls, deep)
        except RecursionError:
            return self._headed(type_name(cls), 0, "")
        except Exception:  # an attribute that is user code, or a collection that is changed meanwhile
            return {"$": "opaque", "type": type_name(cls), "repr": f"<{cls.__name__}>", "fields": {}}

    def _str(self, value: str) -> Tree:
        if self._named:
            value = self.namer.text(value)
        value = self.secrets.text(value)
        size = len(value)
        if size > _LEAST and size > self._left:
            return self._headed("str", size, value[: max(_LEAST, self._left)])
        self._left -= size
        return value if value.isascii() else self._whole(value)

    def _whole(self, value: str) -> Tree:
        """A text that may have half a character in it, as file names do: UTF-8 has none."""
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"$": "surrogates", "is": value.encode("utf-8", "surrogatepass").decode("latin-1")}
        return value

    def _int(self, value: int) -> Tree:
        if self.secrets.exact and self.secrets.holds(value):
            return placeholder("int")
        if -(1 << 62) < value < 1 << 62:
            return value
        if value.bit_length() > 8192:  # Python itself refuses to print what is much longer
            return self._headed("int", value.bit_length() // 8, "")
        return {"$": "int", "is": str(value)}

    def _float(self, value: float, deep: int) -> Tree:
        if self.secrets.exact and self.secrets.holds(value):
            return placeholder("float")
        return value if value - value == 0 else {"$": "float", "is": repr(value)}

    def _scalar(self, value: Any, deep: int) -> Tree:
        name = type(value).__name__
        if self.secrets.exact and self.secrets.holds(value):
            return placeholder(name)
        self._left -= 40
        if isinstance(value, datetime.timedelta):
            return {"$": name, "is": [value.days, value.seconds, value.microseconds]}
        if isinstance(value, datetime.date | datetime.time):
            tree = {"$": name, "is": value.isoformat()}
            return {**tree, "fold": 1} if getattr(value, "fold", 0) else tree
        text = str(value)
        return {"$": name, "is": text} if len(text) <= 4096 else self._headed(name, len(text), text[:_LEAST])

    def _bytes(self, value: Any, deep: int) -> Tree:
        tag, octets = type(value).__name__, bytes(value)
        if self._named:
            octets = self.namer.octets(octets)
        octets = self.secrets.octets(octets)
        size = len(octets)
        if size > _LEAST and size > self._left:
            return self._headed(tag, size, octets[: max(_LEAST, self._left)].decode("utf-8", "replace"))
        self._left -= size
        try:
            return {"$": tag, "text": octets.decode()}
        except UnicodeDecodeError:
            return {"$": tag, "b64": b64encode(octets).decode()}

    # -- containers --

    def _list(self, value: Sequence[Any], deep: int) -> Tree:
        return self._known(value) or self._items(value, deep)

    def _tuple(self, value: tuple[Any, ...], deep: int) -> Tree:
        if len(value) == 2 and self.namer.hides(value[0]):
            return {"$": "tuple", "items": [self._node(value[0], deep + 1), self._secret(value[1], value[0])]}
        return self._known(value) or {"$": "tuple", "items": self._items(value, deep)}

    def _set(self, value: Any, deep: int) -> Tree:
        items = [*islice(value, self._most)]
        try:  # so that two runs of different processes, whose strings hash differently, write the same
            items.sort()
        except Exception:  # items of several types, or of one that cannot be compared
            items.sort(key=lambda item: (type(item).__name__, shown(item)))
        return {"$": type(value).__name__, "items": self._items(items, deep)}

    def _items(self, value: Sequence[Any], deep: int) -> Tree:
        written: list[Tree] = []
        for item in value:
            if self._left <= 0:
                self.namer.search(value[len(written) :])
                written.append(self._headed("item", len(value) - len(written), ""))
                break
            written.append(self._node(item, deep + 1))
        return written

    def _dict(self, value: Mapping[Any, Any], deep: int) -> Tree:
        known = self._known(value)
        if known is not None:
            return known
        plain = True
        pairs: list[list[Tree]] = []
        for key, item in value.items():
            if self._left <= 0:
                self.namer.search(list(islice(value.items(), len(pairs), None)))
                pairs.append(["…", self._headed("item", len(value) - len(pairs), "")])
                break
            plain = plain and key.__class__ is str and key != "$"
            secret = self.namer.hides(key)
            named = self._node(key, deep + 1)
            pairs.append([named, self._secret(item, key) if secret else self._node(item, deep + 1)])
        if plain and all(name.__class__ is str for name, _ in pairs):
            tree = dict(pairs)
            if len(tree) == len(pairs):
                return tree
        return {"$": "dict", "items": pairs}

    def _known(self, value: object) -> Tree | None:
        place = self._places.get(id(value))
        if place is None:
            return None
        self._in_all -= self._weights[place]
        return {"$": place}

    # -- objects --

    def _other(self, value: Any, cls: type, deep: int) -> Tree:
        if isinstance(value, Masked):
            return placeholder(inert.PLACEHOLDER_NAMES.get(cls, "int"))
        if isinstance(value, Enum):
            name: Any = value.name  # None for a combination of flags
            return {"$": "enum", "type": type_name(cls), "name": name or "", "is": self._node(value.value, deep + 1)}
        if isinstance(value, Effect):
            return self._effect(value, deep)
        if isinstance(value, EffectKind):
            return self.asked.maker(value)
        shape = shape_of(cls)
        if shape.kind != "plain":
            return self._known(value) or self._object(value, cls, deep)
        if isinstance(value, BaseException):
            return self._known(value) or self._error(value, deep)
        if isinstance(value, type):
            return {"$": "class", "name": type_name(value)}
        if isinstance(value, FunctionType | BuiltinFunctionType | MethodType):
            return written_function(value)
        for base, write in _BASES:
            if isinstance(value, base):
                return {"$": "sub", "type": type_name(cls), "is": write(self, value)}
        return self._strange(value, cls, deep)

    def _object(self, value: Any, cls: type, deep: int) -> Tree:
        if self._left <= 0:  # objects may refer to each other: without an end to it, that has none
            return self._cut(value)
        shape = shape_of(cls)
        fields: dict[str, Tree] = {}
        for name in shape.fields:
            held = getattr(value, name, _MISSING)
            if held is not _MISSING:
                fields[name] = self._secret(held, name) if self.namer.hides(name) else self._node(held, deep + 1)
        tree = {"$": "object", "type": type_name(cls), "fields": fields}
        if shape.own_repr:
            tree["repr"] = self._repr(value)
        if shape.quiet:
            tree["quiet"] = sorted(shape.quiet)
        tell = getattr(cls, "__zerver_after_run__", None)
        if tell is not None:
            tree["after"] = said(tell, value)
        return tree

    def _strange(self, value: Any, cls: type, deep: int) -> Tree:
        """An object of a class that declares no fields: what its own attributes are, and how it shows itself."""
        if isinstance(value, Mapping) or (isinstance(value, list | tuple | set | frozenset) and self._left > 0):
            try:
                whole: Any = dict(value) if isinstance(value, Mapping) else list(value)
            except Exception:  # a lazy mapping whose reading fails
                whole = None
            if whole is not None:
                return {"$": "sub", "type": type_name(cls), "is": self._node(whole, deep)}
        if isinstance(value, Secret):
            self.namer.found.append(value.reveal())
            return {"$": "masked", "of": "Secret"}
        if cls.__module__.startswith(_MACHINERY):
            self.namer.search([value])
            return {"$": "opaque", "type": type_name(cls), "repr": f"<{cls.__name__}>", "fields": {}}
        held = self._attributes(getattr(value, "__dict__", None), deep)
        shown = self._repr(value) if shape_of(cls).own_repr or not held else ""
        return {"$": "opaque", "type": type_name(cls), "repr": shown, "fields": held}

    def _attributes(self, held: object, deep: int) -> dict[str, Tree]:
        if not isinstance(held, Mapping) or self._left <= 0:
            return {}
        written: dict[str, Tree] = {}
        for name, item in list(held.items()):
            if self._left <= 0:
                self.namer.search([item])
                continue
            name = str(name)
            written[name] = self._secret(item, name) if self.namer.hides(name) else self._node(item, deep + 1)
        return written

    def _opaque(self, value: inert.Opaque, deep: int) -> Tree:
        """A stand-in that was read is written as what it stands for."""
        held = inert.content(value)
        fields = self._attributes(held.fields, deep)
        if not held.declared:
            return {"$": "opaque", "type": held.type, "repr": self.secrets.text(held.text), "fields": fields}
        tree: Tree = {"$": "object", "type": held.type, "fields": fields}
        if held.text:
            tree["repr"] = self.secrets.text(held.text)
        if held.quiet:
            tree["quiet"] = sorted(held.quiet)
        if held.afterwards is not None:
            tree["after"] = held.afterwards
        return tree

    def _repr(self, value: object) -> str:
        self._left -= _REPR
        text = self.secrets.text(shown(value))
        return text if len(text) <= _REPR else text[: _REPR - 1] + "…"

    # -- errors --

    def _error(self, error: BaseException, deep: int, trace: bool = False) -> Tree:
        cls = type(error)
        args = [self._node(arg, deep + 1) for arg in error.args]
        fields = self._attributes({n: item for n, item in vars(error).items() if not n.startswith("__")}, deep)
        if isinstance(error, EffectError):
            fields |= {"kind": str(error.kind), "reason": self.text(str(error.reason))}
        text = self.text(said(str, error))
        tree: Tree = {"$": "error", "type": type_name(cls), "text": text, "args": args, "fields": fields}
        base = known_base(cls)
        if base is not cls:
            tree["base"] = type_name(base)
        at = place_of(error)
        if at is not None:
            tree["at"] = list(at)
        if trace or hasattr(error, inert.TRACE):
            tree["trace"] = self._trace(traceback_of(error))
        return tree

    def _trace(self, text: str) -> str:
        text = self.secrets.text(text)
        self._left -= min(len(text), _TRACE)
        return text if len(text) <= _TRACE else "…" + text[-_TRACE:]

    # -- effects --

    def _effect(self, effect: Effect[Any], deep: int) -> Tree:
        kind = effect.kind
        if isinstance(effect, Join):
            tree = self.asked.bare(effect)
            tree["members"] = [self._node(member, deep + 1) for member in effect.members]
            return tree
        target, operation = kind.target, kind.operation
        if target.__class__ is not str:
            target = self.text(said(lambda asked: asked.target, effect))
        if operation.__class__ is not str:
            operation = self.text(said(lambda asked: asked.operation, effect))
        tree = self.asked.manner(effect, {"$": "effect", "kind": self.asked.number(kind, str(target), str(operation))})
        if effect.args:
            tree["args"] = self._items(effect.args, deep)
        if effect.kwargs:
            tree["kwargs"] = self._attributes(effect.kwargs, deep)
        return tree

    # -- secrets --

    def _secret(self, value: object, name: object) -> Tree:
        """What stands under a hidden name."""
        self.namer.note(value, name)
        kept = credentials(value, name.decode("latin-1") if isinstance(name, bytes) else str(name))
        return self._masked(value) if kept is None else kept

    def _masked(self, value: object) -> Tree:
        self._left -= 64
        return masked(value, Bare(self.asked.bare, self.text))

    # -- what is too large --

    def _cut(self, value: object) -> Tree:
        self.namer.search([value])
        size = len(value) if isinstance(value, Sequence | Mapping | set | frozenset) else 0
        return self._headed(type_name(type(value)), size, "")

    def _headed(self, name: str, size: int, head: str) -> Tree:
        self._left -= len(head) + 40
        return {"$": "cut", "type": name, "size": size, "head": head}


# ---- who writes what ------------------------------------------------------------------------


def _named_type(encoder: Encoder, value: inert.NamedType, deep: int) -> Tree:
    return {"$": "class", "name": value.name}


def _named_member(encoder: Encoder, value: inert.NamedMember, deep: int) -> Tree:
    return {"$": "enum", "type": value.type, "name": value.name, "is": encoder._node(value.value, deep + 1)}


def _recut(encoder: Encoder, value: inert.Cut, deep: int) -> Tree:
    return {"$": "cut", "type": value.type, "size": value.size, "head": encoder.secrets.text(value.head)}


_SMALL: Final = frozenset({str, int, float, bool, type(None)})

_WRITERS: Final[Mapping[type, Callable[[Encoder, Any, int], Tree]]] = {
    float: Encoder._float,
    bytes: Encoder._bytes,
    bytearray: Encoder._bytes,
    list: Encoder._list,
    tuple: Encoder._tuple,
    dict: Encoder._dict,
    MappingProxyType: Encoder._dict,
    set: Encoder._set,
    frozenset: Encoder._set,
    datetime.datetime: Encoder._scalar,
    datetime.date: Encoder._scalar,
    datetime.time: Encoder._scalar,
    datetime.timedelta: Encoder._scalar,
    uuid.UUID: Encoder._scalar,
    decimal.Decimal: Encoder._scalar,
    inert.Opaque: Encoder._opaque,
    inert.NamedType: _named_type,
    inert.NamedMember: _named_member,
    inert.Cut: _recut,
}

#: Subclasses of these are written as what they are underneath.
_BASES: Final[tuple[tuple[type, Callable[[Encoder, Any], Tree]], ...]] = (
    (str, lambda encoder, value: encoder._node(str.__str__(value), 0)),
    (int, lambda encoder, value: encoder._int(int.__int__(value))),
    (float, lambda encoder, value: encoder._float(float.__float__(value), 0)),
    (bytes, lambda encoder, value: encoder._bytes(bytes.__getitem__(value, slice(None)), 0)),
)
