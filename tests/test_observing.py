"""Whoever wants to know of a server's runs hears of them as the settings say: all of them, once, and to the last."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import pytest
import trio

from zerver import App, Done, Fail, Flow, step
from zerver.core.settings import Settings, read_settings
from zerver.effects import queue
from zerver.errors import DefinitionError
from zerver.http import HttpClient, open_http_client
from zerver.http import Path as InPath
from zerver.jobs import jobs, open_worker, order
from zerver.observing import Observing, open_observing
from zerver.runtime import open_runtime
from zerver.serve import Serving, serve
from zerver.trace import format_timeline, open_store
from zerver.trace.recording import decode_run
from zerver.trace.summary import Filter
from zerver.trace.telemetry.prometheus import prometheus
from zerver.ui import Access

TOKEN = "a token that nobody guesses"


@step
def look(number: Annotated[int, InPath()]) -> Done | Fail:
    if number == 0:
        raise ZeroDivisionError("a defect")
    return Done(number) if number < 10 else Fail.not_found("number", str(number))


def app() -> App:
    made = App("numbers")
    made.route("GET", "/numbers/{number}", Flow("look", [look]))
    return made


def settings(**said: str) -> Settings:
    return read_settings({"ZERVER_TRACE_DB": ""} | said)


async def served(observing: Observing, nursery: trio.Nursery) -> Serving:
    serving: Serving = await nursery.start(
        partial(serve, app(), observers=observing.observers, beside=observing.beside, on_defect=observing.on_defect)
    )
    observing.attach(serving.runtime, serving.addresses)
    return serving


async def visit(
    said: Settings, ask: Callable[[HttpClient, str, Observing], Awaitable[None]], page: Access | None = None
) -> None:
    """Serve with these settings, and ask."""
    async with open_observing(app(), said, page=page) as observing, trio.open_nursery() as nursery:
        serving = await served(observing, nursery)
        async with open_http_client(allow_private=True) as client:
            await ask(client, serving.addresses[0], observing)
        nursery.cancel_scope.cancel()


async def test_what_was_worth_keeping_is_in_the_file_when_the_server_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "below" / "traces.db"
    asked: list[tuple[int, str]] = []

    async def ask(client: HttpClient, url: str, observing: Observing) -> None:
        for number in (1, 0, 99):
            reply = await client.request("GET", f"{url}/numbers/{number}")
            asked.append((reply.status, reply.headers["x-request-id"]))

    await visit(settings(ZERVER_TRACE_DB=str(path)), ask)
    assert [status for status, _ in asked] == [200, 500, 404]
    with open_store(path) as store:
        kept = {summary.run_id: summary for summary in store.search(Filter(), 10)}
        assert {run_id: kept[run_id].http for _, run_id in asked} == {run_id: status for status, run_id in asked}
        defect = store.read(asked[1][1])
        assert defect is not None
        assert "DEFECT ZeroDivisionError: a defect" in format_timeline(decode_run(defect).timeline)


async def test_the_page_answers_whoever_has_the_token_and_counts_what_was_asked() -> None:
    async def ask(client: HttpClient, url: str, observing: Observing) -> None:
        await client.request("GET", f"{url}/numbers/1")
        assert (await client.request("GET", f"{url}/_zerver/api/runs")).status == 401
        bearer = [("authorization", f"Bearer {TOKEN}")]
        observing.recorder.flush()
        runs = json.loads((await client.request("GET", f"{url}/_zerver/api/runs", headers=bearer)).body)["runs"]
        assert [(run["label"], run["http"]) for run in runs] == [("GET /numbers/{number}", 200)]
        metrics = (await client.request("GET", f"{url}/_zerver/metrics", headers=bearer)).body.decode()
        assert 'http_route="/numbers/{number}"' in metrics
        assert "zerver_runs_running" in metrics or "zerver_run" in metrics

    await visit(settings(), ask, Access(TOKEN))


async def test_without_a_page_its_path_is_the_apps() -> None:
    async def ask(client: HttpClient, url: str, observing: Observing) -> None:
        assert observing.beside == {}
        assert (await client.request("GET", f"{url}/_zerver/")).status == 404

    await visit(settings(), ask)


async def test_a_run_that_was_worth_it_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = StringIO()
    monkeypatch.setattr(sys, "stderr", lines)

    async def ask(client: HttpClient, url: str, observing: Observing) -> None:
        for number in (1, 0):
            await client.request("GET", f"{url}/numbers/{number}")

    await visit(settings(ZERVER_LOG="json"), ask)
    (line,) = [json.loads(one) for one in lines.getvalue().splitlines() if "ZeroDivisionError" in one]
    assert (line["route"], line["event"], line["level"]) == ("GET /numbers/{number}", "run defect", "error")


async def test_runs_beside_http_are_told_too_and_hidden_names_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    said = settings(ZERVER_TRACE_DB=str(path), ZERVER_TRACE_HIDE="number")
    made = app()
    flow = made.flows["look"]
    async with open_observing(made, said) as observing, open_runtime(made, observers=observing.observers) as runtime:
        observing.attach(runtime)
        result = await runtime.run(flow, given={"number": 9_876_543})
    assert observing.recorder.ring.get(result.run_id) is not None
    with open_store(path) as store:
        recording = store.read(result.run_id)
    assert recording is not None
    assert b"9876543" not in recording.body


async def test_file_and_collector_are_told_of_the_same_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One verdict for each run, or the two could not be laid side by side."""
    sent: list[str] = []

    class Collector:
        def send_spans(self, spans: Any, /) -> bool:
            sent.extend(span.attributes["zerver.run.id"] for span in spans if "zerver.run.id" in span.attributes)
            return True

        def send_metrics(self, snapshot: Any, /) -> bool:
            return True

        def close(self) -> None:
            pass

    monkeypatch.setattr("zerver.observing.otlp_sender", lambda *_, **__: Collector())
    path = tmp_path / "traces.db"
    said = settings(ZERVER_TRACE_DB=str(path), ZERVER_OTLP_ENDPOINT="http://127.0.0.1:1", ZERVER_TRACE_SAMPLE="0.5")

    async def ask(client: HttpClient, url: str, observing: Observing) -> None:
        for number in range(40):
            await client.request("GET", f"{url}/numbers/{number}")

    await visit(said, ask)
    with open_store(path) as store:
        kept = {summary.run_id for summary in store.search(Filter(), 100)}
    assert 0 < len(kept) < 40
    assert set(sent) == kept


async def test_settings_that_cannot_work_are_said_at_once() -> None:
    with pytest.raises(DefinitionError, match="too easy to guess"):
        Access("short")


@step
def nothing() -> Done:
    return Done()


def knows_queues(observing: Observing) -> bool:
    """Whether the queues have been looked at, if anybody does."""
    return observing.metrics is None or bool(observing.metrics.snapshot().family("zerver.queue.jobs").points)


async def worked(folder: Path, **said: str) -> tuple[int, str]:
    """Thirty jobs are done: how many runs of them were kept, and what is told of them in numbers."""
    idle = Flow("idle", [nothing])
    made = App("idle", capabilities=[jobs(f"sqlite:///{folder / 'jobs.db'}")])
    made.job(idle)
    file = str(folder / "traces.db")
    async with open_observing(made, settings(ZERVER_TRACE_DB=file, ZERVER_TRACE_SAMPLE="0", **said)) as observing:
        async with open_runtime(made, observers=observing.observers) as runtime, open_worker(runtime) as worker:
            observing.attach(runtime)
            await order(runtime, queue.enqueue_many(idle, [None] * 30))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(observing.watch_worker, worker)
                while worker.statistics().done < 30 or not knows_queues(observing):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        told = "" if observing.metrics is None else prometheus(observing.metrics.snapshot()).decode()
    with open_store(file) as store:
        return len(store.search(Filter(), 100)), told


async def test_every_run_of_a_job_is_kept_if_that_is_said(tmp_path: Path) -> None:
    for name in ("some", "all"):
        (tmp_path / name).mkdir()
    some, told = await worked(tmp_path / "some")
    assert some < 30
    assert 'zerver_jobs_ended_total{zerver_job_outcome="done"} 30.0\n' in told
    assert 'zerver_queue_paused{zerver_job_queue="default"} 0.0\n' in told
    every, told = await worked(tmp_path / "all", ZERVER_DEBUG_JOBS="1", ZERVER_METRICS="no")
    assert (every, told) == (30, "")
