"""`zerver config`: every setting, its value, and where it came from.

Law: a secret is a mask, wherever it is shown. What is wrong is told all at once, one line each, with status 2; nothing
is opened, and no app is loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import click

from zerver.core.settings import CONFIG, FILE, SETTINGS, Settings, read_settings
from zerver.errors import InvalidData


class WrongSettings(click.ClickException):
    """Settings that make no sense: each on a line of its own."""

    exit_code = 2

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("\n".join(f"{where}: {what}" for where, what in problems))


def load_settings(
    config: str | None = None, given: Mapping[str, tuple[str, object]] | None = None, *, quiet: bool = False
) -> Settings:
    """The settings of this process: its environment, its file, and what the command line has given.

    config: the file, as --config; by default what ZERVER_CONFIG names, else zerver.toml in the working directory if it
    is there. given: as `read_settings`. quiet: whether warnings are left to the caller; otherwise they go to stderr.

    Raises WrongSettings.
    """
    name = config or os.environ.get(CONFIG) or None
    try:
        with open(name or FILE, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError as error:
        if name is not None:
            raise WrongSettings([(name, f"{error.strerror}")]) from None
        text = None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise WrongSettings([(name or FILE, str(why))]) from None
    try:
        settings = read_settings(os.environ, text, file=name or FILE, given=given)
    except InvalidData as error:
        raise WrongSettings(error.problems) from None
    if not quiet:
        for warning in settings.warnings:
            click.echo(f"Warning: {warning}", err=True)
    return settings


def config_file() -> str | None:
    """The file that `load_settings` reads, absolute; None when it reads none."""
    name = os.path.abspath(os.environ.get(CONFIG) or FILE)
    return name if os.environ.get(CONFIG) or os.path.exists(name) else None


@click.command()
@click.option("--config", "file", metavar="FILE", help="The file of settings.  [default: zerver.toml, if it is there]")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--check", is_flag=True, help="Show only what is wrong; status 1 for warnings too.")
def config(file: str | None, as_json: bool, check: bool) -> None:
    """Show every setting, its value and where it came from. Secrets are masked."""
    settings = load_settings(file, quiet=as_json)
    if check:
        if settings.warnings:
            raise SystemExit(1)
        return
    click.echo(_as_json(settings) if as_json else _as_table(settings))


def _as_json(settings: Settings) -> str:
    told = {
        key: {
            "value": setting.plain(settings.get(key)),
            "source": settings.origin(key).source,
            "name": settings.origin(key).name,
        }
        for key, setting in SETTINGS.items()
    }
    return json.dumps({"settings": told, "warnings": settings.warnings}, indent=2, ensure_ascii=False)


def _as_table(settings: Settings) -> str:
    rows = [("SETTING", "VALUE", "FROM")]
    rows += [
        (key, setting.show(settings.get(key)) or "-", str(settings.origin(key))) for key, setting in SETTINGS.items()
    ]
    widths = [min(60, max(len(row[i]) for row in rows)) for i in range(2)]
    return "\n".join(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for key, value, origin in rows)
