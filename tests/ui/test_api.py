"""The API: what its contract promises, over HTTP, for runs under way, in memory and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.ui.looking import HOST, SECRET, TOKEN, Browser, checkout, open_browser, shop
from zerver import App, Done, Flow, step
from zerver.core.codec import decode_json
from zerver.http import json
from zerver.runtime import open_runtime
from zerver.runtime.supervisor import open_supervisor
from zerver.trace.keeping.store import make_store
from zerver.trace.recording import encode_run
from zerver.trace.summary import summarize
from zerver.trace.telemetry.metrics import Metrics
from zerver.trace.telemetry.prometheus import OPENMETRICS, PLAIN
from zerver.ui import Archive, Server
from zerver.ui.rates import WINDOW

DAY = 1_800_000_000_000_000_000  # nanoseconds since 1970


async def answer(browser: Browser, path: str) -> tuple[int, Any]:
    reply = await browser.get(f"/_zerver/api/{path}")
    return reply.status, decode_json(reply.body, Any)


# ---- the server -----------------------------------------------------------------------------


async def test_session_says_where_one_is_and_gives_the_proof() -> None:
    async with open_browser() as browser:
        await browser.enter()
        session = await browser.json("session")
        assert session["csrf"] == browser.csrf
        assert (session["app"], session["store"]) == ("shop", False)


async def test_overview_tells_of_everything_that_the_rooms_count() -> None:
    async with open_browser() as browser:
        await browser.enter()
        for stock in (True, True, False):
            await browser.buy(stock=stock)
        overview = await browser.json("overview")
        (route,) = overview["routes"]
        assert (route["label"], route["flow"]) == ("POST /checkout", "checkout")
        assert (route["count"], route["errors"], route["refused"]) == (3, 1, 0)
        assert route["p50_ns"] > 0
        assert route["p99_ns"] >= route["p50_ns"]
        assert (len(route["spark"]), sum(route["spark"])) == (WINDOW, 3)
        assert overview["runs"]["ended"] == 3
        assert [one["priority"] for one in overview["admission"]["classes"]] == ["interactive", "default", "batch"]
        assert {one["name"] for one in overview["targets"]} == {"payments", "vault"}
        assert overview["tenants"][0]["count"] == 3
        assert overview["trace"]["ring"]["runs"] == 3
        assert overview["loop"]["lag_ns"] >= 0
        assert overview["server"]["addresses"] == [f"http://{HOST}"]


async def test_the_tree_of_actors_has_runs_and_the_apps_own() -> None:
    async with open_browser() as browser, open_supervisor("mailers") as supervisor:
        await browser.enter()
        browser.page.attach(Server(browser.client.runtime, supervisors=[supervisor]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(browser.client.get, "/waiting")
            await trio.testing.wait_all_tasks_blocked()
            overview = await browser.json("overview")
            nursery.cancel_scope.cancel()
        tree = overview["actors"]
        assert tree["name"] == "runtime"
        by_name = {child["name"]: child for child in tree["children"]}
        assert by_name["mailers"]["kind"] == "supervisor"
        (run,) = by_name["runs"]["children"]
        assert (run["kind"], run["state"]) == ("run", "waiting")
        assert "GET /waiting" in run["note"]


async def test_flows_and_their_graphs() -> None:
    async with open_browser() as browser:
        await browser.enter()
        flows = (await browser.json("flows"))["flows"]
        assert flows[0] == {
            "name": "checkout",
            "version": "1",
            "owner": "payments",
            "doc": "",
            "routes": ["POST /checkout"],
        }
        graph = (await browser.json("flows/checkout/graph"))["graph"]
        steps = [node["step"] for node in graph["nodes"] if node["shape"] == "step"]
        assert steps == ["unlock", "load", "charge", "reserve", "render"]
        assert all(node["status"] is None for node in graph["nodes"])
        assert not any(edge["taken"] for edge in graph["edges"])
        assert (await answer(browser, "flows/none/graph"))[0] == 404


async def test_metrics_are_there_for_who_has_the_token() -> None:
    metrics = Metrics()
    async with open_browser(metrics=metrics.snapshot) as browser:
        browser.recorder.listen(metrics)
        await browser.buy()
        scraper = {"host": HOST, "authorization": f"Bearer {TOKEN}"}
        plain = await browser.client.get("/_zerver/metrics", headers=scraper)
        assert (plain.status, plain.headers["content-type"]) == (200, PLAIN)
        assert "POST /checkout" in plain.text or "/checkout" in plain.text
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        other = await browser.client.get("/_zerver/metrics", headers=scraper | accept)
        assert other.headers["content-type"] == OPENMETRICS
        assert other.text.endswith("# EOF\n")
        assert SECRET not in plain.text + other.text
        assert (await browser.client.get("/_zerver/metrics", headers={"host": HOST})).status == 401


async def test_without_metrics_there_are_none() -> None:
    async with open_browser() as browser:
        await browser.enter()
        assert (await browser.get("/_zerver/metrics")).status == 404


# ---- lists ----------------------------------------------------------------------------------


async def test_runs_are_listed_newest_first_those_under_way_before_them() -> None:
    async with open_browser() as browser:
        await browser.enter()
        first, second = await browser.buy(), await browser.buy(stock=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(browser.client.get, "/waiting")
            await trio.testing.wait_all_tasks_blocked()
            listed = (await browser.json("runs"))["runs"]
            assert [one["status"] for one in listed] == ["running", "failed", "done"]
            assert [one["id"] for one in listed[1:]] == [second.run_id, first.run_id]
            assert [one["http"] for one in listed] == [None, 409, 201]
            running = (await browser.json("runs?status=running"))["runs"]
            assert [one["source"] for one in running] == ["live"]
            found = (await browser.json(f"runs/{running[0]['id']}"))["header"]
            assert (found["status"], found["under_way"], found["source"]) == ("running", True, "live")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 3),
        ("route=POST%20/checkout", 3),
        ("route=checkout", 3),
        ("route=other", 0),
        ("status=failed", 1),
        ("status=done", 2),
        ("status=409", 1),
        ("status=2xx", 2),
        ("failed=1", 1),
        ("tenant=nobody", 0),
        ("unresolved=1", 0),
        ("slow_ms=100000", 0),
        ("since=0", 3),
        ("until=1", 0),
        ("id=nothing", 0),
        ("limit=2", 2),
    ],
)
async def test_filters(query: str, count: int) -> None:
    async with open_browser() as browser:
        await browser.enter()
        for stock in (True, True, False):
            await browser.buy(stock=stock)
        listed = await browser.json(f"runs?{query}")
        assert len(listed["runs"]) == count
        assert listed["more"] is (query == "limit=2")


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "since=never", "slow_ms=1e9", "limit=%C2%B2"])
async def test_what_makes_no_sense_is_400(query: str) -> None:
    async with open_browser() as browser:
        await browser.enter()
        assert (await answer(browser, f"runs?{query}"))[0] == 400


async def test_what_is_older_is_found_by_time() -> None:
    async with open_browser() as browser:
        await browser.enter()
        runs = [await browser.buy() for _ in range(3)]
        first = (await browser.json("runs?limit=2"))["runs"]
        rest = (await browser.json(f"runs?limit=2&until={first[-1]['began_unix_ms']}"))["runs"]
        assert runs[0].run_id in [one["id"] for one in rest]


@pytest.mark.parametrize(
    "path", ["nothing", "runs/none", "runs/none/records", "runs/a/b/c", "", "runs/", "diff", "session/x", "runs/%2e%2e"]
)
async def test_what_is_not_there(path: str) -> None:
    async with open_browser() as browser:
        await browser.enter()
        status, told = await answer(browser, path)
        assert status in (400, 404)
        assert told["status"] == status


async def test_only_what_may_be_done() -> None:
    async with open_browser() as browser:
        await browser.enter()
        run = await browser.buy()
        own = {"host": HOST, "cookie": browser.cookie, "x-zerver-csrf": browser.csrf, "origin": f"http://{HOST}"}
        for reply, allow in (
            (await browser.post("runs", {}), "GET, HEAD"),
            (await browser.get(f"/_zerver/api/runs/{run.run_id}/replay"), "POST"),
            (await browser.client.request("PUT", "/_zerver/api/matching", headers=own), "GET, HEAD, POST"),
        ):
            assert (reply.status, reply.headers.get("allow")) == (405, allow)


# ---- one run --------------------------------------------------------------------------------


async def test_a_run_is_opened_by_a_beginning_of_its_id() -> None:
    async with open_browser() as browser:
        await browser.enter()
        run = await browser.buy()
        for said in (run.run_id, run.run_id[:12], run.run_id.removeprefix("req_")):
            assert (await browser.json(f"runs/{said}"))["header"]["id"] == run.run_id


async def test_windows_of_rows_and_spans_together_are_the_whole() -> None:
    async with open_browser() as browser:
        await browser.enter()
        run = await browser.buy()
        for what in ("records", "spans"):
            whole = (await browser.json(f"runs/{run.run_id}/{what}?from=0&count=1000"))["items"]
            pieces, at = [], 0
            while at is not None:
                window = await browser.json(f"runs/{run.run_id}/{what}?from={at}&count=3")
                pieces += window["items"]
                at = window["next"]
            assert pieces == whole
        few = await browser.json(f"runs/{run.run_id}?rows=2&spans=1")
        assert (few["rows"]["next"], few["spans"]["next"]) == (2, 1)


async def test_text_is_what_the_command_prints() -> None:
    async with open_browser() as browser:
        await browser.enter()
        run = await browser.buy()
        text = (await browser.json(f"runs/{run.run_id}/text"))["text"]
        assert text.startswith("POST /checkout  201")


async def test_diff_of_two_runs() -> None:
    async with open_browser() as browser:
        await browser.enter()
        one, other = await browser.buy(), await browser.buy(stock=False)
        diff = await browser.json(f"diff?a={one.run_id}&b={other.run_id}")
        assert (diff["a"]["id"], diff["b"]["id"], diff["same"]) == (one.run_id, other.run_id, False)
        assert diff["first"]["step"] == "reserve"
        assert {"kept", "cause", "took_ns", "source"} <= diff["a"].keys()


# ---- replay ---------------------------------------------------------------------------------


async def test_a_replay_of_the_same_is_the_same() -> None:
    async with open_browser() as browser:
        await browser.enter()
        run = await browser.buy()
        reply = await browser.post(f"runs/{run.run_id}/replay", {})
        told = decode_json(reply.body, dict)
        assert (reply.status, told["faithful"], told["divergence"]) == (200, True, None)
        assert told["view"]["header"]["status"] == "done"
        assert told["diff"]["same"] is True


async def test_a_replay_with_another_slot_tells_where_it_parts() -> None:
    async with open_browser() as browser:
        await browser.enter()
        run = await browser.buy()
        (cart,) = [s for s in (await browser.json(f"runs/{run.run_id}"))["slots"] if s["name"] == "cart"]
        assert cart["editable"] is True
        reply = await browser.post(f"runs/{run.run_id}/replay", {"changes": {"cart": cart["value"] | {"stock": False}}})
        told = decode_json(reply.body, dict)
        assert (reply.status, told["faithful"]) == (200, False)
        assert told["diff"]["first"]["step"] == "reserve"
        assert browser.client.runtime.statistics().ended == 1  # nothing ran


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"changes": {"card.token": "other"}}, 400),
        ({"changes": {"header.authorization": "other"}}, 400),
        ({"changes": {"nothing": 1}}, 400),
        ({"changes": {"cart": "no mapping"}}, 400),
        ({"until": "nothing"}, 400),
        ({"changes": 1}, 400),
        ([], 400),
        ({"until": "charge"}, 200),
    ],
)
async def test_what_may_be_replayed(body: object, status: int) -> None:
    async with open_browser() as browser:
        await browser.enter()
        run = await browser.buy()
        reply = await browser.post(f"runs/{run.run_id}/replay", body)
        assert reply.status == status, reply.text
        assert SECRET not in reply.text


async def test_a_replay_needs_proof_and_json() -> None:
    async with open_browser() as browser:
        await browser.enter()
        run = await browser.buy()
        path = f"runs/{run.run_id}/replay"
        assert (await browser.post(path, {}, **{"x-zerver-csrf": "no"})).status == 403
        assert (await browser.post(path, {}, origin="http://localhost:3000")).status == 403
        assert (await browser.post(path, {}, **{"content-type": "text/plain"})).status == 415
        bearer = {"host": HOST, "authorization": f"Bearer {TOKEN}"}
        assert (await browser.client.post(f"/_zerver/api/{path}", json={}, headers=bearer)).status == 200


async def test_a_run_that_never_began_cannot_be_replayed() -> None:
    async with open_browser() as browser:
        await browser.enter()
        with trio.move_on_after(0):
            await browser.client.runtime.drain(0.0)
        await browser.client.get("/waiting")
        browser.recorder.flush()
        (refused,) = (await browser.json("runs"))["runs"]
        assert refused["status"] == "refused"
        header = (await browser.json(f"runs/{refused['id']}"))["header"]
        assert (header["replayable"], header["why_not"]) == (False, "nothing of it was begun")
        assert (await browser.post(f"runs/{refused['id']}/replay", {})).status == 409


# ---- the archive ----------------------------------------------------------------------------


async def keep(path: Path, *, renamed: str = "") -> str:
    """A run of another process, in a file; renamed: of a flow that nobody serves any more."""
    async with open_runtime(shop(), seed=7) as runtime:
        flow = checkout if not renamed else Flow(renamed, list(checkout.stages))
        result = await runtime.run(flow, {"cart": "c", "cents": 7}, given={"authorization": f"Bearer {SECRET}x"})
    with make_store(path) as store:
        store.write([(summarize(result, began_unix_ns=DAY, kept="error"), encode_run(result, began_unix_ns=DAY))])
    return result.run_id


async def test_kept_runs_are_listed_opened_and_replayed(tmp_path: Path) -> None:
    run_id = await keep(tmp_path / "traces.db")
    async with open_browser(archive=Archive(tmp_path / "traces.db")) as browser:
        await browser.enter()
        (listed,) = (await browser.json("runs"))["runs"]
        assert (listed["id"], listed["source"], listed["kept"]) == (run_id, "store", "error")
        assert listed["began_unix_ms"] == DAY / 1e6
        view = await browser.json(f"runs/{run_id}")
        assert (view["header"]["source"], view["header"]["replayable"]) == ("store", True)
        assert SECRET not in str(view)
        replayed = decode_json((await browser.post(f"runs/{run_id}/replay", {})).body, dict)
        assert replayed["faithful"] is True, replayed["text"]
        changed = await browser.post(
            f"runs/{run_id}/replay", {"changes": {"cart": {"id": "c", "cents": 7, "stock": False}}}
        )
        assert decode_json(changed.body, dict)["diff"]["first"]["step"] == "reserve"


async def test_a_kept_run_of_a_flow_that_is_not_served_is_only_shown(tmp_path: Path) -> None:
    run_id = await keep(tmp_path / "traces.db", renamed="old checkout")
    async with open_browser(archive=Archive(tmp_path / "traces.db")) as browser:
        await browser.enter()
        header = (await browser.json(f"runs/{run_id}"))["header"]
        assert (header["replayable"], header["why_not"]) == (False, "flow 'old checkout' is not served here any more")
        assert (await browser.post(f"runs/{run_id}/replay", {})).status == 409


async def test_an_archive_that_is_not_there_yet_or_damaged_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    async with open_browser(archive=Archive(path)) as browser:
        await browser.enter()
        await browser.buy()
        listed = await browser.json("runs")
        assert (len(listed["runs"]), listed["trouble"]) == (1, None)
        path.write_bytes(b"this is no database, whatever its name says" * 100)
        listed = await browser.json("runs")
        assert len(listed["runs"]) == 1
        assert listed["trouble"]


# ---- large ones -----------------------------------------------------------------------------


async def test_a_large_run_is_looked_at_in_windows() -> None:
    @step
    def tick() -> None:
        return None

    @step
    def end() -> Done:
        return Done(json("done"))

    app = App("large")
    app.route("GET", "/large", Flow("large", [*([tick] * 3000), end]))
    async with open_browser(app=app) as browser:
        await browser.enter()
        await browser.client.get("/large")
        browser.recorder.flush()
        (listed,) = (await browser.json("runs"))["runs"]
        view = await browser.json(f"runs/{listed['id']}")
        assert view["rows"]["total"] == listed["records"] > 3000
        assert (view["rows"]["next"], view["spans"]["next"]) == (1000, 2000)
        last = await browser.json(f"runs/{listed['id']}/records?from={listed['records'] - 500}&count=5000")
        assert last["next"] is None
        assert last["items"][-1]["subject"] == "end"
