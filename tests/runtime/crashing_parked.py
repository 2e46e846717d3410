"""A shop that dies around a pause: run as `python -m tests.runtime.crashing_parked SITE FOLDER`, as `crashing`, whose
provider and whose checks these are.

Each order is charged and parked; then it is signalled, and made; one is cancelled instead, and refunded. Whenever a
process dies, each comes to that once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import trio

from tests.runtime import crashing as shop
from zerver import App, Flow, Pause, Slot, step
from zerver.journal import open_sqlite_journal
from zerver.runtime import open_runtime
from zerver.runtime.journal import UNRESOLVED

CALLED_OFF = 3

Approved = Annotated[str, Slot("approved")]


def approval(number: int) -> str:
    return f"approval of {number}"


@step
def wait(number: shop.Number) -> Approved | Pause:
    return Pause(approval(number), expires=86_400)


@step
async def make(number: shop.Number, approved: Approved) -> None:
    await shop.order(number).compensate(shop.cancel, by_key=lambda _: shop.cancel(number))


FLOW = Flow("approval", [shop.pay, wait, make, shop.take_from_stock], takes=[shop.Number], durability="sync")


async def live(name: str, before: str) -> None:
    """One life: ask for what was never asked for, approve of all but one, and wait until all is over."""
    with trio.fail_after(60):
        async with open_sqlite_journal(shop.FOLDER / "journal.db") as journal:
            if before:
                await journal.renew(before, 0.0)
            async with open_runtime(App(), journal=journal, owner=name, lease=10.0, flows=[FLOW]) as runtime:
                with shop.provider() as database:
                    for number in shop.ORDERS:
                        if database.execute("insert or ignore into asked (number) values (?)", (number,)).rowcount:
                            await runtime.run(FLOW, given={"number": number})
                while unfinished := await journal.list_runs("unfinished"):
                    for run in unfinished:
                        stored = await journal.read(run.head.run_id)
                        for signal in () if stored is None or stored.cut is not None else stored.signals:
                            if signal.signal == approval(CALLED_OFF):
                                await runtime.cancel(run.head.run_id, "it was called off")
                            elif signal.value is None:
                                await runtime.signal(run.head.run_id, signal.signal, "yes")
                    await trio.sleep(0.002)
                if (await journal.tallies()).get(UNRESOLVED):
                    raise AssertionError("a run is unresolved, though the provider can be asked")


def main(site: str) -> None:
    number, shop.live = 0, live
    while True:
        number += 1
        shop.begin_again()
        died = shop.life("second", "", f"{site}:{number}")
        shop.life("third", "second", "")
        for wrong in shop.check(1):
            raise SystemExit(f"dead at {site}:{number}: {wrong}")
        with shop.provider() as database:
            orders = {number for (number,) in database.execute("select number from orders")}
            asked = {number for (number,) in database.execute("select number from charges")}
        if orders != asked - {shop.SOLD_OUT, CALLED_OFF}:
            raise SystemExit(f"dead at {site}:{number}: {sorted(asked)} were paid, and {sorted(orders)} were made")
        if not died:
            break
    print(f"{number - 1} deaths")


if __name__ == "__main__":
    main(sys.argv[1])
