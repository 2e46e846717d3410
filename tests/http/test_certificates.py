"""A server shows the certificate for the name it was asked for, the newest one that loads, over TLS 1.2 or later."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from zerver.http.certificates import CertificateFiles, Certificates

CA = trustme.CA()


class Files:
    """Certificates on disk, each made anew when it is asked for; `now` is what the clock says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        self.writes = 0

    def write(self, label: str, *names: str) -> CertificateFiles:
        pair = CertificateFiles(str(self.folder / f"{label}.pem"), str(self.folder / f"{label}.key"))
        made = CA.issue_cert(*names)
        Path(pair.cert).write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        Path(pair.key).write_bytes(made.private_key_pem.bytes())
        self.touch(pair)
        return pair

    def touch(self, pair: CertificateFiles) -> None:
        """No two writes have the same stamp, however coarse the file system's clock is."""
        self.writes += 1
        for path in (pair.cert, pair.key):
            os.utime(path, ns=(self.writes, self.writes))

    def load(self, *pairs: CertificateFiles) -> Certificates:
        return Certificates(pairs, clock=lambda: self.now)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def handshake(certificates: Certificates, name: str | None, **options: object) -> ssl.SSLObject:
    """A client's side of a handshake in memory, after it."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    context.check_hostname = False
    context.set_alpn_protocols(["h2", "http/1.1"])
    for option, value in options.items():
        setattr(context, option, value)
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificates.context.wrap_bio(inward, outward, server_side=True)
    client = context.wrap_bio(outward, inward, server_hostname=name)
    steps: list[Callable[[], None]] = [client.do_handshake, server.do_handshake] * 3
    for step in steps:
        try:
            step()
        except ssl.SSLWantReadError:
            pass
    return client


def shown(certificates: Certificates, name: str | None = None) -> str:
    """The first name in the certificate that a client gets."""
    found = handshake(certificates, name).getpeercert()
    assert found is not None
    return str(found["subjectAltName"][0][1])  # type: ignore[index,misc]  # the stubs know no shape


def test_the_certificate_is_chosen_by_name(files: Files) -> None:
    a = files.write("a", "a.example", "*.a.example")
    b = files.write("b", "b.example", "*.example", "x.a.example")
    certificates = files.load(a, b)
    expected = {
        "a.example": "a.example",
        "A.EXAMPLE": "a.example",
        "y.a.example": "a.example",
        "x.a.example": "b.example",  # the whole name is better than a wildcard
        "b.example": "b.example",
        "z.example": "b.example",
        "p.q.example": "a.example",  # a wildcard is one label; nobody's name gets the first certificate
        "example": "a.example",
        "example.com": "a.example",
    }
    assert {name: shown(certificates, name) for name in expected} == expected
    assert shown(certificates, None) == "a.example"


def test_only_new_versions_and_http_1_1_are_spoken(files: Files) -> None:
    certificates = files.load(files.write("a", "a.example"))
    seen = handshake(certificates, "a.example")
    assert (seen.version(), seen.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
    assert handshake(certificates, "a.example", maximum_version=ssl.TLSVersion.TLSv1_2).version() == "TLSv1.2"
    assert certificates.context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert certificates.context.options & ssl.OP_NO_RENEGOTIATION
    assert certificates.context.options & ssl.OP_NO_COMPRESSION


def test_new_files_are_used_at_the_first_handshake_a_second_later(files: Files) -> None:
    certificates = files.load(files.write("a", "old.example"))
    files.now = 10.0
    assert shown(certificates) == "old.example"
    files.write("a", "new.example")
    files.now = 10.9
    assert shown(certificates) == "old.example"
    files.now = 11.0
    assert shown(certificates) == "new.example"
    assert shown(certificates, "new.example") == "new.example"


@pytest.mark.parametrize("harm", ["key of another", "no file", "no pem", "cut short"])
def test_what_cannot_be_loaded_is_logged_once_and_the_old_one_stays(
    files: Files, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    caplog.set_level(logging.ERROR, "zerver.http.certificates")
    pair = files.write("a", "old.example")
    certificates = files.load(pair)
    match harm:
        case "key of another":
            Path(pair.key).write_bytes(Path(files.write("b", "b.example").key).read_bytes())
        case "no file":
            Path(pair.cert).unlink()
        case "no pem":
            Path(pair.cert).write_bytes(b"\xff" * 100)
        case "cut short":
            Path(pair.cert).write_bytes(Path(pair.cert).read_bytes()[:300])
    for _ in range(5):
        files.now += 10
        assert shown(certificates) == "old.example"
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "certificates are not reloaded, the old ones stay"
    ]
    files.write("a", "new.example")
    files.now += 10
    assert shown(certificates) == "new.example"


def test_a_reload_that_is_asked_for_says_whether_it_worked(files: Files) -> None:
    pair = files.write("a", "old.example")
    certificates = files.load(pair)
    files.write("a", "new.example")
    assert certificates.reload()
    assert shown(certificates) == "new.example"
    Path(pair.cert).unlink()
    assert not certificates.reload()


def test_certificates_that_cannot_be_loaded_at_first_are_an_error_with_their_names(files: Files) -> None:
    a, b = files.write("a", "a.example"), files.write("b", "b.example")
    for wrong in (CertificateFiles(a.cert, b.key), CertificateFiles(a.key, a.cert), CertificateFiles("none", a.key)):
        with pytest.raises(OSError, match=Path(wrong.key).name):
            files.load(wrong)
    with pytest.raises(OSError, match="the key is not that of the certificate"):
        files.load(CertificateFiles(a.cert, b.key))
    with pytest.raises(OSError, match="not a certificate and its key"):
        files.load(CertificateFiles(a.key, a.cert))
    with pytest.raises(ValueError, match="at least one"):
        files.load()


def test_a_key_with_a_passphrase_is_refused_and_not_waited_for(files: Files) -> None:
    pair = files.write("a", "a.example")
    key = load_pem_private_key(Path(pair.key).read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    Path(pair.key).write_bytes(locked)
    with pytest.raises(OSError, match=r"a\.pem"):
        files.load(pair)
