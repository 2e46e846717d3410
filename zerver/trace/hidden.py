"""Hiding: which names mark a secret, and every form in which a secret may stand in a text.

Law: over-masking is a nuisance, under-masking is a leak: in doubt, mask. A text is masked before it is cut, so that no
half of a secret is left. What nobody can undo here: a value that code has made of a secret (its hash, its first four
letters) is another value; mark the slot that holds it as well.
"""

from __future__ import annotations

import binascii
import datetime
import decimal
import json
import re
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Final, cast
from urllib.parse import quote, quote_plus

import attrs

from zerver.trace.inert import MASK, Masked

#: Headers that carry who somebody is; fields and mapping keys of these names too.
SENSITIVE: Final = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"})

#: With more forms than this, everything is masked.
_MOST_FORMS: Final = 5_000
_DEEPEST: Final = 8

#: Numbers that tell nothing: masked where a secret slot holds them, and not looked for elsewhere.
_TELL_NOTHING: Final = frozenset({0, 1, -1})


@lru_cache(maxsize=4096)
def normal(name: str) -> str:
    """`X_Api_Key` as `x-api-key`: how names are compared."""
    return name.lower().replace("_", "-")


def _normals(names: Iterable[str]) -> frozenset[str]:
    return frozenset(normal(name) for name in names)


@attrs.frozen
class Hidden:
    """Names that are masked beside `Slot(secret=True)`: of slots, of fields anywhere, of headers, of query parameters.

    Compared without case, "_" as "-". Authorization, cookies and X-Api-Key are always among them.
    """

    names: frozenset[str] = attrs.field(default=frozenset(), converter=_normals)

    def hides(self, name: str) -> bool:
        """Whether what is called so is masked."""
        name = normal(name)
        return name in SENSITIVE or name in self.names

    @property
    def query(self) -> re.Pattern[str]:
        """Finds `name=value` of a hidden name in a query or a form: the name with its "=", and the value."""
        return _query(self.names)


NOTHING_HIDDEN: Final = Hidden()


@lru_cache(maxsize=16)
def _query(names: frozenset[str]) -> re.Pattern[str]:
    either = "|".join(re.escape(name).replace(r"\-", "[-_]") for name in sorted(names))
    return re.compile(rf"(?i)((?:^|[?&;])(?:{either})=)([^&#;\s]+)")


class Secrets:
    """The secrets of one run, and what must not be shown because of them.

    values: what was found to be secret. everything: whether all text is masked, because nobody could say what is not.
    """

    def __init__(self, values: Iterable[object] = (), everything: bool = False) -> None:
        forms: set[str] = set()
        self.exact: set[Any] = set()
        for value in values:
            for leaf in leaves(value, 0):
                forms.update(form for form in _forms(leaf) if form.strip())
                if not isinstance(leaf, str | bytes | bytearray) and _is_scalar(leaf):
                    self._note(leaf)
                if len(forms) > _MOST_FORMS:
                    everything = True
                    break
        forms.discard(MASK)
        self.everything = everything
        self._forms = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern: re.Pattern[str] | None = re.compile(".+", re.DOTALL) if everything else None
        self._wide: Secrets | None = None

    def __bool__(self) -> bool:
        return self.everything or bool(self._forms)

    def text(self, text: str) -> str:
        """The text with every secret in it masked."""
        if self._pattern is None:
            for form in self._forms:  # a pattern costs a tenth of a millisecond to make, and most texts have nothing
                if form in text:
                    break
            else:
                return text
            self._pattern = _pattern(self._forms)
        return self._pattern.sub(MASK, text)

    def octets(self, octets: bytes) -> bytes:
        """The same for bytes, whatever their encoding."""
        if not self:
            return octets
        if self._wide is None:
            self._wide = Secrets(everything=self.everything)
            self._wide._forms = sorted({_wide(form) for form in self._forms}, key=lambda form: (-len(form), form))
        text = octets.decode("latin-1")
        masked = self._wide.text(text)
        return octets if masked is text else masked.replace(MASK, _wide(MASK)).encode("latin-1", "replace")

    def holds(self, value: Any) -> bool:
        """Whether this number, date or id is a secret."""
        try:
            return value in self.exact
        except (TypeError, decimal.InvalidOperation):  # a signaling NaN
            return False

    def _note(self, leaf: Any) -> None:
        try:
            if leaf not in _TELL_NOTHING:
                self.exact.add(leaf)
        except (TypeError, decimal.InvalidOperation):
            return


def _wide(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def _pattern(forms: Iterable[str]) -> re.Pattern[str]:
    # A short form is masked only as a word of its own: a secret "1" must not take every digit along.
    words = [re.escape(form) if len(form) >= 4 else rf"(?<!\w){re.escape(form)}(?!\w)" for form in forms]
    return re.compile("|".join(words))


# ---- what is secret about a value -----------------------------------------------------------


def leaves(value: object, deep: int) -> Iterator[object]:
    """What a secret is made of."""
    if value is None or isinstance(value, bool | Enum | Masked) or deep > _DEEPEST:
        return
    inner: Any = ()
    if isinstance(value, Mapping):
        inner = [*value.values(), *(key for key in value if isinstance(key, str) and not is_name(key))]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = value
    elif attrs.has(type(value)):
        inner = [getattr(value, field.name, None) for field in attrs.fields(cast("Any", type(value)))]
    elif not _is_scalar(value):
        inner = list(getattr(value, "__dict__", {}).values())
    if not isinstance(value, list | tuple | set | frozenset | Mapping):
        yield value
    for item in inner:
        yield from leaves(item, deep + 1)


_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z_.-]{0,31}")


def is_name(key: str) -> bool:
    """Whether a key of a secret mapping is a name that code gave it, as `sub` or `user_id`, and no datum."""
    return _NAME.fullmatch(key) is not None


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | bytes | bytearray | int | float) or type(value).__module__ in _SCALARS


_SCALARS: Final = frozenset({"datetime", "decimal", "uuid"})

#: What may stand before credentials. It is kept, so that code which looks for it finds it.
_SCHEME: Final = re.compile(r"(?i)(bearer|basic|digest|token|apikey|negotiate|dpop)\s+(?=\S)")


def masked_credentials(text: str) -> str:
    """`Bearer ‹secret›`; without a scheme the mask alone."""
    scheme = _SCHEME.match(text)
    return f"{text[: scheme.end()]}{MASK}" if scheme else MASK


def under(name: str, value: object) -> Iterator[object]:
    """What is secret of what stands under a hidden name: all of it, and each cookie of a Cookie header by itself."""
    yield value
    if "cookie" in normal(name):
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if isinstance(text, str):
            yield from (pair.partition("=")[2] for pair in text.split(";"))


def _forms(leaf: object) -> Iterator[str]:
    """Every way in which a leaf may stand in a text."""
    if isinstance(leaf, bytes | bytearray):
        octets = bytes(leaf)
        yield repr(octets)[2:-1]
        yield from _coded(octets)
        leaf = octets.decode("utf-8", "replace")
    if isinstance(leaf, str):
        # "Bearer abc" is handed on as "abc".
        scheme = _SCHEME.match(leaf)
        words = [word for word in leaf.split() if len(word) >= 8]
        if scheme:
            words.append(leaf[scheme.end() :])
            words += _basic(leaf[scheme.end() :])
        for text in {leaf, *words}:
            yield text
            yield from _written(text)
        yield from _coded(leaf.encode("utf-8", "surrogatepass"))
        return
    for show in (repr, str):
        try:
            yield show(leaf)
        except Exception:  # an object that cannot show itself shows nothing
            continue
    if isinstance(leaf, datetime.date | datetime.time):
        yield leaf.isoformat()


def _written(text: str) -> Iterator[str]:
    if text.isalnum() and text.isascii():
        return  # it stands for itself everywhere
    whole = text.encode("utf-8", "replace").decode()
    yield from (repr(text)[1:-1], quote(whole), quote(whole, safe=""), quote_plus(whole), escaped(text))
    yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])


def _coded(octets: bytes) -> Iterator[str]:
    if len(octets) >= 4:
        yield octets.hex()
        yield b64encode(octets).decode().rstrip("=")
        yield urlsafe_b64encode(octets).decode().rstrip("=")


def _basic(text: str) -> list[str]:
    """User and password of HTTP's Basic scheme."""
    try:
        user, colon, password = b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return []
    return [f"{user}:{password}", password] if colon and password else []


def escaped(text: str) -> str:
    """The text on one line of printable characters: newlines, ESC and bidirectional marks are spelled out.

    A tenant, a path or an error message comes from outside; it must neither forge a line nor speak to a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
