"""The checkout as its users meet it: real processes, real sockets, real money trouble."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(module: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def test_the_demo_plays_every_scene_as_told() -> None:
    done = run("examples.checkout.demo", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    scenes = done.stdout.split("━━ ")[1:]
    clean, retried, lost, soldout, late, nonsense, home, ledger = scenes
    assert "POST /v2/checkout → 201" in clean
    assert "with the same key" in retried
    assert "attempts 2" in retried
    assert "resolved by payments.find_charge: it happened" in lost
    undone = [line.split()[1] for line in soldout.splitlines() if "↩ undo" in line]
    assert undone == ["order.create", "payment.charge"], "in reverse order of commit"
    assert "DEADLINE passed" in late
    assert "resolved: it did not happen" in late
    assert nonsense.count('"at":"body.') == 2
    assert "attempt 2 started" in home
    assert '"offers":[]' in home
    charges = re.findall(r'"amount":(\d+),"key":"[^"]+","type":"charge"', ledger)
    refunds = re.findall(r'"amount":(\d+),"key":"[^"]+","type":"refund"', ledger)
    assert (charges, refunds) == (["4800", "4500", "5000", "19900"], ["19900"])
    assert "UNRESOLVED" not in done.stdout


def test_under_mixed_faults_the_money_agrees_to_the_cent() -> None:
    done = run("examples.checkout.stress", "--checkouts", "400", "--at-once", "32")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.rstrip().endswith("the money agrees")
