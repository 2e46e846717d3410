"""Logs: one line for each run that is worth one, and lines of the handlers' own, for people or for programs.

Law: nobody waits for a log. What is logged is put in a bounded queue; a thread makes the lines and writes them, and a
stream that nobody reads holds up that thread and nothing else. What does not fit is dropped and counted. One line per
run at most; so many a second of each status, of which the next one says how many had none. A line stays a line: what
came from outside cannot break it, speak to a terminal, or bring a secret into it.

    level       runs
    critical    unresolved: nobody knows whether a write is right
    error       defects, and runs that were done and answered with 5xx
    warning     deadline passed; an effect failed and nobody caught it; any other 5xx; refused with 503
    info        the caller's own doing: 4xx, refused with 429, cancelled
    debug       done

Steps do not log: they are pure, and their runs have lines already. A handler does:

    @effect(kind="payments.charge", access="write")
    async def charge(cents: int, *, info: CallInfo = INJECTED) -> Charge:
        get_logger(info).warning("slow bank", bank="hsb")

Refused: a contextvar that every call sets, so that any logger would know its run. It costs each effect of each app some
time, for the few that log, and is not there in processes. A CallInfo costs nothing until a handler asks for it, and
goes wherever it is given.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeAlias

import attrs
import trio

from zerver.core import tracing
from zerver.core.effects import CallInfo
from zerver.core.quotas import Bucket
from zerver.core.tickets import Refusal
from zerver.errors import DefinitionError, EffectError
from zerver.runtime.result import Result
from zerver.trace import describe
from zerver.trace.cause import causes
from zerver.trace.facts import Facts
from zerver.trace.hidden import NOTHING_HIDDEN, Hidden
from zerver.trace.telemetry import instruments as i
from zerver.trace.telemetry.instruments import Family, Number
from zerver.trace.telemetry.lines import TRACEBACK, Event, Form, Level, harmless, line_maker
from zerver.trace.veil import Veil

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

#: Runs of one status that have a line, a second.
PER_SECOND: Final = 100

#: Lines that may wait to be written.
MOST_PENDING: Final = 2_000

_LEVELS: Final[dict[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_AT_ONCE: Final = 4096  # bytes that a pipe takes whole: lines of several workers do not come apart (POSIX, PIPE_BUF)
_BATCH: Final = 256  # lines
_PATIENCE: Final = 2.0  # seconds for what is left when it is closed; a stream that nobody reads gets no more


class Stream(Protocol):
    """Where lines go, as `sys.stderr`. With a file descriptor of its own, that is written to."""

    def write(self, text: str, /) -> Any: ...
    def flush(self) -> Any: ...


@attrs.frozen
class LogStatistics:
    """Lines since the start. written; dropped: as too many waited, or it was closed; unlogged: runs beyond what a
    second may have; failed: the stream took no more, or a line could not be made. pending: now.
    """

    written: int
    dropped: int
    unlogged: int
    failed: int
    pending: int


@attrs.frozen(eq=False)
class _Ended:
    """A run that is to have a line. beside: how many of its status had none since the last one that had."""

    result: Result
    level: Level
    time: float
    beside: int


_Pending: TypeAlias = _Ended | Event | None  # None: there is nothing to come


class Logs:
    """Writes lines. Made by `open_logs`; a listener of a recorder.

    hidden: names that are masked, as fields of runs and of lines.
    """

    def __init__(self, form: Form, stream: Stream, level: Level, hidden: Hidden, clock: Callable[[], float]) -> None:
        self._make = line_maker(form, colors=_is_terminal(stream))
        self._write = _writer(stream)
        self._least = _LEVELS[level]
        self._hidden = hidden
        self._clock = clock
        self._queue: queue.SimpleQueue[_Pending] = queue.SimpleQueue()
        self._closed = False
        self._buckets: dict[str, Bucket] = {}
        self._beside: dict[str, int] = {}
        self._written = self._dropped = self._unlogged = self._failed = 0
        self._counting = threading.Lock()  # several threads may drop
        self._thread = threading.Thread(target=self._run, name="zerver logs", daemon=True)

    def take(self, results: Sequence[Result]) -> None:
        """Log runs that have ended: here only whether they have lines is decided."""
        now = self._clock()
        for result in results:
            level = level_of(result)
            if _LEVELS[level] < self._least:
                continue
            beside = self._beside_if_due("unresolved" if result.unresolved else result.status, now)
            if beside is not None:
                self._put(_Ended(result, level, time.time(), beside))

    def report(self, defect: Exception) -> None:
        """Log an exception that is nobody's answer, as that of an `on_error`: an `on_defect`. Defects of steps do not
        come this way; they are their runs' own lines.
        """
        beside = self._beside_if_due("report", self._clock())
        if beside is not None:
            more = {"unlogged": beside} if beside else {}
            self.log("error", {"event": "defect", TRACEBACK: "".join(traceback.format_exception(defect)), **more})

    def wants(self, level: str) -> bool:
        """Whether anything of this level is written."""
        return _LEVELS.get(level, _LEVELS["error"]) >= self._least

    def log(self, level: str, event: Mapping[str, Any]) -> None:
        """Log something else, from any thread. level: a method of structlog's; what is unknown is an error."""
        if self.wants(level):
            said = level if level in _LEVELS else "error"
            self._put({**harmless(event, self._hidden), "level": said, "time": time.time()})

    def statistics(self) -> LogStatistics:
        return LogStatistics(self._written, self._dropped, self._unlogged, self._failed, self._queue.qsize())

    def families(self) -> Iterator[Family]:
        """For `Metrics.watch`."""
        lost = self._dropped + self._unlogged + self._failed
        yield Family(i.LOGS_DROPPED, (Number((), float(lost)),))

    def start(self) -> None:
        """Write from now on."""
        self._thread.start()

    def close(self) -> None:
        """Write what is left, in two seconds at most."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(_PATIENCE)

    def _beside_if_due(self, kind: str, now: float) -> int | None:
        """How many of a kind had no line since the last one; None when this one has none either."""
        bucket = self._buckets.setdefault(kind, Bucket(PER_SECOND, PER_SECOND, now))
        if bucket.take(now):
            return self._beside.pop(kind, 0)
        self._unlogged += 1
        self._beside[kind] = self._beside.get(kind, 0) + 1
        return None

    def _put(self, pending: _Pending) -> None:
        if self._closed or self._queue.qsize() >= MOST_PENDING:
            with self._counting:
                self._dropped += 1
        else:
            self._queue.put(pending)

    # -- in the thread --

    def _run(self) -> None:
        over = False
        while not over:
            batch = [self._queue.get()]
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            over = None in batch
            lines = [self._line(one) for one in batch if one is not None]
            try:
                self._write(lines)
            except (OSError, ValueError):  # whoever read it has gone; the next one may be read again
                self._failed += len(lines)
            else:
                self._written += len(lines)

    def _line(self, pending: _Ended | Event) -> str:
        try:
            return self._make(run_event(pending, self._hidden) if isinstance(pending, _Ended) else pending)
        except Exception as defect:  # a run that cannot be told must not end the thread that tells of the others
            self._failed += 1
            told = {"event": "a line could not be made", "level": "error", "why": type(defect).__name__}
            return self._make({**told, "time": time.time()})


# ---- what is logged of a run ----------------------------------------------------------------


def level_of(result: Result) -> Level:
    """How loud a run is."""
    if result.unresolved:
        return "critical"
    http = result.timeline.answered or 0
    return _LOUDNESS[result.status](result, http)


def _failed(result: Result, http: int) -> Level:
    return "warning" if http >= 500 or isinstance(result.cause, EffectError) else "info"


def _refused(result: Result, http: int) -> Level:
    own_doing = isinstance(result.cause, Refusal) and result.cause.status == 429
    return "info" if own_doing else "warning"


_LOUDNESS: Final[dict[str, Callable[[Result, int], Level]]] = {
    "defect": lambda result, http: "error",
    "done": lambda result, http: "error" if http >= 500 else "debug",
    "deadline": lambda result, http: "warning",
    "cancelled": lambda result, http: "info",
    "failed": _failed,
    "refused": _refused,
}


def run_event(ended: _Ended, hidden: Hidden = NOTHING_HIDDEN) -> Event:
    """What a line says of a run. Pure."""
    result = ended.result
    timeline = result.timeline
    facts = Facts(timeline)
    veil = Veil(facts, hidden)
    accounts = timeline.accounts
    step = facts.ended_by
    told = list(causes(facts, veil, result.unresolved, None))
    loud = [line for line in told if line.startswith("UNRESOLVED")]
    event: Event = {
        "event": f"run {result.status}",
        "level": ended.level,
        "time": ended.time,
        "route": timeline.label,
        "http": timeline.answered,
        "run_id": timeline.run_id,
        "trace_id": tracing.trace_id(timeline.run_id, timeline.parent),
        "flow": timeline.flow,
        "step": step,
        "tenant": veil.text(timeline.tenant),
        "priority": timeline.priority,
        "took_ms": round((accounts.total - accounts.parked) / 1e6, 3),
        "cause": next(iter((*loud, *told)), ""),
        "unresolved": len(result.unresolved),
        "unlogged": ended.beside,
    }
    if isinstance(result.cause, BaseException) and ended.level in ("warning", "error", "critical"):
        event[TRACEBACK] = _traceback(result.cause, veil, step)
    said = {key: value for key, value in event.items() if value not in ("", None, 0) or key == "took_ms"}
    return harmless(said, NOTHING_HIDDEN)  # the names are ours, and the veil has been over the values


def _traceback(error: BaseException, veil: Veil, step: str) -> str:
    """Where it came from. Of a step that shows nothing the lines of code are shown, and no message."""
    if not veil.hides(step):
        return veil.text("".join(traceback.format_exception(error)))
    return "".join(traceback.format_tb(error.__traceback__)) + describe.message(error, veil, step)


# ---- opening --------------------------------------------------------------------------------


_opened: list[Logs] = []


@asynccontextmanager
async def open_logs(
    form: Form,
    stream: Stream,
    *,
    level: Level = "info",
    hidden: Hidden = NOTHING_HIDDEN,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Logs, None]:
    """Write log lines to a stream, from a thread, until the block is left; what waits by then is written first.

        async with open_logs("json", sys.stderr) as logs, open_recorder(listeners=[logs]) as recorder: ...

    level: the least that has a line. clock: seconds, by which runs have so many lines a second. It goes around the
    recorder, which hands over the last runs when it is closed. `get_logger` writes to the one that was opened last.

    Raises DefinitionError for a form or a level that there is not.
    """
    if form not in ("console", "json") or level not in _LEVELS:
        raise DefinitionError(
            f"open_logs({form!r}, level={level!r})", f"form is console or json; level is one of {', '.join(_LEVELS)}"
        )
    logs = Logs(form, stream, level, hidden, clock)
    logs.start()
    _opened.append(logs)
    try:
        yield logs
    finally:
        _opened.remove(logs)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(logs.close)  # bounded by itself


def get_logger(info: CallInfo | None = None, /, **values: object) -> FilteringBoundLogger:
    """A structlog logger for handlers, with the values bound to it. From any thread; never waits.

    info: of the call that is being performed; a handler that takes `*, info: CallInfo` gets it. It binds run_id,
    trace_id, flow, step, tenant and attempt. Without open logs, as in tests, it goes to structlog as the program has
    configured that.
    """
    import structlog  # here: a process that does not log does not load it

    bound: dict[str, object] = {}
    if info is not None:
        bound = {
            "run_id": info.run_id,
            "trace_id": tracing.trace_id(info.run_id, info.parent),
            "flow": info.flow,
            "step": info.step,
            "tenant": info.tenant,
            "attempt": info.attempt,
        }
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None,
        processors=[_drop_early, structlog.processors.format_exc_info, _send],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS["debug"]),
    ).bind(**bound, **values)
    return logger


def _drop_early(_: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What nobody will write is not worth a traceback."""
    import structlog

    if _opened and not _opened[-1].wants(method):
        raise structlog.DropEvent
    return event


def _send(_: object, method: str, event: MutableMapping[str, Any]) -> NoReturn:
    """The end of the chain: hand the event to who writes it."""
    import structlog

    if _opened:
        _opened[-1].log(method, event)
    else:
        getattr(structlog.get_logger(), method)(event.pop("event", ""), **event)
    raise structlog.DropEvent


# ---- streams --------------------------------------------------------------------------------


def _is_terminal(stream: Stream) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty is not None and isatty()) and not os.environ.get("NO_COLOR")


def _writer(stream: Stream) -> Callable[[Sequence[str]], None]:
    """What writes lines to a stream, around its buffer if it has a file: a thread that hangs in it would hold its lock,
    and Python, when it ends, could not flush it.
    """
    try:
        fd = stream.fileno()  # type: ignore[attr-defined]  # not every stream has one: that is what is asked here
    except (AttributeError, OSError, ValueError):
        return lambda lines: _write_to(stream, lines)
    stream.flush()
    return lambda lines: _write_to_file(fd, lines)


def _write_to(stream: Stream, lines: Sequence[str]) -> None:
    stream.write("".join(lines))
    stream.flush()


def _write_to_file(fd: int, lines: Sequence[str]) -> None:
    piece = b""
    for line in lines:
        data = line.encode("utf-8", "backslashreplace")
        if piece and len(piece) + len(data) > _AT_ONCE:
            _write_all(fd, piece)
            piece = b""
        piece += data
    _write_all(fd, piece)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # somebody has made it so; here is the place to wait
            select.select([], [fd], [])
