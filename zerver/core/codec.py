"""The codec: values to JSON and back, with every problem of an input named.

Law: JSON only, never pickle; a value is decoded into the type that was asked for or not at all. msgspec does the work;
when it refuses, cattrs goes over the same input once more, slowly, to find all that is wrong instead of the first
thing. Slowly is 200 times slower, so that is only done for inputs of a size that a person would send.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import types
import uuid
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

import attrs
import msgspec

from zerver.errors import InvalidData

T = TypeVar("T")

#: Bytes of an input up to which every problem in it is looked for; beyond, the first one must do.
MAX_EXPLAINED: Final = 16 * 1024


def encode_json(value: object) -> bytes:
    """A value as JSON: attrs classes, builtins, dates, UUIDs, enums, Decimals. Raises InvalidData for anything else."""
    try:
        return msgspec.json.encode(value, enc_hook=_refuse)
    except (TypeError, ValueError) as error:  # ValueError: a number or a nesting that JSON cannot carry
        raise InvalidData([("value", str(error))]) from error


def decode_json(data: bytes, type_: type[T], where: str = "body") -> T:
    """JSON into a type. where: how paths in the problems begin. Raises InvalidData with every problem found."""
    try:
        value: T = _decoder(cast("Any", type_)).decode(data)
        return value
    except msgspec.ValidationError as error:
        explained = len(data) <= MAX_EXPLAINED
        problems = _all_problems(data, type_, where, error) if explained else [_problem(str(error), where)]
        raise InvalidData(problems) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidData([(where, f"is not JSON: {error}")]) from error


def convert(value: object, type_: Any, where: str, *, text: bool = False) -> Any:
    """Builtins into a type. text: the value came as text, so "5" is an int. Raises InvalidData."""
    try:
        return msgspec.convert(value, type_, strict=not text)
    except msgspec.ValidationError as error:
        raise InvalidData([_problem(str(error), where)]) from error


def to_builtins(value: object) -> object:
    """A value as what JSON can carry; an object of a strange type becomes its repr."""
    return msgspec.to_builtins(value, enc_hook=repr, str_keys=True)


def _refuse(value: object) -> object:
    raise TypeError(f"a {type(value).__name__} cannot be encoded as JSON")


@lru_cache(maxsize=1024)
def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_)


# ---- every problem, not the first -----------------------------------------------------------

_VAGUE: Final = "has the wrong shape"


def _problem(message: str, where: str) -> tuple[str, str]:
    """msgspec says "Expected `int`, got `str` - at `$.items[0].n`"."""
    what, _, path = message.partition(" - at `$")
    return where + path.rstrip("`"), _lower_first(what)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _all_problems(data: bytes, type_: Any, where: str, first: Exception) -> list[tuple[str, str]]:
    try:
        _converter().structure(msgspec.json.decode(data), type_)
    except Exception as error:  # cattrs raises groups of whatever its hooks raise
        problems = list(dict.fromkeys(_flatten(error, where)))
        if any(what != _VAGUE for _, what in problems):
            return problems
    return [_problem(str(first), where)]


def _flatten(error: BaseException, where: str) -> list[tuple[str, str]]:
    from cattrs.errors import ClassValidationError, IterableValidationError  # lazy: only bad input pays for it

    if isinstance(error, ClassValidationError):
        inner, other = error.group_exceptions()
        found = [p for exc, note in inner for p in _flatten(exc, _joined(where, note.name, exc))]
        return found + [p for exc in other for p in _flatten(exc, where)]
    if isinstance(error, IterableValidationError):
        listed, other = error.group_exceptions()
        found = [p for exc, note in listed for p in _flatten(exc, f"{where}[{note.index}]")]
        return found + [p for exc in other for p in _flatten(exc, where)]
    if isinstance(error, KeyError):
        return [(f"{where}.{error.args[0]}", "is missing")]
    if isinstance(error, _Mismatch):
        return [_problem(str(error), where)]
    if isinstance(error, ValueError):  # a validator's own words
        return [(where, _lower_first(str(error)) or "is not valid")]
    return [(where, _VAGUE)]  # cattrs stumbled over the container: its words are about its own code


def _joined(where: str, name: str, error: BaseException) -> str:
    # cattrs notes a missing key on the attribute itself, and names it in the KeyError: once is enough.
    return where if isinstance(error, KeyError) else f"{where}.{name}"


class _Mismatch(Exception):
    """One value that msgspec refused, with its message."""


@lru_cache(maxsize=1)
def _converter() -> Any:
    from cattrs import Converter  # lazy: only bad input pays for it

    converter = Converter(detailed_validation=True)

    def leaf(value: object, type_: Any) -> Any:
        try:
            return msgspec.convert(value, type_)
        except msgspec.ValidationError as error:
            raise _Mismatch(str(error)) from None

    for plain in (bool, int, float, str, bytes, datetime.datetime, datetime.date, decimal.Decimal, uuid.UUID):
        converter.register_structure_hook(plain, leaf)
    converter.register_structure_hook_func(lambda type_: isinstance(type_, type) and issubclass(type_, enum.Enum), leaf)
    # Annotated carries msgspec.Meta constraints, which only msgspec knows; a class with a union that cattrs cannot tell
    # apart would not be gone over at all.
    converter.register_structure_hook_func(_is_choice, leaf)
    converter.register_structure_hook_func(
        lambda type_: any(isinstance(m, msgspec.Meta) for m in getattr(type_, "__metadata__", ())), leaf
    )

    inside: set[Any] = set()  # containers whose own hook is being asked for

    def container(type_: Any) -> Callable[[object, Any], Any]:
        """cattrs goes into whatever can be iterated over, a string too; msgspec says what was expected instead."""
        inside.add(type_)
        try:
            enter = converter.get_structure_hook(type_, cache_result=False)
        finally:
            inside.discard(type_)
        shape = _shape(type_)
        return lambda value, type_: enter(value, type_) if isinstance(value, shape) else leaf(value, type_)

    converter.register_structure_hook_factory(
        lambda type_: _shape(type_) is not object and type_ not in inside, container
    )
    return converter


def _shape(type_: Any) -> type:
    """What JSON gives for a container: dict, or list; object for a type that is none."""
    origin = get_origin(type_) or type_
    if attrs.has(origin) or origin in (dict, Mapping, MutableMapping):
        return dict
    return list if origin in (list, tuple, set, frozenset, Sequence, Collection) else object


def _is_choice(type_: Any) -> bool:
    """Whether it is a Literal, or a union of more than one type and None."""
    origin = get_origin(type_)
    if origin is Union or origin is types.UnionType:
        return len([member for member in get_args(type_) if member is not type(None)]) > 1
    return origin is Literal
