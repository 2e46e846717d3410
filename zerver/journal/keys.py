"""Keys: what encrypts a journal, read from a file that an operator keeps.

Law: a key is never an argument or a message: the file is named, and nothing of what stands in it is repeated. The first
key encrypts, each of them opens: so a new one goes before the old one, and the old one goes when no run is left that
was written with it. Precedent: MultiFernet of cryptography.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from zerver.errors import DefinitionError
from zerver.journal.lines import Cipher

_MAKE = "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"


def read_cipher(path: str | os.PathLike[str]) -> Cipher:
    """The cipher of the Fernet keys in a file: one a line; blank lines and those that begin with # are passed over.

    Raises DefinitionError for a file that cannot be read, that others than its owner can read, without a key, or with
    something else in it; and without the package cryptography.
    """
    words = _words(Path(path))
    try:
        from cryptography.fernet import Fernet, MultiFernet  # lazy: most journals have no cipher
    except ImportError as error:
        raise DefinitionError(
            "a journal is to be encrypted, and cryptography is missing", "pip install 'zerver[encrypt]'"
        ) from error
    keys = []
    for number, word in words:
        try:
            keys.append(Fernet(word))
        except ValueError:
            raise DefinitionError(f"{path}, line {number}: this is no key", f"make one by {_MAKE}") from None
    return MultiFernet(keys)


def _words(path: Path) -> Sequence[tuple[int, str]]:
    """The lines that are to be keys, by their number."""
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not ASCII"
        raise DefinitionError(
            f"the keys of the journal cannot be read from {path}: {why}", f"make one by {_MAKE}"
        ) from None
    if mode & 0o077:
        raise DefinitionError(f"the keys of the journal in {path} can be read by others", f"chmod 600 {path}")
    words = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    found = [(number, word) for number, word in words if word and not word.startswith("#")]
    if not found:
        raise DefinitionError(f"there is no key in {path}", f"make one by {_MAKE}")
    return found
