"""Calls: one effect asked for by one step of one run.

Law: a call is identity, not state. Its key is made of (run, step, ordinal) alone, so that every attempt, restart and
replay of the run asks with the same one.
"""

from __future__ import annotations

from typing import Any

from zerver.core.effects import Effect, IdempotencyKey
from zerver.core.joins import Join


class Call:
    """One effect asked for by a step.

    step: the step's name in the plan. ordinal: "1" for the first effect of the step, "2.0" for the first member of
    the join that was its second. parent: the join's call, for a member. until_ns: when the nested flow around the
    step is out of time.
    """

    __slots__ = ("effect", "ordinal", "parent", "run_id", "step", "until_ns")

    def __init__(
        self,
        run_id: str,
        step: str,
        ordinal: str,
        effect: Effect[Any],
        parent: Call | None = None,
        until_ns: int | None = None,
    ) -> None:
        self.run_id = run_id
        self.step = step
        self.ordinal = ordinal
        self.effect = effect
        self.parent = parent
        self.until_ns = until_ns

    @property
    def key(self) -> IdempotencyKey:
        """The same at every look; made when somebody looks, since most calls are reads that nobody asks for it."""
        return IdempotencyKey(f"{self.run_id}:{self.step}:{self.ordinal}")

    def member(self, run_id: str, number: int) -> Call:
        """The call of one member of this join."""
        return Call(run_id, self.step, f"{self.ordinal}.{number}", self._parts[number], self, self.until_ns)

    def members(self, run_id: str) -> list[Call]:
        """The calls of all members of this join."""
        step, ordinal, until_ns = self.step, self.ordinal, self.until_ns
        return [Call(run_id, step, f"{ordinal}.{n}", one, self, until_ns) for n, one in enumerate(self._parts)]

    @property
    def _parts(self) -> tuple[Effect[Any], ...]:
        """What the members of this join ask for. Raises TypeError for what is none."""
        join = self.effect
        if not isinstance(join, Join):
            raise TypeError(f"{join!r} is not a join")
        return join.members

    @property
    def name(self) -> str:
        """How the call is named in text: `charge.1 payments.charge`."""
        return f"{self.step}.{self.ordinal} {self.effect.kind.name}"

    def __repr__(self) -> str:
        return f"<call {self.name}>"
