"""A connection to PostgreSQL is cut at each commit of a run, before it, in its midst and behind it, once or twice in a
row; or it is slow: what was acknowledged is there, and nothing is done twice."""

from __future__ import annotations

import pytest
import trio

from tests.faults.proxy import CUTS, Cut, Proxy, open_proxy
from tests.runtime.dying import SHOP, Witness, World, check_once
from tests.sql.postgresql import Server, through
from zerver import App
from zerver.journal import open_postgres_journal
from zerver.runtime import open_runtime
from zerver.runtime.journal import UNRESOLVED

GIVE_UP = 30.0


async def scenario(proxy: Proxy, conninfo: str, cut: Cut, numbers: range) -> int:
    """How many connections were cut while a process lived that then left all to another."""
    world = World()
    before = proxy.cuts
    acknowledged: dict[str, bool] = {}
    witness = Witness(world=world)
    async with (
        open_postgres_journal(f"{through(proxy.port, conninfo)} sslmode=disable") as journal,
        open_runtime(App(), handlers=witness.handlers(), journal=journal, flows=[SHOP]) as runtime,
    ):
        proxy.arm(cut, numbers)
        result = await runtime.run(SHOP)
        acknowledged[result.run_id] = result.ok
        cuts = proxy.cuts - before
    proxy.arm(cut, range(0))
    async with (
        open_postgres_journal(conninfo) as journal,
        open_runtime(App(), handlers=Witness(world=world).handlers(), journal=journal, flows=[SHOP]),
    ):
        with trio.fail_after(GIVE_UP):
            while (tallies := await journal.tallies()).get("", 0):
                await trio.sleep(0.01)
        assert UNRESOLVED not in tallies
        for run_id, ok in acknowledged.items():
            stored = await journal.read(run_id)
            done = stored is not None and stored.status == "done"
            assert done or not ok, "an acknowledged run is lost"
            standing = [key for key in world.done if key.startswith(run_id) and key not in world.undone]
            assert len(standing) == 2 * done, standing
    check_once(world)
    return cuts


@pytest.mark.parametrize(("cut", "length"), [*((cut, 1) for cut in CUTS), ("after", 2)])
async def test_a_commit_that_is_cut(cut: Cut, length: int, server: Server, conninfo: str) -> None:
    async with open_proxy(f"{server.home}/.s.PGSQL.{server.port}") as proxy:
        first = 1
        while await scenario(proxy, conninfo, cut, range(first, first + length)):
            first += 1
        assert first > 4


async def test_a_slow_database_is_waited_for(server: Server, conninfo: str) -> None:
    """As long as a run has patience; then it is refused, and what it did is undone."""
    async with open_proxy(f"{server.home}/.s.PGSQL.{server.port}") as proxy:
        witness = Witness()
        async with (
            open_postgres_journal(f"{through(proxy.port, conninfo)} sslmode=disable") as journal,
            open_runtime(App(), handlers=witness.handlers(), journal=journal, flows=[SHOP], lease=2.0) as runtime,
        ):
            proxy.latency = 0.02
            assert (await runtime.run(SHOP)).ok
            proxy.latency = 1.0
            result = await runtime.run(SHOP)
            assert result.status == "cancelled"
            proxy.latency = 0.0
            with trio.fail_after(GIVE_UP):
                while not (await runtime.run(SHOP)).ok:
                    await trio.sleep(0.05)
                while any(
                    key.startswith(result.run_id) and key not in witness.world.undone for key in witness.world.done
                ):
                    await trio.sleep(0.05)
        check_once(witness.world)
