"""Values that are made on the hot path: frozen to the type checkers, cheap to make.

Law: whatever is made once or more per effect or run is a `@value`; everything else is `@attrs.frozen`. So is what is
made as often but kept and given to many: what one of them writes into it by mistake, all the others would read.

attrs freezes a class by raising from its `__setattr__`, so that its own `__init__` must go around that, field by
field: making a frozen value costs twice what a plain one does. Here mypy and pyright see `attrs.frozen` and refuse
assignments, while at run time only the check is left out; equality, hash, slots and repr stay. Precedent: Tin
Tvrtković, "Zero overhead frozen attrs classes".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from attrs import frozen as value
else:

    def value(cls=None, *, eq=True, cache_hash=False):
        """`attrs.frozen` without the run-time check."""
        # NO_OP: nothing is set twice, and a converter would make `__init__` set every field through a hook.
        fast = attrs.setters.NO_OP
        decorate = attrs.define(eq=eq, unsafe_hash=eq or None, cache_hash=cache_hash, on_setattr=fast)
        return decorate if cls is None else decorate(cls)


__all__ = ["value"]
