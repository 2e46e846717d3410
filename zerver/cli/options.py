"""What `zerver serve` was asked for, checked, as one value.

Law: what cannot work together is refused here, on one line and with status 2, before anything is opened or started.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

import attrs
import click

from zerver.cli.limits import read_limits
from zerver.core.settings import Settings
from zerver.errors import DefinitionError
from zerver.http import CertificateFiles, Certificates, ForwardedForm, Limits, ParserName, Trust, is_local
from zerver.runtime.tenants import TenantsFile
from zerver.ui import Access, new_token


class WrongOption(click.ClickException):
    """An option makes no sense, alone or beside another."""

    exit_code = 2


@attrs.frozen
class ServeOptions:
    """The options of `zerver serve`, under their own names. host and port: None for those not given. settings: all
    others that were said, on the command line or elsewhere. config: the file that was named for them.

    worker: the file descriptor that leads to the supervisor; None in a process that has none. listener: that of a
    listening socket which the supervisor has opened. neighbours: that of what workers tell each other, and the row of
    this one. no_jobs: the app's jobs are left to others.
    """

    app: str
    host: str | None
    port: int | None
    unix: str | None
    unix_mode: int
    workers: int
    parser: ParserName
    tls_cert: Sequence[str]
    tls_key: Sequence[str]
    proxy_headers: Sequence[str]
    proxy_form: ForwardedForm
    allow_host: Sequence[str]
    limit: Sequence[str]
    tenants: str | None
    timeline: bool
    drain: float
    settings: Settings
    config: str | None = None
    worker: int | None = None
    listener: int | None = None
    neighbours: tuple[int, int] | None = None
    no_jobs: bool = False

    def __attrs_post_init__(self) -> None:
        if self.unix is not None and (self.host is not None or self.port is not None):
            raise WrongOption("--unix takes the place of --host and --port; give one or the other")
        if len(self.tls_cert) != len(self.tls_key):
            raise WrongOption(
                "each --tls-cert needs its --tls-key, in the same order; "
                f"there are {len(self.tls_cert)} and {len(self.tls_key)}"
            )
        self.trust()
        self.limits()

    @property
    def open_to_others(self) -> bool:
        """Whether strangers can connect, and nobody has said for which hosts it answers."""
        return self.unix is None and not is_local(self.bind_host) and not self.allow_host

    @property
    def has_page(self) -> bool:
        """Whether there is a live page. Through a Unix socket nobody could be told from a stranger."""
        mode = self.settings.page.mode
        return self.unix is None and (mode == "on" or (mode == "auto" and is_local(self.bind_host)))

    @property
    def knows_token(self) -> bool:
        """Whether the operator has chosen the page's token."""
        return self.settings.page.token is not None

    def access(self) -> Access:
        """The locks of the page. Raises WrongOption."""
        page = self.settings.page
        try:
            return Access(new_token() if page.token is None else page.token.reveal(), hosts=page.hosts)
        except DefinitionError as error:
            raise WrongOption(f"{error.problem}; {error.cure}") from None

    @property
    def bind_host(self) -> str:
        return "127.0.0.1" if self.host is None else self.host

    @property
    def bind_port(self) -> int:
        return 8000 if self.port is None else self.port

    @property
    def place(self) -> str:
        """Where to listen, for messages."""
        return self.unix if self.unix is not None else f"{self.bind_host}:{self.bind_port}"

    def trust(self) -> Trust:
        # A page that rebinds its name to our address (DNS rebinding) asks for a name; an address it cannot forge.
        hosts = ("localhost",) if self.open_to_others else self.allow_host
        try:
            return Trust(self.proxy_headers, hosts, self.proxy_form, addresses=self.open_to_others)
        except DefinitionError as error:
            raise WrongOption(f"{error.problem}; {error.cure}") from None

    def limits(self) -> Limits:
        return read_limits(self.limit)

    def tenants_file(self) -> TenantsFile | None:
        """The file of tenants that was asked for, read; None without one."""
        if self.tenants is None:
            return None
        try:
            if self.neighbours is not None and self.neighbours[1] > 0:
                return TenantsFile(self.tenants, log=lambda _: None)  # the first worker tells for all
            return TenantsFile(self.tenants)
        except DefinitionError as error:
            raise WrongOption(f"{error.problem}; {error.cure}") from None

    def certificates(self) -> Certificates | None:
        """The certificates that were asked for, loaded; None without TLS."""
        if not self.tls_cert:
            return None
        try:
            return Certificates(list(map(CertificateFiles, self.tls_cert, self.tls_key)))
        except (OSError, ssl.SSLError) as error:
            raise WrongOption(f"no TLS: {error.strerror or error}") from None

    def worker_arguments(self, port: int) -> list[str]:
        """The arguments of a worker that does the same on this port; who supervises it is added by the supervisor."""
        listen = ["--unix", self.unix] if self.unix is not None else ["--host", self.bind_host, "--port", str(port)]
        repeated = {
            "--tls-cert": self.tls_cert,
            "--tls-key": self.tls_key,
            "--proxy-headers": self.proxy_headers,
            "--allow-host": self.allow_host,
            "--limit": self.limit,
            "--tenants": [] if self.tenants is None else [self.tenants],
            "--config": [] if self.config is None else [self.config],
            "--log": [self.settings.log.form],
            "--page": ["on" if self.has_page else "off"],
            "--trace-db": [self.settings.trace.db],
            "--journal-lease": [f"{self.settings.serve.journal_lease:g}"],
            "--journal-keys": [self.settings.serve.journal_keys] if self.settings.serve.journal_keys else [],
        }
        return [
            *(self.app, *listen, "--parser", self.parser, "--proxy-form", self.proxy_form),
            *(word for option, values in repeated.items() for value in values for word in (option, value)),
            *(["--timeline"] if self.timeline else []),
            *(["--no-jobs"] if self.no_jobs else []),
            *("--drain", str(self.drain)),
        ]
