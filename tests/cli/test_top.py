"""Proves that `zerver top` draws what a server says, whatever it leaves out, and ends cleanly where there is none."""

from __future__ import annotations

import json
import os
import pty
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tests.cli.commands import ROOT, environment
from tests.ui.serving import open_served
from zerver import App, Done, Flow, step
from zerver.cli.board import draw
from zerver.cli.top import top
from zerver.ui.beacon import Live, beacon

TOKEN = "a-token-that-nobody-guesses"

ROUTE = {
    "label": "POST /orders",
    "flow": "order",
    "rate": 12.5,
    "count": 750,
    "errors": 3,
    "refused": 0,
    "running": 2,
    "p50_ns": 4_200_000,
    "p99_ns": 88_000_000,
}

OVERVIEW: dict[str, Any] = {
    "server": {
        "app": "shop",
        "version": "1",
        "pid": 4711,
        "addresses": ["http://127.0.0.1:8000"],
        "uptime_ns": 3_700_000_000_000,
    },
    "runs": {"running": 2, "ended": 750, "unresolved": 1, "observer_errors": 0},
    "routes": [ROUTE, {"label": "GET /quiet", "flow": "quiet", "rate": 0, "p50_ns": None, "p99_ns": None}],
    "admission": {
        "running": 2,
        "queued": 7,
        "refused": 0,
        "draining": False,
        "classes": [
            {
                "priority": "interactive",
                "running": 2,
                "queued": 7,
                "limit": 40,
                "admitted": 750,
                "refused": 0,
                "rate": 0.75,
            }
        ],
    },
    "tenants": [{"name": "acme", "running": 1, "count": 700, "errors": 3, "refused": 0, "p99_ns": None, "weight": 1.0}],
    "loop": {"lag_ns": 400_000, "worst_ns": 61_000_000},
    "targets": [
        {"name": "payments", "breaker": "open", "attempts": 50, "failures": 26, "waiting": 0, "operations": []},
        {"name": "stock", "breaker": "closed", "attempts": 50, "failures": 0, "waiting": 0, "operations": []},
    ],
    "pools": [{"name": "db", "kind": "sqlite", "numbers": {"size": 4, "waiting": 3}}, {"name": "idle", "numbers": {}}],
}

RUNS: list[dict[str, Any]] = [
    {
        "id": "req_7a8f3c2b0000000000000000",
        "label": "POST /orders",
        "flow": "order",
        "tenant": "acme",
        "status": "failed",
        "http": 409,
        "took_ns": 29_800_000,
        "cause": "FAILED cart: sold out",
        "slow_step": "charge",
        "unresolved": False,
    },
    {"id": "req_91", "label": "", "flow": "order", "status": "running", "http": None, "took_ns": 1_000_000},
]


@attrs.define
class Place:
    """A server that answers as a page's API does. asked: the paths that it was asked for."""

    url: str
    answers: dict[str, Any]
    asked: list[str] = attrs.field(factory=list)


@contextmanager
def serving(answers: dict[str, Any] | None = None) -> Iterator[Place]:
    place = Place("", {"overview": OVERVIEW, "runs": {"runs": RUNS, "more": False}} if answers is None else answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place.asked.append(self.path)
            name = self.path.removeprefix("/_zerver/api/").partition("?")[0]
            allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
            body = json.dumps(place.answers.get(name)).encode() if allowed else b"{}"
            self.send_response((200 if name in place.answers else 404) if allowed else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        place.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield place
        finally:
            server.shutdown()
            thread.join()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(top, arguments)


def drawn(overview: dict[str, Any], runs: list[dict[str, Any]], **how: Any) -> str:
    console = Console(width=140, color_system=None)
    with console.capture() as captured:
        console.print(draw(overview, runs, **how))
    return captured.get()


# ---- a frame ---------------------------------------------------------------------------------


def test_a_frame_has_what_matters() -> None:
    text = drawn(OVERVIEW, RUNS)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["shop", "http://127.0.0.1:8000", "pid", "4711", "up", "1h01m"]
    assert "req/s 12.5  running 2  queued 7  limit 40  refused 0  unresolved 1  loop lag 0.4ms (worst 61.0ms)" in text
    assert ["POST", "/orders", "12.5", "4.2ms", "88.0ms", "3", "0", "2"] in lines
    assert ["GET", "/quiet", "0.0", "–", "–", "–", "–", "–"] in lines
    assert ["interactive", "2", "7", "40", "750", "0", "0.75"] in lines
    assert ["acme", "1", "700", "3", "0", "–", "1"] in lines
    assert [
        "7a8f3c2b",
        "POST",
        "/orders",
        "failed",
        "409",
        "29.8ms",
        "acme",
        "charge",
        "FAILED",
        "cart:",
        "sold",
        "out",
    ] in lines
    assert ["payments", "open", "26", "of", "50", "attempts", "failed"] in lines
    assert ["db", "sqlite", "size", "4,", "waiting", "3"] in lines
    assert "stock" not in text
    assert "idle" not in text


def test_what_is_missing_is_a_dash() -> None:
    assert "pid –" in drawn({}, [])
    nothing: dict[str, Any] = dict.fromkeys(OVERVIEW)
    assert "running –" in drawn(nothing, [{}])
    assert "loop lag –" in drawn({**OVERVIEW, "loop": None, "routes": [{}], "tenants": [{}], "targets": [{}]}, [])


def test_no_text_of_the_server_speaks_to_the_terminal() -> None:
    evil = "[red]\x1b]0;owned\x07\n\u202ex"
    text = drawn(
        {**OVERVIEW, "tenants": [{"name": evil}], "routes": [{**ROUTE, "label": evil}]}, [{"id": evil, "cause": evil}]
    )
    assert all(line.isprintable() for line in text.splitlines())
    assert r"[red]\x1b]0;owned\x07\n" in text


def test_tables_are_as_long_as_they_may_be() -> None:
    text = drawn({**OVERVIEW, "routes": [{**ROUTE, "label": f"GET /{i}", "rate": i} for i in range(9)]}, [], rows=3)
    assert [line.split()[1] for line in text.splitlines() if " GET /" in line] == ["/8", "/7", "/6"]
    assert "and 6 more" in text


def test_trouble_is_said() -> None:
    assert "no answer for 3s" in drawn(OVERVIEW, [], trouble="no answer for 3s")


# ---- the command -----------------------------------------------------------------------------


def test_one_frame_of_a_server() -> None:
    with serving() as place:
        done = run("--url", place.url, "--token", TOKEN, "--once", "--route", "POST /orders", "--slow-ms", "5")
    assert done.exit_code == 0
    assert "POST /orders" in done.output
    assert place.asked == ["/_zerver/api/overview", "/_zerver/api/runs?route=POST+%2Forders&slow_ms=5.0&limit=40"]


def test_a_pipe_gets_one_frame() -> None:
    with serving() as place:
        assert "12.5" in run("--url", place.url, "--token", TOKEN).output


def test_json() -> None:
    with serving() as place:
        done = run("--url", place.url, "--token", TOKEN, "--json", "--failed")
    assert json.loads(done.output) == {"overview": OVERVIEW, "runs": RUNS}
    assert place.asked[1] == "/_zerver/api/runs?failed=1&limit=40"


def test_the_server_of_this_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serving() as place, beacon(Live(place.url, os.getpid(), TOKEN)):
        assert "POST /orders" in run("--once").output


def test_no_server_is_one_line_with_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("--once")
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert "zerver serve" in done.output


@pytest.mark.parametrize("token", [[], ["--token", "wrong"]])
def test_no_token_is_one_line_with_a_cure(token: list[str]) -> None:
    with serving() as place:
        done = run("--url", place.url, *token, "--once")
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert "give --token" in done.output
    assert "wrong" not in done.output


def test_a_server_that_is_gone() -> None:
    with serving() as place:
        pass
    done = run("--url", place.url, "--once")
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert "does not answer" in done.output
    assert "--url" in done.output


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:port", "http://[", "::"])
def test_what_is_no_address(url: str) -> None:
    done = run("--url", url, "--once")
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("answers", "said"),
    [({"overview": [1], "runs": {}}, "nothing that a Zerver says"), ({"runs": {}}, "its page is off")],
)
def test_a_server_that_is_no_zerver(answers: dict[str, Any], said: str) -> None:
    with serving(answers) as place:
        done = run("--url", place.url, "--token", TOKEN, "--once")
    assert done.exit_code == 2
    assert said in done.output


def test_over_a_unix_socket(tmp_path: Path) -> None:
    from zerver.cli.asking import Asking, NoAnswer

    with pytest.raises(NoAnswer, match="does not answer"):
        Asking(f"unix:{tmp_path / 'none.sock'}").get("overview")


@step
def hello() -> Done:
    return Done("hello")


def test_a_server_as_it_is() -> None:
    """What its API says today is what is drawn."""
    app = App("shop")
    app.route("GET", "/hello", Flow("hello", [hello]))
    with open_served(app) as served:
        ended = served.run("GET", "/hello")
        (token,) = parse_qs(urlsplit(served.url).query)["token"]
        done = run("--url", served.address, "--token", token, "--once")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert lines[0][:5] == ["shop", served.address, "pid", str(os.getpid()), "up"]
    assert [ended.removeprefix("req_")[:8], "GET", "/hello", "done", "200"] in [line[:5] for line in lines]
    assert {"interactive", "default", "batch"} <= {line[0] for line in lines if line}


# ---- live ------------------------------------------------------------------------------------


#: Its terminal is the one that Ctrl-C is sent by.
LIVE = """
import fcntl, termios
from zerver.cli.top import top
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
top()
"""


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_it_is_live_on_a_terminal_until_it_is_told_to_end(key: bytes) -> None:
    """On a terminal of its own: it draws, and a key ends it."""
    ours, theirs = pty.openpty()
    with serving() as place, os.fdopen(ours, "r+b", buffering=0) as terminal:
        with os.fdopen(theirs, "wb") as other:
            process = subprocess.Popen(
                [sys.executable, "-c", LIVE, "--url", place.url, "--token", TOKEN],
                cwd=ROOT,
                env=environment() | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
                stdin=other,
                stdout=other,
                stderr=other,
                start_new_session=True,
            )
        seen = _until(terminal, b"acme")
        terminal.write(key)
        seen += _until(terminal, None)
        assert process.wait(timeout=30) == 0, seen


def _until(terminal: IO[bytes], word: bytes | None) -> bytes:
    """What is drawn until this word, or until the other side is closed: a terminal without one cannot be read."""
    seen = b""
    try:
        while (word is None or word not in seen) and (data := terminal.read(65536)):
            seen += data
    except OSError:
        if word is not None:
            raise AssertionError(f"it ended after {seen!r}") from None
    return seen
