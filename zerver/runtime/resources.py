"""Resources: what capabilities open for their handlers, opened once and closed in reverse order.

Law: a resource lives as long as the runtime. It is opened by a function whose parameters are other resources, by
type; the order follows from that, and a circle is a DefinitionError.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import MappingProxyType
from typing import Any

from zerver.core.app import Capability
from zerver.errors import DefinitionError

Opener = Callable[..., AbstractAsyncContextManager[Any]]


async def open_resources(
    stack: AsyncExitStack, capabilities: Sequence[Capability], given: Mapping[type, Any] = MappingProxyType({})
) -> dict[type, Any]:
    """Open what the capabilities declare, on the stack. given: resources that are there already, as the app itself.

    Raises DefinitionError for a missing or circular need.
    """
    openers = _openers(capabilities)
    opened: dict[type, Any] = dict(given)
    for type_ in openers:
        await _open(stack, openers, opened, type_, ())
    return opened


async def open_resource(
    stack: AsyncExitStack,
    capabilities: Sequence[Capability],
    type_: type,
    given: Mapping[type, Any] = MappingProxyType({}),
) -> Any:
    """Open one of them, with what it needs and nothing else: for a tool that looks into a part of an app.

    Raises KeyError when no capability opens one; DefinitionError as `open_resources`.
    """
    return await _open(stack, _openers(capabilities), dict(given), type_, ())


def needed_for(capabilities: Sequence[Capability], type_: type) -> list[Capability]:
    """The capabilities that `open_resource` would have open something; none when nobody opens one of this type."""
    openers = _openers(capabilities)
    found: set[type] = set()
    wanted = [type_]
    while wanted:
        need = wanted.pop()
        if need in openers and need not in found:
            found.add(need)
            wanted += _needs(openers[need]).values()
    return [capability for capability in capabilities if found & capability.resources.keys()]


def _openers(capabilities: Sequence[Capability]) -> dict[type, Opener]:
    openers: dict[type, Opener] = {}
    for capability in capabilities:
        for type_, opener in capability.resources.items():
            if type_ in openers:
                raise DefinitionError(
                    f"capability {capability.name!r} opens a {type_.__name__}, and so does another one",
                    "remove one of the two, or give its resource a type of its own",
                )
            openers[type_] = opener
    return openers


async def _open(
    stack: AsyncExitStack, openers: dict[type, Opener], opened: dict[type, Any], type_: type, around: tuple[type, ...]
) -> Any:
    if type_ in opened:
        return opened[type_]
    if type_ in around:
        circle = " → ".join(t.__name__ for t in (*around, type_))
        raise DefinitionError(f"resources need each other in a circle: {circle}", "open one of them without the other")
    opener = openers[type_]
    arguments = {}
    for name, need in _needs(opener).items():
        if need not in openers and need not in opened:
            raise DefinitionError(
                f"the resource {type_.__name__} needs a {need.__name__} for {name!r}, but no capability opens one",
                f"add a capability to App(capabilities=[…]) that opens a {need.__name__}",
            )
        arguments[name] = await _open(stack, openers, opened, need, (*around, type_))
    opened[type_] = await stack.enter_async_context(opener(**arguments))
    return opened[type_]


def _needs(opener: Opener) -> dict[str, type]:
    function = inspect.unwrap(opener)
    hints = typing.get_type_hints(function)
    return {
        name: hints[name]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and name in hints
    }
