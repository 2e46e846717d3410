"""scripts/crash: the checkout, served for real and killed again and again, and then the question: what is wrong?

    scripts/crash --kills 200 --journal postgres --workers 2

Clients order for as long as it lasts. The provider lives on, declines, fails, cuts its callers off and takes its time.
In the end it is healthy, the shop is started a last time, and everything that was begun has to come to its end; then
the invariants (`scripts.crashing.invariants`) are checked. Ends with status 1 if one is violated.

What of a worker that was killed is unfinished is taken over when its lease lapses, after ten seconds, or at once when
somebody knows that it has died, and says so: both happen here.
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import click
import trio

from scripts.crashing.evidence import Evidence, Order, read_log, read_shop, read_stories
from scripts.crashing.invariants import VOID, Violation, by_key, violations
from scripts.crashing.servers import Group, Warmer, kill, open_warmer, start
from scripts.crashing.shop import make_app
from zerver.errors import HttpError
from zerver.http import HttpClient, encode_json, open_http_client
from zerver.journal import open_journal
from zerver.runtime.journal import Journal

#: How often the provider does what to its caller.
FAULTS: Final = {"down": 0.04, "cut": 0.06, "slow": 0.1, "decline": 0.05}

CARTS: Final = ("cart_1", "cart_2", "cart_3", "cart_1", "cart_2", "cart_3", "cart_soldout")

#: Seconds after which everything that was begun has to have ended.
ENDS_WITHIN: Final = 60.0

#: A worker is killed so soon (seconds) after it has begun to serve.
SOON: Final = 0.6


@attrs.frozen
class Plan:
    """kills: how many. journal: "sqlite" or "postgres". asks: as `scripts.crashing.shop.make_app`. at_once: clients.

    told: how many of those killed are said to be dead; of the others it is found out. early: how many are killed while
    they start. alone: workers that are killed alone, at most, before all of them are. gently: how many groups
    are told to drain, and killed in the midst of it.
    """

    kills: int = 100
    journal: str = "sqlite"
    workers: int = 1
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
    orders: int
    acked: int
    refused: int
    unheard: int
    runs: int
    recovered: int
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
        url = (
            f"sqlite:////{folder.absolute() / 'shop.journal'}".replace("////", "///", 1)
            if plan.journal == "sqlite"
            else ""
        )
        if not url:
            from tests.sql.postgresql import running_server

            url = _url_of(stack.enter_context(running_server()).make_database())
        evidence, recovered = trio.run(Campaign(plan, folder, url).run)
    wrong = violations(evidence)
    calls = {key: len(seen) for key, seen in by_key(evidence).items() if not key.endswith(VOID)}
    statuses = Counter(order.status for order in evidence.orders)
    return (
        Figures(
            kills=plan.kills,
            orders=len(evidence.orders),
            acked=statuses[201],
            refused=len(evidence.orders) - statuses[201] - statuses[0],
            unheard=statuses[0],
            runs=len(evidence.stories),
            recovered=recovered,
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


def _url_of(conninfo: str) -> str:
    said = dict(part.split("=", 1) for part in conninfo.split())
    return f"postgresql://{said['user']}@/{said['dbname']}?host={said['host']}&port={said['port']}"


class Campaign:
    """A shop, its clients, its provider, and whoever kills it. url: of the journal."""

    def __init__(self, plan: Plan, folder: Path, url: str) -> None:
        self.plan = plan
        self.folder = folder
        self.url = url
        self.rng = random.Random(plan.seed)
        self.orders: list[Order] = []
        self.dead: set[int] = set()
        self.shop_db = folder / "shop.db"
        self.shop = ""  # where it is served; "" while it is not
        self.provider = ""
        self.environment: dict[str, str] = {}
        self.warmer: Warmer | None = None

    async def run(self) -> tuple[Evidence, int]:
        """The evidence, and how many runs were taken over."""
        async with self._open_provider() as client, open_journal(self.url) as journal:
            await client.request("POST", f"{self.provider}/faults", body=encode_json(FAULTS))
            async with trio.open_nursery() as nursery:
                for _ in range(self.plan.at_once):
                    nursery.start_soon(self._order, client, random.Random(self.rng.random()))
                await self._kill(journal)
                await client.request("POST", f"{self.provider}/faults", body=encode_json({}))
                group = await self._start()
                self.shop = await group.wait_ready() or ""
                await trio.sleep(SOON)
                nursery.cancel_scope.cancel()
            await self._tell(journal, self.dead)
            await self._wait_ended(journal)
            await group.drain()
            return await self._collect(client, journal)

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
                reply = await client.request("POST", url, headers=headers, body=body)
            except HttpError:
                await trio.sleep(rng.uniform(0.02, 0.1))
                continue
            said = reply.json(dict[str, Any]) if reply.status == 201 else {}
            self.orders[place] = Order(reference, reply.status, said.get("order", ""), said.get("payment", ""))
            if reply.status >= 500:
                await trio.sleep(0.05)

    # -- death --

    async def _kill(self, journal: Journal) -> None:
        """Start, and kill, as often as the plan says."""
        plan, rng, kills = self.plan, self.rng, 0
        while kills < plan.kills:
            group = await self._start()
            if rng.random() < plan.early:
                await trio.sleep(rng.uniform(0.0, 0.1 if self.warmer else 1.0))
                kills += 1
            else:
                self.shop = await group.wait_ready() or ""
                if not self.shop:
                    raise SystemExit(f"the shop does not start: {(self.folder / 'shop.log').read_text()[-2000:]}")
                ones = rng.randint(0, plan.alone) if plan.workers > 1 else 0  # at first one worker only, some times
                for _ in range(min(ones, plan.kills - kills - 1)):
                    await trio.sleep(rng.uniform(0.0, SOON))
                    pid = rng.choice(group.workers())
                    kill(pid)
                    kills += 1
                    await self._bury(journal, {pid})
                await trio.sleep(rng.uniform(0.0, SOON))
                kills += 1
            if rng.random() < plan.gently:
                group.terminate()
                await trio.sleep(rng.uniform(0.0, SOON))
            killed = await group.kill()
            self.shop = ""
            await self._bury(journal, killed)

    async def _bury(self, journal: Journal, pids: set[int]) -> None:
        """Perhaps somebody knows that they are dead, and says so."""
        self.dead |= pids
        if self.rng.random() < self.plan.told:
            await self._tell(journal, pids)

    async def _tell(self, journal: Journal, pids: set[int]) -> None:
        for owner in self._ask("select name from zerver_owners"):
            if int(owner.partition(".")[0]) in pids:
                await journal.renew(owner, 0.0)

    async def _start(self) -> Group:
        command = ["zerver.cli", "serve", "scripts.crashing.shop:app", "--port", "0"]
        command += [
            "--drain",
            "0.1",
            "--page",
            "off",
            "--trace-db",
            "",
            "--journal",
            self.url,
            "--workers",
            str(self.plan.workers),
        ]
        log = self.folder / "shop.log"
        if self.warmer is not None:
            return await self.warmer.start(command, log)
        return await start(command, self.environment, log)

    # -- the end --

    async def _wait_ended(self, journal: Journal) -> None:
        """Until nothing is unfinished; what still is then is told by the invariants."""
        with trio.move_on_after(ENDS_WITHIN):
            while (await journal.tallies()).get("", 0):  # noqa: ASYNC110 - it is other processes that end them
                await trio.sleep(0.05)

    async def _collect(self, client: HttpClient, journal: Journal) -> tuple[Evidence, int]:
        log = json.loads((await client.request("GET", f"{self.provider}/log", limit=None)).body)
        rows, stock = read_shop(self.shop_db)
        run_ids = self._ask("select run_id from zerver_runs order by seq")
        stories = await read_stories(journal, run_ids, make_app(self.plan.asks, ":memory:", self.provider))
        evidence = Evidence(
            dedupe=self.plan.dedupe, orders=self.orders, rows=rows, stock=stock, stories=stories, **read_log(log)
        )
        return evidence, sum(story.fence > 1 for story in stories)

    def _ask(self, sql: str) -> list[str]:
        """The first column, asked for beside the journal."""
        if self.plan.journal == "sqlite":
            with closing(sqlite3.connect(self.folder / "shop.journal")) as database:
                return [value for (value, *_) in database.execute(sql)]
        import psycopg

        with psycopg.connect(self.url) as connection:
            return [str(value) for (value, *_) in connection.execute(sql.encode()).fetchall()]

    # -- the provider --

    @asynccontextmanager
    async def _open_provider(self) -> AsyncIterator[HttpClient]:
        command = ["scripts.crashing.provider", str(self.plan.seed), "on" if self.plan.dedupe else "off"]
        group = await start(command, {}, self.folder / "provider.log")
        try:
            self.provider = await group.wait_said(b"listening on ") or ""
            self.environment = {
                "PROVIDER_URL": self.provider,
                "CHECKOUT_DB": str(self.shop_db),
                "CRASH_RESOLVE": "ask" if self.plan.asks else "key",
            }
            async with AsyncExitStack() as stack:
                if self.plan.workers == 1:
                    warmer = open_warmer(self.environment, self.folder / "warm.log")
                    self.warmer = await stack.enter_async_context(warmer)
                yield await stack.enter_async_context(open_http_client(allow_private=True))
        finally:
            with trio.CancelScope(shield=True):
                await group.kill()


if __name__ == "__main__":
    main()
