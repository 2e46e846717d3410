"""`--limit` sets each limit there is, with its unit, and says what is right when it is wrong."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from tests.cli.commands import SHOP, serving
from zerver.cli.limits import WrongLimit, flat_limits, limit_names, read_limits
from zerver.http import DEFAULT_LIMITS, HeadLimits, Limits


def test_nothing_said_is_the_defaults() -> None:
    assert read_limits([]) == DEFAULT_LIMITS
    fields = {*attrs.fields_dict(Limits), *(f"head.{name}" for name in attrs.fields_dict(HeadLimits))} - {"head"}
    assert set(limit_names()) == fields


@pytest.mark.parametrize("name", limit_names())
def test_every_limit_can_be_said_and_only_that_one_changes(name: str) -> None:
    changed = flat_limits(read_limits([f"{name}=77"]))
    assert changed == flat_limits(DEFAULT_LIMITS) | {name: 77}
    assert type(changed[name]) is (float if name.endswith("_seconds") else int)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("body=10MiB", Limits(body=10 * 1024 * 1024)),
        ("body=0", Limits(body=0)),
        ("body=1.5kb", Limits(body=1500)),
        (" body = 2 GB ", Limits(body=2_000_000_000)),
        ("head_seconds=500ms", Limits(head_seconds=0.5)),
        ("idle_seconds=2min", Limits(idle_seconds=120.0)),
        ("head.field=8KiB", Limits(head=HeadLimits(field=8192))),
    ],
)
def test_units(word: str, expected: Limits) -> None:
    assert read_limits([word]) == expected


def test_the_last_word_counts_and_words_add_up() -> None:
    assert read_limits(["body=1", "head.fields=7", "body=2"]) == Limits(head=HeadLimits(fields=7), body=2)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("body", "--limit body: write it as NAME=VALUE, as body=10MiB or head_seconds=5"),
        ("bodyy=1", "--limit bodyy=1: there is no limit 'bodyy'; did you mean body?"),
        ("zzz=1", f"--limit zzz=1: there is no limit 'zzz'; there are {', '.join(limit_names())}"),
        ("head=1", "--limit head=1: there is no limit 'head'; "),
        ("body=", "--limit body=: '' is not a size, as 4096, 64KiB or 10MB"),
        ("body=-1", "--limit body=-1: '-1' is not a size, as 4096, 64KiB or 10MB"),
        ("body=5s", "--limit body=5s: '5s' is not a size, as 4096, 64KiB or 10MB"),
        ("body=1.3", "--limit body=1.3: 1.3 is no whole number; give a size, as 4096, 64KiB or 10MB"),
        ("body=" + "9" * 400, "--limit body=999"),
        ("connections=1KiB", "--limit connections=1KiB: '1KiB' is not a number, as 100"),
        ("connections=0", "--limit connections=0: 0 would refuse everybody, or nobody; give a number, as 100"),
        ("head_seconds=inf", "--limit head_seconds=inf: 'inf' is not a time, as 5, 500ms or 2min"),
        ("head_seconds=1h", "--limit head_seconds=1h: '1h' is not a time, as 5, 500ms or 2min"),
    ],
)
def test_what_is_wrong_is_refused_with_what_is_right(word: str, said: str) -> None:
    with pytest.raises(WrongLimit) as raised:
        read_limits([word])
    assert raised.value.message.startswith(said)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_keeps_them(workers: str, tmp_path: Path) -> None:
    options = ["--limit", "head.fields=5", "--limit", "head.start_line=64", "--workers", workers]
    async with serving(tmp_path, *options, source=SHOP) as server:
        assert (await server.ask("GET /")).startswith("HTTP/1.1 200 ")
        assert (await server.ask("GET / HTTP/1.1" + "\r\nX: y" * 3 + "\r\nY: ")).startswith("HTTP/1.1 431 ")
        assert (await server.ask("GET /" + "x" * 80)).startswith("HTTP/1.1 414 ")
