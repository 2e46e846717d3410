"""What a client is asked to send, as a value that is checked before anything is sent. No I/O, no clock.

Law: whoever gets an `Outgoing` may put it on a wire as it is. A URL or a field that two readers could read
differently is refused here, with the field's name, and never repaired: repairing is how `http://good@evil`
and a header with a line break in it have become attacks (SSRF by parser differences, CVE-2023-49082).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Mapping
from functools import lru_cache
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import Final, cast
from urllib.parse import urlsplit

import attrs

from zerver.core import values
from zerver.errors import DefinitionError
from zerver.http import gate
from zerver.http.framing import written
from zerver.http.messages import Headers, HeadersLike, RawField, RequestHead
from zerver.http.prewritten import FRAMING_FIELDS

Body = bytes | AsyncIterable[bytes]

_PORTS: Final = {"http": 80, "https": 443}

# Narrower than the gate's own idea of a host, so that what passes here passes there. Underscores are in use; "%",
# and with it zones of IPv6 addresses, would have to be decoded, and is refused.
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>(?=[^:]{1,253}(?::|\Z))[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_VISIBLE: Final = re.compile(r"[!-~]+")
#: What this client asks without wanting anything changed.
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

# Nothing is decoded here, so nothing encoded is asked for.
_DEFAULTS: Final = ((b"user-agent", b"zerver"), (b"accept", b"*/*"), (b"accept-encoding", b"identity"))

# Who gives one of these must hear from the wire what becomes of it.
_OF_THE_WIRE: Final = FRAMING_FIELDS | {b"expect"}

_KEY: Final = b"idempotency-key"
_TIMEOUT: Final = b"x-request-timeout-ms"

# These say what the message is, and not what differs from call to call.
_NEVER_TOLD: Final = _OF_THE_WIRE | {b"host", b"upgrade"}

# What is not secret, and few different values of each: no list of the names that credentials go by is complete.
_KEPT: Final = frozenset({"accept", "accept-encoding", "accept-language", "content-type", "user-agent"})


@attrs.frozen(cache_hash=True)  # the pool looks its connections up by it
class Origin:
    """Whom to talk to. host: in lower case, an IPv6 address without its brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """What belongs into Host: the port only when it is not the scheme's own (RFC 9110 §7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@values.value
class Written:
    """The head of a request as it goes on the wire, judged: its first line and its fields, but none that frames the
    message. Made here only.
    """

    method: str
    lines: bytes


@attrs.frozen  # at run time too: they stand for many requests
class _Standing:
    """What is the same from call to call: fields, judged. given: by the program. names: of those. all: these and our
    own. lines: all of them, written; None where it is for the wire to say what becomes of one.
    """

    given: tuple[RawField, ...]
    names: frozenset[bytes]
    all: tuple[RawField, ...]
    lines: bytes | None


@values.value
class Outgoing:
    """One request. body: bytes, or pieces of bytes that are sent chunked.

    repeatable: whether sending it a second time is harmless by itself: its method is safe, or it carries an
    Idempotency-Key; and its body can be had a second time.
    """

    origin: Origin
    method: str
    target: str
    body: Body
    repeatable: bool
    _standing: _Standing
    _told: tuple[RawField, ...]

    @property
    def length(self) -> int | None:
        """Of the body in bytes; None when it is not known before it is sent."""
        return len(self.body) if isinstance(self.body, bytes) else None

    @property
    def head(self) -> RequestHead:
        return self._head(self._told)

    def to_send(self, left_ms: int | None) -> RequestHead | Written:
        """The head, for a wire. left_ms: sent as X-Request-Timeout-Ms, unless that was given."""
        standing, told = self._standing, self._told
        if left_ms is not None and _TIMEOUT not in standing.names:
            told = (*told, (_TIMEOUT, b"%d" % left_ms))
        if standing.lines is None:
            return self._head(told)
        return Written(self.method, _first_line(self.method, self.target) + standing.lines + written(told))

    def sent_on(self, url: str, only: frozenset[bytes] | None) -> Outgoing:
        """The same, for another URL, and without a body. only: the names of those of its fields that it takes along."""
        origin, target = read_url(url)
        given, told = self._standing.given, self._told
        if only is not None:
            given, told = tuple([field for field in given if field[0] in only]), ()
        return attrs.evolve(self, origin=origin, target=target, body=b"", standing=_judged(origin, given), told=told)

    def _head(self, told: tuple[RawField, ...]) -> RequestHead:
        return RequestHead(self.method, self.target, Headers(self._standing.all + told))


def outgoing(
    method: str,
    url: str,
    headers: HeadersLike | None,
    body: Body,
    key: str | None,
    told: Mapping[str, str] = MappingProxyType({}),
) -> Outgoing:
    """The request that these arguments ask for.

    headers: the same from call to call, mostly; they win over all others. told: what differs from call to call, and
    says nothing about the message itself. key: sent as Idempotency-Key. Raises DefinitionError for what cannot be sent,
    naming it.
    """
    origin, target = read_url(url)
    _first_line(method, target)
    if not isinstance(body, bytes) and not isinstance(body, AsyncIterable):  # an ABC is slow to tell
        raise DefinitionError(f"http request: the body is {type(body).__name__}", "give bytes, or pieces of bytes")
    standing = _standing_fields(origin, headers)
    names = standing.names
    ours = [(known, _latin(name, text)) for name, text in told.items() if (known := _told_name(name)) not in names]
    if key is not None and _KEY not in names:
        ours.append((_KEY, _latin("Idempotency-Key", key)))
    fields = tuple(ours)
    _check_fields(fields)
    repeatable = (method in READS or key is not None or _KEY in names) and isinstance(body, bytes)
    return Outgoing(origin, method, target, body, repeatable, standing, fields)


def _first_line(method: str, target: str) -> bytes:
    path, mark, query = target.partition("?")
    return _begun(method, path) + f"{mark}{query} HTTP/1.1\r\n".encode("ascii")


@lru_cache(maxsize=1024)
def _begun(method: str, path: str) -> bytes:
    """The beginning of the first line, judged. The query is not, which `read_url` has judged, nor is it kept."""
    if not method.isupper():
        raise DefinitionError(f"http request: the method {method!r} is not in capitals", f"write {method.upper()!r}")
    if method == "CONNECT":
        raise DefinitionError("http request: CONNECT asks a proxy for a tunnel", "this client speaks to no proxies")
    try:
        start = f"{method} {path}".encode("ascii")
        gate.check_outgoing_request(start)
    except ValueError:
        raise DefinitionError(f"http request: {method!r} is not a method", 'use "GET", "POST", …') from None
    return start


# ---- fields -----------------------------------------------------------------------------------


def _standing_fields(origin: Origin, headers: HeadersLike | None) -> _Standing:
    if not headers:
        return _known(origin, ())
    if isinstance(headers, Headers):  # somebody else's, as a proxy passes them on: each time others
        return _judged(origin, tuple([(name.lower(), text) for name, text in headers.raw]))
    try:
        # The cast: an iterable of pairs cannot be a mapping too.
        given = cast("Mapping[str, str]", headers).items() if isinstance(headers, Mapping) else headers
        pairs = tuple([(name, value) for name, value in given])
        if _KEPT.issuperset([name.lower() for name, _ in pairs]):
            return _known(origin, pairs)
        return _judged(origin, tuple([_encoded(*pair) for pair in pairs]))
    except (AttributeError, TypeError, ValueError):
        raise DefinitionError("http request: a header is not a pair of str", 'give {"name": "value"}') from None


@lru_cache(maxsize=256)
def _known(origin: Origin, pairs: tuple[tuple[str, str], ...]) -> _Standing:
    """A program says the same to a service each time: that is judged and written once. Nobody's secrets are kept so."""
    return _judged(origin, tuple([_encoded(*pair) for pair in pairs]))


def _judged(origin: Origin, given: tuple[RawField, ...]) -> _Standing:
    _check_fields(given)
    _check_meaning(given)
    names = {name for name, _ in given}
    defaults = ((b"host", origin.authority.encode("ascii")), *_DEFAULTS)
    fields = (*(field for field in defaults if field[0] not in names), *given)
    return _Standing(given, frozenset(names), fields, None if names & _OF_THE_WIRE else written(fields))


@lru_cache(maxsize=256)
def _told_name(name: str) -> bytes:
    """As the wire has it. The names of what is told are few."""
    known = _latin(name, name.lower())
    if known in _NEVER_TOLD:
        raise DefinitionError(
            f"http request: {known.decode()!r} is told, and is about the message", "give it among the headers"
        )
    return known


def _encoded(name: str, value: str) -> RawField:
    return _latin(name, name.lower()), _latin(name, value)


def _latin(name: str, text: str) -> bytes:
    """The name or the value of a field as bytes."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        wrong = error.object[error.start : error.end]
        raise DefinitionError(f"http request: header {name!r} has {wrong!r} in it", "encode it to latin-1") from None


def _check_fields(fields: tuple[RawField, ...]) -> None:
    try:
        gate.check_outgoing_fields(fields)
    except ValueError as error:
        raise DefinitionError(f"http request: {error}", "leave out line breaks and control characters") from None


def _check_meaning(fields: tuple[RawField, ...]) -> None:
    hosts = [value for name, value in fields if name == b"host"]
    if len(hosts) > 1 or not all(_AUTHORITY.fullmatch(host.decode("latin-1")) for host in hosts):
        raise DefinitionError(f"http request: header 'host' cannot be {b', '.join(hosts)!r}", "give one name, or none")
    for name, value in fields:
        if name == b"upgrade" or (name == b"connection" and b"upgrade" in value.lower()):
            raise DefinitionError(f"http request: header {name.decode()!r} asks for another protocol", "leave it out")


# ---- URLs -------------------------------------------------------------------------------------


def read_url(url: str) -> tuple[Origin, str]:
    """Where an absolute http(s) URL leads, and the target to ask for there; a fragment is dropped.

    Raises DefinitionError. Nothing is repaired: no blanks stripped, nothing quoted, no user and password taken.
    """
    place, _, rest = url.partition("?")
    if rest and not _VISIBLE.fullmatch(rest):
        raise _not_visible(place + "?…")
    origin, path = _read_place(place)
    query = "" if "#" in place else rest.partition("#")[0]
    return origin, f"{path}?{query}" if query else path


@lru_cache(maxsize=1024)
def _read_place(url: str) -> tuple[Origin, str]:
    """What stands before the query. That one may be a secret, and is not kept."""
    # Before urlsplit, which silently drops tabs and line breaks.
    if not _VISIBLE.fullmatch(url):
        raise _not_visible(url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _bad(url, str(error), 'write "https://host:port/path"') from None
    if parts.scheme not in _PORTS:
        raise _bad(url, "it does not start with http:// or https://", 'write "https://host/path"')
    if "@" in parts.netloc:
        raise _bad(_without_user(url), "it has a user in front of its host", "send an Authorization header")
    # Not parts.hostname and parts.port: of "[::1]x:80" they show "::1" and 80.
    authority = _AUTHORITY.fullmatch(parts.netloc)
    if authority is None:
        raise _bad(url, f"{parts.netloc!r} is not a host", "write other scripts in their ASCII form (xn--…)")
    port = _PORTS[parts.scheme] if authority["port"] is None else int(authority["port"])
    if not 1 <= port <= 65535:
        raise _bad(url, f"{port} is not a port", "leave the port out, or give one from 1 to 65535")
    return Origin(parts.scheme, _read_host(url, authority), port), parts.path or "/"


def _read_host(url: str, authority: re.Match[str]) -> str:
    if authority["name"] is not None:
        return authority["name"].lower()
    try:
        return str(IPv6Address(authority["v6"]))
    except ValueError:
        raise _bad(url, f"[{authority['v6']}] is not an IPv6 address", "write it as [2001:db8::1]") from None


def _not_visible(url: str) -> DefinitionError:
    return _bad(url, "it has blanks, control characters or characters outside ASCII", "quote them: %20")


def _bad(url: str, problem: str, cure: str) -> DefinitionError:
    return DefinitionError(f"http request: the URL {url!r}: {problem}", cure)


def _without_user(url: str) -> str:
    """The URL as an error message may show it."""
    return re.sub(r"//[^/?#]*@", "//…@", url)
