"""Naming: secrets that are known by what stands before them: the name of a field, of a header, of a key.

Law: what is found is told whole, with the forms in which it may be handed on; what cannot be looked through is told as
`blind`, and then nobody can say what is no secret. Nothing here changes a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final
from urllib.parse import unquote_plus

import msgspec

from zerver.core.effects import Effect
from zerver.core.secret import Secret
from zerver.trace.hidden import Hidden, under
from zerver.trace.inert import MASK, Opaque, content
from zerver.trace.shapes import shape_of

#: How deep JSON in a text may nest.
_DEEPEST: Final = 160

#: How many parts of a value are searched; with more, all is masked.
_MOST_SEARCHED: Final = 200_000

_NO_PARTS: Final = frozenset({int, float, bool, type(None)})


class Namer:
    """Finds them. found: what was so named. blind: there was too much to look at."""

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

    def note(self, value: object, name: object) -> None:
        """This stands under a hidden name."""
        self.found += under(name.decode("latin-1") if isinstance(name, bytes) else str(name), value)

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
        if deep > _DEEPEST:
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

    # -- what nobody writes down --

    def search(self, rest: Iterable[Any], most: int = _MOST_SEARCHED) -> None:
        """Look for hidden names in all of these. What they are made of must be held by somebody for as long."""
        if self.blind:
            return
        look: list[Any] = [*islice(rest, most + 1)]
        done: set[int] = set()
        in_texts = bool(self.hidden.names)
        seen = 0
        while look:
            value = look.pop()
            seen += 1
            if seen > most:
                self.blind = True
                return
            if value.__class__ in _NO_PARTS or id(value) in done:
                continue
            if isinstance(value, str | bytes | bytearray):
                if in_texts:
                    _ = self.text(value) if isinstance(value, str) else self.octets(bytes(value))
                continue
            done.add(id(value))
            try:
                self._open(value, look)
            except Exception:  # an attribute that is user code, or a collection that is changed meanwhile
                self.blind = True
                return

    def _open(self, value: Any, look: list[Any]) -> None:
        """Note what is secret of the parts of a value, and put the rest where it is looked at."""
        pairs: Iterable[tuple[Any, Any]]
        if isinstance(value, list | tuple | set | frozenset):
            look += value
            if not isinstance(value, tuple) or len(value) != 2:
                return
            pairs = () if not self.hides(value[0]) else (value,)
        elif isinstance(value, Effect):
            look += value.args
            pairs = value.kwargs.items()
        elif isinstance(value, Mapping):
            pairs = list(value.items())
        elif isinstance(value, Secret):
            self.found.append(value.reveal())
            return
        elif isinstance(value, Opaque):
            pairs = content(value).fields.items()
        else:
            names = shape_of(type(value)).fields or tuple(getattr(value, "__dict__", ()))
            pairs = [(name, getattr(value, name, None)) for name in names]
        for name, item in pairs:
            if item is not None and self.hides(name):
                self.note(item, name)
            else:
                look.append(item)
