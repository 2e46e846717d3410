"""Written: the outline of a recording's body, as msgspec checks it before anybody looks inside.

Law: what does not fit is no recording; that something fits says nothing yet of what its items mean.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec

#: The version of what is written. Another one is refused.
VERSION: Final = 1

#: A time in nanoseconds, or the time between two; signed, since nobody promises that records are in order.
Nanoseconds: TypeAlias = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]

#: A place in one of the lists.
Place: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class Body(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """See `zerver.trace.recording.run`. Lists are as long as they are; who reads an item says what it has to be.

    call: [step, ordinal, effect or number of the parent's member, parent or null, until_ns].
    entry: [call, state, value, error, loser, asked]. ending: [status, reason, cause, value].
    """

    v: int
    run: str
    flow: str
    version: str
    tenant: str
    priority: str
    label: str = ""
    parent: str = ""
    secret: list[str] = []
    sealed: bool = True
    began: Nanoseconds = 0
    values: list[Any] = []
    kinds: list[dict[str, Any]] = []
    nodes: list[dict[str, Any]] = []
    calls: list[list[Any]] = []
    entries: list[list[Any]] = []
    endings: list[list[Any]] = []
    records: list[list[Any]] = []
    ending: Place = 0
    unresolved: list[Place] = []
