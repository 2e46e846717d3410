"""The payment provider as effects: charge, find, refund.

A handler says what it knows: `Rejected` for a definite no, `EffectRefused` for "not done, ask again"; whatever else
it raises while charging leaves the charge in doubt, and Zerver asks `find_charge` before it believes anything.
"""

import os
from http import HTTPStatus
from urllib.parse import quote

import attrs

from examples.checkout.domain import Charge
from zerver import INJECTED, IdempotencyKey, Policy, effect
from zerver.effects.http import Reply
from zerver.errors import EffectRefused, HttpError, Rejected
from zerver.http import HttpClient, encode_json

PROVIDER_URL = os.environ.get("PROVIDER_URL", "http://127.0.0.1:8801")


@attrs.frozen
class _Refunded:
    key: str
    refunded: int


@effect(kind="payments.charge", access="write")
async def charge(cents: int, user: str, *, key: IdempotencyKey = INJECTED, http: HttpClient = INJECTED) -> Charge:
    """Charge the user. The same key never charges twice, so it may be asked again."""
    reply = await _post(http, "/charges", {"amount": cents, "user": user}, key)
    if reply.status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise EffectRefused("payments.charge", "the provider is not available")
    if reply.status == HTTPStatus.CONFLICT:
        raise Rejected(f"charge {key} was refused")
    return _expect(reply, HTTPStatus.CREATED, HTTPStatus.OK).json(Charge)


@effect(kind="payments.find_charge", access="read", policy=Policy(timeout=4.0))
async def find_charge(key: IdempotencyKey, *, http: HttpClient = INJECTED) -> Charge | None:
    """The charge made with this key, or None, and then it will never be made.

    A charge that is still on its way could arrive after we have asked. So "there is none" is only believed after the
    key was refunded: the provider then refuses a charge that comes late.
    """
    reply = await http.request("GET", f"{PROVIDER_URL}/charges/{quote(key, safe='')}")
    if reply.status != HTTPStatus.NOT_FOUND:
        return _expect(reply, HTTPStatus.OK).json(Charge)
    _expect(await _post(http, "/refunds", {"key": key}, IdempotencyKey(f"{key}:void")), HTTPStatus.OK)
    return None


@effect(kind="payments.refund", access="write", policy=Policy(timeout=1.0))
async def refund(made: Charge, *, key: IdempotencyKey = INJECTED, http: HttpClient = INJECTED) -> int:
    """Refund a charge; gives the cents refunded."""
    reply = await _post(http, "/refunds", {"key": made.key}, key)
    return _expect(reply, HTTPStatus.OK).json(_Refunded).refunded


async def _post(http: HttpClient, path: str, body: object, key: IdempotencyKey) -> Reply:
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    return await http.request("POST", PROVIDER_URL + path, headers=headers, body=encode_json(body))


def _expect(reply: Reply, *statuses: HTTPStatus) -> Reply:
    if reply.status not in statuses:
        raise HttpError(f"the provider answered {reply.status}")
    return reply
