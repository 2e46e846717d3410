"""What `zerver serve` tells beside its answers: the page, the beacon, the trace file, log lines, settings."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import trio

from tests.cli.commands import Server, serving, zerver

ON = {"ZERVER_PAGE": "auto", "ZERVER_TRACE_DB": ".zerver/traces.db"}


async def get(server: Server, path: str, *fields: str) -> tuple[str, str]:
    """The head and the body of an answer."""
    async with await server.connect() as stream:
        host = server.address.partition("://")[2]
        head = "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *fields))
        await stream.send_all(f"{head}\r\n\r\n".encode())
        answer = b"".join([bytes(data) async for data in stream]).decode()
    head, _, body = answer.partition("\r\n\r\n")
    return head, body


async def end(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    with trio.fail_after(20):
        assert await server.process.wait() == 0


def token_in(line: str, address: str) -> str:
    start = f"live page {address}/_zerver/?token="
    assert line.startswith(start)
    return line.removeprefix(start)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_page_is_announced_and_other_commands_find_the_server(workers: str, tmp_path: Path) -> None:
    async with serving(tmp_path, "--workers", workers, said=ON) as server:
        token = token_in(await server.line(), server.address)
        live = tmp_path / ".zerver" / "live.json"
        assert live.stat().st_mode & 0o777 == 0o600
        for _ in range(4):  # whichever worker it comes to
            assert (await get(server, "/"))[0].startswith("HTTP/1.1 200")
            assert (await get(server, "/_zerver/api/session"))[0].startswith("HTTP/1.1 401")
            head, _ = await get(server, "/_zerver/api/session", f"Authorization: Bearer {token}")
            assert head.startswith("HTTP/1.1 200")
        top = await trio.to_thread.run_sync(lambda: zerver(tmp_path, "top", "--once"))
        assert (top.status, "GET /" in top.out) == (0, True)
        await end(server)
    assert not live.exists()
    kept = zerver(tmp_path, "trace", "--db", ".zerver/traces.db", "--json")
    assert kept.status == 0
    assert len(kept.out.splitlines()) >= 4 or len(json.loads(kept.out)) >= 4


async def test_where_strangers_can_connect_there_is_no_page_unless_it_is_said(tmp_path: Path) -> None:
    place = ("--host", "0.0.0.0", "--port", "0")
    async with serving(tmp_path, "--allow-host", "*", place=place, said=ON) as server:
        server.address = server.address.replace("0.0.0.0", "127.0.0.1")
        assert (await get(server, "/_zerver/"))[0].startswith("HTTP/1.1 404")
        await end(server)
        assert "live page" not in await server.rest()


async def test_a_unix_socket_has_no_page(tmp_path: Path) -> None:
    async with serving(tmp_path, place=("--unix", str(tmp_path / "socket")), said=ON | {"ZERVER_PAGE": "on"}) as server:
        await end(server)
        assert "live page" not in await server.rest()


async def test_log_lines_are_json_on_stderr_when_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path, "--log", "json", said={"ZERVER_LOG_LEVEL": "debug"}) as server:
        await get(server, "/")
        await end(server)
        lines = [line for line in (await server.err()).splitlines() if line.startswith("{")]
    (line,) = [json.loads(line) for line in lines]
    assert (line["event"], line["route"], line["level"]) == ("run done", "GET /", "debug")


async def test_a_file_of_settings_is_read_and_the_command_line_wins(tmp_path: Path) -> None:
    (tmp_path / "zerver.toml").write_text('[serve]\napp = "shop:app"\nport = 1\n[log]\nform = "json"\n')
    async with serving(tmp_path, "--log", "off", said={"ZERVER_LOG_LEVEL": "debug"}) as server:
        await get(server, "/")
        await end(server)
        assert "{" not in await server.err()


def test_what_cannot_be_is_one_line_each_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "zerver.toml").write_text('[serve]\nprot = 8000\n[log]\nform = "xml"\n')
    ended = zerver(tmp_path, "serve", "shop:app")
    assert (ended.status, ended.out) == (2, "")
    assert "zerver.toml: serve.prot: is unknown: did you mean serve.port?" in ended.err
    assert "zerver.toml: log.form: is 'xml'" in ended.err


def test_without_an_app_it_is_said_how_to_name_one(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "serve")
    assert ended.status == 2
    assert ended.err == "Error: which app? Write MODULE:APP, as `zerver serve shop.api:app`, or set ZERVER_APP\n"


async def test_a_trace_file_of_somebody_else_is_left_alone_and_keeps_nobody_from_serving(tmp_path: Path) -> None:
    (tmp_path / "mine.db").write_text("not a database, and dear to somebody")
    async with serving(tmp_path, "--trace-db", "mine.db") as server:
        assert (await get(server, "/"))[0].startswith("HTTP/1.1 200")
        await end(server)
        told = await server.err()
    assert "mine.db" in told
    assert (tmp_path / "mine.db").read_text() == "not a database, and dear to somebody"


async def test_a_token_that_the_operator_has_chosen_is_not_printed(tmp_path: Path) -> None:
    token = "chosen-by-the-operator-and-secret"
    async with serving(tmp_path, said=ON | {"ZERVER_PAGE_TOKEN": token}) as server:
        assert await server.line() == f"live page {server.address}/_zerver/ for who has the token"
        head, _ = await get(server, "/_zerver/api/session", f"Authorization: Bearer {token}")
        assert head.startswith("HTTP/1.1 200")
        await end(server)
