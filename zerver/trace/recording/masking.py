"""Masking: values that keep their shape and nothing else.

Law: what is written in place of a secret is of the type that code expects, so that a replay goes on with it. None is
kept, since code asks whether there is anything; so are the class of an object and the names of its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from itertools import islice
from typing import Any, Final

import attrs

from zerver.core.decisions import Fail, Pause
from zerver.core.effects import Effect
from zerver.core.joins import Join
from zerver.errors import EffectError, EffectTimeout, InvalidData, JoinFailed
from zerver.trace.failures import known_base, place_of
from zerver.trace.hidden import is_name, masked_credentials, normal
from zerver.trace.inert import MASK, PLACEHOLDER_NAMES, PLACEHOLDERS, Cut, Masked, NamedType, Opaque, type_name
from zerver.trace.shapes import shape_of

Tree = Any

#: How deep values may nest, and how many items of a secret's collections keep their place.
_DEEPEST: Final = 40
_MOST_ITEMS: Final = 1_000

#: Where the types stand that have placeholders.
_PLAIN: Final = frozenset({"builtins", "datetime", "decimal", "uuid", "zerver.core.secret"})

#: Fields that code names, and that are shown of any step: how it failed in general, and which signal it waits for.
_KEPT: Final[Mapping[type, tuple[str, ...]]] = {Fail: ("kind", "what"), Pause: ("signal", "expires")}


@attrs.frozen
class Bare:
    """What is still written of a secret. effect: an effect without its arguments or members. text: a name that code
    has given, other secrets masked.
    """

    effect: Callable[[Effect[Any]], Tree]
    text: Callable[[str], str]


def placeholder(name: str) -> Tree:
    """A placeholder of a type, as it is written."""
    return {"$": "masked", "of": name}


def masked(value: Any, bare: Bare, deep: int = 0) -> Tree:
    """A secret, as it is written."""
    cls = value.__class__
    if value is None:
        return None
    if cls is str or isinstance(value, Enum):
        return MASK
    if isinstance(value, Masked):
        return placeholder(PLACEHOLDER_NAMES.get(cls, "int"))
    if cls.__name__ in PLACEHOLDERS and cls.__module__ in _PLAIN:
        return placeholder(cls.__name__)
    if deep > _DEEPEST:
        return {"$": "cut", "type": type_name(cls), "size": 0, "head": MASK}
    if isinstance(value, str):
        return {"$": "sub", "type": type_name(cls), "is": MASK}
    deep += 1
    if cls is list or cls is tuple or cls is set or cls is frozenset:
        items = [masked(item, bare, deep) for item in islice(value, _MOST_ITEMS)]
        return items if cls is list else {"$": cls.__name__, "items": items}
    if isinstance(value, dict):
        pairs = [[_masked_key(k, bare), masked(v, bare, deep)] for k, v in islice(value.items(), _MOST_ITEMS)]
        return {"$": "dict", "items": pairs}
    if isinstance(value, BaseException):
        return masked_error(value)
    if isinstance(value, Effect):
        return _masked_effect(value, bare, deep)
    shape = shape_of(cls)
    if shape.kind != "plain" and cls not in (Cut, NamedType):
        kept = _KEPT.get(cls, ())
        fields = {n: _shown(getattr(value, n), bare) for n in kept}
        fields |= {n: masked(getattr(value, n, None), bare, deep) for n in shape.fields if n not in kept}
        return {"$": "object", "type": type_name(cls), "fields": fields}
    known = value._type if cls is Opaque else type_name(cls)
    return {"$": "opaque", "type": known, "repr": MASK, "fields": {}}


def credentials(value: object, name: str) -> Tree | None:
    """What to write for the credentials in an Authorization header; None for anything else."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not normal(name).endswith("authorization"):
        return None
    kept = masked_credentials(text)
    return kept if isinstance(value, str) else {"$": "bytes", "text": kept}


def masked_error(error: BaseException) -> Tree:
    """An error, as it is written: its class, where it was raised, of which effect, and whether that was late."""
    cls, base = type(error), known_base(type(error))
    tree: Tree = {"$": "error", "type": type_name(cls), "text": MASK, "args": [MASK], "fields": {}}
    if isinstance(error, JoinFailed):
        tree["fields"]["failures"] = {"$": "tuple", "items": [masked_error(failure) for failure in error.failures]}
    if isinstance(error, InvalidData):
        tree["fields"]["problems"] = {"$": "tuple", "items": []}
    if isinstance(error, EffectError):
        late = error.cause is None and str(error.reason).startswith("timed out after ")
        reason = str(error.reason) if late or isinstance(error, EffectTimeout) else MASK
        cause = None if error.cause is None else masked_error(error.cause)
        tree["fields"] |= {"kind": error.kind, "reason": reason, "cause": cause}
        tree["text"] = f"{error.kind}: {reason}"
        tree["args"] = [tree["text"]]
    if base is not cls:
        tree["base"] = type_name(base)
    at = place_of(error)
    if at is not None:
        tree["at"] = list(at)
    return tree


def _masked_key(key: object, bare: Bare) -> Tree:
    return bare.text(key) if isinstance(key, str) and is_name(key) else masked(key, bare)


def _shown(value: Any, bare: Bare) -> Tree:
    return bare.text(value) if isinstance(value, str) else value


def _masked_effect(asked: Effect[Any], bare: Bare, deep: int) -> Tree:
    tree = bare.effect(asked)
    if isinstance(asked, Join):
        tree["members"] = [_masked_effect(member, bare, deep + 1) for member in asked.members]
        return tree
    tree["args"] = [masked(arg, bare, deep) for arg in asked.args]
    tree["kwargs"] = {name: masked(arg, bare, deep) for name, arg in asked.kwargs.items()}
    return tree
