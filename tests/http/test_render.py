"""Every result has an answer: the right status, the run's id, what a Fail says, and nothing of what is inside."""

from __future__ import annotations

import json as stdlib_json
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver import Fail
from zerver.core.decisions import FAIL_KINDS
from zerver.core.tickets import Refusal
from zerver.core.timeline import Ending, Status, Timeline
from zerver.errors import (
    EffectError,
    EffectRefused,
    EffectTimeout,
    ExchangeFailed,
    InvalidData,
    JoinFailed,
    OutcomeUnknown,
    ProtocolViolation,
)
from zerver.http.messages import Response
from zerver.http.render import FAIL_STATUS, MAX_ERRORS, render, render_miss, stamped
from zerver.http.response import json, text
from zerver.http.router import Miss
from zerver.runtime.result import Result

RUN_ID = "req_0123456789abcdef01234567"
SECRET = "postgres://root:hunter2@db.internal/ledger"


@attrs.frozen
class Receipt:
    id: str
    total: int


def result(status: Status, value: object = None, cause: object = None) -> Result:
    return Result(Timeline(RUN_ID, "flow", "1", "acme", "default", []), Ending(status, value, cause))


def answered(outcome: Result, on_error: Callable[[Result], object] | None = None) -> tuple[Response, list[Exception]]:
    """The answer, which always names the run; and the defects that were reported."""
    defects: list[Exception] = []
    response = render(outcome, on_error=on_error, on_defect=defects.append)
    assert response.headers.get_all("x-request-id") == [RUN_ID]
    return response, defects


def document(response: Response) -> dict[str, Any]:
    assert isinstance(response.body, bytes)
    assert response.headers.get("content-type") == "application/problem+json"
    read = stdlib_json.loads(response.body)
    assert read["status"] == response.status
    assert read["type"] == "about:blank"
    assert read["title"]
    return dict(read)


def problem_of(outcome: Result) -> tuple[Response, dict[str, Any]]:
    response, defects = answered(outcome)
    assert defects == []
    read = document(response)
    assert read["instance"] == RUN_ID
    return response, read


# ---- done -----------------------------------------------------------------------------------


def test_a_response_passes_as_it_is_but_for_the_id() -> None:
    made = text("hello", 201, {"x-own": "1", "X-Request-Id": "forged"})
    response, _ = answered(result("done", made))
    assert (response.status, response.body) == (201, b"hello")
    assert list(response.headers) == [
        ("content-type", "text/plain; charset=utf-8"),
        ("x-own", "1"),
        ("x-request-id", RUN_ID),
    ]


def test_a_stream_passes_as_it_is() -> None:
    async def pieces() -> Any:
        yield b"a"

    body = pieces()
    response, _ = answered(result("done", Response(200, {}, body)))
    assert response.body is body


def test_none_is_204_and_anything_else_is_json() -> None:
    response, _ = answered(result("done", None))
    assert (response.status, response.body) == (204, b"")
    for value, body in [(Receipt("a", 3), b'{"id":"a","total":3}'), ([], b"[]"), ("text", b'"text"'), (0, b"0")]:
        response, _ = answered(result("done", value))
        assert (response.status, response.body) == (200, body)
        assert response.headers.get("content-type") == "application/json"


def test_a_value_that_is_no_json_is_a_reported_defect() -> None:
    response, defects = answered(result("done", object()))
    assert document(response)["status"] == 500
    assert [type(defect) for defect in defects] == [TypeError]


# ---- failed ---------------------------------------------------------------------------------


def test_every_kind_of_fail_has_a_status() -> None:
    assert FAIL_STATUS.keys() == FAIL_KINDS
    for kind in FAIL_KINDS:
        _, read = problem_of(result("failed", cause=Fail(kind, "thing")))  # type: ignore[arg-type]  # one of FailKind
        assert (read["status"], read["kind"]) == (FAIL_STATUS[kind], kind)


def test_a_fail_says_what_which_and_why() -> None:
    _, read = problem_of(result("failed", cause=Fail.conflict("cart", "cart_1", "It is empty.")))
    assert read == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "It is empty.",
        "kind": "conflict",
        "what": "cart",
        "key": "cart_1",
        "instance": RUN_ID,
    }
    _, read = problem_of(result("failed", cause=Fail.not_found("cart")))
    assert not {"key", "detail"} & read.keys()


def test_unauthorized_names_a_scheme() -> None:
    response, _ = problem_of(result("failed", cause=Fail.unauthorized("token")))
    assert (response.status, response.headers.get("www-authenticate")) == (401, "Bearer")


def test_invalid_data_lists_every_problem() -> None:
    bad = InvalidData([("path.id", "expected `int`"), ("body.items[2].sku", "is missing")])
    response, read = problem_of(result("failed", cause=bad))
    assert response.status == 422
    assert read["title"] == "Unprocessable Content"
    assert read["detail"] == "the request has 2 problems"
    assert read["errors"] == [
        {"at": "path.id", "problem": "expected `int`"},
        {"at": "body.items[2].sku", "problem": "is missing"},
    ]


def test_a_list_of_problems_has_an_end() -> None:
    bad = InvalidData([(f"body[{at}]", "is missing") for at in range(MAX_ERRORS + 50)])
    _, read = problem_of(result("failed", cause=bad))
    assert len(read["errors"]) == MAX_ERRORS
    assert f"{MAX_ERRORS + 50} problems, of which {MAX_ERRORS} are listed" in read["detail"]


@pytest.mark.parametrize(
    ("status", "title"), [(400, "Bad Request"), (413, "Content Too Large"), (415, "Unsupported Media Type")]
)
def test_a_violation_is_answered_with_its_own_status(status: int, title: str) -> None:
    response, read = problem_of(result("failed", cause=ProtocolViolation("the body is over the limit", status)))
    assert (response.status, read["title"]) == (status, title)
    assert read["detail"] == "the body is over the limit"


@pytest.mark.parametrize(
    ("cause", "status", "retry_after"),
    [
        (EffectError("http.post", SECRET, OSError(SECRET)), 502, None),
        (OutcomeUnknown("http.post", SECRET), 502, None),
        (JoinFailed("join.all", SECRET, [EffectError("http.post", SECRET)]), 502, None),
        (EffectRefused("http.post", SECRET), 503, "1"),
        (EffectTimeout("http.post", SECRET), 504, None),
        (ExchangeFailed(SECRET), 400, None),
    ],
)
def test_effects_that_failed_tell_nothing_of_themselves(cause: Exception, status: int, retry_after: str | None) -> None:
    response, read = problem_of(result("failed", cause=cause))
    assert (response.status, response.headers.get("retry-after")) == (status, retry_after)
    assert read.keys() == {"type", "title", "status", "detail", "instance"}
    assert SECRET not in str(read)
    assert "http.post" not in str(read)


# ---- not failed, and not done ---------------------------------------------------------------


@pytest.mark.parametrize(
    "cause", [RuntimeError(SECRET), InvalidData([("body", SECRET)]), EffectError("k", SECRET), None]
)
def test_a_defect_is_500_whatever_it_was(cause: object) -> None:
    response, read = problem_of(result("defect", cause=cause))
    assert response.status == 500
    assert read == {"type": "about:blank", "title": "Internal Server Error", "status": 500, "instance": RUN_ID}


@pytest.mark.parametrize(
    ("outcome", "status", "retry_after"),
    [
        (result("deadline"), 504, None),
        (result("cancelled"), 503, "1"),
        (result("refused", cause=Refusal("queue full", 503, 2.1)), 503, "3"),
        (result("refused", cause=Refusal("queue full", 429, 0.01)), 429, "1"),
        (result("refused", cause=Refusal("draining", 503, None)), 503, None),
        (result("failed", cause=None), 500, None),
    ],
)
def test_endings_without_a_failure_of_their_own(outcome: Result, status: int, retry_after: str | None) -> None:
    response, _ = problem_of(outcome)
    assert (response.status, response.headers.get("retry-after")) == (status, retry_after)


# ---- on_error -------------------------------------------------------------------------------


def test_on_error_is_not_asked_about_a_run_that_was_done() -> None:
    response, defects = answered(result("done", 1), on_error=lambda _: 1 / 0)
    assert (response.status, defects) == (200, [])


def test_on_error_answers_in_its_own_way() -> None:
    failed = result("failed", cause=Fail.unauthorized("token"))
    response, _ = answered(failed, on_error=lambda said: json({"why": str(said.cause)}, 418))
    assert (response.status, response.body) == (418, b'{"why":"unauthorized: token"}')

    response, _ = answered(result("failed", cause=EffectError("k", "r")), on_error=lambda _: Fail.unavailable("bank"))
    assert response.status == 503
    assert document(response)["what"] == "bank"

    response, _ = answered(failed, on_error=lambda _: {"oh": "no"})
    assert (response.status, response.body) == (401, b'{"oh":"no"}')
    assert response.headers.get_all("content-type") == ["application/json"]
    assert response.headers.get("www-authenticate") == "Bearer"


def test_on_error_that_says_nothing_leaves_the_default() -> None:
    response, _ = answered(result("deadline"), on_error=lambda _: None)
    assert response.status == 504


@pytest.mark.parametrize("on_error", [lambda _: 1 / 0, lambda _: object()])
def test_on_error_that_fails_is_a_reported_defect(on_error: Callable[[Result], object]) -> None:
    response, defects = answered(result("failed", cause=Fail.not_found("cart")), on_error)
    assert response.status == 500
    assert document(response).keys() == {"type", "title", "status", "instance"}
    assert len(defects) == 1


# ---- misses ---------------------------------------------------------------------------------


def test_a_miss_says_what_there_is_instead() -> None:
    response = render_miss(Miss(404, (), "there is such a path with a trailing slash"))
    assert document(response)["detail"] == "there is such a path with a trailing slash"
    assert "allow" not in response.headers
    response = render_miss(Miss(405, ("GET", "HEAD", "OPTIONS")))
    assert document(response)["status"] == 405
    assert response.headers.get("allow") == "GET, HEAD, OPTIONS"
    response = render_miss(Miss(204, ("GET", "OPTIONS")))
    assert (response.status, response.headers.get("allow"), response.body) == (204, "GET, OPTIONS", b"")


def test_an_answer_without_a_run_is_stamped_too() -> None:
    assert stamped(render_miss(Miss(404)), "req_1").headers.get("x-request-id") == "req_1"


# ---- anything -------------------------------------------------------------------------------

CAUSES = (
    st.builds(Fail, st.sampled_from(sorted(FAIL_KINDS)), st.text(), st.none() | st.text(), st.none() | st.text())
    | st.builds(InvalidData, st.lists(st.tuples(st.text(), st.text())))
    | st.builds(ProtocolViolation, st.text(), st.sampled_from([400, 408, 413, 415, 431]))
    | st.builds(EffectError, st.text(), st.text())
    | st.builds(Refusal, st.just("draining"), st.sampled_from([429, 503]), st.none() | st.floats(0, 1e6))
    | st.builds(ValueError, st.text())
    | st.none()
)


@given(st.sampled_from(["failed", "defect", "deadline", "cancelled", "refused"]), CAUSES)
def test_whatever_a_run_came_to_there_is_one_honest_answer(status: Status, cause: object) -> None:
    response, _ = answered(result(status, cause=cause))
    assert response.status >= 400
    assert isinstance(response.body, bytes)
    assert document(response)["instance"] == RUN_ID
