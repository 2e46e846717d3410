"""Parked runs in SQL: how they are put down, found again, and given their signals.

Law: one transaction decides. A run is put down with the page that says so; of all who give a signal for one pause, the
update that finds its place empty has given it; a pause that has expired is taken away in the transaction that claims
its run, so that no signal comes too late and is taken all the same. A run is cancelled by the update that finds it
asleep: what wakes it first, a signal, its time or this, is what it wakes to.

The run's row is locked before its signals are looked at, by whoever wants them: a claim skips it then, and who puts it
down waits. What is asked again and again (is anything due?) reads one index, which has parked runs alone, in the order
in which they wake: a million of them are no slower than one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from zerver.runtime.journal import Page, Parking, Signal
from zerver.sql.dialects import Dialect
from zerver.sql.driver import Statement

#: A parked run's row, in words that no index on owners can be used for: nearly all rows may be of this owner, nobody.
_NOBODYS: Final = "status = '' and aside = '' and length(owner) = 0"

_SIGNALS: Final = "select run, number, signal, expires, value from zerver_signals"


# ---- putting down ---------------------------------------------------------------------------


def put_down(page: Page, parking: Parking, dialect: Dialect) -> tuple[list[Statement], list[Statement]]:
    """What puts the run of a page down: statements that change one row each if the lease holds, and then others."""
    places = ", ".join("?" for _ in parking.awaits)
    numbers = [one.number for one in parking.awaits]
    letting_go = "update zerver_runs set owner = '', wakes = 0 where run_id = ? and fence = ? and status = ''"
    awaited = (
        f"insert into zerver_signals (run, number, signal, expires) select seq, ?, ?, {dialect.wall()} + ? "
        "from zerver_runs where run_id = ? and fence = ? and status = '' on conflict (run, number) do nothing"
    )
    wakes = (
        "update zerver_runs set wakes = case when cut is not null then 0 else "
        "(select coalesce(min(case when value is null then expires else 0 end), 0) "
        f"from zerver_signals s where s.run = zerver_runs.seq and s.number in ({places})) end "
        "where run_id = ? and fence = ? and status = ''"
    )
    rows = [
        Statement(awaited, (one.number, one.signal, int(one.seconds * 1e9), page.run_id, page.fence))
        for one in parking.awaits
    ]
    return [Statement(letting_go, (page.run_id, page.fence))], [
        *rows,
        Statement(wakes, (*numbers, page.run_id, page.fence)),
    ]


def resumed(page: Page) -> Statement:
    """What says that the run of a page goes on."""
    return Statement("update zerver_runs set wakes = null where run_id = ? and fence = ?", (page.run_id, page.fence))


# ---- taking up ------------------------------------------------------------------------------


def taking_due(owner: str, token: str, count: int, dialect: Dialect) -> list[Statement]:
    """What claims runs that are to be taken up, as many as this claim has not taken yet."""
    due = (
        f"select seq from zerver_runs r where {_NOBODYS} and wakes is not null and wakes <= {dialect.wall()} "
        "order by wakes limit ? - (select count(*) from zerver_runs c where c.status = '' and c.owner = ? "
        f"and c.claim = ?) {dialect.skip}"
    )
    take = f"update zerver_runs set owner = ?, fence = fence + 1, claim = ? where seq in ({due})"
    return [Statement(take, (owner, token, count, owner, token)), expiring(owner, token, dialect)]


def taking_one(run_id: str, owner: str, token: str, dialect: Dialect) -> list[Statement]:
    """What claims this run, if it is to be taken up."""
    due = (
        f"select seq from zerver_runs r where run_id = ? and {_NOBODYS} and wakes is not null "
        f"and wakes <= {dialect.wall()} {dialect.skip}"
    )
    take = f"update zerver_runs set owner = ?, fence = fence + 1, claim = ? where seq in ({due})"
    return [Statement(take, (owner, token, run_id)), expiring(owner, token, dialect)]


def expiring(owner: str, token: str, dialect: Dialect) -> Statement:
    """What takes away the expired pauses of the runs of a claim."""
    sql = (
        f"delete from zerver_signals where value is null and expires <= {dialect.wall()} and run in (select seq "
        "from zerver_runs where status = '' and owner = ? and claim = ? and wakes is not null)"
    )
    return Statement(sql, (owner, token))


def next_due(dialect: Dialect) -> Statement:
    """Nanoseconds until the next one is to be taken up."""
    left = f"wakes - {dialect.wall()}"
    return Statement(f"select {left} from zerver_runs where {_NOBODYS} and wakes is not null order by wakes limit 1")


# ---- signals --------------------------------------------------------------------------------


def giving(run_id: str, signal: str, value: bytes, number: int | None, dialect: Dialect) -> list[Statement]:
    """What gives a signal: the last of these statements changes one row if it was taken.

    The first one waits for whoever is putting the run down or claiming it: a statement that waited itself would look at
    its signals as they were before that, and one that was just put down would sleep on, its signal taken.
    """
    which, chosen = ("", ()) if number is None else (" and s.number = ?", (number,))
    waits = f"s.signal = ? and s.value is null and s.expires > {dialect.wall()}{which}"
    wake = (
        "update zerver_runs set wakes = case when owner = '' and wakes is not null and exists "
        f"(select 1 from zerver_signals s where s.run = zerver_runs.seq and {waits}) then 0 else wakes end "
        "where run_id = ? and status = '' and cut is null"
    )
    give = (
        "update zerver_signals set value = ? where (run, number) in (select s.run, s.number from zerver_signals s "
        f"join zerver_runs r on r.seq = s.run where r.run_id = ? and r.status = '' and r.cut is null and {waits} "
        "order by s.number limit 1)"
    )
    return [
        Statement(f"select seq from zerver_runs where run_id = ? {dialect.lock}", (run_id,)),
        Statement(wake, (signal, *chosen, run_id)),
        Statement(give, (value, run_id, signal, *chosen)),
    ]


def cancelling(run_id: str, reason: bytes, dialect: Dialect) -> Statement:
    """What cancels a run: it changes one row if it did."""
    sql = (
        f"update zerver_runs set cut = ?, wakes = 0 where run_id = ? and {_NOBODYS} and cut is null "
        f"and wakes > {dialect.wall()}"
    )
    return Statement(sql, (reason, run_id))


def how_many() -> Statement:
    """How many runs are put down."""
    return Statement(f"select count(*) from zerver_runs where {_NOBODYS} and wakes is not null")


def signals_of(where: str, params: tuple[object, ...]) -> Statement:
    """The signals of these runs, in the order in which `by_run` takes them."""
    return Statement(
        f"{_SIGNALS} where run in (select seq from zerver_runs where {where}) order by run, number", params
    )


def by_run(rows: Iterable[tuple[object, ...]]) -> Mapping[object, tuple[Signal, ...]] | None:
    """Signals by the run that they are for; None if the rows are not of that kind."""
    found: dict[object, list[Signal]] = {}
    for run, *row in rows:
        if not all(isinstance(value, known) for value, known in zip(row, _TYPES, strict=True)):
            return None
        made: Any = Signal  # the types were looked at
        found.setdefault(run, []).append(made(*row))
    return {run: tuple(signals) for run, signals in found.items()}


_TYPES: Final[tuple[Any, ...]] = (int, str, int, bytes | None)
