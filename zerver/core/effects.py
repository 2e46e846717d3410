"""Effects: frozen descriptions of one piece of I/O, and what they can come to.

Law: an effect does nothing. Awaiting one inside a step hands it to the machine, which asks the runtime to
perform it; only a kind's handler, found by the runtime, ever touches the world.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, Final, Generic, Literal, NewType, ParamSpec, TypeAlias, TypeVar

import attrs

from zerver.core import tracing
from zerver.core.arguments import Arguments
from zerver.core.policy import Policy, stated
from zerver.core.priorities import Priority
from zerver.core.values import value
from zerver.errors import DefinitionError, EffectError

P = ParamSpec("P")
T = TypeVar("T")

Access = Literal["read", "write"]

#: Names one write over all its attempts, restarts and replays. A handler that takes `*, key: IdempotencyKey` gets it.
IdempotencyKey = NewType("IdempotencyKey", str)

#: Default of a handler parameter that the runtime fills in: `http: HttpClient = INJECTED`. It is Any, so that a
#: type checker lets callers leave the parameter out.
INJECTED: Final[Any] = type("Injected", (), {"__repr__": lambda _: "INJECTED"})()


@value
class CallInfo:
    """Which call a handler is performing; a handler that takes `*, info: CallInfo` gets it.

    step: the step that asked. attempt: 1 for the first. priority: the run's class. parent: the `traceparent` with which
    the run was asked for, as it came.
    """

    run_id: str
    flow: str
    step: str
    key: IdempotencyKey
    attempt: int
    tenant: str
    priority: Priority
    parent: str = ""

    @property
    def traceparent(self) -> str:
        """What to send along as `traceparent`: the span of this effect. Made when somebody asks for it."""
        return tracing.outgoing(self.run_id, self.parent, self.key)


# ---- outcomes -------------------------------------------------------------------------------


@value
class Success(Generic[T]):
    """The effect happened and gave `value`."""

    value: T


@value
class Failure:
    """The effect has certainly not happened (or, for a read, gave nothing)."""

    error: EffectError


@value
class Unknown:
    """A write that may or may not have happened; `key` is what to ask or undo by."""

    error: EffectError
    key: IdempotencyKey


@value
class Cancelled:
    """The effect was cancelled before it could have happened. reason: by whom or what."""

    reason: str


Outcome: TypeAlias = Success[T] | Failure | Unknown | Cancelled

# ---- kinds ----------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class EffectKind(Generic[P, T]):
    """What can be asked for: calling a kind makes an effect of it, and performs nothing.

    name: `room.verb`, as `sql.fetch_one`. handler: the coroutine function that performs it, or None when a
    capability of the app brings it. takes_key: whether the handler is given an IdempotencyKey, and so may be
    asked twice for one write. injected: handler parameters that the runtime fills in, by type.
    target: what is talked to, as `payments`; bulkheads and budgets are kept per target. operation: what it is asked to
    do; breakers and latencies are kept per operation of a target. By default the kind's name.
    instant: the handler is a plain function that never waits (clock, random), performed without a cancel scope.
    exact: the handler's word is final: when it raises, or is cancelled, the write has certainly not happened.
    arguments: what an effect of it may be made with; None where a capability's own functions make them.
    """

    name: str
    access: Access
    handler: Callable[..., Any] | None = None
    takes_key: bool = False
    injected: Mapping[str, Any] = attrs.field(factory=dict)
    target: str | Callable[..., str] = ""
    operation: str | Callable[..., str] = ""
    policy: Policy | None = None
    instant: bool = False
    exact: bool = False
    arguments: Arguments | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Effect[T]:
        """An effect of this kind. Raises DefinitionError for arguments that its handler does not take."""
        takes = self.arguments
        if takes is not None and (len(args), *kwargs) not in takes.known:
            takes.check(self.name, len(args), tuple(kwargs))
        return Effect(self, args, kwargs)

    def __repr__(self) -> str:
        return f"<effect kind {self.name} ({self.access})>"


def effect(
    *,
    kind: str,
    access: Access,
    target: str | None = None,
    policy: Policy | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], EffectKind[P, T]]:
    """Turn a Trio coroutine function into an effect constructor: that is how you bring your own I/O.

        @effect(kind="payments.charge", access="write")
        async def charge(cents: int, *, key: IdempotencyKey = INJECTED, http: HttpClient = INJECTED) -> Charge: ...

    access: "write" when doing it twice matters. target: defaults to the part of `kind` before its first dot.
    policy: the weakest that applies to every effect of this kind.

    Raises DefinitionError when the function is not a coroutine function, or a retried write takes no key.
    """

    def make(function: Callable[P, Awaitable[T]]) -> EffectKind[P, T]:
        label = f"effect {kind!r}"
        if not inspect.iscoroutinefunction(function):
            raise DefinitionError(f"{label}: its handler is not a coroutine function", "write it as `async def`")
        injected = injected_parameters(label, function)
        made: EffectKind[P, T] = EffectKind(
            name=kind,
            access=access,
            handler=function,
            takes_key=IdempotencyKey in injected.values(),
            injected=injected,
            target=kind.partition(".")[0] if target is None else target,
            policy=policy,
            arguments=Arguments(function, injected),
        )
        refuse_unsafe_retries(made, policy)
        return made

    return make


def injected_parameters(label: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a handler that the runtime fills in, with the type that each is filled by.

    Those whose default is INJECTED, and keyword-only ones that want an IdempotencyKey or a CallInfo: a positional key
    is an argument like any other, as in `find_charge(key)`.
    """
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise DefinitionError(
            f"{label}: an annotation of its handler cannot be resolved: {error}",
            "import the name at module level, not under TYPE_CHECKING",
        ) from error
    injected = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name)
        told = hint in (IdempotencyKey, CallInfo) and parameter.kind is parameter.KEYWORD_ONLY
        if parameter.default is INJECTED or told:
            if hint is None:
                raise DefinitionError(
                    f"{label}: parameter {name!r} is INJECTED but has no annotation",
                    "annotate it with the resource's type",
                )
            injected[name] = hint
    return injected


def refuse_unsafe_retries(kind: EffectKind[..., Any], policy: Policy | None) -> None:
    """A write may be tried again only if the other side can tell that it is the same one, or if its failures are
    certain.
    """
    if policy is not None and policy.retries and kind.access == "write" and not kind.takes_key and not kind.exact:
        raise DefinitionError(
            f"effect {kind.name!r} is a write with retries={policy.retries}, but its handler takes no key",
            "give the handler a parameter `key: IdempotencyKey` and send it along, or drop the retries",
        )


# ---- effects --------------------------------------------------------------------------------


@value
class Compensation:
    """How a committed write is undone and, when its outcome is unknown, settled.

    undo: from the effect's result to the effect that undoes it. by_key: the same from the idempotency key, for when
    there is no result. resolve: from the key to a read that gives the result, or None if the write never happened.
    """

    undo: Callable[[Any], Effect[Any]] | None = None
    by_key: Callable[[IdempotencyKey], Effect[Any]] | None = None
    resolve: Callable[[IdempotencyKey], Effect[Any]] | None = None


#: What the step gets at its `await`: the value, the value or None, or the outcome itself.
Form = Literal["value", "optional", "outcome"]


class Effect(Generic[T]):
    """One piece of I/O as data; `await` it in a step to have it performed and get its result.

    Every method returns a new effect. `await` raises EffectError when the effect failed.
    """

    __slots__ = ("args", "compensation", "form", "kind", "kwargs", "policy")

    def __init__(
        self,
        kind: EffectKind[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        compensation: Compensation | None = None,
        form: Form = "value",
    ) -> None:
        self.kind = kind
        self.args = args
        self.kwargs: Mapping[str, Any] = {} if kwargs is None else kwargs
        self.policy = policy
        self.compensation = compensation
        self.form: Form = form

    def __await__(self) -> Generator[Effect[Any], Any, T]:
        result: T = yield self
        return result

    def with_policy(
        self,
        policy: Policy | None = None,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        backoff: float | None = None,
        backoff_cap: float | None = None,
    ) -> Effect[T]:
        """The same effect under this policy; keywords are short for `Policy(...)` and win over `policy`.

        Raises DefinitionError when a write whose handler takes no key would be retried.
        """
        said = stated(timeout, retries, backoff, backoff_cap)
        if policy is not None:
            said = said.over(policy)
        if self.policy is not None:
            said = said.over(self.policy)
        if said.retries:
            refuse_unsafe_retries(self.kind, said)
        return type(self)(self.kind, self.args, self.kwargs, said, self.compensation, self.form)

    def compensate(
        self,
        undo: Callable[[T], Effect[Any]] | None = None,
        *,
        by_key: Callable[[IdempotencyKey], Effect[Any]] | None = None,
        resolve: Callable[[IdempotencyKey], Effect[T | None]] | None = None,
    ) -> Effect[T]:
        """The same effect, undone in reverse order of commit if the run does not succeed.

        undo: gets the result. by_key: gets the idempotency key, for a write whose outcome is unknown.
        resolve: gets the key, and asks whether the write happened: its result, or None.

        Raises DefinitionError on a read: there is nothing to undo.
        """
        if self.kind.access == "read":
            raise DefinitionError(
                f"effect {self.kind.name!r} is a read and cannot be compensated",
                'drop .compensate(), or declare the kind with access="write"',
            )
        if undo is None and by_key is None and resolve is None:
            raise DefinitionError(
                f"effect {self.kind.name!r}: .compensate() was given nothing",
                "give it the effect that undoes this one",
            )
        how = Compensation(undo, by_key, resolve)
        return type(self)(self.kind, self.args, self.kwargs, self.policy, how, self.form)

    def optional(self) -> Effect[T | None]:
        """The same effect, but a failure gives None instead of raising."""
        return self._formed("optional")

    def outcome(self) -> Effect[Outcome[T]]:
        """The same effect, giving its outcome as a value: Success, Failure, Unknown or Cancelled."""
        return self._formed("outcome")

    @property
    def target(self) -> str:
        """What this effect talks to; see EffectKind.target."""
        target = self.kind.target
        return target if isinstance(target, str) else target(*self.args, **self.kwargs)

    @property
    def operation(self) -> str:
        """What of its target this effect asks for; see EffectKind.operation."""
        operation = self.kind.operation
        if isinstance(operation, str):
            return operation or self.kind.name
        return operation(*self.args, **self.kwargs)

    def _formed(self, form: Form) -> Effect[Any]:
        return type(self)(self.kind, self.args, self.kwargs, self.policy, self.compensation, form)

    def __repr__(self) -> str:
        shown = [repr(arg) for arg in self.args] + [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.kind.name}({', '.join(shown)})"


def deliver(effect: Effect[Any], outcome: Outcome[Any]) -> tuple[object, EffectError | None]:
    """What a step gets for this outcome: (value, None), or (None, the error to raise at its await)."""
    form = effect.form
    if form == "outcome":
        return outcome, None
    if isinstance(outcome, Success):
        return outcome.value, None
    if form == "optional":
        return None, None
    if isinstance(outcome, Cancelled):
        return None, EffectError(effect.kind.name, f"cancelled: {outcome.reason}")
    return None, outcome.error
