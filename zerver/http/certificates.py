"""TLS for a server: safe defaults, a certificate for each name, and new ones without a restart.

Law: a connection gets the newest certificates that could be loaded. Their files are looked at when somebody connects,
at most once a second; what cannot be loaded is logged once, and the old ones stay in use.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import attrs

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_NO_CHECK_TIME: Final = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name


@attrs.frozen
class CertificateFiles:
    """A certificate chain (leaf first) and its key, both PEM."""

    cert: str
    key: str


class Certificates:
    """Certificates by server name (SNI), reloaded when their files change.

    `context` is what listeners take. The first pair is for clients that name no server, or one that nobody has.
    Raises OSError for a file that cannot be read, ssl.SSLError for one that makes no sense.
    """

    def __init__(self, files: Sequence[CertificateFiles], *, clock: Callable[[], float] = time.monotonic) -> None:
        if not files:
            raise ValueError("at least one certificate is needed")
        self._files = tuple(files)
        self._clock = clock
        self._seen = _state_of(self._files)
        self._looked_at = clock()
        self._load()
        self.context = _server_context()
        self.context.sni_callback = self._choose

    def reload(self) -> bool:
        """Load the files now. False, and one line in the log, if they cannot be used: the old ones stay."""
        try:
            self._load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            _log.error("certificates are not reloaded, the old ones stay: %s", error)
            return False
        return True

    def _load(self) -> None:
        contexts = [_load(pair) for pair in self._files]
        names: dict[str, ssl.SSLContext] = {}
        for pair, context in zip(self._files, contexts, strict=True):
            for name in _names_in(pair, context):
                names.setdefault(name, context)
        self._names: Mapping[str, ssl.SSLContext] = names
        self._default = contexts[0]

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """OpenSSL asks in the midst of a handshake, on the event loop: a `stat` of each file at most once a second."""
        now = self._clock()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            state = _state_of(self._files)
            if state != self._seen:
                self._seen = state  # before it is tried: files that are bad are tried once, not at every handshake
                self.reload()
        connection.context = self._find(name or "")

    def _find(self, name: str) -> ssl.SSLContext:
        name = name.lower().removesuffix(".")
        parent = name.partition(".")[2]
        return self._names.get(name) or self._names.get(f"*.{parent}") or self._default


def _server_context() -> ssl.SSLContext:
    """TLS 1.2 and 1.3, the ciphers of Python's defaults, no compression, no renegotiation."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(pair: CertificateFiles) -> ssl.SSLContext:
    context = _server_context()
    try:
        # A key with a passphrase is refused: without this OpenSSL would ask for it on the terminal, and wait.
        context.load_cert_chain(pair.cert, pair.key, password="")
    except OSError as error:
        raise type(error)(error.errno, f"{_told(error)} ({pair.cert}, {pair.key})") from None
    return context


def _told(error: OSError) -> str:
    """OpenSSL says "PEM lib" of a file without a certificate, of a key that is locked, and of the two exchanged."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    return f"not a certificate and its key, both PEM, without a passphrase [{error.reason or error}]"


def _state_of(files: Iterable[CertificateFiles]) -> tuple[object, ...]:
    return tuple(_stamp(path) for pair in files for path in (pair.cert, pair.key))


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _names_in(pair: CertificateFiles, server: ssl.SSLContext) -> list[str]:
    """The DNS names of a certificate.

    Python tells what is in a certificate only of a peer that it has verified, so a handshake is made with ourselves,
    in memory; it proves that certificate and key work, too. Its dates are not checked: that is for clients to judge.
    """
    with open(pair.cert, "rb") as file:
        leaf = _PEM.search(file.read())
    if leaf is None:
        raise ssl.SSLError(f"no certificate in {pair.cert}")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    trusting.load_verify_locations(cadata=leaf[0].decode("ascii"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = trusting.wrap_bio(to_client, to_server)
    for side in (theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    found: Any = (theirs.getpeercert() or {}).get("subjectAltName", ())  # pairs: ("DNS", "shop.example")
    return [value.lower() for kind, value in found if kind == "DNS"]
