"""`zerver trace`: finds the run that somebody asks about, tells what happened in it, and follows what is written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from tests.cli.commands import environment
from tests.trace import shop
from tests.trace.test_store import summary, write
from zerver.cli.trace import trace
from zerver.runtime import Result as RunResult
from zerver.trace import format_timeline
from zerver.trace.keeping.store import make_store
from zerver.trace.recording import encode_run
from zerver.trace.summary import Summary, summarize
from zerver.ui.beacon import Live, beacon

S = 1_000_000_000
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def zerver_trace(folder: Path, *arguments: str, db: str = "traces.db") -> Result:
    return CliRunner().invoke(trace, [*arguments], env={"ZERVER_TRACE_DB": str(folder / db)})


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where no server runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with make_store(tmp_path / "traces.db") as store:
        write(
            store,
            summary(1, run_id="req_7a8f3c2b1111"),
            summary(2, run_id="req_7a8f3c2b2222", tenant="zeta", trace_id=TRACE),
            summary(3, status="failed", http=409, kept="declined", cause="FAILED cart: sold out"),
            summary(4, status="defect", http=500, kept="error", beside=12, cause="DEFECT ZeroDivisionError in count"),
            summary(
                5, status="deadline", http=504, kept="unresolved", unresolved=1, cause="UNRESOLVED payments.charge"
            ),
            summary(6, kept="slow", slow=True, took_ns=880_000_000, label="POST /v2/checkout", flow="checkout"),
            summary(7, http=None, label="", flow="nightly"),
        )
    return tmp_path


def lines(ended: Result) -> list[str]:
    assert ended.exit_code == 0, ended.output
    return ended.stdout.splitlines()


# ---- lists ----------------------------------------------------------------------------------


def test_the_newest_runs_are_listed_with_what_matters(folder: Path) -> None:
    head, *rows = lines(zerver_trace(folder))
    assert head.split() == ["BEGAN", "ID", "ROUTE", "STATUS", "TOOK", "TENANT", "KEPT", "WHY"]
    shown = [re.sub(r"^\d\d-\d\d \d\d:\d\d:\d\d", "WHEN", re.sub(r"  +", " | ", row)) for row in rows]
    assert shown == [
        "WHEN | req_00000000 | nightly | done | 5.0ms | acme | sample",
        "WHEN | req_00000000 | POST /v2/checkout | 200 | 880ms | acme | slow",
        "WHEN | req_00000000 | GET /orders | 504 deadline | 5.0ms | acme | unresolved | UNRESOLVED payments.charge",
        "WHEN | req_00000000 | GET /orders | 500 defect | 5.0ms | acme | error +12 | DEFECT ZeroDivisionError in count",
        "WHEN | req_00000000 | GET /orders | 409 failed | 5.0ms | acme | declined | FAILED cart: sold out",
        "WHEN | req_7a8f3c2b | GET /orders | 200 | 5.0ms | zeta | sample",
        "WHEN | req_7a8f3c2b | GET /orders | 200 | 5.0ms | acme | sample",
    ]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--route", "POST /v2/checkout"], [6]),
        (["--route", "nightly"], [7]),
        (["--status", "defect"], [4]),
        (["--status", "409"], [3]),
        (["--status", "5xx"], [5, 4]),
        (["--tenant", "zeta"], [2]),
        (["--failed"], [5, 4, 3]),
        (["--failed", "--status", "504"], [5]),
        (["--unresolved"], [5]),
        (["--slow"], [6]),
        (["--slower-than", "500ms"], [6]),
        (["--kept", "error"], [4]),
        (["--limit", "2"], [7, 6]),
        (["--since", "15m"], []),
        (["--since", "30000d"], [7, 6, 5, 4, 3, 2, 1]),
        (["--since", "1970-01-01T00:00:05+00:00"], [7, 6, 5]),
        (["--until", "1970-01-01T00:00:03+00:00"], [2, 1]),
    ],
)
def test_filters(folder: Path, arguments: list[str], numbers: list[int]) -> None:
    ended = zerver_trace(folder, "--json", *arguments)
    assert [round(run["began_unix_ms"] / 1000) for run in json.loads(ended.stdout)] == numbers


def test_json_has_the_names_of_the_api(folder: Path) -> None:
    (told,) = json.loads(zerver_trace(folder, "--json", "--kept", "error").stdout)
    assert told == {
        "id": summary(4).run_id,
        "began_unix_ms": 4000.0,
        "label": "GET /orders",
        "flow": "orders",
        "version": "1",
        "tenant": "acme",
        "priority": "default",
        "status": "defect",
        "http": 500,
        "took_ns": 5_000_000,
        "kept": "error",
        "beside": 12,
        "slow": False,
        "cause": "DEFECT ZeroDivisionError in count",
        "slow_step": None,
        "unresolved": False,
        "trace_id": None,
        "records": 0,
        "source": "store",
    }


def test_an_empty_list_says_what_is_kept(folder: Path) -> None:
    ended = zerver_trace(folder, "--tenant", "nobody")
    assert (ended.exit_code, ended.stdout) == (0, "")
    assert "no run that fits in" in ended.stderr
    assert json.loads(zerver_trace(folder, "--tenant", "nobody", "--json").stdout) == []


def test_what_comes_out_of_a_file_does_not_speak_to_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\n\u202e"
    with make_store(tmp_path / "traces.db") as store:
        write(store, summary(1, tenant=evil, cause=evil, label=evil, kept="sample", status=evil, trace_id=evil))
    for arguments in ([], ["--json"], ["req_"], ["--follow", "--limit", "0"]):
        ended = zerver_trace(tmp_path, *arguments)
        for stream in (ended.stdout, ended.stderr):
            assert "\x1b" not in stream
            assert "\u202e" not in stream


# ---- one run --------------------------------------------------------------------------------


async def keep(folder: Path, result: RunResult, **how: Any) -> Summary:
    told = attrs.evolve(summarize(result, began_unix_ns=1_700_000_000 * S, kept="trouble"), **how)
    with make_store(folder / "traces.db") as store:
        store.write([(told, encode_run(result, began_unix_ns=1_700_000_000 * S))])
    return told


async def test_a_request_id_gives_the_answer(autojump_clock: object, tmp_path: Path) -> None:
    """ "My payment went through, but I have no order": the id is in the answer's X-Request-Id."""
    result = await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out})
    await keep(tmp_path, result, beside=3, trace_id=TRACE)
    ended = zerver_trace(tmp_path, result.run_id)
    assert ended.exit_code == 0
    *told, last = ended.stdout.splitlines()
    assert "\n".join(told) == format_timeline(result.timeline)
    assert any("; undone: create_order, charge" in line for line in told)
    assert re.fullmatch(
        r"began 2023-11-1\d \d\d:\d\d:20\.000 · kept: trouble \(and 3 like it that were not\) · "
        rf"trace {TRACE} · again: zerver replay {result.run_id[:12]}",
        last,
    )
    for said in (result.run_id[:10], f"[{result.run_id[4:12]}…]", TRACE, f"00-{TRACE}-00f067aa0ba902b7-01"):
        assert zerver_trace(tmp_path, said).stdout == ended.stdout


async def test_one_run_as_json_is_its_view(autojump_clock: object, tmp_path: Path) -> None:
    result = await shop.run(shop.CHECKOUT, {})
    await keep(tmp_path, result)
    told = json.loads(zerver_trace(tmp_path, result.run_id, "--json").stdout)
    assert told["header"]["id"] == result.run_id
    assert told["header"]["kept"] == "trouble"
    assert {"accounts", "rows", "spans", "slots", "causes", "unresolved"} <= set(told)


def test_an_id_that_may_be_several_lists_them(folder: Path) -> None:
    ended = zerver_trace(folder, "7a8f")
    assert ended.exit_code == 2
    assert [line.split()[-3] for line in ended.stdout.splitlines()[1:]] == ["5.0ms", "5.0ms"]
    assert "'7a8f' may be any of these: give more of the id" in ended.stderr


def test_an_id_that_is_not_there_says_why_it_may_not_be(folder: Path) -> None:
    ended = zerver_trace(folder, "req_ffff")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert re.search(r"no run in .* begins with 'req_ffff'; 7 are kept there since 1970-01-01", ended.stderr)
    assert "ZERVER_TRACE_SAMPLE=1 keeps all from now on" in ended.stderr


class Memory(BaseHTTPRequestHandler):
    """A server that has one run in memory."""

    def do_GET(self) -> None:
        known = {
            "/_zerver/api/runs/req_f00d/text": {"text": "req_f00d\n\x1b[2J"},
            "/_zerver/api/runs/req_f00d": {"header": 1},
        }
        told = known.get(self.path) if self.headers["Authorization"] == "Bearer sesame" else None
        self.send_response(404 if told is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(told or {}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """It has nothing to say."""


def test_a_run_that_was_not_kept_may_still_be_in_the_servers_memory(folder: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Memory) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with beacon(Live(f"http://127.0.0.1:{server.server_port}", os.getpid(), "sesame")):
                ended = zerver_trace(folder, "req_f00d")
                assert ended.stdout == "req_f00d\n\\x1b[2J\nstill in the memory of the server, and not kept\n"
                assert json.loads(zerver_trace(folder, "req_f00d", "--json").stdout) == {"header": 1}
                assert zerver_trace(folder, "req_none").exit_code == 2
        finally:
            server.shutdown()
            thread.join()


def test_a_run_that_cannot_be_read_is_one_line(folder: Path) -> None:
    ended = zerver_trace(folder, "req_7a8f3c2b1111")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Error: ")
    assert "Traceback" not in ended.stderr


# ---- wrong command lines --------------------------------------------------------------------


def test_a_missing_file_is_one_line_with_the_cure(tmp_path: Path) -> None:
    for arguments in ([], ["req_1"]):
        ended = zerver_trace(tmp_path, *arguments, db="none.db")
        assert ended.exit_code == 2
        assert ended.stderr == (
            f"Error: there is no trace file {tmp_path / 'none.db'}\n"
            "  a server keeps its runs there by itself; give another file by --db or ZERVER_TRACE_DB\n"
        )
    assert os.listdir(tmp_path) == []


def test_a_store_that_was_turned_off_is_said_to_be(tmp_path: Path) -> None:
    ended = CliRunner().invoke(trace, ["--db", ""])
    assert ended.exit_code == 2
    assert "trace.db is empty" in ended.stderr


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "traces.db").write_text("notes")
    ended = zerver_trace(tmp_path)
    assert ended.exit_code == 2
    assert "is no trace file, and was left as it is" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "yesterday"], "'yesterday' is not a time, as 10, 250ms, 15m or 7d, or a moment"),
        (["--since", "2026-13-40"], "'2026-13-40' is not"),
        (["--slower-than", "fast"], "'fast' is not a time"),
        (["--limit", "0"], "0 is not in the range"),
        (["req_1", "--failed"], "an ID is one run: it takes no filters"),
        (["req_1", "--follow"], "and cannot be followed"),
    ],
)
def test_what_makes_no_sense_is_refused(folder: Path, arguments: list[str], said: str) -> None:
    ended = zerver_trace(folder, *arguments)
    assert ended.exit_code == 2
    assert said in ended.stderr


# ---- following ------------------------------------------------------------------------------


class Following:
    """`zerver trace --follow` under way."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        program = "from zerver.cli.trace import trace; trace()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "--follow", "--db", str(folder / "traces.db"), *arguments],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors)),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        lines.extend(iter(stream.readline, ""))  # grows line by line

    def until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < give_up, (self.lines, self.errors)
            time.sleep(0.01)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Callable[..., Following]]:
    started: list[Following] = []

    def start(*arguments: str) -> Following:
        started.append(Following(tmp_path, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_new_runs_are_shown_as_they_are_written(tmp_path: Path, follow: Callable[..., Following]) -> None:
    with make_store(tmp_path / "traces.db") as store:
        write(store, summary(1, cause="first"))
        following = follow("--tenant", "acme")
        following.until(lambda: len(following.lines) == 2)
        assert following.lines[0].startswith("BEGAN ")
        assert following.lines[1].rstrip().endswith("first")
        write(store, summary(2, cause="other", tenant="zeta"))
        write(store, summary(3, cause="third"))
        following.until(lambda: len(following.lines) == 3)
        assert following.lines[2].rstrip().endswith("third")
        assert following.interrupt() == 130
    following.close()
    assert following.errors == []


def test_it_waits_for_a_file_and_finds_the_one_that_takes_its_place(
    tmp_path: Path, follow: Callable[..., Following]
) -> None:
    following = follow("--json")
    following.until(lambda: bool(following.errors))
    assert following.errors[0].startswith("waiting for ")
    for number in (1, 2):
        with make_store(tmp_path / "traces.db") as store:
            write(store, summary(number))
        following.until(lambda number=number: len(following.lines) == number)
        assert json.loads(following.lines[-1])["id"] == summary(number).run_id
        (tmp_path / "traces.db").unlink()
    assert following.interrupt() == 130
