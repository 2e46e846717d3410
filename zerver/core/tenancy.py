"""Tenants as TOML, so that an operator can change what they may take without touching the app.

Law: text in, Tenants out, or one DefinitionError that names the line or the key, and the cure. What is misspelt is
refused and never skipped: a cap that nobody reads is a cap that nobody has.

    [default]                     # whoever is not named, each alone
    rate = 10

    [tenants.acme]
    weight = 4
    rate = 100
    burst = 200
    runs = 50
    effects = 4
    parallel = 2
    priority = "default"          # the highest class that its runs get
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from zerver.core.tenants import Tenant, Tenants
from zerver.errors import DefinitionError

_NUMBER: Final = "a number, as 100 or 0.5"
_COUNT: Final = "a whole number, as 50"

#: What each key takes: its types, and how to say so. TOML's true is no number, though Python's is.
_KEYS: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "weight": ((int, float), _NUMBER),
    "rate": ((int, float), _NUMBER),
    "burst": ((int, float), _NUMBER),
    "runs": ((int,), _COUNT),
    "effects": ((int,), _COUNT),
    "parallel": ((int,), _COUNT),
    "priority": ((str,), 'a class in quotes, as "batch"'),
}
_TABLES: Final = ("default", "tenants")


def read_tenants(text: str) -> Tenants:
    """The tenants that a TOML text names; the keys are those of Tenant. Raises DefinitionError."""
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise DefinitionError("it is nested too deeply", "there are two levels: [tenants.NAME], and its keys") from None
    except ValueError as error:  # TOMLDecodeError, and what Python says of a number with thousands of digits
        raise DefinitionError(f"it is not TOML: {error}", "mend that line") from None
    for key in document:
        if key not in _TABLES:
            raise DefinitionError(
                f"{key!r} is no table of this file", f"there are [default] and [tenants.NAME]: {_guess(key, _TABLES)}"
            )
    named = _table("tenants", document.get("tenants", {}))
    return Tenants(
        {name: _tenant(_dotted(name), said) for name, said in named.items()},
        _tenant("default", document.get("default", {})),
    )


def _tenant(where: str, said: object) -> Tenant:
    given = _table(where, said)
    for key, value in given.items():
        if key not in _KEYS:
            raise DefinitionError(f"{where}.{key} is unknown", f"there are {', '.join(_KEYS)}: {_guess(key, _KEYS)}")
        types, wanted = _KEYS[key]
        if type(value) not in types or (isinstance(value, int) and value.bit_length() > 63):  # 64 bits: TOML's own
            raise DefinitionError(f"{where}.{key} is {value!r}", f"give {wanted}")
    try:
        return Tenant(**given)
    except DefinitionError as error:
        raise DefinitionError(f"{where}: {error.problem}", error.cure) from None


def _table(where: str, said: object) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise DefinitionError(f"{where} is {said!r}", f"make it a table, [{where}], with keys below it")
    return said


def _dotted(name: str) -> str:
    """The key of a tenant as TOML writes it, quoted where it has to be."""
    bare = name.replace("-", "").replace("_", "")
    return f"tenants.{name}" if bare.isascii() and bare.isalnum() else f"tenants.{name!r}"


def _guess(key: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    close = get_close_matches(key, list(known), 1)
    return f"did you mean {close[0]}?" if close else "remove it"
