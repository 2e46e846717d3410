"""Connecting to a PostgreSQL server: names to addresses, one address after another, and what a connection begins with.

Law: nothing here blocks the loop (names are looked up in a thread), and each address has its own share of patience:
libpq's own `connect_timeout` does not work for those who do not block.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final

import attrs
import psycopg
import trio
from psycopg import pq
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_attempts, conninfo_to_dict, make_conninfo

from zerver.errors import DatabaseDown, DefinitionError
from zerver.sql.postgres_line import forget_waits, wait_for
from zerver.sql.postgres_link import Link

# Said unless conninfo says otherwise. A peer that has vanished without a word is noticed within half a minute.
_DEFAULTS: Final[Mapping[str, object]] = {
    "application_name": "zerver",
    "gssencmode": "disable",  # or each connection begins with a question that few servers are asked on purpose
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
    "connect_timeout": 5,
}

# What `fetch` stands on: a statement alone is a transaction that only reads. Writes say that they write.
# The last line: a backend notices during a statement that nobody is there any more, where it can (PostgreSQL 14 can).
_SETTINGS: Final = """
set default_transaction_read_only = on; set client_encoding = 'UTF8'; set datestyle = 'ISO';
set intervalstyle = 'postgres'; set bytea_output = 'hex'; set standard_conforming_strings = on;
set statement_timeout = {timeout}; set idle_in_transaction_session_timeout = {timeout};
select set_config(name, '1s', false) from pg_settings where name = 'client_connection_check_interval';
"""


@attrs.frozen
class Address:
    """Where the server is, and as whom to go there. statement_timeout: seconds, 0 for none."""

    params: Mapping[str, Any]
    statement_timeout: float
    known: AdaptersMap

    @property
    def name(self) -> str:
        """As errors call it: never with the password."""
        shown = [f"{key}={self.params[key]}" for key in ("host", "port", "dbname", "user") if self.params.get(key)]
        return f"postgres {' '.join(shown)}".strip()


def read_address(conninfo: str, statement_timeout: float, known: AdaptersMap) -> Address:
    """The address in a conninfo string or a postgresql:// URL. DefinitionError if it is neither."""
    try:
        given = conninfo_to_dict(conninfo)
        float(given.get("connect_timeout") or 0)
    except (psycopg.Error, ValueError) as error:
        said = str(error).strip()
        raise DefinitionError(
            f"postgres() cannot read its conninfo: {said}", "write postgresql://user@host/db, or host=… dbname=…"
        ) from None  # the error behind it holds the whole string, with its password
    return Address({**_DEFAULTS, **given}, statement_timeout, known)


async def open_link(address: Address) -> Link:
    """A connection, set up. DatabaseDown if none of the addresses gives one; the message is what each of them said."""
    try:
        attempts = await _attempts(address.params)
    except (psycopg.Error, OSError) as error:
        raise DatabaseDown(" ".join(str(error).split())) from error
    said: list[str] = []
    for attempt in attempts:
        patience = float(address.params["connect_timeout"]) or float("inf")
        with trio.move_on_after(patience) as limit:
            try:
                return await _connected(make_conninfo("", **attempt), address)
            except DatabaseDown as error:
                said.append(str(error))
        if limit.cancelled_caught:
            said.append(f"{attempt.get('hostaddr') or attempt.get('host') or 'the server'}: no answer in {patience:g}s")
    raise DatabaseDown("; ".join(dict.fromkeys(said)))


async def _attempts(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What to try, in order: each host's addresses."""
    if _has_names(params):
        return list(await trio.to_thread.run_sync(conninfo_attempts, params, abandon_on_cancel=True))
    return list(conninfo_attempts(params))


def _has_names(params: Mapping[str, Any]) -> bool:
    default = next((option.val for option in pq.Conninfo.get_defaults() if option.keyword == b"host"), None)
    hosts = str(params.get("host") or (default or b"").decode()).split(",")
    return not params.get("hostaddr") and not all(map(_needs_no_look_up, hosts))


def _needs_no_look_up(host: str) -> bool:
    if not host or host.startswith(("/", "@")):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _connected(conninfo: str, address: Address) -> Link:
    try:
        pgconn = pq.PGconn.connect_start(conninfo.encode())
    except psycopg.Error as error:
        raise DatabaseDown(" ".join(str(error).split())) from error
    try:
        while (status := pgconn.connect_poll()) != pq.PollingStatus.OK:
            if status == pq.PollingStatus.FAILED:
                raise DatabaseDown(" ".join(pgconn.get_error_message().split()))
            await wait_for(pgconn.socket, status)
        pgconn.nonblocking = 1
        link = Link(pgconn, address.known)
        timeout = round(address.statement_timeout * 1000)
        for result in await link.run_script(_SETTINGS.format(timeout=timeout).encode()):
            if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
                raise DatabaseDown(f"the server refuses a setting: {result.get_error_message()}")
    except BaseException as error:
        forget_waits(lambda: pgconn.socket)
        pgconn.finish()
        if isinstance(error, psycopg.Error):
            raise DatabaseDown(" ".join(str(error).split())) from error
        raise
    return link
