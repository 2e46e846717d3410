"""Orders of jobs as statements: what puts them in, for whoever holds a transaction.

Law: pure. The same statements stand in a transaction of the store's and in one of the app's, so that a job which is
ordered with an app's writes is there if and only if they are. The last statement answers with the ids.

    unique texts are free again ─▶ the rows ─▶ (place, id of the job that stands there)

Orders go as one JSON array, in one parameter; those that are alike but for their ids and bodies, as what they have in
common and two columns of texts: what is said once is read once, by the server too. A statement has one text for any
number of them, so it is prepared once.

Refused: COPY. Of 1,000 rows each costs the server 4.0 µs by COPY, 4.4 by unnested arrays, 5.9 if it is looked for a
row of its id first, and 6.7 from an array of JSON objects; and COPY takes more round trips, and no expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import attrs

from zerver.core.codec import encode_json
from zerver.core.effects import Effect
from zerver.core.jobs import Asker, Declared
from zerver.core.orders import Order, check_orders
from zerver.core.priorities import RANK
from zerver.effects import queue
from zerver.errors import DefinitionError, InvalidData, NotKeepable, StatementError
from zerver.sql.dialects import Dialect
from zerver.sql.driver import Answer, Rows, Statement

#: Orders in one statement.
MOST_ORDERS: Final = 2000

#: What workers of other processes listen to.
CHANNEL: Final = "zerver_jobs"

_COLUMNS: Final = (
    *(("job_id", "text"), ("flow", "text"), ("queue", "text"), ("body", "text"), ("tenant", "text")),
    *(("rank", "bigint"), ("due", "bigint"), ("attempts", "bigint"), ("uniq", "text"), ("window_ns", "bigint")),
    *(("releases", "text"), ("place", "bigint"), ("awaits", "bigint"), ("origin", "text"), ("parent", "text")),
)
_OWN: Final = ("job_id", "body")
_SHARED: Final = tuple((name, type_) for name, type_ in _COLUMNS if name not in _OWN)
_KEYS: Final = (("job_id", "text"), ("uniq", "text"))

#: What orders that are alike have in common.
_COMMON: Final = attrgetter(
    *("flow", "queue", "tenant", "priority", "at_unix_ns", "attempts", "unique", "unique_seconds"),
    *("releases", "place", "awaits", "origin", "parent"),
)


def order_statements(orders: Sequence[Order], dialect: Dialect) -> list[Statement]:
    """The statements that put orders in, MOST_ORDERS at most; `ordered_ids` reads the last one's answer.

    orders: with which `check_orders` has found nothing wrong. Raises NotKeepable for text that is no Unicode.
    """
    found = attrs.evolve(standing(orders, dialect), accept=_all_stand(len(orders)))
    return [*inserting(orders, dialect), *told(dialect), found]


def inserting(orders: Sequence[Order], dialect: Dialect, *, new: bool = False) -> list[Statement]:
    """The statements that put in those orders for which nothing stands there; the last one changes a row for each.

    new: there is nothing, as far as anybody knows, and the statement fails if there is: to look for each whether one
    stands there costs the server a fourth of all. Raises NotKeepable.
    """
    statements = []
    if any(order.unique for order in orders):
        statements.append(Statement(_freed(dialect), (_keys(orders),)))
    common = _COMMON(orders[0])
    if all(map(common.__eq__, map(_COMMON, orders))):
        shared = _record(orders[0])
        own = dialect.as_texts([[order.job_id for order in orders], [order.body for order in orders]])
        text = _inserted(dialect, alike=True, new=new)
        statements.append(Statement(text, (*own, *(shared[name] for name, _ in _SHARED))))
    else:
        given = as_json([_record(order) for order in orders])
        statements.append(Statement(_inserted(dialect, alike=False, new=new), (given,)))
    return statements


def standing(orders: Sequence[Order], dialect: Dialect) -> Statement:
    """Asks for the place of each order, and the id of the job that stands there; null for none."""
    return Statement(_standing(dialect), (_keys(orders),))


def as_json(value: object) -> str:
    """What a statement is given. Raises NotKeepable for text that is no Unicode."""
    try:
        return encode_json(value).decode()
    except InvalidData as error:
        raise NotKeepable(f"a job holds text that no store keeps: {error}") from error


def _keys(orders: Sequence[Order]) -> str:
    return as_json([{"job_id": order.job_id, "uniq": order.unique} for order in orders])


def told(dialect: Dialect) -> list[Statement]:
    """What tells waiting workers with the commit, where that keeps nobody from another one."""
    return [] if dialect.notifies else [wake(dialect)]


def wake(dialect: Dialect, condition: str = "1 = 1") -> Statement:
    """Tell waiting workers, in every process, when this is committed, if the condition holds now."""
    if dialect.notifies:
        return Statement(f"select pg_notify(?, '') where {condition}", (CHANNEL,))
    return Statement(f"update zerver_jobs_store set wakes = wakes + 1 where {condition}")


def ordered_ids(answer: Answer) -> list[str]:
    """The id of the job that stands there for each order, from the answer to the last statement."""
    return [str(job_id) for _, job_id in answer.rows] if isinstance(answer, Rows) else []


class Enqueueing:
    """Whether jobs are kept in the database of the app's `sql` effects: then they are ordered in its transactions.

    declared: what the app says about jobs.
    """

    def __init__(self, declared: Declared) -> None:
        self._declared = declared
        self._dialect: Dialect | None = None
        self._told: Callable[[], None] = _nobody

    def keep(self, dialect: Dialect, told: Callable[[], None]) -> None:
        """Jobs are kept here. told: called when some were ordered, so that a worker in this process does not wait."""
        self._dialect, self._told = dialect, told

    def parts(self, effect: Effect[Any], asker: Asker) -> list[list[Statement]]:
        """What puts in the orders that an effect stands for; the last of each part answers with its ids.

        Raises DefinitionError if that cannot be done here.
        """
        if self._dialect is None:
            raise DefinitionError(
                f"sql.transaction was given a {effect.kind.name}, but jobs are not kept in its database",
                "add jobs() without a URL to App(capabilities=[…]), or enqueue outside of the transaction",
            )
        orders = queue.orders_of(effect, self._declared, asker)
        check_orders(orders)
        parts = [orders[at : at + MOST_ORDERS] for at in range(0, len(orders), MOST_ORDERS)]
        return [order_statements(part, self._dialect) for part in parts]

    def ordered(self) -> None:
        """A transaction with orders in it was committed: workers are told."""
        self._told()


def _nobody() -> None:
    return None


def _record(order: Order) -> dict[str, Any]:
    return {
        "job_id": order.job_id,
        "flow": order.flow,
        "queue": order.queue,
        "body": order.body,
        "tenant": order.tenant,
        "rank": RANK[order.priority],
        "due": order.at_unix_ns,
        "attempts": order.attempts,
        "uniq": order.unique,
        "window_ns": int(order.unique_seconds * 1e9),
        "releases": order.releases,
        "place": order.place,
        "awaits": order.awaits,
        "origin": order.origin,
        "parent": order.parent,
    }


@lru_cache
def _freed(dialect: Dialect) -> str:
    # Not when the job ends: then its window may still hold, and nobody comes back when it is over.
    return (
        f"update zerver_jobs set holds = null where holds in (select uniq from {dialect.records(_KEYS)} k) "
        f"and state in ('done', 'dead', 'cancelled') and holds_until <= {dialect.wall()}"
    )


@lru_cache
def _inserted(dialect: Dialect, *, alike: bool, new: bool) -> str:
    # The time is made once, and not for each row: as arithmetic of PostgreSQL's it would cost a tenth of all.
    clock = f"(select {dialect.wall()} as now_ns where {dialect.durable} limit 1) as clock"
    if alike:  # a loop over the texts, as they stand there: to sort them costs as much as a twentieth of all
        said = ", ".join(f"cast(? as {type_}) as {name}" for name, type_ in _SHARED)
        source = f"{dialect.texts(_OWN)} as own cross join (select {said}) as shared cross join {clock} where 1 = 1"
    else:
        source = f"{dialect.records(_COLUMNS)} as given cross join {clock} order by n"
    return (
        "insert into zerver_jobs (job_id, flow, queue, body, tenant, rank, state, due, attempts, ordered, uniq, holds, "
        "holds_until, releases, place, awaited, awaits, origin, parent) "
        "select job_id, flow, queue, body, tenant, rank, "
        "case when awaits > 0 then 'waiting' when due > now_ns then 'scheduled' else 'available' end, "
        "case when due > now_ns then due else now_ns end, attempts, now_ns, uniq, nullif(uniq, ''), "
        "now_ns + window_ns, releases, place, awaits, awaits, origin, parent "
        f"from {source}{'' if new else ' on conflict do nothing'}"
    )


@lru_cache
def _standing(dialect: Dialect) -> str:
    return (
        "select n, coalesce((select j.job_id from zerver_jobs j where j.job_id = k.job_id), "
        "(select j.job_id from zerver_jobs j where k.uniq <> '' and j.holds = k.uniq)) as job_id "
        f"from {dialect.records(_KEYS)} k order by n"
    )


def _all_stand(count: int) -> Any:
    def accept(answer: Answer) -> None:
        if not isinstance(answer, Rows) or len(answer.rows) != count or any(row[1] is None for row in answer.rows):
            # The job that stood there was deleted meanwhile: the code says that the same may pass the next time.
            raise StatementError("a job with the same unique text was deleted meanwhile", "40001")

    return accept
