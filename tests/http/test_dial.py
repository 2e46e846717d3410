"""What is connected to is what was checked; every way to fail to connect says that nothing was sent."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock, memory_stream_pair

from zerver.errors import AddressRefused, ConnectFailed
from zerver.http.dial import Quiet, TcpDialer, is_public
from zerver.http.outgoing import Origin

PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8", "100.128.0.1"]
PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.255",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1",
    "64:ff9b:1::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


# ---- names and addresses ----------------------------------------------------------------------


class Names(trio.abc.HostnameResolver):
    """Answers with the next of the given lists of addresses, each time it is asked."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def getaddrinfo(self, host: Any, port: Any, family: Any = 0, type: Any = 0, *_: Any) -> list[Any]:
        self.asked += 1
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, type, 0, "", (address, int(port)))
            for address in self.answers.pop(0)
        ]

    async def getnameinfo(self, *_: Any) -> Any:
        raise AssertionError("not asked for")


class Net(trio.abc.SocketFactory):
    """Sockets that connect to nothing, as told for each address, and the order in which they were asked to."""

    def __init__(self, **behaviour: Callable[[], Awaitable[object]]) -> None:
        self.behaviour = behaviour
        self.asked: list[tuple[str, float]] = []
        self.sockets: list[trio.socket.SocketType] = []

    def socket(self, family: Any = -1, type: Any = -1, proto: Any = -1) -> trio.socket.SocketType:
        made = trio.socket.from_stdlib_socket(socket.socket(family, type))
        began = trio.current_time()

        async def connect(address: Any) -> None:
            self.asked.append((address[0], trio.current_time()))
            await self.behaviour[address[0].replace(".", "_").replace(":", "_")]()

        assert began >= 0
        made.connect = connect  # type: ignore[method-assign]  # a real socket, but for the network
        self.sockets.append(made)
        return made


@pytest.fixture
async def resolve() -> AsyncIterator[Callable[[Names], Names]]:
    def use(names: Names) -> Names:
        trio.socket.set_custom_hostname_resolver(names)
        return names

    yield use
    trio.socket.set_custom_hostname_resolver(None)


@pytest.fixture
async def network() -> AsyncIterator[Callable[[Net], Net]]:
    def use(net: Net) -> Net:
        trio.socket.set_custom_socket_factory(net)
        return net

    yield use
    trio.socket.set_custom_socket_factory(None)


async def up() -> None:
    await trio.lowlevel.checkpoint()


async def down() -> None:
    raise OSError(111, "refused")


async def reject_everything() -> None:
    raise AssertionError("must not be connected to")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "2130706433", "0x7f.1", "127.1", "localhost"])
async def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(AddressRefused, match="allow_private"):
        await TcpDialer(allow_private=False)(Origin("http", host, 1))


async def test_a_public_name_for_a_private_address_is_refused(resolve: Any) -> None:
    resolve(Names(["10.0.0.1", "::1"]))
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1, ::1"):
        await TcpDialer(allow_private=False)(Origin("http", "rebind.example", 80))


async def test_of_mixed_addresses_only_the_public_ones_are_tried(resolve: Any, network: Any) -> None:
    resolve(Names(["10.0.0.1", "1.1.1.1"]))
    net = network(Net(**{"1_1_1_1": up, "10_0_0_1": reject_everything}))
    stream = await TcpDialer(allow_private=False)(Origin("http", "a.example", 80))
    assert [address for address, _ in net.asked] == ["1.1.1.1"]
    await stream.aclose()


async def test_a_name_is_resolved_once(resolve: Any, network: Any) -> None:
    names = resolve(Names(["1.1.1.1"], ["127.0.0.1"]))  # a name server that changes its mind
    net = network(Net(**{"1_1_1_1": up, "127_0_0_1": reject_everything}))
    stream = await TcpDialer(allow_private=False)(Origin("http", "rebind.example", 80))
    assert (names.asked, [address for address, _ in net.asked]) == (1, ["1.1.1.1"])
    await stream.aclose()


async def test_the_first_that_answers_wins(resolve: Any, network: Any, autojump_clock: MockClock) -> None:
    resolve(Names(["1.0.0.1", "1.0.0.2", "2600::1", "1.0.0.3"]))
    net = network(Net(**{"1_0_0_1": trio.sleep_forever, "2600__1": down, "1_0_0_2": trio.sleep_forever, "1_0_0_3": up}))
    stream = await TcpDialer(allow_private=False)(Origin("http", "a.example", 80))
    # The second try is of the other family; one that fails is followed at once, one that is silent after 250 ms.
    assert net.asked == [("1.0.0.1", 0), ("2600::1", 0.25), ("1.0.0.2", 0.25), ("1.0.0.3", 0.5)]
    assert isinstance(stream, trio.SocketStream)
    assert [made.fileno() >= 0 for made in net.sockets] == [False, False, False, True]
    await stream.aclose()


async def test_when_none_answers_all_reasons_are_told(resolve: Any, network: Any) -> None:
    resolve(Names(["1.0.0.1", "1.0.0.2"]))
    net = network(Net(**{"1_0_0_1": down, "1_0_0_2": down}))
    with pytest.raises(ConnectFailed) as told:
        await TcpDialer(allow_private=False)(Origin("http", "a.example", 80))
    assert str(told.value) == "http://a.example: 1.0.0.1: Connection refused; 1.0.0.2: Connection refused"
    assert all(made.fileno() == -1 for made in net.sockets)


@pytest.mark.parametrize("addresses", [["1.0.0.1"], ["1.0.0.1", "1.0.0.2"]])
async def test_cancelled_while_connecting(
    resolve: Any, network: Any, autojump_clock: MockClock, addresses: list[str]
) -> None:
    resolve(Names(addresses))
    net = network(Net(**{"1_0_0_1": trio.sleep_forever, "1_0_0_2": trio.sleep_forever}))
    with trio.move_on_after(5) as scope:
        await TcpDialer(allow_private=False)(Origin("http", "a.example", 80))
    assert scope.cancelled_caught
    assert all(made.fileno() == -1 for made in net.sockets)


async def test_an_unknown_host() -> None:
    with pytest.raises(ConnectFailed, match="not found"):
        await TcpDialer(allow_private=True)(Origin("http", "nowhere.invalid", 80))


async def test_a_closed_port() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(ConnectFailed, match=rf"^http://127\.0\.0\.1:{port}: Connection refused$"):
            await TcpDialer(allow_private=True)(Origin("http", "127.0.0.1", port))


# ---- TLS --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def server_tls(authority: trustme.CA, name: str = "localhost") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@asynccontextmanager
async def serving(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handler, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_tls(authority: trustme.CA) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, server_tls(authority), server_side=True)
        await secured.send_all(await secured.receive_some())
        await secured.receive_some()

    async with serving(handler) as port:
        stream = await TcpDialer(allow_private=True, tls=client_tls(authority))(Origin("https", "localhost", port))
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("trouble", ["unknown authority", "wrong name", "no TLS", "hangs up"])
async def test_tls_that_fails(authority: trustme.CA, trouble: str) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        if trouble == "hangs up":
            return
        if trouble == "no TLS":
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return
        secured = trio.SSLStream(
            stream, server_tls(authority, "other.example" if trouble == "wrong name" else "localhost"), server_side=True
        )
        with pytest.raises(trio.BrokenResourceError):
            await secured.do_handshake()

    tls = client_tls(trustme.CA() if trouble == "unknown authority" else authority)
    async with serving(handler) as port:
        with pytest.raises(ConnectFailed, match="TLS failed"):
            await TcpDialer(allow_private=True, tls=tls)(Origin("https", "localhost", port))


async def test_cancelled_in_the_handshake(authority: trustme.CA) -> None:
    scope = trio.CancelScope()

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        scope.cancel()
        assert await stream.receive_some() == b""  # the client has hung up

    async with serving(handler) as port:
        with scope:
            await TcpDialer(allow_private=True, tls=client_tls(authority))(Origin("https", "localhost", port))
        assert scope.cancelled_caught


# ---- quiet? -----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"x", b""])
async def test_a_socket_that_has_something_to_say_is_not_quiet(said: bytes) -> None:
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(one)) for one in socket.socketpair())
    quiet = Quiet(ours)
    assert quiet.look()
    if said:
        await theirs.send_all(said)
    else:
        await theirs.aclose()
    assert not quiet.look()
    assert await quiet.is_read_up()
    await ours.aclose()
    await theirs.aclose()


async def test_a_stream_in_memory_counts_as_quiet() -> None:
    ours, _ = memory_stream_pair()
    assert Quiet(ours).look()
    assert await Quiet(ours).is_read_up()


class Corked(trio.abc.Stream):
    """Holds what is sent back until it is told to send all of it at once."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.held: bytes | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.held is None:
            await self.stream.send_all(data)
        else:
            self.held += bytes(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


async def test_what_lies_in_the_buffer_of_tls_is_seen(authority: trustme.CA) -> None:
    go_on = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        corked = Corked(stream)
        secured = trio.SSLStream(corked, server_tls(authority), server_side=True)
        await secured.receive_some()
        corked.held = b""
        await secured.send_all(b"first")  # two records in one segment
        await secured.send_all(b"second")
        await stream.send_all(corked.held)
        await go_on.wait()

    async with serving(handler) as port:
        stream = await TcpDialer(allow_private=True, tls=client_tls(authority))(Origin("https", "localhost", port))
        quiet = Quiet(stream)
        await stream.send_all(b"?")
        assert await stream.receive_some() == b"first"
        assert quiet.look()  # nothing is left in the socket
        assert not await quiet.is_read_up()
        await trio.aclose_forcefully(stream)
        go_on.set()


async def test_looking_does_not_spoil_a_stream_with_tls(authority: trustme.CA) -> None:
    async def handler(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, server_tls(authority), server_side=True)
        while data := await secured.receive_some():
            await secured.send_all(data)

    async with serving(handler) as port:
        stream = await TcpDialer(allow_private=True, tls=client_tls(authority))(Origin("https", "localhost", port))
        quiet = Quiet(stream)
        for _ in range(3):
            await stream.send_all(b"?")
            assert await stream.receive_some() == b"?"
            assert quiet.look()
            with trio.CancelScope() as scope:
                scope.cancel()
                assert await quiet.is_read_up()  # under cancellation, too
        await stream.aclose()
