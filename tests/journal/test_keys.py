"""The keys of a journal stand in a file: the first encrypts, all open, and what is wrong with it is said once."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tests.runtime.dying import Witness
from tests.runtime.test_parked import shop
from zerver import App
from zerver.errors import DamagedJournal, DefinitionError
from zerver.journal import open_journal, read_cipher
from zerver.runtime import open_runtime


def keys(path: Path, *lines: str, mode: int = 0o600) -> Path:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(mode)
    return path


def test_the_first_key_encrypts_and_each_opens(tmp_path: Path) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    before = read_cipher(keys(tmp_path / "one", "# of last year", "", old))
    after = read_cipher(keys(tmp_path / "two", new, f"  {old}  "))
    assert after.decrypt(before.encrypt(b"x")) == b"x"
    assert Fernet(new).decrypt(after.encrypt(b"y")) == b"y"


@pytest.mark.parametrize(
    ("lines", "mode", "why"),
    [
        (["not a key"], 0o600, r"line 1: this is no key"),
        (["# nothing"], 0o600, r"there is no key"),
        ([Fernet.generate_key().decode()], 0o644, r"can be read by others\n  chmod 600"),
        (["ключ"], 0o600, r"is not ASCII"),
    ],
)
def test_what_is_wrong_is_said_without_the_key(lines: list[str], mode: int, why: str, tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=why) as refused:
        read_cipher(keys(tmp_path / "keys", *lines, mode=mode))
    assert lines[0] not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="No such file"):
        read_cipher(tmp_path / "none")


async def test_nothing_of_a_run_is_in_the_clear_and_another_key_opens_nothing(tmp_path: Path) -> None:
    place, witness = tmp_path / "runs.journal", Witness()
    cipher = read_cipher(keys(tmp_path / "keys", Fernet.generate_key().decode()))
    async with (
        open_journal(f"sqlite:///{place}", cipher=cipher) as journal,
        open_runtime(App(), handlers=witness.handlers(), journal=journal, flows=[shop()]) as runtime,
    ):
        parked = await runtime.run(shop())
        assert await journal.cancel(parked.run_id, journal.notation.seal(b'"because of Ada"'))
    found = sqlite3.connect(place)
    try:
        bodies = [body for (body,) in found.execute("select body from zerver_pages")]
        ((cut,),) = found.execute("select cut from zerver_runs")
    finally:
        found.close()
    assert not any(b"bank" in body for body in [*bodies, cut])
    assert b"Ada" not in cut
    other = read_cipher(keys(tmp_path / "others", Fernet.generate_key().decode()))
    async with open_journal(f"sqlite:///{place}", cipher=other) as journal:
        stored = await journal.read(parked.run_id)
        assert stored is not None
        with pytest.raises(DamagedJournal, match="key"):
            journal.notation.reader(shop()).read(stored)
