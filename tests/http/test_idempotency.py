"""Which keys are keys, which requests are the same, and which answers are kept."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core.timeline import Ending
from zerver.errors import KeyRefused
from zerver.http import Headers, RequestHead, Response, file, json, stream
from zerver.http.idempotency import again, head_of, judge, not_stored, place_of, read_key, stored
from zerver.runtime.receipts import MOST_ANSWER, Receipt, StoredAnswer


def head(*lines: str, target: str = "/pay?a=1", method: str = "POST", **fields: str) -> RequestHead:
    pairs = [*(("idempotency-key", line) for line in lines), *fields.items()]
    return RequestHead(method, target, Headers.of(pairs))


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ('"a b, c;d"', "a b, c;d"),
        (r'"a\"b\\c"', r"a\b".replace("\\", '"') + r"\c"),
        ("a" * 255, "a" * 255),
        ("order/7:2026=", "order/7:2026="),
    ],
)
def test_what_is_a_key(line: str, key: str) -> None:
    assert read_key(head(line)) == key


@pytest.mark.parametrize(
    "line",
    ["", '""', "a b", "a,b", "a;b=c", '"a";b=c', '"a', 'a"', r'"\a"', '"a"b"', "ä", '"\x7f"', '"tab\t"', "a" * 256],
)
def test_what_is_none(line: str) -> None:
    with pytest.raises(KeyRefused) as caught:
        read_key(head(line))
    assert (caught.value.status, caught.value.what) == (400, "malformed")


def test_two_lines_are_no_key_even_if_they_are_one_string_together() -> None:
    with pytest.raises(KeyRefused):
        read_key(head('"a', 'b"'))
    with pytest.raises(KeyRefused):
        read_key(head("a", "a"))


def test_no_line_is_no_key() -> None:
    assert read_key(head()) is None


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_every_string_can_be_a_key(key: str) -> None:
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    assert read_key(head(f'"{escaped}"')) == key


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=2, max_size=2, unique=True))
def test_places_of_two_are_two(two: list[tuple[str, str, str]]) -> None:
    assert place_of(*two[0]) != place_of(*two[1])


def test_what_makes_a_request_another_one() -> None:
    first = head("k", authorization="Bearer a", cookie="s=1", user_agent="x")
    same = head_of(first, "POST /pay", {"id": "7"}, True)
    assert same == head_of(head("other", authorization="Bearer b"), "POST /pay", {"id": "7"}, True)
    others = [
        head_of(first, "POST /pay", {"id": "8"}, True),
        head_of(first, "POST /pay/{id}", {"id": "7"}, True),
        head_of(head("k", method="PUT"), "POST /pay", {"id": "7"}, True),
        head_of(head("k", target="/pay?a=2"), "POST /pay", {"id": "7"}, True),
        head_of(first, "POST /pay", {"id": "7"}, False),
    ]
    assert len({same, *others}) == 6


def test_whoever_nobody_knows_must_show_the_same_credential() -> None:
    def unknown(**fields: str) -> bytes:
        return head_of(head("k", **fields), "POST /pay", {}, False)

    assert unknown(authorization="Bearer a", accept="x") == unknown(authorization="Bearer a", accept="y")
    assert len({unknown(), unknown(authorization="a"), unknown(authorization="b"), unknown(cookie="a")}) == 4


def test_what_a_request_comes_to() -> None:
    under_way = Receipt("r1", b"", b"", 0)
    stored = attrs.evolve(under_way, answer=StoredAnswer(201))
    found = {
        (receipt.answer is not None, same): judge(receipt, same)
        for receipt in (under_way, stored)
        for same in (True, False)
    }
    assert {key: (word, _status(ending)) for key, (word, ending) in found.items()} == {
        (False, True): ("in use", 409),
        (False, False): ("other request", 422),
        (True, True): ("repeats", None),
        (True, False): ("other request", 422),
    }
    busy = found[False, True][1].cause
    assert isinstance(busy, KeyRefused)
    assert busy.retry_after == 1.0


def _status(ending: Ending) -> int | None:
    return ending.cause.status if isinstance(ending.cause, KeyRefused) else None


def test_an_answer_is_kept_byte_for_byte() -> None:
    fields = [("x-a", "1"), ("set-cookie", "s=1"), ("set-cookie", "t=2"), ("x-request-id", "req_1"), ("date", "today")]
    response = json({"a": 1}, 201, fields)
    answer = stored(response)
    assert answer is not None
    repeated = again(answer)
    assert (repeated.status, repeated.body) == (201, response.body)
    assert list(repeated.headers) == [
        ("content-type", "application/json"),
        ("x-a", "1"),
        ("set-cookie", "s=1"),
        ("set-cookie", "t=2"),
        ("idempotent-replayed", "true"),
    ]


def test_retry_after_is_kept_where_it_belongs_to_the_answer() -> None:
    for status, due in ((202, True), (503, False)):
        answer = stored(Response(status, {"retry-after": "5"}))
        assert answer is not None
        assert ((b"retry-after", b"5") in answer.fields) == due


def test_what_cannot_be_kept() -> None:
    async def pieces():  # type: ignore[no-untyped-def]  # never begun
        yield b""

    for response in (stream(pieces), file("somewhere"), Response(200, (), b"x" * (MOST_ANSWER + 1))):
        assert stored(response) is None
    assert stored(Response(200, (), b"x" * MOST_ANSWER)) is not None
    assert not_stored("req_1").status == 410
