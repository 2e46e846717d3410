"""The extractor: from a request to the values of the parts that a flow's steps read.

Law: what can be known about a signature is known when the extractor is made, once per route; a request pays only
for the parts that are read. Whatever a client sends, the answer is values, or InvalidData with every problem of
every part, or ProtocolViolation (400, 415) for bytes that are not what they claim to be.

One value, one meaning: a field of the query that comes twice is refused where one is wanted, because a proxy may have
judged by the other one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import Parameter
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from zerver.core.signatures import PartRead
from zerver.errors import DefinitionError, InvalidData, ProtocolViolation
from zerver.http.conversions import check_is_json, compile_json, compile_text, compile_texts, decode_utf8, without_none
from zerver.http.forms import Decode, Fields, check_not_coded, compile_record, form_text, read_one
from zerver.http.messages import NOBODY, Caller, Request, RequestHead
from zerver.http.multipart import Parts, Upload, is_multipart, read_multipart
from zerver.http.router import NO_PARAMS

#: How many fields a query or a form may have that somebody reads (400): Django's DATA_UPLOAD_MAX_NUMBER_FIELDS.
MAX_QUERY_FIELDS: Final = 1000

_ABSENT: Final[Any] = object()


class Sources:
    """One request, as readers see it; cookies and query are parsed at most once, and only if somebody reads them."""

    # Of the class, until somebody reads them.
    _query: dict[str, list[str]] | None = None
    _form: dict[str, list[str]] | None = None
    _parts: Parts | None = None
    _cookies: dict[str, str] | None = None

    def __init__(
        self, head: RequestHead, params: Mapping[str, str], body: bytes, caller: Caller, passage: object
    ) -> None:
        self.passage = passage
        self.head = head
        self.params = params
        self.body = body
        self.caller = caller

    @property
    def query(self) -> dict[str, list[str]]:
        """The fields of the query, their values not yet decoded."""
        if self._query is None:
            self._query = _parse_fields(self.head.query, "query")
        return self._query

    @property
    def parts(self) -> Parts | None:
        """What a multipart body holds; None for another kind of body. Raises ProtocolViolation for a malformed one."""
        if self._parts is None:
            content_type = self.head.headers.get("content-type")
            if content_type is not None and is_multipart(content_type):
                check_not_coded(self.head)
                self._parts = read_multipart(content_type, self.body)
        return self._parts

    @property
    def form(self) -> dict[str, list[str]]:
        """The fields of the other kind, as those of a query. Raises ProtocolViolation for a body that is no form."""
        if self._form is None:
            self._form = _parse_fields(form_text(self.head, self.body), "form")
        return self._form

    @property
    def cookies(self) -> dict[str, str]:
        if self._cookies is None:
            self._cookies = _parse_cookies(self.head.headers.get("cookie") or "")
        return self._cookies


#: The value of one part, or _ABSENT. Raises InvalidData or ProtocolViolation.
Reader: TypeAlias = Callable[[Sources], Any]

#: A reader; the problem that there is where nothing was read, None if that is none; and the value then.
_Part: TypeAlias = tuple[Reader, tuple[str, str] | None, Any]


class Extractor:
    """Reads the parts of one route. Made by `compile_extractor`.

    needs_body: whether a request's body must be read first. needs_passage: whether a step passes the request on. empty:
    whether there is nothing to extract at all.
    """

    __slots__ = ("_parts", "empty", "needs_body", "needs_passage")

    def __init__(self, parts: Sequence[_Part], sources: frozenset[str]) -> None:
        self._parts = tuple(parts)
        self.empty = not self._parts
        self.needs_body = bool(sources & _READ_FROM_BODY)
        self.needs_passage = "passage" in sources

    def extract(
        self,
        head: RequestHead,
        params: Mapping[str, str] = NO_PARAMS,
        body: bytes = b"",
        caller: Caller = NOBODY,
        passage: object = None,
    ) -> list[Any]:
        """The values, in the order of the plan's parts.

        params: of the path, from the router. body: all of it, or b"" when `needs_body` is false. passage: a
        `zerver.http.Passage`, when `needs_passage` is true.

        Raises InvalidData with every problem, or ProtocolViolation: 400 for a body that is not JSON or not UTF-8, 415
        for one of another kind.
        """
        if self.empty:
            return []
        sources = Sources(head, params, body, caller, passage)
        values: list[Any] = []
        problems: list[tuple[str, str]] = []
        for read, missing, default in self._parts:
            try:
                value = read(sources)
            except InvalidData as bad:
                problems += bad.problems
                continue
            if value is _ABSENT:
                if missing is not None:
                    problems.append(missing)
                value = default
            values.append(value)
        if problems:
            raise InvalidData(list(dict.fromkeys(problems)))  # two steps may have read the same part
        return values


def compile_extractor(parts: Sequence[PartRead], label: str, path_params: Collection[str] = ()) -> Extractor:
    """The extractor of a plan's parts. label: names the route in errors. path_params: the names in its pattern.

    Raises DefinitionError for a type that a part cannot have, and for a path parameter that the route does not have.
    """
    readers = []
    for part in parts:
        where = f"{label}: parameter {part.param!r}"
        compile_reader = _COMPILERS.get(part.part.source)
        if compile_reader is None:
            raise DefinitionError(
                f"{where} reads a {part.part.source!r}, which a request over HTTP does not have",
                f"choose one of {', '.join(_COMPILERS)}",
            )
        if part.part.source == "path" and part.required and part.name not in path_params:
            raise DefinitionError(
                f"{where} reads path parameter {part.name!r}, which the route does not have",
                f"add {{{part.name}}} to the path"
                + (f"; it has {', '.join(sorted(path_params))}" if path_params else ""),
            )
        missing = (_place(part), "is missing") if part.required else None
        default = None if part.default is Parameter.empty else part.default
        readers.append((compile_reader(part, where), missing, default))
    return Extractor(readers, frozenset(part.part.source for part in parts))


def _place(part: PartRead) -> str:
    return "body" if part.part.source == "body" else f"{part.part.source}.{part.name}"


# ---- one compiler for each source -----------------------------------------------------------


def _path_reader(part: PartRead, where: str) -> Reader:
    name, become = part.name, compile_text(without_none(part.type), _place(part), where)
    return lambda sources: become(sources.params[name]) if name in sources.params else _ABSENT


def _fields_reader(part: PartRead, where: str) -> Reader:
    """Of a query or a form: a whole class, every value of a field, or one."""
    name, place, type_ = part.name, _place(part), without_none(part.type)
    if part.part.source == "form" and type_ in (Upload, list[Upload]):
        return _upload_reader(part, several=type_ is not Upload)
    pick = _PICK[part.part.source]
    record = compile_record(type_, part.part.source, where)
    if record is not None:
        whole, optional = record, not part.required

        def read_record(sources: Sources) -> Any:
            fields, decode = pick(sources)
            return _ABSENT if optional and not whole.any_in(fields) else whole.read(fields, decode)

        return read_record
    become = compile_texts(type_, place, where)
    if become is not None:
        into = become

        def read_all(sources: Sources) -> Any:
            fields, decode = pick(sources)
            raw = fields.get(name)
            if raw is None:
                return _ABSENT
            return into([decode(value, f"{place}[{at}]") for at, value in enumerate(raw)])

        return read_all
    one = compile_text(type_, place, where)

    def read(sources: Sources) -> Any:
        fields, decode = pick(sources)
        raw = fields.get(name)
        return _ABSENT if raw is None else read_one(raw, place, decode, one)

    return read


def _form_fields(sources: Sources) -> tuple[Fields, Decode]:
    parts = sources.parts
    return (sources.form, _decoded) if parts is None else (parts.fields, _as_it_is)


def _as_it_is(value: str, _: str) -> str:
    return value


_PICK: Final[Mapping[str, Callable[[Sources], tuple[Fields, Decode]]]] = {
    "query": lambda sources: (sources.query, _decoded),
    "form": _form_fields,
}


def _upload_reader(part: PartRead, *, several: bool) -> Reader:
    name, place = part.name, _place(part)

    def read(sources: Sources) -> Any:
        parts = sources.parts
        if parts is None:
            if sources.body:
                raise ProtocolViolation("the body must be multipart/form-data", status=415)
            return _ABSENT
        files = parts.files.get(name)
        if files is None:
            return _ABSENT
        if several:
            return files
        if len(files) > 1:
            raise InvalidData([(place, f"is given {len(files)} times, and one file is wanted")])
        return files[0]

    return read


def _header_reader(part: PartRead, where: str) -> Reader:
    name, become = part.name, compile_texts(without_none(part.type), _place(part), where)
    if become is not None:
        into = become

        def read_all(sources: Sources) -> Any:
            lines = sources.head.headers.get_all(name)
            return into(lines) if lines else _ABSENT

        return read_all
    one = compile_text(without_none(part.type), _place(part), where)

    def read(sources: Sources) -> Any:
        value = sources.head.headers.get(name)
        return _ABSENT if value is None else one(value)

    return read


def _cookie_reader(part: PartRead, where: str) -> Reader:
    name, become = part.name, compile_text(without_none(part.type), _place(part), where)

    def read(sources: Sources) -> Any:
        value = sources.cookies.get(name)
        return _ABSENT if value is None else become(value)

    return read


def _body_reader(part: PartRead, where: str) -> Reader:
    type_ = without_none(part.type)
    if type_ is bytes or type_ is str:
        take: Callable[[bytes], Any] = decode_utf8 if type_ is str else bytes
        if part.required:
            return lambda sources: take(sources.body)  # an empty body is a value too
        return lambda sources: take(sources.body) if sources.body else _ABSENT
    become = compile_json(type_, where)

    def read(sources: Sources) -> Any:
        if not sources.body:
            return _ABSENT
        check_is_json(sources.head)
        return become(sources.body)

    return read


def _request_reader(part: PartRead, where: str) -> Reader:
    def read(sources: Sources) -> Any:
        caller = sources.caller
        return Request(
            sources.head, sources.body, caller.peer, sources.params, caller.client, caller.scheme, caller.host
        )

    return read


def _passage_reader(part: PartRead, where: str) -> Reader:
    return lambda sources: sources.passage if sources.passage is not None else _ABSENT


_COMPILERS: Final[dict[str, Callable[[PartRead, str], Reader]]] = {
    "path": _path_reader,
    "query": _fields_reader,
    "form": _fields_reader,
    "header": _header_reader,
    "cookie": _cookie_reader,
    "body": _body_reader,
    "request": _request_reader,
    "passage": _passage_reader,
}

_READ_FROM_BODY: Final = frozenset(("body", "form", "request"))


# ---- query and cookies ----------------------------------------------------------------------

_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")


def _decoded(raw: str, place: str) -> str:
    """A value of a query, out of application/x-www-form-urlencoded."""
    if "%" not in raw:
        return raw.replace("+", " ")
    if raw.count("%") != len(_ESCAPE.findall(raw)):
        raise InvalidData([(place, "has a '%' that starts no escape")])
    try:
        text = unquote_to_bytes(raw.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidData([(place, "is not UTF-8 once it is percent-decoded")]) from None
    if "\0" in text:
        raise InvalidData([(place, "contains NUL")])
    return text


def _parse_fields(text: str, what: str) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    if text.count("&") >= MAX_QUERY_FIELDS:
        raise ProtocolViolation(f"the {what} has more than {MAX_QUERY_FIELDS} fields")
    for field in text.split("&"):
        name, _, value = field.partition("=")
        if "%" in name or "+" in name:
            try:
                name = _decoded(name, what)
            except InvalidData:
                continue  # nobody can ask for a name that is no text
        if field:
            fields.setdefault(name, []).append(value)
    return fields


def _parse_cookies(line: str) -> dict[str, str]:
    """The pairs of a Cookie field (RFC 6265 §4.2.1). What is no pair is passed over: other sites may have set it."""
    cookies: dict[str, str] = {}
    for pair in line.split(";"):
        name, equals, value = pair.partition("=")
        value = value.strip(" \t")
        if len(value) > 1 and value.startswith('"') and value.endswith('"'):
            value = value[1:-1]
        if equals:
            cookies.setdefault(name.strip(" \t"), value)
    return cookies
