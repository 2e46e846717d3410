"""DBOS Transact in a process of its own: workflows of steps that do nothing. Arguments: the system database's URL.

DURABLE_WAL=1: its SQLite with a write-ahead log, which it does not ask for by itself. synchronous is FULL either way,
because that is what SQLite does by default.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import ClassVar

import sqlalchemy
from dbos import DBOS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _peer import Line, Window


class Now:
    """What is measured at the moment. began: when the last step of a run did."""

    window = Window(0.0)
    began: ClassVar[dict[str, float]] = {}


@DBOS.step()
async def work(run: str, number: int) -> int:
    Now.began[run] = Now.window.step(Now.began.get(run))
    return number + 1


@DBOS.workflow()
async def flow(run: str, steps: int) -> int:
    number = 0
    for _ in range(steps):
        if Now.window.over:
            break
        number = await work(run, number)
    return number


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def pragmas(connection, _):
    if type(connection).__module__.startswith("sqlite3") and os.environ.get("DURABLE_WAL"):
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")


async def client(steps: int, name: str, window: Window) -> None:
    """Asks for one run after the other."""
    number = 0
    while not window.over:
        number += 1
        since = time.perf_counter()
        await flow(f"{name}.{number}", steps)
        window.run(since)


async def main() -> None:
    line, url = Line(), sys.argv[1]
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "enable_otlp": False})
    DBOS.launch()
    about = {"packages": ["dbos", "sqlalchemy"]}
    if url.startswith("sqlite"):
        with sqlalchemy.create_engine(url).connect() as db:
            for name in ("journal_mode", "synchronous"):
                about[name] = db.execute(sqlalchemy.text(f"pragma {name}")).scalar()
    line.say(about)
    questions = line.questions()
    while (asked := await asyncio.to_thread(next, questions, None)) is not None:
        Now.began.clear()
        window = Now.window = Window(asked["seconds"])
        await asyncio.gather(*(client(asked["steps"], f"c{number}", window) for number in range(asked["concurrency"])))
        line.say(window.told())


asyncio.run(main())
