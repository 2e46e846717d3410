"""`zerver` itself: its help costs nothing, and an app that cannot work is told in its own words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.cli.commands import ROOT, environment, zerver
from zerver.cli.main import COMMANDS


def test_help_names_the_commands_and_loads_neither_trio_nor_an_edge() -> None:
    program = (
        "import sys\n"
        "from zerver.cli import main\n"
        "try:\n    main(['--help'], prog_name='zerver')\n"
        "except SystemExit as end:\n    print('status', end.code)\n"
        "heavy = ('trio', 'rich', 'h11', 'sqlite3')\n"
        "print(sorted(m for m in sys.modules if m in heavy or m.startswith('zerver.http')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *shown, status, loaded = done.stdout.splitlines()
    assert shown[0] == "Usage: zerver [OPTIONS] COMMAND [ARGS]..."
    listed = shown[shown.index("Commands:") + 1 :]
    assert [line.split()[0] for line in listed if re.match(r"  \S", line)] == list(COMMANDS)
    assert (status, loaded) == ("status 0", "[]")


def test_version(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "--version")
    assert ended.status == 0
    assert "version" in ended.out


def test_an_unknown_command_is_one_for_the_usage(tmp_path: Path) -> None:
    ended = zerver(tmp_path, "swerve")
    assert ended.status == 2
    assert "No such command 'swerve'" in ended.err


def test_a_definition_error_while_a_module_is_imported_is_two_lines(tmp_path: Path) -> None:
    source = "from zerver import Flow\nFlow('empty', [])\n"
    ended = zerver(tmp_path, "routes", "empty:app", empty=source)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == "DefinitionError: flow 'empty' has no stages\n  give it at least one step\n"
