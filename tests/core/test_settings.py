"""Settings are what the environment, the file and the command line say, in that order, and every mistake is told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.core import settings as schema
from zerver.core.secret import MASK, Secret
from zerver.core.settings import SETTINGS, SUBJECTS, Origin, Settings, read_settings
from zerver.errors import InvalidData

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"
TOKEN = "correct horse battery staple"


def problems(environ: dict[str, str], toml: str | None = None, **how: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidData) as raised:
        read_settings(environ, toml, **how)
    return list(raised.value.problems)


# ---- the schema -----------------------------------------------------------------------------


def test_what_is_not_said_is_the_default() -> None:
    settings = read_settings({"PATH": "/bin"})
    assert settings == Settings()
    assert {key: settings.get(key) for key in SETTINGS} == {key: one.default for key, one in SETTINGS.items()}
    assert {settings.origin(key) for key in SETTINGS} == {Origin()}
    assert str(settings.origin("trace.db")) == "default"
    assert not settings.said("trace.db")


def test_every_setting_has_names_of_its_own_and_a_line_of_help() -> None:
    names = [name for setting in SETTINGS.values() for name in setting.names]
    assert len(names) == len(set(names))
    assert all(setting.names[0].startswith("ZERVER_") for setting in SETTINGS.values())
    assert all(setting.help.endswith(".") and len(setting.help) <= 100 for setting in SETTINGS.values())
    assert all(subject.__doc__ for subject in SUBJECTS.values())


@pytest.mark.parametrize("key", SETTINGS)
def test_every_default_is_of_its_own_kind(key: str) -> None:
    setting = SETTINGS[key]
    if setting.default is not None:
        assert setting.kind.read(setting.kind.show(setting.default)) == setting.default


@pytest.mark.parametrize(
    "name", ["ZER_VER_PROMOTE_QUEUE_MS", "ZER_VER_PROMOTE_PARK_MS", "ZERVER_PROMOTE_QUEUE_MS", "ZERVER_PROMOTE_PARK_MS"]
)
def test_older_names_are_heeded(name: str) -> None:
    settings = read_settings({name: "12"})
    assert settings.get("otel.promote_queue_ms" if "QUEUE" in name else "otel.promote_park_ms") == 12.0
    assert settings.warnings == ()
    assert read_settings({"ZER_VER_DEBUG_JOBS": "1"}).trace.debug_jobs is True


# ---- where values come from -----------------------------------------------------------------


def test_the_command_line_wins_over_the_environment_and_that_over_the_file() -> None:
    environ = {"ZERVER_PORT": "81", "ZERVER_HOST": "0.0.0.0"}
    toml = '[serve]\nport = 82\nhost = "::1"\nworkers = 2\n'
    given = {"serve.port": ("--port", 80), "serve.workers": ("--workers", None)}
    settings = read_settings(environ, toml, file="ops/zerver.toml", given=given)
    assert (settings.serve.port, settings.serve.host, settings.serve.workers) == (80, "0.0.0.0", 2)
    origins = [str(settings.origin(f"serve.{name}")) for name in ("port", "host", "workers", "drain")]
    assert origins == ["--port", "environment ZERVER_HOST", "ops/zerver.toml", "default"]
    assert settings.said("serve.workers")


def test_the_name_of_ours_wins_over_that_of_others_and_older_ones() -> None:
    both = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://theirs:4318", "ZERVER_OTLP_ENDPOINT": "http://ours:4318"}
    settings = read_settings(both)
    assert settings.otel.endpoint == "http://ours:4318"
    assert settings.warnings == ()  # what is said to every program of a machine may well be something else
    assert read_settings({**both, "ZERVER_OTLP_ENDPOINT": ""}).otel.endpoint == ""
    older = read_settings({"ZERVER_PROMOTE_PARK_MS": "1", "ZER_VER_PROMOTE_PARK_MS": "2"})
    assert older.otel.promote_park_ms == 1.0
    assert older.warnings == (
        "ZER_VER_PROMOTE_PARK_MS says something else than ZERVER_PROMOTE_PARK_MS, which counts: remove it",
    )


def test_an_empty_variable_is_a_text_and_no_number_and_no_secret() -> None:
    empty = {"ZERVER_TRACE_DB": "", "ZERVER_PORT": "", "ZERVER_PAGE_TOKEN": "", "ZERVER_OTLP_HEADERS": " "}
    settings = read_settings(empty, "[serve]\nport = 82\n")
    assert (settings.trace.db, settings.serve.port, settings.page.token, settings.otel.headers) == ("", 82, None, None)
    assert str(settings.origin("trace.db")) == "environment ZERVER_TRACE_DB"


def test_a_file_says_all_that_an_environment_can() -> None:
    toml = """
        [trace]
        db = ""
        most_bytes = "64MiB"
        most_age = "36h"
        sample = 0.5
        slow_ms = "1.5s"
        hide = ["card.number", "iban"]
        [otel]
        headers = "authorization=Basic abc"
        [metrics]
        on = false
        [page]
        mode = false
        [log]
        form = "json"
    """
    settings = read_settings({}, toml)
    assert settings.trace.most_bytes == 64 * 1024**2
    assert settings.trace.most_age == 36 * 3600
    assert settings.trace.slow_ms == 1500.0
    assert settings.trace.hide == ("card.number", "iban")
    assert settings.otel.headers == Secret((("authorization", "Basic abc"),))
    assert (settings.metrics.on, settings.page.mode, settings.log.form) == (False, "off", "json")


# ---- what is wrong --------------------------------------------------------------------------


def test_all_that_is_wrong_is_told_at_once_with_its_place_and_its_cure() -> None:
    toml = "trace = 5\n[trce]\n[log]\nfrom = 'json'\nlevel = 'loud'\n[serve]\nworkers = 0\n"
    assert problems({"ZERVER_TRACE_SAMPLE": "2"}, toml, given={"serve.port": ("--port", "http")}) == [
        ("zerver.toml: [trce]", "is no table of ours: did you mean trace?"),
        ("zerver.toml: log.from", "is unknown: did you mean log.form?"),
        ("zerver.toml: trace", "is no table: write [trace], its keys below it"),
        ("--port", "is 'http': give a whole number from 0 to 65535"),
        ("zerver.toml: serve.workers", "is 0: give a whole number from 1 to 1024"),
        ("ZERVER_TRACE_SAMPLE", "is '2': give a share, as 0.05 or 5%"),
        ("zerver.toml: log.level", "is 'loud': give one of debug, info, warning, error"),
    ]


@pytest.mark.parametrize(
    "toml", ["[trace", "a = " + "[" * 5000, "a = " + "9" * 5000, "[trace]\n[trace]", "\0", "a = 1\na = 2"]
)
def test_what_is_no_toml_is_one_problem_of_the_file(toml: str) -> None:
    found = [where for where, _ in problems({}, toml)]
    assert found == ["zerver.toml"] or found[0].startswith("zerver.toml: [a]")


def test_a_variable_that_is_no_setting_is_a_warning_with_the_nearest_name() -> None:
    settings = read_settings(
        {"ZERVER_TRACE_SAMPEL": "x", "ZERVER_SERVICE_HOST": "10.0.0.1", "ZER_VER_XYZZY": "", "ZERVER_CONFIG": "a.toml"}
    )
    assert settings.warnings[0] == "ZERVER_SERVICE_HOST is no setting: did you mean ZERVER_SERVICE_NAME?"
    assert settings.warnings[1] == "ZERVER_TRACE_SAMPEL is no setting: did you mean ZERVER_TRACE_SAMPLE?"
    assert settings.warnings[2].startswith("ZER_VER_XYZZY is no setting: ")
    assert len(settings.warnings) == 3


def test_what_kubernetes_sets_for_a_service_of_our_name_is_told_as_such() -> None:
    ((where, what),) = problems({"ZERVER_PORT": "tcp://10.0.0.1:8000"})
    assert where == "ZERVER_PORT"
    assert "enableServiceLinks: false" in what


def test_no_message_and_no_repr_repeats_a_secret() -> None:
    environ = {"ZERVER_PAGE_TOKEN": TOKEN, "ZERVER_OTLP_HEADERS": f"x={TOKEN}"}
    settings = read_settings({**environ, "ZERVER_OTLP_ENDPOINT": f"http://joe:{TOKEN.split()[0]}@h:1"})
    assert settings.page.token == Secret(TOKEN)
    shown = repr(settings) + "".join(SETTINGS[key].show(settings.get(key)) for key in SETTINGS)
    assert "correct" not in shown
    assert shown.count(MASK) == 6
    for wrong in (
        {"ZERVER_PAGE_TOKEN": "hunter2"},
        {"ZERVER_OTLP_ENDPOINT": "h://joe:hunter2@h"},
        {"ZERVER_OTLP_HEADERS": "hunter2"},
    ):
        ((where, what),) = problems(wrong)
        assert where in wrong
        assert "hunter2" not in what
    ((_, what),) = problems({}, "[page]\ntoken = 1234567\n")
    assert what == "makes no sense: give a text of 16 ASCII characters or more"


@given(
    st.dictionaries(
        st.sampled_from([name for one in SETTINGS.values() for name in one.names]), st.text(max_size=30), max_size=8
    ),
    st.none() | st.text(alphabet="[]=\n\"'.traceserv_db0123 ", max_size=60),
)
def test_any_text_gives_settings_or_problems(environ: dict[str, str], toml: str | None) -> None:
    found: Sequence[tuple[str, str]] = ()
    try:
        settings = read_settings(environ, toml)
    except InvalidData as error:
        settings, found = Settings(), error.problems
    told = [SETTINGS[key].show(settings.get(key)) for key in SETTINGS]
    assert all(isinstance(text, str) for text in [*told, *(what for _, what in found)])


# ---- the page -------------------------------------------------------------------------------


def test_the_page_tells_every_setting_as_it_is() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [
        (
            key,
            ", ".join(f"`{name}`" for name in setting.names),
            f"`{setting.show(setting.default)}`" if setting.show(setting.default) else "none",
            setting.help + (" A secret." if setting.secret else ""),
        )
        for key, setting in SETTINGS.items()
    ]


def test_the_page_has_a_heading_for_every_subject() -> None:
    found = re.findall(r"^## \[(\w+)\]$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == list(SUBJECTS)


def test_the_file_and_the_variable_that_names_it_are_not_settings() -> None:
    assert schema.CONFIG not in {name for one in SETTINGS.values() for name in one.names}
