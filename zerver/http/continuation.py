"""Continuation URLs: how a client makes a parked run go on, that of another client's request included.

Law: a URL is a capability, and nothing is kept for it: it names a run, one of its pauses and when that expires, and is
signed with a key that all workers on a journal share. What it may do is decided by the journal at each use: a pause
takes one signal. Nobody learns anything from a URL that was not signed here, not even by how long the answer takes.

    202      the run is parked: {"run", "status": "parked", "continue": {signal: URL}, "expires"}, and Location
    POST     the signal, its value as JSON; answered with what the run then comes to, 202 if that is another pause,
             or if another worker carries it on; 409 when it was used, 410 when it has expired or the run was cancelled,
             422 for a value that is not what the step waits for (nothing is used up), 404 for no such URL
    GET      how it stands; nothing is used up. So that a preview of a link in a mail approves no payment

The URL is a path, so it holds behind any proxy, and whatever name a client knows the server by.
"""

from __future__ import annotations

import datetime
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hmac import compare_digest
from hmac import digest as hmac_digest
from types import MappingProxyType
from typing import Any, Final

import attrs
import msgspec

from zerver.core.flows import Flow
from zerver.errors import DamagedJournal, InvalidData, JournalUnavailable, ProtocolViolation
from zerver.http.conversions import check_is_json, compile_json
from zerver.http.exchange import Exchange
from zerver.http.messages import RequestHead, Response
from zerver.http.render import detail_of, listed, stamped
from zerver.http.response import json, problem
from zerver.runtime.journal import Journal, StoredRun
from zerver.runtime.result import Continuation, Result
from zerver.runtime.run import Runtime
from zerver.runtime.wakes import Wakes

#: Below which path continuations are.
PREFIX: Final = "/_zerver/continue"

#: What the key is kept as in the journal.
_KEY_NAME: Final = "continuations"

_MAC: Final = 32  # bytes of HMAC-SHA256
_LONGEST: Final = 4096  # characters of a token; nobody has signed a longer one

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_NO_STORE: Final[Mapping[str, str]] = MappingProxyType({"cache-control": "no-store"})


# ---- tokens ---------------------------------------------------------------------------------


@attrs.frozen
class Place:
    """What a token names: one pause of one run. expires_unix_ns: by the clock of the worker that made it."""

    run_id: str
    continuation: Continuation


def token_of(key: bytes, run_id: str, continuation: Continuation) -> str:
    """The token of a pause: URL-safe text."""
    said = [run_id, continuation.signal, continuation.number, continuation.expires_unix_ns]
    payload = msgspec.json.encode(said)
    return urlsafe_b64encode(hmac_digest(key, payload, "sha256") + payload).rstrip(b"=").decode("ascii")


def read_token(key: bytes, token: str) -> Place | None:
    """What a token names; None unless it was made with this key, to the letter."""
    if len(token) > _LONGEST or not token.isascii():
        return None
    try:
        signed = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        return None
    mac, payload = signed[:_MAC], signed[_MAC:]
    if not compare_digest(mac, hmac_digest(key, payload, "sha256")):
        return None
    run_id, signal, number, expires = msgspec.json.decode(payload, type=tuple[str, str, int, int])
    place = Place(run_id, Continuation(signal, number, expires))
    return place if compare_digest(token, token_of(key, run_id, place.continuation)) else None


def url_of(key: bytes, run_id: str, continuation: Continuation) -> str:
    return f"{PREFIX}/{token_of(key, run_id, continuation)}"


# ---- requests -------------------------------------------------------------------------------


class Continuations:
    """Answers requests for continuation URLs. Made by `open_continuations`."""

    def __init__(self, runtime: Runtime, journal: Journal, wakes: Wakes, key: bytes) -> None:
        self._runtime = runtime
        self._journal = journal
        self._wakes = wakes
        self._key = key
        self._read = compile_json(Any, "the value of a signal")
        self._flows = {(route.label, flow.name): flow for route in runtime.app.routes for flow in route.flows}

    def parked(self, result: Result) -> Response:
        """The answer to a client whose run was put down."""
        urls = {one.signal: url_of(self._key, result.run_id, one) for one in result.continuations}
        told = {"run": result.run_id, "status": "parked", "continue": urls}
        first = result.continuations[0]
        expires = {"expires": _iso(first.expires_unix_ns)}
        return stamped(json(told | expires, 202, {**_NO_STORE, "location": urls[first.signal]}), result.run_id)

    def is_asked(self, head: RequestHead) -> bool:
        """Whether the request is for a continuation."""
        return head.path.startswith(f"{PREFIX}/")

    def flow_of(self, result: Result) -> Flow | None:
        """The flow of a route whose run has ended; None for one that is no route's."""
        return self._flows.get((result.timeline.label, result.timeline.flow))

    async def handle(self, exchange: Exchange) -> Response | Result:
        """Answer a request for a continuation; with what the run came to, when it was carried on here."""
        head = exchange.head
        token = head.path.partition("?")[0].removeprefix(f"{PREFIX}/")
        place = read_token(self._key, token)
        if place is None:
            return self._problem(404)
        try:
            if head.method == "POST":
                return await self._give(exchange, place)
            if head.method in ("GET", "HEAD"):
                return self._told(place, await self._journal.read(place.run_id))
        except JournalUnavailable as trouble:
            seconds = max(1, round(trouble.retry_after))
            return self._problem(503, "the journal cannot be reached", headers={"retry-after": str(seconds)})
        except DamagedJournal:  # `zerver sagas show` says why; the keys of the journal may be others here
            return self._problem(500, "the run cannot be read here", {"run": place.run_id})
        return self._problem(405, headers={"allow": "GET, HEAD, POST"})

    async def _give(self, exchange: Exchange, place: Place) -> Response | Result:
        try:
            check_is_json(exchange.head)
        except ProtocolViolation as violation:
            return self._problem(violation.status, str(violation))
        body = await exchange.read_body()
        try:
            value = self._read(body)
        except ProtocolViolation as violation:
            return self._problem(violation.status, str(violation))
        except InvalidData as bad:
            return self._invalid(bad)
        signal, number = place.continuation.signal, place.continuation.number
        try:
            taken = await self._wakes.give(place.run_id, signal, value, number, "body")
        except InvalidData as bad:
            return self._invalid(bad)
        if not taken:
            return self._refused(place, await self._journal.read(place.run_id))
        result = await self._wakes.carry(place.run_id)
        if result is not None:
            return result
        told = {"run": place.run_id, "status": "accepted", "signal": signal}
        return stamped(json(told, 202, dict(_NO_STORE)), place.run_id)

    def _refused(self, place: Place, stored: StoredRun | None) -> Response:
        stands = _standing(place, stored)
        about = {"run": place.run_id, "signal": place.continuation.signal}
        if stands == "used":
            return self._problem(409, "the continuation was used before", about)
        if stands == "cancelled":
            return self._problem(410, "the run was cancelled", about)
        return self._problem(410, "the continuation has expired", about)

    def _told(self, place: Place, stored: StoredRun | None) -> Response:
        """How it stands."""
        continuation = place.continuation
        told = {
            "run": place.run_id,
            "signal": continuation.signal,
            "status": _standing(place, stored),
            "expires": _iso(continuation.expires_unix_ns),
        }
        return stamped(json(told, 200, dict(_NO_STORE)), place.run_id)

    def _invalid(self, bad: InvalidData) -> Response:
        """The value is not what the run waits for, and it waits on."""
        return self._problem(422, detail_of(bad), {"errors": listed(bad)})

    def _problem(
        self, status: int, detail: str = "", about: Mapping[str, Any] = _NOTHING, headers: Mapping[str, str] = _NOTHING
    ) -> Response:
        answer = problem(status, detail=detail, **about)
        fields = answer.headers
        for name, value in {**_NO_STORE, **headers}.items():
            fields = fields.setting(name, value)
        return stamped(attrs.evolve(answer, headers=fields), self._runtime.new_id())


def _standing(place: Place, stored: StoredRun | None) -> str:
    """ "parked", "used", "cancelled" or "expired"."""
    if stored is None:
        return "expired"
    signal = next((one for one in stored.signals if one.number == place.continuation.number), None)
    if signal is not None and signal.value is not None:
        return "used"
    if stored.cut is not None:
        return "cancelled"
    return "expired" if signal is None or stored.status else "parked"


def _iso(unix_ns: int) -> str:
    """As RFC 3339 has it, in UTC, to the second."""
    return datetime.datetime.fromtimestamp(unix_ns // 10**9, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def open_continuations(runtime: Runtime) -> Continuations | None:
    """Continuations of the runs of an open app; None when it has no journal. Raises JournalUnavailable."""
    if runtime.clerk is None or runtime.successor is None:
        return None
    journal = runtime.clerk.journal
    return Continuations(runtime, journal, runtime.successor.wakes, await journal.key(_KEY_NAME))
