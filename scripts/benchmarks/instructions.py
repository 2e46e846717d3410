"""Instructions of a request, against those that were accepted: a gate for CI, since seconds are noise there.

A server and its client are one process (peers/scripted.py), and cachegrind counts what it does, hash seed and order of
tasks fixed: what 400 more requests of a kind take, divided by them. The client is in it, and the kernel is not. Ends
with 1 when a figure is above the accepted one of instructions.json by more than 3 %, in each of the rounds: whatever
disturbs a count adds to it, so the least counts, and the first round in which all are well is the last. One that is as
far below says that there is something to accept, and `--accept` writes. Figures are those of one machine's kind, Python
and libraries; others without accepted figures fail nobody. Needs `valgrind`. Takes half a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from _report import figure, print_versions, ranged, write_json
from _server import PEERS

sys.path.insert(0, str(PEERS))
from scripted import SCRIPTS

ACCEPTED = Path(__file__).parent / "instructions.json"
TOLERANCE = 0.03
WARM, MORE = 100, 400  # requests of each kind, and how many more of one of them
SLOWER = 200  # times, under cachegrind: what the clock does must not happen more often for it
LIBRARIES = ("trio", "attrs", "msgspec", "httptools")
CACHEGRIND = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="at most; the least one counts")
    parser.add_argument("--accept", action="store_true", help="what is counted is right from now on")
    parser.add_argument("--uncounted", action="store_true", help="play the scripts without valgrind: do they work?")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.uncounted:
        subprocess.run(_command([2] * len(SCRIPTS), 1), cwd=PEERS, check=True)
        return
    if shutil.which("valgrind") is None:
        raise SystemExit("instructions are counted by valgrind (apt-get install valgrind)")
    print_versions(LIBRARIES, "Instructions of a request.")
    known = json.loads(ACCEPTED.read_text()) if ACCEPTED.exists() else {}
    accepted = {} if options.accept else known.get(here(), {})
    counted: dict[str, list[float]] = {name: [] for name in SCRIPTS}
    for _ in range(options.rounds):
        for name, value in count().items():
            counted[name].append(value)
        if accepted and not any(change > TOLERANCE for change in changes(counted, accepted).values()):
            break
    write_json(options.json, [figure(name, "instructions/request", {"zerver": v}) for name, v in counted.items()])
    worse = compare(counted, accepted)
    if options.accept:
        least = {name: round(min(values)) for name, values in counted.items()}
        ACCEPTED.write_text(json.dumps({**known, here(): least}, indent=1, sort_keys=True) + "\n")
    elif worse:
        raise SystemExit(1)


def here() -> str:
    """What a count depends on beside our own code."""
    versions = " ".join(f"{library} {version(library)}" for library in LIBRARIES)
    return f"{platform.machine()}, Python {platform.python_version()}, {versions}"


def count() -> dict[str, float]:
    """By script. Two processes at once: what runs beside it changes no count."""
    plans = [[WARM + MORE * (one == other) for other in SCRIPTS] for one in (None, *SCRIPTS)]
    with ThreadPoolExecutor(2) as pool:
        base, *each = pool.map(_instructions, plans)
    return {name: (total - base) / MORE for name, total in zip(SCRIPTS, each, strict=True)}


def changes(counted: dict[str, list[float]], accepted: dict[str, int]) -> dict[str, float]:
    """How far the least counted figure of each script is above the accepted one."""
    return {name: min(values) / accepted[name] - 1 for name, values in counted.items() if name in accepted}


def compare(counted: dict[str, list[float]], accepted: dict[str, int]) -> bool:
    """Print every figure beside the accepted one; True if one is above it by too much."""
    changed = changes(counted, accepted)
    for name, values in counted.items():
        said = "none accepted for this Python and these libraries"
        if name in changed:
            change = changed[name]
            verdict = "TOO MANY" if change > TOLERANCE else "fewer: --accept" if change < -TOLERANCE else "as accepted"
            said = f"{change:+.1%} to {accepted[name]:,}: {verdict}"
        print(f"{name:28} {ranged(values, 0)}   {said}", flush=True)
    return any(change > TOLERANCE for change in changed.values())


def _command(counts: list[int], slower: int) -> list[str]:
    return [sys.executable, "scripted.py", *map(str, counts), str(slower)]


def _instructions(counts: list[int]) -> int:
    """All that the process does, from its start to its end. It leaves no compiled files for the next one to find."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*CACHEGRIND, *_command(counts, SLOWER)],
        cwd=PEERS,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"the scripts ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


if __name__ == "__main__":
    main()
