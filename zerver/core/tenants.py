"""Tenants: on whose behalf runs run, and what each of them may take.

Law: a Tenant is what an operator says about one tenant; what tenants use is counted in `zerver.core.admission`, and
nothing here counts. Whoever is not named is treated by the default, alone: two unknown tenants share nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from zerver.core.priorities import PRIORITIES, Priority, lower_of
from zerver.errors import DefinitionError

#: Whose runs are that nobody has named a tenant for.
NOBODY: Final = "default"


@attrs.frozen(kw_only=True)
class Tenant:
    """What one tenant may take; None for no bound of its own.

    weight: its share of a class beside other tenants that wait. rate: runs begun per second; burst: how many of these
    may come at once after a pause, by default what a second brings, and at least 1. runs: at once. effects: in flight
    at once in each run. parallel: members of a `parallel` or `dag` under way at once in each run. priority: the highest
    class its runs get.

    Raises DefinitionError for numbers that bound nothing or everything.
    """

    weight: float = 1.0
    rate: float | None = None
    burst: float | None = None
    runs: int | None = None
    effects: int | None = None
    parallel: int | None = None
    priority: Priority | None = None

    def __attrs_post_init__(self) -> None:
        for name, number in (("weight", self.weight), ("rate", self.rate)):
            if number is not None and not (_is_number(number) and 0 < number < float("inf")):
                raise DefinitionError(f"tenant {name}={number!r} is not a number above 0", "give a number above 0")
        if self.burst is not None and not (_is_number(self.burst) and 1 <= self.burst < float("inf")):
            raise DefinitionError(
                f"tenant burst={self.burst!r} is not a number of at least 1", "give at least 1, or leave it out"
            )
        for name, count in (("runs", self.runs), ("effects", self.effects), ("parallel", self.parallel)):
            if count is not None and not (type(count) is int and count >= 1):
                raise DefinitionError(
                    f"tenant {name}={count!r} is not a whole number of at least 1", "give at least 1, or leave it out"
                )
        if self.burst is not None and self.rate is None:
            raise DefinitionError(f"tenant burst={self.burst!r} without a rate", "give a rate too, in runs per second")
        if self.priority is not None and self.priority not in PRIORITIES:
            raise DefinitionError(
                f"tenant priority {self.priority!r} is unknown", f"choose one of {', '.join(PRIORITIES)}"
            )

    @property
    def bucket(self) -> float:
        """How many runs may begin at once, if the rate is bounded."""
        return max(1.0, self.rate or 0.0) if self.burst is None else self.burst


def _is_number(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)


@attrs.frozen
class Tenants:
    """The tenants an operator has named, and how all others are treated.

    Raises DefinitionError for what is no Tenant: the first request of that tenant would be too late to find out.
    """

    named: Mapping[str, Tenant] = attrs.field(factory=dict)
    default: Tenant = attrs.field(factory=Tenant)

    def __attrs_post_init__(self) -> None:
        for name, rule in (*self.named.items(), ("default", self.default)):
            if not isinstance(rule, Tenant):
                raise DefinitionError(f"tenant {name!r} has {rule!r} for a rule", "make it Tenant(weight=…, runs=…)")

    def get(self, name: str) -> Tenant:
        """The rule for a tenant."""
        return self.named.get(name, self.default)


def as_tenants(where: str, given: object) -> Tenants:
    """Tenants, or rules by name. Raises DefinitionError for anything else."""
    if given is None or isinstance(given, Tenants):
        return given or Tenants()
    if isinstance(given, Mapping):
        return Tenants(dict(given))
    raise DefinitionError(f"{where} was given {given!r}", 'give it Tenants(…), or {"acme": Tenant(rate=100)}')


@attrs.frozen
class Identity:
    """Who asks: what an app's `identify` reads from a credential.

    priority: the class this credential's runs get, in place of the flow's, the route's and the tenant's; None leaves it
    to them.

    Raises DefinitionError for a priority that there is not.
    """

    tenant: str
    priority: Priority | None = None

    def __attrs_post_init__(self) -> None:
        if self.priority is not None and self.priority not in PRIORITIES:
            raise DefinitionError(
                f"identity of tenant {self.tenant!r}: priority {self.priority!r} is unknown",
                f"choose one of {', '.join(PRIORITIES)}",
            )


def classify(
    said: Priority, rule: Tenant, credential: Priority | None = None, asked: Priority | None = None
) -> Priority:
    """The class of a run. said: by its route, else its flow. asked: by its client, who may lower it and never raise it.

    The credential's word stands in place of the route's and the tenant's, so that one job of a tenant may run as batch,
    and one person's requests as interactive; what only the client says costs nobody else anything.
    """
    priority = credential
    if priority is None:
        priority = said if rule.priority is None else lower_of(said, rule.priority)
    return priority if asked is None else lower_of(priority, asked)
