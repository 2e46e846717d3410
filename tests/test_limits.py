"""docs/reference/limits.md tells every limit, its default and its status as they are."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from zerver.core import strict_json
from zerver.http import extract, framing, multipart, trust
from zerver.http.connection import Connection, Service
from zerver.http.exchange import Exchange, Limits
from zerver.http.gate import HeadLimits
from zerver.http.messages import Response
from zerver.http.response import text

PAGE = (Path(__file__).parent.parent / "docs" / "reference" / "limits.md").read_text()
ROWS = {name: (value, over) for name, value, over in re.findall(r"^\| `(.+)` \| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)}


def test_every_limit_is_told_with_its_default() -> None:
    settings = {name: value for name, value in attrs.asdict(Limits(), recurse=False).items() if name != "head"}
    settings |= {f"head.{name}": value for name, value in attrs.asdict(HeadLimits()).items()}
    fixed = {
        "extract.MAX_QUERY_FIELDS": extract.MAX_QUERY_FIELDS,
        "strict_json.MAX_DEPTH": strict_json.MAX_DEPTH,
        "strict_json.MAX_HARD_NUMBERS": strict_json.MAX_HARD_NUMBERS,
        "strict_json.MAX_HOLLOW": strict_json.MAX_HOLLOW,
        "multipart.MAX_PARTS": multipart.MAX_PARTS,
        "multipart.MAX_FIELD": multipart.MAX_FIELD,
        "multipart.MAX_PART_HEAD": multipart.MAX_PART_HEAD,
        "multipart.MAX_PART_FIELDS": multipart.MAX_PART_FIELDS,
        "framing.ChunkedBody.MAX_EXTENSIONS": framing.ChunkedBody.MAX_EXTENSIONS,
        "trust.MAX_HOPS": trust.MAX_HOPS,
    }
    assert {name: value for name, (value, _) in ROWS.items()} == {
        name: str(value) for name, value in (settings | fixed).items()
    }


async def read(exchange: Exchange) -> Response:
    return text(f"{len(await exchange.read_body())}")


async def answer_to(*pieces: bytes) -> bytes:
    """The status of the answer to what is sent in pieces, some seconds apart; b"" for none."""
    client, server = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Connection(server, Service(read)).run)
        for piece in pieces:
            await client.send_all(piece)
            await trio.sleep(3)
        answer = bytes(await client.receive_some())
        await client.aclose()
    return answer[9:12]


FULL = Limits()
START = b"GET /%s HTTP/1.1\r\nHost: a\r\n%s\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"
LINE = FULL.head.start_line - len(b"GET / HTTP/1.1")


@pytest.mark.parametrize(
    ("limit", "at", "over"),
    [
        ("head.start_line", [START % (b"x" * LINE, b"")], [START % (b"x" * (LINE + 1), b"")]),
        (
            "head.field",
            [START % (b"", b"x: " + b"x" * (FULL.head.field - 3) + b"\r\n")],
            [START % (b"", b"x: " + b"x" * (FULL.head.field - 2) + b"\r\n")],
        ),
        (
            "head.fields",
            [START % (b"", b"x: y\r\n" * (FULL.head.fields - 1))],
            [START % (b"", b"x: y\r\n" * FULL.head.fields)],
        ),
        ("head.head", None, [START % (b"", (b"x: " + b"x" * 9_000 + b"\r\n") * 8)]),
        ("body", [POST % (FULL.body, b"x" * FULL.body)], [POST % (FULL.body + 1, b"")]),
        ("head_seconds", [b"GET", b" / HTTP/1.1\r\n", b"Host: a\r\n\r\n"], [b"GET", *[b"x"] * 3]),
        ("body_grace_seconds", [POST % (3, b"x"), b"x", b"x"], [POST % (3, b"x"), b"x"]),
        ("body_rate", None, [POST % (9000, b"x" * 1000), *[b"x" * 1000] * 3]),
    ],
)
async def test_its_status_is_the_one_that_is_told(
    limit: str, at: list[bytes] | None, over: list[bytes], autojump_clock: MockClock
) -> None:
    assert await answer_to(*over) == ROWS[limit][1][:3].encode()
    if at is not None:
        assert await answer_to(*at) == b"200"
