"""`zerver top`: what a running server does, in a terminal.

Law: it looks, and changes nothing. The server is asked what its page asks; it is drawn by `zerver.cli.board`. Where
nobody can press a key, as in a pipe, it prints one frame and ends. Status 2: no server, or not for us.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from zerver.cli.asking import Asking, NoAnswer

if TYPE_CHECKING:
    from rich.console import Console

_ENDS: Final = {"q", "Q", "\x03", "\x04"}  # Ctrl-C and Ctrl-D come as keys where the terminal is raw
_PIPE_WIDTH: Final = 140  # columns where there is no terminal
_RUNS: Final = 40


@click.command()
@click.option("--url", metavar="URL", help="Where the server is; by default the one that runs in this folder.")
@click.option("--token", envvar="ZERVER_PAGE_TOKEN", metavar="TOKEN", help="What it lets in. [ZERVER_PAGE_TOKEN]")
@click.option("--every", type=click.FloatRange(0.2, 3600), default=1.0, metavar="SECONDS", help="How often to ask it.")
@click.option("--route", default="", metavar="ROUTE", help="Only runs of this route, as 'POST /orders'.")
@click.option("--slow-ms", type=click.FloatRange(0), metavar="MS", help="Only runs that took longer.")
@click.option("--failed", is_flag=True, help="Only runs that were not done.")
@click.option("--rows", type=click.IntRange(1, 100), default=10, metavar="N", help="Rows of each table.")
@click.option("--once", is_flag=True, help="Print one frame, and end.")
@click.option("--json", "as_json", is_flag=True, help="One frame, for programs.")
def top(
    url: str | None,
    token: str | None,
    every: float,
    route: str,
    slow_ms: float | None,
    failed: bool,
    rows: int,
    once: bool,
    as_json: bool,
) -> None:
    """Show what a running server does: routes, runs, tenants, classes, and what is not as usual. `q` quits."""
    asking = find_server(url, token)
    wanted = _query(route=route, slow_ms=slow_ms, failed=1 if failed else None, limit=max(rows, _RUNS))
    if as_json:
        click.echo(json.dumps(_frame(asking, wanted), indent=2))
    elif once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        frame = _frame(asking, wanted)
        _console().print(_drawn(frame, rows))
    else:
        _watch(asking, wanted, every, rows)


def find_server(url: str | None, token: str | None) -> Asking:
    """The server that is meant: the one at the URL, or the one that runs in this folder. Raises NoAnswer."""
    from zerver.ui.beacon import read_beacon

    if url is not None:
        return Asking(url.rstrip("/"), token or "")
    live = read_beacon()
    if live is None:
        raise NoAnswer(
            "no server with its page on runs in this folder (.zerver/live.json says so): "
            "start one by `zerver serve MODULE:APP`, or say where it is by --url and --token"
        )
    return Asking(live.address.rstrip("/"), token or live.token, live.page)


def _query(**wanted: Any) -> str:
    from urllib.parse import urlencode

    return urlencode({name: value for name, value in wanted.items() if value not in (None, "")})


def _frame(asking: Asking, wanted: str) -> dict[str, Any]:
    return {"overview": asking.get("overview"), "runs": asking.get(f"runs?{wanted}").get("runs", [])}


def _drawn(frame: Mapping[str, Any], rows: int, trouble: str = "") -> Any:
    from zerver.cli.board import draw

    return draw(frame["overview"], frame["runs"], rows=rows, trouble=trouble)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_PIPE_WIDTH)


# ---- live -----------------------------------------------------------------------------------


def _watch(asking: Asking, wanted: str, every: float, rows: int) -> None:
    from rich.live import Live

    frame = _frame(asking, wanted)  # a server that does not answer at all is told on a line, not on a screen
    trouble, since = "", 0.0
    console = _console()
    try:
        with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_drawn(frame, _fitting(console.height, rows), trouble), refresh=True)
                if _pressed(every):
                    return
                try:
                    frame, trouble, since = _frame(asking, wanted), "", 0.0
                except NoAnswer as error:  # it restarts, perhaps: the last frame stays until it is back
                    since = since or time.monotonic()
                    trouble = f"no answer for {time.monotonic() - since:.0f}s: {error.message}"
    except KeyboardInterrupt:
        return


def _fitting(height: int, rows: int) -> int:
    """How many rows each of the tables can have on a screen: they are five, with heads of four lines."""
    return max(2, min(rows, (height - 24) // 4))


@contextmanager
def _keys() -> Iterator[None]:
    """Keys come as they are pressed, and are not shown."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> bool:
    """Wait so long for a key; whether it was one that ends."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        if not select.select([sys.stdin], [], [], left)[0]:
            return False
        if (key := sys.stdin.read(1)) in _ENDS or not key:
            return True
    return False
