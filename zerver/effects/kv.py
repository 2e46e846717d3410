"""Keys and values as effects: small state that lives outside the run.

Law: values are JSON-like (None, bool, int, float, str, bytes, lists and dicts of them), so that every store can keep
them; a key belongs to one store, and every verb is atomic by itself.
"""

from __future__ import annotations

from zerver.core.effects import Access, Effect, EffectKind
from zerver.effects.catalogue import makes


def _kind(name: str, access: Access) -> EffectKind[..., object]:
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
    """Set the key. ttl: seconds until it is forgotten."""
    return Effect(PUT, (key, value), {"ttl": ttl})


@makes(ADD)
def add(key: str, value: object, *, ttl: float | None = None) -> Effect[bool]:
    """Set the key if nobody has; whether it was set now. ttl: seconds until it is forgotten."""
    return Effect(ADD, (key, value), {"ttl": ttl})


@makes(DELETE)
def delete(key: str) -> Effect[bool]:
    """Forget the key; whether it was there."""
    return Effect(DELETE, (key,))


@makes(INCREMENT)
def increment(key: str, by: int = 1) -> Effect[int]:
    """Add to the key's number, 0 if it has none yet; gives the new number."""
    return Effect(INCREMENT, (key, by))
