"""`zerver sagas`: what must be looked at is listed and shown without code, tried again with it, or resolved by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import Ended, environment, zerver

#: Sells, and refunds what it cannot ship; the bank refuses while there is a file "away".
SHOP = """
from pathlib import Path

import trio

from zerver import INJECTED, App, Done, Fail, Flow, IdempotencyKey, effect, step
from zerver.errors import Rejected
from zerver.journal import open_journal
from zerver.runtime import open_runtime


@effect(kind="bank.charge", access="write")
async def charge(cents: int, *, key: IdempotencyKey = INJECTED) -> str:
    return "ch_1"


@effect(kind="bank.refund", access="write")
async def refund(made: str, *, key: IdempotencyKey = INJECTED) -> None:
    if Path("away").exists():
        raise Rejected("the bank is closed")


@step
async def pay() -> None:
    await charge(1200).compensate(refund)


@step
def ship() -> Fail:
    return Fail.conflict("stock")


order = Flow("order", [pay, ship], durability="sync")
app = App("shop")
app.route("POST", "/orders", order)
other = App("other")


async def main():
    async with open_journal("sqlite:///shop.journal") as journal, open_runtime(app, journal=journal) as runtime:
        print((await runtime.run(order, tenant="acme")).run_id)


if __name__ == "__main__":
    trio.run(main)
"""

PLACE = ("--journal", "sqlite:///shop.journal")


def unresolved(folder: Path) -> str:
    """A run whose refund was refused; its id."""
    (folder / "shop.py").write_text(SHOP)
    (folder / "away").touch()
    ran = subprocess.run(
        [sys.executable, "shop.py"], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def sagas(folder: Path, *arguments: str) -> Ended:
    return zerver(folder, "sagas", *arguments, *PLACE)


def test_a_run_is_listed_shown_and_tried_again(tmp_path: Path) -> None:
    run = unresolved(tmp_path)
    listed = sagas(tmp_path)
    assert listed.status == 0, listed.err
    header, line = listed.out.splitlines()
    assert header.split() == ["RUN", "FLOW", "TENANT", "SINCE", "STATE", "WHAT"]
    assert line.startswith(run)
    assert " order v1 " in line
    assert " acme " in line
    assert " unresolved " in line
    assert line.endswith(
        f"bank.charge in pay happened, and was not undone, key {run}:pay:1: its undo failed: the bank is closed"
    )

    shown = sagas(tmp_path, "show", run)
    assert "UNRESOLVED bank.charge in pay happened" in shown.out
    assert f"again: zerver sagas retry {run} MODULE:APP" in shown.out

    in_vain = sagas(tmp_path, "retry", run, "shop:app")
    assert in_vain.status == 1, in_vain
    assert "is unresolved as before" in in_vain.err
    (tmp_path / "away").unlink()
    tried = sagas(tmp_path, "retry", run, "shop:app")
    assert (tried.status, tried.out) == (0, f"run {run} is failed, and nothing of it is unresolved\n"), tried
    assert sagas(tmp_path).err == "no run is unresolved or stuck\n"
    again = sagas(tmp_path, "retry", run, "shop:app")
    assert again.status == 1
    assert f"run {run} needs nobody: it is failed" in again.err


def test_what_somebody_has_looked_at_is_recorded(tmp_path: Path) -> None:
    run = unresolved(tmp_path)
    said = sagas(tmp_path, "resolve", run, "--reason", "refunded by hand, ticket 7", "--by", "ann")
    assert (said.status, said.out) == (0, f"run {run} is resolved, says ann: refunded by hand, ticket 7\n")
    assert "RESOLVED by ann: refunded by hand, ticket 7" in sagas(tmp_path, "show", run).out
    assert json.loads(sagas(tmp_path, "--json").out) == []
    again = sagas(tmp_path, "resolve", run, "--reason", "once more")
    assert again.status == 2
    assert "needs nobody: it is resolved" in again.err
    nothing = sagas(tmp_path, "resolve", run, "--reason", "  ")
    assert nothing.status == 2


def test_a_list_for_programs(tmp_path: Path) -> None:
    run = unresolved(tmp_path)
    (case,) = json.loads(sagas(tmp_path, "--json").out)
    assert (case["run"], case["flow"], case["tenant"], case["state"]) == (run, "order", "acme", "unresolved")
    assert case["since"].endswith("Z")
    assert case["writes"] == [
        {
            "step": "pay",
            "kind": "bank.charge",
            "state": "happened",
            "key": f"{run}:pay:1",
            "why": "its undo failed: the bank is closed",
        }
    ]
    told = json.loads(sagas(tmp_path, "show", run, "--json").out)
    assert told["case"] == {"status": "unresolved", "aside": None, "reason": None}


def test_code_that_does_not_know_the_run_says_so_and_leaves_it(tmp_path: Path) -> None:
    run = unresolved(tmp_path)
    (tmp_path / "strange.py").write_text("from zerver import App\n\napp = App()\n")
    (tmp_path / "away").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "strange.py").write_text("from zerver import App\n\napp = App()\n")
    tried = zerver(elsewhere, "sagas", "retry", run, "strange:app", "--journal", f"sqlite:///{tmp_path}/shop.journal")
    assert tried.status == 1
    assert "there is no flow 'order' here" in tried.err
    assert f"zerver sagas resolve {run}" in tried.err
    assert run in sagas(tmp_path).out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sagas"], "which journal? Give --journal"),
        (["sagas", "--journal", "sqlite:///no.journal"], "there is no journal no.journal"),
        (["sagas", "--journal", "mysql://x"], "give sqlite:///FILE or postgresql://"),
        (["upgrade-check", "shop:app"], "which journal?"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: list[str], says: str) -> None:
    said = zerver(tmp_path, *arguments, shop=SHOP)
    assert said.status == 2, said
    assert says in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "no.journal").exists()


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    unresolved(tmp_path)
    for arguments in (["show", "req_x"], ["resolve", "req_x", "--reason", "why"], ["retry", "req_x", "shop:app"]):
        said = sagas(tmp_path, *arguments)
        assert said.status == 2, said
        assert "no run req_x in" in said.err


def test_a_parked_run_is_cancelled_and_the_next_worker_undoes_it(tmp_path: Path) -> None:
    waits = (
        'def ship() -> Pause | None:\n    return Pause("go", 3600)\n\n\n@step\ndef end() -> Done:\n    return Done()\n'
    )
    source = SHOP.replace('def ship() -> Fail:\n    return Fail.conflict("stock")\n', waits)
    source = source.replace("[pay, ship]", "[pay, ship, end]").replace("Done, Fail,", "Done, Pause,")
    source = source.replace(
        "        print((await runtime.run(order",
        "        if Path('parked').exists():\n"
        "            while not (ended := await journal.list_runs('ended')):\n"
        "                await trio.sleep(0.01)\n"
        "            return print(ended[0].status)\n"
        "        print((await runtime.run(order",
    )
    (tmp_path / "shop.py").write_text(source)

    def run() -> str:
        command = [sys.executable, "shop.py"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run_id = run()
    assert "PARKED" in sagas(tmp_path, "show", run_id).out
    assert sagas(tmp_path, "cancel", run_id, "--reason", " ").status == 2
    said = sagas(tmp_path, "cancel", run_id, "--reason", "the customer has called")
    assert (said.status, said.out) == (0, f"run {run_id} is cancelled; the next worker that looks undoes it\n")
    assert "CANCELLED while it was parked" in sagas(tmp_path, "show", run_id).out
    again = sagas(tmp_path, "cancel", run_id, "--reason", "again")
    assert (again.status, again.out) == (0, f"run {run_id} was cancelled; the next worker that looks undoes it\n")
    (tmp_path / "parked").touch()
    assert run() == "cancelled"
    over = sagas(tmp_path, "cancel", run_id, "--reason", "again")
    assert (over.status, "does not wait: it is cancelled" in over.err) == (2, True)
    told = sagas(tmp_path, "show", run_id).out
    assert "the customer has called" in told
    assert "bank.refund" in told
    assert sagas(tmp_path, "cancel", "req_none", "--reason", "x").status == 2
