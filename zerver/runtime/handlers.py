"""Handlers: from an effect's kind to the function that performs it, with its resources filled in.

Law: everything is looked up once per kind. A kind's own handler comes first, then the capabilities of the app, then
what the runtime itself brings: clock and random.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from random import Random
from typing import Any
from uuid import UUID

import trio

from zerver.core.app import Capability
from zerver.core.calls import Call
from zerver.core.effects import CallInfo, EffectKind, IdempotencyKey, injected_parameters
from zerver.effects import clock, random
from zerver.errors import DefinitionError, Rejected

#: Makes the CallInfo of an attempt: (call, attempt number) -> CallInfo.
Informer = Callable[[Call, int], CallInfo]


class Bound:
    """A handler with its resources. `invoke` adds what differs from call to call.

    serves: how many calls to one target its resources can perform at once, None where they do not say. lazy: to call it
    does nothing yet, as of every `async def`; to await what that gives does.
    """

    __slots__ = ("function", "info_params", "key_params", "lazy", "plain", "resources", "serves")

    def __init__(
        self, function: Callable[..., Any], injected: Mapping[str, Any], resources: Mapping[type, Any], kind: str
    ):
        self.function = function
        self.lazy = iscoroutinefunction(function)
        self.key_params = [name for name, type_ in injected.items() if type_ is IdempotencyKey]
        self.info_params = [name for name, type_ in injected.items() if type_ is CallInfo]
        self.resources: dict[str, Any] = {}
        for name, type_ in injected.items():
            if type_ is IdempotencyKey or type_ is CallInfo:
                continue
            if type_ not in resources:
                label = getattr(type_, "__name__", str(type_))
                raise DefinitionError(
                    f"effect {kind!r}: its handler wants a {label} for {name!r}, but no capability opens one",
                    f"add a capability to App(capabilities=[…]) whose resources open a {label}",
                )
            self.resources[name] = resources[type_]
        bounds = [getattr(resource, "serves_at_once", None) for resource in self.resources.values()]
        self.serves = min((bound for bound in bounds if isinstance(bound, int)), default=None)
        self.plain = not injected  # the handler takes the effect's own arguments, and no more

    def invoke(self, call: Call, attempt: int, informer: Informer) -> Any:
        """Call the function: an awaitable, or the value itself for an instant kind.

        Raises Rejected if an `async def` does not take these arguments: it has done nothing then.
        """
        effect = call.effect
        try:
            if self.plain:
                return self.function(*effect.args, **effect.kwargs)
            extra = self.resources
            if self.key_params or self.info_params:
                extra = dict(extra)
                for name in self.key_params:
                    extra[name] = call.key
                for name in self.info_params:
                    extra[name] = informer(call, attempt)
            return self.function(*effect.args, **effect.kwargs, **extra)
        except Exception as unfit:
            if self.lazy:
                raise Rejected(f"its handler cannot be called so: {unfit}") from unfit
            raise


class Handlers:
    """All handlers of one runtime."""

    def __init__(
        self,
        capabilities: Sequence[Capability],
        resources: Mapping[type, Any],
        rng: Random,
        overrides: Mapping[str, Any],
    ) -> None:
        """overrides: handlers by kind name that win over everything; tests script effects with them."""
        self._resources = resources
        self._bound: dict[EffectKind[..., Any], Bound] = {}
        self._named: dict[str, Callable[..., Any]] = {**builtin_handlers(rng)}
        for capability in capabilities:
            self._named.update(capability.handlers)
        self._overrides = dict(overrides)

    @property
    def overridden(self) -> frozenset[str]:
        """The kinds whose own handlers are not used."""
        return frozenset(self._overrides)

    def bound(self, kind: EffectKind[..., Any]) -> Bound:
        """The handler of a kind. Raises DefinitionError when nothing handles it, or a resource is missing."""
        found = self._bound.get(kind)
        if found is None:
            found = self._bound[kind] = self._bind(kind)
        return found

    def _bind(self, kind: EffectKind[..., Any]) -> Bound:
        override = self._overrides.get(kind.name)
        if override is not None:
            return Bound(override, injected_parameters(f"effect {kind.name!r}", override), self._resources, kind.name)
        if kind.handler is not None:
            return Bound(kind.handler, kind.injected, self._resources, kind.name)
        function = self._named.get(kind.name)
        if function is None:
            raise DefinitionError(
                f"effect {kind.name!r}: nothing handles it", "add a capability that does to App(capabilities=[…])"
            )
        return Bound(function, injected_parameters(f"effect {kind.name!r}", function), self._resources, kind.name)


def builtin_handlers(rng: Random) -> dict[str, Callable[..., Any]]:
    """What the runtime handles by itself. rng: where chance that is no secret comes from."""

    def uuid() -> UUID:
        return UUID(int=rng.getrandbits(128), version=4)

    return {
        clock.NOW.name: lambda: datetime.now(UTC),
        clock.MONOTONIC.name: trio.current_time,
        clock.SLEEP.name: trio.sleep,
        random.UNIFORM.name: rng.uniform,
        random.CHOICE.name: rng.choice,
        random.TOKEN.name: secrets.token_urlsafe,
        random.UUID4.name: uuid,
    }


BUILTIN_KINDS = frozenset(builtin_handlers(Random(0)))
