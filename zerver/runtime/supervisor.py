"""Law: a supervisor ends what it started, in reverse order, and restarts what may be restarted, or gives up.

It gives up when restarts come faster than `max_restarts` in `within` seconds: then the fault is not a passing
one, everything under it is ended, and the defect goes to its owner: the parent supervisor, which counts it
as one crash of one child, or the body of `open_supervisor`, which is cancelled and sees the bare defect.

Precedents: Erlang/OTP's supervisor (strategies, restart kinds, intensity, reverse order) and Elixir's
DynamicSupervisor (children come while it runs). As in OTP a restart has no delay: a delay would hide the
fault from the parent, whose restart may be the cure. An actor that has to wait for something does so in
`started`. Changed: a supervisor that is restarted by its parent starts the same children again, so that references stay
valid; there is no lock between `start` and a restart, so that an actor may start its siblings. Learned from
tractor: the tree of supervisors is a tree of nurseries, so nothing can outlive its owner.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import attrs
import trio

from zerver.errors import ActorError, ActorStopped, DefinitionError
from zerver.runtime.actor import Actor, ActorRef, ActorStatistics, Cell, Life, State, state_of
from zerver.runtime.groups import add_echo, open_body_nursery, unwrapped

M = TypeVar("M")
R = TypeVar("R")
C = TypeVar("C")

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]

# A crash is answered to its asker and cured by a restart, so nobody else would hear of it.
logger = logging.getLogger("zerver.supervisor")


@attrs.frozen
class SupervisorStatistics:
    """A supervisor at one moment, and the tree under it, in start order.

    restarts: how often it has restarted something; a group restarted together counts once.
    """

    name: str
    state: State
    strategy: Strategy
    restarts: int
    children: tuple[ActorStatistics | SupervisorStatistics, ...]


# ---- the decisions: no I/O, no clock ---------------------------------------------------------


def check_restart(restart: Restart, *, crashed: bool) -> bool:
    """Whether a child that has ended by itself is to be started again."""
    return restart == "permanent" or (restart == "transient" and crashed)


def choose_affected(strategy: Strategy, children: Sequence[C], failed: C) -> Sequence[C]:
    """Who is restarted when `failed` is, in start order, `failed` included."""
    match strategy:
        case "one_for_one":
            return [failed]
        case "one_for_all":
            return children
        case "rest_for_one":
            return children[children.index(failed) :]


class Intensity:
    """At most `max_restarts` restarts in any `within` seconds (OTP's MaxR and MaxT)."""

    def __init__(self, max_restarts: int, within: float) -> None:
        self._max_restarts = max_restarts
        self._within = within
        self._times: deque[float] = deque()

    def spend(self, now: float) -> bool:
        """Count a restart at `now` (seconds, not decreasing). False if it is one too many."""
        while self._times and self._times[0] <= now - self._within:
            self._times.popleft()
        self._times.append(now)
        return len(self._times) <= self._max_restarts


@attrs.frozen
class Policy:
    """How a supervisor behaves. Checked when it is made: a wrong value is a DefinitionError."""

    strategy: Strategy = "one_for_one"
    max_restarts: int = 3
    within: float = 5.0
    shutdown_timeout: float = 5.0

    def __attrs_post_init__(self) -> None:
        if self.strategy not in ("one_for_one", "one_for_all", "rest_for_one"):
            raise DefinitionError(
                f"no strategy is called {self.strategy!r}", "use one_for_one, one_for_all or rest_for_one"
            )
        if self.max_restarts < 0 or not 0 < self.within < math.inf:
            raise DefinitionError(
                f"{self.max_restarts} restarts within {self.within} s is no intensity",
                "max_restarts is 0 or more, within is a finite number of seconds above 0",
            )
        if not 0 <= self.shutdown_timeout < math.inf:
            raise DefinitionError(
                f"a shutdown of {self.shutdown_timeout} s has no bound",
                "shutdown_timeout is a finite number of seconds",
            )


# ---- a child: a cell or a supervisor, and its present life -----------------------------------


@attrs.define(eq=False)
class Child:
    """A supervisor's view of one child.

    life: the present one, or the last. down: the supervisor knows that it has ended, and will start the next.
    """

    work: Cell[Any, Any] | Supervisor
    restart: Restart
    life: Life = attrs.field(init=False, factory=lambda: Life(shield=True))
    down: bool = attrs.field(init=False, default=False)
    is_admitted: bool = attrs.field(init=False, default=False)

    async def run(self, on_end: Callable[[Child, Life], None]) -> None:
        life = self.life
        try:
            await life.run(self.work.live)
        finally:
            # A life that got ready made the child one of the family; before that it is its starter's.
            self.is_admitted = self.is_admitted or life.is_ready
            on_end(self, life)

    def takes_part(self) -> bool:
        return self.is_admitted or self.life.is_ready

    def drain(self) -> None:
        """For good, in order: what was accepted is still handled."""
        self.work.close()
        if isinstance(self.work, Supervisor):
            self.life.finish()

    def pause(self) -> None:
        """Until the next life, in order: what was begun is finished, the rest waits."""
        self.life.finish()


# ---- the supervisor --------------------------------------------------------------------------


class Supervisor:
    """Starts children and keeps them. Made by `open_supervisor` and `Supervisor.start_supervisor`."""

    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self.ended = trio.Event()
        self._policy = policy
        self._children: dict[str, Child] = {}  # in start order
        self._exits: deque[tuple[Child, Life]] = deque()
        self._wake = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._life: Life | None = None
        self._closing = False
        self._made = 0
        self._restarts = 0

    def __repr__(self) -> str:
        return f"<Supervisor {self.name!r} {self.state}>"

    async def start(
        self,
        factory: Callable[[], Actor[M, R]],
        *,
        name: str | None = None,
        restart: Restart = "permanent",
        capacity: int = 64,
    ) -> ActorRef[M, R]:
        """Start an actor, and return when its `started` has.

        factory: makes the object for each life; an Actor class that takes no argument is one.
        name: unique in this supervisor; default, the factory's name and a number.
        restart: `permanent`, always; `transient`, after a crash; `temporary`, never.
        capacity: messages that may wait in its mailbox.

        Raises what `started` raised, if the first one did: there is then no child, and no restart. Raises
        ActorStopped if the supervisor is not running, DefinitionError for a name that is taken. Cancelled
        while it waits, it leaves no child behind.
        """
        cell = Cell(self._new_name(name, factory), factory, capacity)
        await self._start_child(cell, restart)
        return ActorRef(cell)

    async def start_supervisor(
        self,
        *,
        name: str | None = None,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        within: float = 5.0,
        shutdown_timeout: float = 5.0,
        restart: Restart = "permanent",
    ) -> Supervisor:
        """Start a supervisor under this one. Parameters as for `open_supervisor` and `start`.

        When it gives up, that is one crash of one child here. If it is started again, so are its children,
        in their order, with their mailboxes; references to them stay valid.
        """
        policy = Policy(strategy, max_restarts, within, shutdown_timeout)
        child = Supervisor(self._new_name(name, Supervisor), policy)
        await self._start_child(child, restart)
        return child

    async def stop(self) -> None:
        """Stop for good and in order, as at the end of `open_supervisor`; returns when all is ended.

        Cancelling this wait does not undo the request. An actor under it must not await it: it would wait for
        its own end, until `shutdown_timeout` cancels it.
        """
        self.close()
        if self._life is not None:
            self._life.finish()
        await self.ended.wait()

    def statistics(self) -> SupervisorStatistics:
        return SupervisorStatistics(
            name=self.name,
            state=self.state,
            strategy=self._policy.strategy,
            restarts=self._restarts,
            children=tuple(child.work.statistics() for child in self._children.values()),
        )

    @property
    def state(self) -> State:
        return state_of(self._life, closing=self._closing, ended=self.ended.is_set())

    # -- starting ------------------------------------------------------------------------

    def _new_name(self, name: str | None, factory: Callable[..., object]) -> str:
        self._made += 1
        if name is None:
            name = f"{getattr(factory, '__name__', 'actor')}-{self._made}"
        if name in self._children:
            raise DefinitionError(
                f"supervisor {self.name!r} has a child {name!r} already", "give each child its own name"
            )
        return name

    async def _start_child(self, work: Cell[Any, Any] | Supervisor, restart: Restart) -> None:
        if restart not in ("permanent", "transient", "temporary"):
            raise DefinitionError(f"no restart is called {restart!r}", "use permanent, transient or temporary")
        if self._nursery is None or self._life is None or self._life.finishing:
            raise ActorStopped(f"supervisor {self.name!r} is {self.state}: it starts nothing")
        child = Child(work, restart)
        life = child.life
        self._children[work.name] = child
        self._nursery.start_soon(child.run, self._on_end, name=work.name)
        try:
            await life.settled.wait()
        except BaseException:
            # The caller never gets the reference, so the child must not stay.
            work.close()
            life.scope.cancel()
            raise
        if not life.is_ready:
            await life.ended.wait()
            defect = life.take_defect()
            try:
                raise defect or ActorStopped(f"{work.name!r} was stopped before it had started")
            finally:
                del defect

    # -- one life ------------------------------------------------------------------------

    async def live(self, life: Life) -> None:
        """From the start of the children known already to the end of all. Raises what it gave up on.

        Children live in shielded scopes, and every way out of here leads through `_cancel`: so they end in
        reverse order even when the whole tree is cancelled from outside.
        """
        self._life = life
        self._exits.clear()
        for child in self._children.values():
            child.down = True
        defect: Exception | None = None
        try:
            try:
                with unwrapped():
                    async with trio.open_nursery() as nursery:
                        self._nursery = nursery
                        try:
                            if not self._closing:  # stopped while it was down: nothing starts any more
                                with life.idle:
                                    defect = await self._keep(life, nursery)
                            life.finishing = True
                            await self._end(self._in_order(), Child.drain if self._closing else Child.pause)
                        finally:
                            life.finishing = True
                            await self._cancel(self._in_order())
                            for child, ended in self._exits:  # nobody will judge these; say so at least
                                self._report(child, ended)
            except trio.Cancelled:
                if defect is None:  # otherwise the error wins, as in groups.bare
                    raise
            if defect is not None:
                raise defect
        finally:
            self._nursery = self._life = None
            del defect

    async def _keep(self, life: Life, nursery: trio.Nursery) -> Exception | None:
        """Keep the children up until interrupted by `life.finish()`, or, returning the defect, give up."""
        intensity = Intensity(self._policy.max_restarts, self._policy.within)
        await self._start_down(nursery, in_order=True)
        life.ready()
        while True:
            while self._exits:
                child, ended = self._exits.popleft()
                if child.life is ended and not child.down:
                    defect = await self._judge(child, ended, intensity)
                    if defect is not None:
                        return defect
            # one_for_one says that the children do not depend on each other: a slow one delays nobody.
            await self._start_down(nursery, in_order=self._policy.strategy != "one_for_one")
            if not self._exits:
                self._wake = trio.Event()
                await self._wake.wait()

    async def _judge(self, child: Child, life: Life, intensity: Intensity) -> Exception | None:
        """A child has ended by itself: forget it, mark what is to be started again, or give up."""
        defect = self._report(child, life)
        if child.work.closing or not check_restart(child.restart, crashed=defect is not None):
            self._forget(child)
            return None
        if not intensity.spend(trio.current_time()):
            return self._give_up(child, defect)
        self._restarts += 1
        child.down = True
        family = [one for one in self._children.values() if one.takes_part()]
        siblings = [one for one in choose_affected(self._policy.strategy, family, child) if not one.down]
        await self._end(siblings, Child.pause)
        for sibling in siblings:
            self._report(sibling, sibling.life)
            sibling.down = True
            if sibling.restart == "temporary":
                self._forget(sibling)
        return None

    async def _start_down(self, nursery: trio.Nursery, *, in_order: bool) -> None:
        """Start who is down, in start order; in_order: each when the one before it is ready.

        Stops at the first whose start fails: its end is in the queue, and is judged like any other.
        """
        for child in [one for one in self._children.values() if one.down]:
            child.life, child.down = Life(shield=True), False
            nursery.start_soon(child.run, self._on_end, name=child.work.name)
            if in_order:
                await child.life.settled.wait()
                if not child.life.is_ready:
                    await child.life.ended.wait()
                    return

    def _on_end(self, child: Child, life: Life) -> None:
        if child.takes_part():
            self._exits.append((child, life))
            self._wake.set()
        else:
            self._forget(child)  # never got ready: the caller of `start` gets the defect

    def _forget(self, child: Child) -> None:
        del self._children[child.work.name]
        child.work.end()

    def _report(self, child: Child, life: Life) -> Exception | None:
        defect = life.take_defect()
        if defect is not None:
            logger.error("%r under supervisor %r crashed", child.work.name, self.name, exc_info=defect)
        return defect

    def _give_up(self, child: Child, defect: Exception | None) -> Exception:
        policy = self._policy
        story = (
            f"supervisor {self.name!r} gave up: {child.work.name!r} would have been "
            f"more than {policy.max_restarts} restarts within {policy.within} s"
        )
        if defect is None:  # a permanent child that kept ending without an error
            return ActorError(story)
        defect.add_note(story)
        return defect

    # -- ending --------------------------------------------------------------------------

    def _in_order(self) -> list[Child]:
        return list(self._children.values())

    async def _end(self, children: Sequence[Child], ask: Callable[[Child], None]) -> None:
        """Ask each to end, last first, each after the one before it has; cancel what is late."""
        try:
            with trio.move_on_after(self._policy.shutdown_timeout):
                for child in reversed(children):
                    ask(child)
                    await child.life.ended.wait()
        finally:
            await self._cancel(children)
        for child in children:  # no two lives of one child, ever
            await child.life.ended.wait()

    async def _cancel(self, children: Sequence[Child]) -> None:
        """Cancel each, last first. Shielded and bounded; after the bound, all at once."""
        deadline = trio.current_time() + self._policy.shutdown_timeout
        with trio.CancelScope(shield=True, deadline=deadline):
            for child in reversed(children):
                child.life.scope.cancel()
                await child.life.ended.wait()
        for child in children:
            child.life.scope.cancel()

    @property
    def closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def end(self) -> None:
        """There will be no further life: nor for anything under it. Idempotent."""
        self._closing = True
        for child in reversed(self._in_order()):
            self._forget(child)
        self.ended.set()


@asynccontextmanager
async def open_supervisor(
    name: str = "root",
    *,
    strategy: Strategy = "one_for_one",
    max_restarts: int = 3,
    within: float = 5.0,
    shutdown_timeout: float = 5.0,
) -> AsyncGenerator[Supervisor, None]:
    """Open a supervisor whose children live as long as the body, at most.

    strategy: who is restarted with a child that is: only itself, all, or itself and those started after it.
    max_restarts, within: the intensity; one restart more within so many seconds, and it gives up: the body is
    cancelled, and the child's defect raised here, bare. max_restarts=0 gives up at the first crash.
    shutdown_timeout: seconds for the orderly end of all children. When the body ends, the children are asked
    to end in reverse start order, and handle what waits in their mailboxes; who is late is cancelled.
    If the body raises or is cancelled, all are cancelled, in reverse order too.

    Raises what the body raises, or what it gave up on; DefinitionError for a policy that makes no sense.
    """
    supervisor = Supervisor(name, Policy(strategy, max_restarts, within, shutdown_timeout))
    life = Life(shield=False)

    async def run() -> None:
        try:
            await life.run(supervisor.live)
        finally:
            supervisor.end()
        if life.defect is not None:
            # Handed over by hand: through the nursery, a group that an actor raised would be taken apart.
            nursery.cancel_scope.cancel()

    try:
        async with open_body_nursery() as nursery:
            nursery.start_soon(run, name=name)
            await life.settled.wait()
            yield supervisor
            supervisor.close()
            life.finish()
    except Exception as exc:
        if (defect := life.take_defect()) is not None:
            add_echo(exc, defect)
            del defect
        raise
    except trio.Cancelled:
        if life.defect is None:  # otherwise the error wins, as in groups.bare
            raise
    defect = life.take_defect()
    if defect is not None:
        try:
            raise defect
        finally:
            del defect
