"""Whatever moment a run is cancelled at, nothing leaks and no write is left behind: undone, or reported unresolved."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pytest
import trio

from zerver import (
    INJECTED,
    AdmissionPolicy,
    App,
    Done,
    Fail,
    Flow,
    IdempotencyKey,
    Pause,
    Slot,
    Target,
    dag,
    effect,
    join,
    parallel,
    step,
)
from zerver.core.tenants import NOBODY, Tenant
from zerver.errors import ConnectionLost
from zerver.runtime import Result, Runtime, open_runtime
from zerver.testing import SweepReport, cancel_sweep, fails, loses_reply

One = Annotated[str, Slot("one")]
Two = Annotated[str, Slot("two")]
Three = Annotated[str, Slot("three")]


class Bank:
    """The other side: it takes time to be reached and to be heard, and remembers what it did by key."""

    def __init__(self) -> None:
        self.charged: set[str] = set()
        self.refunded: set[str] = set()
        self.results: list[Result] = []
        self.runtime: Runtime | None = None

    async def charge(self, seconds: float, *, key: IdempotencyKey = INJECTED) -> str:
        await trio.sleep(seconds)
        self.charged.add(key)
        await trio.sleep(seconds)
        return key

    async def find(self, key: str) -> str | None:
        await trio.sleep(0.01)
        return key if key in self.charged else None

    async def refund(self, charge: str, *, key: IdempotencyKey = INJECTED) -> None:
        await trio.sleep(0.01)
        self.refunded.add(charge)
        await trio.sleep(0.01)

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {"bank.charge": self.charge, "bank.find": self.find, "bank.refund": self.refund}

    def is_sound(self) -> None:
        """Raise for money that nobody knows of, and for permits that did not come back."""
        for result in self.results:
            kept = {key for key in self.charged - self.refunded if key.startswith(result.run_id)}
            reported = {entry.call.key for entry in result.unresolved}
            if result.status != "done" and kept - reported:
                raise AssertionError(f"run {result.status}, but still charged: {kept - reported}")
        told = {result.run_id for result in self.results}
        orphans = {key for key in self.charged if key.partition(":")[0] not in told}
        if orphans:
            raise AssertionError(f"charged by runs that nobody was told of: {orphans}")
        if self.runtime is not None:
            self.is_idle(self.runtime)

    def is_idle(self, runtime: Runtime) -> None:
        seen = runtime.statistics()
        busy = [target.name for target in seen.targets if target.at_once or target.waiting]
        if seen.running or seen.admission.running or seen.admission.queued or busy:
            raise AssertionError(f"not idle: {seen}")
        if seen.ended != len(self.results):
            raise AssertionError(f"{seen.ended} runs have ended, but observers were told of {len(self.results)}")


@effect(kind="bank.charge", access="write")
async def charge(seconds: float, *, key: IdempotencyKey = INJECTED) -> str:
    raise NotImplementedError


@effect(kind="bank.find", access="read")
async def find(key: str) -> str | None:
    raise NotImplementedError


@effect(kind="bank.refund", access="write")
async def refund(made: str, *, key: IdempotencyKey = INJECTED) -> None:
    raise NotImplementedError


def buy(seconds: float) -> Any:
    """A charge that can be undone and asked for."""
    return charge(seconds).compensate(refund, resolve=find)


@step
async def first() -> One:
    return str(await buy(0.01))


@step
async def second() -> Two:
    return str(await buy(0.02))


@step
async def third(one: One, two: Two) -> Three:
    return one + two + str(await buy(0.01))


@step
def refuse() -> Fail:
    return Fail.conflict("cart")


@step
def give(one: One) -> Done:
    return Done(one)


Program = Callable[[Runtime, Bank], Awaitable[None]]


def sweep(program: Program, *, app: App | None = None, **faulty: Callable[..., Any]) -> SweepReport:
    """Sweep a program that uses a runtime; faulty: handlers of the bank, by verb, with faults put on."""
    banks: list[Bank] = [Bank()]

    async def whole() -> None:
        bank = banks[0] = Bank()
        handlers = bank.handlers
        for verb, fault in faulty.items():
            handlers[f"bank.{verb}"] = fault(handlers[f"bank.{verb}"])
        async with open_runtime(app or App(), handlers=handlers, observers=[bank.results.append], seed=1) as runtime:
            bank.runtime = runtime
            await program(runtime, bank)

    def newest_is_sound() -> None:
        banks[0].is_sound()

    report = cancel_sweep(whole, check=newest_is_sound)
    if not report.delivered:
        raise AssertionError("the sweep cut nothing")
    return report


def one_run(flow: Flow, status: str = "done") -> Program:
    async def program(runtime: Runtime, bank: Bank) -> None:
        result = await runtime.run(flow)
        if result.status != status or result.unresolved:
            raise AssertionError(f"{result.status}: {result.cause}, unresolved {result.unresolved}")

    return program


def several_runs(flow: Flow, count: int) -> Program:
    async def program(runtime: Runtime, bank: Bank) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(runtime.run, flow)

    return program


def flow_of(make: Callable[[], Any]) -> Flow:
    """A flow of one step that awaits the effect."""

    @step
    async def ask() -> None:
        await make()

    return Flow("asked", [ask])


def test_a_single_effect() -> None:
    sweep(one_run(Flow("single", [first, give])))


def test_an_effect_with_a_timeout() -> None:
    flow = flow_of(lambda: buy(0.01).with_policy(timeout=0.5))
    sweep(one_run(flow))


def test_reads_whose_time_is_over_between_writes() -> None:
    """They have used up the scope of the run that they had borrowed: it goes on in others."""

    @step
    async def look(one: One) -> Two:
        found = [await find("nothing").with_policy(timeout=seconds).outcome() for seconds in (0.005, 0.02, 0.005)]
        return str(await buy(0.01)) + "".join(type(outcome).__name__[0] for outcome in found)

    @step
    def is_refused(two: Two) -> Fail:
        return Fail.conflict(two[-3:])

    async def program(runtime: Runtime, bank: Bank) -> None:
        result = await runtime.run(Flow("looking", [first, look, is_refused]))
        if not isinstance(result.cause, Fail) or result.cause.what != "FSF":
            raise AssertionError(f"{result.status}: {result.cause}")

    sweep(program)


def test_retries_and_their_backoff() -> None:
    flow = flow_of(lambda: buy(0.01).with_policy(retries=2, backoff=0.1))
    sweep(one_run(flow), charge=fails(2, ConnectionLost("reset")))


def test_a_lost_reply_that_is_resolved() -> None:
    flow = flow_of(lambda: buy(0.01).with_policy(timeout=0.1))
    sweep(one_run(flow), charge=loses_reply(times=1))


def test_a_lost_reply_that_is_asked_for_again() -> None:
    flow = flow_of(lambda: buy(0.01).with_policy(timeout=0.1, retries=1))
    sweep(one_run(flow), charge=loses_reply(times=1))


def test_a_write_that_nobody_can_ask_for_is_reported() -> None:
    flow = flow_of(lambda: charge(0.01).compensate(refund))
    sweep(one_run(flow))


def test_a_write_that_nobody_can_undo_is_reported_when_it_is_in_doubt() -> None:
    ended: list[Result] = []

    async def whole() -> None:
        ended.clear()
        async with open_runtime(App(), handlers=Bank().handlers, observers=[ended.append]) as runtime:
            await runtime.run(flow_of(lambda: charge(0.01)))

    def doubt_is_told() -> None:
        for result in ended:
            doubts = [record for record in result.timeline.records if record[0] == "doubted"]
            if len(doubts) != len(result.unresolved):
                raise AssertionError(f"{len(doubts)} writes in doubt, {len(result.unresolved)} reported")

    cancel_sweep(whole, check=doubt_is_told)


def test_a_bulkhead_with_a_queue() -> None:
    app = App(targets={"bank": Target(bulkhead=1)})
    sweep(several_runs(Flow("single", [first, give]), 3), app=app)


@pytest.mark.parametrize("name", ["all", "race"])
def test_the_bound_of_a_tenant(name: str) -> None:
    make = getattr(join, name)
    app = App(tenants={NOBODY: Tenant(effects=1)}, targets={"bank": Target(bulkhead=2)})
    sweep(several_runs(flow_of(lambda: make(buy(0.01), buy(0.02), buy(0.01))), 2), app=app)


def test_a_hedge_within_the_bound_of_a_tenant() -> None:
    app = App(tenants={NOBODY: Tenant(effects=2)})
    sweep(one_run(flow_of(lambda: join.hedge(buy(0.05), after=0.02))), app=app)


@pytest.mark.parametrize("name", ["all", "settle", "race"])
def test_joins(name: str) -> None:
    make = getattr(join, name)
    sweep(one_run(flow_of(lambda: make(buy(0.01), buy(0.02), buy(0.01)))))


def test_a_quorum() -> None:
    sweep(one_run(flow_of(lambda: join.quorum(2, buy(0.01), buy(0.02), buy(0.015)))))


def test_nested_joins() -> None:
    sweep(one_run(flow_of(lambda: join.all(join.race(buy(0.01), buy(0.02)), join.settle(buy(0.01))))))


def test_a_join_that_times_out() -> None:
    flow = flow_of(lambda: join.all(buy(0.01), buy(1.0)).with_policy(timeout=0.1))
    sweep(one_run(flow, "failed"))


def test_a_hedge() -> None:
    sweep(one_run(flow_of(lambda: join.hedge(charge(0.05).compensate(refund, resolve=find), after=0.02))))


def test_a_hedge_whose_first_attempt_loses_its_reply() -> None:
    flow = flow_of(lambda: join.hedge(buy(0.01), after=0.05))
    sweep(one_run(flow), charge=loses_reply(times=1))


def test_parallel_steps() -> None:
    sweep(one_run(Flow("parallel", [parallel(first, second), third], gives=[Three])))


def test_a_dag() -> None:
    sweep(one_run(Flow("dag", [dag(first, second, third)], gives=[Three])))


def test_a_parallel_step_that_fails_while_the_other_writes() -> None:
    @step
    async def slow_no() -> Fail | None:
        return Fail.conflict("cart") if await find("nothing") is None else None

    sweep(one_run(Flow("half", [parallel(first, slow_no), give]), "failed"))


def test_a_rollback() -> None:
    sweep(one_run(Flow("rollback", [first, second, third, refuse], gives=[Three]), "failed"))


def test_a_rollback_that_is_tried_again() -> None:
    flow = Flow("rollback", [first, second, third, refuse], gives=[Three])
    sweep(one_run(flow, "failed"), refund=fails(2, ConnectionLost("reset")))


def test_a_deadline() -> None:
    flow = Flow("late", [first, second, third], gives=[Three], deadline=0.05)
    sweep(one_run(flow, "deadline"))


@step
async def park(one: One) -> Two | Pause:
    return Pause("go", expires=1.0)


PARKED = Flow("parked", [first, park, third], gives=[Three])


def test_a_pause_and_its_signal() -> None:
    async def program(runtime: Runtime, bank: Bank) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run, PARKED)
            await trio.sleep(0.5)
            run_id = next(iter(bank.charged)).partition(":")[0]  # a key begins with the id of its run
            if not await runtime.signal(run_id, "go", "signalled"):
                raise AssertionError("nobody was parked")

    sweep(program)


def test_a_pause_that_expires() -> None:
    sweep(one_run(PARKED, "failed"))


def test_the_queue_of_admission() -> None:
    sweep(several_runs(Flow("single", [first, give]), 3), app=App(admission=AdmissionPolicy(running=1)))


@pytest.mark.parametrize("seconds", [0.0, 0.015, 1.0])
def test_drain(seconds: float) -> None:
    async def program(runtime: Runtime, bank: Bank) -> None:
        flow = Flow("several", [first, second, third], gives=[Three])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run, flow)
            nursery.start_soon(runtime.run, flow)
            await trio.sleep(0.005)
            await runtime.drain(seconds)

    sweep(program)


def test_a_run_that_is_cancelled_from_outside() -> None:
    async def program(runtime: Runtime, bank: Bank) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run, Flow("several", [first, second, third], gives=[Three]))
            await trio.sleep(0.03)
            run_id = next(iter(bank.charged)).partition(":")[0]
            if not runtime.cancel_nowait(run_id, "the test said so"):
                raise AssertionError("there was no such run")

    sweep(program)
