"""Idempotency keys as HTTP has them: reading the header, telling requests apart, and which answers are kept.

Law: pure. What a key means is draft-ietf-httpapi-idempotency-key-header-07's to say; where the draft leaves it to the
server, what is done is said here, and in docs/how-to/idempotency-keys.md: the draft asks for it to be published.

    first request               carried out
    the same, while it runs     409, Retry-After
    the same, afterwards        the same answer, with `Idempotent-Replayed: true`
    another one                 422
    no key, or none that is     400

Which answers are kept. Stripe keeps whatever a request came to once it was begun, 500 included, because what was done
may not be done twice. Here the run's records say what was done (`zerver.core.standing`), so that more can be promised:

- a run that left something in the world is not repeated, whatever it answered;
- a run that left nothing, because it wrote nothing or all of it was undone, has a final answer below 500 kept, since
  that is what the flow has decided; an answer that says "not now" (401, 408, 425, 429, and all from 500 on) is not, and
  the same key may try again;
- a request that was never begun (refused by admission, not readable, of the wrong shape) leaves its key free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from zerver.core.standing import standing
from zerver.core.timeline import Ending, Keyed
from zerver.errors import KeyRefused
from zerver.http.messages import Headers, RequestHead, Response
from zerver.http.response import problem
from zerver.runtime.receipts import MOST_ANSWER, Receipt, StoredAnswer
from zerver.runtime.result import Result

FIELD: Final = "idempotency-key"

#: Of an answer that was given before. Stripe's name for it; the draft has none.
REPLAYED: Final = (b"idempotent-replayed", b"true")

#: Seconds after which the same may be asked again: nobody knows when the run under way ends.
SOON: Final = 1.0

#: Characters of a key (Stripe's bound).
MOST_KEY: Final = 255

#: "Not now", said by an answer below 500: the client is to get a credential, or to come back later.
_NOT_FINAL: Final = frozenset({401, 408, 425, 429})

#: Fields that belong to one exchange, not to the answer.
_PASSING: Final = frozenset({b"x-request-id", b"date", b"connection", b"ratelimit", b"ratelimit-policy"})

#: An sf-string (RFC 9651 §3.3.3), without parameters; and what clients send that know no structured fields: the marks
#: of UUIDs, ULIDs, base64 and paths, none of which would have to be quoted.
_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BARE: Final = re.compile(r"[A-Za-z0-9._~:/+=-]+")
_ESCAPED: Final = re.compile(r'\\(["\\])')

_DIGEST: Final = 32


def read_key(head: RequestHead) -> str | None:
    """The request's key, None if it brings none. `"abc"` and `abc` are one key.

    Raises KeyRefused (400) for more than one line, for what is no string, and for one that is empty or too long.
    """
    lines = head.headers.get_all(FIELD)
    if not lines:
        return None
    quoted = _QUOTED.fullmatch(lines[0])
    key = _ESCAPED.sub(r"\1", quoted[1]) if quoted else lines[0] if _BARE.fullmatch(lines[0]) else ""
    if len(lines) > 1 or not 0 < len(key) <= MOST_KEY:
        detail = f'Idempotency-Key is to be one string of 1 to {MOST_KEY} characters, as "8e03978e-40d5-43e8-bc93"'
        raise KeyRefused("malformed", 400, detail)
    return key


def missing() -> KeyRefused:
    return KeyRefused("missing", 400, "this operation needs an Idempotency-Key, made anew for each thing to be done")


def unavailable(retry_after: float) -> KeyRefused:
    """For a store that does not answer: whoever sends a key wants to be protected, so nothing is begun without it."""
    return KeyRefused("unavailable", 503, "idempotency keys cannot be looked up now", retry_after or SOON)


# ---- which request it is --------------------------------------------------------------------


def place_of(tenant: str, flow: str, key: str) -> bytes:
    """Where the receipt of a key is: keys of two tenants, or of two flows, are two keys.

    A digest, so that nobody's key is on a disk, and none can be made to mean another's.
    """
    return _digest(tenant, flow, key)


def head_of(head: RequestHead, route: str, params: Mapping[str, str], known: bool) -> bytes:
    """What tells requests apart beside their bodies: method, route, path parameters, query.

    known: whether the tenant is named. A caller whom nobody has named must also show the credential of the first one,
    or whoever guesses a key would be told what it was answered. Where callers are named, credentials are theirs to
    renew between two attempts.
    """
    said = [head.method, route, head.query, str(len(params))]
    for name in sorted(params):
        said += [name, params[name]]
    if not known:
        said += [head.headers.get("authorization") or "", head.headers.get("cookie") or ""]
    return _digest(*said)


def new_body_digest() -> blake2b:
    """The digest of a body, to be fed piece by piece."""
    return blake2b(digest_size=_DIGEST)


def _digest(*said: str) -> bytes:
    """Each word with its length before it: no two lists of words are the same bytes."""
    digest = blake2b(digest_size=_DIGEST)
    for word in said:
        data = word.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def judge(receipt: Receipt, is_same: bool) -> tuple[Keyed, Ending]:
    """What a request comes to whose place another run has. is_same: as far as one can tell."""
    if not is_same:
        detail = "this Idempotency-Key was used for another request; make a new one for each thing to be done"
        return "other request", Ending("failed", cause=KeyRefused("other_request", 422, detail))
    if receipt.answer is None:
        detail = "the first request with this Idempotency-Key is under way; ask again for its answer"
        return "in use", Ending("failed", cause=KeyRefused("in_use", 409, detail, SOON))
    return "repeats", Ending("done")


# ---- answers --------------------------------------------------------------------------------


def is_final(result: Result, status: int) -> bool:
    """Whether the answer to a run that was begun is its answer for good; else its key is free again."""
    return bool(standing(result.timeline.records)) or (status < 500 and status not in _NOT_FINAL)


def stored(response: Response) -> StoredAnswer | None:
    """The answer to be stored, None for one that cannot be: a stream, or a body above MOST_ANSWER.

    Retry-After of a failure is left out: it spoke of that moment, and asking again for this answer is of no use.
    """
    body = response.body
    if not isinstance(body, bytes) or len(body) > MOST_ANSWER:
        return None
    dropped = _PASSING | {b"retry-after"} if response.status >= 500 else _PASSING
    fields = tuple(field for field in response.headers.raw if field[0] not in dropped)
    return StoredAnswer(response.status, fields, body)


def not_stored(run_id: str) -> StoredAnswer:
    """Stands for an answer that could not be stored: what was asked for is done, and is not done again."""
    detail = "what was asked for has been done; its answer could not be kept, and cannot be given again"
    answer = problem(410, "", detail, instance=run_id)
    return StoredAnswer(answer.status, answer.headers.raw, answer.body if isinstance(answer.body, bytes) else b"")


def again(answer: StoredAnswer) -> Response:
    """The answer, once more."""
    return Response(answer.status, Headers((*answer.fields, REPLAYED)), answer.body)
