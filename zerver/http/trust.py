"""Whom a server believes: which peers may speak for a client, and for which hosts it answers. Pure.

Law: what a request says of its own origin (`X-Forwarded-*`, `Forwarded`) is believed only when the peer is a proxy
that was named; else it is not even read. A chain is read from its right end, where our own proxies write: the first
address that is not one of them is the client, and what stands left of it is the client's own tale.

One form of these headers is believed, never both. A proxy that writes `X-Forwarded-For` passes a `Forwarded` on as its
client sent it, and the other way round: a server that reads both is told by strangers who they are. Of
`X-Forwarded-Proto` and `-Host` the last value counts, the one that the nearest proxy wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal, TypeAlias

import attrs

from zerver.errors import DefinitionError, ProtocolViolation
from zerver.http.messages import Caller, RequestHead

ForwardedForm: TypeAlias = Literal["x-forwarded", "forwarded"]

#: More proxies than this stand in front of nobody: a chain is not read further.
MAX_HOPS: Final = 20

_LONGEST_NAME: Final = 253  # characters, without the last dot (RFC 1035 §2.3.4)

_Proxy: TypeAlias = IPv4Network | IPv6Network | str  # text: "unix"
_LABELS = r"[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)*+"
_ALLOWED = re.compile(rf"\*|(?:\*\.)?{_LABELS}|\[[0-9A-Fa-f:.]++\]")
_HOST = re.compile(rf"({_LABELS}\.?|\[[0-9A-Fa-f:.]++\])(?::[0-9]{{1,5}})?")
_PAIR = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]++)=(?:([^\s\",;=]++)|\"((?:[^\"\\]|\\.)*+)\")")
_SEPARATOR = re.compile(r"[ \t]*+([;,])[ \t]*+")


def _all_proxies(given: Iterable[str]) -> frozenset[_Proxy]:
    return frozenset(map(_proxy, given))


def _proxy(text: str) -> _Proxy:
    if text == "unix":
        return "unix"
    try:
        return ip_network(text)
    except ValueError as error:
        raise DefinitionError(
            f"no proxy can be at {text!r}: {error}", "name an address, a network as 10.0.0.0/8, or unix"
        ) from None


def _names(given: Iterable[str]) -> frozenset[str]:
    names = tuple(given)
    for name in names:
        if not _ALLOWED.fullmatch(name):
            raise DefinitionError(
                f"{name!r} is no name of a host", "write shop.example, *.shop.example, [::1], or * for any; no port"
            )
    return frozenset(name.lower() for name in names)


@attrs.frozen
class Trust:
    """What is believed of a request's origin, and which hosts are served.

    - proxies: the peers that may say for whom they ask: addresses, networks ("10.0.0.0/8"), or "unix" for whoever
      connects over a Unix socket.
    - form: what they say it in: "x-forwarded" (X-Forwarded-For, -Proto, -Host) or "forwarded" (RFC 7239).
    - hosts: names that are served, without port: "shop.example", "*.shop.example" (its subdomains, at any depth, not
      itself); others get 421. None, or "*": all are served.
    - addresses: whether IP addresses are served beside the names.

    Raises DefinitionError for what is no network or no name.
    """

    proxies: frozenset[_Proxy] = attrs.field(factory=frozenset, converter=_all_proxies)
    hosts: frozenset[str] = attrs.field(factory=frozenset, converter=_names)
    form: ForwardedForm = "x-forwarded"
    addresses: bool = attrs.field(default=False, kw_only=True)

    def judge(self, head: RequestHead, peer: str = "", scheme: str = "http") -> Caller:
        """Who sent this request. peer: the other end's IP address, "unix" or "". scheme: of the connection.

        Raises ProtocolViolation: 421 for a host that is not served, 400 if none is named, and for what a trusted
        proxy says that cannot be read.
        """
        host = head.headers.get("host") or ""
        caller = Caller(peer, peer, scheme, host)
        if self.proxies and self._is_proxy(peer):
            caller = self._x_forwarded(head, caller) if self.form == "x-forwarded" else self._forwarded(head, caller)
        if self.hosts and "*" not in self.hosts:
            self._check_host(caller.host)
        return caller

    # ---- hosts --------------------------------------------------------------------------------

    def _check_host(self, host: str) -> None:
        if not host:
            raise ProtocolViolation("a Host is required")
        name = _name_of(host)
        if self.addresses and _parsed(name.strip("[]")) is not None:
            return
        if name not in self.hosts and not self._is_below(name):
            raise ProtocolViolation("this host is not served here", status=421)

    def _is_below(self, name: str) -> bool:
        """Whether it is a subdomain of a name that is served. What is longer than any name in the DNS is none: to look
        every one of its suffixes up would cost the square of its length.
        """
        return len(name) <= _LONGEST_NAME and any("*" + name[dot:] in self.hosts for dot in _dots(name))

    # ---- proxies ------------------------------------------------------------------------------

    def _is_proxy(self, address: str) -> bool:
        if address == "unix":
            return "unix" in self.proxies
        ip = _parsed(address)
        return ip is not None and any(not isinstance(proxy, str) and ip in proxy for proxy in self.proxies)

    def _client_of(self, hops: list[str]) -> int:
        """Which of the hops, as written from left to right, is the client: the right-most that is no proxy of ours."""
        for at in range(len(hops) - 1, max(-1, len(hops) - 1 - MAX_HOPS), -1):
            if not self._is_proxy(_node(hops[at])):
                return at
        return max(0, len(hops) - MAX_HOPS)

    def _x_forwarded(self, head: RequestHead, caller: Caller) -> Caller:
        hops = _values(head, "x-forwarded-for")
        client = _address(hops[self._client_of(hops)]) if hops else caller.client
        scheme = (_values(head, "x-forwarded-proto") or [caller.scheme])[-1]
        host = (_values(head, "x-forwarded-host") or [caller.host])[-1]
        return _believed(caller, client, scheme, host)

    def _forwarded(self, head: RequestHead, caller: Caller) -> Caller:
        """Each element is one hop's word; the client's own is the one of the proxy that it spoke to."""
        elements = _parse_forwarded(head.headers.get("forwarded") or "")
        if not elements:
            return caller
        element = elements[self._client_of([element.get("for", "unknown") for element in elements])]
        client = _address(element.get("for", "unknown"))
        return _believed(caller, client, element.get("proto", caller.scheme), element.get("host", caller.host))


#: No proxy is believed, and any host is served.
NO_TRUST: Final = Trust()


def _believed(caller: Caller, client: str, scheme: str, host: str) -> Caller:
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise ProtocolViolation("the proxy names a scheme that is not http or https")
    if host is not caller.host:
        _name_of(host)
    return Caller(caller.peer, client, scheme, host)


# ---- reading ----------------------------------------------------------------------------------


def _values(head: RequestHead, name: str) -> list[str]:
    value = head.headers.get(name)
    return [] if value is None else [part.strip(" \t") for part in value.split(",")]


def _parse_forwarded(text: str) -> list[dict[str, str]]:
    """The elements of a Forwarded field (RFC 7239 §4), from left to right.

    All of it must be well formed: a quote that a client left open would swallow what the proxy adds behind it.
    """
    elements: list[dict[str, str]] = [{}] if text else []
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None or pair[1].lower() in elements[-1]:
            raise ProtocolViolation("the proxy's Forwarded is malformed")
        elements[-1][pair[1].lower()] = pair[2] if pair[2] is not None else re.sub(r"\\(.)", r"\1", pair[3])
        at = pair.end()
        if at == len(text):
            break
        separator = _SEPARATOR.match(text, at)
        if separator is None or separator.end() == len(text):
            raise ProtocolViolation("the proxy's Forwarded is malformed")
        if separator[1] == ",":
            elements.append({})
        at = separator.end()
    return elements


def _node(text: str) -> str:
    """A hop without its port: "192.0.2.1:80", "[2001:db8::1]:80" and bare addresses of both kinds."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _address(hop: str) -> str:
    """A hop's address as text; "" for one that is hidden, or unknown, or no address."""
    ip = _parsed(_node(hop))
    return "" if ip is None else str(ip)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


def _name_of(host: str) -> str:
    """The name in `name[:port]`, as it is compared. Raises ProtocolViolation (400) for what is none."""
    matched = _HOST.fullmatch(host)
    if matched is None:
        raise ProtocolViolation("the Host is malformed")
    return matched[1].lower().removesuffix(".")


def _dots(name: str) -> list[int]:
    return [at for at, character in enumerate(name) if character == "."]


# ---- a server's own name ----------------------------------------------------------------------


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`, a name or an address."""
    if host == "localhost":
        return True
    ip = _parsed(host)
    return ip is not None and ip.is_loopback
