"""A seed fixes Trio's order and chance, is undone afterwards, and a failing order can be replayed."""

import random

import pytest
import trio
from trio._core import _run as trio_run

from zerver.errors import InternalError
from zerver.testing.scheduler import SeedFailure, explore, mock_clock, seeded


async def interleaving() -> str:
    seen: list[str] = []

    async def say(name: str) -> None:
        for _ in range(20):
            seen.append(name)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for name in "abcde":
            nursery.start_soon(say, name)
    return "".join(seen)


def order_of(seed: int) -> str:
    with seeded(seed):
        return trio.run(interleaving)


def test_the_same_seed_gives_the_same_order() -> None:
    assert len({order_of(7) for _ in range(10)}) == 1


def test_different_seeds_give_different_orders() -> None:
    assert len({order_of(seed) for seed in range(20)}) == 20


def test_a_seed_reaches_the_random_module_too() -> None:
    with seeded(3):
        first = random.random()
    with seeded(3):
        assert random.random() == first


def test_everything_is_restored_even_after_an_error() -> None:
    before = (trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate(), random.getstate())
    with pytest.raises(ZeroDivisionError), seeded(1), seeded(2):
        random.random()
        trio.run(interleaving)
        raise ZeroDivisionError
    assert (trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate(), random.getstate()) == before


def test_one_seeded_may_be_entered_twice_at_once() -> None:
    seed = seeded(5)
    with seed:
        first = random.random()
        with seed:
            assert random.random() == first
        second = random.random()
    with seed:
        assert (random.random(), random.random()) == (first, second)


def test_seeded_decorates_plain_functions() -> None:
    @seeded(4)
    def draw() -> float:
        return random.random()

    assert draw() == draw()
    assert draw.__name__ == "draw"


async def test_seeded_decorates_async_functions_and_holds_while_they_run() -> None:
    @seeded(4)
    async def draw() -> tuple[bool, str]:
        return trio_run._ALLOW_DETERMINISTIC_SCHEDULING, await interleaving()

    # Trio numbers its tasks through a whole run; only their order among themselves goes into the shuffle.
    assert await draw() == await draw()
    assert (await draw())[0] is True


@pytest.mark.parametrize("name", ["_ALLOW_DETERMINISTIC_SCHEDULING", "_r"])
def test_a_trio_without_the_private_hooks_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(trio_run, name)
    with pytest.raises(InternalError, match=r"trio \d.* has no trio\._core\._run\._ALLOW_DETERMINISTIC_SCHEDULING"):
        seeded(0).__enter__()


async def lost_update() -> None:
    """Two tasks read, wait and write. Some orders lose an update."""
    balance = 0

    async def deposit() -> None:
        nonlocal balance
        await trio.lowlevel.checkpoint()
        seen = balance
        if random.random() < 0.1:
            await trio.lowlevel.checkpoint()
        balance = seen + 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deposit)
        nursery.start_soon(deposit)
    if balance != 2:
        raise RuntimeError(f"balance is {balance}")


def test_explore_finds_the_order_that_breaks_a_program_and_says_how_to_replay_it() -> None:
    with pytest.raises(SeedFailure) as caught:
        explore(lost_update)
    seed = caught.value.seed
    assert str(caught.value) == (
        f"seed {seed} fails: RuntimeError: balance is 1\n  replay: explore(lost_update, seeds=[{seed}])"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(SeedFailure, match=f"seed {seed} fails"):
        explore(lost_update, seeds=[seed])


def test_explore_tells_the_errors_inside_a_group() -> None:
    async def two_errors() -> None:
        raise ExceptionGroup("", [ValueError("one"), KeyError("two")])

    with pytest.raises(SeedFailure, match=r"seed 0 fails: ValueError: one; KeyError: 'two'"):
        explore(two_errors)


def test_explore_counts_the_orders_it_has_seen() -> None:
    async def alone() -> None:
        await trio.sleep(1)

    async def crowd() -> None:
        await interleaving()

    assert explore(crowd, seeds=range(30)).schedules == 30
    assert explore(alone, seeds=[1, 1, 1]).seeds == 3
    assert explore(alone, seeds=[1, 1, 1]).schedules == 1


def test_the_mock_clock_lets_a_hundred_days_pass() -> None:
    async def a_hundred_days() -> float:
        start = trio.current_time()
        await trio.sleep(100 * 86_400)
        return trio.current_time() - start

    assert trio.run(a_hundred_days, clock=mock_clock()) == 100 * 86_400
