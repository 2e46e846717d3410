"""What a client is asked to send is either sent as it was meant or refused before anything is sent."""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zerver.effects import http
from zerver.errors import DefinitionError
from zerver.http.client_wire import ClientWire
from zerver.http.messages import RequestHead
from zerver.http.outgoing import Origin, Written, outgoing, read_url
from zerver.http.wire import ServerWire


@pytest.mark.parametrize(
    ("url", "origin", "target", "host"),
    [
        ("http://a", ("http", "a", 80), "/", "a"),
        ("HTTP://A.Example/", ("http", "a.example", 80), "/", "a.example"),
        ("https://a/b/c?d=e&f", ("https", "a", 443), "/b/c?d=e&f", "a"),
        ("http://a:80/", ("http", "a", 80), "/", "a"),
        ("https://a:80/", ("https", "a", 80), "/", "a:80"),
        ("http://a:8080?q", ("http", "a", 8080), "/?q", "a:8080"),
        ("http://a/b#fragment", ("http", "a", 80), "/b", "a"),
        ("http://127.0.0.1:1/", ("http", "127.0.0.1", 1), "/", "127.0.0.1:1"),
        ("http://[::1]/", ("http", "::1", 80), "/", "[::1]"),
        ("https://[2001:DB8::0:1]:8443/x", ("https", "2001:db8::1", 8443), "/x", "[2001:db8::1]:8443"),
        ("http://under_score.a/", ("http", "under_score.a", 80), "/", "under_score.a"),
        ("http://a/%2F//../;p=1?x=http://b@c/", ("http", "a", 80), "/%2F//../;p=1?x=http://b@c/", "a"),
    ],
)
def test_urls(url: str, origin: tuple[str, str, int], target: str, host: str) -> None:
    assert read_url(url) == (Origin(*origin), target)
    assert outgoing("GET", url, None, b"", None).head.headers.get_all("host") == [host]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a",
        "/a",
        "//a/",
        "ftp://a/",
        "file:///etc/passwd",
        "http:a",
        "http://",
        "http:///a",
        "http://:80/",
        "http://a:/",
        "http://a:0/",
        "http://a:65536/",
        "http://a:x/",
        "http://a:-1/",
        "http://user@a/",
        "http://good.example@evil.example/",
        "http://user:password@a/",
        "http://a\\@b/",
        "http://a\\b/",
        "http://a b/",
        "http://a/b c",
        "http://a/\r\nX: 1",
        "http://a\r\n.b/",
        "http://a/\t",
        "http://a/\0",
        " http://a/",
        "http://a/ä",
        "http://ä/",
        "http://a%2eb/",
        "http://[::1/",
        "http://[::1]x/",
        "http://[::1]x:80/",
        "http://[fe80::1%eth0]/",
        "http://[fe80::1%25eth0]/",
        "http://[1.2.3.4]/",
        "http://[v1.a]/",
        "http://a..b/",
        "http://.a/",
        "http://" + "a" * 64 + "/",
        "http://" + "a." * 127 + "a/",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(DefinitionError, match="URL"):
        read_url(url)


def test_no_password_in_the_message() -> None:
    with pytest.raises(DefinitionError) as refused:
        read_url("http://user:secret@a/")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("method", ["", "get", "GET ", "G T", "GET\r\n", "GÉT", "CONNECT"])
def test_bad_methods(method: str) -> None:
    with pytest.raises(DefinitionError, match=r"method|CONNECT"):
        outgoing(method, "http://a/", None, b"", None)


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"X-A": "b\r\nEvil: 1"}, "x-a"),
        ({"X-A": "b\n"}, "x-a"),
        ({"X-A": "b\0"}, "x-a"),
        ({"X-A\r\nEvil": "1"}, "evil"),
        ({"X A": "1"}, "x a"),
        ({"": "1"}, "name"),
        ({"X-A": "€"}, "€"),
        ({"X-A": 5}, "pair"),
        (["X-A"], "pair|X-A"),
        (5, "pair"),
        ({"Host": "a b"}, "host"),
        ({"Host": ""}, "host"),
        ({"Host": "a@b"}, "host"),
        ([("Host", "a"), ("host", "b")], "host"),
        ({"Upgrade": "websocket"}, "upgrade"),
        ({"Connection": "keep-alive, Upgrade"}, "connection"),
    ],
)
def test_bad_headers(headers: Any, named: str) -> None:
    with pytest.raises(DefinitionError, match=named):
        outgoing("GET", "http://a/", headers, b"", None)


@pytest.mark.parametrize("body", ["text", None, ["x"], 5])
def test_bad_bodies(body: Any) -> None:
    with pytest.raises(DefinitionError, match="body"):
        outgoing("POST", "http://a/", None, body, None)


def test_a_bad_key() -> None:
    with pytest.raises(DefinitionError, match="idempotency-key"):
        outgoing("POST", "http://a/", None, b"", "a\r\nb")


def test_what_is_given_wins() -> None:
    given = {"host": "other:1", "user-agent": "me", "ACCEPT": "text/html", "idempotency-key": "mine"}
    sent = outgoing("POST", "http://a/", given, b"", "ours").head.headers
    assert {name: sent.get_all(name) for name in given} == {name: [value] for name, value in given.items()}


def test_what_is_told_differs_from_call_to_call_and_gives_way() -> None:
    def fields(headers: dict[str, str] | None, told: dict[str, str], key: str | None = None) -> dict[str, str]:
        return dict(outgoing("POST", "http://a/", headers, b"", key, told).head.headers)

    ours = {"host": "a", "user-agent": "zerver", "accept": "*/*", "accept-encoding": "identity"}
    assert fields(None, {"X-B": "1"}) == {**ours, "x-b": "1"}
    assert fields(None, {"X-B": "2"}, "k") == {**ours, "x-b": "2", "idempotency-key": "k"}
    assert fields({"x-b": "mine"}, {"X-B": "2"}) == {**ours, "x-b": "mine"}
    with pytest.raises(DefinitionError, match="x-b"):
        fields(None, {"X-B": "1\r\nEvil: 1"})


@pytest.mark.parametrize("name", ["Content-Length", "Transfer-Encoding", "Connection", "Expect", "Host", "Upgrade"])
def test_what_is_told_is_nothing_about_the_message(name: str) -> None:
    with pytest.raises(DefinitionError, match=f"{name.lower()}.*about the message"):
        outgoing("POST", "http://a/", None, b"hello", None, {name: "0"})


class Text(str):
    """Text of which one can tell whether anybody has it still."""


@pytest.mark.parametrize("name", ["Authorization", "Cookie", "X-Api-Key"])
def test_nobodys_credentials_are_kept(name: str) -> None:
    secret = Text("Bearer 1")
    kept = weakref.ref(secret)
    assert outgoing("GET", "http://a/", {"Accept": "text/html", name: secret}, b"", None).head.headers[name] == secret
    del secret
    gc.collect()
    assert kept() is None


_MEMO = functools._lru_cache_wrapper


def memos_with(word: str) -> set[str]:
    """The functions, of any module's, whose memos hold this word."""
    memos = [one for module in [*sys.modules.values()] for one in [*vars(module).values()] if type(one) is _MEMO]
    return {one.__wrapped__.__qualname__ for one in memos if word in repr([*map(_keys, gc.get_referents(one))])}


def _keys(held: object) -> object:
    return [*held] if type(held) is dict else held


def test_no_query_is_kept() -> None:
    asked = http.get("http://a/places?token=sesame1")
    assert asked.target == "a"
    assert asked.operation == "read /places"
    (exchange,) = asked.args
    request = outgoing(exchange.method, exchange.url, None, b"", None).to_send(1)
    assert isinstance(request, Written)
    assert request.lines.startswith(b"GET /places?token=sesame1 HTTP/1.1\r\n")
    assert "_read_place" in memos_with("http://a/places")
    assert not memos_with("sesame1")


async def pieces() -> AsyncIterator[bytes]:
    yield b"x"


def test_what_may_be_repeated() -> None:
    def repeatable(method: str, headers: dict[str, str] | None = None, key: str | None = None) -> bool:
        return outgoing(method, "http://a/", headers, b"", key).repeatable

    assert [
        method for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH") if repeatable(method)
    ] == [
        "GET",
        "HEAD",
        "OPTIONS",
    ]
    assert repeatable("POST", key="k")
    assert repeatable("POST", {"Idempotency-Key": "k"})
    assert not outgoing("POST", "http://a/", None, pieces(), "k").repeatable


@given(
    st.sampled_from(["GET", "POST", "DELETE"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    st.dictionaries(st.just("x-told"), st.text(max_size=8)),
)
@example("GET", "[::1]x:80/", {}, {})
@example("GET", "a/", {"host": "[1:2]"}, {})
@example("POST", "a/", {"connection": "close"}, {"x-told": "1"})
def test_what_passes_reads_on_the_other_side_as_it_was_meant(
    method: str, rest: str, headers: dict[str, str], told: dict[str, str]
) -> None:
    with suppress(DefinitionError):
        request = outgoing(method, "http://" + rest, headers, b"hello", "key", told)
        sent = ClientWire().send_whole(request.to_send(None), b"hello")
        # What was written beforehand is written as the wire would write it.
        assert sent == ClientWire().send_whole(request.head, b"hello")
        server = ServerWire()
        server.receive(sent)
        head = server.next_event()
        assert isinstance(head, RequestHead)
        assert (head.method, head.target) == (method, read_url("http://" + rest)[1])
        for name, value in {**told, **headers}.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                assert value.strip(" \t") in head.headers.get_all(name)
