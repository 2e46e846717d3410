"""What happens to the world of `durable_world`: kills between two steps, holds, outages, and clocks that are set.

Law: all of it is drawn from the seed, and it ends: then it is calm, and what is left must come to rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from scripts.simulations.durable_world import World


class Steps(trio.abc.Instrument):
    """Kills a process between two steps of any task."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._left = world.faults.kills
        self._next = self._draw()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._next -= 1
        if self._next == 0 and self._left and not self.world.calm:
            self._left -= 1
            self._next = self._draw()
            living = self.world.living()
            if living:
                self.world.chance.choice(living).kill("between two steps")

    def _draw(self) -> int:
        return 1 + int(self.world.chance.expovariate(1 / self.world.faults.apart))


async def make_trouble(world: World) -> None:
    """Whatever lasts, until it is calm."""
    async with trio.open_nursery() as nursery:
        faults = world.faults
        troubles: list[Callable[[World, float], Awaitable[None]]] = [_hold] * faults.holds
        troubles += [_outage] * faults.outages + [_set_clock] * faults.steps_of_time
        for trouble in troubles:
            nursery.start_soon(trouble, world, world.chance.uniform(0.0, faults.seconds))
        await trio.sleep(faults.seconds)
    world.calm = True
    world.away.clear()
    world.provider_down = False
    world.set_back = world.furthest  # pauses expire by it: one that was begun an hour ahead would last an hour longer
    for process in world.processes:
        process.let_go()
    world.note("calm")


async def _hold(world: World, at: float) -> None:
    await trio.sleep(at)
    living = world.living()
    if not living:
        return
    process = world.chance.choice(living)
    event = trio.Event()
    whole = world.chance.random() < 0.5
    if whole:
        process.held = event
    else:
        process.held_renewals = event
    world.note("held", process.name, whole)
    await trio.sleep(world.chance.uniform(0.5, 15.0))
    process.let_go()


async def _outage(world: World, at: float) -> None:
    await trio.sleep(at)
    living = world.living()
    if world.chance.random() < 0.3:
        world.provider_down = True
        await trio.sleep(world.chance.uniform(0.5, 4.0))
        world.provider_down = False
        return
    whom = world.chance.choice(living).name if living and world.chance.random() < 0.5 else ""
    world.away.add(whom)
    world.note("away", whom)
    await trio.sleep(world.chance.uniform(0.1, 12.0))
    world.away.discard(whom)


async def _set_clock(world: World, at: float) -> None:
    await trio.sleep(at)
    if world.chance.random() < 0.3:
        world.restarts += 1
        for process in world.living():
            process.kill("the machine was restarted")
    else:
        world.set_back += world.chance.choice((-3600, -61, -5, 5, 61, 3600))
        world.furthest = max(world.furthest, world.set_back)
