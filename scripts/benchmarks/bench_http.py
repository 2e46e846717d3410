"""HTTP beside its peers: each server alone on one core, load from another, requests per second and CPU per request.

Needs `wrk` (a Debian package) and two cores. CPU time is the server's own, as the kernel counts it; it says what a
request costs even where the load generator is what ran out first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs
from _server import cpu_seconds, serving

CASES = {"plaintext": "/plain", "three steps": "/steps/7"}


@attrs.frozen
class Peer:
    """A server: its name, the command without the port, the option for the port, and what must be installed."""

    name: str
    command: tuple[str, ...]
    packages: tuple[str, ...]
    port: str = "--port"


def python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


def uvicorn(app: str) -> tuple[str, ...]:
    return python("-m", "uvicorn", app, "--loop", "uvloop", "--http", "httptools", "--no-access-log")


PEERS = [
    Peer("zerver", python("-m", "zerver.cli", "serve", "zerver_app:app"), ("zerver",)),
    Peer("uvicorn, raw ASGI", uvicorn("asgi_raw:app"), ("uvicorn", "uvloop", "httptools")),
    Peer("granian, raw ASGI", python("-m", "granian", "--interface", "asgi", "asgi_raw:app"), ("granian",)),
    Peer("starlette on uvicorn", uvicorn("starlette_app:app"), ("starlette", "uvicorn", "uvloop")),
    Peer("fastapi on uvicorn", uvicorn("fastapi_app:app"), ("fastapi", "uvicorn", "uvloop")),
    Peer(
        "quart-trio on hypercorn",
        python("-m", "hypercorn", "-k", "trio", "--log-level", "warning", "quart_trio_app:app"),
        ("quart-trio", "hypercorn"),
        "--bind",
    ),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load, per server, case and round")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--only", default="", metavar="TEXT", help="only peers whose name has this text (and zerver)")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("scripts/bench http needs wrk: apt-get install wrk")
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("scripts/bench http needs two cores: one for the server, one for the load")
    peers = [peer for peer in PEERS if _installed(peer) and (options.only in peer.name or peer.name == "zerver")]
    _print_versions(peers)
    figures = {case: {peer.name: [] for peer in peers} for case in CASES}
    cpu = {case: {peer.name: [] for peer in peers} for case in CASES}
    for number in range(options.rounds):
        for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
            for case, (rate, cost) in _measure(peer, options.seconds, options.connections).items():
                figures[case][peer.name].append(rate)
                cpu[case][peer.name].append(cost)
    report = [_print_case(case, figures[case], cpu[case]) for case in CASES]
    if options.json:
        Path(options.json).write_text(json.dumps([entry for entries in report for entry in entries], indent=1))


def _installed(peer: Peer) -> bool:
    for package in peer.packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"left out: {peer.name} ({package} is not installed)")
            return False
    return True


def _print_versions(peers: Sequence[Peer]) -> None:
    packages = sorted({package for peer in peers for package in peer.packages} | {"trio", "h11"})
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    print(f"Python {platform.python_version()}, {platform.machine()}; {versions}\n", flush=True)


def _measure(peer: Peer, seconds: float, connections: int) -> dict[str, tuple[float, float]]:
    with serving(peer.command, peer.port) as (port, group):
        results = {}
        for case, path in CASES.items():
            _load(port, path, 0.5, connections)
            before = cpu_seconds(group)
            done, took = _load(port, path, seconds, connections)
            results[case] = (done / took, (cpu_seconds(group) - before) / done * 1e6)
        return results


def _load(port: int, path: str, seconds: float, connections: int) -> tuple[int, float]:
    """Requests answered with 200, and the seconds it took."""
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    command.append(f"http://127.0.0.1:{port}{path}")
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(f"errors under load on {path}:\n{out}")
    found = re.search(r"(\d+) requests in ([\d.]+)(m?)s", out)
    if found is None:
        raise SystemExit(f"wrk said:\n{out}")
    return int(found[1]), float(found[2]) / (1000 if found[3] else 1)


def _print_case(case: str, rates: dict[str, list[float]], cpu: dict[str, list[float]]) -> list[dict[str, object]]:
    print(f"{case}, keep-alive: medians (min-max) of {len(next(iter(rates.values())))} rounds")
    base = statistics.median(rates["zerver"])
    base_cpu = statistics.median(cpu["zerver"])
    for name, values in rates.items():
        rate, cost = statistics.median(values), statistics.median(cpu[name])
        ratio = "" if name == "zerver" else f"   zerver {base / rate:.2f}x its rate, {base_cpu / cost:.2f}x its CPU"
        print(f"  {name:26} {rate:8.0f}/s ({min(values):.0f}-{max(values):.0f})  {cost:6.1f} µs CPU{ratio}")
    print(flush=True)
    return [
        {
            "case": f"{case}: {label}",
            "unit": unit,
            "systems": {n: {"median": statistics.median(v), "min": min(v), "max": max(v)} for n, v in table.items()},
        }
        for label, unit, table in (("rate", "requests/s", rates), ("cpu", "µs/request", cpu))
    ]


if __name__ == "__main__":
    main()
