"""Slots and request parts: what a step may name in its signature.

Law: nothing here holds a value. A Slot says what a cell of a run's state is called; a Part says which piece
of a request fills a parameter; the plan gives both an index, and only the machine keeps the cells.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from zerver.errors import DefinitionError


@attrs.frozen
class Slot:
    """A named, typed cell of one run's state: `CurrentUser = Annotated[User, Slot("auth.user")]`.

    name: unique in a flow, usually `room.noun`. secret: the value never leaves the process: not in the
    timeline's text, not in an export.
    """

    name: str
    secret: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not self.name or self.name != self.name.strip():
            raise DefinitionError(
                f"slot name {self.name!r} is empty or has blanks around it",
                'name a slot like "auth.user"',
            )


@attrs.frozen
class Part:
    """A piece of the request that fills a parameter: the base of Path, Query, Header, Cookie and Body.

    name: what the piece is called in the request; None means: as the parameter. The core only carries parts to
    the machine as inputs; the edge that knows the request reads them (`zerver.http.extract`).
    A class that is itself a part (as `zerver.http.Request`) has a `__zerver_part__`.
    """

    source: ClassVar[str] = "part"
    name: str | None = None

    def named(self, param: str) -> str:
        """What this part is called in the request, given the parameter it fills."""
        return self.name or param


@attrs.frozen
class Deadline:
    """How much time the run had left when the step began; take it as a parameter of that type.

    remaining: seconds, `inf` when the run has no deadline, never below 0.
    """

    remaining: float


def time_left(now_ns: int, *ends_ns: int | None) -> Deadline:
    """Until the first of these ends; None is no end."""
    ends = [end for end in ends_ns if end is not None]
    return Deadline(max(0.0, (min(ends) - now_ns) / 1e9) if ends else float("inf"))
