"""The feed: runs as they end, coalesced, no more kept for a slow page than it may have, and nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.ui.looking import HOST, Browser, open_browser
from zerver.core.timeline import Ending, Timeline
from zerver.http import Event
from zerver.runtime import Result
from zerver.testing.sweep import cancel_sweep
from zerver.trace.batch import Batch
from zerver.ui.feed import INTERVAL, MOST_KEPT, MOST_PAGES, Feed, Watcher


def result(number: int) -> Result:
    return Result(Timeline(f"req_{number}", "f", "1", "t", "default", []), Ending("done"))


class World:
    """A feed, and what it is told."""

    def __init__(self) -> None:
        self.summaries = 0
        self.under_way: list[dict[str, Any]] = []
        self.feed = Feed(self._summary, self._running, self._overview)

    def take(self, numbers: Sequence[int]) -> None:
        self.feed.take([result(number) for number in numbers])

    def watch(self, overview: bool = False) -> Watcher:
        watcher = self.feed.watch(overview=overview)
        assert watcher is not None
        return watcher

    def _summary(self, ended: Result) -> dict[str, Any]:
        self.summaries += 1
        return {"id": ended.run_id}

    def _running(self) -> dict[str, Any]:
        return {"runs": list(self.under_way), "total": len(self.under_way)}

    async def _overview(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"now": trio.current_time()}


def read(event: Event) -> tuple[str | None, Any]:
    return event.event, msgspec.json.decode(event.data)


async def following(watcher: Watcher) -> tuple[str | None, Any]:
    return read(await watcher.__anext__())


async def test_first_it_says_hello_then_what_has_ended(autojump_clock: object) -> None:
    world = World()
    watcher = world.watch()
    assert (await following(watcher))[0] == "hello"
    world.take([1, 2])
    assert await following(watcher) == ("runs", {"runs": [{"id": "req_1"}, {"id": "req_2"}], "missed": 0})
    await watcher.aclose()


async def test_runs_that_end_together_go_out_together(autojump_clock: object) -> None:
    world = World()
    watcher = world.watch()
    await following(watcher)
    world.take([0])
    await following(watcher)
    began = trio.current_time()
    for number in range(1, 11):
        world.take([number])
    name, told = await following(watcher)
    assert (name, len(told["runs"])) == ("runs", 10)
    assert trio.current_time() - began == pytest.approx(INTERVAL)
    await watcher.aclose()


async def test_a_slow_page_is_told_what_it_has_missed(autojump_clock: object) -> None:
    world = World()
    slow, quick = world.watch(), world.watch()
    await following(slow)
    await following(quick)
    world.take(range(10))
    assert len((await following(quick))[1]["runs"]) == 10
    for start in range(10, 1010, 50):
        world.take(range(start, start + 50))
    _, told = await following(slow)
    assert [one["id"] for one in told["runs"]] == [f"req_{number}" for number in range(910, 1010)]
    assert told["missed"] == 1010 - MOST_KEPT
    assert world.summaries == 10 + MOST_KEPT  # of those that were sent
    await following(quick)
    assert world.summaries == 10 + MOST_KEPT  # once for both
    assert world.feed.statistics().missed == told["missed"] + 1000 - MOST_KEPT
    await slow.aclose()
    await quick.aclose()


async def test_a_storm_costs_no_more_summaries_than_are_shown(autojump_clock: object) -> None:
    world = World()
    watcher = world.watch()
    await following(watcher)
    for start in range(0, 5000, 50):
        world.take(range(start, start + 50))
    assert world.summaries == 0
    assert (await following(watcher))[1]["missed"] == 5000 - MOST_KEPT
    assert world.summaries == MOST_KEPT
    await watcher.aclose()


async def test_only_runs_that_are_remembered_are_told(autojump_clock: object) -> None:
    world = World()
    watcher = world.watch()
    await following(watcher)
    batch = Batch(result(number) for number in range(10))
    batch.remembered = batch[:3]
    world.feed.take(batch)
    _, told = await following(watcher)
    assert ([one["id"] for one in told["runs"]], told["missed"]) == (["req_0", "req_1", "req_2"], 7)
    await watcher.aclose()


async def test_while_nobody_looks_nothing_is_made() -> None:
    world = World()
    world.take(range(100))
    watcher = world.watch()
    await watcher.aclose()
    world.take(range(100))
    assert world.summaries == 0
    assert world.feed.statistics().pages == 0


async def test_so_many_pages_and_no_more() -> None:
    world = World()
    watchers = [world.watch() for _ in range(MOST_PAGES)]
    assert world.feed.watch() is None
    await watchers[0].aclose()
    assert world.feed.watch() is not None


async def test_what_is_under_way_is_told_when_it_changes(autojump_clock: object) -> None:
    world = World()
    watcher = world.watch()
    await following(watcher)
    world.under_way = [{"id": "req_1", "took_ns": 1}]
    assert await following(watcher) == ("running", {"runs": world.under_way, "total": 1})
    with trio.move_on_after(10):
        await following(watcher)
        raise AssertionError("nothing had changed")
    world.under_way = []
    assert (await following(watcher))[1]["total"] == 0
    await watcher.aclose()


async def test_an_overview_each_second_for_who_asks(autojump_clock: object) -> None:
    world = World()
    watcher = world.watch(overview=True)
    await following(watcher)
    times = [(await following(watcher))[1]["now"] for _ in range(3)]
    assert [later - times[0] for later in times] == pytest.approx([0, 1, 2])
    await watcher.aclose()


async def test_a_stream_ends_after_an_hour(autojump_clock: object) -> None:
    world = World()
    watcher = world.watch()
    began = trio.current_time()
    async for _ in watcher:
        pass
    assert trio.current_time() - began == pytest.approx(3600)
    await watcher.aclose()


def test_wherever_it_is_cut_it_looks_no_more() -> None:
    async def scenario() -> None:
        world = World()
        watcher = world.watch(overview=True)
        try:
            for number in range(3):
                world.take([number])
                await watcher.__anext__()
        finally:
            await watcher.aclose()
            if world.feed.statistics().pages:
                raise AssertionError("it still looks")

    cancel_sweep(scenario)


# ---- over HTTP ------------------------------------------------------------------------------


async def read_events(browser: Browser, wanted: str, count: int) -> list[Any]:
    """The first events of one kind, from a stream that is then left."""
    found: list[Any] = []
    rest = ""
    headers = {"host": HOST, "cookie": browser.cookie}
    async with browser.client.open_request("GET", "/_zerver/api/feed?overview=1", headers=headers) as request:
        head = await request.head()
        assert head.headers["content-type"] == "text/event-stream"
        assert head.headers["cache-control"] == "no-store"
        assert "content-security-policy" in head.headers
        async for piece in request.pieces():
            rest += piece.decode()
            *events, rest = rest.split("\n\n")
            for event in events:
                fields = dict(line.split(": ", 1) for line in event.splitlines() if not line.startswith(":"))
                if fields.get("event") == wanted:
                    found.append(msgspec.json.decode(fields["data"]))
            if len(found) >= count:
                break
    return found


async def test_runs_reach_the_browser_and_leaving_is_noticed(autojump_clock: object) -> None:
    async with open_browser() as browser:
        await browser.enter()
        found: list[Any] = []

        async def look() -> None:
            found.extend(await read_events(browser, "runs", 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            run = await browser.buy()
        ((told,),) = [one["runs"] for one in found]
        assert (told["id"], told["status"], told["http"]) == (run.run_id, "done", 201)
        await browser.client.wait_idle()
        assert browser.page.feed.statistics().pages == 0


async def test_the_overview_comes_with_it(autojump_clock: object) -> None:
    async with open_browser() as browser:
        await browser.enter()
        (overview,) = await read_events(browser, "overview", 1)
        assert overview["trace"]["feed"]["pages"] == 1


async def test_a_page_too_many_is_sent_away() -> None:
    async with open_browser() as browser:
        await browser.enter()
        watchers = [browser.page.feed.watch() for _ in range(MOST_PAGES)]
        reply = await browser.get("/_zerver/api/feed")
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        for watcher in watchers:
            assert watcher is not None
            await watcher.aclose()
