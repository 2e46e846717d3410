"""Jobs on the command line: which store of them is meant.

Law: the store is the one that the app's workers have, or the one that was named. Of an app nothing is opened but that
store, and what it stands on; a file that is not there, or has no jobs in it, is not made: whoever looks for jobs has
mistyped its name, or nobody has worked on any. Status 2: no store was named, or there is none.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click

from zerver.cli.config import load_settings
from zerver.cli.load import load_app
from zerver.core.app import App
from zerver.core.settings import Settings
from zerver.core.units import JOURNAL

if TYPE_CHECKING:
    from zerver.jobs.port import JobStore
    from zerver.trace.hidden import Hidden

T = TypeVar("T")

_MEMORY = ":memory:"


class NoJobs(click.ClickException):
    """No store was named, there is none, or it does not have what was asked for."""

    exit_code = 2


@attrs.frozen
class Place:
    """Where jobs are. name: as messages call it. url: "" for the app's own store. app: None when only a URL is known.
    hidden: names that are masked.
    """

    name: str
    url: str
    app: App | None
    settings: Settings
    hidden: Hidden

    def ask(self, question: Callable[[JobStore], Awaitable[T]]) -> T:
        """Open the store, ask it, and close it."""
        import trio

        from zerver.runtime.groups import unwrapped

        async def asked() -> T:
            with unwrapped():
                async with self._opened() as store:
                    return await question(store)

        return trio.run(asked)

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[JobStore, None]:
        from zerver.jobs import open_jobs
        from zerver.jobs.port import JobStore
        from zerver.runtime.resources import open_resource

        async with AsyncExitStack() as stack:
            if self.url or self.app is None:
                store: JobStore = await stack.enter_async_context(open_jobs(self.url))
            else:
                store = await open_resource(stack, self.app.capabilities, JobStore, {App: self.app})
            yield store


def with_place(*, needs_app: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the place that `--app MODULE:APP`, `--jobs URL` and `--config FILE` name; without them, what
    workers of these settings work on. It stands below the command's own options.
    """

    def given(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def placed(*, app: str | None, url: str | None, config: str | None, **said: Any) -> None:
            command(place_of(app, url, config, needs_app=needs_app), **said)

        for option in (
            click.option("--config", metavar="FILE", help="The file of settings.  [default: zerver.toml]"),
            click.option("--jobs", "url", metavar="URL", help="The store of jobs: sqlite:///FILE, or postgresql://…."),
            click.option("--app", metavar="MODULE:APP", help="The app whose jobs they are.  [default: ZERVER_APP]"),
        ):
            placed = option(placed)
        return placed

    return given


def place_of(app: str | None, url: str | None, config: str | None, *, needs_app: bool = False) -> Place:
    """What the command line, the environment and zerver.toml say together: a URL is nearer than an app, and an option
    nearer than a setting. needs_app: for what only an app can say. Raises WrongSettings, WrongName, NoJobs.
    """
    from zerver.trace.hidden import Hidden

    settings = load_settings(config, {"serve.app": ("--app", app), "work.jobs": ("--jobs", url)}, quiet=True)
    named = settings.work.jobs if url is not None or app is None else ""
    hidden = Hidden(settings.trace.hide)
    loaded = load_app(settings.serve.app) if settings.serve.app and (app or needs_app or not named) else None
    if loaded is None and (needs_app or not named):
        also = "" if needs_app else "; or its store: --jobs sqlite:///jobs.db or postgresql://…, or set ZERVER_JOBS"
        raise NoJobs(f"jobs of which app? Give --app MODULE:APP, as --app shop.api:app, or set ZERVER_APP{also}")
    if named:
        from zerver.jobs.places import file_of

        _check_file(file_of(named))
        return Place(JOURNAL.show(named), named, loaded, settings, hidden)
    return Place(_checked(settings.serve.app, loaded), "", loaded, settings, hidden)


def _checked(name: str, app: App | None) -> str:
    """The name of an app that keeps jobs, where they can be looked at. Raises NoJobs."""
    from zerver.jobs.port import JobStore
    from zerver.runtime.resources import needed_for

    opens = [] if app is None else needed_for(app.capabilities, JobStore)
    if not opens:
        raise NoJobs(f"{name} keeps no jobs: add jobs() to its App(capabilities=[…])")
    for capability in opens:
        if capability.file == _MEMORY:
            raise NoJobs(f"{name} keeps its jobs in the memory of its process, where nobody else can look")
        _check_file(capability.file)
    return name


def _check_file(file: str) -> None:
    """Raise NoJobs for a file that is not there, or that nobody has kept jobs in. file: "" for none."""
    if not file:
        return
    if not os.path.exists(file):
        raise NoJobs(f"there is no {file}; a worker makes it: is this the right folder, and the right name?")
    from zerver.sql.sqlite import has_table

    if not has_table(file, "zerver_jobs"):
        raise NoJobs(f"{file} has no jobs in it; a worker makes their tables: is this the right database?")
