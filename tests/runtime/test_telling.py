"""Of a run that somebody must look at, somebody is told: the app, an observer, or else the log."""

from __future__ import annotations

import pytest
import trio

from zerver import App, Done, Flow, effect, step
from zerver.runtime import Result, open_runtime
from zerver.runtime.alarm import Alarm


@effect(kind="pay", access="write")
async def pay() -> None:
    await trio.sleep_forever()


@step
async def buy() -> Done:
    await pay().with_policy(timeout=1.0)
    return Done()


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
async def test_somebody_is_told_of_an_unresolved_run(
    watched: bool, hooked: bool, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    alarms: list[Alarm] = []
    told: list[Result] = []
    app = App(on_unresolved=alarms.append if hooked else None)
    async with open_runtime(app, observers=[told.append] if watched else []) as runtime:
        result = await runtime.run(Flow("shop", [buy]))
    assert result.unresolved
    assert (len(alarms), len(told)) == (hooked, watched)
    why = "pay in buy may or may not have happened"
    logged = [f"run {result.run_id} of flow 'shop' is unresolved: {why}"]
    assert caplog.messages == ([] if watched or hooked else logged)
