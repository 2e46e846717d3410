"""The demo: starts the provider and the shop as processes of their own, makes the provider misbehave, and shows the
timelines.

python -m examples.checkout.demo [--once]
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import click
import trio

from zerver.effects.http import Reply
from zerver.http import HttpClient, encode_json, open_http_client


@attrs.frozen
class Scene:
    """One request, and what the provider does meanwhile. expect: the status that shows that all went as told."""

    title: str
    method: str
    path: str
    body: object
    faults: dict[str, float]
    expect: int


def _checkout(title: str, cart: object, expect: int, **faults: float) -> Scene:
    return Scene(title, "POST", "/v2/checkout", cart, faults, expect)


SCENES: Sequence[Scene] = (
    _checkout("A clean checkout", {"cart_id": "cart_1"}, 201),
    _checkout("The provider is slow: the charge times out, and is tried again with the same key", {"cart_id": "cart_2"},
              502, hang_rate=0.6),
    _checkout("The reply is lost: the money has moved, nobody said so, and the shop asks", {"cart_id": "cart_3"}, 201,
              lost_reply_rate=1),
    _checkout("Sold out after the charge: everything is undone, in reverse order", {"cart_id": "cart_soldout"}, 409),
    _checkout("The deadline comes first: 504, and whatever may have been charged is refunded", {"cart_id": "cart_1"}, 504,
              latency_ms=1500),
    _checkout("Nonsense: every problem at once", {"cart_id": 7, "note": ["no"]}, 422),
    Scene("A home page of three services: one hedged, one allowed to fail", "GET", "/v2/home", None, {}, 200),
)  # fmt: skip


@click.command()
@click.option("--once", is_flag=True, help="End after the traffic.")
def main(once: bool) -> None:
    """Show the checkout at work, then serve it until Ctrl-C."""
    try:
        trio.run(_demo, once)
    except KeyboardInterrupt:
        print("\nbye")


async def _demo(once: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="zerver-demo-") as folder:
        environment = {"PROVIDER_DB": str(Path(folder, "provider.db")), "CHECKOUT_DB": str(Path(folder, "checkout.db"))}
        async with (
            _served("examples.checkout.provider:app", environment) as provider,
            _served("examples.checkout.app:app", environment | {"PROVIDER_URL": provider.url}, "--timeline") as shop,
            open_http_client(allow_private=True) as client,
        ):
            surprises = [scene.title for scene in SCENES if not await _play(client, provider, shop, scene)]
            ledger = await client.request("GET", f"{provider.url}/ledger")
            print(f"The provider's ledger says: {ledger.body.decode()}\n")
            if surprises:
                raise SystemExit(f"not as told: {'; '.join(surprises)}")
            if not once:
                print(f"The shop serves on {shop.url}, the provider on {provider.url}. Ctrl-C ends. Try:\n")
                print(f"  curl -H 'Authorization: Bearer token-user_1' -d '{{\"cart_id\": \"cart_1\"}}' "
                      f"-H 'Content-Type: application/json' {shop.url}/v2/checkout\n", flush=True)  # fmt: skip
                await shop.show_timelines()


async def _play(client: HttpClient, provider: "Process", shop: "Process", scene: Scene) -> bool:
    """Send one request; show what was asked, what was answered, and the shop's own account of it."""
    await _post(client, f"{provider.url}/faults", scene.faults)
    print(f"━━ {scene.title}")
    if scene.faults:
        print("   " + ", ".join(f"{name}={value:g}" for name, value in scene.faults.items()))
    headers = {"Authorization": "Bearer token-user_1", "Content-Type": "application/json"}
    body = b"" if scene.body is None else encode_json(scene.body)
    reply = await client.request(scene.method, shop.url + scene.path, headers=headers, body=body)
    print(f"   → {reply.status} {reply.body.decode()}\n")
    print(await shop.timeline_of(reply.headers["x-request-id"]), flush=True)
    return reply.status == scene.expect


async def _post(client: HttpClient, url: str, value: object) -> Reply:
    return await client.request("POST", url, headers={"Content-Type": "application/json"}, body=encode_json(value))


# ---- processes ------------------------------------------------------------------------------


class Process:
    """A `zerver serve` under way. url: where it listens."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.url = ""
        self._buffer = b""

    async def start(self) -> None:
        line = await self._read_until(b"\n")
        if not line.startswith("listening on "):
            raise SystemExit(f"the server did not start: {line}")
        self.url = line.removeprefix("listening on ").strip()

    async def timeline_of(self, run_id: str) -> str:
        """The timeline of a run, which the server prints with an empty line behind it."""
        while True:
            text = await self._read_until(b"\n\n")
            if run_id in text:
                return text

    async def show_timelines(self) -> None:
        while True:
            print(await self._read_until(b"\n\n"), flush=True)

    async def _read_until(self, mark: bytes) -> str:
        output = self.process.stdout
        while output is not None and mark not in self._buffer:
            data = await output.receive_some()
            if not data:
                raise SystemExit("a server ended before its time; what it said stands above")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(mark)
        return (text + mark).decode()


@asynccontextmanager
async def _served(app: str, environment: dict[str, str], *options: str) -> AsyncIterator[Process]:
    """Serve an app in a process of its own; it is drained, as SIGTERM asks, when the block is left."""
    command = [sys.executable, "-m", "zerver.cli", "serve", app, "--port", "0", *options]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, stdout=subprocess.PIPE, check=False, env=os.environ | environment)
        process = Process(await nursery.start(run))
        try:
            await process.start()
            yield process
        finally:
            nursery.cancel_scope.cancel()  # trio.run_process sends SIGTERM, and waits


if __name__ == "__main__":
    main()
