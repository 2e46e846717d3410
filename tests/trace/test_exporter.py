"""Proves that kept runs reach the sender, and that a sender that is slow, broken or gone costs nobody anything."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import attrs
import pytest
import trio

from tests.trace import shop
from zerver.core import timeline as t
from zerver.errors import DefinitionError
from zerver.runtime import Result
from zerver.trace.telemetry.exported import ExportedSpan, Exporting
from zerver.trace.telemetry.exporter import MOST_AT_ONCE, Exporter, open_exporter
from zerver.trace.telemetry.instruments import MetricsSnapshot
from zerver.trace.telemetry.promotion import Promotion

SNAPSHOT = MetricsSnapshot(1, 2, ())


class Memory:
    """A sender that keeps what it is given. gate: it waits for it; answer: what it says, or raises."""

    def __init__(self, answer: bool | Exception = True) -> None:
        self.answer = answer
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[ExportedSpan]] = []
        self.snapshots: list[MetricsSnapshot] = []
        self.closed = False

    def send_spans(self, spans: Sequence[ExportedSpan]) -> bool:
        self.entered.set()
        self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        self.batches.append(list(spans))
        return self.answer

    def send_metrics(self, snapshot: MetricsSnapshot) -> bool:
        if isinstance(self.answer, Exception):
            raise self.answer
        self.snapshots.append(snapshot)
        return self.answer

    def close(self) -> None:
        self.closed = True
        self.gate.set()

    @property
    def runs(self) -> list[object]:
        roots = [span for batch in self.batches for span in batch if span.parent_id is None]
        return [root.attributes["zerver.run.id"] for root in roots]


def result(name: str, steps: int = 0, wait: int = 0) -> Result:
    """A run of so many pure spans, which waited so many milliseconds for its ticket."""
    ending = t.Ending("done")
    records: list[t.Record] = [(t.RECEIVED, 0, "flow", None), (t.ADMITTED, wait * 1_000_000, "flow", "default")]
    records += [(t.TURN, wait * 1_000_000 + i * 10_000_000, "flow", (i - 1) * 10_000_000) for i in range(1, steps + 1)]
    records.append((t.ENDED, records[-1][1], "flow", ending))
    return Result(t.Timeline(name, "flow", "1", "acme", "default", records), ending)


def everything(result: Result) -> str:
    return "sample"


async def sent(exporter: Exporter) -> None:
    with trio.fail_after(30):
        await exporter.flush()


async def test_kept_runs_are_sent_and_others_are_not() -> None:
    sender = Memory()
    async with open_exporter(sender, lambda result: "error" if result.run_id == "two" else None) as exporter:
        exporter.take([result("one"), result("two"), result("three")])
        await sent(exporter)
        assert sender.runs == ["two"]
        assert not sender.closed
    assert sender.closed
    statistics = exporter.statistics()
    assert (statistics.runs, statistics.spans, statistics.pending) == (1, 1, 0)


async def test_what_is_noted_last_is_sent_when_the_block_is_left() -> None:
    sender = Memory()
    async with open_exporter(sender, everything) as exporter:
        exporter.take([result("one")])
    assert sender.runs == ["one"]


async def test_and_when_it_is_cancelled() -> None:
    sender = Memory()
    with trio.CancelScope() as scope:
        async with open_exporter(sender, everything) as exporter:
            exporter.take([result("one")])
            scope.cancel()
            await trio.sleep_forever()
    assert sender.runs == ["one"]


async def test_a_sender_that_hangs_is_left_when_its_time_is_over() -> None:
    sender = Memory()
    sender.gate.clear()
    async with open_exporter(sender, everything, flush_seconds=0) as exporter:
        exporter.take([result("one")])
        await trio.to_thread.run_sync(sender.entered.wait)
    assert sender.closed


async def test_a_sender_that_hangs_makes_the_newest_wait_and_then_be_dropped() -> None:
    sender = Memory()
    sender.gate.clear()
    async with open_exporter(sender, everything, most_pending=2) as exporter:
        exporter.take([result("one")])
        await trio.to_thread.run_sync(sender.entered.wait)
        exporter.take([result(name) for name in ("two", "three", "four", "five")])
        assert (exporter.statistics().pending, exporter.statistics().dropped) == (2, 2)
        sender.gate.set()
        await sent(exporter)
    assert sender.runs == ["one", "two", "three"]


@pytest.mark.parametrize("answer", [False, RuntimeError("no")])
async def test_a_sender_that_fails_is_no_end_of_it(answer: bool | Exception, caplog: pytest.LogCaptureFixture) -> None:
    sender = Memory(answer)
    async with open_exporter(sender, everything) as exporter:
        exporter.take([result("one")])
        await sent(exporter)
        assert exporter.statistics().failed == 1
        sender.answer = True
        exporter.take([result("two")])
        await sent(exporter)
    assert sender.runs[-1:] == ["two"]
    assert [record.levelno for record in caplog.records] == ([] if answer is False else [logging.ERROR])


async def test_a_run_that_cannot_be_shown_is_not_in_the_way_of_others(caplog: pytest.LogCaptureFixture) -> None:
    sender = Memory()
    torn = attrs.evolve(result("torn").timeline, records=[(t.RECEIVED, 0, "flow", None), ("step", 1, None, "torn")])
    async with open_exporter(sender, everything) as exporter:
        exporter.take([Result(torn, t.Ending("done")), result("whole")])
    assert sender.runs == ["whole"]
    assert exporter.statistics().defects == 1
    assert "torn" in caplog.text


async def test_large_runs_are_sent_in_pieces() -> None:
    sender = Memory()
    async with open_exporter(sender, everything) as exporter:
        exporter.take([result("large", steps=300), result("small")])
    assert [len(batch) for batch in sender.batches] == [MOST_AT_ONCE, 302 - MOST_AT_ONCE]
    assert exporter.statistics().spans == 302


async def test_settings_reach_the_spans() -> None:
    sender = Memory()
    promotion = Promotion(queue_ms=3)
    async with open_exporter(sender, everything, promotion=promotion, how=Exporting(most_spans=2)) as exporter:
        exporter.take([result("quick", wait=2), result("slow", wait=4), result("many", steps=5)])
    names = [span.name for batch in sender.batches for span in batch]
    run = "zerver.run.flow"
    assert names == [run, run, "zerver.admission", run, "zerver.turn"]


async def test_metrics_are_sent_now_and_then_and_at_the_end(autojump_clock: trio.testing.MockClock) -> None:
    sender = Memory()
    async with open_exporter(sender, everything, metrics=lambda: SNAPSHOT, metrics_every=60.0, flush_seconds=1e9):
        autojump_clock.autojump_threshold = float("inf")  # a thread's answer takes no time on a clock that jumps
        for expected in (1, 2):
            await trio.testing.wait_all_tasks_blocked()
            autojump_clock.jump(60.0)
            while len(sender.snapshots) < expected:
                await trio.lowlevel.checkpoint()
    assert len(sender.snapshots) == 3


async def test_metrics_that_cannot_be_sent_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    async with open_exporter(Memory(RuntimeError("no")), everything, metrics=lambda: SNAPSHOT):
        pass
    assert "the metrics could not be sent" in caplog.text


async def test_a_run_of_the_runtime(autojump_clock: trio.testing.MockClock) -> None:
    made: list[Result] = []
    await shop.run(shop.CHECKOUT, {}, observers=[made.append])
    autojump_clock.autojump_threshold = float("inf")
    sender = Memory()
    async with open_exporter(sender, everything, flush_seconds=1e9) as exporter:
        exporter.take(made)
    (batch,) = sender.batches
    assert sender.runs == [made[0].run_id]
    assert [span.began - batch[0].began for span in batch[:2]] == [0, 0]


@pytest.mark.parametrize("wrong", [{"most_pending": 0}, {"metrics_every": -1.0}, {"flush_seconds": -1.0}])
async def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DefinitionError, match=next(iter(wrong))):
        async with open_exporter(Memory(), everything, **wrong):  # type: ignore[arg-type]  # one keyword each
            pass
