"""Keys and values as effects: small state that lives outside the run.

Law: values are plain (bool, int, float, str, bytes, lists and dicts of them, None inside these), so that every store
can keep them; a key belongs to one store, and every verb is atomic by itself.
"""

from __future__ import annotations

from typing import Any

from zerver.core.effects import Access, Effect, EffectKind
from zerver.effects.catalogue import makes
from zerver.errors import DefinitionError


def _kind(name: str, access: Access) -> EffectKind[..., Any]:
    # exact: a store's verbs are atomic; one that raises, or is cancelled, has not happened.
    return EffectKind(f"kv.{name}", access, target="kv", exact=True)


GET = _kind("get", "read")
PUT = _kind("put", "write")
ADD = _kind("add", "write")
DELETE = _kind("delete", "write")
INCREMENT = _kind("increment", "write")


@makes(GET)
def get(key: str) -> Effect[object]:
    """The value of the key, or None."""
    return Effect(GET, (key,))


@makes(PUT)
def put(key: str, value: object, *, ttl: float | None = None) -> Effect[None]:
    """Set the key. ttl: seconds until it is forgotten. Raises DefinitionError for a value that is not plain."""
    return Effect(PUT, (key, _plain("put", key, value)), {"ttl": _lifetime("put", key, ttl)})


@makes(ADD)
def add(key: str, value: object, *, ttl: float | None = None) -> Effect[bool]:
    """Set the key if nobody has; whether it was set now. As `put` otherwise."""
    return Effect(ADD, (key, _plain("add", key, value)), {"ttl": _lifetime("add", key, ttl)})


@makes(DELETE)
def delete(key: str) -> Effect[bool]:
    """Forget the key; whether it was there."""
    return Effect(DELETE, (key,))


@makes(INCREMENT)
def increment(key: str, by: int = 1) -> Effect[int]:
    """Add to the key's number, 0 if it has none yet; gives the new number. Its time to live stays what it was."""
    return Effect(INCREMENT, (key, by))


# ---- what can be kept -----------------------------------------------------------------------

_SCALARS = (bool, int, float, str, bytes)


def _plain(verb: str, key: str, value: object) -> object:
    if value is None:
        raise DefinitionError(f"kv.{verb}({key!r}) was given None, which means that there is no value", "use kv.delete")
    found = _stranger(value)
    if found is not None:
        raise DefinitionError(
            f"kv.{verb}({key!r}) was given a {type(found).__name__}, which not every store can keep",
            "give bool, int, float, str, bytes, or lists and dicts of them; attrs.asdict() makes such a dict",
        )
    return value


def _stranger(value: object) -> object:
    """The first thing inside a value that is not plain, or None."""
    if type(value) is list:
        return next((found for item in value if (found := _stranger(item)) is not None), None)
    if type(value) is dict:
        inner = [key for key in value if type(key) is not str]
        return inner[0] if inner else _stranger(list(value.values()))
    return None if value is None or type(value) in _SCALARS else value


def _lifetime(verb: str, key: str, ttl: float | None) -> float | None:
    if ttl is not None and not ttl > 0:
        raise DefinitionError(f"kv.{verb}({key!r}, ttl={ttl!r})", "give seconds above 0, or None to keep it")
    return ttl
