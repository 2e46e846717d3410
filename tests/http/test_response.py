"""Response constructors say what they send, and refuse what would write headers of its own."""

import json as stdlib_json
from collections.abc import AsyncIterator

import attrs
import pytest

from zerver.http.response import html, json, no_content, problem, redirect, stream, text


@attrs.frozen
class Order:
    id: str
    total: int


def test_json_encodes_attrs_and_builtins() -> None:
    answer = json({"order": Order("o1", 5), "tags": ["é"]}, status=201, headers={"X-A": "b"})
    assert answer.status == 201
    assert list(answer.headers) == [("content-type", "application/json"), ("x-a", "b")]
    assert answer.body == '{"order":{"id":"o1","total":5},"tags":["é"]}'.encode()
    with pytest.raises(TypeError):
        json(object())


def test_text_and_html_are_utf_8() -> None:
    assert text("é").body == html("é").body == "é".encode()
    assert text("").headers.get("content-type") == "text/plain; charset=utf-8"
    assert html("", 404).headers.get("content-type") == "text/html; charset=utf-8"
    assert html("", 404).status == 404


def test_the_callers_content_type_wins() -> None:
    assert json([], headers={"Content-Type": "application/ld+json"}).headers.get_all("content-type") == [
        "application/ld+json"
    ]


def test_no_content_has_none() -> None:
    answer = no_content({"etag": "x"})
    assert (answer.status, answer.body, list(answer.headers)) == (204, b"", [("etag", "x")])


def test_redirects() -> None:
    answer = redirect("/a?b=%20", headers={"x": "y"})
    assert (answer.status, answer.headers.get("location"), answer.body) == (303, "/a?b=%20", b"")
    assert redirect("https://a/", 308).status == 308


@pytest.mark.parametrize("location", ["", "/a\r\nset-cookie: x=1", "/a\n", "/\0", "/a b", "/é", "\t/", "/\x7f"])
def test_locations_that_are_no_urls_are_refused(location: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        redirect(location)


def test_a_redirect_has_a_status_that_redirects() -> None:
    with pytest.raises(ValueError, match="200"):
        redirect("/", 200)


def test_problems_follow_rfc_9457() -> None:
    answer = problem(409, detail="sold out", sku="a1", type="https://shop/problems/sold-out")
    assert answer.status == 409
    assert answer.headers.get("content-type") == "application/problem+json"
    assert isinstance(answer.body, bytes)
    assert stdlib_json.loads(answer.body) == {
        "type": "https://shop/problems/sold-out",
        "title": "Conflict",
        "status": 409,
        "detail": "sold out",
        "sku": "a1",
    }
    bare = problem(799, "Odd").body
    assert isinstance(bare, bytes)
    assert stdlib_json.loads(bare) == {"type": "about:blank", "title": "Odd", "status": 799}
    assert b'"title":"Error"' in (problem(798).body or b"")  # type: ignore[operator]  # bytes, as above


async def test_streams_keep_their_iterator() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    body = pieces()
    answer = stream(body, "text/event-stream", headers={"cache-control": "no-store"})
    assert answer.body is body
    assert list(answer.headers) == [("content-type", "text/event-stream"), ("cache-control", "no-store")]
    assert [piece async for piece in body] == [b"x"]
