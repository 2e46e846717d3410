"""Asked: one request of the page's API as its endpoint sees it, and the two ways to answer it.

Law: what a request says is looked at here, and nowhere else, before anything is done about it: numbers are cut to what
is given out at once, a body is JSON of a known shape. Whatever makes no sense is Refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import attrs

from zerver.core.codec import decode_json, encode_json
from zerver.http import Exchange, Response, problem
from zerver.ui.access import Session

T = TypeVar("T")

Document: TypeAlias = dict[str, Any]

_MOST_BODY: Final = 256 * 1024  # bytes


class Refused(Exception):
    """The answer is an error: what, and why."""

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


def refuse(status: int, detail: str) -> NoReturn:
    raise Refused(problem(status, detail=detail))


def wrong_method(methods: Iterable[str]) -> Response:
    """405, and with which methods one may come (RFC 9110, 15.5.6). Where GET is one of them, HEAD is, too."""
    allow = ", ".join(allowed for method in methods for allowed in (("GET", "HEAD") if method == "GET" else (method,)))
    answer = problem(405, detail=f"{allow} is what may be done here")
    return attrs.evolve(answer, headers=answer.headers.adding("allow", allow))


@attrs.frozen
class Asked:
    """One request, as its endpoint sees it. rest: what stands in the path where the pattern has a star."""

    exchange: Exchange
    session: Session
    rest: tuple[str, ...]
    query: Mapping[str, str]

    def number(self, name: str, default: int, most: int) -> int:
        """A parameter that is a count, cut to what is given out at once. Raises Refused."""
        said = self.query.get(name)
        if said is None:
            return default
        if not said.isascii() or not said.isdecimal() or len(said) > 15:
            refuse(400, f"{name} is a number, 0 or more")
        return min(int(said), most)

    def flag(self, name: str) -> bool:
        return self.query.get(name, "") in ("1", "true")

    def name(self) -> str:
        """What the path names. Raises Refused for what no database keeps."""
        return keepable(self.rest[0])

    async def body(self, shape: type[T]) -> T:
        """The body, which is JSON of this shape. Raises Refused, InvalidData."""
        kind = (self.exchange.head.headers.get("content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            refuse(415, "send application/json")
        return decode_json(await self.exchange.read_body(_MOST_BODY) or b"{}", shape)


def keepable(text: str) -> str:
    """The same text. Raises Refused for one that no database takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        refuse(400, "there are halves of characters in it")
    if "\0" in text:
        refuse(400, "there is a NUL in it")
    return text


def as_json(document: Document) -> Response:
    """A document, as the answer."""
    return encoded(encode_json(document))


def encoded(body: bytes) -> Response:
    return Response(200, (("content-type", "application/json"),), body)
