"""HTTP as effects: one exchange with another service.

Law: an exchange is data: method, URL, headers, body. An answer of any status is a success, because the exchange
happened; what a status means is for the step to say. GET, HEAD and OPTIONS are reads; the rest are writes, which
carry the run's idempotency key as `Idempotency-Key`, the same over all attempts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from zerver.core.codec import decode_json, encode_json
from zerver.core.effects import Effect, EffectKind
from zerver.core.strict_json import check_text, collected_later
from zerver.core.values import value
from zerver.effects.catalogue import makes
from zerver.errors import DefinitionError, InvalidData, ProtocolViolation

T = TypeVar("T")


@value
class Reply:
    """What the other service answered. headers: names in lower case; repeated ones joined by ", "."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def json(self, type_: type[T]) -> T:
        """The body decoded as JSON into an attrs class or builtin type.

        Raises InvalidData, also for JSON that is only written to be costly (see `zerver.core.strict_json`): a few MiB
        of it would hold the loop for seconds. A name twice in one object is not looked for: nobody has judged the reply
        before us, by the other one.
        """
        try:
            check_text(self.body)
        except ProtocolViolation as violation:
            raise InvalidData([("reply", str(violation))]) from None
        with collected_later(self.body):
            return decode_json(self.body, type_, where="reply")


@value
class Exchange:
    """One request to make. limit: bytes of the answer's body; more is a failure. redirects: how many to follow."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    limit: int
    redirects: int = 0


_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_NAMES_NOTHING = re.compile(r"v\d+|api|")
_NAME = re.compile(r"[A-Za-z][A-Za-z_-]{0,31}")


@lru_cache(maxsize=1024)
def _place(url: str) -> tuple[str, str]:
    """The target of a URL without its query, which may be secret, and what the path's first segment names, `/api` and
    `/v2` left out. A segment that is no name, as one with a number in it, would make an operation of every id.
    """
    parts = urlsplit(url)
    first = next((segment for segment in parts.path.split("/") if not _NAMES_NOTHING.fullmatch(segment)), "")
    return parts.netloc.lower(), first if _NAME.fullmatch(first) else "…"


def _target(exchange: Exchange) -> str:
    return _place(exchange.url.partition("?")[0])[0]


def _operation(exchange: Exchange) -> str:
    """`read /offers`: reads and writes of one name."""
    verb = "read" if exchange.method in _READS else "write"
    return f"{verb} /{_place(exchange.url.partition('?')[0])[1]}"


READ: EffectKind[..., Reply] = EffectKind("http.read", "read", target=_target, operation=_operation)
WRITE: EffectKind[..., Reply] = EffectKind("http.write", "write", target=_target, operation=_operation, takes_key=True)


@makes(READ)
def get(
    url: str, *, headers: Mapping[str, str] | None = None, limit: int = 8 << 20, redirects: int = 0
) -> Effect[Reply]:
    """GET a URL. limit: bytes of the answer's body; more is a failure. redirects: how many may be followed; none
    unless you say so, and credentials stay with their origin.

    Like all constructors here it raises DefinitionError for what no client could send.
    """
    return _effect("GET", url, headers, None, None, limit, redirects)


@makes(WRITE)
def post(
    url: str,
    *,
    json: object = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    limit: int = 8 << 20,
) -> Effect[Reply]:
    """POST to a URL. json: a value to encode; body: bytes as they are. limit: as `get`.

    Raises InvalidData for a value that is no JSON.
    """
    return _effect("POST", url, headers, json, body, limit)


@makes(WRITE)
def put(
    url: str,
    *,
    json: object = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    limit: int = 8 << 20,
) -> Effect[Reply]:
    """PUT to a URL; as `post`."""
    return _effect("PUT", url, headers, json, body, limit)


@makes(WRITE)
def delete(url: str, *, headers: Mapping[str, str] | None = None, limit: int = 8 << 20) -> Effect[Reply]:
    """DELETE a URL."""
    return _effect("DELETE", url, headers, None, None, limit)


@makes(WRITE)
def request(
    method: str,
    url: str,
    *,
    json: object = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    limit: int = 8 << 20,
) -> Effect[Reply]:
    """Any other exchange; a read for GET, HEAD and OPTIONS."""
    return _effect(method, url, headers, json, body, limit)


def _effect(
    method: str,
    url: str,
    headers: Mapping[str, str] | None,
    json: object,
    body: object,
    limit: int,
    redirects: int = 0,
) -> Effect[Any]:
    _check_line(method, url.partition("?")[0])
    fields = tuple(headers.items()) if headers else ()
    if json is not None:
        if body is not None:
            raise DefinitionError(f"http effect {method} {url}: it was given json= and body=", "give one of them")
        body = encode_json(json)
        if not any(name.lower() == "content-type" for name, _ in fields):
            fields = (*fields, ("Content-Type", "application/json"))
    elif body is None:
        body = b""
    elif not isinstance(body, bytes):
        said = f"http effect {method} {url}: its body is a {type(body).__name__}"
        raise DefinitionError(said, "encode it; or give json=")
    if limit < 0:
        raise DefinitionError(f"http effect {method} {url}: limit={limit!r}", "give bytes, 0 or more")
    return Effect(READ if method in _READS else WRITE, (Exchange(method, url, fields, body, limit, redirects),))


@lru_cache(maxsize=1024)
def _check_line(method: str, url: str) -> None:
    """What every client would refuse. The rest of the grammar is the client's to check, for its own wire.

    url: without its query, which may be secret: it is not remembered here, nor by `urlsplit`.
    """
    what = f"http effect {method}"
    if not method.isupper():
        raise DefinitionError(f"{what}: the method is not in capitals", f"write {method.upper()!r}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DefinitionError(f"{what}: {url!r} is no URL: {error}", 'write "https://host/path"') from None
    if "@" in parts.netloc:  # not shown: there is a password in it, and this text ends up in a timeline
        raise DefinitionError(f"{what}: the URL has a user in front of its host", "send an Authorization header")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DefinitionError(f"{what}: {url!r} is not an absolute http(s) URL", 'write "https://host/path"')
