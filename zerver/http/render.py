"""Rendering: from what a run came to, to the answer its client gets.

Law: every run has an answer, and every answer carries the run's id as `X-Request-Id`. A failure is
application/problem+json (RFC 9457), its status from the tables below. A client learns what a `Fail` says, because a
step wrote that for it, and what is wrong with its own request; of everything else it learns that it happened. Causes,
targets, tracebacks and the state of the rollback are in the timeline, which the id names.

    status      cause                       answer
    done        Response, None, a value     as it is; 204; JSON 200
    failed      Fail                        by its kind
                InvalidData                 422, with `errors`
                ProtocolViolation           as it says: 400, 408, 413, 415
                KeyRefused                  as it says: 400, 409, 422, 503
                EffectRefused               503, Retry-After
                EffectTimeout               504
                any other EffectError       502
    defect                                  500
    deadline                                504
    cancelled                               503, Retry-After
    refused     Refusal                     429 or 503, Retry-After
    parked                                  202; with its continuations, see `continuation.py`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch
from math import ceil
from typing import Final, TypeAlias

import attrs

from zerver.core.decisions import Fail
from zerver.core.tickets import Refusal
from zerver.core.timeline import Status
from zerver.errors import (
    EffectError,
    EffectRefused,
    EffectTimeout,
    HttpError,
    InvalidData,
    KeyRefused,
    ProtocolViolation,
)
from zerver.http.messages import Headers, Response
from zerver.http.prewritten import of_content_type
from zerver.http.refusals import refused
from zerver.http.response import json, no_content, problem
from zerver.http.router import Miss
from zerver.runtime.result import Result

#: Told of an exception that nobody else hears of, as `zerver.http.connection.log_defect`.
Report: TypeAlias = Callable[[Exception], None]

#: The kinds of Fail. Here, not in the core: only this edge counts in statuses.
FAIL_STATUS: Final[Mapping[str, int]] = {
    "invalid": 422,
    "unauthorized": 401,
    "payment_required": 402,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "gone": 410,
    "expired": 410,
    "rate_limited": 429,
    "unavailable": 503,
    "failed": 500,
}

#: Problems listed in one answer; a body of a megabyte can have many more.
MAX_ERRORS: Final = 100

_SOON: Final = 1.0  # seconds; what Retry-After says when nothing is known


def render(result: Result, *, on_error: Callable[[Result], object] | None = None, on_defect: Report) -> Response:
    """The answer to a run's client. Never raises.

    on_error: of the flow, else of the app; asked about every run that was not done. If it gives a Response, that is
    sent; a Fail is rendered like a step's; None means the default; any other value is JSON with the default's status.
    on_defect: told when on_error raises, or when a run's value cannot be sent; the answer is then a 500. It must not
    raise itself.
    """
    status = result.status
    if status == "refused" and on_error is None:
        return _refused(result)
    if status == "parked":
        return stamped(_parked(result), result.run_id)
    try:
        answer = render_value(result.value) if status == "done" else _not_done(result, on_error)
    except Exception as defect:
        on_defect(defect)
        answer = _bare(500, result)
    return stamped(answer, result.run_id)


def render_value(value: object) -> Response:
    """What Done carried. Raises TypeError, or what the encoder raises, for a value that is no JSON."""
    if isinstance(value, Response):
        return value
    return no_content() if value is None else json(value)


def render_miss(miss: Miss) -> Response:
    """The answer when no route was found: 404, 405 with Allow, or the 204 that OPTIONS gets."""
    if miss.status == 204:
        return no_content({"allow": ", ".join(miss.allow)})
    answer = problem(miss.status, detail=miss.hint)
    return _with(answer, "allow", ", ".join(miss.allow)) if miss.allow else answer


def stamped(response: Response, request_id: str) -> Response:
    """The response with this `X-Request-Id`, of our own making, and no other."""
    fields = response.headers.raw
    written = of_content_type(fields) if len(fields) == 1 else None  # as most answers have
    if written is not None:
        return Response(response.status, written.stamped(request_id.encode("ascii")), response.body, response.refusal)
    return _with(response, "x-request-id", request_id)


# ---- runs that were not done ----------------------------------------------------------------


def _not_done(result: Result, on_error: Callable[[Result], object] | None) -> Response:
    default = _BY_STATUS[result.status](result)
    said = None if on_error is None else on_error(result)
    if said is None:
        return default
    answer = _said(said, default, result)
    return attrs.evolve(answer, refusal=True) if result.status == "refused" else answer


def _said(said: object, default: Response, result: Result) -> Response:
    if isinstance(said, Response):
        return said
    if isinstance(said, Fail):
        return _render_fail(said, result)
    return json(said, default.status, [field for field in default.headers if field[0] != "content-type"])


def _failed(result: Result) -> Response:
    return _render_cause(result.cause, result)


def _defect(result: Result) -> Response:
    return _bare(500, result)


def _deadline(result: Result) -> Response:
    return _bare(504, result, "the request took longer than it may")


def _cancelled(result: Result) -> Response:
    return _retry_after(_bare(503, result, "the request was cancelled before it was done"), _SOON)


def _refused(result: Result) -> Response:
    return refused(result.cause if isinstance(result.cause, Refusal) else Refusal("queue full"), result.run_id)


def _parked(result: Result) -> Response:
    return json({"run": result.run_id, "status": "parked"}, 202, {"cache-control": "no-store"})


_BY_STATUS: Final[Mapping[Status, Callable[[Result], Response]]] = {
    "failed": _failed,
    "defect": _defect,
    "deadline": _deadline,
    "cancelled": _cancelled,
    "refused": _refused,
    "parked": _parked,
}


# ---- failures by their cause ----------------------------------------------------------------


@singledispatch
def _render_cause(cause: object, result: Result) -> Response:
    return _bare(500, result)


@_render_cause.register
def _render_fail(cause: Fail, result: Result) -> Response:
    status = FAIL_STATUS.get(cause.kind, 500)
    about = {"kind": cause.kind, "what": cause.what}
    if cause.key is not None:
        about["key"] = cause.key
    answer = problem(status, "", cause.detail or "", **about, instance=result.run_id)
    # RFC 9110 §11.6.1: a 401 must name a scheme. Flows with another one answer with a Response of their own.
    return _with(answer, "www-authenticate", "Bearer") if status == 401 else answer


@_render_cause.register
def _render_invalid(cause: InvalidData, result: Result) -> Response:
    return problem(422, "", detail_of(cause), errors=listed(cause), instance=result.run_id)


def listed(cause: InvalidData) -> list[dict[str, str]]:
    """The problems of a request, as a client gets them."""
    return [{"at": at, "problem": what} for at, what in cause.problems[:MAX_ERRORS]]


def detail_of(cause: InvalidData) -> str:
    """How many there are."""
    count = len(cause.problems)
    detail = "the request has a problem" if count == 1 else f"the request has {count} problems"
    return f"{detail}, of which {MAX_ERRORS} are listed" if count > MAX_ERRORS else detail


@_render_cause.register
def _render_violation(cause: ProtocolViolation, result: Result) -> Response:
    return _bare(cause.status, result, str(cause))


@_render_cause.register
def _render_key_refused(cause: KeyRefused, result: Result) -> Response:
    about = {"kind": "idempotency_key", "what": cause.what}
    return _retry_after(problem(cause.status, "", str(cause), **about, instance=result.run_id), cause.retry_after)


@_render_cause.register
def _render_broken_exchange(cause: HttpError, result: Result) -> Response:
    return _bare(400, result, "the request did not arrive whole")


@_render_cause.register
def _render_effect(cause: EffectError, result: Result) -> Response:
    return _bare(502, result, "a service that this one needs has failed")


@_render_cause.register
def _render_effect_refused(cause: EffectRefused, result: Result) -> Response:
    return _retry_after(_bare(503, result, "a service that this one needs is not available"), _SOON)


@_render_cause.register
def _render_effect_timeout(cause: EffectTimeout, result: Result) -> Response:
    return _bare(504, result, "a service that this one needs did not answer in time")


# ---- pieces ---------------------------------------------------------------------------------


def _bare(status: int, result: Result, detail: str = "") -> Response:
    return problem(status, "", detail, instance=result.run_id)


def _retry_after(response: Response, seconds: float | None) -> Response:
    return response if seconds is None else _with(response, "retry-after", str(max(1, ceil(seconds))))


def _with(response: Response, name: str, value: str) -> Response:
    wanted = name.encode("ascii")
    fields = [field for field in response.headers.raw if field[0] != wanted]
    fields.append((wanted, value.encode("latin-1")))
    # By hand, because attrs.evolve costs twice as much.
    return Response(response.status, Headers(tuple(fields)), response.body, response.refusal)
