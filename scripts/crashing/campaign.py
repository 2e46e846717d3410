"""scripts/crash: the checkout, served for real and killed again and again, and then the question: what is wrong?

    scripts/crash --kills 200 --journal postgres --workers 2 --profile mixed

Clients order for as long as it lasts, and each order orders jobs in its transaction: processes that work on jobs alone
stand beside the server, and are killed as it is. The provider lives on, declines, fails, cuts its callers off and takes
its time. In the end it is healthy, the shop is started a last time, and everything that was begun has to come to its
end; then the invariants (`scripts.crashing.invariants`) are checked. Ends with status 1 if one is violated.

What of a worker that was killed is unfinished is taken over when its lease lapses, after ten seconds, or at once when
somebody knows that it has died, and says so: both happen here.
"""

from __future__ import annotations

import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import click
import trio

from scripts.crashing.evidence import Away, Evidence, Order, ask, read_jobs, read_log, read_shop, read_stories
from scripts.crashing.invariants import VOID, violations
from scripts.crashing.servers import Crew, Group, Warmer, kill, open_warmer, start
from scripts.crashing.shop import make_app
from scripts.crashing.troubles import AWAY, Databases, Profile, Trouble, draw
from scripts.crashing.violations import Violation, by_key
from zerver.errors import HttpError, JournalUnavailable
from zerver.http import HttpClient, encode_json, open_http_client
from zerver.jobs import open_jobs
from zerver.jobs.port import JobStore
from zerver.journal import open_journal
from zerver.runtime.journal import Journal

#: How often the provider does what to its caller.
FAULTS: Final = {"down": 0.04, "cut": 0.06, "slow": 0.1, "decline": 0.05}

CARTS: Final = ("cart_1", "cart_2", "cart_3", "cart_1", "cart_2", "cart_3", "cart_soldout")

#: Seconds after which everything that was begun has to have ended.
ENDS_WITHIN: Final = 60.0

APP: Final = "scripts.crashing.shop:app"

#: A worker is killed so soon (seconds) after it has begun to serve.
SOON: Final = 0.6

#: Seconds of a lease, in the journal and of jobs; a zombie stands still for twice as long.
LEASE: Final = 10.0

#: Zombies that stand still at once, at most.
ZOMBIES: Final = 5

#: Seconds that a client waits for an answer.
CLIENT_PATIENCE: Final = 5.0


@attrs.frozen
class Plan:
    """kills: how many. journal: "sqlite" or "postgres". asks: as `scripts.crashing.shop.make_app`. at_once: clients.

    told: how many of those killed are said to be dead; of the others it is found out. early: how many are killed while
    they start. alone: workers that are killed alone, at most, before all of them are. gently: how many groups
    are told to drain, and killed in the midst of it. hands: processes beside the server that work on jobs alone.
    profile: what is done beside killing, see `scripts.crashing.troubles`. away: seconds that a database is away,
    at most.
    """

    kills: int = 100
    journal: str = "sqlite"
    workers: int = 1
    hands: int = 1
    profile: Profile = "kill"
    away: float = AWAY
    seed: int = 1
    dedupe: bool = True
    asks: bool = False
    at_once: int = 6
    told: float = 0.8
    early: float = 0.1
    alone: int = 4
    gently: float = 0.15


@attrs.frozen
class Figures:
    """What a campaign came to. recovered: runs that were taken over. most_calls: per key."""

    kills: int
    zombies: int
    outages: int
    orders: int
    acked: int
    refused: int
    unheard: int
    runs: int
    recovered: int
    jobs: int
    jobs_dead: int
    jobs_waiting: int
    rescues: int
    jobs_tried_again: int
    charges: int
    refunded: int
    keys: int
    keys_called_twice: int
    most_calls: int
    seconds: float
    violations: int

    def __str__(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in attrs.asdict(self).items())


@click.command()
@click.option("--kills", default=100, show_default=True, help="How many.")
@click.option("--journal", default="sqlite", show_default=True, type=click.Choice(["sqlite", "postgres"]))
@click.option("--workers", default=1, show_default=True, help="Processes that serve.")
@click.option("--hands", default=1, show_default=True, help="Processes beside them that work on jobs alone.")
@click.option(
    "--profile",
    default="kill",
    show_default=True,
    type=click.Choice(["kill", "zombie", "outage", "mixed"]),
    help="Beside killing: processes stand still for longer than their lease; the database is away.",
)
@click.option(
    "--away",
    default=AWAY,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that an outage lasts, at most.",
)
@click.option("--seed", default=1, show_default=True, help="For clients, faults, and the moments of death.")
@click.option(
    "--dedupe", default="on", show_default=True, type=click.Choice(["on", "off"]), help="Provider honours keys."
)
@click.option(
    "--resolve",
    default="",
    type=click.Choice(["", "key", "ask"]),
    help="Of charges in doubt.  [default: key, with dedupe]",
)
@click.option("--json", "report", metavar="FILE", help="Write the figures and what is wrong here too.")
@click.option("--keep", metavar="DIR", help="Work here, and leave what came of it.")
def main(**given: Any) -> None:
    """Kill a shop that takes orders, again and again; status 1 when an invariant is violated."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, in a shell's background
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # what was started is ended then, too
    report, keep, resolve = given.pop("report"), given.pop("keep"), given.pop("resolve")
    dedupe = given.pop("dedupe") == "on"
    plan = Plan(dedupe=dedupe, asks=(resolve or ("key" if dedupe else "ask")) == "ask", **given)
    with _folder(keep) as folder:
        figures, wrong = run(plan, folder)
    for violation in wrong:
        print(violation)
    print(figures)
    if report:
        told = {"plan": attrs.asdict(plan), "figures": attrs.asdict(figures), "wrong": [str(one) for one in wrong]}
        Path(report).write_text(json.dumps(told, indent=1) + "\n")
    raise SystemExit(bool(wrong))


@contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="zerver-crash-") as folder:
            yield Path(folder)
    else:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep)


def run(plan: Plan, folder: Path) -> tuple[Figures, list[Violation]]:
    """One campaign, in this folder."""
    began = time.monotonic()
    with ExitStack() as stack:
        if plan.journal == "sqlite":
            shop = str(folder.absolute() / "shop.db")
            databases = Databases(f"sqlite:///{folder.absolute() / 'shop.journal'}", shop)
        else:
            from tests.sql.postgresql import as_url, running_server

            server = stack.enter_context(running_server())
            url = as_url(server.make_database())
            databases = Databases(url, url, server)
        campaign = Campaign(plan, folder, databases)
        evidence = trio.run(campaign.run)
    wrong = violations(evidence)
    calls = {key: len(seen) for key, seen in by_key(evidence).items() if not key.endswith(VOID)}
    statuses = Counter(order.status for order in evidence.orders)
    states = Counter(job.state for job in evidence.jobs)
    return (
        Figures(
            kills=campaign.kills,
            zombies=campaign.zombies,
            outages=campaign.outages,
            orders=len(evidence.orders),
            acked=statuses[201],
            refused=len(evidence.orders) - statuses[201] - statuses[0],
            unheard=statuses[0],
            runs=len(evidence.stories),
            recovered=sum(story.fence > 1 for story in evidence.stories),
            jobs=len(evidence.jobs),
            jobs_dead=states["dead"],
            jobs_waiting=states["waiting"],
            rescues=sum(job.rescues for job in evidence.jobs),
            jobs_tried_again=sum(job.settled > 1 for job in evidence.jobs),
            charges=len(evidence.charges),
            refunded=sum(bool(cents) for cents in evidence.refunds.values()),
            keys=len(calls),
            keys_called_twice=sum(times > 1 for times in calls.values()),
            most_calls=max(calls.values(), default=0),
            seconds=round(time.monotonic() - began, 1),
            violations=len(wrong),
        ),
        wrong,
    )


class Campaign:
    """A shop, its clients, its provider, and whoever kills it."""

    journal: Journal
    store: JobStore

    def __init__(self, plan: Plan, folder: Path, databases: Databases) -> None:
        self.plan = plan
        self.folder = folder
        self.databases = databases
        self.rng = random.Random(plan.seed)
        self.orders: list[Order] = []
        self.dead: set[int] = set()
        self.kills = self.zombies = self.outages = 0
        self.standing_still = 0
        self.shop = ""  # where it is served; "" while it is not
        self.provider = ""
        self.environment: dict[str, str] = {}
        self.warmer: Warmer | None = None
        self.started: list[Group] = []

    async def run(self) -> Evidence:
        """The evidence. Whatever ends it, nothing that it has started is left."""
        try:
            return await self._run()
        finally:
            with trio.CancelScope(shield=True):
                for group in self.started:
                    if group.lives:
                        await group.kill()

    async def _run(self) -> Evidence:
        databases = self.databases
        async with (
            self._open_provider() as client,
            open_journal(databases.journal) as journal,
            open_jobs(databases.jobs) as store,
        ):
            await client.request("POST", f"{self.provider}/faults", body=encode_json(FAULTS))
            self.journal, self.store = journal, store
            async with trio.open_nursery() as nursery:
                for _ in range(self.plan.at_once):
                    nursery.start_soon(self._order, client, random.Random(self.rng.random()))
                async with trio.open_nursery() as zombies:
                    await self._kill(zombies)
                await client.request("POST", f"{self.provider}/faults", body=encode_json({}))
                crew = await self._start()
                self.shop = await crew.wait_ready() or ""
                await trio.sleep(SOON)
                nursery.cancel_scope.cancel()
            await self._tell(self.dead)
            await self._wait_ended()
            await crew.drain()
            return await self._collect(client)

    # -- clients --

    async def _order(self, client: HttpClient, rng: random.Random) -> None:
        """Order, whatever the answers are."""
        while True:
            if not self.shop:
                await trio.sleep(0.01)
                continue
            reference = f"ref_{len(self.orders)}"
            place = len(self.orders)
            self.orders.append(Order(reference, 0))
            body = encode_json({"cart_id": rng.choice(CARTS), "note": reference})
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer token-user_{rng.randint(1, 3)}"}
            if rng.random() < 0.3:  # its time may be over before anybody carries it on
                headers["X-Request-Timeout-Ms"] = str(rng.randint(50, 2000))
            url = f"{self.shop}/v2/{'cautious' if rng.random() < 0.25 else 'checkout'}"
            try:
                with trio.fail_after(CLIENT_PATIENCE):
                    reply = await client.request("POST", url, headers=headers, body=body)
            except (HttpError, trio.TooSlowError):
                await trio.sleep(rng.uniform(0.02, 0.1))
                continue
            said = reply.json(dict[str, Any]) if reply.status == 201 else {}
            self.orders[place] = Order(reference, reply.status, said.get("order", ""), said.get("payment", ""))
            if reply.status >= 500:
                await trio.sleep(0.05)

    # -- death --

    async def _kill(self, zombies: trio.Nursery) -> None:
        """Start, and kill, as often as the plan says."""
        plan, rng = self.plan, self.rng
        while self.kills < plan.kills:
            crew = await self._start()
            if rng.random() < plan.early:
                await trio.sleep(rng.uniform(0.0, 0.1 if plan.workers == 1 else 1.0))
            else:
                self.shop = await crew.wait_ready() or ""
                if not self.shop:
                    raise SystemExit(f"the shop does not start: {(self.folder / 'shop.log').read_text()[-2000:]}")
                await self._trouble(crew, draw(plan.profile, rng), zombies)
                several = plan.workers + plan.hands > 1
                ones = rng.randint(0, plan.alone) if several else 0  # at first one process only, some times
                for _ in range(min(ones, plan.kills - self.kills - 1)):
                    await trio.sleep(rng.uniform(0.0, SOON))
                    if not (workers := crew.workers()):
                        break
                    pid = rng.choice(workers)
                    kill(pid)
                    self.kills += 1
                    await self._bury({pid})
                await trio.sleep(rng.uniform(0.0, SOON))
            self.kills += 1
            if rng.random() < plan.gently:
                crew.terminate()
                await trio.sleep(rng.uniform(0.0, SOON))
            killed = await crew.kill()
            self.shop = ""
            await self._bury(killed)

    async def _trouble(self, crew: Crew, trouble: Trouble, zombies: trio.Nursery) -> None:
        if trouble == "zombie" and self.standing_still < ZOMBIES:
            await trio.sleep(self.rng.uniform(0.0, SOON))
            group = crew.groups.pop(self.rng.randrange(len(crew.groups)))
            if len(crew.groups) == self.plan.hands:  # it was the server
                self.shop = ""
            zombies.start_soon(self._zombie, group)
        elif trouble in ("stopped", "frozen"):
            await trio.sleep(self.rng.uniform(0.0, SOON))
            self.outages += 1
            await self.databases.away(trouble, self.rng, self.plan.away)

    async def _zombie(self, group: Group) -> None:
        """It stands still until others have what it had, goes on, and is killed."""
        self.zombies += 1
        self.standing_still += 1
        group.signal(signal.SIGSTOP)
        await trio.sleep(2 * LEASE)
        group.signal(signal.SIGCONT)
        self.standing_still -= 1
        await trio.sleep(self.rng.uniform(0.0, 5 * SOON))
        self.kills += 1
        await self._bury(await group.kill())

    async def _bury(self, pids: set[int]) -> None:
        """Perhaps somebody knows that they are dead, and says so."""
        self.dead |= pids
        if self.rng.random() < self.plan.told:
            await self._tell(pids)

    async def _tell(self, pids: set[int]) -> None:
        for database, table, store in (
            (self.databases.journal_place, "zerver_owners", self.journal),
            (self.databases.shop, "zerver_job_owners", self.store),
        ):
            try:
                owners = ask(database, f"select name from {table}")
            except Away:  # so nobody can say it there
                continue
            for (owner,) in owners:
                if int(owner.partition(".")[0]) in pids:
                    await _renew(store, owner)

    async def _start(self) -> Crew:
        common = ["--drain", "0.1", "--trace-db", "", "--journal", self.databases.journal]
        serve = ["zerver.cli", "serve", APP, "--port", "0", "--page", "off", "--workers", str(self.plan.workers)]
        work = ["zerver.cli", "work", APP]
        # The supervisor starts its workers by itself, and is not forked from what has imported everything.
        groups = [await self._start_one([*serve, *common], warm=self.plan.workers == 1)]
        for _ in range(self.plan.hands):
            groups.append(await self._start_one([*work, *common]))
        return Crew(groups)

    async def _start_one(self, command: list[str], warm: bool = True) -> Group:
        log = self.folder / "shop.log"
        if warm and self.warmer is not None:
            group = await self.warmer.start(command, log)
        else:
            group = await start(command, self.environment, log)
        self.started = [*(one for one in self.started if one.lives), group]
        return group

    # -- the end --

    async def _wait_ended(self) -> None:
        """Until nothing is unfinished; what still is then is told by the invariants."""
        with trio.move_on_after(ENDS_WITHIN):
            while (await self.journal.tallies()).get("", 0) or await self._jobs_left():  # noqa: ASYNC110 - others end them
                await trio.sleep(0.05)

    async def _jobs_left(self) -> int:
        """Jobs that somebody will begin, or has begun. What waits for others waits for one of these, or for ever."""
        unended = ("scheduled", "available", "running", "parked")
        return sum(queue.counts.get(state, 0) for queue in await self.store.queues() for state in unended)

    async def _collect(self, client: HttpClient) -> Evidence:
        log = json.loads((await client.request("GET", f"{self.provider}/log", limit=None)).body)
        rows, stock = read_shop(self.databases.shop)
        runs = ask(self.databases.journal_place, "select run_id from zerver_runs order by seq")
        run_ids = [run_id for (run_id,) in runs]
        stories = await read_stories(self.journal, run_ids, make_app(self.plan.asks, ":memory:", self.provider))
        return Evidence(
            dedupe=self.plan.dedupe, orders=self.orders, rows=rows, stock=stock, stories=stories,
            jobs=await read_jobs(self.store), **read_log(log),
        )  # fmt: skip

    # -- the provider --

    @asynccontextmanager
    async def _open_provider(self) -> AsyncIterator[HttpClient]:
        command = ["scripts.crashing.provider", str(self.plan.seed), "on" if self.plan.dedupe else "off"]
        group = await start(command, {}, self.folder / "provider.log")
        try:
            self.provider = await group.wait_said(b"listening on ") or ""
            self.environment = {
                "PROVIDER_URL": self.provider,
                "CHECKOUT_DB": self.databases.shop,
                "CRASH_RESOLVE": "ask" if self.plan.asks else "key",
            }
            async with AsyncExitStack() as stack:
                warmer = open_warmer(self.environment, self.folder / "warm.log")
                self.warmer = await stack.enter_async_context(warmer)
                yield await stack.enter_async_context(open_http_client(allow_private=True))
        finally:
            with trio.CancelScope(shield=True):
                await group.kill()


async def _renew(store: Journal | JobStore, owner: str) -> None:
    """It lives no more. Asked again while the database is away."""
    while True:
        try:
            await store.renew(owner, 0.0)
            return
        except JournalUnavailable:
            await trio.sleep(0.1)


if __name__ == "__main__":
    main()
