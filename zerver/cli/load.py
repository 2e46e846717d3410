"""Loading: from `MODULE:APP` on the command line to an App.

Law: whatever is wrong with the name or with the module is one clear line on stderr and status 2; a traceback is shown
only for an error inside the user's own module.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from zerver.core.app import App
from zerver.core.flows import Flow
from zerver.errors import DefinitionError


def load_app(name: str) -> App:
    """The App that `module:attribute` names; the attribute is `app` when it is left out."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise  # the module is there, and something it imports is not: its traceback says more than we could
        raise click.UsageError(f"there is no module {error.name!r} here or on PYTHONPATH") from None
    except DefinitionError as error:
        raise click.ClickException(f"DefinitionError: {error}") from None
    found = getattr(module, attribute or "app", None)
    if not isinstance(found, App):
        what = "nothing of that name" if found is None else f"a {type(found).__name__}, not an App"
        raise click.UsageError(f"{module_name!r} has {what}: {attribute or 'app'!r}; write MODULE:APP")
    return found


def find_flow(app: App, name: str) -> Flow:
    """The flow of an app by its name."""
    flows = app.flows
    if name not in flows:
        raise click.UsageError(f"no route of the app serves a flow {name!r}; there are: {', '.join(sorted(flows))}")
    return flows[name]
