"""Asking a running server: its API below `/_zerver/api/`, over TCP, TLS or a Unix socket.

Law: one question, one answer, one connection, and never longer than a few seconds. Whatever goes wrong is one line that
says what to do about it. Of the standard library alone, for a terminal has nothing to wait for beside the answer.
"""

from __future__ import annotations

import json
import socket
import ssl
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import click

_SECONDS: Final = 5.0
_MOST: Final = 16 << 20  # bytes of an answer
_LOCAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class NoAnswer(click.ClickException):
    """Nobody answers, or not to us."""

    exit_code = 2


@attrs.frozen
class Asking:
    """Where a server is, and what shows that we may ask it.

    address: `http://127.0.0.1:8000`, `https://…` or `unix:/run/shop.sock`. token: "" for none. page: the path of its
    page.
    """

    address: str
    token: str = attrs.field(default="", repr=False)
    page: str = "/_zerver"

    def get(self, path: str) -> dict[str, Any]:
        """The answer to `GET {page}/api/{path}`. Raises NoAnswer."""
        connection = _connection(self.address)
        headers = {"Accept": "application/json", "Connection": "close"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request("GET", f"{self.page}/api/{path}", headers=headers)
            response = connection.getresponse()
            body = response.read(_MOST)
        except (OSError, HTTPException) as error:
            raise NoAnswer(
                f"{self.address} does not answer: {str(error) or type(error).__name__}; is it running? "
                "Start it by `zerver serve MODULE:APP`, or say where it is by --url"
            ) from None
        finally:
            connection.close()
        return self._read(response, body)

    def _read(self, response: HTTPResponse, body: bytes) -> dict[str, Any]:
        cure = _CURES.get(response.status)
        if cure is not None:
            raise NoAnswer(f"{self.address} answered {response.status}: {cure}")
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if response.status != 200 or not isinstance(answer, dict):
            raise NoAnswer(f"{self.address} answered {response.status}, and nothing that a Zerver says")
        return answer


_CURES: Final = {
    401: "it wants its token: give --token, which it printed when it started",
    403: "it is not asked from here: ask it by the address that it printed when it started",
    404: "its page is off: start it with the page on, as `zerver config` tells",
    429: "too many wrong tokens; wait a minute",
}


class _Unix(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(self.path)


def _connection(address: str) -> HTTPConnection:
    if address.startswith("unix:"):
        return _Unix(address.removeprefix("unix:"))
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NoAnswer(f"{address!r} is no address; give one as http://127.0.0.1:8000 or unix:/run/shop.sock")
    if parts.scheme == "http":
        return HTTPConnection(parts.hostname, port, timeout=_SECONDS)
    context = ssl.create_default_context()
    if parts.hostname in _LOCAL:  # a certificate is for a name on the net; on the loopback there is nobody between
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return HTTPSConnection(parts.hostname, port, timeout=_SECONDS, context=context)
