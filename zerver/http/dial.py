"""From an origin to a connected stream: resolve, check, connect, TLS. And how to tell whether it is still quiet.

Law: what is connected to is the very address that was checked. A name is resolved once, here; whoever checks
a name and lets somebody else resolve it again is beaten by a name server that answers twice (DNS rebinding).
Every failure is a ConnectFailed: of the request, not a byte has been sent.
"""

from __future__ import annotations

import os
import select
import ssl
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

import attrs
import trio

from zerver.errors import AddressRefused, ConnectFailed
from zerver.http.outgoing import Origin
from zerver.runtime.groups import unwrapped

Dial = Callable[[Origin], Awaitable[trio.abc.Stream]]
"""Makes a connected stream. Raises ConnectFailed."""

Address = tuple[Any, Any, int, str, Any]
"""An entry of getaddrinfo: (family, type, protocol, "", address)."""

# Seconds until the next address is tried beside the one before: RFC 8305's delay, as in trio.open_tcp_stream.
_HEAD_START: Final = 0.25


class TcpDialer:
    """Dials over TCP, and TLS for https.

    allow_private: whether addresses that are not of the public Internet may be dialled. tls: by default the
    system's trust, hosts verified; made when it is first needed.
    """

    def __init__(self, *, allow_private: bool, tls: ssl.SSLContext | None = None) -> None:
        self._allow_private = allow_private
        self._tls = tls

    async def __call__(self, origin: Origin) -> trio.abc.Stream:
        addresses = await _resolve(origin)
        if not self._allow_private:
            addresses = _public_only(origin, addresses)
        stream = await _connect_any(origin, addresses)
        if origin.scheme == "http":
            return stream
        if self._tls is None:
            self._tls = _default_tls()
        return await _start_tls(origin, stream, self._tls)


# ---- which addresses --------------------------------------------------------------------------

# The IANA special-purpose registry, and two that are not in it. Not `ip_address(...).is_global`: what that says
# has changed between patch releases of Python (gh-113171), and this list must not change unseen.
_PRIVATE_4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' NAT; Alibaba's metadata service
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's platform service: a public address that only its guests can reach
            "169.254.0.0/16",  # link-local; the metadata service of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_PUBLIC_6: Final = IPv6Network("2000::/3")  # all that has been given out; fc00::/7, fe80::/10 and ::1 are not in it
_PRIVATE_6: Final = tuple(
    map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))  # Teredo and others, examples, 6to4
)
_NAT64: Final = IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet. One that embeds an IPv4 address is judged by that."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        embedded = ip.ipv4_mapped or (IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if embedded is None:
            return ip in _PUBLIC_6 and not any(ip in network for network in _PRIVATE_6)
        ip = embedded
    return not any(ip in network for network in _PRIVATE_4)


def _public_only(origin: Origin, addresses: list[Address]) -> list[Address]:
    public = [address for address in addresses if is_public(address[4][0])]
    if not public:
        seen = ", ".join(sorted({address[4][0] for address in addresses}))
        raise AddressRefused(f"{origin}: {seen} is no public address, and allow_private is off")
    return public


async def _resolve(origin: Origin) -> list[Address]:
    try:
        found = await trio.socket.getaddrinfo(origin.host, origin.port, type=trio.socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(f"{origin}: the host was not found: {error}") from error
    return list(found)


# ---- connecting -------------------------------------------------------------------------------


async def _connect_any(origin: Origin, addresses: list[Address]) -> trio.SocketStream:
    """A stream to the first address that answers, each tried a moment after the one before (RFC 8305).

    It is what trio.open_tcp_stream does; but that takes a name and no addresses.
    """
    if len(addresses) == 1:
        try:
            return await _connect(addresses[0])
        except OSError as error:
            raise ConnectFailed(f"{origin}: {_told(error)}") from error
    race = _Race()
    try:
        with unwrapped():
            async with trio.open_nursery() as nursery:
                for address in _alternating(addresses):
                    failed = trio.Event()
                    nursery.start_soon(race.run, address, failed, nursery.cancel_scope)
                    with trio.move_on_after(_HEAD_START):
                        await failed.wait()
        if race.winner is None:
            raise ConnectFailed(f"{origin}: {'; '.join(dict.fromkeys(race.errors))}")
    except BaseException:
        if race.winner is not None:  # cancelled from outside in the very moment of success
            race.winner.socket.close()
        raise
    return race.winner


@attrs.define
class _Race:
    winner: trio.SocketStream | None = None
    errors: list[str] = attrs.field(factory=list)

    async def run(self, address: Address, failed: trio.Event, others: trio.CancelScope) -> None:
        try:
            stream = await _connect(address)
        except OSError as error:
            self.errors.append(f"{address[4][0]}: {_told(error)}")
            failed.set()
            return
        if self.winner is None:
            self.winner = stream
            others.cancel()
        else:
            stream.socket.close()


def _told(error: OSError) -> str:
    """What the system calls it; Trio's own words repeat the address, as a tuple."""
    return os.strerror(error.errno) if error.errno else str(error)


async def _connect(address: Address) -> trio.SocketStream:
    family, kind, protocol, _, place = address
    socket = trio.socket.socket(family, kind, protocol)
    try:
        await socket.connect(place)
    except BaseException:
        socket.close()
        raise
    return trio.SocketStream(socket)


def _alternating(addresses: list[Address]) -> list[Address]:
    """The second address to try is of the other family, if there is one: one of the two may be broken here."""
    other = next((address for address in addresses if address[0] != addresses[0][0]), None)
    if other is None:
        return addresses
    return [addresses[0], other, *(address for address in addresses[1:] if address is not other)]


# ---- TLS --------------------------------------------------------------------------------------


def _default_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()  # reads files: some 20 ms
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _start_tls(origin: Origin, stream: trio.SocketStream, context: ssl.SSLContext) -> trio.abc.Stream:
    try:
        # Not https_compatible: a body that ends with the connection is whole only if TLS says so (RFC 9112 §9.8).
        secured = trio.SSLStream(_Tap(stream), context, server_hostname=origin.host.rstrip("."))
        await secured.do_handshake()
    except (trio.BrokenResourceError, ssl.CertificateError) as error:
        stream.socket.close()
        raise ConnectFailed(f"{origin}: TLS failed: {error.__cause__ or error}") from error
    except BaseException:
        stream.socket.close()
        raise
    return secured


class _Tap(trio.abc.Stream):
    """The stream under TLS, with one addition: while `dry`, a read raises WouldBlock instead of waiting."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.dry = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.dry:
            raise trio.WouldBlock
        return await self.stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


# ---- is it quiet? -----------------------------------------------------------------------------


class Quiet:
    """Tells whether a connection on which nothing is expected is silent. A peer's goodbye is not silence.

    Of a stream without a socket (in memory) it only knows that it heard nothing.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._secured = stream if isinstance(stream, trio.SSLStream) else None
        below = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._tap = below if isinstance(below, _Tap) else None
        bottom = below.stream if isinstance(below, _Tap) else below
        self._poll: select.poll | None = None
        if isinstance(bottom, trio.SocketStream):
            self._poll = select.poll()
            self._poll.register(bottom.socket.fileno(), select.POLLIN)

    def look(self) -> bool:
        """Whether the socket has nothing to read. Does not wait."""
        return self._poll is None or not self._poll.poll(0)

    async def is_read_up(self) -> bool:
        """Whether TLS holds nothing back that has been read from the socket already. Does not wait, nor give up.

        A second record that came with the last one of an answer lies in TLS's own buffer, where no poll of the
        socket can see it: on the next exchange it would be taken for the answer.
        """
        if self._secured is None or self._tap is None:
            return True
        self._tap.dry = True
        try:
            with trio.CancelScope(shield=True):
                await self._secured.receive_some(1)
        except trio.WouldBlock:
            return True
        except trio.BrokenResourceError:
            return False
        finally:
            self._tap.dry = False
        return False
