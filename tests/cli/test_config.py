"""`zerver config` shows each value and where it came from, masks secrets, and tells all that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zerver.cli.config import WrongSettings, config, load_settings

TOKEN = "correct horse battery staple"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("ZERVER_CONFIG", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def ask(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(config, arguments, env=environ)


def rows(told: Result) -> dict[str, tuple[str, str]]:
    lines = [line.split(None, 2) for line in told.stdout.splitlines()[1:]]
    return {key: (value, origin) for key, value, origin in lines}


def test_the_table_shows_values_and_where_they_came_from(here: Path) -> None:
    (here / "zerver.toml").write_text('[trace]\nmost_bytes = "64MiB"\n[serve]\nport = 81\n')
    told = ask(ZERVER_PORT="80", ZERVER_PAGE_TOKEN=TOKEN)
    assert told.exit_code == 0
    assert told.stdout.splitlines()[0].split() == ["SETTING", "VALUE", "FROM"]
    shown = rows(told)
    assert shown["trace.most_bytes"] == ("64MiB", "zerver.toml")
    assert shown["serve.port"] == ("80", "environment ZERVER_PORT")
    assert shown["trace.db"] == (".zerver/traces.db", "default")
    assert shown["page.token"] == ("‹secret›", "environment ZERVER_PAGE_TOKEN")
    assert TOKEN not in told.output


def test_json_is_for_programs(here: Path) -> None:
    told = json.loads(ask("--json", ZERVER_PAGE_TOKEN=TOKEN, ZERVER_TRACE_HIDE="a,b", ZERVER_PROT="1").stdout)
    assert told["settings"]["page.token"] == {
        "value": "‹secret›",
        "source": "environment",
        "name": "ZERVER_PAGE_TOKEN",
    }
    assert told["settings"]["trace.most_bytes"] == {"value": 536870912, "source": "default", "name": ""}
    assert told["settings"]["trace.hide"]["value"] == ["a", "b"]
    assert told["settings"]["trace.slow_ms"]["value"] is None
    assert told["warnings"] == ["ZERVER_PROT is no setting: did you mean ZERVER_PORT?"]


def test_check_says_nothing_when_nothing_is_wrong() -> None:
    told = ask("--check", ZERVER_PORT="80")
    assert (told.exit_code, told.output) == (0, "")


def test_check_fails_for_a_warning() -> None:
    told = ask("--check", ZERVER_PROT="80")
    assert told.exit_code == 1
    assert told.stderr == "Warning: ZERVER_PROT is no setting: did you mean ZERVER_PORT?\n"


def test_all_that_is_wrong_is_a_line_each_and_status_2(here: Path) -> None:
    (here / "zerver.toml").write_text("[trace]\nmost_age = 'long'\n")
    told = ask(ZERVER_PORT="http")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.splitlines() == [
        "Error: ZERVER_PORT: is 'http': give a whole number from 0 to 65535",
        "zerver.toml: trace.most_age: is 'long': give a time, as 10, 250ms, 15m or 7d, and 1s or more",
    ]


def test_the_file_is_where_one_says(here: Path) -> None:
    (here / "a.toml").write_text("[serve]\nport = 1\n")
    (here / "b.toml").write_text("[serve]\nport = 2\n")
    assert rows(ask("--config", "a.toml"))["serve.port"] == ("1", "a.toml")
    assert rows(ask(ZERVER_CONFIG="b.toml"))["serve.port"] == ("2", "b.toml")
    assert rows(ask("--config", "a.toml", ZERVER_CONFIG="b.toml"))["serve.port"] == ("1", "a.toml")


@pytest.mark.parametrize("wrong", ["absent", "folder", "latin"])
def test_a_file_that_was_asked_for_and_cannot_be_read_is_an_error(wrong: str, here: Path) -> None:
    (here / "folder").mkdir()
    (here / "latin").write_bytes(b"a = '\xe9'\n")
    told = ask("--config", wrong)
    assert told.exit_code == 2
    assert told.stderr.startswith(f"Error: {wrong}: ")
    assert len(told.stderr.splitlines()) == 1


def test_who_serves_reads_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZERVER_LOG", "json")
    assert load_settings().log.form == "json"
    settings = load_settings(given={"log.form": ("--log", "console")})
    assert (settings.log.form, str(settings.origin("log.form"))) == ("console", "--log")
    with pytest.raises(WrongSettings, match="--log: is 'xml'"):
        load_settings(given={"log.form": ("--log", "xml")})
