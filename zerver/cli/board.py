"""The board of `zerver top`: one frame, from the answers of a server's API.

Law: a pure function of JSON that somebody else has made: what is missing is a dash, never an error, and no text of it
reaches the terminal but as plain characters. Rich is imported when a frame is drawn, not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from zerver.trace.describe import cut, milliseconds
from zerver.trace.veil import escaped

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

_NONE: Final = "–"
_LONGEST: Final = 60  # characters of a text in a column
_RUNS: Final = {"running": "cyan", "done": "green", "refused": "yellow"}

Answer = Mapping[str, Any]


def draw(overview: Answer, runs: Sequence[Answer], *, rows: int = 10, trouble: str = "") -> Group:
    """One frame. rows: of each table. trouble: what is wrong with the connection, "" for nothing."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_header(overview)]
    if trouble:
        parts.append(Text(_plain(trouble, 200), style="bold red"))
    tables = (
        _routes(_items(overview, "routes"), rows),
        _classes(_items(overview, "admission", "classes")),
        _tenants(_items(overview, "tenants"), rows),
        _recent(runs, rows),
        _troubled(_items(overview, "targets"), _items(overview, "pools"), rows),
    )
    parts += [table for table in tables if table is not None]
    return Group(*parts)


# ---- its parts ------------------------------------------------------------------------------


def _header(overview: Answer) -> RenderableType:
    from rich.text import Text

    server, runs, admission = (_part(overview, name) for name in ("server", "runs", "admission"))
    classes = _items(overview, "admission", "classes")
    limits = [_number(one.get("limit")) for one in classes if one.get("limit") is not None]
    rate = sum(_number(route.get("rate")) for route in _items(overview, "routes"))
    loop = _part(overview, "loop")
    head = Text(f"{_plain(server.get('app'))}  ", style="bold")
    head.append(" ".join(map(_plain, server.get("addresses") or ())) or _NONE, style="cyan")
    head.append(f"  pid {_plain(server.get('pid'))}  up {_long(server.get('uptime_ns'))}", style="none")
    counts = (
        ("req/s", f"{rate:.1f}", False),
        ("running", _plain(runs.get("running")), False),
        ("queued", _plain(admission.get("queued")), bool(admission.get("queued"))),
        ("limit", _limit(max(limits)) if limits else _NONE, False),  # a class's is of those above it, too
        ("refused", _plain(admission.get("refused")), bool(admission.get("refused"))),
        ("unresolved", _plain(runs.get("unresolved")), bool(runs.get("unresolved"))),
        *([("stuck", _plain(runs["stuck"]), True)] if runs.get("stuck") else ()),
        ("loop lag", f"{_time(loop.get('lag_ns'))} (worst {_time(loop.get('worst_ns'))})", _is_late(loop)),
    )
    head.append("\n", style="none")
    for name, value, loud in counts:
        head.append(f"{name} ", style="dim")
        head.append(f"{value}  ", style="bold red" if loud else "bold")
    if admission.get("draining"):
        head.append("draining", style="bold yellow")
    return head


def _is_late(loop: Answer) -> bool:
    return _number(loop.get("lag_ns")) >= 50_000_000


def _routes(routes: Sequence[Answer], rows: int) -> Table | None:
    table = _table("routes", "route", "req/s", "p50", "p99", "errors", "refused", "running")
    busy = sorted(routes, key=lambda route: -_number(route.get("rate")))
    for route in busy[:rows]:
        table.add_row(
            _text(route.get("label") or route.get("flow")),
            f"{_number(route.get('rate')):.1f}",
            _time(route.get("p50_ns")),
            _time(route.get("p99_ns")),
            _loud(route.get("errors"), "red"),
            _loud(route.get("refused"), "yellow"),
            _plain(route.get("running")),
        )
    return _more(table, len(routes) - rows)


def _classes(classes: Sequence[Answer]) -> Table | None:
    table = _table("classes", "class", "running", "queued", "limit", "admitted", "refused", "cpu/s")
    for one in classes:
        table.add_row(
            _text(one.get("priority")),
            _plain(one.get("running")),
            _loud(one.get("queued"), "yellow"),
            _limit(one.get("limit")),
            _plain(one.get("admitted")),
            _loud(one.get("refused"), "yellow"),
            f"{_number(one.get('rate')):.2f}",
        )
    return _more(table, 0)


def _tenants(tenants: Sequence[Answer], rows: int) -> Table | None:
    table = _table("tenants", "tenant", "running", "runs", "errors", "refused", "p99", "weight")
    for tenant in tenants[:rows]:
        table.add_row(
            _text(tenant.get("name")),
            _plain(tenant.get("running")),
            _plain(tenant.get("count")),
            _loud(tenant.get("errors"), "red"),
            _loud(tenant.get("refused"), "yellow"),
            _time(tenant.get("p99_ns")),
            _plain(tenant.get("weight")),
        )
    return _more(table, len(tenants) - rows)


def _recent(runs: Sequence[Answer], rows: int) -> Table | None:
    from rich.text import Text

    table = _table("runs", "run", "route", "status", "took", "tenant", "slowest", "why", right=("took",))
    for run in runs[:rows]:
        status = _plain(run.get("status"))
        http = run.get("http")
        word = status if http is None else f"{status} {_plain(http)}"
        table.add_row(
            _text(str(run.get("id", _NONE)).removeprefix("req_")[:8]),
            _text(run.get("label") or run.get("flow")),
            Text(word, style="bold red" if run.get("unresolved") else _RUNS.get(status, "red")),
            _time(run.get("took_ns")),
            _text(run.get("tenant")),
            _text(run.get("slow_step")),
            _text(run.get("cause")),
        )
    return _more(table, len(runs) - rows)


def _troubled(targets: Sequence[Answer], pools: Sequence[Answer], rows: int) -> Table | None:
    """Breakers that are not closed, targets and pools that somebody waits for."""
    table = _table("not as usual", "what", "state", "says", right=())
    found = 0
    for target in targets:
        operations = [one for one in target.get("operations") or () if _open(one)]
        if _open(target) or operations or target.get("waiting"):
            found += 1
            says = f"{_plain(target.get('failures'))} of {_plain(target.get('attempts'))} attempts failed"
            says += f", {_plain(target.get('waiting'))} waiting" if target.get("waiting") else ""
            says += f"; {', '.join(_plain(one.get('name')) for one in operations)}" if operations else ""
            table.add_row(_text(target.get("name")), _loud(target.get("breaker"), "red"), _text(says, 100))
    for pool in pools:
        numbers = pool.get("numbers") or {}
        busy = {name: number for name, number in numbers.items() if name in ("waiting", "closed") and number}
        if busy:
            found += 1
            says = ", ".join(f"{_plain(name)} {_plain(number)}" for name, number in numbers.items())
            table.add_row(_text(pool.get("name")), _text(pool.get("kind")), _text(says, 100))
    return _more(table, 0) if found else None


def _open(target: Answer) -> bool:
    return target.get("breaker") not in (None, "closed")


# ---- small things ---------------------------------------------------------------------------


def _table(title: str, *columns: str, right: Iterable[str] | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold dim", box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, name in enumerate(columns):
        numbers = index > 0 if right is None else name in right
        table.add_column(name, justify="right" if numbers else "left", no_wrap=True, overflow="ellipsis")
    return table


def _more(table: Table, left: int) -> Table | None:
    if left > 0:
        table.caption, table.caption_justify = f"and {left} more", "left"
    return table if table.row_count else None


def _part(answer: Answer, name: str) -> Answer:
    found = answer.get(name)
    return found if isinstance(found, Mapping) else {}


def _items(answer: Answer, *path: str) -> Sequence[Answer]:
    for name in path[:-1]:
        answer = _part(answer, name)
    found = answer.get(path[-1])
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _plain(value: Any, longest: int = _LONGEST) -> str:
    return _NONE if value is None else cut(escaped(f"{value:g}" if isinstance(value, float) else str(value)), longest)


def _limit(value: Any) -> str:
    """It moves in fractions; seats are whole."""
    return f"{value:.0f}" if isinstance(value, int | float) else _NONE


def _text(value: Any, longest: int = _LONGEST) -> RenderableType:
    """As it is: `[red]` in a tenant's name is a name, and no colour."""
    from rich.text import Text

    return Text(_plain(value, longest) or _NONE)


def _loud(value: Any, style: str) -> RenderableType:
    from rich.text import Text

    return Text(_plain(value), style=f"bold {style}" if value else "none")


def _time(ns: Any) -> str:
    return milliseconds(int(ns)) if isinstance(ns, int | float) else _NONE


def _long(ns: Any) -> str:
    """`12s`, `5m`, `3h02m`, `4d`: how long a server is up."""
    if not isinstance(ns, int | float):
        return _NONE
    minutes, seconds = divmod(int(ns / 1e9), 60)
    if minutes < 1:
        return f"{seconds}s"
    if minutes < 60:
        return f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes < 1440 else f"{minutes // 1440}d"
