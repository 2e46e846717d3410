"""The checkout as its users meet it: real processes, real sockets, real money trouble."""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("moment", ["━━ A clean checkout", "hang_rate=1, for 0.2s", "lost_reply_rate=1"])
def test_ctrl_c_in_the_midst_of_the_demo_ends_it_and_leaves_nothing_behind(moment: str) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.checkout.demo", "--once"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    guard = threading.Timer(120, demo.kill)  # a demo that never gets there must not hold the suite
    guard.start()
    with demo:
        assert demo.stdout is not None
        came = any(moment in line for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        # The servers have inherited stderr: it ends when the last of them has.
        out, err = demo.communicate(timeout=60)
    guard.cancel()
    assert came, err
    assert (demo.returncode, out.splitlines()[-1]) == (0, "bye"), err
    assert not err.replace("draining; a second signal ends at once", "").strip(), err  # of two, at the same time


def test_under_mixed_faults_the_money_agrees_to_the_cent() -> None:
    done = run("examples.checkout.stress", "--checkouts", "400", "--at-once", "32")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.rstrip().endswith("the money agrees")
