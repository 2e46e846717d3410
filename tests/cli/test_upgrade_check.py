"""`zerver upgrade-check`: before a deploy, new code says what it would do with the runs that are stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.cli.commands import Ended, environment, zerver

#: Sells for 12 to whoever asks; the process dies in the second sale, behind the charge.
SHOP = """
import os
from typing import Annotated

import attrs
import trio

from zerver import INJECTED, App, Done, Flow, IdempotencyKey, Slot, effect, step
from zerver.journal import open_journal
from zerver.runtime import open_runtime


@attrs.frozen
class Receipt:
    id: str


Paid = Annotated[Receipt, Slot("paid")]


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, key: IdempotencyKey = INJECTED) -> Receipt:
    return Receipt("ch_1")


@effect(kind="bank.refund", access="write")
async def refund(made: Receipt, *, key: IdempotencyKey = INJECTED) -> None: ...


@effect(kind="post.ship", access="write")
async def ship(receipt: Receipt, *, key: IdempotencyKey = INJECTED) -> str:
    if os.path.exists("dies"):
        os._exit(1)
    return "shipped"


@step
async def pay() -> Paid:
    return await charge(1200).compensate(refund)


@step
async def send(paid: Paid) -> Done:
    return Done(await ship(paid))


order = Flow("order", [pay, send], durability="sync")
app = App("shop")
app.route("POST", "/orders", order)


async def main():
    async with open_journal("sqlite:///shop.journal") as journal, open_runtime(app, journal=journal) as runtime:
        print((await runtime.run(order)).run_id, flush=True)
        open("dies", "w").close()
        await runtime.run(order)

"""

#: As a module: what it keeps are values of `shop`.
RUN = "import shop, trio; trio.run(shop.main)"

V2 = SHOP.replace("charge(1200)", "charge(1300)").replace(
    'order = Flow("order", [pay, send],', ('order = Flow("order", [pay, send], version="2",')
)


def sold(folder: Path) -> str:
    """A journal with a run that was done, and one whose process died; the id of the first."""
    (folder / "shop.py").write_text(SHOP)
    command = [sys.executable, "-c", RUN]
    ran = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    return ran.stdout.strip()


def check(folder: Path, source: str, *options: str) -> Ended:
    """What is said of this code, in the place of that which has run."""
    return zerver(folder, "upgrade-check", "shop:app", "--journal", "sqlite:///shop.journal", *options, shop=source)


def test_code_that_agrees_goes_on(tmp_path: Path) -> None:
    sold(tmp_path)
    same = check(tmp_path, SHOP)
    assert (same.status, same.out) == (0, "2 runs: 2 would go on\n"), same
    newer = check(tmp_path, SHOP.replace("[pay, send],", '[pay, send], version="2",'))
    assert newer.status == 0
    assert "by another version of the flow, which agrees with it" in newer.out


def test_code_that_goes_another_way_is_named(tmp_path: Path) -> None:
    run = sold(tmp_path)
    said = check(tmp_path, V2)
    assert said.status == 1, said
    assert f"stuck        {run}  order v1  done" in said.out
    assert "order v1  unfinished" in said.out
    assert "- recorded  asks for bank.charge(1200)" in said.out
    assert "+ replayed  asks for bank.charge(1300)" in said.out
    assert "2 runs: 2 would be stuck" in said.out
    assert "App(older=[…])" in said.err


def test_older_versions_and_policies_count(tmp_path: Path) -> None:
    sold(tmp_path)
    beside = V2.replace(
        'app = App("shop")', 'app = App("shop", older=[Flow("order", [pay_1, send], durability="sync")])'
    )
    kept = beside.replace("@step\nasync def send", PAY_1)
    said = check(tmp_path, kept)
    assert (said.status, said.out) == (0, "2 runs: 2 would go on\n"), said
    undoing = SHOP.replace("[pay, send],", '[pay, send], version="2", on_upgrade="compensate",')
    (one, *_) = json.loads(check(tmp_path, undoing, "--recent", "0", "--json").out)
    assert (one["fate"], one["why"]) == ("compensated", "its version of the flow is not known any more")
    assert (one["state"], one["source"]) == ("unfinished", "journal")


PAY_1 = """@step(name="pay")
async def pay_1() -> Paid:
    return await charge(1200).compensate(refund)


@step
async def send"""


def test_a_value_whose_class_is_gone_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    sold(tmp_path)
    said = check(tmp_path, SHOP.replace("Receipt", "Voucher"))
    assert said.status == 1, said
    assert "a step would read a value of the class shop:Receipt, which the code that is here does not know" in said.out


def test_runs_of_a_trace_file_are_tried_too(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(TRACED)
    subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, env=environment(), check=True)
    same = zerver(tmp_path, "upgrade-check", "shop:app", "--db", "traces.db")
    assert (same.status, same.out) == (0, "1 run: 1 would go on\n"), same
    other = zerver(tmp_path, "upgrade-check", "shop:app", "--db", "traces.db", shop=TRACED.replace("1200", "1300"))
    assert other.status == 1, other
    assert "+ replayed  asks for bank.charge(1300)" in other.out


#: Keeps its one run in a trace file.
TRACED = (
    SHOP[: SHOP.index("async def main")]
    + """
async def main():
    from zerver.trace.keeping.store import make_store
    from zerver.trace.recording import encode_run
    from zerver.trace.summary import summarize

    async with open_journal("sqlite:///shop.journal") as journal, open_runtime(app, journal=journal) as runtime:
        result = await runtime.run(order)
    with make_store("traces.db") as store:
        store.write([(summarize(result, began_unix_ns=1), encode_run(result, began_unix_ns=1))])

"""
)
