"""Opening a runtime: an app is checked, its resources are opened, and what carries runs begins to work.

Law: what cannot work is said before anything is opened. Everything lives in this one block, opened in the order in
which it depends on each other; left, for whatever reason, it is closed in the reverse order, and no run is under way.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from secrets import token_hex
from typing import Any

import trio

from zerver.core.app import App
from zerver.core.flows import Flow
from zerver.core.load import Neighbours
from zerver.core.plan import compile_plan
from zerver.runtime.clerk import check_durable, open_clerk
from zerver.runtime.clocks import nanoseconds
from zerver.runtime.groups import open_body_nursery
from zerver.runtime.handlers import BUILTIN_KINDS, Handlers
from zerver.runtime.interpreter import Interpreter
from zerver.runtime.journal import Journal
from zerver.runtime.offload import check_offloads
from zerver.runtime.resources import open_resources
from zerver.runtime.run import Runtime
from zerver.runtime.takeover import Successor, open_successor
from zerver.runtime.targets import Targets
from zerver.runtime.telling import Observer
from zerver.runtime.turns import open_turns


@asynccontextmanager
async def open_runtime(
    app: App,
    *,
    observers: Sequence[Observer] = (),
    handlers: Mapping[str, Callable[..., Any]] | None = None,
    seed: int | None = None,
    neighbours: Neighbours | None = None,
    journal: Journal | None = None,
    owner: str = "",
    lease: float = 10.0,
    flows: Sequence[Flow] = (),
    takeover: bool = True,
) -> AsyncIterator[Runtime]:
    """Open an app: check it, open its resources, and yield a Runtime.

    observers: told of every run that has ended. handlers: by the name of an effect's kind, used instead of its own;
    tests script the world with them. seed: makes run ids, and so idempotency keys, jitter and `random` effects
    repeatable: for tests alone, as a provider takes a key it knows for a charge it has made. neighbours: the other
    processes that serve the same tenants, as the workers of one machine are.

    journal: keeps the runs of durable flows; those whose worker has died are carried on here. owner: this process's
    name in it, of which there must be no other, nor have been; one is made up by default. lease: seconds without a sign
    of life after which its runs are for others. flows: those of no route whose runs are to be carried on too. takeover:
    whether runs of others are carried on here at all, but for those that `retry` names.

    Raises DefinitionError when the app cannot work, JournalUnavailable when the journal cannot be reached.
    """
    app.check(BUILTIN_KINDS | frozenset(handlers or ()))
    for route in app.routes:
        for flow in route.flows:
            check_offloads((*route.before, *flow.stages))
            check_durable(flow, route.plan_for(flow), journal)
    for flow in app.older:
        check_offloads(flow.stages)
        check_durable(flow, compile_plan(flow), journal)
    rng = Random(seed)
    async with AsyncExitStack() as stack:
        clerk = None
        if journal is not None:
            name = owner or f"{os.getpid()}.{token_hex(8)}"
            clerk = await stack.enter_async_context(open_clerk(journal, name, lease, nanoseconds()))
        resources = await open_resources(stack, app.capabilities, {App: app})
        bound = Handlers(app.capabilities, resources, rng, handlers or {})
        rollbacks = await stack.enter_async_context(open_body_nursery())
        interpreter = Interpreter(app, bound, Targets(app.targets), rng)
        runtime = Runtime(app, interpreter, resources, rng, observers, rollbacks, neighbours, clerk)
        await stack.enter_async_context(open_turns(runtime.turns))
        if clerk is not None:
            runtime.successor = Successor(clerk, runtime, app, flows)
            await stack.enter_async_context(open_successor(runtime.successor, takeover))
        try:
            yield runtime
        finally:
            with trio.CancelScope(shield=True):
                await runtime.drain(0.0)
