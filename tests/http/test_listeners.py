"""Listeners take a place that is free and no other, and leave nothing behind, whenever they are cancelled."""

from __future__ import annotations

import errno
import socket
import ssl
import stat
from pathlib import Path

import pytest
import trio
import trustme

from zerver.http.certificates import CertificateFiles, Certificates
from zerver.http.exchange import Exchange
from zerver.http.listeners import (
    UnixListener,
    address_of,
    bind_tcp,
    open_http_listeners,
    open_unix_listener,
    over_tls,
)
from zerver.http.messages import Response
from zerver.http.response import text
from zerver.http.server import Server, serve_http
from zerver.testing import cancel_sweep

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def whoami(exchange: Exchange) -> Response:
    return text(f"{exchange.scheme} {exchange.peer}")


def files_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def left_nothing(folder: Path) -> None:
    assert files_in(folder) == []


async def ask(stream: trio.abc.Stream) -> bytes:
    await stream.send_all(GET)
    return bytes(await stream.receive_some())


# ---- TCP ------------------------------------------------------------------------------------


async def test_a_free_port_is_the_same_at_every_address_of_a_host() -> None:
    sockets = await bind_tcp("localhost", 0)
    assert len({bound.getsockname()[1] for bound in sockets}) == 1
    for bound in sockets:
        bound.close()


async def test_a_port_is_taken_once_unless_both_agree_to_share() -> None:
    (alone,) = await open_http_listeners()
    port = alone.socket.getsockname()[1]
    for reuse_port in (False, True):
        with pytest.raises(OSError, match="in use") as caught:
            await open_http_listeners(port=port, reuse_port=reuse_port)
        assert caught.value.errno == errno.EADDRINUSE
    await alone.aclose()
    held = await bind_tcp("127.0.0.1", 0, reuse_port=True)
    port = held[0].getsockname()[1]
    shared = [(await open_http_listeners(port=port, reuse_port=True))[0] for _ in range(3)]
    with pytest.raises(OSError, match="in use"):
        await open_http_listeners(port=port)
    for listener in shared:
        await listener.aclose()
    held[0].close()


async def test_who_holds_a_port_without_listening_gets_no_connection() -> None:
    """The supervisor of workers does; a connection that came to it would wait for ever."""
    (held,) = await bind_tcp("127.0.0.1", 0, reuse_port=True)
    port = held.getsockname()[1]
    with pytest.raises(OSError, match=str(port)):
        await trio.open_tcp_stream("127.0.0.1", port)
    (listener,) = await open_http_listeners(port=port, reuse_port=True)
    for _ in range(20):
        client = await trio.open_tcp_stream("127.0.0.1", port)
        await (await listener.accept()).aclose()
        await client.aclose()
    await listener.aclose()
    held.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_a_place_that_is_not_ours_is_an_os_error(host: str) -> None:
    with pytest.raises(OSError):  # each system words it in its own way
        await open_http_listeners(host)


async def test_addresses_are_urls() -> None:
    (listener,) = await open_http_listeners()
    port = listener.socket.getsockname()[1]
    assert address_of(listener) == f"http://127.0.0.1:{port}"
    await listener.aclose()
    if socket.has_ipv6:
        try:
            (listener,) = await open_http_listeners("::1")
        except OSError:
            return
        assert address_of(listener).startswith("http://[::1]:")
        await listener.aclose()


# ---- Unix sockets ---------------------------------------------------------------------------


async def test_a_unix_socket_serves_has_its_mode_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"
    async with trio.open_nursery() as nursery:
        listener = await open_unix_listener(path, 0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        server: Server = await nursery.start(serve_http, whoami, [listener])
        assert server.addresses == (f"unix:{path}",)
        async with await trio.open_unix_socket(str(path)) as stream:
            assert (await ask(stream)).endswith(b"http unix")
        await server.drain(1)
    assert files_in(tmp_path) == []


async def test_the_file_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    assert path.is_socket()
    async with await open_unix_listener(path), await trio.open_unix_socket(str(path)):
        pass
    assert not path.exists()


async def test_a_socket_that_somebody_serves_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"
    async with await open_unix_listener(path):
        with pytest.raises(OSError, match="another server listens there"):
            await open_unix_listener(path)
        assert path.is_socket()
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as waiting:
        full.bind(str(path))
        full.listen(0)
        waiting.connect(str(path))  # one may wait; the next attempt says EAGAIN
        with pytest.raises(OSError, match="another server listens there"):
            await open_unix_listener(path)


async def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("keep me")
    with pytest.raises(FileExistsError, match="not a socket"):
        await open_unix_listener(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(FileExistsError):
        await open_unix_listener(link)
    assert path.read_text() == "keep me"
    assert files_in(tmp_path) == ["link", "notes.txt"]


async def test_the_file_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"
    first = await open_unix_listener(path)
    path.unlink()
    second = await open_unix_listener(path)
    await first.aclose()
    await first.aclose()
    async with await trio.open_unix_socket(str(path)):
        pass
    await second.aclose()
    assert not path.exists()


async def test_a_path_that_is_too_long_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        await open_unix_listener(tmp_path / ("x" * 120))
    assert files_in(tmp_path) == []


# ---- TLS ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificates(authority: trustme.CA, tmp_path: Path) -> Certificates:
    made = authority.issue_cert("shop.example")
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    return Certificates([CertificateFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))])


@pytest.mark.parametrize("over", ["tcp", "unix"])
async def test_a_server_speaks_tls(
    certificates: Certificates, authority: trustme.CA, tmp_path: Path, over: str
) -> None:
    async with trio.open_nursery() as nursery:
        below = await open_unix_listener(tmp_path / "s") if over == "unix" else (await open_http_listeners())[0]
        server: Server = await nursery.start(serve_http, whoami, [over_tls(below, certificates.context)])
        context = client_context(authority)
        stream = await connect(below)
        async with trio.SSLStream(stream, context, server_hostname="shop.example") as secure:
            assert (await ask(secure)).endswith(b"https unix" if over == "unix" else b"https 127.0.0.1")
        assert server.addresses[0].startswith("unix:" if over == "unix" else "https://127.0.0.1:")
        await server.drain(1)


async def test_an_answer_over_tls_ends_with_a_goodbye(certificates: Certificates, authority: trustme.CA) -> None:
    """A close_notify: without it a client cannot tell the end from a cut (truncation attack)."""
    async with trio.open_nursery() as nursery:
        (below,) = await open_http_listeners()
        server: Server = await nursery.start(serve_http, whoami, [over_tls(below, certificates.context)])
        context = client_context(authority)
        async with trio.SSLStream(await connect(below), context, server_hostname="shop.example") as secure:
            await secure.send_all(GET.replace(b"Host", b"Connection: close\r\nHost"))
            received = b"".join([bytes(data) async for data in secure])  # a bare end would raise
        assert received.startswith(b"HTTP/1.1 200 ")
        await server.drain(1)


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def connect(listener: trio.SocketListener | UnixListener) -> trio.SocketStream:
    if isinstance(listener, UnixListener):
        return await trio.open_unix_socket(listener.path)
    return await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])


# ---- whatever the moment --------------------------------------------------------------------


def test_opening_is_cancelled_without_a_trace(tmp_path: Path) -> None:
    async def tcp() -> None:
        for listener in await open_http_listeners("localhost", reuse_port=True):
            await listener.aclose()

    async def unix() -> None:
        async with await open_unix_listener(tmp_path / "shop.sock"):
            await trio.lowlevel.checkpoint()

    cancel_sweep(tcp, clock=None)
    cancel_sweep(unix, clock=None, check=lambda: left_nothing(tmp_path))


def test_serving_is_cancelled_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "shop.sock"

    async def visit() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, whoami, [await open_unix_listener(path)])
            async with await trio.open_unix_socket(str(path)) as stream:
                await ask(stream)
            nursery.cancel_scope.cancel()

    cancel_sweep(visit, clock=None, check=lambda: left_nothing(tmp_path))


def test_a_handshake_is_cancelled_without_a_trace(certificates: Certificates, authority: trustme.CA) -> None:
    context = client_context(authority)

    async def visit() -> None:
        async with trio.open_nursery() as nursery:
            (below,) = await open_http_listeners()
            await nursery.start(serve_http, whoami, [over_tls(below, certificates.context)])
            stream = await connect(below)
            async with trio.SSLStream(stream, context, server_hostname="shop.example") as secure:
                await ask(secure)
            nursery.cancel_scope.cancel()

    cancel_sweep(visit, clock=None, max_points=60)
