"""HTTP as effects: one exchange with another service.

Law: an exchange is data: method, URL, headers, body. An answer of any status is a success, because the exchange
happened; what a status means is for the step to say. GET, HEAD and OPTIONS are reads; the rest are writes, which
carry the run's idempotency key as `Idempotency-Key`, the same over all attempts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs

from zerver.core.codec import decode_json, encode_json
from zerver.core.effects import Effect, EffectKind
from zerver.effects.catalogue import makes
from zerver.errors import DefinitionError

T = TypeVar("T")


@attrs.frozen
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
        """The body decoded as JSON into an attrs class or builtin type. Raises InvalidData."""
        return decode_json(self.body, type_, where="reply")


@attrs.frozen
class Exchange:
    """One request to make. body: the bytes to send. total bytes read of the answer are capped by `limit`."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    limit: int


def _target(exchange: Exchange) -> str:
    return urlsplit(exchange.url).netloc.rpartition("@")[2]


READ: EffectKind[..., Reply] = EffectKind("http.read", "read", target=_target)
WRITE: EffectKind[..., Reply] = EffectKind("http.write", "write", target=_target, takes_key=True)

_READS = frozenset({"GET", "HEAD", "OPTIONS"})


@makes(READ)
def get(url: str, *, headers: Mapping[str, str] | None = None, limit: int = 8 << 20) -> Effect[Reply]:
    """GET a URL. limit: bytes of the answer's body, more is a failure."""
    return _effect("GET", url, headers, None, None, limit)


@makes(WRITE)
def post(
    url: str,
    *,
    json: object = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    limit: int = 8 << 20,
) -> Effect[Reply]:
    """POST to a URL. json: a value to encode; body: bytes as they are. limit: bytes of the answer's body."""
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
    method: str, url: str, headers: Mapping[str, str] | None, json: object, body: bytes | None, limit: int
) -> Effect[Any]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DefinitionError(f"http effect: {url!r} is not an absolute http(s) URL", 'write "https://host/path"')
    fields = list((headers or {}).items())
    if json is not None and body is not None:
        raise DefinitionError(f"http effect {method} {url}: it was given json= and body=", "give one of them")
    if json is not None:
        body = encode_json(json)
        fields.append(("Content-Type", "application/json"))
    kind = READ if method in _READS else WRITE
    return Effect(kind, (Exchange(method, url, tuple(fields), body or b"", limit),))
