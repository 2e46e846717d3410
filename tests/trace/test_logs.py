"""Runs that are worth a line have one, handlers log with their run's names, nothing leaks, and nobody waits."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock

from tests.trace import shop
from tests.trace.test_metrics import ended
from zerver import INJECTED, App, CallInfo, Done, Fail, Flow, effect, step
from zerver.core import tracing
from zerver.core.secret import Secret
from zerver.core.tickets import Refusal
from zerver.core.timeline import Ending, Timeline
from zerver.errors import DefinitionError, EffectError
from zerver.runtime import Result, open_runtime
from zerver.trace.hidden import Hidden
from zerver.trace.telemetry import logs as module
from zerver.trace.telemetry.logs import Logs, get_logger, level_of, open_logs

MASK = "‹secret›"


async def logged(*results: Result, form: Any = "json", **how: Any) -> list[str]:
    """The lines of these runs."""
    stream = io.StringIO()
    async with open_logs(form, stream, **how) as logs:
        logs.take(results)
    return stream.getvalue().splitlines()


async def told(*results: Result, **how: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in await logged(*results, **how)]


# ---- how loud -------------------------------------------------------------------------------


def refused(status: int) -> Result:
    cause = Refusal("queue full", status)
    timeline = Timeline("r", "f", "1", "a", "default", [("received", 0, "f", None), ("refused", 1, "f", cause)])
    return Result(timeline, Ending("refused", cause=cause))


def failed(cause: object, http: int | None) -> Result:
    result = ended("failed", http=http)
    return Result(result.timeline, Ending("failed", cause=cause))


@pytest.mark.parametrize(
    ("result", "level"),
    [
        (ended(), "debug"),
        (ended(http=503), "error"),
        (ended(http=None, label=""), "debug"),
        (ended("defect", http=500), "error"),
        (ended("deadline", http=504), "warning"),
        (ended("cancelled", http=None), "info"),
        (failed(Fail.conflict("cart"), 409), "info"),
        (failed(EffectError("a.b", "no"), 502), "warning"),
        (failed(EffectError("a.b", "no"), None), "warning"),
        (failed(Fail("unavailable", "bank"), 503), "warning"),
        (refused(429), "info"),
        (refused(503), "warning"),
        (ended(unresolved=(object(),)), "critical"),
    ],
)
def test_a_run_is_as_loud_as_it_matters(result: Result, level: str) -> None:
    assert level_of(result) == level


async def test_what_is_below_the_level_has_no_line() -> None:
    runs = [ended(), ended("cancelled", http=None), ended("deadline", http=504), ended("defect", http=500)]
    assert [one["event"] for one in await told(*runs, level="debug")] == [
        "run done", "run cancelled", "run deadline", "run defect",
    ]  # fmt: skip
    assert len(await told(*runs)) == 3
    assert [one["level"] for one in await told(*runs, level="warning")] == ["warning", "error"]


async def test_a_form_or_a_level_that_there_is_not_is_refused() -> None:
    wrong: Any = "xml"
    with pytest.raises(DefinitionError, match="form is console or json"):
        await logged(form=wrong)
    with pytest.raises(DefinitionError, match="level is one of"):
        await logged(level=wrong)


# ---- what a line says -----------------------------------------------------------------------


async def test_a_line_says_what_somebody_would_search_for(autojump_clock: MockClock) -> None:
    result = await shop.run(shop.CHECKOUT, {"sql.execute": shop.sold_out}, tenant="acme", priority="interactive")
    (line,) = await told(result)
    assert list(line)[:3] == ["time", "level", "event"]
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "run failed",
        "run_id": shop.RUN_ID,
        "trace_id": tracing.trace_id(shop.RUN_ID),
        "flow": "checkout",
        "step": "reserve",
        "tenant": "acme",
        "priority": "interactive",
        "took_ms": pytest.approx(29.8),
        "cause": "FAILED cart: sold out (conflict cart cart_soldout) in reserve; undone: create_order, charge",
    }


async def test_a_request_is_told_with_its_route_and_status() -> None:
    (line,) = await told(ended("deadline", http=504, took=30_000_000))
    assert (line["route"], line["http"], line["took_ms"]) == ("GET /orders/{id}", 504, 30.0)


async def test_an_unresolved_write_comes_first(autojump_clock: MockClock) -> None:
    flow = Flow("checkout", [shop.verify, shop.plain_charge, shop.create_order, shop.render])
    result = await shop.run(flow, {"payments.charge": shop.keyed((9.0, 0))})
    (line,) = await told(result)
    assert line["level"] == "critical"
    assert line["cause"].startswith("UNRESOLVED payments.charge in plain_charge")
    assert line["unresolved"] == 1


async def test_a_defect_has_its_traceback_in_both_forms(autojump_clock: MockClock) -> None:
    result = await shop.run(Flow("d", [shop.count, shop.prices]), {})
    (line,) = await told(result)
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ZeroDivisionError: integer division or modulo by zero")
    assert (line["step"], line["level"]) == ("count", "error")
    first, *rest = await logged(result, form="console")
    assert "[error" in first
    assert "run defect" in first
    assert f"run_id={shop.RUN_ID}" in first
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    ZeroDivisionError: integer division or modulo by zero"


# ---- nothing leaks, nothing breaks out ------------------------------------------------------

HOSTILE = 'a"b\n{"level": "info"}\r\x1b[31m\x9b2J\u202e\u2028\x7f\x00é'


@pytest.mark.parametrize("form", ["json", "console"])
async def test_what_came_from_outside_stays_on_its_line(form: str) -> None:
    result = ended("deadline", http=504, tenant=HOSTILE, label=f"GET /{HOSTILE}")
    (line,) = (await logged(result, form=form))[:1] if form == "console" else await logged(result, form=form)
    assert line.isprintable()
    stream = io.StringIO()
    kind: Any = form
    async with open_logs(kind, stream):
        get_logger(**{HOSTILE: 1}).info(HOSTILE, a=HOSTILE, b=[HOSTILE], c={HOSTILE: HOSTILE.encode()})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    if form == "json":
        said = json.loads(text)
        assert (said["event"], said["a"], said["b"]) == (HOSTILE, HOSTILE, [HOSTILE])


async def test_secrets_are_veiled_in_messages_and_tracebacks(autojump_clock: MockClock) -> None:
    @step
    async def get_token() -> shop.Token:
        return await shop.tokenize("4111")

    @step
    async def use_token(token: shop.Token) -> Done:
        raise RuntimeError(f"the vault says no to {token}")

    result = await shop.run(Flow("vault", [get_token, use_token]), {})
    for form in ("json", "console"):
        text = "\n".join(await logged(result, form=form))
        assert "RuntimeError: the vault says no to " + MASK in text
        assert "tok_4111" not in text


async def test_a_step_that_failed_before_its_secret_was_known_shows_no_message(autojump_clock: MockClock) -> None:
    @step
    def make_token() -> shop.Token:
        raise RuntimeError("tok_half_made")

    @step
    async def use_token(token: shop.Token) -> Done:
        return Done()

    result = await shop.run(Flow("vault", [make_token, use_token]), {})
    (line,) = await told(result)
    assert "tok_half_made" not in json.dumps(line).replace('raise RuntimeError(\\"tok_half_made\\")', "")
    assert line["exception"].endswith(f"RuntimeError: {MASK}")


async def test_fields_of_a_sensitive_name_are_masked_and_so_is_what_one_configures() -> None:
    stream = io.StringIO()
    async with open_logs("json", stream, hidden=Hidden(frozenset({"iban"}))):
        get_logger(Authorization="Bearer x", IBAN="DE1", a={"cookie": "y", "b": 1}, s=Secret("z")).info("paid")
    said = json.loads(stream.getvalue())
    assert (said["Authorization"], said["IBAN"], said["a"], said["s"]) == (MASK, MASK, {"cookie": MASK, "b": 1}, MASK)


class Sullen:
    def __repr__(self) -> str:
        raise RuntimeError


async def test_values_that_cannot_be_written_do_not_spoil_the_line() -> None:
    stream = io.StringIO()
    endless: list[Any] = []
    endless.append(endless)
    async with open_logs("json", stream):
        get_logger().info("odd", a=Sullen(), b=float("nan"), c=10**1000, d=endless, e="x" * 100_000, f={1: (2, None)})
    said = json.loads(stream.getvalue())
    assert (said["a"], said["b"], said["c"], said["f"]) == ("<Sullen>", "nan", "a very large number", {"1": [2, None]})
    assert len(said["e"]) == 4_000


# ---- handlers -------------------------------------------------------------------------------


async def test_a_handler_logs_with_the_names_of_its_call() -> None:
    @effect(kind="bank.ask", access="read")
    async def ask(*, info: CallInfo = INJECTED) -> None:
        get_logger(info).warning("slow bank", bank="hsb")

    @step
    async def pay() -> Done:
        await ask()
        return Done()

    stream = io.StringIO()
    async with open_logs("json", stream), open_runtime(App(), seed=1) as runtime:
        await runtime.run(Flow("pay", [pay]), tenant="acme")
    said = json.loads(stream.getvalue())
    del said["time"]
    assert said == {
        "level": "warning",
        "event": "slow bank",
        "run_id": shop.RUN_ID,
        "trace_id": tracing.trace_id(shop.RUN_ID),
        "flow": "pay",
        "step": "pay",
        "tenant": "acme",
        "attempt": 1,
        "bank": "hsb",
    }


async def test_a_logger_is_good_for_all_levels_threads_and_exceptions() -> None:
    log = get_logger(module="shop")  # before any logs are open
    stream = io.StringIO()

    def elsewhere() -> None:
        log.critical("from a thread")

    async with open_logs("json", stream):
        log.debug("unheard")
        await trio.to_thread.run_sync(elsewhere)
        try:
            raise ValueError("odd")
        except ValueError:
            log.bind(a=1).exception("caught")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["module"]) == ("critical", "shop")
    assert (second["level"], second["a"]) == ("error", 1)
    assert second["exception"].endswith("ValueError: odd")


async def test_without_open_logs_it_is_for_the_program_to_say_where_lines_go() -> None:
    with structlog.testing.capture_logs() as caught:
        get_logger(a=1).warning("hello", b=2)
    assert caught == [{"a": 1, "b": 2, "event": "hello", "log_level": "warning"}]


async def test_a_defect_that_is_nobodys_answer_is_a_line() -> None:
    stream = io.StringIO()
    async with open_logs("json", stream) as logs:
        try:
            raise RuntimeError("on_error is wrong")
        except RuntimeError as defect:
            logs.report(defect)
    said = json.loads(stream.getvalue())
    assert (said["level"], said["event"]) == ("error", "defect")
    assert said["exception"].endswith("RuntimeError: on_error is wrong")


# ---- too much -------------------------------------------------------------------------------


async def test_of_a_storm_so_many_have_lines_and_the_next_one_says_how_many_had_none() -> None:
    now = [100.0]
    stream = io.StringIO()
    async with open_logs("json", stream, clock=lambda: now[0]) as logs:
        logs.take([ended("deadline", http=504)] * 250)
        logs.take([ended("defect", http=500)])
        now[0] += 1.0
        logs.take([ended("deadline", http=504)] * 2)
        statistics = logs.statistics()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["run deadline"] * 100 + ["run defect"] + ["run deadline"] * 2
    assert [line["unlogged"] for line in lines if "unlogged" in line] == [150]
    assert statistics.unlogged == 150


class Stuck(io.StringIO):
    """A stream that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def write(self, text: str, /) -> int:
        self.reached.set()
        self.let_go.wait(60)
        return super().write(text)


@asynccontextmanager
async def stuck(stream: Stuck) -> AsyncIterator[Logs]:
    """Logs whose thread hangs in the stream."""
    async with open_logs("json", stream) as logs:
        try:
            get_logger().info("first")
            await trio.to_thread.run_sync(stream.reached.wait, 60)
            yield logs
        finally:
            stream.let_go.set()


async def test_a_stream_that_blocks_holds_up_nobody_and_what_is_too_much_is_counted() -> None:
    stream = Stuck()
    async with stuck(stream) as logs:
        for _ in range(module.MOST_PENDING + 5):
            get_logger().info("more")
        assert logs.statistics().dropped == 5
        assert logs.statistics().pending == module.MOST_PENDING
        (family,) = logs.families()
        assert [getattr(point, "value", None) for point in family.points] == [5.0]
    assert len(stream.getvalue().splitlines()) == module.MOST_PENDING + 1


async def test_a_reader_that_has_gone_is_no_error() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as stream:
        async with open_logs("json", stream) as logs:
            os.close(ours)
            logs.take([ended("defect", http=500)])
        assert (logs.statistics().written, logs.statistics().failed) == (0, 1)


async def test_a_file_gets_whole_lines_and_all_of_them_before_it_is_over() -> None:
    ours, theirs = os.pipe()
    read: list[bytes] = []

    def reader() -> None:
        with os.fdopen(ours, "rb") as pipe:
            read.extend(pipe)

    thread = threading.Thread(target=reader)
    thread.start()
    with os.fdopen(theirs, "w") as stream:
        async with open_logs("json", stream) as logs:
            for number in range(1_000):
                get_logger().info("n", number=number, more="é" * 100)
        assert logs.statistics().written == 1_000
    await trio.to_thread.run_sync(thread.join)
    assert [json.loads(line)["number"] for line in read] == list(range(1_000))


async def test_after_the_end_nothing_is_written() -> None:
    stream = io.StringIO()
    async with open_logs("json", stream) as logs:
        pass
    logs.take([ended("defect", http=500)])
    assert (stream.getvalue(), logs.statistics().dropped) == ("", 1)


async def test_a_run_that_cannot_be_told_does_not_end_the_log() -> None:
    torn = Timeline("r", "f", "1", "a", "default", [("received", 0, "f", None), ("failed", 1, "nonsense", 5)])
    lines = await told(Result(torn, Ending("defect")), ended("defect", http=500))
    assert [line["event"] for line in lines] == ["a line could not be made", "run defect"]
