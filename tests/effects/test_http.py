"""The constructors of zerver.effects.http make exchanges of the right kind, and refuse what no client could send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from zerver import Done, Effect, step
from zerver.effects import http
from zerver.effects.http import Exchange, Reply
from zerver.errors import DefinitionError, InvalidData

URL = "https://Pay.example:8443/charges?a=b"


def exchange_of(made: Effect[Reply]) -> Exchange:
    (exchange,) = made.args
    assert isinstance(exchange, Exchange)
    return exchange


@pytest.mark.parametrize(
    ("made", "method", "access"),
    [
        (http.get(URL), "GET", "read"),
        (http.post(URL), "POST", "write"),
        (http.put(URL), "PUT", "write"),
        (http.delete(URL), "DELETE", "write"),
        (http.request("PATCH", URL), "PATCH", "write"),
        (http.request("GET", URL), "GET", "read"),
        (http.request("HEAD", URL), "HEAD", "read"),
        (http.request("OPTIONS", URL), "OPTIONS", "read"),
    ],
)
def test_the_method_decides_whether_it_is_a_write(made: Effect[Reply], method: str, access: str) -> None:
    assert made.kind is (http.READ if access == "read" else http.WRITE)
    assert made.kind.access == access
    assert made.kind.takes_key == (access == "write")  # so that a write may be retried
    assert exchange_of(made) == Exchange(method, URL, (), b"", 8 << 20)


def test_the_target_is_the_host_whatever_its_case() -> None:
    assert http.get(URL).target == "pay.example:8443"


def test_json_is_encoded_and_says_so() -> None:
    @attrs.frozen
    class Charge:
        cents: int

    made = exchange_of(http.post(URL, json=Charge(5), headers={"X-A": "1"}))
    assert made.body == b'{"cents":5}'
    assert made.headers == (("X-A", "1"), ("Content-Type", "application/json"))


def test_a_content_type_of_ones_own_wins() -> None:
    made = exchange_of(http.put(URL, json=[1], headers={"content-type": "application/vnd.a+json"}))
    assert made.headers == (("content-type", "application/vnd.a+json"),)


def test_bytes_are_sent_as_they_are() -> None:
    made = exchange_of(http.request("PATCH", URL, body=b"\x00\xff", limit=10))
    assert (made.body, made.headers, made.limit) == (b"\x00\xff", (), 10)


@pytest.mark.parametrize(
    ("make", "problem", "cure"),
    [
        (lambda: http.get("/charges"), "'/charges' is not an absolute http(s) URL", "https://host/path"),
        (lambda: http.get("ftp://a/b"), "'ftp://a/b' is not an absolute", "https://host/path"),
        (lambda: http.get("https:///b"), "is not an absolute", "https://host/path"),
        (lambda: http.get("https://[::1/b"), "is no URL", "https://host/path"),
        (lambda: http.get("https://ada:secret@a/b"), "has a user in front", "Authorization"),
        (lambda: http.request("post", URL), "is not in capitals", "write 'POST'"),
        (lambda: http.post(URL, json=1, body=b"1"), "json= and body=", "one of them"),
        (lambda: http.post(URL, body="text"), "its body is a str", "encode it"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: http.get(URL, limit=-1), "limit=-1", "0 or more"),
    ],
)
def test_what_no_client_could_send_is_refused(make: Callable[[], Any], problem: str, cure: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        make()
    assert problem in raised.value.problem
    assert cure in raised.value.cure
    assert "secret" not in str(raised.value)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidData):
        http.post(URL, json=object())


def test_a_reply_decodes_its_body() -> None:
    reply = Reply(201, {"etag": "1"}, b'{"n": 1}')
    assert reply.ok
    assert reply.json(dict[str, int]) == {"n": 1}
    with pytest.raises(InvalidData, match="reply"):
        reply.json(dict[str, str])
    assert not Reply(302, {}, b"").ok


def test_every_constructor_is_found_in_the_code_of_a_step() -> None:
    @step
    async def ask() -> Done:
        await http.get(URL)
        await http.post(URL)
        return Done()

    @step
    async def others() -> Done:
        await http.put(URL)
        await http.delete(URL)
        await http.request("PATCH", URL)
        return Done()

    assert [mention.kind for mention in ask.mentions] == [http.READ, http.WRITE]
    assert [mention.kind for mention in others.mentions] == [http.WRITE] * 3


def test_a_reply_that_is_written_to_be_costly_is_not_read() -> None:
    for body in (b"[" + b"1e308," * 1_000_000 + b"1]", b"[" * 1_000, b"[" + b"[]," * 200_000 + b"[]]"):
        with pytest.raises(InvalidData, match="reply: the body") as refused:
            Reply(200, {}, body).json(list[Any])
        assert len(refused.value.problems) == 1
    assert Reply(200, {}, b"[" + b"1.5," * 200_000 + b"1]").json(list[float])[0] == 1.5
