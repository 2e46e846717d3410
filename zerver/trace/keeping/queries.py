"""Queries: from a filter to the questions that a trace file is asked.

Law: pure text. Each query reads one index that is ordered as the list is, so it stops when the list is full. Which
index that is, is chosen here: SQLite would have to guess which filter finds few. A test reads the plan of every one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from zerver.trace.summary import Filter

#: The index to read, the conditions, and their values.
Query: TypeAlias = tuple[str, str, tuple[Any, ...]]


def queries(filter: Filter, routes: Sequence[int], codes: Sequence[int]) -> Iterator[Query]:
    """The queries that together find the runs that fit, each the newest first.

    routes: the numbers of those that the filter's route means; a flow has one per version and label. codes: the HTTP
    statuses in the file that its status means. Where there are several, as many lists are to be merged.
    """
    conditions = list(_conditions(filter))
    kind = "failed" if _failed(filter) else "slow" if filter.slow else ""
    if filter.route and not routes:
        return
    if filter.unresolved and filter.route:
        yield _query("unresolved_by_age", conditions, (f"route in ({', '.join('?' * len(routes))})", tuple(routes)))
    elif filter.unresolved:
        yield _query("unresolved_by_age", conditions)
    elif filter.route:
        for route in routes:
            yield _query(f"{kind or 'runs'}_by_route", conditions, ("route = ?", (route,)))
    elif kind:
        yield _query(f"{kind}_by_age", conditions)
    elif filter.http is not None:
        for code in codes:
            yield _query("runs_by_http", conditions, ("http = ?", (code,)))
    elif filter.tenant is not None:
        yield _query("runs_by_tenant", conditions)
    else:
        yield _query("runs_by_kept" if filter.kept else "runs_by_age", conditions)


def cleaned(said: str) -> str:
    """An id as it was meant: copied with what stands around it, or with the ellipsis of a shortened one."""
    known = said.encode("utf-8", "replace").decode()  # a terminal may give bytes that are no text
    while (less := known.strip().strip("[](){}<>\"'`,;").rstrip("….")) != known:
        known = less
    return known


def after(prefix: str) -> str:
    """A text that is after all that begin so, in the order of their bytes."""
    return prefix + "\U0010ffff"


def _failed(filter: Filter) -> bool:
    """Whether none of them was done: the indexes of these are small."""
    return filter.failed or (filter.status not in ("", "done") and filter.http is None)


def _conditions(filter: Filter) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What each query asks, whatever it reads. Partial indexes are used only for these very words."""
    if _failed(filter):
        yield "status <> 'done'", ()
    if filter.http is not None:
        yield "http between ? and ?", filter.http
    elif filter.status:
        yield "status = ?", (filter.status,)
    if filter.tenant is not None:
        yield "tenant = ?", (filter.tenant,)
    if filter.unresolved:
        yield "unresolved > 0", ()
    if filter.slow:
        yield "slow", ()
    if filter.slower_than_ns is not None:
        yield "took > ?", (filter.slower_than_ns,)
    if filter.since_unix_ns is not None:
        yield "began >= ?", (filter.since_unix_ns,)
    if filter.until_unix_ns is not None:
        yield "began < ?", (filter.until_unix_ns,)
    if filter.kept:
        yield "kept = ?", (filter.kept,)


def _query(index: str, conditions: Sequence[tuple[str, tuple[Any, ...]]], *more: tuple[str, tuple[Any, ...]]) -> Query:
    asked = [*conditions, *more]
    return index, " and ".join(where for where, _ in asked) or "true", tuple(p for _, params in asked for p in params)
