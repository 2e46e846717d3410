"""The constructors of zerver.effects.clock make data of the right kind; performed, they tell Trio's time."""

from __future__ import annotations

import datetime

import pytest
from trio.testing import MockClock

from zerver import App, Done, Flow, step
from zerver.effects import clock
from zerver.errors import DefinitionError
from zerver.runtime import open_runtime


def test_an_effect_is_data() -> None:
    assert (clock.now().kind, clock.now().args) == (clock.NOW, ())
    assert (clock.monotonic().kind, clock.monotonic().args) == (clock.MONOTONIC, ())
    assert (clock.sleep(1.5).kind, clock.sleep(1.5).args) == (clock.SLEEP, (1.5,))
    assert {kind.access for kind in (clock.NOW, clock.MONOTONIC, clock.SLEEP)} == {"read"}
    assert [kind.instant for kind in (clock.NOW, clock.MONOTONIC, clock.SLEEP)] == [True, True, False]


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan")])
def test_time_cannot_be_slept_backwards(seconds: float) -> None:
    with pytest.raises(DefinitionError) as raised:
        clock.sleep(seconds)
    assert raised.value.problem == f"clock.sleep({seconds!r})"
    assert raised.value.cure == "give seconds, 0 or more"


def test_every_constructor_is_found_in_the_code_of_a_step() -> None:
    @step
    async def ask() -> Done:
        await clock.now()
        await clock.sleep(0)
        return Done(await clock.monotonic())

    assert [mention.kind for mention in ask.mentions] == [clock.NOW, clock.SLEEP, clock.MONOTONIC]


async def test_the_runtime_performs_them_without_a_capability(autojump_clock: MockClock) -> None:
    @step
    async def ask() -> Done:
        moment, before = await clock.now(), await clock.monotonic()
        await clock.sleep(100)
        return Done((moment, await clock.monotonic() - before))

    async with open_runtime(App()) as runtime:
        moment, slept = (await runtime.run(Flow("ask", [ask]))).unwrap()
    assert moment.tzinfo is datetime.UTC
    assert slept == pytest.approx(100)


async def test_a_sleep_ends_at_the_deadline_of_the_run(autojump_clock: MockClock) -> None:
    @step
    async def doze() -> Done:
        await clock.sleep(100)
        return Done()

    async with open_runtime(App()) as runtime:
        assert (await runtime.run(Flow("doze", [doze], deadline=1))).status == "deadline"
