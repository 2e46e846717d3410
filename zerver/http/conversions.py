"""Conversions: from the text and the JSON of a request to the types that a signature asks for.

Law: whether a type can be read at all is found out when the route is made, and is a DefinitionError. What a client sent
is InvalidData when it says the wrong thing, and ProtocolViolation when it is not what it claims to be: 400 for JSON
that is none, that nests deeper than 64 or that names a member twice, 415 for another kind of body. No number is NaN,
infinite, or an integer of more than 4,300 digits.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable
from decimal import Decimal
from math import isfinite
from typing import Any, Final, Union

from msgspec import inspect, to_builtins

from zerver.core.codec import convert, decode_json
from zerver.core.strict_json import HARMLESS, check_text, check_value, collected_later, says_no_more
from zerver.errors import DefinitionError, InvalidData, ProtocolViolation
from zerver.http.members import compile_members, is_as_text_says
from zerver.http.messages import RequestHead


def without_none(type_: Any) -> Any:
    """A type without its `| None`: an optional part is absent, never null."""
    members = typing.get_args(type_) if typing.get_origin(type_) in (Union, types.UnionType) else ()
    rest = tuple(member for member in members if member is not type(None))
    return Union[rest] if rest else type_  # noqa: UP007 - a union made at run time


# ---- text into types ------------------------------------------------------------------------


def compile_text(type_: Any, place: str, where: str) -> Callable[[str], Any]:
    """From one text to a type. place: how it is called in problems. where: how the parameter is called in definitions.

    The function raises InvalidData.
    """
    if type_ is str:
        return str
    info = _type_info(type_, where)
    _check_text_type(info, type_, where)
    return _converter(type_, place, info)


def compile_texts(type_: Any, place: str, where: str) -> Callable[[list[str]], Any] | None:
    """From several texts to a collection, in the same way; None when the type is no collection."""
    info = _type_info(type_, where)
    if not isinstance(info, inspect.CollectionType | inspect.TupleType):
        return None
    if type_ == list[str]:
        return list
    for item in info.item_types if isinstance(info, inspect.TupleType) else (info.item_type,):
        _check_text_type(item, type_, where)
    return _converter(type_, place, info)


def _converter(type_: Any, place: str, info: inspect.Type) -> Callable[[Any], Any]:
    has_numbers = any(isinstance(inner, inspect.FloatType | inspect.DecimalType) for inner in _within(info))

    def become(text: Any) -> Any:
        try:
            value = convert(text, type_, place, text=True)
        except InvalidData as bad:
            # "expected `int`, got `str`": but everything is text here, so only the first half tells something.
            raise InvalidData([(at, what.removesuffix(", got `str`")) for at, what in bad.problems]) from None
        if has_numbers:
            _check_finite(value, place)
        return value

    return become


def _check_finite(value: Any, place: str) -> None:
    for item in value if isinstance(value, list | tuple | set | frozenset) else (value,):
        if isinstance(item, Decimal) and item.is_snan():  # of which `isfinite` cannot be asked
            raise InvalidData([(place, "is not a finite number")])
        if isinstance(item, float | Decimal) and not isfinite(item):
            raise InvalidData([(place, "is not a finite number")])


# ---- bodies ---------------------------------------------------------------------------------


def compile_json(type_: Any, where: str) -> Callable[[bytes], Any]:
    """From JSON to a type. The function raises InvalidData for JSON of another shape, ProtocolViolation for no JSON."""
    info = _type_info(type_, where)
    inside = list(_within(info))
    for inner in inside:
        if isinstance(inner, inspect.CustomType) and inner.cls is not object:
            raise DefinitionError(f"{where}: JSON cannot become {_shown(inner.cls)}", _SUPPORTED)
    has_decimals = any(isinstance(inner, inspect.DecimalType) for inner in inside)
    tells_all = all(map(_tells_all, inside))
    members = compile_members(info)

    def read(body: bytes, *, checked: bool) -> Any:
        try:
            value = decode_json(body, type_, "body")
        except (InvalidData, UnicodeDecodeError):
            check_text(body)
            check_value(body)
            raise
        # As many colons as members: the text says what the type does and no more, so it is no deeper either.
        if members is not None and body.count(b":") == members(value):
            return value
        if not checked:
            check_text(body)
        if has_decimals:
            _check_decimals(body, value)
        elif b":" in body and not (tells_all and says_no_more(body, value)):
            check_value(body, value if type_ is Any else None)
        return value

    def become(body: bytes) -> Any:
        if len(body) < HARMLESS:
            return read(body, checked=False)
        check_text(body)
        with collected_later(body):
            return read(body, checked=True)

    return become


#: Whether a string may say NaN or Infinity.
_NO_NUMBER: Final = re.compile(rb"nan|inf|\\u", re.IGNORECASE)


def _check_decimals(body: bytes, value: object) -> None:
    """Raise for a number that a double could not hold, and for a string that became no number: a Decimal is both."""
    check_value(body)
    stack = [("body", to_builtins(value, builtin_types=(Decimal,), enc_hook=repr))] if _NO_NUMBER.search(body) else []
    problems = []
    while stack:
        place, inner = stack.pop()
        if isinstance(inner, dict):
            stack += [(f"{place}.{name}", item) for name, item in inner.items()]
        elif isinstance(inner, list | tuple | set | frozenset):
            stack += [(f"{place}[{at}]", item) for at, item in enumerate(inner)]
        elif isinstance(inner, Decimal) and not inner.is_finite():
            problems.append((place, "is not a finite number"))
    if problems:
        raise InvalidData(problems[::-1])  # the last was looked at first


def check_is_json(head: RequestHead) -> None:
    """Raise ProtocolViolation (415) unless the body may be taken for JSON.

    A missing Content-Type passes, since the plainest clients of every language send none; but not from a page: a
    browser sends a typeless body (a Blob) across sites without asking first, and says `Origin` when it does.
    """
    headers = head.headers
    if [field for field in headers.raw if field[0] in _ABOUT_A_BODY] == _PLAIN_JSON:
        return  # as of nearly all
    coding = headers.get("content-encoding")
    if coding is not None and coding.lower() != "identity":
        raise ProtocolViolation("the body has a Content-Encoding, and none is understood", status=415)
    content_type = headers.get("content-type")
    if content_type is None and "origin" not in headers:
        return
    media, _, parameters = (content_type or "").partition(";")
    media = media.strip(" \t").lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise ProtocolViolation("the body must be application/json", status=415)
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip(" \t").lower() == "charset" and value.strip(' \t"').lower() != "utf-8":
            raise ProtocolViolation("JSON is UTF-8 (RFC 8259 §8.1), and nothing else", status=415)


_ABOUT_A_BODY: Final = frozenset((b"content-type", b"content-encoding"))
_PLAIN_JSON: Final = [(b"content-type", b"application/json")]


def decode_utf8(body: bytes) -> str:
    """A body as text. Raises ProtocolViolation (400)."""
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolViolation("the body is not UTF-8") from None


# ---- types, looked at when the route is made ------------------------------------------------

_FROM_TEXT: Final = (
    inspect.AnyType,
    inspect.BoolType,
    inspect.DateTimeType,
    inspect.DateType,
    inspect.DecimalType,
    inspect.EnumType,
    inspect.FloatType,
    inspect.IntType,
    inspect.LiteralType,
    inspect.StrType,
    inspect.TimeDeltaType,
    inspect.TimeType,
    inspect.UUIDType,
    inspect.UnionType,
)


def _type_info(type_: Any, where: str) -> inspect.Type:
    try:
        return inspect.type_info(type_)
    except (TypeError, NameError) as error:
        raise DefinitionError(f"{where}: a value of its type cannot be read: {error}", _SUPPORTED) from error


def _check_text_type(info: inspect.Type, type_: Any, where: str) -> None:
    for inner in _within(info):
        if not isinstance(inner, _FROM_TEXT):
            raise DefinitionError(f"{where}: text cannot become {_shown(type_)}", _SUPPORTED_TEXT)


_SUPPORTED: Final = "use attrs classes, builtins, dates, UUIDs, enums and collections of them"
_SUPPORTED_TEXT: Final = (
    "use str, int, float, bool, Decimal, dates, UUID, enums or Literal; in a query or a header, also a list of them"
)


def _within(info: inspect.Type) -> Iterable[inspect.Type]:
    """A type and all types inside it; classes that contain themselves are entered once."""
    stack: list[Any] = [info]
    seen: set[int] = set()
    while stack:
        current = stack.pop()
        if isinstance(current, tuple):
            stack += current
        elif isinstance(current, inspect.Type | inspect.Field) and id(current) not in seen:
            seen.add(id(current))
            if isinstance(current, inspect.Type):
                yield current
            stack += [getattr(current, name) for name in current.__struct_fields__ if name not in _DATA]


#: Members of a description that are values of the described type, or its class, and not types.
_DATA: Final = frozenset(("cls", "values", "default", "default_factory"))


def _tells_all(info: inspect.Type) -> bool:
    """Whether a value of this type, written again, has as many members as its text had, or fewer: nothing is filled
    in, and nothing becomes a text that it was not.
    """
    if isinstance(info, inspect.DataclassType):
        return is_as_text_says(info)
    if isinstance(info, inspect.DictType):
        return isinstance(info.key_type, inspect.StrType)
    return isinstance(info, _AS_TEXT_SAYS)


_AS_TEXT_SAYS: Final = (
    inspect.AnyType,
    inspect.BoolType,
    inspect.FloatType,
    inspect.IntType,
    inspect.ListType,
    inspect.NoneType,
    inspect.StrType,
    inspect.TupleType,
    inspect.UnionType,
    inspect.VarTupleType,
)


def _shown(type_: Any) -> str:
    return getattr(type_, "__name__", None) or str(type_)
