"""Targets: what is kept about the things that effects talk to.

Law: a Target is configuration only; breakers, bulkheads and budgets that count live in `zerver.runtime.targets`.
"""

from __future__ import annotations

from typing import Literal

import attrs

from zerver.core.breaker import BreakerPolicy
from zerver.core.bulkhead import Adaptive
from zerver.core.policy import Policy
from zerver.errors import DefinitionError


def _check_bulkhead(target: Target, attribute: object, size: object) -> None:
    if size is None or size == "auto" or isinstance(size, Adaptive):
        return
    if not isinstance(size, int) or size < 1:
        raise DefinitionError(
            f"Target(bulkhead={size!r}) is no size", 'give a number from 1, Adaptive(...), "auto", or None for no bound'
        )


@attrs.frozen(kw_only=True)
class Target:
    """How a target is treated, by all effects that name it: `App(targets={"payments": Target(bulkhead=20)})`.

    policy: between the flow's and the kind's. breaker: one for each operation of the target; None for none.
    bulkhead: attempts at once; further ones wait, interactive first, within the run's deadline and outside the
    attempt's own timeout. "auto": what the resources of the handler can do at once, as an HTTP client its connections
    to one origin; no bound where they do not say. Adaptive(...): found out by watching the target. retry_ratio: retries
    that first attempts earn; see RetryBudget.

    Raises DefinitionError for a bulkhead that is no size.
    """

    policy: Policy | None = None
    breaker: BreakerPolicy | None = attrs.field(factory=BreakerPolicy)
    bulkhead: int | Adaptive | Literal["auto"] | None = attrs.field(default="auto", validator=_check_bulkhead)
    retry_ratio: float = 0.1
