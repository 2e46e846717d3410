"""The overview: what the server is doing now, in one document.

Law: it reads what the rooms count anyway, and asks nobody to do anything: looking changes nothing, but for one nap of
some milliseconds, by which it sees how late the loop is, and one question to the journal now and then. It is made once
a second at most, however many look. Lists are
cut to what a page can show; texts that come from outside are escaped.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any, Final

import attrs
import trio

from zerver.errors import JournalError
from zerver.runtime import Runtime
from zerver.runtime.actor import ActorStatistics
from zerver.runtime.supervisor import Supervisor, SupervisorStatistics
from zerver.trace import Ring
from zerver.trace.veil import escaped
from zerver.ui.rates import WINDOW, Rates

_FRESH: Final = 0.9  # seconds for which an overview is good
_NAP: Final = 0.005  # seconds
_JOURNAL_FRESH: Final = 10.0  # seconds: to count its runs is work for a database
_JOURNAL_PATIENCE: Final = 1.0  # seconds
_MOST_ROUTES: Final = 200
_MOST_TENANTS: Final = 50
_MOST_RUNS: Final = 50  # under way, in the tree of actors
_MOST_ACTORS: Final = 500

Document = dict[str, Any]


@attrs.frozen(eq=False)
class Server:
    """What is looked at. addresses: URLs. supervisors: the app's own trees of actors."""

    runtime: Runtime
    addresses: Sequence[str] = ()
    supervisors: Sequence[Supervisor] = ()
    began_unix_ns: int = attrs.field(factory=time.time_ns)

    def identity(self) -> Document:
        """What a page says of where it is."""
        return {"app": escaped(self.runtime.app.name), "pid": os.getpid()}


class Overviews:
    """Makes overviews. trace: what is to be said of the trace itself."""

    def __init__(self, rates: Rates, trace: Callable[[], Document]) -> None:
        self._rates = rates
        self._trace = trace
        self._lags: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # (when, seconds)
        self._made: Document | None = None
        self._made_at = float("-inf")
        self._making = trio.Lock()
        self._journal: Document | None = None
        self._journal_at = float("-inf")

    async def get(self, server: Server) -> Document:
        """The overview, as `zerver.ui.api` has it: a second old at most."""
        async with self._making:
            now = trio.current_time()
            if self._made is None or now - self._made_at >= _FRESH:
                await self._nap()
                await self._ask_journal(server.runtime)
                self._made, self._made_at = self.make(server), trio.current_time()
            return self._made

    async def _nap(self) -> None:
        before = trio.current_time()
        await trio.sleep(_NAP)
        now = trio.current_time()
        self._lags.append((now, max(0.0, now - before - _NAP)))

    async def _ask_journal(self, runtime: Runtime) -> None:
        """Count the journal's runs again; a journal that does not answer is left as it was."""
        now = trio.current_time()
        if runtime.clerk is None or now - self._journal_at < _JOURNAL_FRESH:
            return
        self._journal_at = now
        journal = runtime.clerk.journal
        with trio.move_on_after(_JOURNAL_PATIENCE), suppress(JournalError):
            tallies, due = dict(await journal.tallies()), await journal.due()
            self._journal = {
                "place": escaped(journal.statistics().place),
                "unfinished": tallies.pop("", 0),
                "parked": await journal.parked(),
                "parked_due_ns": _ns(due),
                "by_status": {escaped(status): count for status, count in sorted(tallies.items())},
            }

    def make(self, server: Server) -> Document:
        """A new one."""
        statistics = server.runtime.statistics()
        running: dict[str, int] = {}
        runs_of: dict[str, int] = {}
        under_way = server.runtime.under_way()
        for run in under_way:
            label = run.timeline.label or run.timeline.flow
            running[label] = running.get(label, 0) + 1
            runs_of[run.timeline.tenant] = runs_of.get(run.timeline.tenant, 0) + 1
        return {
            "server": _server(server),
            "runs": {
                "running": statistics.running,
                "ended": statistics.ended,
                "unresolved": statistics.unresolved,
                "stuck": len(statistics.stuck),
                "observer_errors": statistics.observer_errors,
            },
            "journal": self._journal,
            "window_ns": WINDOW * 1_000_000_000,
            "routes": self._routes(running),
            "admission": {
                **_plain(statistics.admission, leave=("classes", "reasons")),
                "reasons": dict(statistics.admission.reasons),
                "classes": [_plain(one) for one in statistics.admission.classes],
            },
            "tenants": self._tenants(server.runtime, runs_of),
            "turns": {
                "waiting": list(statistics.turns.waiting),
                "seconds": statistics.turns.seconds,
                "demoted": list(statistics.turns.demoted),
                "overruns": [
                    {**_plain(one, leave=("longest",)), "longest_ns": int(one.longest * 1e9)}
                    for one in statistics.turns.overruns
                ],
            },
            "loop": self._loop(),
            "targets": [_target(one) for one in statistics.targets],
            "pools": pools(server.runtime.resources),
            "actors": actors(server, statistics.admission.queued),
            "trace": self._trace(),
        }

    def _routes(self, running: Mapping[str, int]) -> list[Document]:
        told = self._rates.routes()[:_MOST_ROUTES]
        known = {one["label"] for one in told}
        told += [{"label": label, "flow": "", **_NEVER_ASKED} for label in running if label not in known]
        return [{**one, "label": escaped(one["label"]), "running": running.get(one["label"], 0)} for one in told]

    def _tenants(self, runtime: Runtime, running: Mapping[str, int]) -> list[Document]:
        found = []
        for one in self._rates.tenants()[:_MOST_TENANTS]:
            rule = runtime.tenants.get(one["name"])
            found.append(
                {
                    "name": escaped(one["name"]),
                    "running": running.get(one["name"], 0),
                    **{name: one[name] for name in ("rate", "count", "errors", "refused", "p99_ns")},
                    "weight": rule.weight,
                    "rate_limit": rule.rate,
                }
            )
        return found

    def _loop(self) -> Document:
        recent = trio.current_time() - WINDOW
        lags = [lag for at, lag in self._lags if at >= recent]
        return {"lag_ns": _ns(lags[-1]) if lags else None, "worst_ns": _ns(max(lags)) if lags else None}


# ---- the parts ------------------------------------------------------------------------------


_NEVER_ASKED: Mapping[str, Any] = {
    "rate": 0.0, "count": 0, "errors": 0, "refused": 0, "p50_ns": None, "p99_ns": None, "spark": [0] * WINDOW,
}  # fmt: skip


def _server(server: Server) -> Document:
    now = time.time_ns()
    return {
        **server.identity(),
        "version": version("zerver"),
        "addresses": list(server.addresses),
        "began_unix_ms": server.began_unix_ns / 1e6,
        "now_unix_ms": now / 1e6,
        "uptime_ns": max(0, now - server.began_unix_ns),
    }


def _target(one: Any) -> Document:
    told = _plain(one, leave=("operations", "p50", "p95", "p99", "waiting_by_class"))
    return {
        **told,
        "waiting_by_class": list(one.waiting_by_class),
        **_percentiles(one),
        "operations": [{**_plain(op, leave=("p50", "p95", "p99")), **_percentiles(op)} for op in one.operations],
    }


def _percentiles(one: Any) -> Document:
    return {f"{name}_ns": _ns(getattr(one, name)) for name in ("p50", "p95", "p99")}


def pools(resources: Mapping[type, Any]) -> list[Document]:
    """What the app's resources say of themselves: those that have statistics."""
    found = []
    for kind, resource in resources.items():
        ask = getattr(resource, "statistics", None)
        if not callable(ask):
            continue
        try:
            told = ask()
        except Exception:  # a resource may be the user's own, and one that fails must not hide the others
            continue
        if attrs.has(type(told)):
            numbers = {name: said for name, said in _plain(told).items() if isinstance(said, int | float | str)}
            found.append({"name": escaped(kind.__name__), "kind": type(resource).__name__, "numbers": numbers})
    return found


# ---- the tree of actors ---------------------------------------------------------------------


def actors(server: Server, queued: int) -> Document:
    """Who is there, and under whom: the runtime's own actors, the runs, and the app's supervisors."""
    runtime = server.runtime
    under_way = runtime.under_way()
    runs = [_run(run) for run in under_way[:_MOST_RUNS]]
    left = len(under_way) - len(runs)
    waits = f"{queued} waiting" if queued else ""
    return _actor(
        "runtime",
        "runtime",
        "running",
        children=[
            _actor("admission", "actor", "running", waits),
            _actor("turns", "actor", "running"),
            _actor(
                "runs",
                "group",
                "running",
                f"{len(under_way)} under way" + (f", {left} not shown" if left else ""),
                runs,
            ),
            *(_supervisor(supervisor.statistics(), [_MOST_ACTORS]) for supervisor in server.supervisors),
        ],
    )


def _actor(
    name: str, kind: str, state: str, note: str = "", children: Iterable[Document] = (), restarts: int = 0
) -> Document:
    told = {"name": escaped(name), "kind": kind, "state": state, "note": note, "restarts": restarts}
    return {**told, "children": list(children)}


def _run(run: Any) -> Document:
    kind, _, subject, _ = run.records[-1]
    at = subject.step if hasattr(subject, "step") and isinstance(subject.step, str) else getattr(subject, "name", "")
    state = "waiting" if run.awaited else "running"
    return _actor(
        run.run_id, "run", state, escaped(f"{run.timeline.label or run.timeline.flow} · {kind} {at}".rstrip())
    )


def _supervisor(told: SupervisorStatistics | ActorStatistics, room: list[int]) -> Document:
    """room: for how many more there is, of all trees below one supervisor."""
    if isinstance(told, ActorStatistics):
        box = told.mailbox
        note = f"mailbox {box.waiting} of {box.capacity}, handled {told.handled}, crashes {told.crashes}"
        return _actor(told.name, "actor", told.state, note, restarts=told.restarts)
    children = []
    for child in told.children:
        if room[0] <= 0:
            break
        room[0] -= 1
        children.append(_supervisor(child, room))
    return _actor(told.name, "supervisor", told.state, told.strategy, children, told.restarts)


def trace_numbers(ring: Ring | None) -> Document | None:
    """What the ring holds."""
    return None if ring is None else _plain(ring.statistics())


def _plain(one: Any, leave: Sequence[str] = ()) -> Document:
    return {field.name: getattr(one, field.name) for field in attrs.fields(type(one)) if field.name not in leave}


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1e9)
