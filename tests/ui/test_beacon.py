"""The beacon: for its owner's eyes, whole or not at all, removed at the end, and stale when its process has ended."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from zerver.core.codec import encode_json
from zerver.ui import Live, beacon, read_beacon

LIVE = Live("http://127.0.0.1:8000", os.getpid(), "a-token-that-is-long-enough")


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    path.write_bytes(data)
    path.chmod(mode)


def test_it_is_there_for_as_long_as_the_block_takes(tmp_path: Path) -> None:
    path = tmp_path / ".zerver" / "live.json"
    with beacon(LIVE, path):
        assert read_beacon(path) == LIVE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert os.listdir(path.parent) == ["live.json"]
    assert os.listdir(path.parent) == []
    assert read_beacon(path) is None


def test_it_is_removed_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    with pytest.raises(RuntimeError), beacon(LIVE, path):
        raise RuntimeError
    assert not path.exists()


def test_that_of_a_newer_server_stays(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    newer = attrs.evolve(LIVE, address="http://127.0.0.1:9000")
    with beacon(newer, path):
        pass
    with beacon(LIVE, path):
        write(path, encode_json(newer))
    assert read_beacon(path) == newer


def test_nobody_minds_that_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "live.json"
    with beacon(LIVE, path):
        path.unlink()


def test_a_process_that_has_ended_is_not_there(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = tmp_path / "live.json"
    with beacon(attrs.evolve(LIVE, pid=ended.pid), path):
        assert read_beacon(path) is None


@pytest.mark.parametrize("pid", [0, -1])
def test_a_number_that_is_no_process_is_not_asked(tmp_path: Path, pid: int) -> None:
    path = tmp_path / "live.json"
    with beacon(attrs.evolve(LIVE, pid=pid), path):
        assert read_beacon(path) is None


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o620, 0o602])
def test_what_others_can_read_or_write_is_not_trusted(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "live.json"
    write(path, encode_json(LIVE), mode)
    assert read_beacon(path) is None


@pytest.mark.parametrize("data", [b"", b"{}", b"[", b'{"address": 1}', b"\xff" * 100, b'"x"' * 10_000])
def test_what_is_no_beacon_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "live.json"
    write(path, data)
    assert read_beacon(path) is None


def test_a_link_is_followed_neither_in_reading_nor_in_writing(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "live.json"
    write(target, encode_json(LIVE))
    path.symlink_to(target)
    assert read_beacon(path) is None
    write(target, b"mine")
    with beacon(LIVE, path):
        assert target.read_bytes() == b"mine"
        assert not path.is_symlink()


def test_a_directory_or_a_pipe_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_beacon(tmp_path / "pipe") is None
    assert read_beacon(tmp_path) is None


def test_the_token_is_not_in_what_is_printed() -> None:
    assert LIVE.token not in repr(LIVE)
    assert LIVE.url == "http://127.0.0.1:8000/_zerver/api/"
