"""Units: what an operator writes, as a value: `64MiB`, `15m`, `250ms`, `5%`, `yes`; and the value as it is written.

Law: a kind reads text as an environment has it, and whatever TOML has, and raises ValueError for anything that it does
not take, without repeating it: what was written may be a secret. What a kind shows, it reads as the same value again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final
from urllib.parse import unquote

import attrs

_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+) *([A-Za-z%]*)")
_USERINFO: Final = re.compile(r"(?<=://)[^/?#@]*@")
_TOKEN_CHARACTERS: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # of a header's name (RFC 9110, 5.6.2)
_MOST: Final = 1 << 63  # TOML's own bound; none of our settings comes near

_SIZES: Final = {"": 1, "b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_TIMES: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_FLAGS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@attrs.frozen(eq=False)
class Kind:
    """One kind of value. wanted: what to write, as "a size, as 64MiB". blank: whether an empty text is a value.

    read: raises ValueError. show: the value as it is written, without the parts of it that are nobody's business.
    """

    wanted: str
    read: Callable[[object], Any]
    show: Callable[[Any], str] = str
    blank: bool = False


def _text(given: object) -> str:
    if not isinstance(given, str) or not given.isprintable():
        raise ValueError
    return given


def _token(given: object) -> str:
    """Somebody who may guess a thousand times a second must not come to the end of it."""
    text = _text(given)
    if len(text) < 16 or not text.isascii():
        raise ValueError
    return text


def _url(given: object) -> str:
    text = _text(given)
    if text and not re.fullmatch(r"https?://[^/?#\s]+[^\s]*", text):
        raise ValueError
    return text


def _journal(given: object) -> str:
    text = _text(given)
    if text and not re.fullmatch(r"sqlite:///[^?#]+|postgres(ql)?://\S+", text):
        raise ValueError
    return text


def _flag(given: object) -> bool:
    if isinstance(given, bool):
        return given
    if isinstance(given, str) and given.lower() in _FLAGS:
        return _FLAGS[given.lower()]
    raise ValueError


def _measured(given: object, units: Mapping[str, float], own: float) -> float:
    """A number with its unit. own: what a number without one counts, unless `units` says so."""
    if isinstance(given, str):
        found = _NUMBER.fullmatch(given.strip())
        if found is None or (found[2] and found[2].lower() not in units):
            raise ValueError
        number = float(found[1]) * (units[found[2].lower()] if found[2] else own)
    elif isinstance(given, int | float) and not isinstance(given, bool) and abs(given) < _MOST:
        number = given * own
    else:
        raise ValueError
    if not math.isfinite(number) or not 0 <= number < _MOST:
        raise ValueError
    return number


def _size(given: object) -> int:
    number = _measured(given, _SIZES, 1)
    if number != int(number):
        raise ValueError
    return int(number)


def _share(given: object) -> float:
    number = _measured(given, {"%": 0.01}, 1)
    if number > 1:
        raise ValueError
    return float(round(number, 12))  # 7 % is 0.07, and no more


def _names(given: object) -> tuple[str, ...]:
    words = given.split(",") if isinstance(given, str) else given
    if not isinstance(words, list | tuple):
        raise ValueError
    return tuple(name for name in (_text(word).strip() for word in words) if name)


def _headers(given: object) -> tuple[tuple[str, str], ...]:
    """As OTEL_EXPORTER_OTLP_HEADERS has them (W3C Baggage: what is no plain character of a value is %-encoded)."""
    said: list[tuple[str, str]] = []
    for word in _text(given).split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not word.strip():
            continue
        value = unquote(value)
        if not equals or not _TOKEN_CHARACTERS.fullmatch(name) or not value.isprintable() or not value.isascii():
            raise ValueError
        said.append((name.lower(), value))
    return tuple(said)


def _in_units(value: float, units: Mapping[str, float], least: str) -> str:
    """The value in the largest unit that makes a whole number of it."""
    for unit, worth in sorted(units.items(), key=lambda item: -item[1]):
        whole = round(value / worth)
        if whole and whole * worth == value:
            return f"{whole}{unit}"
    return f"{_digits(value / units[least])}{least}"


def _digits(number: float) -> str:
    """All of a number's digits, and no exponent."""
    return format(Decimal(repr(number)), "f").removesuffix(".0")


_SHOWN_SIZES: Final = {"GiB": 1024**3, "MiB": 1024**2, "KiB": 1024, "B": 1}
_SHOWN_TIMES: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

TEXT: Final = Kind("a text", _text, blank=True)
TOKEN: Final = Kind("a text of 16 ASCII characters or more", _token)
HEADERS: Final = Kind("headers, as name=value,name=value", _headers, str, blank=True)
URL: Final = Kind("a URL, as http://127.0.0.1:4318", _url, lambda url: _USERINFO.sub("‹secret›@", url), blank=True)
JOURNAL: Final = Kind(
    "sqlite:///FILE or postgresql://…", _journal, lambda url: _USERINFO.sub("‹secret›@", url), blank=True
)
FLAG: Final = Kind("yes or no", _flag, lambda flag: "yes" if flag else "no")
SIZE: Final = Kind("a size, as 65536, 64KiB or 10MB", _size, lambda size: _in_units(size, _SHOWN_SIZES, "B"))
SECONDS: Final = Kind(
    "a time, as 10, 250ms, 15m or 7d",
    lambda given: float(_measured(given, _TIMES, 1.0)),
    lambda seconds: _in_units(seconds, _SHOWN_TIMES, "s"),
)
MILLISECONDS: Final = Kind(
    "milliseconds, as 250, 250ms or 2s",
    lambda given: float(round(_measured(given, _TIMES, 0.001) * 1000, 9)),
    lambda ms: f"{_digits(ms)}ms",
)
SHARE: Final = Kind("a share, as 0.05 or 5%", _share, _digits)
NAMES: Final = Kind("names with commas between them", _names, ",".join, blank=True)


def at_least(kind: Kind, least: float) -> Kind:
    """The same kind of number, from so much on."""

    def read(given: object) -> Any:
        value = kind.read(given)
        if value < least:
            raise ValueError
        return value

    return attrs.evolve(kind, read=read, wanted=f"{kind.wanted}, and {kind.show(least)} or more")


def count(least: int, most: int) -> Kind:
    """A whole number within these."""

    def read(given: object) -> int:
        number = _measured(given, {}, 1)
        if number != int(number) or not least <= number <= most:
            raise ValueError
        return int(number)

    return Kind(f"a whole number from {least} to {most}", read)


def choice(*words: str) -> Kind:
    """One of these words. TOML's true and false are `on` and `off`, where there are such."""

    def read(given: object) -> str:
        word = ("on" if given else "off") if isinstance(given, bool) else given
        if not isinstance(word, str) or word.lower() not in words:
            raise ValueError
        return word.lower()

    return Kind(f"one of {', '.join(words)}", read)
