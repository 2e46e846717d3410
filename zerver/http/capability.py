"""The http effects, performed: `App(capabilities=[http_client()])`.

Law: what an exchange says to the other side beyond its own words is said here: which write this is
(Idempotency-Key), on whose behalf (X-Request-Id), of which trace it is a part (traceparent, which names the span of the
effect), how often it was tried (X-Request-Attempt, from the second attempt on, for servers that shed those first), and
how long anybody will wait (X-Request-Timeout-Ms). What the exchange says itself wins. What certainly was not sent, and
would not be sent next time either, is Rejected.
"""

from __future__ import annotations

import ssl
from contextlib import AbstractAsyncContextManager

from zerver.core.app import Capability
from zerver.core.effects import INJECTED, CallInfo, IdempotencyKey
from zerver.effects.http import READ, WRITE, Exchange, Reply
from zerver.errors import AddressRefused, DefinitionError, Rejected
from zerver.http.client import DEFAULT_LIMITS, ClientLimits, HttpClient, open_http_client


def http_client(
    *, allow_private: bool = False, limits: ClientLimits = DEFAULT_LIMITS, tls: ssl.SSLContext | None = None
) -> Capability:
    """Handles `zerver.effects.http`, and opens an HttpClient for handlers that take `http: HttpClient = INJECTED`.

    The arguments are those of `open_http_client`. Each exchange tells the other side how many milliseconds are
    left before its deadline, if there is one.
    """

    def open_client() -> AbstractAsyncContextManager[HttpClient]:
        return open_http_client(allow_private=allow_private, limits=limits, tls=tls, tell_deadline=True)

    return Capability(
        name="http",
        handlers={READ.name: perform_read, WRITE.name: perform_write},
        resources={HttpClient: open_client},
    )


def downstream(info: CallInfo) -> dict[str, str]:
    """The headers that tell another service on whose behalf it is called. For handlers of your own:

    `await http.request("POST", url, headers=downstream(info), key=key)`
    """
    told = {"X-Request-Id": info.run_id, "traceparent": info.traceparent}
    if info.attempt > 1:
        told["X-Request-Attempt"] = str(info.attempt)
    return told


async def perform_read(exchange: Exchange, *, info: CallInfo = INJECTED, http: HttpClient = INJECTED) -> Reply:
    """The handler of http.read."""
    return await _perform(http, exchange, info, None)


async def perform_write(
    exchange: Exchange, *, key: IdempotencyKey, info: CallInfo = INJECTED, http: HttpClient = INJECTED
) -> Reply:
    """The handler of http.write."""
    return await _perform(http, exchange, info, key)


async def _perform(http: HttpClient, exchange: Exchange, info: CallInfo, key: IdempotencyKey | None) -> Reply:
    try:
        return await http.perform(exchange, downstream(info), key, info.priority)
    except (AddressRefused, DefinitionError) as refused:
        raise Rejected(str(refused)) from refused
