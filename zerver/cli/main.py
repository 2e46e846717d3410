"""The `zerver` command.

Law: a subcommand's module is imported when the subcommand runs, so that `zerver --help` answers at once. Status 2 is a
wrong command line, 1 an app that cannot work: its error is printed as it is, and without a traceback, because it names
the place by itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import IO, Any

import click

from zerver.errors import DefinitionError, DriverError, JournalError

#: From the subcommand to the module that has it, with its one line of help.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("zerver.cli.serve", "Serve an app over HTTP."),
    "work": ("zerver.cli.work", "Work on an app's jobs, without HTTP."),
    "check": ("zerver.cli.inspect", "Check every route, flow and effect of an app."),
    "routes": ("zerver.cli.inspect", "List the routes of an app."),
    "explain": ("zerver.cli.explain", "Say what applies to a request, and who says so."),
    "graph": ("zerver.cli.inspect", "Draw a flow, as Mermaid or DOT."),
    "trace": ("zerver.cli.trace", "List the runs that were kept, or tell one."),
    "replay": ("zerver.cli.replay", "Run a kept run's steps once more, offline."),
    "diff": ("zerver.cli.diff", "Compare two runs, or the slow runs of a route with its fast ones."),
    "top": ("zerver.cli.top", "Show what a running server does."),
    "jobs": ("zerver.cli.jobs", "List an app's jobs; retry, cancel, pause or enqueue them."),
    "sagas": ("zerver.cli.sagas", "List runs that somebody must look at; retry or resolve them."),
    "upgrade-check": ("zerver.cli.upgrade_check", "Say what new code would do with stored runs, before a deploy."),
    "config": ("zerver.cli.config", "Show every setting, and where it came from."),
}


class _CannotWork(click.ClickException):
    """The app cannot work: shown as the error's name and its own words."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.message, file=file, err=True)


class _Lazy(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (DefinitionError, DriverError, JournalError) as error:
            raise _CannotWork(f"{type(error).__name__}: {error}") from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name.replace("-", "_"))
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


@click.command(cls=_Lazy)
@click.version_option(package_name="zerver")
def main() -> None:
    """Zerver: typed steps in; timeline, replay, rollback, deadlines and fairness out."""
