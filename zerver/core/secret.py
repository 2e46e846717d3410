"""Secrets: values that are handed on and never shown.

Law: whatever shows a value shows a mask for this one: repr, str, a format, a log line, an exception's locals. What
writes values out (JSON, pickle) refuses it. Only `reveal()` gives it, so that its uses can be found by one search.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import Final, Generic, NoReturn, TypeVar

T = TypeVar("T")

MASK: Final = "‹secret›"


class Secret(Generic[T]):
    """A value whose repr is ‹secret›. Equal to another one with the same value; texts are compared in constant time."""

    __slots__ = ("__value",)  # mangled, so that no walk over attributes comes upon it by a name it would try

    def __init__(self, value: T) -> None:
        self.__value = value

    def reveal(self) -> T:
        """The value itself."""
        return self.__value

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, its = self.__value, other.reveal()
        if isinstance(mine, str) and isinstance(its, str):
            return compare_digest(mine.encode("utf-8", "surrogatepass"), its.encode("utf-8", "surrogatepass"))
        return bool(mine == its)

    def __hash__(self) -> int:
        return hash(self.__value)

    def __bool__(self) -> bool:
        return bool(self.__value)

    def __copy__(self) -> Secret[T]:
        return self

    def __deepcopy__(self, memo: object) -> Secret[T]:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not written anywhere; hand reveal() to who needs it")
