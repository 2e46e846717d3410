"""A million mutated requests: the two parsers never differ, no cut of the bytes matters, and nothing is answered 500.

Law: what is thrown follows from the seed alone, block by block, so every finding can be thrown again. Each request is
read by both parsers, whole and cut at random; a sample goes through a connection, a router, extractors and a run.

The corpus is the test suite's vectors. Mutations are few and blunt on purpose, of bytes and of lines: what the vectors
know about HTTP they know already, and blunt changes find what nobody thought of. `scripts/fuzz http --atheris` guides
them by coverage instead.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from json import dumps, loads
from math import isfinite
from random import Random
from typing import Annotated, Any
from zlib import crc32

import attrs
import trio
from trio.testing import MockClock

from tests.http.talking import MemoryListener, talk
from tests.http.vectors import (
    ACCEPTED_HEADS,
    ACCEPTED_RESPONSES,
    INVALID_CHUNKS,
    REFUSED_HEADS,
    REFUSED_RESPONSES,
    VALID_CHUNKS,
    head,
)
from zerver import App, Done, Flow, step
from zerver.core.strict_json import MAX_DEPTH
from zerver.errors import ProtocolViolation
from zerver.http import Body, Cookie, Header, Path, Query, json
from zerver.http.client_wire import ClientWire
from zerver.http.conversions import compile_json
from zerver.http.exchange import Limits
from zerver.http.messages import NO_HEADERS, Headers, RequestHead
from zerver.http.multipart import read_multipart
from zerver.http.parsers import HeadParser, head_parser
from zerver.http.reading import EndOfMessage, Mark
from zerver.http.wire import ServerWire
from zerver.serve import serve

BLOCK = 5_000  # requests with one generator
SAMPLE = 100  # of so many requests, one goes through a connection
RESPONSES = 10  # for so many requests, one response, one document of JSON and one form are thrown, too

PARSERS = {name: head_parser(name) for name in ("h11", "httptools")}


# ---- what is thrown -------------------------------------------------------------------------

CHUNKED = head("Transfer-Encoding: chunked", first="POST /items/7?q=1 HTTP/1.1")
BROWSER = head(
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64)",
    "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
    "Accept-Language: en-US,en;q=0.5",
    'Cookie: session=abc; theme="dark"; x=',
    "X-Number: 12",
    first="GET /items/7?q=a%20b&n=1&n=2 HTTP/1.1",
)
DOCUMENTS = [
    b'{"name": "a", "count": 1, "tags": ["x", "y"], "inner": {"name": "b", "count": 2}}',
    b'{"name": "\\u00e9\\ud83d\\ude00", "count": -1.5e3, "unknown": [[[[]]]]}',
    b"[" * 80 + b"]" * 80,
    b'{"name": "a", "name": "b"}',
    b"1" * 5000,
    b'{"count": NaN}',
]
REQUESTS = [
    BROWSER,
    *(data for data, _ in ACCEPTED_HEADS.values()),
    *(data for data, _ in REFUSED_HEADS.values()),
    *(CHUNKED + data for data, _, _ in VALID_CHUNKS.values()),
    *(CHUNKED + data for data in INVALID_CHUNKS.values()),
    head("Content-Length: 5", first="POST /items/7 HTTP/1.1") + b"hello" + BROWSER,
]
ANSWERS = [*(data for data, _, _ in ACCEPTED_RESPONSES.values()), *REFUSED_RESPONSES.values()]

TOKENS = [
    *(bytes((byte,)) for byte in (0, 1, 7, 8, 9, 10, 11, 12, 13, 27, 32, 33, 34, 58, 59, 127, 128, 255)),
    *(b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\n ", b"\r\n\t", b"\r\r\n", b" :", b": ", b",", b", ", b"\\", b'"'),
    *(b"Host: a\r\n", b"host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Connection: close\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n"),
    *(b"chunked", b"close", b"upgrade", b"identity", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"GET ", b"CONNECT "),
    *(b"http://a", b"//", b"/../", b"%2f", b"%00", b"%", b"?", b"#", b"*", b"0", b"00", b"5", b"0x5", b"+5", b"ff"),
    *(b"0\r\n\r\n", b"5\r\nhello\r\n", b";a=b", b"[", b"{", b"]", b"}", b'"a":', b"1e999", b"NaN", b"\xc3\xa9"),
]


def mutated(data: bytes, random: Random, corpus: list[bytes]) -> bytes:
    """The data after one to four blunt changes."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        at = random.randrange(len(data) + 1)
        to = min(len(data), at + random.choice((1, 1, 1, 2, 4, 16)))
        change = random.randrange(8)
        if change <= 2:
            data = data[:at] + random.choice(TOKENS) + data[at:]
        elif change == 3:
            data = data[:at] + random.choice(TOKENS) + data[to:]
        elif change == 4:
            data = data[:at] + bytes((random.randrange(256),)) + data[at + 1 :]
        elif change == 5:
            data = data[:at] + data[to:]
        elif change == 6:
            data = data[:to] + data[at:]  # a range twice
        else:
            lines, others = data.split(b"\r\n"), random.choice(corpus).split(b"\r\n")
            lines.insert(random.randrange(len(lines)), random.choice(others))
            data = b"\r\n".join(lines)
    return data


def request(random: Random) -> bytes:
    """A mutated request; of one in ten, it is the JSON of its body that is mutated."""
    if random.randrange(10):
        return mutated(random.choice(REQUESTS), random, REQUESTS)
    body = mutated(random.choice(DOCUMENTS), random, DOCUMENTS)
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    return head(*lines, first="POST /items/7?q=1 HTTP/1.1") + body


def cut(data: bytes, random: Random) -> list[bytes]:
    """The data in a few pieces, of which some may be empty."""
    places = sorted(random.randrange(len(data) + 1) for _ in range(random.choice((1, 2, 5))))
    return [data[start:end] for start, end in pairwise((0, *places, len(data)))]


# ---- what is compared -----------------------------------------------------------------------


def read_requests(pieces: list[bytes], parser: HeadParser) -> list[object]:
    """What a server's wire makes of the pieces: heads, bodies, ends, and the status of a refusal."""
    wire = ServerWire(parser=parser)
    seen: list[object] = []
    try:
        for piece in [*filter(None, pieces), b""]:
            wire.receive(piece)
            while (event := wire.next_event()) not in _STOPS:
                if event is not Mark.PAUSED:
                    _note(seen, event)
                    continue
                wire.send_head(200, NO_HEADERS, 0)
                wire.send_end()
                if not wire.reusable:
                    return [*seen, "closed"]
                wire.next_cycle()
        seen.append(event)
    except ProtocolViolation as violation:
        _refuse(seen, violation.status)
    return seen


def read_response(pieces: list[bytes], parser: HeadParser) -> list[object]:
    """What a client's wire makes of the pieces."""
    wire = ClientWire(parser=parser)
    wire.send_head(ASKED)
    wire.send_end()
    seen: list[object] = []
    try:
        for piece in [*filter(None, pieces), b""]:
            wire.receive(piece)
            while not isinstance(event := wire.next_event(), Mark):
                _note(seen, event)
        seen.append(event)
    except ProtocolViolation:
        _refuse(seen, "refused")
    return seen


_STOPS = (Mark.NEED_DATA, Mark.PEER_CLOSED, Mark.PEER_CUT)
ASKED = RequestHead("GET", "/", Headers.of({"host": "a", "connection": "upgrade", "upgrade": "x"}))


def _note(seen: list[object], event: object) -> None:
    """Note an event so that two lists are equal if they mean the same. Pieces of a body are one."""
    if isinstance(event, bytes) and seen and isinstance(seen[-1], bytes):
        seen[-1] += event
    else:
        seen.append(event.trailers if isinstance(event, EndOfMessage) else event)


def _refuse(seen: list[object], verdict: object) -> None:
    """Note a refusal, and forget the half body before it: how much of it was read is a matter of the cuts."""
    if seen and isinstance(seen[-1], bytes):
        seen.pop()
    seen.append(verdict)


Reading = Callable[[list[bytes], HeadParser], list[object]]


def difference(data: bytes, random: Random, read: Reading = read_requests) -> str | None:
    """How the readings of the data differ, if they do."""
    pieces = cut(data, random)
    first = random.choice(("h11", "httptools"))  # who reads it whole, and who both ways
    second = "h11" if first == "httptools" else "httptools"
    try:
        readings = {
            f"{first}, whole": read([data], PARSERS[first]),
            f"{second}, whole": read([data], PARSERS[second]),
            f"{first}, cut": read(pieces, PARSERS[first]),
        }
    except Exception as defect:  # whatever it is, it is a finding
        return f"{type(defect).__name__}: {defect}"
    expected = readings[f"{first}, whole"]
    for name, reading in readings.items():
        if reading != expected:
            return f"{first}, whole: {expected}\n{name}: {reading}"
    return None


# ---- JSON -----------------------------------------------------------------------------------

read_json = compile_json(Any, "the fuzzer")


def json_difference(body: bytes) -> str | None:
    """How the verdict on a body of JSON differs from the standard library's, told to be strict."""
    try:
        expected: object = ("read", _strictly(body))
    except (ValueError, RecursionError):
        expected = "refused"
    try:
        found: object = ("read", read_json(body))
    except ProtocolViolation as violation:
        found = "refused" if violation.status == 400 else violation
    except Exception as defect:  # whatever it is, it is a finding
        return f"{type(defect).__name__}: {defect}"
    return None if found == expected else f"expected {expected!r}\nfound {found!r}"


def _strictly(body: bytes) -> object:
    def refuse(what: object) -> object:
        raise ValueError(what)

    def members(pairs: list[tuple[str, object]]) -> object:
        return dict(pairs) if len(dict(pairs)) == len(pairs) else refuse("a name twice")

    def finite(number: str) -> object:
        return float(number) if isfinite(float(number)) else refuse(number)

    value = loads(body.decode(), object_pairs_hook=members, parse_constant=refuse, parse_float=finite)
    dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    return value if _depth(value) <= MAX_DEPTH else refuse("deep")


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


# ---- forms ----------------------------------------------------------------------------------

_PART = b"Content-Disposition: form-data; name="
FORMS = [
    b"--x--\r\n",
    b"--x\r\n" + _PART + b"a\r\n\r\n1\r\n--x--",
    b"--x\r\n" + _PART + b'"a"\r\nX: y\r\n\r\n\r\n--x\r\n' + _PART + b'"b"; filename="c"\r\n\r\n\0\r\n--x--\r\n',
]


def form_trouble(body: bytes) -> str | None:
    """What else than parts or a refusal comes of a form, or parts that it does not hold."""
    try:
        parts = read_multipart("multipart/form-data; boundary=x", body)
    except ProtocolViolation:
        return None
    except Exception as defect:  # whatever it is, it is a finding
        return f"{type(defect).__name__}: {defect}"
    found = [*(text.encode() for texts in parts.fields.values() for text in texts)]
    found += [file.body for files in parts.files.values() for file in files]
    wrong = [content for content in found if content not in body or b"\r\n--x" in content]
    return f"made up: {wrong}" if wrong else None


# ---- the whole edge -------------------------------------------------------------------------


@attrs.frozen
class Item:
    name: str
    count: int = 0
    tags: list[str] = attrs.Factory(list)
    inner: Item | None = None


@step
def put(
    id: Annotated[int, Path()],
    body: Annotated[Item | None, Body()] = None,
    q: Annotated[str | None, Query()] = None,
    n: Annotated[list[int] | None, Query()] = None,
    session: Annotated[str | None, Cookie()] = None,
    number: Annotated[int | None, Header("x-number")] = None,
) -> Done:
    return Done(json({"id": id, "body": body, "q": q, "n": n, "session": session, "number": number}))


@step
def echo(anything: Annotated[Any, Body()] = None) -> Done:
    return Done(json(anything))


def make_app() -> App:
    app = App()
    item, anything = Flow("item", [put]), Flow("anything", [echo])
    app.route("GET", "/items/{id}", item)
    app.route("POST", "/items/{id}", item)
    app.route("POST", "/{rest:path}", anything)
    app.route("GET", "/", anything)
    return app


async def answered(requests: list[bytes], random: Random) -> list[str]:
    """What is wrong with the answers that an app gives to these requests."""
    found: list[str] = []
    defects: list[Exception] = []
    listener = MemoryListener()
    options = {"limits": Limits(linger_seconds=0.1), "on_defect": defects.append, "parser": random.choice([*PARSERS])}
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, make_app(), listeners=[listener], **options))
        for data in requests:
            said = await talk(listener.connect(), filter(None, cut(data, random)))
            if defects or _FAILED.search(said):
                found.append(f"{data!r}\n  answered {said!r}\n  defects {defects!r}")
                defects.clear()
        nursery.cancel_scope.cancel()
    return found


# Where an answer may begin: first, or after a body, which here is JSON or nothing.
_FAILED = re.compile(rb"(?:^|\r\n\r\n|[]}\"0-9a-z])HTTP/1\.1 50[02-4]")


# ---- running --------------------------------------------------------------------------------


def fuzz(seed: int, block: int, count: int = BLOCK) -> list[str]:
    """What is found in one block of requests. The same arguments throw the same requests."""
    random = Random(f"{seed}/{block}")
    found: list[str] = []
    sample: list[bytes] = []
    for number in range(count):
        data = request(random)
        if (problem := difference(data, random)) is not None:
            found.append(f"{data!r}\n  {problem}")
        if number % SAMPLE == 0:
            sample.append(data)
        if number % RESPONSES == 0:
            data = mutated(random.choice(ANSWERS), random, ANSWERS)
            if (problem := difference(data, random, read_response)) is not None:
                found.append(f"{data!r}\n  {problem}")
            data = mutated(random.choice(FORMS), random, FORMS)
            if (problem := form_trouble(data)) is not None:
                found.append(f"{data!r}\n  {problem}")
            data = mutated(random.choice(DOCUMENTS), random, DOCUMENTS)
            if (problem := json_difference(data)) is not None:
                found.append(f"{data!r}\n  {problem}")
    return found + trio.run(answered, sample, random, clock=MockClock(autojump_threshold=0))


def blocks(seed: int, requests: int) -> Iterator[tuple[int, int, int]]:
    for block, start in enumerate(range(0, requests, BLOCK)):
        yield seed, block, min(BLOCK, requests - start)


def run_block(task: tuple[int, int, int]) -> tuple[int, int, list[str]]:
    seed, block, count = task
    try:
        return block, count, fuzz(seed, block, count)
    except Exception:  # in another process: what matters of it is its text
        return block, count, [traceback.format_exc()]


# ---- guided by coverage (`_guided.py`) -------------------------------------------------------

#: The first byte says for whom the rest is.
SEEDS = [
    *(b"q" + data for data in REQUESTS),
    *(b"s" + data for data in ANSWERS),
    *(b"j" + data for data in DOCUMENTS),
    *(b"f" + data for data in FORMS),
]


def check(data: bytes) -> str | None:
    """What is wrong with how these bytes are read: what they are follows from the first, and the cuts from all."""
    kind, rest = data[:1], data[1:]
    if kind == b"j":
        return json_difference(rest)
    if kind == b"f":
        return form_trouble(rest)
    return difference(rest, Random(crc32(data)), read_response if kind == b"s" else read_requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    began, done, findings = time.perf_counter(), 0, 0
    with multiprocessing.Pool(options.jobs) as pool:
        for block, count, found in pool.imap_unordered(run_block, blocks(options.seed, options.requests)):
            done += count
            findings += len(found)
            for finding in found[:10]:
                print(f"seed {options.seed}, block {block}: {finding}", flush=True)
    seconds = time.perf_counter() - began
    print(f"{done:,} requests, seed {options.seed}, {options.jobs} jobs, {seconds:.0f} s: {findings} findings")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
