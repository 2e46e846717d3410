"""Journals on the command line: which one is meant, and what code its runs may be of.

Law: the journal is the one that a server with the same settings writes. A file that is not there is not made: whoever
looks into a journal has mistyped its name. Status 2: no journal was named, or there is none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import attrs
import click

from zerver.cli.config import load_settings
from zerver.core.app import App
from zerver.core.flows import Flow
from zerver.errors import DefinitionError

if TYPE_CHECKING:
    from zerver.journal import Cipher
    from zerver.runtime.journal import Journal
    from zerver.trace.hidden import Hidden

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class NoJournal(click.ClickException):
    """No journal was named, or there is none at that place."""

    exit_code = 2


@attrs.frozen
class Place:
    """Where the journal is. keys: the file of its keys, "" for none. hidden: names that are masked, beside what the
    code calls secret.
    """

    url: str
    keep_secrets: bool
    keys: str
    hidden: Hidden

    def ask(self, question: Callable[[Journal], Awaitable[T]]) -> T:
        """Open the journal, ask it, and close it."""
        import trio

        from zerver.journal import open_journal
        from zerver.runtime.groups import unwrapped

        cipher = cipher_of(self.keys)

        async def asked() -> T:
            with unwrapped():
                async with open_journal(self.url, cipher=cipher, keep_secrets=self.keep_secrets) as journal:
                    return await question(journal)

        return trio.run(asked)


def journal_option(command: F) -> F:
    """`--journal URL` and `--config FILE`; without them, what a server would write to."""
    command = click.option("--config", metavar="FILE", help="The file of settings.  [default: zerver.toml]")(command)
    return click.option(
        "--journal", metavar="URL", help="The journal.  [default: as `zerver config` shows serve.journal]"
    )(command)


def place_of(journal: str | None, config: str | None, *, needed: bool = True) -> Place:
    """What the command line, the environment and zerver.toml say together. Raises WrongSettings, NoJournal."""
    from zerver.trace.hidden import Hidden

    settings = load_settings(config, {"serve.journal": ("--journal", journal)}, quiet=True)
    url = settings.serve.journal
    if not url and needed:
        raise NoJournal("which journal? Give --journal sqlite:///shop.journal or postgresql://…, or set ZERVER_JOURNAL")
    parts = urlsplit(url)
    path = unquote(parts.path).removeprefix("/")
    if parts.scheme == "sqlite" and path and not os.path.exists(path):
        raise NoJournal(f"there is no journal {path}; a server makes it: give the place of that one by --journal")
    return Place(url, settings.serve.journal_secrets, settings.serve.journal_keys, Hidden(settings.trace.hide))


def cipher_of(keys: str) -> Cipher | None:
    """What encrypts a journal whose keys are in this file, "" for none. Raises NoJournal."""
    if not keys:
        return None
    from zerver.journal import read_cipher

    try:
        return read_cipher(keys)
    except DefinitionError as error:
        raise NoJournal(f"{error.problem}; {error.cure}") from None


def loose_flows(name: str, app: App) -> tuple[Flow, ...]:
    """The durable flows that stand in the modules of an app, and whose names nothing of it has: those of a program that
    runs its flows itself. Another version of a flow that the app has is not among them: a server does not know it.

    name: of the app, as MODULE:APP; its modules are those below the folder of the module that it is in.
    """
    known = {*app.flows, *app.jobs, *(flow.name for flow in app.older)}
    return tuple(flow for flow in dict.fromkeys(_flows(name.partition(":")[0])) if flow.name not in known)


def _flows(module: str) -> Iterator[Flow]:
    here = os.path.dirname(os.path.abspath(getattr(sys.modules[module], "__file__", None) or ""))
    for other in [sys.modules[module], *list(sys.modules.values())]:
        if str(getattr(other, "__file__", None) or "").startswith(here):
            yield from (
                value for value in list(vars(other).values()) if isinstance(value, Flow) and value.durability != "off"
            )
