"""State is kept per target, counts what happened to it, and stays bounded whatever names there are."""

from zerver import Target
from zerver.runtime.targets import Targets


def test_a_target_is_made_when_it_is_first_named_and_kept() -> None:
    targets = Targets({"bank": Target(bulkhead=3, breaker=None)})
    bank = targets.get("bank")
    assert targets.get("bank") is bank
    assert (bank.breaker, bank.bulkhead is not None) == (None, True)
    assert targets.get("shop").breaker is not None  # on unless said otherwise
    assert [seen.name for seen in targets.statistics()] == ["bank", "shop"]


def test_percentiles_need_a_hundred_samples() -> None:
    state = Targets({}).get("bank")
    state.latencies.extend(range(99))
    assert state.percentile(0.5) is None
    state.latencies.append(99)
    assert state.percentile(0.95) == 95
    assert state.percentile(1.0) == 99


def test_samples_are_the_latest() -> None:
    state = Targets({}).get("bank")
    state.latencies.extend([1.0] * 512 + [2.0] * 512)
    assert state.percentile(0.0) == 2.0


async def test_a_bulkhead_shows_who_holds_it() -> None:
    state = Targets({"bank": Target(bulkhead=2)}).get("bank")
    if state.bulkhead is None:
        raise AssertionError("it has no bulkhead")
    async with state.bulkhead:
        assert state.statistics().at_once == 1
    assert state.statistics().at_once == 0


def test_the_number_of_targets_is_bounded() -> None:
    targets = Targets({})
    for number in range(5_000):
        targets.get(f"host-{number}")
    assert len(targets.statistics()) == 4096
    assert "host-4999" in {seen.name for seen in targets.statistics()}


def test_the_least_recently_used_is_forgotten_first() -> None:
    targets = Targets({})
    busy = targets.get("busy")
    for number in range(5_000):
        targets.get(f"host-{number}")
        targets.get("busy")
    assert targets.get("busy") is busy


def test_a_target_with_a_rule_is_never_forgotten() -> None:
    targets = Targets({"bank": Target(bulkhead=1)})
    bank = targets.get("bank")
    for number in range(5_000):
        targets.get(f"host-{number}")
    assert targets.get("bank") is bank
