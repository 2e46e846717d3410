"""Loading: from `MODULE:APP` on the command line to an App.

Law: whatever is wrong with the name is one clear line on stderr and status 2; a traceback is shown only for an error
inside the user's own module.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

import click

from zerver.core.app import App
from zerver.core.flows import Flow


class WrongName(click.ClickException):
    """A name on the command line leads nowhere. One line: the usage, which click would add, is not what was wrong."""

    exit_code = 2


def load_app(name: str) -> App:
    """The App that `module:attribute` names; the attribute is `app` when it is left out."""
    module_name, _, attribute = name.partition(":")
    attribute = attribute or "app"
    module = _load_module(module_name)
    found = getattr(module, attribute, None)
    if isinstance(found, App):
        return found
    what = f"is a {type(found).__name__}, not an App" if hasattr(module, attribute) else "does not exist"
    apps = ", ".join(f"{module_name}:{key}" for key, value in vars(module).items() if isinstance(value, App))
    raise WrongName(f"{module_name}:{attribute} {what}; " + (f"there is {apps}" if apps else "write MODULE:APP"))


def _load_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise WrongName(f"{name!r} is not the name of a module; write MODULE:APP, as shop.api:app")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # the module is there, and something it imports is not: its traceback says more than we could
        raise WrongName(f"there is no module {error.name!r} here or on PYTHONPATH") from None


def find_flow(app: App, name: str) -> Flow:
    """The flow of an app by its name."""
    flows = app.flows
    if name not in flows:
        raise WrongName(f"no route of the app serves a flow {name!r}; there are: {', '.join(sorted(flows))}")
    return flows[name]
