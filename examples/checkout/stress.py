"""Many checkouts against a provider that misbehaves, and then the question: does the money agree, to the cent?

    python -m examples.checkout.stress --checkouts 10000

What must hold, whatever went wrong: nobody is charged twice; an order that stands has its charge, with its amount; a
charge without an order was refunded; the stock is what the orders that stand have left; and no run is unresolved.
"""

import json
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import trio

from examples.checkout.processes import Process, open_served
from zerver.errors import HttpError
from zerver.http import ClientLimits, HttpClient, encode_json, open_http_client

FAULTS = {"latency_ms": 5, "error_rate": 0.05, "hang_rate": 0.03, "lost_reply_rate": 0.05}
STOCK = 1_000_000_000
CARTS = ("cart_1", "cart_2", "cart_3", "cart_soldout")


@click.command()
@click.option("--checkouts", default=10_000, show_default=True, help="How many to make.")
@click.option("--at-once", default=64, show_default=True, help="How many at a time.")
@click.option("--seed", default=1, show_default=True, help="For carts, users, and clients that hang up.")
def main(checkouts: int, at_once: int, seed: int) -> None:
    """Make many checkouts under faults; status 1 when the money does not agree."""
    with tempfile.TemporaryDirectory(prefix="zerver-stress-") as folder:
        shop_db, provider_db = Path(folder, "checkout.db"), Path(folder, "provider.db")
        statuses, unresolved = trio.run(_traffic, shop_db, provider_db, checkouts, at_once, random.Random(seed))
        print("answers  " + "  ".join(f"{status}: {count}" for status, count in sorted(statuses.items())))
        problems = audit(shop_db, provider_db)
    if unresolved:
        problems.append(f"{unresolved} runs are unresolved")
    for problem in problems:
        print(f"WRONG  {problem}")
    print("the money agrees" if not problems else f"{len(problems)} problems")
    raise SystemExit(bool(problems))


async def _traffic(
    shop_db: Path, provider_db: Path, checkouts: int, at_once: int, rng: random.Random
) -> tuple[Mapping[str, int], int]:
    """Make the checkouts; how often each answer came, and how many runs ended unresolved."""
    statuses: Counter[str] = Counter()
    unresolved = 0
    environment = {"PROVIDER_DB": str(provider_db), "CHECKOUT_DB": str(shop_db)}
    limits = ClientLimits(per_origin=at_once + 4)
    async with (
        open_served("examples.checkout.provider:app", environment) as provider,
        open_http_client(allow_private=True, limits=limits) as client,
    ):
        shop_environment = environment | {"PROVIDER_URL": provider.url}
        async with open_served("examples.checkout.app:app", shop_environment, "--timeline") as shop:
            await _post(client, f"{provider.url}/faults", FAULTS, "")
            async with trio.open_nursery() as reading:
                counted = _Unresolved(shop)
                reading.start_soon(counted.read)
                async with trio.open_nursery() as nursery:
                    turns = iter(range(checkouts))
                    for _ in range(at_once):
                        nursery.start_soon(_customer, client, shop.url, turns, rng, statuses)
                reading.cancel_scope.cancel()
            await _post(client, f"{provider.url}/faults", {}, "")
        # The shop has drained: even runs whose client had hung up have ended.
        unresolved = counted.count
    return statuses, unresolved


async def _customer(client: HttpClient, url: str, turns: Any, rng: random.Random, statuses: Counter[str]) -> None:
    for _ in turns:
        user, cart = rng.randint(1, 3), rng.choice(CARTS)
        patience = rng.uniform(0.0, 0.5) if rng.random() < 0.05 else 30.0
        try:
            with trio.fail_after(patience):
                status = await _post(client, f"{url}/v2/checkout", {"cart_id": cart}, f"token-user_{user}")
            statuses[str(status)] += 1
        except trio.TooSlowError:
            statuses["hung up"] += 1
        except HttpError as error:
            statuses[type(error).__name__] += 1


async def _post(client: HttpClient, url: str, value: object, token: str) -> int:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    return (await client.request("POST", url, headers=headers, body=encode_json(value))).status


class _Unresolved:
    """Counts the runs that the shop reports as unresolved."""

    def __init__(self, shop: Process) -> None:
        self.count = 0
        self._shop = shop

    async def read(self) -> None:
        while True:
            text = await self._shop.next_timeline()
            if "\nUNRESOLVED" in text:
                self.count += 1
                print(text)


# ---- the audit ------------------------------------------------------------------------------


def audit(shop_db: Path, provider_db: Path) -> list[str]:
    """What is wrong with the money, in words."""
    with sqlite3.connect(shop_db) as shop, sqlite3.connect(provider_db) as provider:
        placed = shop.execute("select payment, amount, status from orders")
        orders = {key: (amount, status) for key, amount, status in placed}
        charges = dict(provider.execute("select key, amount from entries where type = 'charge'"))
        refunds = dict(provider.execute("select key, amount from entries where type = 'refund'"))
        calls = provider.execute("select count(*), count(distinct type || key) from entries").fetchone()
        sold: Counter[str] = Counter()
        for sku, quantity in shop.execute(
            "select sku, quantity from orders join cart_lines using (cart_id) where status = 'placed'"
        ):
            sold[sku] += quantity
        stock = dict(shop.execute("select sku, quantity from stock where sku != 'samovar'"))
    shop.close()
    provider.close()
    print(json.dumps({"orders": len(orders), "placed": sum(s == "placed" for _, s in orders.values()),
                      "charges": len(charges), "refunds": len(refunds)}))  # fmt: skip
    problems = []
    if calls[0] != calls[1]:
        problems.append("a key stands in the ledger twice")
    for key, (amount, status) in orders.items():
        paid = charges.get(key, 0) - refunds.get(key, 0)
        if paid != (amount if status == "placed" else 0):
            problems.append(f"order with payment {key} is {status} over {amount}, but {paid} was paid")
    for key, amount in charges.items():
        if key not in orders and refunds.get(key) != amount:
            problems.append(f"charge {key} over {amount} has no order, and {refunds.get(key, 0)} was refunded")
    for sku, left in stock.items():
        if left != STOCK - sold[sku]:
            problems.append(f"{sku}: {STOCK - left} left the stock, {sold[sku]} were sold")
    return problems


if __name__ == "__main__":
    main()
