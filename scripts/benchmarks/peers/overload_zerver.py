"""The overload benchmark's work as flows: a step for each slice of CPU, an effect for each wait."""

from typing import Annotated

import trio
from work import SHAPES, burn

from zerver import App, Done, Flow, Slot, effect, step
from zerver.core.stages import Stage
from zerver.http import Query, text

Factor = Annotated[float, Slot("factor")]
Slow = Annotated[float, Slot("slow")]


@effect(kind="bench.wait", access="read", target="dependency")
async def wait(seconds: float) -> None:
    await trio.sleep(seconds)


@effect(kind="bench.ask", access="read", target="slow-dependency")
async def ask(seconds: float) -> None:
    await trio.sleep(seconds)


@step
def read(cpu: Annotated[float, Query()] = 1.0, io: Annotated[float, Query()] = 1.0) -> tuple[Factor, Slow]:
    return cpu, io


def chain(name: str) -> list[Stage]:
    slices, between = SHAPES[name]
    stages: list[Stage] = [read]
    for number, seconds in enumerate(slices):
        if number:
            stages.append(rest_of(f"{name}.{number}.wait", between))
        stages.append(work_of(f"{name}.{number}", seconds))
    return stages


def work_of(name: str, seconds: float) -> Stage:
    @step(name=name)
    def work(factor: Factor) -> None:
        burn(seconds * factor)

    return work


def rest_of(name: str, seconds: float) -> Stage:
    @step(name=name)
    async def rest(slow: Slow) -> None:
        await wait(seconds * slow)

    return rest


@step
async def rest_dependent(slow: Slow) -> None:
    await ask(SHAPES["default"][1] * slow)


@step
def done() -> Done:
    return Done(text("done"))


first, second = (work_of(f"dependent.{n}", seconds) for n, seconds in enumerate(SHAPES["default"][0]))

app = App(identify=lambda head: head.headers.get("x-tenant"))
for name in SHAPES:
    app.route("GET", f"/{name}", Flow(name, [*chain(name), done], priority=name, deadline=30.0))
app.route("GET", "/dependent", Flow("dependent", [read, first, rest_dependent, second, done], deadline=30.0))
