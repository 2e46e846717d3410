"""Masking: values that keep their shape and nothing else, and secrets that text names itself.

Law: what is written in place of a secret is of the type that code expects, so that a replay goes on with it. None is
kept, since code asks whether there is anything; so are the class of an object and the names of its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from itertools import islice
from typing import Any, Final
from urllib.parse import unquote_plus

import attrs
import msgspec

from zerver.core.decisions import Fail, Pause
from zerver.core.effects import Effect
from zerver.core.joins import Join
from zerver.errors import EffectError, EffectTimeout, InvalidData, JoinFailed
from zerver.trace.failures import known_base, place_of
from zerver.trace.hidden import Hidden, is_name, masked_credentials, normal, under
from zerver.trace.inert import MASK, PLACEHOLDER_NAMES, PLACEHOLDERS, Cut, Masked, NamedType, Opaque, type_name
from zerver.trace.shapes import shape_of

Tree = Any

#: How deep values may nest, and how many items of a secret's collections keep their place.
_DEEPEST: Final = 40
_MOST_ITEMS: Final = 1_000

#: How many parts of a value are searched for hidden names when it is too large to be written; with more, all is masked.
_MOST_SEARCHED: Final = 200_000

#: Where the types stand that have placeholders.
_PLAIN: Final = frozenset({"builtins", "datetime", "decimal", "uuid", "zerver.core.secret"})

#: Fields that code names, and that are shown of any step: how it failed in general, and which signal it waits for.
_KEPT: Final[Mapping[type, tuple[str, ...]]] = {Fail: ("kind", "what"), Pause: ("signal", "expires")}

_NO_PARTS = (str, bytes, int, float, bool, type(None))


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


class Namer:
    """Knows secrets by what stands before them. found: what was so named. blind: there was too much to look at."""

    def __init__(self, hidden: Hidden) -> None:
        self.found: list[object] = []
        self.blind = False
        self.hidden = hidden
        self._known: dict[object, bool] = {}

    def hides(self, name: object) -> bool:
        """Whether what stands under this name, or key, is secret."""
        known = self._known.get(name) if name.__class__ is str or name.__class__ is bytes else False
        if known is None:
            text = name.decode("latin-1") if isinstance(name, bytes) else str(name)
            known = len(text) <= 64 and self.hidden.hides(text)
            if len(self._known) < 1_000:
                self._known[name] = known
        return known

    def secret(self, value: object, name: object) -> Tree | None:
        """Note what stands under a hidden name. Gives what to write for credentials; None for anything else."""
        called = name.decode("latin-1") if isinstance(name, bytes) else str(name)
        self.found += under(called, value)
        return credentials(value, called)

    # -- text that names its values itself: a query, a form, or JSON --

    def text(self, text: str) -> str:
        """The text without what hidden names stand before in it."""
        if text[:1] in ("{", "["):
            return self._json(text)
        return self.hidden.query.sub(self._noted, text) if "=" in text else text

    def octets(self, octets: bytes) -> bytes:
        """The same for bytes."""
        try:
            text = octets.decode()
        except UnicodeDecodeError:
            return octets
        named = self.text(text)
        return octets if named is text else named.encode()

    def _noted(self, match: Any) -> str:
        self.found += [match[2], unquote_plus(match[2])]
        return f"{match[1]}{MASK}"

    def _json(self, text: str) -> str:
        try:
            document = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            return text
        before = len(self.found)
        blank = self._blanked(document, 0, False)
        return text if len(self.found) == before else msgspec.json.encode(blank).decode()

    def _blanked(self, value: Any, deep: int, secret: bool) -> Any:
        if deep > 4 * _DEEPEST:
            self.blind = True
            return MASK
        if isinstance(value, dict):
            return {k: self._blanked(v, deep + 1, secret or self._is_found(k, v)) for k, v in value.items()}
        if isinstance(value, list):
            return [self._blanked(item, deep + 1, secret) for item in value]
        return value if not secret or value is None else MASK if isinstance(value, str) else 0

    def _is_found(self, name: str, value: object) -> bool:
        if self.hides(name):
            self.found.append(value)
            return True
        return False

    # -- what is too large to be written --

    def search(self, rest: Iterable[Any]) -> None:
        """Look for hidden names in what is not written: a part of it may be handed on in something smaller."""
        look: list[Any] = [*islice(rest, _MOST_SEARCHED + 1)]
        done: set[int] = set()  # all of them are held by the value that is searched
        seen = 0
        while look:
            value = look.pop()
            seen += 1
            if seen > _MOST_SEARCHED:
                self.blind = True
                return
            if isinstance(value, _NO_PARTS) or id(value) in done:
                continue
            done.add(id(value))
            pairs: Iterable[tuple[Any, Any]] = ()
            if isinstance(value, Mapping):
                pairs = list(value.items())
            elif isinstance(value, tuple) and len(value) == 2:
                pairs = (value,)
            elif isinstance(value, list | tuple | set | frozenset):
                look += value
            else:
                names = shape_of(type(value)).fields or tuple(getattr(value, "__dict__", ()))
                pairs = [(name, getattr(value, name, None)) for name in names]
            for name, item in pairs:
                if self.hides(name):
                    self.secret(item, name)
                else:
                    look.append(item)
