"""Records out of text: the fields of a query or a form, as one attrs class.

Law: a field of the class is a field of the query, read as a parameter of that type would be. All problems are told at
once. A field that nobody asked for is passed over, as it is where parameters are read one by one: other people's
tracking adds them.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs
from msgspec import inspect

from zerver.errors import InvalidData, ProtocolViolation
from zerver.http.conversions import compile_text, compile_texts, without_none
from zerver.http.messages import RequestHead

#: Fields as they came: from the name to every value, not yet percent-decoded.
Fields: TypeAlias = Mapping[str, list[str]]

#: Percent-decodes one value; the second argument is what it is called in problems.
Decode: TypeAlias = Callable[[str, str], str]

_FORM: Final = "application/x-www-form-urlencoded"


@attrs.frozen
class _Member:
    """One field of a class. one, all: reads its value, or its values."""

    name: str
    argument: str  # of the class
    required: bool
    one: Callable[[str], Any] | None
    all: Callable[[list[str]], Any] | None

    def read(self, raw: list[str], place: str, decode: Decode) -> Any:
        if self.all is not None:
            return self.all([decode(value, f"{place}[{at}]") for at, value in enumerate(raw)])
        return read_one(raw, place, decode, self.one or str)


def read_one(raw: list[str], place: str, decode: Decode, become: Callable[[str], Any]) -> Any:
    """One value of a field that must not be given twice: a proxy may have judged by the other one."""
    if len(raw) > 1:
        raise InvalidData([(place, f"is given {len(raw)} times, and one value is wanted")])
    return become(decode(raw[0], place))


class Record:
    """Reads all fields of one class. Made by `compile_record`."""

    def __init__(self, type_: type, members: list[_Member], place: str) -> None:
        self._type = type_
        self._members = members
        self._place = place

    def any_in(self, fields: Fields) -> bool:
        """Whether one of its fields is there."""
        return any(member.name in fields for member in self._members)

    def read(self, fields: Fields, decode: Decode) -> Any:
        """The object. Raises InvalidData with every problem."""
        arguments: dict[str, Any] = {}
        problems: list[tuple[str, str]] = []
        for member in self._members:
            place, raw = f"{self._place}.{member.name}", fields.get(member.name)
            if raw is None:
                problems += [(place, "is missing")] if member.required else []
                continue
            try:
                arguments[member.argument] = member.read(raw, place, decode)
            except InvalidData as bad:
                problems += bad.problems
        if problems:
            raise InvalidData(problems)
        try:
            return self._type(**arguments)
        except (ValueError, TypeError) as error:  # a validator's own words
            raise InvalidData([(self._place, str(error) or "is not valid")]) from error


def compile_record(type_: Any, place: str, where: str) -> Record | None:
    """The reader of a class, or None for a type that is none. Raises DefinitionError for a field no text can become."""
    try:
        info = inspect.type_info(type_)
    except (TypeError, NameError):
        return None  # whoever reads it in another way will say so
    if not isinstance(info, inspect.DataclassType | inspect.StructType):
        return None
    hints = typing.get_type_hints(info.cls, include_extras=True)
    aliases = {field.name: field.alias for field in attrs.fields(info.cls)} if attrs.has(info.cls) else {}
    members = []
    for field in info.fields:
        hint, inside = without_none(hints[field.name]), f"{where}, field {field.name!r}"
        several = compile_texts(hint, f"{place}.{field.encode_name}", inside)
        one = None if several is not None else compile_text(hint, f"{place}.{field.encode_name}", inside)
        argument = aliases.get(field.name) or field.name
        members.append(_Member(field.encode_name, argument, field.required, one, several))
    return Record(info.cls, members, place)


def form_text(head: RequestHead, body: bytes) -> str:
    """A form's body, ready to be cut into fields. Raises ProtocolViolation: 415 for another kind, 400 for no text."""
    check_not_coded(head)
    media = (head.headers.get("content-type") or "").partition(";")[0].strip(" \t").lower()
    if media != _FORM and (body or media):
        raise ProtocolViolation(f"the body must be {_FORM} or multipart/form-data", status=415)
    try:
        return body.decode("ascii")  # whatever is not, is percent-encoded
    except UnicodeDecodeError:
        raise ProtocolViolation("the form has bytes that are not percent-encoded") from None


def check_not_coded(head: RequestHead) -> None:
    """Raise ProtocolViolation (415) for a body with a Content-Encoding."""
    coding = head.headers.get("content-encoding")
    if coding is not None and coding.lower() != "identity":
        raise ProtocolViolation("the body has a Content-Encoding, and none is understood", status=415)
