"""Decisions: what a step may answer besides a plain value.

Law: a decision is a value; the machine alone acts on it. A plain return value means Continue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import attrs

from zerver.core.effects import Effect
from zerver.errors import DefinitionError

FailKind = Literal[
    "invalid",
    "unauthorized",
    "payment_required",
    "forbidden",
    "not_found",
    "conflict",
    "gone",
    "expired",
    "rate_limited",
    "unavailable",
    "failed",
]

FAIL_KINDS: frozenset[str] = frozenset(get_args(FailKind))


@attrs.frozen
class Continue:
    """Go on; value is what the step writes: one value, or a tuple when it writes several slots."""

    value: object = None


@attrs.frozen
class Need:
    """The explicit form of `await`: perform the effect, then decide by `resume(result)`.

    It gives the same records as an `async def` step; what an awaited effect would raise is the run's failure here.
    """

    effect: Effect[Any]
    resume: Callable[[Any], object]


@attrs.frozen
class Insert:
    """Run these stages next, then the rest of the plan. value: what the step itself writes."""

    stages: Sequence[Any]
    value: object = None


@attrs.frozen
class Replace:
    """Run these stages instead of the rest of the plan. value: what the step itself writes."""

    stages: Sequence[Any]
    value: object = None


@attrs.frozen
class Done:
    """The run has succeeded; value is its result, as a response."""

    value: object = None


@attrs.frozen
class Fail:
    """The run has failed, as expected failures do: what was committed is undone.

    kind: one of a fixed set, which an edge maps to its own statuses. what: the thing it is about, as "cart".
    key: which one, as "cart_1". detail: a sentence for whoever reads the answer; never a secret.
    """

    kind: FailKind
    what: str
    key: str | None = None
    detail: str | None = None

    @classmethod
    def invalid(cls, what: str, key: str | None = None, detail: str | None = None) -> Fail:
        """The request makes no sense as it stands (HTTP 422)."""
        return cls("invalid", what, key, detail)

    @classmethod
    def unauthorized(cls, what: str, key: str | None = None, detail: str | None = None) -> Fail:
        """Nobody knows who is asking (401)."""
        return cls("unauthorized", what, key, detail)

    @classmethod
    def payment_required(cls, what: str, key: str | None = None, detail: str | None = None) -> Fail:
        """Not without money (402)."""
        return cls("payment_required", what, key, detail)

    @classmethod
    def forbidden(cls, what: str, key: str | None = None, detail: str | None = None) -> Fail:
        """Known, but not allowed (403)."""
        return cls("forbidden", what, key, detail)

    @classmethod
    def not_found(cls, what: str, key: str | None = None, detail: str | None = None) -> Fail:
        """There is no such thing (404)."""
        return cls("not_found", what, key, detail)

    @classmethod
    def conflict(cls, what: str, key: str | None = None, detail: str | None = None) -> Fail:
        """The state of things does not allow it (409)."""
        return cls("conflict", what, key, detail)

    @classmethod
    def gone(cls, what: str, key: str | None = None, detail: str | None = None) -> Fail:
        """There was such a thing once (410)."""
        return cls("gone", what, key, detail)

    @classmethod
    def rate_limited(cls, what: str, key: str | None = None, detail: str | None = None) -> Fail:
        """Too much of it (429)."""
        return cls("rate_limited", what, key, detail)

    @classmethod
    def unavailable(cls, what: str, key: str | None = None, detail: str | None = None) -> Fail:
        """Not now (503)."""
        return cls("unavailable", what, key, detail)

    def __str__(self) -> str:
        about = f"{self.what} {self.key}" if self.key is not None else self.what
        return f"{self.kind}: {about}" + (f" ({self.detail})" if self.detail else "")


def _seconds(_: object, field: attrs.Attribute[float], value: float) -> None:
    if not 0 < value < float("inf"):
        raise DefinitionError(
            f"Pause was given {field.name}={value!r}", "give seconds above 0: a parked run must end some day"
        )


@attrs.frozen
class Pause:
    """Park the run until somebody signals `signal`, or `expires` seconds have passed.

    resume: from the signal's value to a decision; without it the value is what the step writes.
    expired: what the run decides when nobody came in time; Fail("expired", signal) by default.
    """

    signal: str
    expires: float = attrs.field(validator=_seconds)
    resume: Callable[[Any], object] | None = None
    expired: object = None


#: Decision classes, for the machine's table and the reading of signatures.
DECISIONS: tuple[type, ...] = (Continue, Need, Insert, Replace, Done, Fail, Pause)
