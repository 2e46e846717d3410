"""Ten thousand connections that are kept, most of them idle: what one of them takes in the server's memory, and how
long the busy ones wait, beside a hundred connections.

Fifty connections are asked in turn, at a steady rate, and each answer's time counts from when its request was due; the
others have had one answer each, and say nothing more. Memory is what all processes of the server have (PSS), after
that many connections less before them; what the kernel has for a socket is not in it. Each server is a new one in each
round. Takes three minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _load import Ask, Links, paced
from _rates import arguments, granian, opened, present, uvicorn, zerver
from _report import Figures, Table, told, turns, write_json
from _server import memory_bytes

PLAIN = Ask("/plain")
FEW, BUSY = 100, 50
_SETTLE = 0.3  # seconds; what a request leaves behind is put away

#: Granian takes no more connections than its backlog unless it is told.
MANY = ("--backlog", "4096", "--backpressure", "20000")
#: Nobody closes what is idle while it is measured: it takes less than a minute.
SYSTEMS = [
    zerver("zerver", "zerver_app:app", "--limit", "idle_seconds=120", "--limit", "connections=20000"),
    uvicorn("uvicorn, raw ASGI", "asgi_raw:app", options=("--timeout-keep-alive", "120")),
    granian("granian, raw ASGI", "asgi", "asgi_raw:app", "--http1-header-read-timeout", "60000", *MANY),
]


def main() -> None:
    parser = arguments(__doc__, seconds=1.5, connections=10_000)
    parser.set_defaults(loader="python")
    parser.add_argument("--rate", type=float, default=400.0, help="requests per second, on all busy ones together")
    options = parser.parse_args()
    systems = {it.name: it for it in present(SYSTEMS, options)}
    few = min(FEW, options.connections // 2)
    columns = (
        ("memory", "KiB/connection", 1),
        (f"p50 at {few}", "ms", 2),
        (f"p99 at {few}", "ms", 2),
        (f"p50 at {options.connections:,}", "ms", 2),
        (f"p99 at {options.connections:,}", "ms", 2),
        (f"p99 at {options.connections:,} to {few}", "x", 2),
    )
    tables: dict[tuple[str, str, int], Table] = {column: {name: [] for name in systems} for column in columns}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in turns(systems, options.rounds):
            if number < 0:
                continue  # each server is warmed up by itself
            with opened(systems[name], Path(folder)) as (port, group):
                measured = _measure(name, port, group, few, options)
            for column, value in zip(columns, measured, strict=True):
                tables[column][name].append(value)
    figures: Figures = told(f"{options.connections:,} connections", tables)
    write_json(options.json, figures)


def _measure(name: str, port: int, group: int, few: int, options: argparse.Namespace) -> tuple[float, ...]:
    """The values of the columns, from one server."""
    busy = min(BUSY, few)
    links = Links()
    try:
        links.open(port, few, PLAIN.wire)
        paced(links, busy, PLAIN, options.rate, options.seconds / 3)  # warm-up
        at_few = paced(links, busy, PLAIN, options.rate, options.seconds)
        before = memory_bytes(group)
        links.open(port, options.connections - few, PLAIN.wire)
        time.sleep(_SETTLE)
        each = (memory_bytes(group) - before) / (options.connections - few)
        at_many = paced(links, busy, PLAIN, options.rate, options.seconds)
    finally:
        links.close()
    at_few.check(name, PLAIN)
    at_many.check(name, PLAIN)
    p99_few, p99_many = at_few.milliseconds(0.99), at_many.milliseconds(0.99)
    return each / 1024, at_few.milliseconds(0.5), p99_few, at_many.milliseconds(0.5), p99_many, p99_many / p99_few


if __name__ == "__main__":
    main()
