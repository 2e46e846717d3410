"""Refusals: what a client hears whose run admission has not begun, and what it may still ask for.

Law: to say no costs next to nothing, because it is said most when there is least to spare: what is the same for all
refusals of a kind is made once, and nothing is parsed, encoded or checked again. Precedent for the shape: RFC 9457 for
the body, RFC 9110 §10.2.3 for Retry-After, draft-ietf-httpapi-ratelimit-headers for RateLimit and RateLimit-Policy.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil
from typing import Final

from zerver.core.quotas import Quota
from zerver.core.tickets import OWN_DOING, Refusal
from zerver.http.messages import Headers, Response
from zerver.http.prewritten import Prewritten
from zerver.http.response import problem

#: What a policy is called in the two fields: tenants are told of their own alone, so it needs no name of theirs.
_POLICY: Final = "tenant"

_OWN: Final = "you have asked for more than your share; try again later"
_BUSY: Final = "the service has more to do than it can; try again later"
_DRAINING: Final = "the service is shutting down; try again"


def refused(refusal: Refusal, request_id: str) -> Response:
    """The answer to a refusal: 429 or 503, with Retry-After in whole seconds, at least 1.

    request_id: of the runtime's making, so that it needs no escaping.
    """
    wait = None if refusal.retry_after is None else max(1, ceil(refusal.retry_after))
    why = _OWN if refusal.reason in OWN_DOING else _DRAINING if refusal.reason == "draining" else _BUSY
    fields, begun = _beforehand(refusal.status, wait, why)
    stamp = request_id.encode("ascii")
    return Response(refusal.status, fields.stamped(stamp), b'%b%b"}' % (begun, stamp), refusal=True)


def limited(response: Response, quota: Quota) -> Response:
    """The response with what its tenant may still ask for, so that it can slow down before it is refused."""
    policy = f'"{_POLICY}";q={quota.limit};w={max(1, ceil(quota.window))}'.encode("ascii")
    left = f'"{_POLICY}";r={quota.remaining};t={ceil(quota.reset)}'.encode("ascii")
    fields: Headers = response.headers
    if isinstance(fields, Prewritten):
        fields = fields.extended(b"ratelimit-policy", policy).extended(b"ratelimit", left)
    else:
        fields = Headers((*fields.raw, (b"ratelimit-policy", policy), (b"ratelimit", left)))
    return Response(response.status, fields, response.body, response.refusal)


@lru_cache(maxsize=256)
def _beforehand(status: int, wait: int | None, why: str) -> tuple[Prewritten, bytes]:
    """The fields, and the body up to the id in its last member."""
    answer = problem(status, detail=why)
    fields = answer.headers if wait is None else answer.headers.adding("retry-after", str(wait))
    body = answer.body if isinstance(answer.body, bytes) else b"{}"
    return Prewritten.of(fields), body.removesuffix(b"}") + b',"instance":"'
