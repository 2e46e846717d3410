"""Conditional requests and ranges are judged as RFC 9110 says, and nothing a client writes makes that slow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.http.conditions import Validators, judge, read_date, read_range
from zerver.http.messages import Headers, RequestHead

NOW = Validators('"abc"', 784111777)
WEAK = Validators('W/"abc"', 784111777)
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"


def asking(method: str = "GET", **fields: str) -> RequestHead:
    return RequestHead(method, "/", headers=_headers(fields))


def _headers(fields: dict[str, str]) -> Headers:
    return Headers.of({name.replace("_", "-"): value for name, value in fields.items()})


def test_a_date_reads_as_it_is_written() -> None:
    assert NOW.last_modified == DATE
    assert read_date(DATE) == NOW.modified


@pytest.mark.parametrize(
    "text",
    [None, "", "yesterday", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun, 06 Foo 1994 08:49:37 GMT", DATE + " ",
     "Sun, 40 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 28:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 CET"],
)  # fmt: skip
def test_what_is_no_date_is_none(text: str | None) -> None:
    assert read_date(text) is None


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, 200),
        ({"if_none_match": '"abc"'}, 304),
        ({"if_none_match": 'W/"abc"'}, 304),
        ({"if_none_match": '"x", "a,b" ,"abc"'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"x"'}, 200),
        ({"if_none_match": "abc"}, 200),
        ({"if_modified_since": DATE}, 304),
        ({"if_modified_since": LATER}, 304),
        ({"if_modified_since": EARLIER}, 200),
        ({"if_modified_since": "soon"}, 200),
        ({"if_none_match": '"x"', "if_modified_since": DATE}, 200),  # the tag decides, and the date is not looked at
        ({"if_match": '"abc"'}, 200),
        ({"if_match": "*"}, 200),
        ({"if_match": '"x"'}, 412),
        ({"if_match": 'W/"abc"'}, 412),  # weak tags never match strongly
        ({"if_unmodified_since": DATE}, 200),
        ({"if_unmodified_since": EARLIER}, 412),
        ({"if_match": '"abc"', "if_unmodified_since": EARLIER}, 200),
    ],
)
def test_conditions(fields: dict[str, str], verdict: int) -> None:
    assert judge(asking(**fields), NOW) == verdict


def test_a_weak_tag_is_the_same_thing_but_not_the_same_bytes() -> None:
    assert judge(asking(if_none_match='"abc"'), WEAK) == 304
    assert judge(asking(if_match='W/"abc"'), WEAK) == 412


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=2-5", range(2, 6)),
        ("bytes=2-", range(2, 10)),
        ("bytes=2-99", range(2, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-99", range(10)),
        ("BYTES=0-1", range(2)),
        ("bytes=10-", range(10, 10)),
        ("bytes=99-", range(10, 10)),
        ("bytes=-0", range(10, 10)),
    ],
)
def test_ranges(asked: str, wanted: range) -> None:
    assert read_range(asking(range=asked), NOW, 10) == wanted


@pytest.mark.parametrize(
    "asked",
    ["", "bytes", "bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "bytes=0x1-2", "bytes=1_0-", "bytes=٣-", "lines=0-1",
     "bytes=0-1,3-4", "bytes= 0-1", "bytes=0-1 ", "bytes=+0-1", "bytes=0-" + "9" * 400, "bytes=--1"],
)  # fmt: skip
def test_what_is_no_range_asks_for_the_whole(asked: str) -> None:
    head = RequestHead("GET", "/", headers=_headers({"range": asked.encode().decode("latin-1")}))
    assert read_range(head, NOW, 10) is None


def test_a_range_holds_for_get_and_for_the_state_it_was_asked_of() -> None:
    assert read_range(asking(), NOW, 10) is None
    assert read_range(asking("HEAD", range="bytes=0-1"), NOW, 10) is None
    for same in ('"abc"', DATE):
        assert read_range(asking(range="bytes=0-1", if_range=same), NOW, 10) == range(2)
        assert read_range(asking(range="bytes=0-1", if_range=same), WEAK, 10) is None
    for other in ('"x"', 'W/"abc"', LATER, "x"):
        assert read_range(asking(range="bytes=0-1", if_range=other), NOW, 10) is None


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 20))
def test_a_range_is_always_inside(first: int, last: int, size: int) -> None:
    for asked in (f"bytes={first}-{last}", f"bytes={first}-", f"bytes=-{last}"):
        wanted = read_range(asking(range=asked), NOW, size)
        assert wanted is None or (0 <= wanted.start <= wanted.stop <= size)
        if wanted:
            assert set(wanted) <= set(range(size))


@pytest.mark.parametrize("fragment", ['"', '"a', '"a",', 'W/"', "W/", ", ", "bytes=0-1,", "0-", "9", "*"])
def test_cve_2025_62727_cost_is_linear(fragment: str) -> None:
    text = fragment * 200_000  # were the cost quadratic, this test would not end
    for head in (
        asking(if_none_match=text), asking(if_match=text), asking(range=text), asking(range="bytes=" + text),
        asking(if_modified_since=text), asking(range="bytes=0-1", if_range=text),
    ):  # fmt: skip
        judge(head, NOW)
        read_range(head, NOW, 10)
