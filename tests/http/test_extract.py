"""A request becomes the values of a flow's parts, or one error that lists all that is wrong with it; nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver import Done, Flow, Part, step
from zerver.core.plan import compile_plan
from zerver.errors import DefinitionError, InvalidData, ProtocolViolation
from zerver.http.extract import MAX_QUERY_FIELDS, Extractor, compile_extractor
from zerver.http.messages import Caller, Headers, Request, RequestHead
from zerver.http.parts import Body, Cookie, Header, Path, Query


@attrs.frozen
class Line:
    sku: str
    count: int


@attrs.frozen
class Order:
    lines: list[Line]


@attrs.frozen
class Note:
    text: str = ""


class Strange:
    pass


def extractor(function: Callable[..., Done], *path_params: str) -> Extractor:
    """The extractor of a flow of one step."""
    plan = compile_plan(Flow("flow", [step(function)]))
    return compile_extractor(plan.parts, "route POST /", path_params)


def head(target: str = "/", *fields: tuple[str, str]) -> RequestHead:
    return RequestHead("POST", target, Headers.of(fields))


def problems(
    reader: Extractor, request: RequestHead, params: Mapping[str, str] = {}, body: bytes = b""
) -> dict[str, str]:
    with pytest.raises(InvalidData) as refused:
        reader.extract(request, params, body)
    return dict(refused.value.problems)


# ---- where values come from -----------------------------------------------------------------


def test_every_source_in_the_order_of_the_parts() -> None:
    def read(
        authorization: Annotated[str, Header()],
        id: Annotated[uuid.UUID, Path()],
        limit: Annotated[int, Query()],
        tag: Annotated[list[str], Query()],
        session: Annotated[str, Cookie()],
        order: Annotated[Order, Body()],
        request: Request,
    ) -> Done:
        return Done(None)

    text = "0190f3c4-7b1e-7c33-9d5e-2f6a8b9c0d1e"
    body = b'{"lines": [{"sku": "a", "count": 1}]}'
    asked = head("/x?limit=5&tag=a%20b&tag=c+d&other=1", ("Authorization", "Bearer t"), ("Cookie", "a=b; session=s"))
    reader = extractor(read, "id")
    assert reader.needs_body
    assert not reader.empty
    assert reader.extract(asked, {"id": text}, body, Caller("10.0.0.1", "192.0.2.7", "https", "shop.example")) == [
        "Bearer t",
        uuid.UUID(text),
        5,
        ["a b", "c d"],
        "s",
        Order([Line("a", 1)]),
        Request(asked, body, "10.0.0.1", {"id": text}, "192.0.2.7", "https", "shop.example"),
    ]


def test_a_route_that_reads_nothing_costs_nothing() -> None:
    reader = extractor(lambda_done)
    assert reader.empty
    assert not reader.needs_body
    assert reader.extract(head()) == []


def lambda_done() -> Done:
    return Done(None)


def test_parts_of_a_flow_that_are_the_same_are_read_once() -> None:
    @step
    def one(x_tenant: Annotated[str, Header()]) -> None: ...

    @step
    def two(tenant: Annotated[str, Header("x-tenant")], x_tenant: Annotated[str, Header()]) -> Done:
        return Done(None)

    plan = compile_plan(Flow("flow", [one, two]))
    reader = compile_extractor(plan.parts, "route GET /")
    assert reader.extract(head("/", ("x-tenant", "acme"))) == ["acme", "acme"]
    assert problems(reader, head()) == {"header.x-tenant": "is missing"}


def test_what_is_absent_is_the_default_or_none() -> None:
    def read(
        page: Annotated[int, Query()] = 1,
        tag: Annotated[list[str], Query()] | None = None,
        x_a: Annotated[str | None, Header()] = "a",
        x_b: Annotated[int, Header()] | None = None,
        session: Annotated[str, Cookie()] = "",
        id: Annotated[int, Path()] = 0,
        note: Annotated[Note, Body()] | None = None,
        raw: Annotated[bytes, Body()] = b"-",
    ) -> Done:
        return Done(None)

    assert extractor(read).extract(head()) == [1, None, "a", None, "", 0, None, b"-"]
    assert extractor(read, "id").extract(head("/?page=2"), {"id": "3"}, b"{}") == [
        2,
        None,
        "a",
        None,
        "",
        3,
        Note(),
        b"{}",
    ]


def test_a_value_that_is_there_but_wrong_is_never_the_default() -> None:
    def read(page: Annotated[int, Query()] = 1, x_n: Annotated[int, Header()] | None = None) -> Done:
        return Done(None)

    assert problems(extractor(read), head("/?page=", ("x-n", "null"))) == {
        "query.page": "expected `int`",
        "header.x-n": "expected `int`",
    }


# ---- problems -------------------------------------------------------------------------------


def test_all_problems_of_all_parts_come_at_once() -> None:
    def read(
        authorization: Annotated[str, Header()],
        id: Annotated[int, Path()],
        limit: Annotated[int, Query()],
        ids: Annotated[list[int], Query()],
        session: Annotated[str, Cookie()],
        order: Annotated[Order, Body()],
    ) -> Done:
        return Done(None)

    body = b'{"lines": [{"sku": 1, "count": 1}, {"sku": "b"}]}'
    assert problems(extractor(read, "id"), head("/?limit=x&ids=1&ids=y"), {"id": "z"}, body) == {
        "header.authorization": "is missing",
        "path.id": "expected `int`",
        "query.limit": "expected `int`",
        "query.ids[1]": "expected `int`",
        "cookie.session": "is missing",
        "body.lines[0].sku": "expected `str`, got `int`",
        "body.lines[1].count": "is missing",
    }


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("q=a&q=b", "is given 2 times, and one value is wanted"),
        ("q=%", "has a '%' that starts no escape"),
        ("q=100%&x", "has a '%' that starts no escape"),
        ("q=%4", "has a '%' that starts no escape"),
        ("q=%ff", "is not UTF-8 once it is percent-decoded"),
        ("q=%00", "contains NUL"),
        ("x=%zz", "is missing"),
        ("", "is missing"),
        ("Q=a", "is missing"),
        ("%zz=1", "is missing"),
    ],
)
def test_a_query_says_one_thing_or_is_refused(query: str, problem: str) -> None:
    def read(q: Annotated[str, Query()]) -> Done:
        return Done(None)

    assert problems(extractor(read), head(f"/?{query}")) == {"query.q": problem}


@pytest.mark.parametrize(
    ("query", "value"),
    [("q", ""), ("q=", ""), ("&&q=a=b&", "a=b"), ("%71=%C3%A9", "é"), ("q=a+b%2B", "a b+"), ("q=a;b", "a;b")],
)
def test_a_query_is_read_as_forms_write_it(query: str, value: str) -> None:
    def read(q: Annotated[str, Query()]) -> Done:
        return Done(None)

    assert extractor(read).extract(head(f"/?{query}")) == [value]


def test_a_query_has_a_bounded_number_of_fields_when_somebody_reads_it() -> None:
    def read(q: Annotated[str, Query()]) -> Done:
        return Done(None)

    most = "&".join(["q=1"] + ["x"] * (MAX_QUERY_FIELDS - 1))
    assert extractor(read).extract(head(f"/?{most}")) == ["1"]
    with pytest.raises(ProtocolViolation):
        extractor(read).extract(head(f"/?{most}&x"))
    assert extractor(lambda_done).extract(head(f"/?{most}&x")) == []


def test_cookies_are_pairs_and_the_rest_is_passed_over() -> None:
    def read(a: Annotated[str, Cookie()], b_c: Annotated[str, Cookie("b-c")]) -> Done:
        return Done(None)

    lines = [("cookie", 'junk; =x; a = "1 2"; a=second'), ("cookie", "b-c=x=y; A=3")]
    assert extractor(read).extract(head("/", *lines)) == ["1 2", "x=y"]


def test_repeated_headers_are_joined_or_listed() -> None:
    def read(
        x_a: Annotated[str, Header()],
        lines: Annotated[list[str], Header("x-a")],
        numbers: Annotated[set[int], Header("X-N")] | None = None,
    ) -> Done:
        return Done(None)

    sent = [("x-a", "1, 2"), ("X-A", "3"), ("x-n", "4"), ("x-n", "4")]
    assert extractor(read).extract(head("/", *sent)) == ["1, 2, 3", ["1, 2", "3"], {4}]
    assert problems(extractor(read), head()) == {"header.x-a": "is missing"}


# ---- bodies ---------------------------------------------------------------------------------


def test_bodies_come_raw_as_text_and_as_types_side_by_side() -> None:
    def read(
        raw: Annotated[bytes, Body()],
        text: Annotated[str, Body()],
        order: Annotated[Order, Body()],
        loose: Annotated[dict[str, Any], Body()],
    ) -> Done:
        return Done(None)

    body = b'{"lines": []}'
    assert extractor(read).extract(head(), {}, body) == [body, body.decode(), Order([]), {"lines": []}]


def test_an_empty_body_is_a_value_for_text_and_missing_for_types() -> None:
    def read(raw: Annotated[bytes, Body()], text: Annotated[str, Body()]) -> Done:
        return Done(None)

    def read_order(order: Annotated[Order, Body()]) -> Done:
        return Done(None)

    assert extractor(read).extract(head("/", ("content-type", "text/plain"))) == [b"", ""]
    assert problems(extractor(read_order), head()) == {"body": "is missing"}


def test_a_body_that_is_no_json_is_a_violation_whatever_else_is_wrong() -> None:
    def read(limit: Annotated[int, Query()], order: Annotated[Order, Body()]) -> Done:
        return Done(None)

    for body, fields, status in [
        (b"{", [], 400),
        (b"[" * 100_000, [], 400),
        (b"{}", [("content-type", "text/plain")], 415),
    ]:
        with pytest.raises(ProtocolViolation) as refused:
            extractor(read).extract(head("/?limit=x", *fields), {}, body)
        assert refused.value.status == status


def test_the_body_is_needed_only_when_it_is_read() -> None:
    def read(x_a: Annotated[str, Header()], q: Annotated[str, Query()]) -> Done:
        return Done(None)

    def read_all(request: Request) -> Done:
        return Done(None)

    assert not extractor(read).needs_body
    assert extractor(read_all).needs_body


# ---- definitions ----------------------------------------------------------------------------


def test_a_path_parameter_that_the_route_does_not_have_is_a_definition_error() -> None:
    def read(order_id: Annotated[int, Path()]) -> Done:
        return Done(None)

    with pytest.raises(DefinitionError, match="route POST /: parameter 'order_id'") as refused:
        extractor(read, "id", "other")
    assert "{order_id}" in refused.value.cure
    assert "id, other" in refused.value.cure
    extractor(read, "order_id", "nobody_reads_this")


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[Strange, Header()],
        Annotated[Order, Query()],
        Annotated[list[Strange], Query()],
        Annotated[list[str], Path()],
        Annotated[list[str], Cookie()],
        Annotated[bytes, Header()],
        Annotated[Strange, Body()],
        Annotated[list[Strange] | None, Body()],
        Annotated[str, Part()],
    ],
)
def test_a_type_that_a_part_cannot_have_is_a_definition_error(annotation: Any) -> None:
    def read(id: Any) -> Done:
        return Done(None)

    read.__annotations__["id"] = annotation
    with pytest.raises(DefinitionError, match="route POST /: parameter 'id'"):
        extractor(read, "id")


# ---- anything -------------------------------------------------------------------------------


def read_much(
    id: Annotated[int, Path()],
    q: Annotated[str, Query()],
    n: Annotated[list[float], Query()],
    x_n: Annotated[int, Header()],
    x_l: Annotated[list[bool], Header()],
    c: Annotated[uuid.UUID, Cookie()],
    order: Annotated[Order, Body()],
    text: Annotated[str, Body()],
    request: Request,
    page: Annotated[int, Query()] = 1,
) -> Done:
    return Done(None)


READER = extractor(read_much, "id")
LATIN = st.text(st.characters(max_codepoint=255), max_size=20)
NAMES = st.sampled_from(["x-n", "x-l", "cookie", "content-type", "content-encoding", "origin", "x"])
VALUES = LATIN | st.sampled_from(["1", "true", "c=x", 'c="', "application/json", "a/b;charset=x;", "c=;c;=;;"])
QUERIES = st.text("qn=&%+;0123456789abcdefé", max_size=40)
BODIES = st.binary(max_size=60) | st.sampled_from(
    [
        b"",
        b"{}",
        b'{"lines":[]}',
        b'{"lines":[{"sku":"\xff"}]}',
        b'{"lines":5',
        b'{"lines":[{"sku":"a","count":1e400}]}',
    ]
)


@given(QUERIES, st.lists(st.tuples(NAMES, VALUES), max_size=6), st.text(max_size=20), BODIES)
def test_any_request_is_read_or_refused_in_one_of_two_ways(
    query: str, fields: list[tuple[str, str]], id: str, body: bytes
) -> None:
    refusal: Exception | None = None
    try:
        values = READER.extract(head(f"/?{query}", *fields), {"id": id}, body)
    except (InvalidData, ProtocolViolation) as refused:
        refusal = refused
    if isinstance(refusal, ProtocolViolation):
        assert refusal.status in (400, 415)
    elif isinstance(refusal, InvalidData):
        sources = ("path.", "query.", "header.", "cookie.", "body")
        assert refusal.problems
        assert all(place.startswith(sources) and what for place, what in refusal.problems)
    else:
        assert isinstance(values[0], int)
        assert isinstance(values[6], Order)
