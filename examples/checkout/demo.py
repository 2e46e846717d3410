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

from zerver.http import HttpClient, encode_json, open_http_client


@attrs.frozen
class Scene:
    """One request, and what the provider does meanwhile.

    faults: as `POST /faults` takes them. lifted: seconds after which the provider is well again, None for not before
    the request is over. expect: the status that shows that all went as told.
    """

    title: str
    body: object
    expect: int
    faults: dict[str, float] = attrs.field(factory=dict)
    lifted: float | None = None
    method: str = "POST"
    path: str = "/v2/checkout"


SCENES: Sequence[Scene] = (
    Scene("A clean checkout", {"cart_id": "cart_1"}, 201),
    Scene(
        "The charge times out, and is tried again with the same key",
        {"cart_id": "cart_2"}, 201, {"hang_rate": 1}, lifted=0.2,
    ),
    Scene(
        "The reply is lost: the money has moved, nobody said so, and the shop asks",
        {"cart_id": "cart_3"}, 201, {"lost_reply_rate": 1},
    ),
    Scene("Sold out after the charge: everything is undone, in reverse order", {"cart_id": "cart_soldout"}, 409),
    Scene(
        "The deadline comes first, and what may have been charged is settled",
        {"cart_id": "cart_1"}, 504, {"latency_ms": 1500},
    ),
    Scene("Nonsense: every problem at once", {"cart_id": 7, "note": ["no"]}, 422),
    Scene(
        "A home page of three services: one hedged, one allowed to fail",
        None, 200, method="GET", path="/v2/home",
    ),
)  # fmt: skip


@click.command()
@click.option("--once", is_flag=True, help="End after the traffic.")
def main(once: bool) -> None:
    """Show the checkout at work, then serve it until Ctrl-C."""
    try:
        surprises = trio.run(_demo, once)
    except KeyboardInterrupt:
        print("\nbye")
        return
    if surprises:
        raise click.ClickException(f"not as told: {'; '.join(surprises)}")


async def _demo(once: bool) -> Sequence[str]:
    """Play every scene, then serve on unless `once`; the titles of scenes that did not go as told."""
    with tempfile.TemporaryDirectory(prefix="zerver-demo-") as folder:
        environment = {"PROVIDER_DB": str(Path(folder, "provider.db")), "CHECKOUT_DB": str(Path(folder, "checkout.db"))}
        async with (
            _served("examples.checkout.provider:app", environment) as provider,
            _served("examples.checkout.app:app", environment | {"PROVIDER_URL": provider.url}, "--timeline") as shop,
            open_http_client(allow_private=True) as client,
        ):
            surprises = [scene.title for scene in SCENES if not await _play(client, provider, shop, scene)]
            await _set_faults(client, provider, {})
            ledger = await client.request("GET", f"{provider.url}/ledger")
            print(f"━━ The provider's ledger\n   {ledger.body.decode()}\n", flush=True)
            if not once:
                print(f"The shop serves on {shop.url}, the provider on {provider.url}. Ctrl-C ends. Try:\n")
                print(f"  curl {shop.url}/v2/checkout -H 'Authorization: Bearer token-user_1' "
                      "--json '{\"cart_id\": \"cart_1\"}'\n", flush=True)  # fmt: skip
                await shop.show_timelines()
    return surprises


async def _play(client: HttpClient, provider: "Process", shop: "Process", scene: Scene) -> bool:
    """Send one request; show what was asked, what was answered, and the shop's own account of it."""
    print(f"━━ {scene.title}")
    if scene.faults:
        faults = ", ".join(f"{name}={value:g}" for name, value in scene.faults.items())
        print(f"   the provider: {faults}" + (f", for {scene.lifted:g}s" if scene.lifted is not None else ""))
    await _set_faults(client, provider, scene.faults)
    async with trio.open_nursery() as nursery:
        if scene.lifted is not None:
            nursery.start_soon(_lift_faults, client, provider, scene.lifted)
        headers = {"Authorization": "Bearer token-user_1", "Content-Type": "application/json"}
        body = b"" if scene.body is None else encode_json(scene.body)
        reply = await client.request(scene.method, shop.url + scene.path, headers=headers, body=body)
    print(f"   {scene.method} {scene.path} → {reply.status} {reply.body.decode()}\n")
    print(await shop.timeline_of(reply.headers["x-request-id"]), flush=True)
    return reply.status == scene.expect


async def _lift_faults(client: HttpClient, provider: "Process", seconds: float) -> None:
    await trio.sleep(seconds)
    await _set_faults(client, provider, {})


async def _set_faults(client: HttpClient, provider: "Process", faults: dict[str, float]) -> None:
    headers = {"Content-Type": "application/json"}
    await client.request("POST", f"{provider.url}/faults", headers=headers, body=encode_json(faults))


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
                return text.rstrip() + "\n"

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
