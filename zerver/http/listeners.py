"""Where a server listens: TCP, a Unix socket, and TLS over either.

Law: what is opened here is closed by whoever serves on it, and a Unix socket's file goes with it. A place that somebody
else serves is never taken: a port is shared only by workers who ask for it, and a socket file is replaced only when
nobody answers behind it.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from contextlib import suppress

import trio

#: How many connections the kernel may keep until they are accepted; it takes less if it is told to (somaxconn).
_BACKLOG = 0xFFFF


async def open_http_listeners(
    host: str = "127.0.0.1", port: int = 0, *, reuse_port: bool = False
) -> list[trio.SocketListener]:
    """TCP listeners for serve_http; several if the host has several addresses. port 0: any free one, the same for all.

    reuse_port: share the port with other processes of this user that say so too (SO_REUSEPORT); the kernel spreads
    connections over them. Without it a second server on the same port is an error, as it should be.

    Raises OSError when an address cannot be bound. Whoever gets them closes them; serve_http does.
    """
    sockets = await bind_tcp(host, port, reuse_port=reuse_port)
    try:
        for bound in sockets:
            bound.listen(_BACKLOG)
        return [trio.SocketListener(bound) for bound in sockets]
    except BaseException:
        for bound in sockets:
            bound.close()
        raise


async def bind_tcp(host: str, port: int, *, reuse_port: bool = False) -> list[trio.socket.SocketType]:
    """Sockets that hold the port at every address of the host, and do not listen yet. Raises OSError."""
    found = await trio.socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
    )
    sockets: list[trio.socket.SocketType] = []
    unsupported: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                bound = trio.socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:  # a kernel without IPv6 may still have names with IPv6 addresses
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                unsupported = error
                continue
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and len(sockets) > 1:  # the port that the first one got
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            await bound.bind(address)
        if unsupported is not None and not sockets:
            raise unsupported
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    return sockets


# ---- Unix sockets -----------------------------------------------------------------------------


class UnixListener(trio.abc.Listener[trio.SocketStream]):
    """Listens on a Unix socket; closed, it removes the file, unless another server has put its own there by then."""

    def __init__(self, listener: trio.SocketListener, path: str) -> None:
        self.socket = listener.socket
        self.path = path
        self._listener = listener
        self._file = _identity(path)

    async def accept(self) -> trio.SocketStream:
        return await self._listener.accept()

    async def aclose(self) -> None:
        if self._file is not None and _identity(self.path) == self._file:
            os.unlink(self.path)
        self._file = None
        await self._listener.aclose()


async def open_unix_listener(path: str | os.PathLike[str], mode: int = 0o660) -> UnixListener:
    """Listen on a Unix socket at `path`. mode: who may connect, as of a file; by default its owner and its group.

    A socket file that a killed server left behind is replaced; the new one appears in one step, its mode set.

    Raises FileExistsError if `path` is something else than a socket, OSError if somebody serves there, or if the
    socket cannot be made (a path may have about 100 bytes).
    """
    path = _free_path(path)
    making = f"{path}.{os.getpid()}"  # made aside and moved: nobody finds a socket whose mode is not set yet
    bound = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            await bound.bind(making)
            os.chmod(making, mode)
            bound.listen(_BACKLOG)
            os.rename(making, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(making)
            raise
        return UnixListener(trio.SocketListener(bound), path)
    except BaseException:
        bound.close()
        raise


def _free_path(given: str | os.PathLike[str]) -> str:
    """The absolute path, if a socket can be put there."""
    path = os.path.abspath(given)
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "there is something that is not a socket", path)
    except FileNotFoundError:
        return path
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a server whose queue is full serves, too: EAGAIN
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return path
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another server listens there", path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


# ---- TLS --------------------------------------------------------------------------------------


def over_tls(
    listener: trio.abc.Listener[trio.SocketStream], context: ssl.SSLContext
) -> trio.SSLListener[trio.SocketStream]:
    """The same listener with TLS on every connection. The server makes the handshake, under its own deadline.

    context: one of `Certificates`, or your own.
    """
    return trio.SSLListener(listener, context)


# ---- what listeners and streams say of themselves ----------------------------------------------


def address_of(listener: trio.abc.Listener[trio.abc.Stream]) -> str:
    """Where it listens: "http://127.0.0.1:8000", "unix:/run/shop.sock"; "" for one that is no socket."""
    scheme = "https" if isinstance(listener, trio.SSLListener) else "http"
    below = getattr(listener, "transport_listener", listener)
    if isinstance(below, UnixListener):
        return f"unix:{below.path}"
    sock = getattr(below, "socket", None)
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    return url_of(sock, scheme)


def url_of(bound: trio.socket.SocketType, scheme: str) -> str:
    """The URL of a bound TCP socket."""
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def peer_of(stream: trio.abc.Stream) -> str:
    """The client's IP address, without its port; "unix" on a Unix socket, "" if there is none to be had."""
    sock = getattr(getattr(stream, "transport_stream", stream), "socket", None)
    if sock is None:
        return ""
    if sock.family == socket.AF_UNIX:
        return "unix"
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return ""
    try:
        return str(sock.getpeername()[0])
    except OSError:  # it has left already
        return ""
