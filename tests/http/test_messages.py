"""Messages are values: headers compare without case, targets are parsed lazily and exactly once."""

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerver.errors import ProtocolViolation
from zerver.http.messages import NO_HEADERS, Headers, Request, RequestHead, Response
from zerver.http.render import stamped
from zerver.http.response import json


def test_headers_are_found_without_case_and_joined_when_repeated() -> None:
    headers = Headers(((b"accept", b"a/b"), (b"x-one", b"1"), (b"accept", b"c/d")))
    assert headers.get("Accept") == "a/b, c/d"
    assert headers.get_all("ACCEPT") == ["a/b", "c/d"]
    assert headers.get("x-two") is None
    assert headers.get_all("x-two") == []
    assert "X-One" in headers
    assert "x-two" not in headers
    assert list(headers) == [("accept", "a/b"), ("x-one", "1"), ("accept", "c/d")]
    assert len(headers) == 3


def test_cookies_are_joined_with_semicolons() -> None:
    assert Headers(((b"cookie", b"a=1"), (b"cookie", b"b=2"))).get("cookie") == "a=1; b=2"


def test_headers_of_takes_mappings_pairs_and_headers() -> None:
    expected = Headers(((b"a-b", b"1"), (b"c", b"\xe9")))
    assert Headers.of({"A-B": "1", "c": "é"}) == expected
    assert Headers.of([("A-b", "1"), ("C", "é")]) == expected
    assert Headers.of(expected) is expected
    with pytest.raises(UnicodeEncodeError):
        Headers.of({"a": "→"})


def test_headers_are_changed_by_copying() -> None:
    headers = Headers.of([("a", "1"), ("b", "2"), ("a", "3")])
    assert headers.adding("A", "4").get_all("a") == ["1", "3", "4"]
    assert list(headers.setting("A", "4")) == [("b", "2"), ("a", "4")]
    assert headers.get("a") == "1, 3"


def test_tokens_are_split_trimmed_and_lowered() -> None:
    headers = Headers.of([("connection", "Keep-Alive,, X "), ("connection", "CLOSE")])
    assert headers.tokens("Connection") == ["keep-alive", "x", "close"]
    assert headers.tokens("upgrade") == []


@pytest.mark.parametrize(
    ("target", "path", "query", "segments"),
    [
        ("/", "/", "", ("",)),
        ("/a/b", "/a/b", "", ("a", "b")),
        ("/a/b/", "/a/b/", "", ("a", "b", "")),
        ("/a?x=1&y=/2?", "/a", "x=1&y=/2?", ("a",)),
        ("/a%2Fb/c", "/a%2Fb/c", "", ("a/b", "c")),
        ("/%C3%A9/%25", "/%C3%A9/%25", "", ("é", "%")),
        ("//a/../b", "//a/../b", "", ("", "a", "..", "b")),
        ("*", "*", "", ("*",)),
        ("http://host:1/a?b", "/a", "b", ("a",)),
        ("HTTP://host", "/", "", ("",)),
        ("http://host?b", "/", "b", ("",)),
        ("/a?u=http://x/y", "/a", "u=http://x/y", ("a",)),
    ],
)
def test_targets(target: str, path: str, query: str, segments: tuple[str, ...]) -> None:
    head = RequestHead("GET", target)
    assert (head.path, head.query, head.segments) == (path, query, segments)


@pytest.mark.parametrize("path", ["/%", "/%2", "/%zz", "/%+1", "/a%", "/%ff", "/%c0%af", "/%00", "/%ed%a0%80"])
def test_bad_escapes_are_refused(path: str) -> None:
    with pytest.raises(ProtocolViolation) as refused:
        _ = RequestHead("GET", path).segments
    assert refused.value.status == 400


@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)))
def test_any_path_has_segments_or_is_refused(path: str) -> None:
    try:
        segments = RequestHead("GET", "/" + path).segments
    except ProtocolViolation:
        assert "%" in path
    else:
        assert len(segments) == ("/" + path).partition("?")[0].count("/")


def test_messages_are_frozen_and_compare_by_value() -> None:
    assert Response(200, {"a": "b"}, b"x") == Response(200, [("A", "b")], b"x")
    assert RequestHead("GET", "/") == RequestHead("GET", "/")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RequestHead("GET", "/").method = "PUT"  # type: ignore[misc]  # it must not work


@pytest.mark.parametrize("headers", [json({}).headers, stamped(json({}), "req_1").headers, NO_HEADERS])
def test_fields_that_many_answers_share_are_nobodys_to_change(headers: Headers) -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        headers.raw = (*headers.raw, (b"set-cookie", b"mine"))  # type: ignore[misc]  # it must not work


def test_a_request_shows_what_its_head_says() -> None:
    head = RequestHead("PUT", "/a?b", Headers.of({"c": "d"}))
    request = Request(head, b"body", "10.0.0.1", {"id": "7"})
    assert (request.method, request.path, request.query) == ("PUT", "/a", "b")
    assert request.headers.get("c") == "d"
    assert Request(head).path_params == {}


def test_headers_are_read_by_name_as_get_reads_them() -> None:
    headers = Headers(((b"accept", b"a/b"), (b"accept", b"c/d")))
    assert headers["ACCEPT"] == headers.get("accept") == "a/b, c/d"
    with pytest.raises(KeyError, match="X-None"):
        headers["X-None"]
