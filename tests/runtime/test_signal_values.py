"""A signal's value is of the type that the step waits for, wherever the run is; what does not fit changes nothing."""

from __future__ import annotations

from datetime import date
from functools import partial
from typing import Annotated, Any

import attrs
import pytest
import trio

from tests.journal.test_lines import Rot
from tests.runtime.dying import Witness, charged, statuses
from tests.runtime.test_parked import DAY, workers
from zerver import App, Done, Flow, Pause, Slot, step
from zerver.core.plan import compile_plan
from zerver.core.signals import fitted, wanted
from zerver.errors import DamagedJournal, InvalidData
from zerver.journal import Disk, open_memory_journal
from zerver.runtime import open_runtime
from zerver.testing import client
from zerver.trace import replay


@attrs.frozen
class Approval:
    by: str
    on: date
    cents: int = 0


Approved = Annotated[Approval, Slot("approved")]
Counted = Annotated[int, Slot("counted")]

GOOD = {"by": "Ann", "on": "2026-03-01", "cents": 5}
MADE = Approval("Ann", date(2026, 3, 1), 5)


@step
async def ask() -> Approved | Pause:
    await charged(1)
    return Pause("go", DAY)


@step
def count(approved: Approved) -> Counted | Pause:
    return Pause("go", DAY)


@step
def tell(approved: Approved) -> Done:
    return Done((approved.by, approved.on.year, approved.cents))


def on_typed(approval: Approval) -> Done:
    return Done((approval.by, approval.on.year, approval.cents))


def on_typed_for(order: int, approval: Approval) -> Done:
    return Done((order, approval.by))


@step
async def ask_by_resume() -> Done | Pause:
    await charged(1)
    return Pause("go", DAY, resume=on_typed)


@step
async def ask_by_anything() -> Done | Pause:
    await charged(1)
    return Pause("go", DAY, resume=Done)


FLOWS = {
    "slot": Flow("slot", [ask, tell], durability="sync"),
    "resume": Flow("resume", [ask_by_resume], durability="sync"),
    "async": Flow("slot", [ask, tell], durability="async"),
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("by", [0, 1])
async def test_a_run_that_was_put_down_gets_what_it_waits_for(name: str, by: int, autojump_clock: object) -> None:
    async with workers(FLOWS[name]) as (*runtimes, witness):
        parked = await runtimes[0].run(FLOWS[name])
        for bad, places in (
            ("yes", ["value"]),
            (None, ["value"]),
            ({"by": 1, "on": "2026-03-01"}, ["value.by"]),
            ({"by": 1, "on": "never"}, ["value.by", "value.on"]),
        ):
            with pytest.raises(InvalidData) as refused:
                await runtimes[by].signal(parked.run_id, "go", bad)
            assert [at for at, _ in refused.value.problems] == places
        await trio.sleep(100)
        assert statuses(witness.disk) == [""]
        assert not await runtimes[by].signal(parked.run_id, "other", "what is not waited for is not looked at")
        assert await runtimes[by].signal(parked.run_id, "go", GOOD)
        await trio.sleep(1)
        (result,) = witness.ended
        assert result.value == ("Ann", 2026, 5)
        assert replay(compile_plan(FLOWS[name]), result.timeline).divergence is None


@pytest.mark.parametrize("flow", [Flow("slot", [ask, tell]), Flow("resume", [ask_by_resume])], ids=["slot", "resume"])
@pytest.mark.parametrize("good", [GOOD, MADE], ids=["as JSON", "as it is"])
async def test_a_run_in_memory_gets_it_too(flow: Flow, good: object, autojump_clock: object) -> None:
    ended: list[Any] = []
    async with (
        open_runtime(App(), handlers=Witness().handlers(), observers=[ended.append]) as runtime,
        trio.open_nursery() as nursery,
    ):
        run_id: str = await nursery.start(partial(runtime.run, flow))
        await trio.sleep(1)
        with pytest.raises(InvalidData, match="by"):
            await runtime.signal(run_id, "go", {"on": "2026-03-01"})
        assert await runtime.signal(run_id, "go", good)
    assert ended[0].value == ("Ann", 2026, 5)


async def test_a_resume_that_says_nothing_takes_anything(autojump_clock: object) -> None:
    flow = Flow("any", [ask_by_anything], durability="sync")
    async with workers(flow) as (first, _, witness):
        parked = await first.run(flow)
        assert await first.signal(parked.run_id, "go", [1, {"a": None}])
        await trio.sleep(1)
        assert witness.ended[0].value == [1, {"a": None}]


async def test_what_was_said_to_a_pause_that_is_over_is_not_judged_by_the_next(autojump_clock: object) -> None:
    flow = Flow("both", [ask, count, tell], gives=[Counted], durability="sync")
    async with workers(flow) as (first, second, witness):
        parked = await first.run(flow)
        assert await first.signal(parked.run_id, "go", GOOD, 1)
        await trio.sleep(1)
        for runtime in (first, second):  # whoever heard no answer says it again
            assert not await runtime.signal(parked.run_id, "go", GOOD, 1)
        with pytest.raises(InvalidData):
            await second.signal(parked.run_id, "go", GOOD)
        assert await second.signal(parked.run_id, "go", 3, 2)
        await trio.sleep(1)
        assert witness.ended[0].status == "done"


async def test_one_that_nobody_could_judge_fails_the_run_and_is_no_defect(autojump_clock: object) -> None:
    flow = FLOWS["slot"]
    async with workers(flow) as (first, _, witness):
        parked = await first.run(flow)
        async with open_memory_journal(witness.disk) as journal:  # a process without the code
            assert await journal.signal(parked.run_id, "go", b'"yes"')
        assert first.successor is not None
        first.successor.wakes.call(parked.run_id)
        await trio.sleep(1)
        (result,) = witness.ended
        assert result.status == "failed"
        assert isinstance(result.cause, InvalidData)
        assert len(witness.world.undone) == 1


async def test_over_http_it_is_422_with_the_places_and_the_url_is_not_used_up(autojump_clock: object) -> None:
    app = App()
    app.route("POST", "/orders", FLOWS["slot"])
    async with (
        open_memory_journal() as journal,
        client(app, handlers=Witness().handlers(), journal=journal) as asking,
    ):
        url = (await asking.post("/orders")).headers["location"]
        bad = await asking.post(url, json={"by": 1, "on": "never"})
        assert (bad.status, bad.headers["content-type"]) == (422, "application/problem+json")
        assert [one["at"] for one in bad.json()["errors"]] == ["body.by", "body.on"]
        assert (await asking.get(url)).json()["status"] == "parked"
        good = await asking.post(url, json=GOOD)
        assert good.json() == ["Ann", 2026, 5]


async def test_a_run_that_was_cancelled_takes_nothing_over_http(autojump_clock: object) -> None:
    app = App()
    app.route("POST", "/orders", FLOWS["slot"])
    async with (
        open_memory_journal() as journal,
        client(app, handlers=Witness().handlers(), journal=journal) as asking,
    ):
        reply = await asking.post("/orders")
        url = reply.headers["location"]
        assert await asking.runtime.cancel(reply.json()["run"], "enough")
        late = await asking.post(url, json=GOOD)
        assert (late.status, late.json()["detail"]) == (410, "the run was cancelled")
        assert (await asking.get(url)).json()["status"] == "cancelled"


@pytest.mark.parametrize("keys", [Rot(0x40), None], ids=["others", "none"])
async def test_who_has_not_the_keys_of_a_run_gives_it_nothing_that_would_be_read_by_nobody(
    keys: Rot | None, autojump_clock: object
) -> None:
    disk, app = Disk(), App()
    app.route("POST", "/orders", FLOWS["slot"])
    async with (
        open_memory_journal(disk, cipher=Rot(0x80)) as journal,
        open_memory_journal(disk, cipher=keys) as misread,
        client(app, handlers=Witness().handlers(), journal=journal) as right,
        client(app, handlers=Witness().handlers(), journal=misread) as wrong,
    ):
        reply = await right.post("/orders")
        run_id, url = reply.json()["run"], reply.headers["location"]
        with pytest.raises(DamagedJournal, match="cannot be read"):
            await wrong.runtime.signal(run_id, "go", GOOD)
        with pytest.raises(DamagedJournal, match="cannot be read"):
            await wrong.runtime.cancel(run_id, "enough")
        refused = await wrong.post(url, json=GOOD)
        assert (refused.status, refused.json()["detail"]) == (500, "the run cannot be read here")
        assert (await right.post(url, json=GOOD)).json() == ["Ann", 2026, 5]
        assert not await wrong.runtime.cancel(run_id, "it is over")
        assert statuses(disk) == ["done"]


# ---- types ----------------------------------------------------------------------------------


@step
def several() -> tuple[Approved, Counted] | Pause:
    return Pause("go", 1)


@step
def maybe() -> Approved | Pause | None:
    return Pause("go", 1)


@step
def nothing() -> Pause | None:
    return Pause("go", 1)


class Unknown:
    """A class that JSON cannot become."""


def by_unknown(said: Unknown) -> Done:
    return Done(said)


@pytest.mark.parametrize(
    ("one", "resume", "value", "becomes"),
    [
        (several, None, [GOOD, 2], (MADE, 2)),
        (maybe, None, None, None),
        (maybe, None, GOOD, MADE),
        (nothing, None, None, None),
        (nothing, partial(lambda more, said: said, 1), 5, 5),
        (nothing, on_typed, GOOD, MADE),
        (nothing, partial(on_typed), GOOD, MADE),
        (nothing, partial(on_typed_for, 7), GOOD, MADE),
        (nothing, str, 5, 5),
        (nothing, print, 5, 5),
    ],
)
def test_what_a_value_becomes(one: Any, resume: Any, value: object, becomes: object) -> None:
    (node,) = compile_plan(Flow("one", [one], gives=[Approved, Counted][: len(one.signature.writes)])).line
    assert fitted(value, wanted(node, Pause("go", 1, resume=resume))) == becomes


@pytest.mark.parametrize(
    ("one", "resume", "value"),
    [(several, None, [GOOD]), (several, None, GOOD), (nothing, None, 5), (maybe, None, 5), (nothing, by_unknown, {})],
)
def test_what_does_not_fit(one: Any, resume: Any, value: object) -> None:
    (node,) = compile_plan(Flow("one", [one], gives=[Approved, Counted][: len(one.signature.writes)])).line
    with pytest.raises(InvalidData, match="said"):
        fitted(value, wanted(node, Pause("go", 1, resume=resume)), "said")


def test_an_object_is_what_it_is() -> None:
    given = Unknown()
    assert fitted(given, int) is given
