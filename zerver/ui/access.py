"""Access: who may look at the page, and whose writes are meant. Pure but for the clock that it is given.

Law: locked, and each lock holds without the others. The peer must be this machine, and no proxy may have passed the
request on; the Host must be a name of this machine, so that a stranger's domain that resolves to it (DNS rebinding)
gets nothing; the token must be known; and what is asked by a page of another origin is refused before any of that.
Who has no token learns nothing, not even which paths there are.

The printed URL carries the token once: the answer sets a cookie (HttpOnly, SameSite=Strict, for the page's path) and
leads to the same URL without it. The cookie is not the token: it is a number, a time, and a seal made with a key that
is made of the token, so nothing is kept here, and workers that share a token share their sessions. A write needs the
proof that belongs to that very cookie, in a header that no form can send; and an Origin of our own. SameSite alone does
not keep a page on another port of this machine out: ports are the same site.

Wrong tokens are counted together, not by peer: on one machine all peers are one. What is right is let in meanwhile if
it has its cookie already, so nobody can lock out who is inside.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode

import attrs

from zerver.errors import DefinitionError, ProtocolViolation
from zerver.http import RequestHead, Trust
from zerver.http.trust import is_local

CSRF_HEADER: Final = "x-zerver-csrf"

_SHORTEST_TOKEN: Final = 16  # characters
_SESSION_SECONDS: Final = 12 * 3600
_WRONG_AT_ONCE: Final = 10
_WRONG_PER_SECOND: Final = 1 / 6
_PASSED_ON: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_LOOKS: Final = frozenset({"GET", "HEAD"})

Barrier = Literal["stranger", "token", "throttled", "proof"]


def new_token() -> str:
    """A token that nobody guesses: 256 random bits."""
    return secrets.token_urlsafe(32)


@attrs.frozen
class Session:
    """Who was let in. csrf: the proof that its writes must carry; "" for who brings the token each time."""

    csrf: str


@attrs.frozen
class Entrance:
    """The token was right: set this cookie, and go on to this path without the token."""

    cookie: str
    location: str


@attrs.frozen
class Barred:
    """Who was not let in, and by which lock. status: of the answer. wait: seconds until it makes sense to try again."""

    barrier: Barrier
    status: int
    wait: int = 0


class Access:
    """The locks of one page.

    token: at least 16 characters. path: of the page, as "/_zerver". hosts: names that the page may be asked under from
    elsewhere; with any given, peers of other machines and proxies are let in too, to these names and with the token.
    clock: seconds since 1970.

    Raises DefinitionError for a token that is too short, and for hosts that are none, or any.
    """

    def __init__(
        self,
        token: str,
        *,
        path: str = "/_zerver",
        hosts: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
            raise DefinitionError(
                "the page's token is too easy to guess", f"give {_SHORTEST_TOKEN} or more printable ASCII characters"
            )
        if any("*" in host for host in hosts):
            raise DefinitionError(
                "the page was allowed under any name", "name each host: any name lets a stranger's domain in"
            )
        self.path = path
        self._token = token.encode()
        self._key = hashlib.sha256(b"zerver page\0" + self._token).digest()
        # Browsers send cookies to every port of a host: the name keeps two servers on one machine apart.
        self._cookie = f"zerver_{hashlib.sha256(self._key).hexdigest()[:12]}"
        self._remote = bool(hosts)
        self._local = Trust(hosts=["localhost", "127.0.0.1", "[::1]"])
        self._named = Trust(hosts=hosts) if hosts else None
        self._clock = clock
        self._wrong = 0.0
        self._counted_at = clock()

    @property
    def token(self) -> str:
        """What opens the page."""
        return self._token.decode()

    def url(self, address: str) -> str:
        """What to print: the page's URL with the token. address: as "http://127.0.0.1:8000"."""
        return f"{address}{self.path}/?token={self.token}"

    # ---- who is let in ------------------------------------------------------------------------

    def judge(self, head: RequestHead, peer: str, scheme: str = "http") -> Session | Entrance | Barred:
        """Whether the request is let in. peer: the other end's address, as `Exchange.peer`."""
        if not self._is_expected(head, peer) or _is_foreign(head):
            return Barred("stranger", 403)
        found = self._session(head)
        if isinstance(found, str):
            return self._entrance(head, scheme, found)
        if isinstance(found, Session) and head.method not in _LOOKS and not self._is_meant(head, found):
            return Barred("proof", 403)
        return found

    def _is_expected(self, head: RequestHead, peer: str) -> bool:
        """Whether it comes from where the page may be asked, under a name that is its own."""
        near = is_local(peer) and not any(name in head.headers for name in _PASSED_ON)
        if near and _is_served(self._local, head):
            return True
        return self._named is not None and _is_served(self._named, head)

    def _session(self, head: RequestHead) -> Session | str | Barred:
        """By cookie or by token; the token of the URL, perhaps "", when there is none of them."""
        bearer = head.headers.get("authorization")
        if bearer is not None:
            scheme, _, token = bearer.partition(" ")
            if scheme.lower() == "bearer":
                return self._compared(token.strip()) or Session("")
        for value in _cookies(head, self._cookie):
            if self._is_sealed(value):
                return Session(self._seal("csrf", value))
        return dict(parse_qsl(head.query)).get("token", "") if head.method in _LOOKS else ""

    def _entrance(self, head: RequestHead, scheme: str, token: str) -> Entrance | Barred:
        if not token:
            return Barred("token", 401)
        barred = self._compared(token)
        if barred is not None:
            return barred
        rest = urlencode([(name, value) for name, value in parse_qsl(head.query) if name != "token"])
        # Always the page itself, whatever path was asked: the token opens the door, and no redirect is made of a path.
        return Entrance(self._new_cookie(scheme), f"{self.path}/?{rest}" if rest else f"{self.path}/")

    def _compared(self, token: str) -> Barred | None:
        now = self._clock()
        passed, self._counted_at = max(0.0, now - self._counted_at), now
        self._wrong = max(0.0, self._wrong - passed * _WRONG_PER_SECOND)
        over = self._wrong - (_WRONG_AT_ONCE - 1)
        if over > 0:
            return Barred("throttled", 429, wait=int(over / _WRONG_PER_SECOND) + 1)
        if hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token):
            return None
        self._wrong += 1
        return Barred("token", 401)

    # ---- cookies ------------------------------------------------------------------------------

    def _new_cookie(self, scheme: str) -> str:
        value = f"{int(self._clock())}.{secrets.token_hex(16)}"
        secure = "; Secure" if scheme == "https" else ""
        return (
            f"{self._cookie}={value}.{self._seal('session', value)}; Path={self.path}; Max-Age={_SESSION_SECONDS}; "
            f"HttpOnly; SameSite=Strict{secure}"
        )

    def _is_sealed(self, value: str) -> bool:
        said, _, seal = value.rpartition(".")
        if not hmac.compare_digest(seal.encode("utf-8", "surrogateescape"), self._seal("session", said).encode()):
            return False
        return -60 <= self._clock() - int(said.partition(".")[0]) <= _SESSION_SECONDS

    def _seal(self, purpose: str, value: str) -> str:
        return hmac.new(self._key, f"{purpose}\0{value}".encode("utf-8", "surrogateescape"), "sha256").hexdigest()

    # ---- whose writes are meant ---------------------------------------------------------------

    def _is_meant(self, head: RequestHead, session: Session) -> bool:
        """Whether a write comes from our own page, or from a program that brought the token itself."""
        origin, site = head.headers.get("origin"), head.headers.get("sec-fetch-site")
        if origin is not None and origin.partition("://")[2] != head.headers.get("host"):
            return False
        if not session.csrf:
            return True
        if origin is None and site != "same-origin":  # a browser sends one of them at least
            return False
        given = head.headers.get(CSRF_HEADER) or ""
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), session.csrf.encode())


def _is_foreign(head: RequestHead) -> bool:
    """Whether the browser says that a page of another origin asks (Fetch Metadata); a link that leads here may."""
    site = head.headers.get("sec-fetch-site")
    if site is None or site in ("same-origin", "none"):
        return False
    navigates = head.headers.get("sec-fetch-mode") == "navigate" and head.headers.get("sec-fetch-dest") == "document"
    return not (navigates and head.method == "GET")


def _is_served(trust: Trust, head: RequestHead) -> bool:
    try:
        trust.judge(head)
    except ProtocolViolation:
        return False
    return True


def _cookies(head: RequestHead, name: str) -> list[str]:
    pairs = (pair.strip().partition("=") for pair in (head.headers.get("cookie") or "").split(";"))
    return [value for given, _, value in pairs if given == name]
