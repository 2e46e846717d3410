"""Places: a journal by its URL, as a command line or an environment names it.

Law: the URL says all, and what it says wrong is named with the cure. `sqlite:///shop.journal` is a file below the
working directory, `sqlite:////var/lib/shop.journal` one by its whole path, `postgresql://…` a database.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from urllib.parse import unquote, urlsplit

from zerver.errors import DefinitionError
from zerver.journal.lines import Cipher
from zerver.journal.postgres import open_postgres_journal
from zerver.journal.retention import keeping
from zerver.journal.sqlite import open_sqlite_journal
from zerver.runtime.journal import Journal

_CURE = "write sqlite:///shop.journal, or postgresql://user@host/database"


def open_journal(
    url: str, *, cipher: Cipher | None = None, keep_secrets: bool = False, keep: float | None = None
) -> AbstractAsyncContextManager[Journal]:
    """The journal at a URL. cipher: encrypts it, as that of `read_cipher`; the same for all who open it. keep_secrets:
    whether it may hold secret slots in the clear. keep: seconds for which runs stay that have ended, while this process
    has it open; None: nothing is deleted, unless you call `prune`.

    Raises DefinitionError for a URL that names none; entered, as `open_sqlite_journal` and `open_postgres_journal`.
    """
    opened = _opened(url, cipher, keep_secrets)
    return opened if keep is None else keeping(opened, keep)


def _opened(url: str, cipher: Cipher | None, keep_secrets: bool) -> AbstractAsyncContextManager[Journal]:
    parts = urlsplit(url)
    if parts.scheme in ("postgresql", "postgres"):
        return open_postgres_journal(url, cipher=cipher, keep_secrets=keep_secrets)
    path = unquote(parts.path).removeprefix("/")
    if parts.scheme != "sqlite" or parts.netloc or not path or parts.query or parts.fragment:
        # The URL is not repeated: it may hold a password.
        raise DefinitionError(f"a journal was given a URL of {parts.scheme or 'no scheme'!r} that names none", _CURE)
    return open_sqlite_journal(path, cipher=cipher, keep_secrets=keep_secrets)
