"""Reviving: values as they are in memory, out of what was written.

Law: reading imports nothing and calls no code of a user's. An object of a class that the vocabulary knows is made
without its `__init__`: its fields are put back as they were. That is no way around its invariants, since they held when
it was recorded; running validators would be: on masked fields they fail, and on hostile ones they are somebody else's
code run for a file. A class that is not known, or cannot be made so, gives an Opaque; so does one of Zerver's own that
has not the fields which the readers of timelines count on.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, cast

import attrs

from zerver.core.decisions import FAIL_KINDS, Fail, Pause
from zerver.core.effects import Compensation, Effect, EffectKind
from zerver.core.joins import KINDS, Join, JoinRule
from zerver.core.offload import OffloadKind
from zerver.core.overruns import Overrun
from zerver.core.policy import Policy
from zerver.core.secret import Secret
from zerver.core.steps import Step
from zerver.core.tickets import Refusal
from zerver.effects.http import Exchange, Reply
from zerver.errors import EffectError, TraceError
from zerver.trace import inert
from zerver.trace.failures import revived_error, said
from zerver.trace.recording.vocabulary import Vocabulary
from zerver.trace.shapes import shape_of

#: How deep a recording may nest; what is written nests less.
DEEPEST: Final = 200

#: Parts and characters of all values, those that are referred to counted each time: who shows them shows so much.
MOST: Final = 1 << 28

_NAME: Final = 300


class Decoder:
    """Reads the values of one run. values, kinds: as the Encoder left them. step: the recorded step of a name.

    where: what is being read, for errors.
    """

    def __init__(
        self, vocabulary: Vocabulary, values: Sequence[Any], kinds: Sequence[Any], step: Callable[[str], Step[..., Any]]
    ) -> None:
        self.vocabulary = vocabulary
        self.where = "values"
        self._spent = 0
        self._weights: list[int] = []
        self._values: list[Any] = []
        self._kinds = [_kind(kind, step) for kind in kinds]
        for number, tree in enumerate(values):
            self.where = f"value {number}"
            before = self._spent
            value = self.node(tree)
            self._values.append(value)
            self._weights.append(self._spent - before)

    def node(self, tree: Any, deep: int = 0) -> Any:
        """A value."""
        self._spend(1)
        if isinstance(tree, str):
            self._spend(len(tree))
            return tree
        if tree is None or isinstance(tree, bool | int | float):
            return tree
        if deep > DEEPEST:
            raise TraceError(f"{self.where}: nested too deeply")
        if isinstance(tree, list):
            return [self.node(item, deep + 1) for item in tree]
        tag = tree.get("$", tree)
        if tag is tree:
            return {name: self.node(item, deep + 1) for name, item in tree.items()}
        if isinstance(tag, int):
            return self._referred(tag)
        read = _READERS.get(tag) if isinstance(tag, str) else None
        if read is None:
            raise TraceError(f"{self.where}: an unknown kind of value")
        return read(self, tree, deep + 1)

    def error(self, tree: Any) -> EffectError | None:
        """The error of an effect, or None."""
        found = self.node(tree)
        if found is not None and not isinstance(found, EffectError):
            raise TraceError(f"{self.where}: no error of an effect")
        return found

    def effect(self, tree: Any) -> Effect[Any]:
        """An effect."""
        found = self.node(tree)
        if not isinstance(found, Effect):
            raise TraceError(f"{self.where}: no effect")
        return found

    def _referred(self, number: int) -> Any:
        if isinstance(number, bool) or not 0 <= number < len(self._values):
            raise TraceError(f"{self.where}: refers to a value that is not there")
        self._spend(self._weights[number])
        return self._values[number]

    def _spend(self, amount: int) -> None:
        self._spent += amount
        if self._spent > MOST:
            raise TraceError("the values are more than anybody could show")

    # -- builtins --

    def _text(self, tree: Any, name: str = "is", most: int = 1 << 26) -> str:
        text = tree.get(name)
        if not isinstance(text, str) or len(text) > most:
            raise TraceError(f"{self.where}: {name!r} is no text")
        self._spend(len(text))
        return text

    def _items(self, tree: Any, deep: int, name: str = "items") -> list[Any]:
        items = tree.get(name, [])
        if not isinstance(items, list):
            raise TraceError(f"{self.where}: {name!r} is no list")
        return [self.node(item, deep) for item in items]

    def _fields(self, tree: Any, deep: int, name: str = "fields") -> dict[str, Any]:
        fields = tree.get(name, {})
        if not isinstance(fields, dict):
            raise TraceError(f"{self.where}: {name!r} is no object")
        return {name: self.node(item, deep) for name, item in fields.items()}

    def read_tuple(self, tree: Any, deep: int) -> Any:
        return tuple(self._items(tree, deep))

    def read_set(self, tree: Any, deep: int) -> Any:
        return set(self._hashable(tree, deep))

    def read_frozenset(self, tree: Any, deep: int) -> Any:
        return frozenset(self._hashable(tree, deep))

    def _hashable(self, tree: Any, deep: int) -> list[Any]:
        return [_hashed(item) for item in self._items(tree, deep)]

    def read_dict(self, tree: Any, deep: int) -> Any:
        pairs = tree.get("items", [])
        read = {}
        for pair in pairs:
            key, value = pair
            read[_hashed(self.node(key, deep))] = self.node(value, deep)
        return read

    def read_bytes(self, tree: Any, deep: int) -> Any:
        if "b64" in tree:
            return b64decode(self._text(tree, "b64"), validate=True)
        return self._text(tree, "text").encode()

    def read_bytearray(self, tree: Any, deep: int) -> Any:
        return bytearray(self.read_bytes(tree, deep))

    def read_int(self, tree: Any, deep: int) -> Any:
        return int(self._text(tree, most=2_500))

    def read_float(self, tree: Any, deep: int) -> Any:
        return float(self._text(tree, most=100))

    def read_surrogates(self, tree: Any, deep: int) -> Any:
        return self._text(tree).encode("latin-1").decode("utf-8", "surrogatepass")

    def read_datetime(self, tree: Any, deep: int) -> Any:
        return datetime.datetime.fromisoformat(self._text(tree, most=100)).replace(fold=tree.get("fold", 0))

    def read_date(self, tree: Any, deep: int) -> Any:
        return datetime.date.fromisoformat(self._text(tree, most=100))

    def read_time(self, tree: Any, deep: int) -> Any:
        return datetime.time.fromisoformat(self._text(tree, most=100)).replace(fold=tree.get("fold", 0))

    def read_timedelta(self, tree: Any, deep: int) -> Any:
        days, seconds, microseconds = tree["is"]
        return datetime.timedelta(days, seconds, microseconds)

    def read_uuid(self, tree: Any, deep: int) -> Any:
        return uuid.UUID(self._text(tree, most=100))

    def read_decimal(self, tree: Any, deep: int) -> Any:
        return decimal.Decimal(self._text(tree, most=5_000))

    # -- stand-ins --

    def read_masked(self, tree: Any, deep: int) -> Any:
        return inert.PLACEHOLDERS[self._text(tree, "of", _NAME)]

    def read_secret(self, tree: Any, deep: int) -> Any:
        return Secret(self.node(tree.get("is"), deep))

    def read_cut(self, tree: Any, deep: int) -> Any:
        size = tree.get("size")
        if not _is_int(size):
            raise TraceError(f"{self.where}: a size that is no number")
        return inert.Cut(self._text(tree, "type", _NAME), size, self._text(tree, "head"))

    def read_named_class(self, tree: Any, deep: int) -> Any:
        name = self._text(tree, "name", _NAME)
        return self.vocabulary.find(name) or inert.NamedType(name)

    def read_function(self, tree: Any, deep: int) -> Any:
        return inert.inert_function(self._text(tree, "name", _NAME))

    def read_opaque(self, tree: Any, deep: int) -> Any:
        type_, fields = self._text(tree, "type", _NAME), self._fields(tree, deep)
        return inert.Opaque(type_, fields, self._text(tree, "repr"), declared=False)

    # -- objects --

    def read_object(self, tree: Any, deep: int) -> Any:
        name, fields = self._text(tree, "type", _NAME), self._fields(tree, deep)
        known = self.vocabulary.find(name)
        made = None if known is None else make(known, fields)
        if made is not None and _is_sound(made):
            return made
        quiet = tree.get("quiet", [])
        after = tree.get("after")
        if not isinstance(quiet, list) or not isinstance(after, str | None):
            raise TraceError(f"{self.where}: no object")
        shown = self._text(tree, "repr") if "repr" in tree else ""
        return inert.Opaque(name, fields, shown, frozenset(map(str, quiet)), after)

    def read_enum(self, tree: Any, deep: int) -> Any:
        type_, name = self._text(tree, "type", _NAME), self._text(tree, "name", _NAME)
        value = self.node(tree.get("is"), deep)
        known = self.vocabulary.find(type_)
        if known is not None and issubclass(known, Enum):
            members = known.__members__
            if name in members:
                return members[name]
            found = known._value2member_map_.get(value) if isinstance(value, int | str) else None
            if found is not None:
                return found
        return inert.NamedMember(type_, name, value)

    def read_sub(self, tree: Any, deep: int) -> Any:
        value = self.node(tree.get("is"), deep)
        known = self.vocabulary.find(self._text(tree, "type", _NAME))
        base = type(value)
        new: Any = base.__new__  # none of the user's
        if known is not None and base in (str, int, float, bytes) and issubclass(known, base) and known is not bool:
            try:
                return new(known, value)
            except Exception:  # its base is not what it was
                return value
        return value

    # -- effects --

    def read_effect_kind(self, tree: Any, deep: int) -> Any:
        return self._kind(tree.get("is"))

    def _kind(self, number: Any) -> EffectKind[..., Any]:
        if not _is_int(number) or not 0 <= number < len(self._kinds):
            raise TraceError(f"{self.where}: an effect of no kind")
        kind: EffectKind[..., Any] = self._kinds[number]
        return kind

    def read_asked(self, tree: Any, deep: int) -> Any:
        kind = self._kind(tree.get("kind"))
        args, kwargs = tuple(self._items(tree, deep, "args")), self._fields(tree, deep, "kwargs")
        return Effect(kind, args, kwargs, *self._manner(tree, deep))

    def read_join(self, tree: Any, deep: int) -> Any:
        name, k, after, limit = tree["rule"]
        rule = JoinRule(name, k, after, limit)
        members = self._items(tree, deep, "members")
        if name not in KINDS or not _is_sound(rule) or not all(isinstance(member, Effect) for member in members):
            raise TraceError(f"{self.where}: no join")
        if name == "hedge" and len(members) != 1:
            raise TraceError(f"{self.where}: no hedge")
        return Join(KINDS[name], (rule, *members), {}, *self._manner(tree, deep))

    def _manner(self, tree: Any, deep: int) -> tuple[Policy | None, Compensation | None, Any]:
        form = tree.get("form", "value")
        if form not in ("value", "optional", "outcome"):
            raise TraceError(f"{self.where}: an effect of no form")
        said = tree.get("policy")
        policy = None if said is None else _policy(said)
        undo = tree.get("undo")
        if undo is None:
            return policy, None, form
        make = {name: self.node(undo[name], deep) for name in ("undo", "by_key", "resolve") if name in undo}
        if not all(made is None or callable(made) for made in make.values()):
            raise TraceError(f"{self.where}: no compensation")
        return policy, Compensation(**make), form

    # -- errors --

    def read_failure(self, tree: Any, deep: int) -> Any:
        name, text = self._text(tree, "type", _NAME), self._text(tree, "text")
        args, fields = tuple(self._items(tree, deep, "args")), self._fields(tree, deep)
        error = revived_error(self.vocabulary.find(name), name, str(tree.get("base", name))[:_NAME], text, args, fields)
        at, trace = tree.get("at"), tree.get("trace")
        if at is not None:
            file, line = at
            if not isinstance(file, str) or not _is_int(line):
                raise TraceError(f"{self.where}: an error at no place")
            setattr(error, inert.PLACE, (file, line))
        if isinstance(trace, str):
            setattr(error, inert.TRACE, trace)
        return error


_READERS: Final[Mapping[str, Callable[[Decoder, Any, int], Any]]] = {
    "tuple": Decoder.read_tuple,
    "set": Decoder.read_set,
    "frozenset": Decoder.read_frozenset,
    "dict": Decoder.read_dict,
    "bytes": Decoder.read_bytes,
    "bytearray": Decoder.read_bytearray,
    "int": Decoder.read_int,
    "float": Decoder.read_float,
    "surrogates": Decoder.read_surrogates,
    "datetime": Decoder.read_datetime,
    "date": Decoder.read_date,
    "time": Decoder.read_time,
    "timedelta": Decoder.read_timedelta,
    "UUID": Decoder.read_uuid,
    "Decimal": Decoder.read_decimal,
    "masked": Decoder.read_masked,
    "secret": Decoder.read_secret,
    "cut": Decoder.read_cut,
    "class": Decoder.read_named_class,
    "function": Decoder.read_function,
    "opaque": Decoder.read_opaque,
    "object": Decoder.read_object,
    "enum": Decoder.read_enum,
    "sub": Decoder.read_sub,
    "kind": Decoder.read_effect_kind,
    "effect": Decoder.read_asked,
    "join": Decoder.read_join,
    "error": Decoder.read_failure,
}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _hashed(item: Any) -> Any:
    """The item, as a key: what cannot be one shows itself instead."""
    try:
        hash(item)
    except Exception:  # a list, or an object whose hash is user code
        return said(repr, item)
    return item


# ---- objects of known classes ---------------------------------------------------------------


def make(known: type, fields: Mapping[str, Any]) -> Any:
    """An object of a class with these fields, without its `__init__`; None when it cannot be made so.

    A Struct alone has no other way into memory: its `__init__` runs, and may refuse.
    """
    shape = shape_of(known)
    try:
        if shape.kind == "struct":
            return known(**fields)
        if shape.kind == "namedtuple":
            return tuple.__new__(known, [fields[name] for name in shape.fields])
        if shape.kind == "plain" or issubclass(known, BaseException):
            return None
        made = object.__new__(known)
        for name in shape.fields:
            object.__setattr__(made, name, fields[name] if name in fields else _default(known, name))
        if "_attrs_cached_hash" in dir(known):
            object.__setattr__(made, "_attrs_cached_hash", None)
        return made
    except Exception:  # no such fields, or a class that is made in another way
        return None


def _default(known: type, name: str) -> Any:
    """The default of a field that the class has got since; KeyError if there is none, or if code would have to run."""
    if attrs.has(known):
        default = attrs.fields_dict(cast("Any", known))[name].default
        if default is not attrs.NOTHING and not isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # attrs says it is a function
            return default
        factory = getattr(default, "factory", None)
        if factory in (list, dict, set):
            return factory()
    raise KeyError(name)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e15


def _is_sound(made: Any) -> bool:
    """Whether an object of a class of ours has fields of the types that its readers count on; else it is opaque."""
    check = _SOUND.get(type(made))
    return check is None or check(made)


def _texts(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


_SOUND: Final[Mapping[type, Callable[[Any], bool]]] = {
    Fail: lambda v: v.kind in FAIL_KINDS and _texts(v.what, v.key or "", v.detail or ""),
    Pause: lambda v: isinstance(v.signal, str) and _finite(v.expires),
    Refusal: lambda v: _texts(v.reason) and _is_int(v.status) and (v.retry_after is None or _finite(v.retry_after)),
    Overrun: lambda v: _texts(v.step, v.place) and _is_int(v.took) and _is_int(v.budget) and v.budget > 0,
    JoinRule: lambda v: _is_int(v.k) and _is_int(v.limit) and (isinstance(v.after, str) or _finite(v.after)),
    Exchange: lambda v: _texts(v.method, v.url),
    Reply: lambda v: isinstance(v.status, int) and isinstance(v.headers, Mapping),
}


def _policy(said: Any) -> Policy:
    timeout, retries, backoff, cap = said
    if not (retries is None or _is_int(retries)) or not all(s is None or _finite(s) for s in (timeout, backoff, cap)):
        raise TraceError("a policy that says nothing sensible")
    return Policy(timeout=timeout, retries=retries, backoff=backoff, backoff_cap=cap)


def _kind(tree: Any, step: Callable[[str], Step[..., Any]]) -> EffectKind[..., Any]:
    name, access = tree["name"], tree["access"]
    target, operation, flags = tree["target"], tree["operation"], tree.get("flags", [])
    if not _texts(name, target, operation) or access not in ("read", "write") or not isinstance(flags, list):
        raise TraceError("a kind of effect that is none")
    how: dict[str, Any] = {flag: True for flag in flags if flag in ("takes_key", "instant", "exact")}
    if "step" in tree:
        return OffloadKind(name, access, target=target, operation=operation, step=step(str(tree["step"])), **how)
    return EffectKind(name, access, target=target, operation=operation, **how)
