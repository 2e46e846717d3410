"""Tallies: what each tenant takes, for as long as it matters.

Law: memory is bounded whatever names come. A tenant that runs nothing, waits for nothing and has its whole rate left is
forgotten, because a new tally would say the same. The first 4,096 have a tally each; beyond these, names nobody
has configured share 128, each name choosing the least busy of six that its hash deals it (shuffle sharding, as
Kubernetes does it: two names have all six in common once in 5.4e9). Shared tallies bound no rate and no number of
runs: one name must not be refused for another's use, and the seats and the queue protect the process all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final, Literal, TypeAlias

from zerver.core.load import Neighbours
from zerver.core.quotas import Bucket, Pushback, Quota
from zerver.core.shares import Share
from zerver.core.tenants import Tenant, Tenants

EXACT: Final = 4096
_SHARED: Final = 128
_HAND: Final = 6
_MOMENT: Final = 1.0  # seconds
_SWEEP: Final = 0.1  # seconds between two searches for tallies to forget, when there is no more room
_TRIES: Final = 4  # to take a token before somebody else does

#: The bounds of its own that a tenant can reach.
Bound: TypeAlias = Literal["tenant over its rate", "tenant over its runs"]


class Tally:
    """What one tenant takes here.

    shares: its place in each class. bucket: what is left of its rate, if that is bounded. bounded: by a rate, or by a
    number of runs. cost: seconds of CPU in all, for the neighbours. shared: by many tenants. pushback: of its own, so
    that who hammers is told to stay away, and nobody else.
    """

    __slots__ = (
        "_looked", "_seen", "bounded", "bucket", "cost", "elsewhere", "name", "parked", "pushback", "rule", "shared",
        "shares", "waiting",
    )  # fmt: skip

    def __init__(self, name: str, rule: Tenant, now: float, *, shared: bool = False) -> None:
        self.name = name
        self.rule = rule
        self.shared = shared
        self.bucket = None if rule.rate is None else Bucket(rule.rate, rule.bucket, now)
        self.bounded = rule.rate is not None or rule.runs is not None
        # Any: what waits in them is a Waiting, which knows its tally.
        self.shares: tuple[Share[Any], ...] = (Share(rule.weight), Share(rule.weight), Share(rule.weight))
        self.waiting = self.parked = 0  # runs, of all classes
        self.pushback = Pushback()
        self.cost = 0.0
        self.elsewhere = 0  # runs in other processes, when they were last asked
        self._looked = now
        self._seen: float | None = None  # what they had spent by then

    @property
    def under_way(self) -> int:
        """Runs that run, wait or are parked here."""
        first, second, third = self.shares
        return first.running + second.running + third.running + self.waiting + self.parked

    def claim(self, neighbours: Neighbours | None, now: float) -> Bound | None:
        """Take a token and a place among the runs, for a run that the caller counts in then; or say what there is none
        of, and nothing is taken. The caller has just looked elsewhere.

        What is taken is published first, and then looked at again: of two processes that take the last one at once, at
        least one sees the other, and neither has it unseen. Both may give it up: a bound is kept, if need be for a
        moment too strictly.
        """
        runs, bucket = self.rule.runs, self.bucket
        for _ in range(_TRIES):
            if runs is not None and self.under_way + self.elsewhere >= runs:
                return "tenant over its runs"
            if bucket is not None and not bucket.take(now):
                return "tenant over its rate"
            if neighbours is None:
                return None
            self.publish(neighbours, now, claimed=1)
            usage = neighbours.elsewhere(self.name)
            self.elsewhere = usage.running
            crowded = runs is not None and self.under_way + usage.running >= runs
            if bucket is not None:  # with its token back: did anybody take one from where it took its own?
                bucket.give_back()
                crowded = bucket.heed(usage.refill, now) or crowded
            if not crowded:
                if bucket is not None:
                    bucket.take(now)
                return None
            self.publish(neighbours, now)
        return "tenant over its rate"

    def give_back(self) -> None:
        """A run that was counted in the rate did not begin."""
        if self.bucket is not None:
            self.bucket.give_back()

    def publish(self, neighbours: Neighbours, now: float, claimed: int = 0) -> None:
        """Tell the other processes. claimed: runs that are not counted yet."""
        refill = 0.0 if self.bucket is None else self.bucket.refill(now)
        neighbours.publish(self.name, self.under_way + claimed, refill, self.cost)

    def idle(self, now: float) -> bool:
        """Whether a new tally would say the same."""
        return not self.under_way and (self.bucket is None or self.bucket.full(now))

    def look_elsewhere(self, neighbours: Neighbours, now: float) -> float:
        """Take over what the other processes have done for this tenant. Gives the seconds of CPU they spent on it since
        the last time, if that was a moment ago: what was spent while nobody waited here is not held against it.

        Costs that have become smaller are those of processes that have ended: nothing is taken back for them.
        """
        usage = neighbours.elsewhere(self.name)
        self.elsewhere = usage.running
        if self.bucket is not None:
            self.bucket.heed(usage.refill, now)
        before, self._seen = self._seen, usage.cost
        since, self._looked = now - self._looked, now
        return 0.0 if before is None or since > _MOMENT else max(0.0, usage.cost - before)

    def obey(self, rule: Tenant, now: float) -> None:
        """The rule has been replaced; what is under way goes on and counts. Weights are the caller's to change."""
        self.rule = rule
        self.bounded = rule.rate is not None or rule.runs is not None
        if rule.rate is None:
            self.bucket = None
        elif self.bucket is None:
            self.bucket = Bucket(rule.rate, rule.bucket, now)
        else:
            self.bucket.retune(rule.rate, rule.bucket, now)


class Tallies:
    """The tallies of one process. settled: whether an idle tally is owed nothing by the queues either."""

    def __init__(self, tenants: Tenants, settled: Callable[[Tally], bool]) -> None:
        self.tenants = tenants
        self._settled = settled
        self._by_name: dict[str, Tally] = {}
        self._shared: list[Tally] = []
        self._sweep_at = 64  # tallies; twice what the last sweep left, so that a sweep costs an arrival nothing much
        self._sweep_after = -float("inf")

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str, now: float) -> Tally:
        """The tally of a tenant; opened if need be."""
        return self._by_name.get(name) or self._open(name, now)

    def find(self, name: str) -> Tally | None:
        """The tally of a tenant, if it has one of its own."""
        return self._by_name.get(name)

    def quota(self, name: str, now: float) -> Quota | None:
        """What is left of a tenant's rate; None when it is not bounded."""
        tally = self._by_name.get(name)
        if tally is not None:
            return None if tally.bucket is None else tally.bucket.quota(now)
        rule = self.tenants.get(name)
        return None if rule.rate is None else Bucket(rule.rate, rule.bucket, now).quota(now)

    def replace(self, tenants: Tenants, now: float) -> list[Tally]:
        """Treat tenants by other rules from now on. Gives the tallies whose weight has changed."""
        self.tenants = tenants
        changed: list[Tally] = []
        for tally in [*self._by_name.values(), *self._shared]:
            rule = _shared_rule(tenants) if tally.shared else tenants.get(tally.name)
            if rule.weight != tally.rule.weight:
                changed.append(tally)
            tally.obey(rule, now)
        return changed

    def _open(self, name: str, now: float) -> Tally:
        by_name = self._by_name
        if len(by_name) >= self._sweep_at and now >= self._sweep_after:
            self._sweep(now)
        if len(by_name) >= EXACT and name not in self.tenants.named:
            return self._deal(name, now)
        tally = by_name[name] = Tally(name, self.tenants.get(name), now)
        return tally

    def _sweep(self, now: float) -> None:
        for tally in [tally for tally in self._by_name.values() if tally.idle(now)]:
            if self._settled(tally):
                del self._by_name[tally.name]
        self._sweep_at = min(EXACT, max(64, 2 * len(self._by_name)))
        self._sweep_after = now + _SWEEP

    def _deal(self, name: str, now: float) -> Tally:
        """The least busy of the six shared tallies that belong to a name."""
        if not self._shared:
            rule = _shared_rule(self.tenants)
            self._shared = [Tally("", rule, now, shared=True) for _ in range(_SHARED)]
        return min((self._shared[card] for card in deal(name)), key=lambda tally: tally.under_way)


def deal(name: str) -> tuple[int, ...]:
    """The six tallies of 128 that belong to a name: the same in every process, and all of them different."""
    # A cryptographic hash, as names may be chosen by whoever asks; Python's own hash differs between processes.
    number = int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    cards = list(range(_SHARED))
    hand = []
    for left in range(_SHARED, _SHARED - _HAND, -1):
        number, place = divmod(number, left)
        hand.append(cards.pop(place))
    return tuple(hand)


def _shared_rule(tenants: Tenants) -> Tenant:
    return Tenant(weight=tenants.default.weight)
