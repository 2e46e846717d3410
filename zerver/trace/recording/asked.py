"""What was asked for, as data: an effect without its arguments, and the kinds that a run's effects are of.

Law: a kind is written once in a run for each target and operation that its effects have; those may be functions of the
arguments, and what they said is kept. How an effect is performed is not written.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from zerver.core.effects import Effect, EffectKind
from zerver.core.joins import Join
from zerver.core.offload import OffloadKind

Tree: TypeAlias = Any


class Asked:
    """The kinds that were asked for. kinds: what effects refer to by number."""

    def __init__(self) -> None:
        self.kinds: list[Tree] = []
        self._known: dict[tuple[int, str, str], int] = {}
        self._alive: list[object] = []  # whose ids are in the table

    def bare(self, effect: Effect[Any]) -> Tree:
        """An effect without its arguments, or its members."""
        kind = effect.kind
        if isinstance(effect, Join):
            rule = effect.rule
            return self.manner(effect, {"$": "join", "rule": [rule.name, rule.k, rule.after, rule.limit]})
        target = kind.target if isinstance(kind.target, str) else kind.name.partition(".")[0]
        return self.manner(effect, {"$": "effect", "kind": self.number(kind, target, "")})

    def manner(self, effect: Effect[Any], tree: dict[str, Tree]) -> dict[str, Tree]:
        if effect.form != "value":
            tree["form"] = effect.form
        policy, how = effect.policy, effect.compensation
        if policy is not None:
            tree["policy"] = [policy.timeout, policy.retries, policy.backoff, policy.backoff_cap]
        if how is not None:
            makes = (("undo", how.undo), ("by_key", how.by_key), ("resolve", how.resolve))
            tree["undo"] = {name: self.maker(make) for name, make in makes if make is not None}
        return tree

    def maker(self, make: Any) -> Tree:
        """What makes a compensation: a kind of effect, or a function."""
        if isinstance(make, EffectKind):
            return {"$": "kind", "is": self.number(make, "", "")}
        return written_function(make)

    def number(self, kind: EffectKind[..., Any], target: str, operation: str) -> int:
        key = (id(kind), target, operation)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = len(self.kinds)
            self._alive.append(kind)
            flags = [n for n in ("takes_key", "instant", "exact") if getattr(kind, n)]
            tree: Tree = {"name": kind.name, "access": kind.access, "target": target, "operation": operation}
            if flags:
                tree["flags"] = flags
            if isinstance(kind, OffloadKind):
                tree["step"] = kind.step.name
            self.kinds.append(tree)
        return known


def written_function(function: Any) -> Tree:
    """A function by its name."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return {"$": "function", "name": f"{getattr(function, '__module__', None) or ''}:{name}"[:300]}
