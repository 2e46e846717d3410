"""HTTP messages as values: what was asked, what is answered. No I/O, no parser, no clock.

Law: a message says what its bytes said, and nothing else: no case is restored, no field dropped, no path tidied. Bytes
stay bytes until somebody looks: a request pays for the one header it reads, not for the twenty it carries. The target
is read anew at each look: there are one or two of them, and to remember what it said costs more than they do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeAlias, Union, cast
from urllib.parse import unquote_to_bytes

import attrs

from zerver.core.slots import Part
from zerver.core.values import value
from zerver.errors import ProtocolViolation
from zerver.http.parts import WholeRequest

RawField = tuple[bytes, bytes]
"""One field as the wire has it: (name in lower case, value without surrounding blanks)."""

HeadersLike = Union["Headers", Mapping[str, str], Iterable[tuple[str, str]]]
"""What constructors accept where headers are meant."""


@attrs.frozen  # at run time too: those of one head may stand for many requests, and those of an answer for many answers
class Headers:
    """The fields of one message, in order of arrival, names compared without case.

    raw: (name, value) pairs of bytes; names are lower case already. Values are decoded as latin-1, which
    loses nothing (RFC 9110 §5.5: bytes above 0x7F are opaque), and only when they are asked for.
    """

    raw: tuple[RawField, ...] = ()

    @classmethod
    def of(cls, fields: HeadersLike) -> Headers:
        """Headers from a mapping or from pairs of str; Headers pass through unchanged.

        Raises UnicodeEncodeError for text outside latin-1. Whether a field may go on the wire is
        decided by the wire, for every field and however it was made.
        """
        if isinstance(fields, Headers):
            return fields
        if not fields:
            return NO_HEADERS
        if isinstance(fields, Mapping):  # the cast: an iterable of pairs cannot be a mapping too
            fields = cast("Mapping[str, str]", fields).items()
        return cls(tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields))

    def __getitem__(self, name: str) -> str:
        """The value of a field, as `get` gives it: of a repeated one, all of them. Raises KeyError if there is none."""
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def get(self, name: str) -> str | None:
        """The value of a field, or None. A repeated field is joined with ", " (RFC 9110 §5.3).

        Joined, not first or last: two `Authorization` lines must not mean one thing to a proxy and another to
        us. `Cookie` is joined with "; ", as RFC 9113 §8.2.3 does.
        """
        wanted = _wire_name(name)
        found: bytes | None = None
        for field, said in self.raw:  # a comprehension would cost a call, and this is asked for each request
            if field == wanted:
                if found is not None:
                    break
                found = said
        else:
            return None if found is None else found.decode("latin-1")
        values = [value for field, value in self.raw if field == wanted]
        return (b"; " if wanted == b"cookie" else b", ").join(values).decode("latin-1")

    def get_all(self, name: str) -> list[str]:
        """Every value of a field, one for each line it came in, in order."""
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for field, value in self.raw if field == wanted]

    def tokens(self, name: str) -> list[str]:
        """The members of a comma-separated field such as `Connection`, in lower case."""
        return [token for part in (self.get(name) or "").split(",") if (token := part.strip().lower())]

    def adding(self, name: str, value: str) -> Headers:
        """A copy with one more field at the end."""
        return Headers((*self.raw, (name.lower().encode("latin-1"), value.encode("latin-1"))))

    def setting(self, name: str, value: str) -> Headers:
        """A copy in which the field has this value and no other."""
        dropped = name.lower().encode("latin-1")
        return Headers(tuple(field for field in self.raw if field[0] != dropped)).adding(name, value)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        wanted = name.lower().encode("latin-1")
        return wanted in [field for field, _ in self.raw]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for field, said in self.raw:
            yield field.decode("latin-1"), said.decode("latin-1")

    def __len__(self) -> int:
        return len(self.raw)


NO_HEADERS = Headers()


@lru_cache(maxsize=512)
def _wire_name(name: str) -> bytes:
    """A field's name as it is kept. Names that are asked for are the program's own, and few."""
    return name.lower().encode("latin-1")


#: Statuses as RFC 9110 §15 names them, in status lines and titles: Python's names of some changed with 3.13.
PHRASES: Final[Mapping[int, str]] = {
    **{status.value: status.phrase for status in HTTPStatus},
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


def as_headers(fields: HeadersLike) -> Headers:
    """Headers.of as a plain function, which is what type checkers take for a converter."""
    return fields if isinstance(fields, Headers) else Headers.of(fields)  # most are already, and this saves a call


@attrs.frozen  # at run time too: one of them may stand for many requests of a connection
class RequestHead:
    """A request without its body.

    Target is what the request line says, untouched; http_version is "1.0" or "1.1".
    """

    method: str
    target: str
    headers: Headers = NO_HEADERS
    http_version: str = "1.1"

    @property
    def path(self) -> str:
        """The target's path, still percent-encoded. "*" for `OPTIONS *`."""
        return self._split()[0]

    @property
    def query(self) -> str:
        """What follows the first "?", still percent-encoded; "" when there is none."""
        return self._split()[2]

    @property
    def segments(self) -> tuple[str, ...]:
        """The path cut at "/" and *then* percent-decoded, so that `%2F` is a character and never a separator.

        `/a/b%2Fc/` is ("a", "b/c", ""). Dot segments are kept as they are: nothing here resolves "..".
        Raises ProtocolViolation (400) for an escape that is not %XX, or is not UTF-8, or is NUL.
        """
        path = self._split()[0]
        if path == "*":
            return ("*",)
        parts = path.split("/")[1:]
        return tuple(parts) if "%" not in path else tuple(map(_decoded_segment, parts))

    def _split(self) -> tuple[str, str, str]:
        target = self.target
        if not target.startswith("/") and "://" in target:  # absolute-form, RFC 9112 §3.2.2
            authority_and_path = target.partition("://")[2]
            cut = min((at for at in map(authority_and_path.find, "/?") if at >= 0), default=-1)
            target = authority_and_path[cut:] if cut >= 0 else "/"
            if target.startswith("?"):
                target = "/" + target
        return target.partition("?")


def _decoded_segment(segment: str) -> str:
    if "%" not in segment:
        return segment
    pieces = segment.split("%")[1:]
    if not all(len(piece) >= 2 and _is_hex(piece[0]) and _is_hex(piece[1]) for piece in pieces):
        raise ProtocolViolation("the path has a '%' that starts no escape")
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolViolation("the path is not UTF-8 once it is percent-decoded") from None
    if "\0" in text:
        raise ProtocolViolation("the path contains NUL")
    return text


def _is_hex(character: str) -> bool:
    return character in "0123456789abcdefABCDEF"


@attrs.frozen
class ResponseHead:
    """A response without its body, as a client reads it."""

    status: int
    headers: Headers = NO_HEADERS
    http_version: str = "1.1"
    #: The fields by name, repeated ones joined. Made once: one head may stand for many answers.
    joined: Mapping[str, str] = attrs.field(
        init=False, eq=False, repr=False, default=attrs.Factory(lambda self: _joined(self.headers), takes_self=True)
    )


def _joined(headers: Headers) -> Mapping[str, str]:
    fields = list(headers)
    joined = dict(fields)
    if len(joined) < len(fields):
        found: dict[str, list[str]] = {}
        for name, value in fields:
            found.setdefault(name, []).append(value)
        joined = {name: ", ".join(values) for name, values in found.items()}
    return joined


@attrs.frozen  # at run time too: one of them may stand for many requests of a connection
class Caller:
    """Who sent a request, and how, as far as the server believes it (`trust.py`).

    peer: the other end's IP address; "unix" on a Unix socket, "" in memory. client: the address that the peer asks
    for: its own, or whom a trusted proxy names; "" if that one does not say. scheme: "http" or "https", as the client
    used it. host: as the client wrote it, with its port; "" if it named none.
    """

    peer: str = ""
    client: str = ""
    scheme: str = "http"
    host: str = ""


NOBODY = Caller()


@value
class Request:
    """A whole request, as a step may read it. peer, client, scheme, host: see Caller."""

    __zerver_part__: ClassVar[Part] = WholeRequest()

    head: RequestHead
    body: bytes = b""
    peer: str = ""
    path_params: Mapping[str, str] = MappingProxyType({})
    client: str = attrs.field(default=attrs.Factory(lambda self: self.peer, takes_self=True))
    scheme: str = "http"
    host: str = attrs.field(default=attrs.Factory(lambda self: self.head.headers.get("host") or "", takes_self=True))

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def path(self) -> str:
        return self.head.path

    @property
    def query(self) -> str:
        return self.head.query

    @property
    def headers(self) -> Headers:
        return self.head.headers


@value
class Response:
    """An answer.

    body: all of it; an async iterator of pieces (sent as they come, closed in every case); a Writer, which sends them
    itself; or a Deferred, which becomes one of the others when its request is at hand.

    `Content-Length`, `Transfer-Encoding`, `Connection` and `Date` are the server's business. Two of them may
    be given: `Content-Length` with an iterator of known length, and `Connection: close`.

    refusal: the request was not begun, for want of room (429, 503). A connection that gets several of these in a row is
    not read until Retry-After, so it should not be set for a proxy, on whose connections others ask, too.
    """

    status: int = 200
    headers: Headers = attrs.field(default=NO_HEADERS, converter=as_headers)
    body: bytes | AsyncIterator[bytes] | Writer | Deferred = b""
    refusal: bool = False

    def __zerver_after_run__(self) -> str:
        """What the timeline of a run says that ended with this: its own records are complete before a byte is sent."""
        return "" if isinstance(self.body, bytes) else "the body is sent after the run"


Send: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Takes one piece of a body, and returns when the peer has room for the next."""


class Writer(ABC):
    """A body that sends itself. What it needs meanwhile, tasks for instance, lives and ends inside `write_to`."""

    @abstractmethod
    async def write_to(self, send: Send) -> None:
        """Send all pieces, in order. Called once at most; cancelled when the peer leaves. Never cancels a `send`."""

    def end_soon(self) -> None:  # noqa: B027 (most bodies end by themselves)
        """The server is about to close: end after the piece under way, if the end would not come by itself."""

    @abstractmethod
    async def aclose(self) -> None:
        """Free what is held. Called in every case, also when nothing was sent."""


class Deferred(ABC):
    """A body that is data until its request is at hand: a file's name, a function that makes a stream."""

    @abstractmethod
    async def open(self, response: Response, head: RequestHead, resources: Mapping[type, Any]) -> Response:
        """The response to send instead, whose body is no Deferred. resources: the app's, by type.

        Once opened, whatever it holds is the response's, and closed with it.
        """
