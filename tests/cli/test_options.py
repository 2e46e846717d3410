"""`zerver serve` does what its options say, and refuses in one line what cannot be."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
import trio
import trustme
from click.testing import CliRunner

from tests.cli.commands import SHOP, serving
from zerver.cli.main import main

#: The shop, with a route that says who asks.
TELLING = (
    SHOP
    + """
from zerver.http import Request, text


@step
def whoami(request: Request) -> Done:
    return Done(text(f"{request.peer} {request.client} {request.scheme} {request.host}"))


app.route("GET", "/whoami", Flow("whoami", [whoami]))
"""
)


def refusal(*arguments: str) -> str:
    """What the command says to arguments that it refuses before it loads the app."""
    done = CliRunner().invoke(main, ["serve", "nothing.here:app", *arguments])
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("Error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--unix", "s", "--port", "1"), "--unix takes the place of --host and --port"),
        (("--unix", "s", "--unix-mode", "9"), "--unix-mode is octal, as 660; not '9'"),
        (("--tls-cert", "a.pem"), "each --tls-cert needs its --tls-key, in the same order; there are 1 and 0"),
        (("--tls-cert", "a.pem", "--tls-key", "a.key"), "no TLS: No such file or directory (a.pem, a.key)"),
        (("--proxy-headers", "proxy.example"), "no proxy can be at 'proxy.example'"),
        (("--allow-host", "http://shop.example"), "'http://shop.example' is no name of a host"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    assert refusal(*arguments).startswith(said)
    if "--workers" not in arguments:
        assert refusal(*arguments, "--workers", "2").startswith(said)


def test_where_others_can_connect_only_addresses_are_served_until_hosts_are_named() -> None:
    done = CliRunner().invoke(main, ["serve", "nothing.here:app", "--host", "0.0.0.0"])
    assert "no module" in done.stderr  # it got as far as the app


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_hosts_and_proxies_are_as_the_options_say(workers: str, tmp_path: Path) -> None:
    options = ["--allow-host", "shop.example", "--proxy-headers", "127.0.0.0/8", "--workers", workers]
    async with serving(tmp_path, *options, source=TELLING) as server:
        assert (await server.ask("GET /whoami")).startswith("HTTP/1.1 421 ")
        told = "GET /whoami HTTP/1.1\r\nX-Forwarded-For: 1.1.1.1, 192.0.2.7\r\nX-Forwarded-Host: shop.example\r\nX: "
        assert (await server.ask(told)).endswith("127.0.0.1 192.0.2.7 http shop.example")


async def test_a_unix_socket_with_its_mode_and_a_proxy_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"
    place = ("--unix", str(path), "--unix-mode", "600", "--proxy-headers", "unix", "--proxy-form", "forwarded")
    async with serving(tmp_path, source=TELLING, place=place) as server:
        assert stat.S_IMODE((await trio.Path(path).stat()).st_mode) == 0o600
        told = "GET /whoami HTTP/1.1\r\nForwarded: for=192.0.2.7;proto=https;host=shop.example\r\nX: "
        assert (await server.ask(told)).endswith("unix 192.0.2.7 https shop.example")
        server.process.terminate()
        assert await server.process.wait() == 0
    assert not await trio.Path(path).exists()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_tls_by_name(workers: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    options = ["--workers", workers]
    for name in ("a.example", "b.example"):
        made = authority.issue_cert(name)
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        options += ["--tls-cert", f"{name}.pem", "--tls-key", f"{name}.key"]
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with serving(tmp_path, *options, source=TELLING) as server:
        assert server.address.startswith("https://127.0.0.1:")
        for name in ("a.example", "b.example"):
            stream = trio.SSLStream(await server.connect(), context, server_hostname=name)
            async with stream:
                await stream.send_all(f"GET /whoami HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join([bytes(data) async for data in stream])
            assert answer.endswith(f"127.0.0.1 127.0.0.1 https {name}".encode())


@pytest.mark.parametrize("parser", ["h11", "httptools", "auto"])
async def test_every_parser_serves(parser: str, tmp_path: Path) -> None:
    async with serving(tmp_path, "--parser", parser) as server:
        assert (await server.ask("GET /")).startswith("HTTP/1.1 200 ")
