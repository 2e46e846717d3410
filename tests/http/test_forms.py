"""Forms and whole queries become attrs classes; every problem is told, and nothing that is no form is taken for one."""

from __future__ import annotations

import datetime
import enum
from typing import Annotated, Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver import App, Done, Flow, step
from zerver.core.steps import Step
from zerver.edge import check_app
from zerver.errors import DefinitionError
from zerver.http import Form, Query
from zerver.http.extract import MAX_QUERY_FIELDS
from zerver.testing import Reply, client

FORM = {"content-type": "application/x-www-form-urlencoded"}


class Color(enum.Enum):
    RED = "red"


def _no_admin(_: object, field: object, value: str) -> None:
    if value == "admin":
        raise ValueError("nobody is called admin")


@attrs.frozen
class Filters:
    name: str = attrs.field(validator=_no_admin)
    page: Annotated[int, msgspec.Meta(ge=1)] = 1
    price: float = 0.0
    tag: list[str] = attrs.field(factory=list)
    day: datetime.date | None = None
    color: Color | None = None


@step
def by_query(filters: Annotated[Filters, Query()]) -> Done:
    return Done(filters)


@step
def by_form(form: Annotated[Filters, Form()]) -> Done:
    return Done(form)


@step
def optional(filters: Annotated[Filters | None, Query()]) -> Done:
    return Done({"filters": filters})


@step
def fields(
    user: Annotated[str, Form()], age: Annotated[int, Form()] = 18, tag: Annotated[frozenset[str], Form()] = frozenset()
) -> Done:
    return Done([user, age, sorted(tag)])


async def ask(what: Step[..., Any], query: str = "", body: str | bytes | None = None, **headers: str) -> Reply:
    app = App()
    app.route("POST", "/", Flow("ask", [what]))
    data = body.encode() if isinstance(body, str) else body
    sent = (FORM if body is not None else {}) | {name.replace("_", "-"): value for name, value in headers.items()}
    async with client(app) as c:
        return await c.post(f"/?{query}", body=data, headers=sent)


GOOD = "name=a+b%C3%A9&page=2&price=1.5&tag=x&tag=y&day=2024-01-02&color=red&utm_source=z"


async def test_a_query_and_a_form_become_the_same() -> None:
    one, two = await ask(by_query, GOOD), await ask(by_form, body=GOOD)
    assert (one.status, two.status) == (200, 200)
    assert one.json() == two.json() == {
        "name": "a bé", "page": 2, "price": 1.5, "tag": ["x", "y"], "day": "2024-01-02", "color": "red",
    }  # fmt: skip
    assert (await ask(by_query, "name=a")).json()["page"] == 1


async def test_every_problem_is_told() -> None:
    reply = await ask(by_form, body="page=0&price=nan&tag=%ff&day=soon&color=blue&color=red")
    assert reply.status == 422
    assert [problem["at"] for problem in reply.json()["errors"]] == [
        "form.name", "form.page", "form.price", "form.tag[0]", "form.day", "form.color",
    ]  # fmt: skip
    said = (await ask(by_query, "name=admin")).json()["errors"]
    assert said == [{"at": "query", "problem": "nobody is called admin"}]


async def test_a_class_may_be_left_out() -> None:
    assert (await ask(optional, "utm=1")).json() == {"filters": None}
    assert (await ask(optional, "page=2")).status == 422
    assert (await ask(optional, "name=a")).json()["filters"]["name"] == "a"


async def test_single_fields() -> None:
    assert (await ask(fields, body="user=ada&age=36&tag=b&tag=a&tag=a")).json() == ["ada", 36, ["a", "b"]]
    assert (await ask(fields, body="user=ada")).json() == ["ada", 18, []]
    assert (await ask(fields, body="user=a&user=b")).status == 422
    assert (await ask(fields, body="")).json()["errors"] == [{"at": "form.user", "problem": "is missing"}]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ('{"user": "a"}', {"content_type": "application/json"}, 415),
        ("user=a", {"content_type": "multipart/form-data; boundary=x"}, 400),
        ("user=a", {"content_type": "text/plain"}, 415),
        ("user=a", {"content_encoding": "gzip"}, 415),
        ("user=a", {"content_type": "Application/X-WWW-Form-Urlencoded; charset=utf-8"}, 200),
        ("user=\u00e9".encode(), {}, 400),
        ("user=%zz", {}, 422),
        ("user=%00", {}, 422),
        ("&".join(["user=a"] * (MAX_QUERY_FIELDS + 1)), {}, 400),
        ("user=a" + "&" * (MAX_QUERY_FIELDS - 1), {}, 200),
        ("user=a" + "&" * MAX_QUERY_FIELDS, {}, 400),
    ],
)
async def test_what_is_a_form(body: str | bytes, headers: dict[str, str], status: int) -> None:
    assert (await ask(fields, body=body, **headers)).status == status


def test_a_class_that_no_text_can_become() -> None:
    @attrs.frozen
    class Nested:
        inner: dict[str, int]

    def whole(nested: Any) -> Done:
        return Done(nested)

    whole.__annotations__.update(nested=Annotated[Nested, Query()])
    app = App()
    app.route("GET", "/", Flow("f", [step(whole)]))
    with pytest.raises(DefinitionError, match="field 'inner'"):
        check_app(app)


@given(st.binary(max_size=60))
def test_whatever_comes_is_no_500(body: bytes) -> None:
    from zerver.core.plan import compile_plan
    from zerver.errors import InvalidData, ProtocolViolation
    from zerver.http import Headers, RequestHead, compile_extractor

    extractor = compile_extractor(compile_plan(Flow("f", [by_form])).parts, "f")
    try:
        extractor.extract(RequestHead("POST", "/", Headers.of(FORM)), body=body)
    except (InvalidData, ProtocolViolation):
        pass
