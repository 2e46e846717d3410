"""The checkout as its users meet it: real processes, real sockets, real money trouble."""

import re
import shlex
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


def answer_of(command: str) -> str:
    """What a command that was printed for the reader prints."""
    words = [sys.executable, "-m", "zerver.cli", *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_demo_plays_every_scene_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it leaves the shop's trace file
    done = run("examples.checkout.demo", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    scenes = done.stdout.split("━━ ")[1:]
    clean, retried, lost, soldout, late, nonsense, home, ledger, afterwards = scenes
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
    assert "FAILED cart: sold out" in afterwards
    *_, trace, replay = [line.partition("$ ")[2] for line in afterwards.splitlines() if "$ " in line]
    assert "undone: order.create, payment.charge" in answer_of(trace)
    assert "payment.charge: payments.charge(19900, 'user_1'): done, and undone" in answer_of(replay)


@pytest.mark.parametrize("moment", ["━━ A clean checkout", "hang_rate=1, for 0.2s", "lost_reply_rate=1"])
def test_ctrl_c_in_the_midst_of_the_demo_ends_it_and_leaves_nothing_behind(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
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
    assert not list(tmp_path.iterdir())
    assert not err.replace("draining; a second signal ends at once", "").strip(), err  # of two, at the same time


def test_under_mixed_faults_the_money_agrees_to_the_cent() -> None:
    done = run("examples.checkout.stress", "--checkouts", "400", "--at-once", "32")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.rstrip().endswith("the money agrees")
