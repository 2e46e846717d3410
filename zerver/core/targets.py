"""Targets: what is kept about the things that effects talk to.

Law: a Target is configuration only; breakers, bulkheads and budgets that count live in `zerver.runtime.targets`.
"""

from __future__ import annotations

import attrs

from zerver.core.breaker import BreakerPolicy
from zerver.core.policy import Policy


@attrs.frozen(kw_only=True)
class Target:
    """How a target is treated, by all effects that name it: `App(targets={"payments": Target(bulkhead=20)})`.

    policy: between the flow's and the kind's. breaker: None for none. bulkhead: effects at once; further ones wait
    within their timeout. retry_ratio: retries that first attempts earn; see RetryBudget.
    """

    policy: Policy | None = None
    breaker: BreakerPolicy | None = attrs.field(factory=BreakerPolicy)
    bulkhead: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    retry_ratio: float = 0.1
