"""The demo: starts the provider and the shop as processes of their own, makes the provider misbehave, and shows the
timelines; afterwards, one of them once more, from the file that the shop has left.

python -m examples.checkout.demo [--once]
"""

import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import click
import trio

from examples.checkout.processes import Process, open_served
from zerver.errors import ConnectFailed, ExchangeFailed
from zerver.http import HttpClient, encode_json, open_http_client
from zerver.trace import Filter, decode_run, format_timeline, open_store

APP = "examples.checkout.app:app"


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
    kept = Path(tempfile.mkdtemp(prefix="zerver-demo-"))  # stays when the demo has ended by itself: it is to be read
    surprises: Sequence[str] | None = None
    try:
        surprises = trio.run(_until_interrupted, once, kept)
    finally:
        if surprises is None:
            shutil.rmtree(kept)
    if surprises is None:
        print("\nbye")
        return
    _tell_afterwards(kept / ".zerver" / "traces.db")
    if surprises:
        raise click.ClickException(f"not as told: {'; '.join(surprises)}")


async def _until_interrupted(once: bool, kept: Path) -> Sequence[str] | None:
    """What `_demo` says; None if Ctrl-C ended it. It comes as a signal: a KeyboardInterrupt could come up anywhere,
    in the midst of closing something, too.
    """
    surprises: Sequence[str] | None = None
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_heed, signals, nursery.cancel_scope)
            played = await _demo(once, kept)
            surprises = None if nursery.cancel_scope.cancel_called else played
            nursery.cancel_scope.cancel()
    return surprises


async def _heed(signals: AsyncIterator[int], serving: trio.CancelScope) -> None:
    await anext(signals)
    serving.cancel()


async def _demo(once: bool, kept: Path) -> Sequence[str]:
    """Play every scene, then serve on unless `once`; the titles of scenes that did not go as told.

    kept: the shop's folder.
    """
    with tempfile.TemporaryDirectory(prefix="zerver-demo-") as folder:
        environment = {"PROVIDER_DB": str(Path(folder, "provider.db")), "CHECKOUT_DB": str(Path(folder, "checkout.db"))}
        async with (
            open_served("examples.checkout.provider:app", environment) as provider,
            open_served(APP, environment | {"PROVIDER_URL": provider.url}, "--timeline", folder=kept) as shop,
            open_http_client(allow_private=True) as client,
        ):
            try:
                surprises = [scene.title for scene in SCENES if not await _play(client, provider, shop, scene)]
            finally:
                # Also on Ctrl-C: a shop whose provider hangs could not settle what it has under way, and would not end.
                with trio.move_on_after(1.0, shield=True), suppress(ConnectFailed, ExchangeFailed):  # it may have ended
                    await _set_faults(client, provider, {})
            ledger = await client.request("GET", f"{provider.url}/ledger")
            print(f"━━ The provider's ledger\n   {ledger.body.decode()}\n", flush=True)
            if not once:
                _invite(shop, provider, kept / ".zerver" / "traces.db")
                while True:
                    print(await shop.next_timeline(), flush=True)
    return surprises


def _invite(shop: Process, provider: Process, traces: Path) -> None:
    """Say what can be done while it serves."""
    print(f"The shop serves on {shop.url}, the provider on {provider.url}. Ctrl-C ends. Its live page:\n")
    print(f"  {shop.page}\n")
    print("Try:\n")
    print(f"  curl {shop.url}/v2/checkout -H 'Authorization: Bearer token-user_1' "
          "--json '{\"cart_id\": \"cart_1\"}'\n")  # fmt: skip
    print(f"  {_zerver('trace', '--db', str(traces))}")
    print(f"  {_zerver('replay', 'ID', '--app', APP, '--db', str(traces))}\n", flush=True)


def _tell_afterwards(traces: Path) -> None:
    """The run that was undone, out of the file: no server is there any more."""
    with open_store(traces) as store:
        recordings = [store.read(summary.run_id) for summary in store.search(Filter(status="409"), 1)]
    recording = recordings[0] if recordings else None
    if recording is None:  # that scene did not go as told, which is said next
        return
    found = recording.run_id[:12]
    print("━━ Afterwards, with no server left: the shop's trace file tells of each run")
    print(f"   $ {_zerver('trace', found, '--db', str(traces))}\n")
    print(format_timeline(decode_run(recording).timeline), end="\n\n")
    print("   and runs its steps again, with nothing performed:")
    print(f"   $ {_zerver('replay', found, '--app', APP, '--db', str(traces))}", flush=True)


def _zerver(*words: str) -> str:
    """A command, for the folder of the repository."""
    program = Path(sys.executable).with_name("zerver")
    here = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return shlex.join([str(here), *words])


async def _play(client: HttpClient, provider: Process, shop: Process, scene: Scene) -> bool:
    """Send one request; show what was asked, what was answered, and the shop's own account of it."""
    print(f"━━ {scene.title}", flush=True)
    if scene.faults:
        faults = ", ".join(f"{name}={value:g}" for name, value in scene.faults.items())
        until = f", for {scene.lifted:g}s" if scene.lifted is not None else ""
        print(f"   the provider: {faults}{until}", flush=True)
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


async def _lift_faults(client: HttpClient, provider: Process, seconds: float) -> None:
    await trio.sleep(seconds)
    await _set_faults(client, provider, {})


async def _set_faults(client: HttpClient, provider: Process, faults: dict[str, float]) -> None:
    headers = {"Content-Type": "application/json"}
    await client.request("POST", f"{provider.url}/faults", headers=headers, body=encode_json(faults))


if __name__ == "__main__":
    main()
