"""Proves that every ask is answered exactly once, whatever the actor, the asker and the clock do."""

from __future__ import annotations

import contextlib
import gc
import math
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from zerver.errors import ActorCrashed, ActorError, ActorStopped, AskTimeout, InternalError, MailboxFull
from zerver.runtime.actor import Actor, ActorRef, Envelope
from zerver.runtime.supervisor import Supervisor, logger, open_supervisor


class Boom(Exception):
    pass


class Scripted(Actor[str, str]):
    """Does what the message says, and writes down what happened."""

    def __init__(self, log: list[str] | None = None, gate: trio.Event | None = None) -> None:
        self.log = log if log is not None else []
        self.gate = gate if gate is not None else trio.Event()

    async def started(self) -> None:
        self.log.append("started")

    async def handle(self, message: str) -> str:
        self.log.append(message)
        match message:
            case "crash":
                raise Boom(message)
            case "gate":
                await self.gate.wait()
            case "forever":
                await trio.sleep_forever()
            case "finish":
                self.finish()
            case "slow":
                await trio.sleep(1)
        return message.upper()

    async def stopped(self) -> None:
        self.log.append("stopped")


@contextlib.asynccontextmanager
async def open_actor(
    factory: Callable[[], Actor[Any, Any]], **options: Any
) -> AsyncGenerator[ActorRef[Any, Any], None]:
    async with open_supervisor(max_restarts=100) as supervisor:
        yield await supervisor.start(factory, name="it", **options)


async def test_tell_and_ask_are_handled_in_order_in_one_life() -> None:
    log: list[str] = []
    async with open_actor(lambda: Scripted(log)) as ref:
        await ref.tell("a")
        ref.tell_nowait("b")
        assert await ref.ask("c") == "C"
        assert ref.name == "it"
        assert ref.statistics().handled == 3
        assert ref.statistics().state == "running"
        assert repr(ref) == "<ActorRef 'it' running>"
    assert log == ["started", "a", "b", "c", "stopped"]
    assert ref.statistics().state == "ended"


async def test_a_crash_is_answered_with_the_defect_and_what_waits_survives(nursery: trio.Nursery) -> None:
    log: list[str] = []
    gate = trio.Event()
    async with open_actor(lambda: Scripted(log, gate)) as ref:
        nursery.start_soon(ref.tell, "gate")
        await trio.testing.wait_all_tasks_blocked()
        answers: list[object] = []

        async def crash() -> None:
            with pytest.raises(ActorCrashed, match="crashed on this message: Boom") as caught:
                await ref.ask("crash")
            answers.append(caught.value.__cause__)

        nursery.start_soon(crash)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ref.tell, "waiting")
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        assert await ref.ask("last") == "LAST"
        assert isinstance(answers[0], Boom)
        after = ref.statistics()
        assert (after.restarts, after.crashes, after.handled) == (1, 1, 3)
    assert log == ["started", "gate", "crash", "stopped", "started", "waiting", "last", "stopped"]


async def test_an_actor_that_is_not_restarted_answers_everybody(nursery: trio.Nursery) -> None:
    gate = trio.Event()
    async with open_actor(lambda: Scripted(gate=gate), restart="temporary", capacity=1) as ref:
        stopped: list[int] = []

        async def be_refused(number: int) -> None:
            with pytest.raises(ActorStopped, match="'it' has stopped"):
                await ref.ask("never")
            stopped.append(number)

        await ref.tell("gate")
        await trio.testing.wait_all_tasks_blocked()
        await ref.tell("crash")
        for number in range(3):  # these wait for room: the mailbox holds one
            nursery.start_soon(be_refused, number)
        await trio.testing.wait_all_tasks_blocked()
        assert ref.statistics().mailbox.senders_waiting == 3
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(stopped) == [0, 1, 2]
        assert ref.statistics().state == "ended"
        for send in (ref.tell("x"), ref.ask("x")):
            with pytest.raises(ActorStopped):
                await send
        with pytest.raises(ActorStopped):
            ref.tell_nowait("x")


async def test_ask_has_a_deadline_and_a_message_not_begun_is_withdrawn(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    log: list[str] = []
    gate = trio.Event()
    async with open_actor(lambda: Scripted(log, gate)) as ref:
        nursery.start_soon(ref.tell, "gate")
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        with pytest.raises(AskTimeout, match=r"'it' did not answer within 5.0 s; it had not begun"):
            await ref.ask("withdrawn")
        assert trio.current_time() - began == pytest.approx(5.0)
        gate.set()
        with pytest.raises(AskTimeout, match=r"within 0.5 s; it had begun"):
            await ref.ask("slow", timeout=0.5)
        assert await ref.ask("after") == "AFTER"
    assert log == ["started", "gate", "slow", "after", "stopped"]


async def test_the_deadline_covers_the_wait_for_room(autojump_clock: trio.testing.MockClock) -> None:
    async with open_actor(Scripted, capacity=1) as ref:
        await ref.tell("gate")
        await trio.testing.wait_all_tasks_blocked()
        await ref.tell("waits")
        with pytest.raises(AskTimeout):
            await ref.ask("no room", timeout=1)
        with pytest.raises(MailboxFull, match="actor 'it': 1 messages wait"):
            ref.tell_nowait("no room")
        assert ref.statistics().mailbox.waiting == 1


async def test_the_actor_says_how_long_an_ask_waits(autojump_clock: trio.testing.MockClock) -> None:
    class Patient(Scripted):
        ask_timeout = 60.0

    async with open_actor(Patient) as ref:
        with trio.fail_after(61), pytest.raises(AskTimeout, match=r"60\.0 s"):
            await ref.ask("forever")


@pytest.mark.parametrize("timeout", [math.inf, math.nan, -1.0])
async def test_an_ask_without_a_deadline_is_refused(timeout: float) -> None:
    async with open_actor(Scripted) as ref:
        with pytest.raises(ValueError, match="has a deadline"):
            await ref.ask("x", timeout=timeout)


async def test_an_outer_cancellation_stays_one_and_the_actor_lives_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_actor(Scripted) as ref:
        with trio.move_on_after(0.5) as scope:
            await ref.ask("slow", timeout=3)
        assert scope.cancelled_caught
        assert await ref.ask("next") == "NEXT"
        assert ref.statistics().crashes == 0


async def test_stop_handles_what_waits_and_refuses_what_comes(nursery: trio.Nursery) -> None:
    log: list[str] = []
    gate = trio.Event()
    async with open_actor(lambda: Scripted(log, gate)) as ref:
        for message in ("gate", "second", "third"):
            await ref.tell(message)
        nursery.start_soon(ref.stop)
        nursery.start_soon(ref.stop)  # a second stop waits for the same end
        await trio.testing.wait_all_tasks_blocked()
        assert ref.statistics().state == "stopping"
        with pytest.raises(ActorStopped):
            await ref.tell("too late")
        gate.set()
        await ref.stop()
        assert log == ["started", "gate", "second", "third", "stopped"]
        assert ref.statistics().restarts == 0


async def test_a_crash_while_stopping_is_the_end(nursery: trio.Nursery) -> None:
    gate = trio.Event()
    async with open_actor(lambda: Scripted(gate=gate)) as ref:
        await ref.tell("gate")
        await ref.tell("crash")

        async def be_refused() -> None:
            with pytest.raises(ActorStopped):
                await ref.ask("behind the crash")

        nursery.start_soon(be_refused)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ref.stop)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        await ref.stop()
        assert ref.statistics().restarts == 0


@pytest.mark.parametrize(("restart", "state"), [("permanent", "running"), ("transient", "ended")])
async def test_finish_ends_one_life_in_order(restart: Any, state: str) -> None:
    log: list[str] = []
    async with open_actor(lambda: Scripted(log), restart=restart) as ref:
        assert await ref.ask("finish") == "FINISH"
        await trio.testing.wait_all_tasks_blocked()
        assert ref.statistics().state == state
        assert log[:3] == ["started", "finish", "stopped"]


async def test_an_actor_cannot_wait_for_itself() -> None:
    refs: list[ActorRef[str, str]] = []

    class Selfish(Actor[str, str]):
        async def handle(self, message: str) -> str:
            (ref,) = refs
            match message:
                case "ask":
                    with pytest.raises(ActorError, match="asks itself"):
                        await ref.ask("x")
                case "tell":
                    await ref.tell("x")
                    with pytest.raises(MailboxFull):
                        await ref.tell("y")
                case "stop":
                    await ref.stop()
            return message

    async with open_actor(Selfish, capacity=1) as ref:
        refs.append(ref)
        assert await ref.ask("ask") == "ask"
        assert await ref.ask("tell") == "tell"
        assert await ref.ask("stop") == "stop"
        await ref.stop()


async def test_a_failed_start_is_the_starter_s_error_and_leaves_nothing() -> None:
    class Broken(Scripted):
        async def started(self) -> None:
            raise Boom("no database")

    async with open_supervisor() as supervisor:
        with pytest.raises(Boom, match="no database") as caught:
            await supervisor.start(Broken, name="it")
        assert "started" in {frame.name for frame in caught.traceback}
        assert supervisor.statistics().children == ()
        assert supervisor.statistics().restarts == 0
        ref = await supervisor.start(Scripted, name="it")  # the name is free again
        assert await ref.ask("a") == "A"


async def test_stopped_is_bounded_and_its_failure_is_a_crash(autojump_clock: trio.testing.MockClock) -> None:
    class Sticky(Scripted):
        cleanup_timeout = 2.0

        async def stopped(self) -> None:
            await trio.sleep_forever()

    async with open_actor(Sticky) as ref:
        began = trio.current_time()
        await ref.stop()
        assert trio.current_time() - began == pytest.approx(2.0)
        assert ref.statistics().crashes == 1


async def test_a_second_failure_in_stopped_is_a_note_of_the_first() -> None:
    class Doomed(Scripted):
        async def stopped(self) -> None:
            raise ValueError("and the cleanup too")

    async with open_actor(Doomed, restart="temporary") as ref:
        with pytest.raises(ActorCrashed) as caught:
            await ref.ask("crash")
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(caught.value.__cause__, Boom)
        assert "and the cleanup too" in caught.value.__cause__.__notes__[0]


async def test_a_defect_that_is_a_group_stays_the_handler_s_own_group() -> None:
    class Nurse(Actor[str, str]):
        async def handle(self, message: str) -> str:
            async with trio.open_nursery():
                raise Boom
            return message

    async with open_actor(Nurse, restart="temporary") as ref:
        with pytest.raises(ActorCrashed) as caught:
            await ref.ask("x")
        assert pytest.RaisesGroup(Boom).matches(caught.value.__cause__)


async def test_a_defect_raised_while_being_cancelled_is_a_defect_and_the_asker_is_answered(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    class Mixed(Actor[str, str]):
        async def handle(self, message: str) -> str:
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise Boom
            return message

    async def be_refused(ref: ActorRef[Any, Any]) -> None:
        with pytest.raises((ActorStopped, ActorCrashed)):
            await ref.ask("x", timeout=1000)

    async with open_actor(Mixed) as ref:
        nursery.start_soon(be_refused, ref)
        await trio.testing.wait_all_tasks_blocked()
    assert ref.statistics().state == "ended"  # the orderly end was late, then came the cancellation
    assert "'it' under supervisor 'root' crashed" in caplog.text


async def test_stopped_is_shielded_from_the_cancellation_that_ends_the_actor(
    autojump_clock: trio.testing.MockClock,
) -> None:
    log: list[str] = []

    class Tidy(Scripted):
        async def stopped(self) -> None:
            await trio.sleep(1)
            log.append("tidy")

    with trio.CancelScope() as scope:
        async with open_actor(Tidy) as ref:
            await ref.tell("forever")
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert log == ["tidy"]


async def test_a_crash_leaves_no_reference_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "disabled", True)  # pytest keeps what is logged, tracebacks included

    class Message:
        crash = True

    class Crashing(Actor[Message, None]):
        async def handle(self, message: Message) -> None:
            raise Boom

    async def provoke(ref: ActorRef[Message, None]) -> weakref.ref[Message]:
        message = Message()
        with contextlib.suppress(ActorCrashed):
            await ref.ask(message)
        return weakref.ref(message)

    async with open_actor(Crashing) as ref:
        gc.collect()
        gc.disable()
        try:
            seen = await provoke(ref)
            await trio.testing.wait_all_tasks_blocked()
            assert seen() is None
        finally:
            gc.enable()


def test_an_envelope_is_answered_once() -> None:
    envelope = Envelope[str, str]("x", None)
    envelope.take()
    envelope.answer("y")
    with pytest.raises(InternalError, match="twice"):
        envelope.answer("z")


def test_an_answer_to_an_asker_who_has_gone_is_dropped() -> None:
    envelope = Envelope[str, str]("x", trio.Event())
    assert envelope.take()
    assert envelope.withdraw()
    envelope.answer("y")
    assert not envelope.is_answered()


# ---- cancel at every step --------------------------------------------------------------------


@attrs.define(eq=False)
class CancelAtStep(trio.abc.Instrument):
    """Cancels `scope` before the n-th task step after the scope was entered."""

    countdown: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    armed: bool = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.armed:
            self.countdown -= 1
            if self.countdown == 0:
                self.scope.cancel()


def sweep(scenario: Callable[[trio.CancelScope], Awaitable[None]]) -> int:
    """Run the scenario again and again, cancelling its scope one step later each time. Returns the steps."""

    async def main(instrument: CancelAtStep) -> None:
        instrument.armed = True
        with trio.fail_after(10_000):  # seconds of the mock clock: only what hangs gets there
            await scenario(instrument.scope)
        instrument.armed = False
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks_at_rest

    async def count() -> int:
        await trio.testing.wait_all_tasks_blocked()
        return trio.lowlevel.current_statistics().tasks_living

    tasks_at_rest = trio.run(count)
    for step in range(1, 2_000):
        instrument = CancelAtStep(step)
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(main, instrument, clock=clock, instruments=[instrument])
        if instrument.countdown > 0:
            return step
    raise AssertionError("the scenario never ends")


@attrs.define
class Tally:
    """What became of each ask: exactly one thing each, or the sweep has found a bug."""

    fates: dict[int, list[str]] = attrs.field(factory=dict)

    async def ask(self, ref: ActorRef[str, str], number: int, message: str, timeout: float) -> None:
        fates = self.fates.setdefault(number, [])
        try:
            await ref.ask(message, timeout=timeout)
            fates.append("answered")
        except (ActorCrashed, ActorStopped, AskTimeout) as error:
            fates.append(type(error).__name__)
        except trio.Cancelled:
            fates.append("cancelled")
            raise

    def check(self) -> None:
        assert all(len(fates) == 1 for fates in self.fates.values()), self.fates


SCRIPT = ["a", "crash", "slow", "b", "finish", "c"]


def test_cancelling_the_supervisor_s_owner_anywhere_answers_every_ask() -> None:
    """The askers live outside the cancelled scope, so nothing but an answer or a deadline can free them."""
    seen: set[str] = set()

    async def scenario(scope: trio.CancelScope) -> None:
        tally = Tally()
        log: list[str] = []
        async with trio.open_nursery() as nursery:
            with scope:
                async with open_supervisor() as supervisor:
                    ref = await supervisor.start(lambda: Scripted(log), capacity=2)
                    for number, message in enumerate(SCRIPT):
                        nursery.start_soon(tally.ask, ref, number, message, 1e3)
                    await trio.sleep(0.5)
                    await ref.stop()
        tally.check()
        fates = {fate for (fate,) in tally.fates.values()}
        assert fates <= {"answered", "ActorCrashed", "ActorStopped"}  # AskTimeout would be a lost answer
        assert log.count("started") == log.count("stopped")
        seen.update(fates)

    assert sweep(scenario) > 20
    assert seen == {"answered", "ActorCrashed", "ActorStopped"}


def test_cancelling_the_askers_anywhere_leaves_the_actor_well() -> None:
    async def scenario(scope: trio.CancelScope) -> None:
        tally = Tally()
        async with open_supervisor(max_restarts=10) as supervisor:
            ref = await supervisor.start(Scripted, capacity=2)
            with scope:
                async with trio.open_nursery() as nursery:
                    for number, message in enumerate(SCRIPT):
                        nursery.start_soon(tally.ask, ref, number, message, 1e3)
            tally.check()
            assert await ref.ask("still there", timeout=1e3) == "STILL THERE"

    assert sweep(scenario) > 15


def test_cancelling_a_start_anywhere_leaves_a_child_with_a_reference_or_none() -> None:
    class Slow(Scripted):
        async def started(self) -> None:
            await trio.sleep(1)

    async def start_it(supervisor: Supervisor, scope: trio.CancelScope) -> bool:
        with scope:
            await supervisor.start(Slow)
            return True
        return False

    async def scenario(scope: trio.CancelScope) -> None:
        async with open_supervisor() as supervisor:
            has_reference = await start_it(supervisor, scope)
            await trio.testing.wait_all_tasks_blocked()
            assert len(supervisor.statistics().children) == (1 if has_reference else 0)

    assert sweep(scenario) > 2
