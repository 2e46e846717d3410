"""Proves what a collector gets: a process of its own takes OTLP over HTTP, and decodes what was sent to it."""

from __future__ import annotations

import importlib
import json
import pkgutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import attrs
import pytest
import trio

from tests.trace import shop
from zerver import App, Done, Flow, Slot, step
from zerver.core.tracing import root_span_id, trace_id
from zerver.effects import http
from zerver.errors import DefinitionError
from zerver.http.capability import http_client
from zerver.http.exchange import Exchange
from zerver.http.listeners import open_http_listeners
from zerver.http.messages import Response
from zerver.http.server import serve_http
from zerver.runtime import Result, open_runtime
from zerver.runtime.executor import finished
from zerver.trace.recorder import open_recorder
from zerver.trace.telemetry import instruments as i
from zerver.trace.telemetry.conventions import ATTRIBUTES
from zerver.trace.telemetry.exporter import Exporter, open_exporter, otlp_sender
from zerver.trace.telemetry.instruments import Distribution, Exemplar, Family, MetricsSnapshot, Number
from zerver.trace.telemetry.otel import OtlpSender
from zerver.trace.telemetry.promotion import Promotion

Url = Annotated[str, Slot("url")]

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
INTERNAL, SERVER, CLIENT = 1, 2, 3
ERROR = 2


class Collector:
    """A receiver, and what it has been sent."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._read = b""
        self.endpoint = ""

    async def next(self) -> Any:
        """What it says next: one request."""
        with trio.fail_after(60):
            while b"\n" not in self._read:
                more = await self._stream.receive_some()
                if not more:
                    raise EOFError(self._read)
                self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)


@asynccontextmanager
async def collector(answer: str = "200") -> AsyncIterator[Collector]:
    script = str(Path(__file__).with_name("otlp_receiver.py"))
    process = await trio.lowlevel.open_process([sys.executable, script, answer], stdout=subprocess.PIPE)
    try:
        made = Collector(process)
        made.endpoint = f"http://127.0.0.1:{await made.next()}"
        yield made
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
            await process.wait()
        assert process.stdout is not None
        await process.stdout.aclose()


@pytest.fixture(scope="module")
def runs() -> dict[str, Result]:
    """Runs of the shop, on a clock that jumps."""

    async def make() -> dict[str, Result]:
        refuse = shop.keyed((0.01, RuntimeError("gone")))
        return {
            "retried": await shop.run(shop.CHECKOUT, {"payments.charge": shop.keyed((9, 0), (0.04, 71))}),
            "unresolved": await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out, "payments.refund": refuse}),
            "parked": await shop.parked(),
        }

    made: dict[str, Result] = trio.run(make, clock=trio.testing.MockClock(autojump_threshold=0))
    return made


def over_http(result: Result, label: str = "POST /v2/checkout", parent: str = CALLER) -> Result:
    return attrs.evolve(result, timeline=attrs.evolve(result.timeline, label=label, parent=parent))


def kept(result: Result) -> str | None:
    return "slow" if result.timeline.label != "GET /health" else None


async def sent(exporter: Exporter) -> None:
    with trio.fail_after(60):
        await exporter.flush()


async def test_what_the_collector_gets(runs: dict[str, Result]) -> None:
    async with collector() as to:
        sender = otlp_sender(to.endpoint, service="shop", headers={"x-api-key": "k"}, resource={"service.version": "7"})
        async with open_exporter(sender, kept, promotion=Promotion(park_ms=50)) as exporter:
            exporter.take([over_http(runs["retried"], "GET /health"), over_http(runs["retried"])])
            request = await to.next()
            assert request["path"] == "/v1/traces"
            assert {name.lower(): value for name, value in request["headers"].items()}["x-api-key"] == "k"
            check_spans(request["sent"], runs["retried"])
            exporter.take([over_http(runs["unresolved"]), over_http(runs["parked"], "POST /approve", "")])
            spans = (await to.next())["sent"]
        assert exporter.statistics().failed == 0
    named = {span["name"]: span for span in spans}
    root = named["POST /v2/checkout"]
    assert (root["status"], root["attributes"]["error.type"]) == (ERROR, "unresolved")
    assert named["zerver.undo.payments.charge"]["status"] == ERROR
    assert named["zerver.park"]["parent"] == named["zerver.step.ask_boss"]["id"]
    assert named["POST /approve"]["trace"] == trace_id(runs["parked"].run_id)
    assert named["POST /approve"]["parent"] == ""


def check_spans(spans: list[dict[str, Any]], result: Result) -> None:
    root, *_ = spans  # one run alone: nobody wanted the other one
    assert {span["trace"] for span in spans} == {CALLER[3:35]}
    assert (root["name"], root["kind"], root["id"]) == ("POST /v2/checkout", SERVER, root_span_id(result.run_id))
    assert (root["parent"], root["remote"]) == (CALLER[36:52], True)
    assert root["attributes"]["zerver.run.id"] == result.run_id
    assert root["attributes"]["zerver.kept"] == "slow"
    assert (root["resource"]["service.name"], root["resource"]["service.version"]) == ("shop", "7")
    assert root["scope"] == "zerver"
    assert root["schema"].startswith("https://opentelemetry.io/schemas/1.")
    accounts = result.timeline.accounts
    assert root["ended"] - root["began"] == accounts.total
    by_id = {span["id"]: span for span in spans}
    around = {span["name"]: by_id.get(span["parent"], {}).get("name") for span in spans}
    assert around["zerver.step.charge"] == "POST /v2/checkout"
    assert around["zerver.effect.payments.charge"] == "zerver.step.charge"
    assert around["zerver.attempt"] == "zerver.effect.payments.charge"
    named = {span["name"]: span for span in reversed(spans)}
    query = named["zerver.effect.sql.fetch_one"]
    assert (query["kind"], query["attributes"]["db.query.summary"]) == (CLIENT, "SELECT users")
    first = named["zerver.attempt"]
    assert (first["kind"], first["status"]) == (INTERNAL, ERROR)
    assert first["events"][0]["name"] == "exception"
    assert first["events"][0]["at"] == first["ended"]


async def test_a_service_that_is_asked_knows_the_span_that_is_exported() -> None:
    """Header in, header out, over real sockets; and the collector gets what both of them name."""
    told: list[str | None] = []

    async def warehouse(exchange: Exchange) -> Response:
        told.append(exchange.head.headers.get("traceparent"))
        return Response(200, {}, b"")

    @step
    async def ask(url: Url) -> Done:
        return Done((await http.get(url)).status)

    flow = Flow("ask", [ask], takes=[Url])
    async with collector() as to, trio.open_nursery() as nursery:
        server = await nursery.start(serve_http, warehouse, await open_http_listeners())
        async with (
            open_exporter(otlp_sender(to.endpoint), kept) as exporter,
            open_recorder(listeners=[exporter]) as recorder,
            open_runtime(App(capabilities=[http_client(allow_private=True)]), observers=[recorder.add]) as runtime,
        ):
            result = await finished(runtime.execute(runtime.prepare(flow), (), [server.addresses[0]], parent=CALLER))
        spans = (await to.next())["sent"]
        nursery.cancel_scope.cancel()
    assert result.unwrap() == 200
    (asked,) = [span for span in spans if span["name"] == "zerver.effect.http.read"]
    assert told == [f"00-{CALLER[3:35]}-{asked['id']}-01"]
    assert asked["attributes"]["http.request.method"] == "GET"
    assert asked["attributes"]["http.response.status_code"] == 200
    assert asked["attributes"]["server.address"] == "127.0.0.1"
    assert spans[0]["parent"] == CALLER[36:52]


async def test_metrics_with_their_exemplars() -> None:
    run_id = "req_7a8f3c2b7a8f3c2b7a8f3c2b"
    exemplar = Exemplar(0.3, 5, run_id, trace_id(run_id), root_span_id(run_id))
    counts = tuple([1] + [0] * (len(i.HTTP_BOUNDS) - 1) + [2])
    exemplars = (exemplar, *[None] * len(i.HTTP_BOUNDS))
    distribution = Distribution(("GET", "/", "200", ""), counts, 1.5, exemplars)
    families = (
        Family(i.HTTP_DURATION, (distribution,)),
        Family(i.RUNS, (Number(("GET /", "default", "done"), 3.0),)),
        Family(i.LOOP_LAG, (Number((), 0.25),)),
    )
    async with collector() as to:
        sender = OtlpSender(to.endpoint)
        async with open_exporter(sender, kept, metrics=lambda: MetricsSnapshot(1, 9, families), metrics_every=1e6):
            pass
        request = await to.next()
    assert request["path"] == "/v1/metrics"
    duration, count, lag = request["sent"]
    assert (duration["name"], duration["unit"], duration["kind"]) == ("http.server.request.duration", "s", "histogram")
    (point,) = duration["points"]
    assert point["attributes"] == {
        "http.request.method": "GET",
        "http.route": "/",
        "http.response.status_code": 200,
    }
    assert (point["counts"], point["bounds"], point["sum"], point["min"]) == (
        list(counts),
        list(i.HTTP_BOUNDS),
        1.5,
        None,
    )
    assert point["exemplars"] == [
        {"trace": trace_id(run_id), "id": root_span_id(run_id), "value": 0.3, "zerver.run.id": run_id}
    ]
    assert (count["name"], count["kind"], count["points"][0]["value"]) == ("zerver.runs", "sum", 3.0)
    assert (lag["kind"], lag["points"][0]["value"]) == ("gauge", 0.25)


async def test_a_collector_that_says_no_costs_the_spans_alone(
    runs: dict[str, Result], caplog: pytest.LogCaptureFixture
) -> None:
    async with collector("500") as to, open_exporter(OtlpSender(to.endpoint), kept) as exporter:
        exporter.take([over_http(runs["parked"])])
        await sent(exporter)
        statistics = exporter.statistics()
    assert (statistics.spans, statistics.failed > 0) == (0, True)
    assert "500" in caplog.text


async def test_a_collector_that_hangs_holds_nobody_up(
    runs: dict[str, Result], caplog: pytest.LogCaptureFixture
) -> None:
    async with collector("hang") as to:
        async with open_exporter(OtlpSender(to.endpoint, timeout=60), kept, flush_seconds=0) as exporter:
            exporter.take([over_http(runs["parked"])])
            await to.next()  # it has the request, and will never answer
            took = await shop.run(shop.CHECKOUT, {kind: shop.keyed((0, 1)) for kind in ("payments.charge",)})
            assert took.ok
        assert exporter.statistics().spans == 0


async def test_a_collector_that_is_not_there(runs: dict[str, Result], caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        sender = OtlpSender(f"http://127.0.0.1:{nobody.getsockname()[1]}", timeout=60)
        async with open_exporter(sender, kept, flush_seconds=0) as exporter:
            exporter.take([over_http(runs["parked"])])
    assert exporter.statistics().spans == 0


def test_names_without_zerver_are_those_of_the_semantic_conventions() -> None:
    known: set[str] = set()
    for room in ("attributes", "_incubating.attributes"):  # those of messaging are not stable yet
        package = importlib.import_module(f"opentelemetry.semconv.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            known |= {text for text in vars(importlib.import_module(module.name)).values() if isinstance(text, str)}
    ours = {attribute.name for attribute in ATTRIBUTES if not attribute.name.startswith("zerver.")}
    assert ours - known == set()


def test_without_the_sdk_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "zerver.trace.telemetry.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(DefinitionError, match=r"pip install zerver\[otel\]"):
        otlp_sender("http://collector:4318")


def test_the_sdk_is_loaded_by_nobody_else() -> None:
    code = "import sys, zerver.trace.telemetry.exporter; print([m for m in sys.modules if 'opentelemetry' in m])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
