"""What an operator writes is read as it is meant, and what is shown is read as the same value again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core import units
from zerver.core.units import Kind

PORT = units.count(0, 65535)
FORM = units.choice("off", "json")
AGE = units.at_least(units.SECONDS, 60.0)
SWITCH = units.choice("auto", "on", "off")


@pytest.mark.parametrize(
    ("kind", "said", "value"),
    [
        (units.SIZE, "64MiB", 64 * 1024**2),
        (units.SIZE, "10MB", 10_000_000),
        (units.SIZE, "1.5 KiB", 1536),
        (units.SIZE, "4096", 4096),
        (units.SIZE, 4096, 4096),
        (units.SECONDS, "15m", 900.0),
        (units.SECONDS, "250ms", 0.25),
        (units.SECONDS, "7d", 604800.0),
        (units.SECONDS, "2 h", 7200.0),
        (units.SECONDS, 5, 5.0),
        (units.MILLISECONDS, "5", 5.0),
        (units.MILLISECONDS, "5ms", 5.0),
        (units.MILLISECONDS, "0.2s", 200.0),
        (units.MILLISECONDS, 2.5, 2.5),
        (units.SHARE, "7%", 0.07),
        (units.SHARE, "0.05", 0.05),
        (units.SHARE, 1, 1.0),
        (units.FLAG, "YES", True),
        (units.FLAG, "0", False),
        (units.FLAG, True, True),
        (units.NAMES, "a, b,,c ", ("a", "b", "c")),
        (units.NAMES, ["a", "b"], ("a", "b")),
        (units.NAMES, "", ()),
        (units.TEXT, "", ""),
        (units.URL, "https://u:p@collector:4318/v1", "https://u:p@collector:4318/v1"),
        (units.HEADERS, "Authorization=Basic%20YTpi, x-a=b=c,", (("authorization", "Basic YTpi"), ("x-a", "b=c"))),
        (units.TOKEN, "0123456789abcdef", "0123456789abcdef"),
        (PORT, "80", 80),
        (PORT, 0, 0),
        (FORM, "JSON", "json"),
        (AGE, "1m", 60.0),
        (SWITCH, True, "on"),
    ],
)
def test_what_is_written_is_read(kind: Kind, said: object, value: object) -> None:
    read = kind.read(said)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        *[(units.SIZE, said) for said in ("", "many", "1.5", "-1", "64 MiBi", True, None, "1e3", "inf", [], "9" * 400)],
        *[(units.SECONDS, said) for said in ("", "m", "5 weeks", "-5", "nan", float("nan"), -1, True, 1 << 64)],
        *[(units.SHARE, said) for said in ("2", "101%", "-1", 1.5, "5 %%")],
        *[(units.FLAG, said) for said in ("maybe", "", 1, None)],
        *[(units.NAMES, said) for said in (1, [1], ["a\n"])],
        *[(units.TEXT, said) for said in (1, None, "a\x1b[2J", "a\nb")],
        *[(units.TOKEN, said) for said in ("short", 5, "é" * 20)],
        *[(units.HEADERS, said) for said in ("a", "a b=c", "=c", "a=b%0d%0ac", "a=é", 5)],
        *[(units.URL, said) for said in ("collector:4318", "ftp://a", "http://", "http://a b")],
        *[(PORT, said) for said in ("65536", "-1", "80.5", "tcp://10.0.0.1:80", True)],
        *[(AGE, said) for said in (59.9, "0", "59s")],
        *[(FORM, said) for said in ("xml", "", 1, True)],
    ],
)
def test_what_makes_no_sense_is_refused_and_not_repeated(kind: Kind, said: object) -> None:
    with pytest.raises(ValueError) as raised:
        kind.read(said)
    assert str(raised.value) == ""


@given(
    st.one_of(
        st.tuples(st.just(units.SIZE), st.integers(0, 1 << 50)),
        st.tuples(st.just(units.SHARE), st.floats(0, 1).map(lambda share: round(share, 12))),
        st.tuples(st.just(units.FLAG), st.booleans()),
        st.tuples(st.just(units.SECONDS), st.integers(0, 10**9).map(lambda ms: ms / 1000)),
        st.tuples(st.just(units.MILLISECONDS), st.integers(0, 10**9).map(lambda us: us / 1000)),
        st.tuples(st.just(PORT), st.integers(0, 65535)),
        st.tuples(st.just(units.NAMES), st.lists(st.from_regex(r"[a-z.]+", fullmatch=True)).map(tuple)),
    )
)
def test_what_is_shown_is_read_as_the_same(case: tuple[Kind, Any]) -> None:
    kind, value = case
    read = kind.read(kind.show(value))
    assert read == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)


def test_a_bound_is_told_in_the_cure() -> None:
    assert AGE.wanted == "a time, as 10, 250ms, 15m or 7d, and 1m or more"


def test_a_url_shows_no_password() -> None:
    assert units.URL.show("http://joe:pw@collector:4318/v1?x=@") == "http://‹secret›@collector:4318/v1?x=@"
    assert units.URL.show("http://collector/a@b") == "http://collector/a@b"
