"""Law: an actor handles one message at a time, in order, and every ask is answered exactly once.

Answered means: the value `handle` returned; ActorCrashed from what it raised; ActorStopped if the actor ended
first; or, on the asker's side, AskTimeout or the asker's own cancellation, which withdraw the message.

Three objects, by how long they last. An `Actor` is one life: a crash throws it away with its state, and the
supervisor's factory makes a new one. A `Cell` lasts over all lives: name, mailbox, counters; so the messages
that wait survive a crash, and a reference stays valid. An `ActorRef` is what everybody else holds of a cell.

Precedents: Erlang's gen_server (call has a deadline of 5 s, a crash is answered, init runs before start
returns). Changed: mailboxes are bounded and outlive the process, and an ask whose asker has gone is not
handled if it was not begun; a gen_server would work for nobody. Refused: selective receive, links and
monitors; a supervisor's tree and a Trio nursery say already who depends on whom.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import ClassVar, Generic, Literal, TypeVar

import attrs
import trio

from zerver.errors import (
    ActorCrashed,
    ActorError,
    ActorStopped,
    AskTimeout,
    InternalError,
    MailboxFull,
)
from zerver.runtime.groups import add_echo
from zerver.runtime.mailbox import Mailbox, MailboxStatistics

M = TypeVar("M")
R = TypeVar("R")
M_contra = TypeVar("M_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

State = Literal["starting", "running", "stopping", "down", "ended"]


@attrs.frozen
class ActorStatistics:
    """An actor at one moment.

    state: `down` is between two lives, `ended` is for good. restarts: lives after the first.
    handled: messages answered or done, over all lives. crashes: messages and hooks that raised.
    """

    name: str
    state: State
    restarts: int
    handled: int
    crashes: int
    mailbox: MailboxStatistics


class Actor(ABC, Generic[M_contra, R_co]):
    """Subclass it: `class Counter(Actor[int, int])` takes int messages and answers each with an int.

    Everything runs in one task of its own, so that attributes need no lock. An exception from any of
    the three methods is a crash: this object is thrown away, and the supervisor decides about the next.
    A failure that is expected is an answer: return it.
    """

    ask_timeout: ClassVar[float] = 5.0
    """Seconds that `ask` waits when it is not told otherwise (gen_server's default)."""

    cleanup_timeout: ClassVar[float] = 5.0
    """Seconds that `stopped` may take before it is cancelled."""

    _life: Life | None = None

    async def started(self) -> None:
        """Open what this life needs. Runs before the first message, and before `start` returns."""
        return

    @abstractmethod
    async def handle(self, message: M_contra) -> R_co:
        """Handle one message; what is returned answers an `ask`, and is dropped for a `tell`."""

    async def stopped(self) -> None:
        """Close what `started` opened. Runs if `started` returned, however the life ended: stop, crash or
        cancellation; in the same task, shielded from cancellation for `cleanup_timeout` seconds.
        """
        return

    def finish(self) -> None:
        """End this life, in order, after the message now being handled.

        A `permanent` actor is then started anew, which is a way to drop state on purpose, and counts as a
        restart; a `transient` or `temporary` one has ended, and who still waits is answered ActorStopped.
        """
        if self._life is not None:
            self._life.finish()


class ActorRef(Generic[M_contra, R_co]):
    """An address to send to. Stays valid over restarts. Made by `Supervisor.start`."""

    __slots__ = ("_cell",)

    def __init__(self, cell: Cell[M_contra, R_co]) -> None:
        self._cell = cell

    def __repr__(self) -> str:
        return f"<ActorRef {self.name!r} {self._cell.state}>"

    @property
    def name(self) -> str:
        return self._cell.name

    def statistics(self) -> ActorStatistics:
        return self._cell.statistics()

    async def tell(self, message: M_contra) -> None:
        """Send, and do not wait for the handling; waits for room in the mailbox. A checkpoint.

        Raises ActorStopped if the actor has ended or is stopping. To itself an actor sends as with
        `tell_nowait`: waiting for room that only it can make would never end.
        """
        if self._cell.is_own_task():
            self.tell_nowait(message)
            await trio.lowlevel.checkpoint()
        else:
            await self._cell.put(Envelope(message, None))

    def tell_nowait(self, message: M_contra) -> None:
        """Send without waiting. Raises MailboxFull, or ActorStopped."""
        self._cell.put_nowait(Envelope(message, None))

    async def ask(self, message: M_contra, *, timeout: float | None = None) -> R_co:
        """Send, and wait for the answer.

        timeout: seconds for everything, the wait for room included; finite. Default: the actor's
        `ask_timeout`. When it passes, or the asker is cancelled, a message not yet begun is withdrawn and
        will not be handled; one that was begun is handled to its end, and its answer is dropped.

        Raises ActorCrashed (from the defect), ActorStopped or AskTimeout; ActorError if an actor asks itself.
        """
        cell = self._cell
        seconds = cell.ask_timeout if timeout is None else timeout
        if not 0 <= seconds < math.inf:
            raise ValueError(f"an ask has a deadline: timeout must be finite and not negative, not {seconds}")
        if cell.is_own_task():
            raise ActorError(f"actor {cell.name!r} asks itself, and would wait for its own answer")
        envelope: Envelope[M_contra, R_co] = Envelope(message, trio.Event())
        try:
            with trio.move_on_after(seconds):
                await cell.put(envelope)
                await envelope.wait_answered()
        finally:
            # Also when Cancelled passes through: nobody is left to answer to.
            begun = envelope.withdraw()
        if envelope.is_answered():  # asked first, so that an answer which met the deadline counts
            return envelope.open()
        fate = "it had begun with the message" if begun else "it had not begun with the message, and will not"
        raise AskTimeout(f"actor {cell.name!r} did not answer within {seconds} s; {fate}")

    async def stop(self) -> None:
        """Stop for good: refuse new messages, handle those that wait, run `stopped`; returns when ended.

        Cancelling this wait does not undo the request. Called by the actor itself it does not wait.
        """
        self._cell.close()
        if self._cell.is_own_task():
            await trio.lowlevel.checkpoint()
        else:
            await self._cell.ended.wait()


# ---- behind the reference -------------------------------------------------------------------


class Envelope(Generic[M, R]):
    """One message on its way, and the one place where its answer is laid down.

    waiting → taken → answered; `withdrawn` from the first two, by the asker. Each arrow is walked by one
    task without a checkpoint between look and step, so there is no race to lose.
    """

    __slots__ = ("_answered", "_error", "_state", "_value", "message")

    def __init__(self, message: M, answered: trio.Event | None) -> None:
        self.message = message
        self._answered = answered  # None: a tell, nobody waits
        self._state: Literal["waiting", "taken", "answered", "withdrawn"] = "waiting"
        self._value: R | None = None
        self._error: ActorError | None = None

    def take(self) -> bool:
        """The actor begins. False if the asker has gone."""
        if self._state == "withdrawn":
            return False
        self._state = "taken"
        return True

    def withdraw(self) -> bool:
        """The asker goes. True if the actor had begun. No effect on an answer that is here."""
        begun = self._state != "waiting"
        if self._state != "answered":
            self._state = "withdrawn"
        return begun

    def answer(self, value: R) -> None:
        self._settle(value, None)

    def fail(self, error: ActorError) -> None:
        self._settle(None, error)

    def _settle(self, value: R | None, error: ActorError | None) -> None:
        if self._state == "answered":
            raise InternalError("a message was answered twice")
        if self._state == "withdrawn":
            return
        self._state = "answered"
        if self._answered is not None:
            self._value, self._error = value, error
            self._answered.set()

    def is_answered(self) -> bool:
        return self._state == "answered"

    async def wait_answered(self) -> None:
        if self._answered is not None:
            await self._answered.wait()

    def open(self) -> R:
        """The answer: returned, or raised. Once: the error is taken out, because it would close a cycle
        (error → its cause → traceback → the actor's frame → this envelope → error).
        """
        error, self._error = self._error, None
        if error is None:
            return self._value  # type: ignore[return-value]  # None only where R allows None
        try:
            raise error
        finally:
            del error


class Life:
    """One stretch of work between a start and an end, of an actor or of a supervisor.

    It ends in one of three ways: by itself, because `finish` asked it to (in order), or because `scope` was
    cancelled (at once). `defect` is what it raised, if it raised.
    """

    def __init__(self, *, shield: bool) -> None:
        # Shielded, since a supervisor ends its children one by one, in reverse order, even if the whole tree
        # is cancelled from outside: see Supervisor.live, which cancels `scope` on every way out.
        self.scope = trio.CancelScope(shield=shield)
        self.idle = trio.CancelScope()  # around the waits that `finish` may interrupt
        self.finishing = False
        self.settled = trio.Event()  # ready, or ended before it was
        self.ended = trio.Event()
        self.is_ready = False
        self.defect: Exception | None = None

    def finish(self) -> None:
        self.finishing = True
        self.idle.cancel()

    def ready(self) -> None:
        self.is_ready = True
        self.settled.set()

    async def run(self, work: Callable[[Life], Awaitable[None]]) -> None:
        """Do the work. An Exception is kept as the defect; the program's exceptions pass.

        A group in which an error stands beside Cancelled is an Exception by the time it gets here, because the
        scope, being the one that was cancelled, has taken the Cancelled out.
        """
        try:
            with self.scope:
                await work(self)
        except Exception as exc:
            self.defect = exc
        finally:
            self.settled.set()
            self.ended.set()

    def take_defect(self) -> Exception | None:
        """The defect, once: kept here it would close a cycle through its own traceback."""
        defect, self.defect = self.defect, None
        return defect


def state_of(life: Life | None, *, closing: bool, ended: bool) -> State:
    """The one reading of those three, for actors and supervisors alike. life: the present one."""
    if ended:
        return "ended"
    if life is None:
        return "down"
    if closing or life.finishing:
        return "stopping"
    return "running" if life.is_ready else "starting"


class Cell(Generic[M, R]):
    """What outlives a life: the name, the mailbox, the counters, and the way to make the next life."""

    def __init__(self, name: str, factory: Callable[[], Actor[M, R]], capacity: int) -> None:
        self.name = name
        self.ask_timeout: float = Actor.ask_timeout
        self.ended = trio.Event()
        self.lives = 0
        self._factory = factory
        self._mailbox: Mailbox[Envelope[M, R]] = Mailbox(capacity)
        self._closing = False
        self._life: Life | None = None
        self._task: trio.lowlevel.Task | None = None
        self._handled = 0
        self._crashes = 0

    # -- for the reference ---------------------------------------------------------------

    async def put(self, envelope: Envelope[M, R]) -> None:
        try:
            await self._mailbox.send(envelope)
        except trio.ClosedResourceError:
            raise self._stopped() from None

    def put_nowait(self, envelope: Envelope[M, R]) -> None:
        try:
            self._mailbox.send_nowait(envelope)
        except trio.ClosedResourceError:
            raise self._stopped() from None
        except MailboxFull as full:
            raise MailboxFull(f"actor {self.name!r}: {full}") from None

    def is_own_task(self) -> bool:
        return self._task is not None and self._task is trio.lowlevel.current_task()

    def statistics(self) -> ActorStatistics:
        return ActorStatistics(
            name=self.name,
            state=self.state,
            restarts=max(0, self.lives - 1),
            handled=self._handled,
            crashes=self._crashes,
            mailbox=self._mailbox.statistics(),
        )

    @property
    def state(self) -> State:
        return state_of(self._life, closing=self._closing, ended=self.ended.is_set())

    # -- for the supervisor --------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Let nothing more in. The life that runs, or the next one, handles what is inside and ends."""
        self._closing = True
        self._mailbox.close()

    def end(self) -> None:
        """There will be no further life: answer for every message that is left. Idempotent."""
        self._closing = True
        for envelope in self._mailbox.seize():
            envelope.fail(self._stopped())
        self.ended.set()

    async def live(self, life: Life) -> None:
        """One life, from the factory to `stopped`."""
        self.lives += 1
        self._life, self._task = life, trio.lowlevel.current_task()
        try:
            actor = self._factory()
            actor._life = life
            self.ask_timeout = actor.ask_timeout
            await actor.started()
            life.ready()
            await self._serve_and_clean_up(actor, life)
        except Exception:
            self._crashes += 1
            raise
        finally:
            self._life = self._task = None

    async def _serve_and_clean_up(self, actor: Actor[M, R], life: Life) -> None:
        try:
            await self._serve(actor, life)
        except BaseException as exc:
            try:
                await self._clean_up(actor)
            except Exception as second:  # the first error is the story; the second its epilogue
                add_echo(exc, second)
            raise
        else:
            await self._clean_up(actor)

    async def _clean_up(self, actor: Actor[M, R]) -> None:
        deadline = trio.current_time() + actor.cleanup_timeout
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            await actor.stopped()
        if scope.cancelled_caught:
            raise ActorError(f"actor {self.name!r}: stopped() took over {actor.cleanup_timeout} s; cancelled")

    async def _serve(self, actor: Actor[M, R], life: Life) -> None:
        while not life.finishing:
            envelope = await self._next(life)
            if envelope is not None and envelope.take():
                await self._handle(actor, envelope)

    async def _next(self, life: Life) -> Envelope[M, R] | None:
        """The next message; None if the life is to end, or has nothing left to do."""
        with trio.CancelScope() as life.idle:  # `receive` gives up its wait, never a message
            try:
                return await self._mailbox.receive()
            except trio.EndOfChannel:
                life.finishing = True
        return None

    async def _handle(self, actor: Actor[M, R], envelope: Envelope[M, R]) -> None:
        try:
            answer = await actor.handle(envelope.message)
        except Exception as defect:
            crashed = ActorCrashed(f"actor {self.name!r} crashed on this message: {defect!r}")
            crashed.__cause__ = defect
            envelope.fail(crashed)
            del crashed  # this frame is part of the defect's traceback
            raise
        except BaseException:  # Cancelled, or the program's end: the message is answered either way
            envelope.fail(self._stopped())
            raise
        self._handled += 1
        envelope.answer(answer)

    def _stopped(self) -> ActorStopped:
        return ActorStopped(f"actor {self.name!r} has stopped")
