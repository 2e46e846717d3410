"""Tallies are exact for thousands of tenants and bounded for any number; idle ones are forgotten; rules can change."""

from __future__ import annotations

from zerver.core.load import Usage
from zerver.core.tallies import EXACT, Tallies, Tally, deal
from zerver.core.tenants import Tenant, Tenants


def tallies(tenants: Tenants | None = None) -> Tallies:
    return Tallies(tenants or Tenants(), lambda tally: True)


def test_who_is_idle_is_forgotten() -> None:
    book = tallies()
    busy = book.get("busy", 0.0)
    busy.waiting = 1
    for number in range(100_000):
        book.get(f"t{number}", float(number))
    assert len(book) <= 128
    assert book.get("busy", 1e6) is busy


def test_a_rate_that_is_not_whole_again_is_remembered() -> None:
    book = tallies(Tenants(default=Tenant(rate=1.0, burst=10)))
    spent = book.get("spent", 0.0)
    assert spent.bucket is not None
    assert spent.bucket.take(0.0)
    for number in range(200):
        book.get(f"t{number}", 0.5)
    assert book.get("spent", 0.5) is spent
    for number in range(200):
        book.get(f"u{number}", 5.0)
    assert book.find("spent") is None


def test_memory_is_bounded_whatever_names_come() -> None:
    book = tallies(Tenants({"named": Tenant(rate=5)}, Tenant(rate=1, weight=2.0)))
    for number in range(3 * EXACT):
        book.get(f"t{number}", 0.0).waiting += 1
    assert len(book) == EXACT
    crowd = book.get("one more", 0.0)
    assert crowd.shared
    assert not crowd.bounded, "one name is not refused for what another did"
    assert crowd.shares[0].weight == 2.0
    assert not book.get("named", 0.0).shared, "who was configured is counted exactly, always"
    assert len(book) == EXACT + 1


def test_a_hand_is_six_different_queues_and_the_same_everywhere() -> None:
    hands = [deal(f"tenant {number}") for number in range(500)]
    assert all(len(set(hand)) == 6 and min(hand) >= 0 and max(hand) < 128 for hand in hands)
    assert {card for hand in hands for card in hand} == set(range(128))
    assert deal("acme") == (1, 98, 91, 39, 92, 114)
    assert deal("\ud800")  # a name that is no text is a name


def test_a_mouse_finds_a_queue_without_the_elephant() -> None:
    book = tallies()
    for number in range(EXACT):
        book.get(f"t{number}", 0.0).waiting += 1
    for _ in range(1000):
        book.get("elephant", 0.0).waiting += 1
    assert all(not book.get(f"mouse {number}", 0.0).waiting for number in range(200))


def test_rules_change_and_counts_stay() -> None:
    book = tallies(Tenants({"acme": Tenant(rate=10)}))
    acme, other = book.get("acme", 0.0), book.get("other", 0.0)
    acme.shares[1].running = 3
    changed = book.replace(Tenants({"acme": Tenant(rate=20, weight=3.0, runs=5)}, Tenant(rate=1)), 0.0)
    assert changed == [acme]
    assert (acme.under_way, acme.rule.runs, acme.bounded, other.bounded) == (3, 5, True, True)
    book.replace(Tenants(), 0.0)
    assert (acme.bucket, acme.bounded) == (None, False)


class Told:
    """Neighbours that have done what they are told to have done, and note what they are told."""

    def __init__(self) -> None:
        self.usage = Usage(0, 0.0, 0.0)
        self.heard: list[tuple[str, int, float, float]] = []

    def publish(self, tenant: str, running: int, refill: float, cost: float) -> None:
        self.heard.append((tenant, running, refill, cost))

    def elsewhere(self, tenant: str) -> Usage:
        return self.usage


def test_what_is_taken_elsewhere_counts_from_the_first_look_on() -> None:
    told, tally = Told(), Tally("acme", Tenant(rate=1, burst=10), 0.0)
    told.usage = Usage(3, 4.0, 50.0)
    assert (tally.look_elsewhere(told, 0.0), tally.elsewhere) == (0.0, 3)
    assert tally.bucket is not None
    assert tally.bucket.quota(0.0).remaining == 6, "a worker that has never seen the tenant gives it no new burst"


def test_what_was_spent_elsewhere_is_charged_while_it_is_news() -> None:
    told, tally = Told(), Tally("acme", Tenant(), 0.0)
    told.usage = Usage(3, 0.0, 50.0)
    assert tally.look_elsewhere(told, 0.0) == 0.0
    told.usage = Usage(2, 0.0, 51.5)
    assert tally.look_elsewhere(told, 0.1) == 1.5
    told.usage = Usage(0, 0.0, 20.0)
    assert tally.look_elsewhere(told, 0.2) == 0.0, "a process has ended, and took its totals with it"
    told.usage = Usage(0, 0.0, 30.0)
    assert tally.look_elsewhere(told, 60.0) == 0.0, "what was spent while nobody waited here is not held against it"


def test_a_claim_that_fails_leaves_nothing_behind() -> None:
    class Race(Told):
        """While the tally claims, somebody else does."""

        def publish(self, tenant: str, running: int, refill: float, cost: float) -> None:
            super().publish(tenant, running, refill, cost)
            self.usage = Usage(1, 10.0, 0.0)

    told, tally = Race(), Tally("acme", Tenant(rate=1, burst=10, runs=1), 0.0)
    assert tally.claim(told, 0.0) == "tenant over its runs"
    assert [running for _, running, _, _ in told.heard] == [1, 0]
    assert tally.under_way == 0

    told, tally = Race(), Tally("acme", Tenant(rate=1, burst=10), 0.0)
    assert tally.claim(told, 0.0) == "tenant over its rate"
    assert told.heard[-1] == ("acme", 0, 10.0, 0.0)


def test_a_token_that_another_takes_meanwhile_is_not_taken_twice() -> None:
    class Other(Told):
        def publish(self, tenant: str, running: int, refill: float, cost: float) -> None:
            super().publish(tenant, running, refill, cost)
            self.usage = Usage(1, 1.0, 0.0)

    told, tally = Other(), Tally("acme", Tenant(rate=1, burst=10), 0.0)
    assert tally.claim(told, 0.0) is None
    assert told.heard[-1] == ("acme", 1, 2.0, 0.0), "the other's token, and its own"
