"""Proves what `zerver replay` prints of a stored run: as it was, with other values, by other code, and as a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import recorded
from tests.cli.commands import Ended, environment
from zerver.runtime import Result


def replay(folder: Path, *arguments: str) -> Ended:
    """The command, in the folder of the shop, with its trace file."""
    command = [sys.executable, "-c", "from zerver.cli.replay import replay; replay(prog_name='zerver replay')"]
    done = subprocess.run(
        [*command, *arguments, "--db", "traces.db"],
        cwd=folder,
        env={**environment(), "ZERVER_APP": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    for secret in recorded.SECRETS:
        assert secret not in done.stdout + done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


async def kept(folder: Path, cart: str = "cart_1") -> Result:
    """A run of the shop, stored."""
    result = await recorded.run(recorded.load(folder), cart)
    recorded.store(folder, result)
    return result


def other_code(folder: Path, old: str, new: str) -> str:
    """Another checkout of the shop."""
    assert recorded.SHOP.count(old) == 1
    (folder / "other").mkdir()
    (folder / "other" / "shop.py").write_text(recorded.SHOP.replace(old, new))
    return "other"


APP = ("--app", "shop:app")

# ---- as it was -------------------------------------------------------------------------------


async def test_it_tells_what_was_done_why_and_what_did_not_happen(tmp_path: Path) -> None:
    result = await kept(tmp_path, "cart_2")
    ended = replay(tmp_path, result.run_id, *APP)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith(f"POST /checkout  failed  [{result.run_id}]  replayed as recorded\n")
    assert "\n  payment.charge  (" in ended.out
    assert "\n    asked    1 payments.charge(100, '‹secret›')  gave 100  [undone]\n" in ended.out
    assert "\n  FAILED cart: sold out (conflict cart cart_2) in reserve; undone: payment.charge\n" in ended.out
    assert "\n  no committed effect in payment.charge (payments.charge): it happened, and was undone\n" in ended.out
    assert "no committed effect in receipt (mail.send), note (log.write): reserve ended the run before" in ended.out


async def test_without_an_app_the_record_is_told(tmp_path: Path) -> None:
    result = await kept(tmp_path, "cart_2")
    (tmp_path / "shop.py").unlink()
    ended = replay(tmp_path, result.run_id[:9])
    assert (ended.status, ended.err) == (0, "")
    assert "told from its record" in ended.out
    assert "FAILED cart: sold out" in ended.out


async def test_json_is_the_same_for_programs(tmp_path: Path) -> None:
    result = await kept(tmp_path)
    told = json.loads(replay(tmp_path, result.run_id, *APP, "--json").out)
    assert (told["run"], told["status"], told["faithful"], told["not_done"]) == (result.run_id, "done", True, [])
    assert [step["name"] for step in told["steps"]][:3] == ["verify", "cart.load", "token"]


@pytest.mark.parametrize("cart", ["cart_1", "cart_2", "cart_9"])
async def test_any_stored_run_replays_as_recorded(cart: str, tmp_path: Path) -> None:
    result = await kept(tmp_path, cart)
    told = json.loads(replay(tmp_path, result.run_id, *APP, "--json").out)
    assert (told["faithful"], told["status"], told["notes"]) == (True, result.status, [])


# ---- what if ---------------------------------------------------------------------------------


async def test_a_slot_gets_another_value(tmp_path: Path) -> None:
    result = await kept(tmp_path)
    ended = replay(tmp_path, result.run_id, *APP, "--set", "payment=1300")
    assert ended.status == 0
    assert "with another payment: done as well" in ended.out
    assert "\n    wrote    payment = 1300  (changed)\n" in ended.out
    assert "1200" in ended.out


async def test_what_if_it_had_not_failed(tmp_path: Path) -> None:
    result = await kept(tmp_path, "cart_2")
    cart = '{"id": "cart_2", "lines": [{"sku": "tea", "price": 100}]}'
    ended = replay(tmp_path, result.run_id, *APP, "--set", f"cart={cart}")
    assert "the story ends here: the recorded world has no answer to stock.take('tea') (reserve.1)\n" in ended.out
    ended = replay(tmp_path, result.run_id, *APP, "--set", f"cart={cart}", "--answer", "reserve.1=null")
    assert "the story ends here: the recorded world has no answer to clock.now() (stamp.1)\n" in ended.out
    assert "\n  reserve: stock.take('tea'): done\n" in ended.out


async def test_inputs_change_too_and_secrets_stay_secret(tmp_path: Path) -> None:
    result = await kept(tmp_path)
    ended = replay(tmp_path, result.run_id, *APP, "--set", "header.authorization=Bearer another-secret")
    assert ended.status == 0
    assert "another-secret" not in ended.out
    assert "note: what header.authorization held was a secret, and is not recorded: " in ended.out
    ended = replay(tmp_path, result.run_id, *APP, "--set", "card.token=tok_4242424242424242")
    assert "tok_4242" not in ended.out


async def test_until_shows_the_slots(tmp_path: Path) -> None:
    result = await kept(tmp_path)
    ended = replay(tmp_path, result.run_id, *APP, "--until", "payment.charge")
    assert ended.out.endswith("\nhappened\n  payment.charge: payments.charge(1200, '‹secret›'): done\n")
    assert "\nslots now\n" in ended.out
    assert "  payment = 1200\n" in ended.out
    assert "reserve" not in ended.out


# ---- other code ------------------------------------------------------------------------------


async def test_another_checkout_is_held_against_the_record(tmp_path: Path) -> None:
    result = await kept(tmp_path)
    assert replay(tmp_path, result.run_id, *APP, "--code", ".").status == 0
    code = other_code(tmp_path, "line.price for line", "line.price + 1 for line")
    ended = replay(tmp_path, result.run_id, *APP, "--code", code)
    assert (ended.status, ended.err) == (1, "")
    lines = ended.out.splitlines()
    (at,) = (index for index, line in enumerate(lines) if line.startswith("payment.charge departs (other/shop.py:"))
    assert lines[at].endswith("), payment.charge.1")
    assert lines[at + 1 : at + 4] == [
        "  - recorded  asks for payments.charge(1200, '‹secret›')",
        "  + replayed  asks for payments.charge(1202, '‹secret›')",
        "    argument 1: 1200, now 1202",
    ]
    assert not (tmp_path / "other" / "__pycache__").exists()


@pytest.mark.parametrize(
    ("old", "new", "step", "said"),
    [
        ('"gold"', '"iron"', None, ""),  # what an effect's handler does is not replayed
        ("await send(user.id)", "pass", "receipt", "goes on"),
        ("await log(cart.id)", "await log(cart.id); await log(cart.id)", "note", "asks for log.write('cart_1')"),
        ("(await clock.now()).timestamp() * 0", "1 // 0", "stamp", "raises ZeroDivisionError"),
        ('"paid": payment', '"paid": payment, "at": __import__("time").perf_counter()', "render", "is done with"),
    ],
)
async def test_each_departure_is_at_its_step(old: str, new: str, step: str | None, said: str, tmp_path: Path) -> None:
    result = await kept(tmp_path)
    told = json.loads(replay(tmp_path, result.run_id, *APP, "--json", "--code", other_code(tmp_path, old, new)).out)
    assert (told["divergence"] or {"step": None})["step"] == step
    if step is not None:
        assert told["divergence"]["replayed"].startswith(said)
    assert any("clock.now()" in note for note in told["notes"]) is (step == "render")


async def test_a_checkout_without_the_app_is_refused(tmp_path: Path) -> None:
    result = await kept(tmp_path)
    (tmp_path / "empty").mkdir()
    ended = replay(tmp_path, result.run_id, *APP, "--code", "empty")
    assert ended.status != 0
    assert "shop" in ended.err


# ---- as a test -------------------------------------------------------------------------------


def pytest_run(folder: Path) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_run.py"],
        cwd=folder,
        env=environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("cart", "pinned"), [("cart_1", "9 steps"), ("cart_2", "5 steps"), ("cart_9", "2 steps")])
async def test_a_run_becomes_a_test_that_is_green_with_this_code_and_red_with_other_code(
    cart: str, pinned: str, tmp_path: Path
) -> None:
    result = await kept(tmp_path, cart)
    ended = replay(tmp_path, result.run_id, *APP, "--pytest", "test_run.py")
    assert ended.err == f"test_run.py: {pinned} pinned\n"
    text = (tmp_path / "test_run.py").read_text()
    assert not [secret for secret in recorded.SECRETS if secret in text]
    green = pytest_run(tmp_path)
    assert green.status == 0, green.out
    changed = recorded.SHOP.replace("Cart(body.cart, lines)", "Cart(body.cart, lines[:0])").replace(
        'Fail.not_found("cart"', 'Fail.gone("cart"'
    )
    (tmp_path / "shop.py").write_text(changed)
    red = pytest_run(tmp_path)
    assert red.status == 1
    assert "test_cart_load" in red.out
    assert "1 failed" in red.out


# ---- what makes no sense ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*APP, "--set", "cart"), "--set cart: write --set NAME=JSON"),
        ((*APP, "--set", "crt=1"), "crt is no slot or input of flow 'checkout'; near are: cart"),
        ((*APP, "--set", "payment=much"), "payment expected `int`, got `str`; payment is declared as int"),
        ((*APP, "--until", "chrge"), "until there is no step 'chrge'; the steps are: verify, cart.load"),
        (("--set", "payment=1"), "this runs code, and nobody says which: give --app MODULE:APP, or set ZERVER_APP"),
        (("--app", "nothing:app"), "there is no module 'nothing' here or on PYTHONPATH"),
    ],
)
async def test_what_makes_no_sense_is_one_line(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = await kept(tmp_path)
    ended = replay(tmp_path, result.run_id, *arguments)
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"Error: {said}")


async def test_a_run_that_is_not_there_and_a_file_that_is_none(tmp_path: Path) -> None:
    await kept(tmp_path)
    ended = replay(tmp_path, "req_0000")
    assert (ended.status, ended.err) == (
        2, "Error: no run in traces.db begins with 'req_0000'; `zerver trace` lists them\n",
    )  # fmt: skip
    (tmp_path / "traces.db").write_text("no database")
    ended = replay(tmp_path, "req_0000")
    assert ended.status == 2
    assert ended.err.startswith("Error: ")


async def test_another_flow_is_said(tmp_path: Path) -> None:
    result = await kept(tmp_path)
    (tmp_path / "shop.py").write_text(recorded.SHOP.replace('Flow("checkout"', 'Flow("other"'))
    ended = replay(tmp_path, result.run_id, *APP)
    assert ended.status == 2
    assert "shop:app has no flow 'checkout'" in ended.err
    (tmp_path / "shop.py").write_text(
        recorded.SHOP.replace('Flow("checkout", [', 'Flow("checkout", version="2", stages=[')
    )
    ended = replay(tmp_path, result.run_id, *APP)
    assert ended.status == 0
    assert "note: recorded with version 1 of flow checkout, replayed with 2\n" in ended.out


async def test_a_program_that_runs_its_flows_itself_has_them_in_its_module(tmp_path: Path) -> None:
    result = await kept(tmp_path)
    (tmp_path / "shop.py").write_text(recorded.SHOP.replace('app.route("POST", "/checkout", checkout)\n', ""))
    assert replay(tmp_path, result.run_id, *APP).status == 0
