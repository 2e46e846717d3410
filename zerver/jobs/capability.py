"""Jobs as a capability: the handlers of `zerver.effects.queue`, on any store of jobs.

Law: a handler makes orders of an effect and gives them to the store; what an order says is decided by the core. Asked
again, because the answer got lost, the store answers with the ids of the first time: so it is asked again here, and
nobody has to live in doubt.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from secrets import token_hex
from typing import Any, Final, TypeVar

import attrs
import trio

from zerver.core.app import App, Capability
from zerver.core.effects import INJECTED, CallInfo, Effect, EffectKind, IdempotencyKey
from zerver.core.flows import Flow
from zerver.core.jobs import Asker, job_of_run
from zerver.effects import queue
from zerver.errors import ConnectionLost, DefinitionError, JournalUnavailable
from zerver.jobs.cron import schedules_of
from zerver.jobs.places import file_of, open_jobs, open_jobs_of
from zerver.jobs.port import JobStore, Wanted
from zerver.runtime import Runtime
from zerver.sql import Driver
from zerver.sql.enqueueing import Enqueueing

T = TypeVar("T")

#: How often the store is asked whether it has taken the orders, when its answer got lost.
_TRIES: Final = 3


@attrs.frozen(eq=False)
class JobDesk:
    """Where jobs are asked for: a store, and what the app declares. now: wall time in nanoseconds."""

    store: JobStore
    app: App
    now: Callable[[], int] = time.time_ns

    async def order(self, effect: Effect[T], asker: Asker) -> T:
        """Put in what an effect of `zerver.effects.queue` stands for; gives what its step would get.

        Raises DefinitionError for a flow that is no job; JournalUnavailable when nothing was put in; ConnectionLost
        when nobody knows.
        """
        orders = queue.orders_of(effect, self.app.declared, asker)
        for tried in range(1, _TRIES + 1):
            try:
                answer: T = queue.answer_of(effect, await self.store.order(orders))
                return answer
            except JournalUnavailable as error:
                if not isinstance(error.__cause__, ConnectionLost):
                    raise
                if tried == _TRIES:
                    raise ConnectionLost(str(error)) from error
            await trio.sleep(0.05 * 2**tried)
        raise ConnectionLost("unreachable: the last try has raised")


def jobs(url: str | None = None) -> Capability:
    """Jobs, kept in the app's own SQL database, or in one of their own: "sqlite:///jobs.db", "postgresql://…".

    In the app's database an order can be a member of `sql.transaction`, and so stand or fall with the app's own writes.
    A handler of yours may take `JobDesk` as a resource. Raises DefinitionError for a URL that names no database.
    """
    if url is None:
        return jobs_capability(_open_in_app)
    return attrs.evolve(jobs_capability(_opener(url)), file=file_of(url))


def jobs_capability(
    open_store: Callable[..., AbstractAsyncContextManager[JobStore]], wall_ns: Callable[[], int] = time.time_ns
) -> Capability:
    """The `queue` effects on a store that `open_store` opens. wall_ns: its time, as `JobDisk.wall_ns` in tests."""

    @asynccontextmanager
    async def open_desk(store: JobStore, app: App) -> AsyncGenerator[JobDesk, None]:
        schedules_of(app)  # what is wrong with them is said when the app opens, in every process of it
        yield JobDesk(store, app, wall_ns)

    handlers: dict[str, Callable[..., Any]] = {kind.name: _ordering(kind) for kind in queue.ORDERING}
    handlers |= {queue.PROGRESS.name: _progress, queue.CANCEL.name: _cancel}
    return Capability(name="jobs", handlers=handlers, resources={_STORE: open_store, JobDesk: open_desk})


async def enqueue(
    runtime: Runtime, flow: Flow | str, body: object = None, *, key: str = "", tenant: str = "default", **options: Any
) -> str:
    """Enqueue a job from outside of any flow, as a script does; gives its id.

    options: as `queue.enqueue` has them. key: whoever enqueues twice with the same one has enqueued once. Raises as
    `order`.
    """
    return await order(runtime, queue.enqueue(flow, body, **options), key=key, tenant=tenant)


async def order(runtime: Runtime, effect: Effect[T], *, key: str = "", tenant: str = "default") -> T:
    """Have any ordering effect done from outside of a flow: `await order(runtime, queue.chain(…))`.

    Raises DefinitionError for an app without `jobs()`, or a flow that is no job of it; JournalUnavailable when nothing
    was put in, ConnectionLost when nobody knows.
    """
    desk = desk_of(runtime)
    asker = Asker(f"outside {key or token_hex(12)}", tenant, "", desk.now())
    return await desk.order(effect, asker)


def desk_of(runtime: Runtime) -> JobDesk:
    """The runtime's desk. Raises DefinitionError for an app without `jobs()`."""
    desk = runtime.resources.get(JobDesk)
    if not isinstance(desk, JobDesk):
        raise DefinitionError("this app keeps no jobs", "add jobs() to App(capabilities=[…])")
    return desk


# ---- resources ------------------------------------------------------------------------------

_STORE: Any = JobStore  # a protocol is a type to those who annotate with it, and no class to type checkers


@asynccontextmanager
async def _open_in_app(driver: Driver, enqueueing: Enqueueing) -> AsyncGenerator[JobStore, None]:
    async with open_jobs_of(driver) as store:
        enqueueing.keep(store.dialect, store.waking.ordered)
        yield store


def _opener(url: str) -> Callable[[], AbstractAsyncContextManager[JobStore]]:
    def open_own() -> AbstractAsyncContextManager[JobStore]:
        return open_jobs(url)

    return open_own


# ---- handlers -------------------------------------------------------------------------------


def _ordering(kind: EffectKind[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def handle(
        *args: Any,
        key: IdempotencyKey = INJECTED,
        info: CallInfo = INJECTED,
        desk: JobDesk = INJECTED,
        **options: Any,
    ) -> Any:
        return await desk.order(Effect(kind, args, options), Asker(key, info.tenant, info.traceparent, desk.now()))

    return handle


async def _progress(done: int, total: int, note: str, *, info: CallInfo = INJECTED, desk: JobDesk = INJECTED) -> None:
    job_id = job_of_run(info.run_id)
    if job_id:
        await desk.store.progress(job_id, done, total, note)


async def _cancel(job_id: str, *, info: CallInfo = INJECTED, desk: JobDesk = INJECTED) -> bool:
    return await desk.store.cancel(Wanted(ids=(job_id,)), f"run {info.run_id} of flow {info.flow!r} cancelled it") > 0
