"""Policies: how an effect is tried, as arithmetic over numbers the caller brings.

Law: a policy decides nothing by itself and reads neither clock nor chance: `now` and the random draw are
arguments. A field that is None says nothing, and the next level of the resolution answers:
effect call > flow > target > kind > default.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import attrs

from zerver.errors import DefinitionError


@attrs.frozen(kw_only=True, cache_hash=True)  # hashed once per effect, to find its way
class Policy:
    """How one effect is tried.

    timeout: seconds for one attempt; the run's deadline bounds it in any case.
    retries: further attempts after the first that failed.
    backoff: seconds; attempt n waits U(0, min(backoff_cap, backoff * 2**n)): AWS "full jitter".
    """

    timeout: float | None = None
    retries: int | None = None
    backoff: float | None = None
    backoff_cap: float | None = None

    def __attrs_post_init__(self) -> None:
        # By hand and not by attrs validators, because steps make policies while they run: a third of the cost.
        if self.retries is not None and self.retries < 0:
            raise DefinitionError(f"policy retries={self.retries!r} is negative", "0 means none")
        for name, seconds in (("timeout", self.timeout), ("backoff", self.backoff), ("backoff_cap", self.backoff_cap)):
            if seconds is not None and not seconds > 0:
                raise DefinitionError(
                    f"policy {name}={seconds!r} must be above 0 seconds", "leave it out for no limit of its own"
                )

    def over(self, weaker: Policy) -> Policy:
        """This policy where it says something, the weaker one elsewhere."""
        return stated(
            self.timeout if self.timeout is not None else weaker.timeout,
            self.retries if self.retries is not None else weaker.retries,
            self.backoff if self.backoff is not None else weaker.backoff,
            self.backoff_cap if self.backoff_cap is not None else weaker.backoff_cap,
        )


@lru_cache(maxsize=1024, typed=True)
def stated(timeout: float | None, retries: int | None, backoff: float | None, backoff_cap: float | None) -> Policy:
    """A policy that says this: steps say the same few things over and over, so the last ones are kept.

    Raises DefinitionError for what no policy may say.
    """
    return Policy(timeout=timeout, retries=retries, backoff=backoff, backoff_cap=backoff_cap)


#: What holds when nobody says anything: one attempt, bounded by the run's deadline alone.
DEFAULT_POLICY = Policy(retries=0, backoff=0.05, backoff_cap=2.0)

#: How hard a rollback tries when nobody says otherwise: until its undo deadline, rather than until its patience ends.
COMPENSATION = Policy(timeout=5.0, retries=20, backoff=0.05, backoff_cap=1.0)

_EMPTY = Policy()


def resolve(levels: Sequence[tuple[str, Policy | None]]) -> tuple[Policy, dict[str, str]]:
    """The policy that applies and, per field, the level that said so; levels go from strong to weak."""
    policy, sources = _EMPTY, {}
    for level, said in [*levels, ("default", DEFAULT_POLICY)]:
        for field in attrs.fields_dict(Policy):
            if (
                said is not None
                and getattr(policy, field) is None
                and getattr(said, field) is not None
                and field not in sources
            ):
                sources[field] = level
        policy = policy.over(said or _EMPTY)
    return policy, sources


def backoff_seconds(policy: Policy, attempt: int, draw: float) -> float:
    """How long to wait after failed attempt `attempt` (0 for the first); draw is uniform in [0, 1).

    Full jitter (Brooker, "Exponential Backoff and Jitter"): the fleet's retries spread out instead of
    arriving as waves.
    """
    base = policy.backoff if policy.backoff is not None else DEFAULT_POLICY.backoff
    cap = policy.backoff_cap if policy.backoff_cap is not None else DEFAULT_POLICY.backoff_cap
    return draw * min(cap or 0.0, (base or 0.0) * 2.0 ** min(attempt, 60))
