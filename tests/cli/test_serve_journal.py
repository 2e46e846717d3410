"""`zerver serve --journal`: a run survives the death of its process, for real, and what cannot be is said at once."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import trio
from cryptography.fernet import Fernet

from tests.cli.commands import Server, serving, zerver
from tests.cli.working import children

#: Charges, and then waits for a file before it ships; each of the two is a line in a file of its own.
SHOP = """
from pathlib import Path

import trio

from zerver import INJECTED, App, Done, Flow, IdempotencyKey, effect, step


def note(name: str, key: str) -> None:
    known = Path(name).read_text().split() if Path(name).exists() else []
    if key not in known:
        with open(name, "a") as file:
            file.write(key + "\\n")


@effect(kind="bank.charge", access="write")
async def charge(*, key: IdempotencyKey = INJECTED) -> str:
    note("charges", key)
    return "paid"


@effect(kind="post.wait", access="read")
async def wait() -> None:
    while not Path("go").exists():
        await trio.sleep(0.02)


@effect(kind="post.ship", access="write")
async def ship(*, key: IdempotencyKey = INJECTED) -> None:
    note("shipped", key)


@step
async def pay() -> None:
    await charge()


@step
async def deliver() -> Done:
    await wait()
    await ship()
    return Done("shipped")


app = App("shop")
app.route("POST", "/orders", Flow("order", [pay, deliver], durability="sync"))
"""


def whole_lines(path: Path) -> list[str]:
    text = path.read_text() if path.exists() else ""
    return text.split() if text.endswith("\n") else []


def workers_of(pid: int) -> list[bytes]:
    """The command lines of its children."""
    return [Path(f"/proc/{child}/cmdline").read_bytes() for child in children(pid)]


async def wait_for(path: Path) -> list[str]:
    """The lines of a file, as soon as there are any."""
    with trio.fail_after(60):
        while not (lines := whole_lines(path)):
            await trio.sleep(0.02)
    return lines


async def order_and_die(server: Server, folder: Path) -> None:
    async with await server.connect() as stream:
        await server.say(stream, "POST /orders")
        await wait_for(folder / "charges")
        await trio.sleep(0.1)  # real processes: it waits for the world by now, or for the disk, and may die in either
        server.process.kill()
        await server.process.wait()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_run_whose_process_was_killed_is_carried_on_by_the_next(workers: str, tmp_path: Path) -> None:
    options = ("--journal", "sqlite:///shop.journal")
    async with serving(tmp_path, *options, source=SHOP) as server:
        await order_and_die(server, tmp_path)
    (tmp_path / "go").touch()
    async with serving(tmp_path, *options, "--workers", workers, source=SHOP):
        shipped = await wait_for(tmp_path / "shipped")
    assert len(shipped) == len((tmp_path / "charges").read_text().split()) == 1


def test_a_durable_flow_without_a_journal_is_said_at_once(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "serve", "shop:app", shop=SHOP)
    assert ended.status == 1
    assert "flow 'order'" in ended.err
    assert "--journal sqlite:///" in ended.err


@pytest.mark.parametrize("url", ["shop.journal", "mysql://root:pass@db/shop", "sqlite://shop.journal"])
def test_a_url_that_names_no_journal_is_said_without_repeating_it(url: str, tmp_path: Path) -> None:
    ended = zerver(tmp_path, "serve", "shop:app", "--journal", url, shop=SHOP)
    assert ended.status == 2
    assert "--journal: makes no sense: give sqlite:///FILE or postgresql://…" in ended.err
    assert "pass" not in ended.err


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mine.db") as mine:
        mine.execute("create table mine (thing text)")
    mine.close()
    before = (tmp_path / "mine.db").read_bytes()
    ended = zerver(tmp_path, "serve", "shop:app", "--port", "0", "--journal", "sqlite:///mine.db", shop=SHOP)
    assert ended.status == 1
    assert "mine.db" in ended.err
    assert "Traceback" not in ended.err
    assert (tmp_path / "mine.db").read_bytes() == before


async def test_the_password_of_a_journal_is_on_no_workers_command_line(tmp_path: Path) -> None:
    async with serving(tmp_path, "--workers", "2", "--journal", "sqlite:///shop.journal", source=SHOP) as server:
        told = workers_of(server.process.pid)
    assert len(told) == 2
    assert not [line for line in told if b"shop.journal" in line]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_with_keys_and_a_lease_of_its_own_it_is_carried_on_and_nothing_is_in_the_clear(
    workers: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_bytes(Fernet.generate_key())
    options = ("--journal", "sqlite:///shop.journal", "--journal-keys", "keys", "--journal-lease", "2")
    async with serving(tmp_path, *options, source=SHOP) as server:
        await order_and_die(server, tmp_path)
    (tmp_path / "go").touch()
    async with serving(tmp_path, *options, "--workers", workers, source=SHOP):
        await wait_for(tmp_path / "shipped")
    assert b"bank.charge" not in (tmp_path / "shop.journal").read_bytes()


def test_keys_that_cannot_be_read_are_said_at_once(tmp_path: Path) -> None:
    options = ("--journal", "sqlite:///shop.journal", "--journal-keys", "none")
    for command in (("serve", "shop:app", "--port", "0", *options), ("work", "shop:app", *options)):
        ended = zerver(tmp_path, *command, shop=SHOP)
        assert ended.status == 2, ended.err
        assert "cannot be read from none" in ended.err
        assert "Traceback" not in ended.err
