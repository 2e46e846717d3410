"""Another checkout of the code, for `zerver replay --code`: the same command once more, in a process of its own.

Law: one process imports one version of a module, so other code is another process. It runs this very Zerver, with the
other checkout first in the search for the app, and nothing of the app may come from elsewhere. Settings are those of
here: what is hidden stays hidden.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

import zerver
from zerver.cli.config import config_file
from zerver.core.settings import CONFIG

_PROGRAM = "from zerver.cli.replay import replay; replay(prog_name='zerver replay')"


def run_in_checkout(path: str, arguments: Sequence[str]) -> int:
    """Run `zerver replay ARGUMENTS --checkout PATH` in a process of its own; its output is ours. Gives its status.

    -P: the working directory is not searched, where a Zerver of its own may lie. -B: nothing is written over there.
    """
    folder = Path(path).absolute()
    home = str(Path(zerver.__file__).parents[1])
    search = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-P", "-B", "-c", _PROGRAM, "--checkout", str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(search), CONFIG: config_file() or os.devnull}
    sys.stdout.flush()
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def use_checkout(path: str) -> None:
    """In the process of the checkout: look for modules there before anywhere else."""
    sys.path.insert(0, path)


def check_origin(module: str, path: str) -> None:
    """Raise ClickException when a module that was loaded is not the checkout's."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).resolve().is_relative_to(Path(path).resolve()):
        raise click.ClickException(f"{path} has no module {module!r}: {file or 'it'} was found instead")
