"""`zerver serve` and its client in one process, without a trace file: so many requests of each kind, one after the
other on one connection. Arguments: how many of each of SCRIPTS, and by how much this process is slowed down.

What chance and the clock decide is decided beforehand, so that a process does what the one before it did: Trio draws
its order from a seed, and its clock goes as slowly as the process does.
"""

import sys
from functools import partial
from pathlib import Path

import attrs
import trio
import trio.testing
from zerver_app import app

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _load import Ask
from orders import ORDER

from zerver.core.settings import Settings
from zerver.observing import open_observing
from zerver.serve import Serving, serve

SCRIPTS = {
    "plaintext": Ask("/plain"),
    "three steps and an effect": Ask("/steps/7"),
    "JSON echo, validated": Ask("/echo", "POST", ORDER),
}


async def main(counts: list[int]) -> None:
    settings = Settings()
    quiet = attrs.evolve(settings, trace=attrs.evolve(settings.trace, db=""))
    async with open_observing(app, quiet) as observing, trio.open_nursery() as nursery:
        serving: Serving = await nursery.start(partial(serve, app, observers=observing.observers, seed=0))
        host, _, port = serving.addresses[0].removeprefix("http://").partition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            for ask, count in zip(SCRIPTS.values(), counts, strict=True):
                await play(stream, ask.wire, count)
        nursery.cancel_scope.cancel()


async def play(stream: trio.SocketStream, wire: bytes, count: int) -> None:
    """Answers come whole, since they are short."""
    for _ in range(count):
        await stream.send_all(wire)
        answer = await stream.receive_some(65536)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(repr(answer))


if __name__ == "__main__":
    trio._core._run._r.seed(0)  # the only way there is, and what trio's own tests do
    slower = float(sys.argv[-1])
    trio.run(main, [int(count) for count in sys.argv[1:-1]], clock=trio.testing.MockClock(rate=1 / slower))
