"""Judgement: what a handler's exception says about the attempt that raised it.

Law: one table, one answer. For a write the question is always the same: is it certain that nothing happened?

    raised                                     happened?     again?   target well?
    Rejected, StatementError                   no            no       yes
    ConnectFailed, EffectRefused, DriverClosed,
    DatabaseDown, StatementError that `passes` no            yes      no
    anything else, by a read or an exact kind  no            yes      no
    anything else, by a write                  maybe         by key   no
    its timeout, nothing sent yet              no            yes      no
    its timeout, after sending                 maybe         by key   no

A handler that makes several exchanges for one write answers for the whole: after the first that may have changed
something it must turn a later ConnectFailed or Rejected into OutcomeUnknown, because nobody else can know.

"By key": only if the handler takes a key, so that the other side can tell that it is the same write.
"""

from __future__ import annotations

from typing import Any

from zerver.core.effects import EffectKind
from zerver.core.values import value
from zerver.errors import (
    ConnectFailed,
    ConnectionLost,
    DatabaseDown,
    DriverClosed,
    EffectError,
    EffectRefused,
    EffectTimeout,
    OutcomeUnknown,
    Rejected,
    StatementError,
)

_REJECTED = (Rejected, StatementError)
_NOT_SENT = (ConnectFailed, EffectRefused, DriverClosed, DatabaseDown)


@value
class Judgement:
    """error: what a step would see. again: worth another try. trouble: the target is not well. doubt: it may have
    happened. timeout: it was cut by its own timeout, and took that long at least.
    """

    error: EffectError
    again: bool
    trouble: bool
    doubt: bool
    timeout: bool = False


def judge(kind: EffectKind[..., Any], raised: Exception) -> Judgement:
    """What an attempt of this kind came to, from what its handler raised."""
    passes = isinstance(raised, StatementError) and raised.passes
    if isinstance(raised, _REJECTED) and not passes:
        return Judgement(EffectError(kind.name, str(raised), raised), again=False, trouble=False, doubt=False)
    if isinstance(raised, _NOT_SENT) or passes:
        refused = raised if isinstance(raised, EffectRefused) else EffectRefused(kind.name, _told(raised), raised)
        return Judgement(refused, again=True, trouble=True, doubt=False)
    if kind.access == "write" and (not kind.exact or _says_unknown(raised)):
        unknown = raised if isinstance(raised, OutcomeUnknown) else OutcomeUnknown(kind.name, _told(raised), raised)
        return Judgement(unknown, again=kind.takes_key, trouble=True, doubt=True)
    error = raised if isinstance(raised, EffectError) else EffectError(kind.name, _told(raised), raised)
    return Judgement(error, again=True, trouble=True, doubt=False)


def judge_timeout(kind: EffectKind[..., Any], took: float, sent: bool) -> Judgement:
    """What an attempt came to that was cut after `took` seconds. sent: it may have happened by then."""
    reason = f"timed out after {took * 1000:.0f}ms"
    if sent:
        return Judgement(
            OutcomeUnknown(kind.name, reason), again=kind.takes_key, trouble=True, doubt=True, timeout=True
        )
    return Judgement(EffectTimeout(kind.name, reason), again=True, trouble=True, doubt=False, timeout=True)


def asked_to_wait(error: BaseException) -> float:
    """Seconds that the other side asked us to leave it alone for: the `retry_after` of the error, or of what caused it.

    A handler that reads a Retry-After header says so by raising an exception with that attribute.
    """
    for told in (error, getattr(error, "cause", None)):
        seconds = getattr(told, "retry_after", None)
        if isinstance(seconds, int | float) and seconds > 0:
            return float(seconds)
    return 0.0


def _says_unknown(raised: Exception) -> bool:
    """An exact kind says in so many words when nobody knows."""
    return isinstance(raised, OutcomeUnknown | ConnectionLost)


def _told(raised: Exception) -> str:
    return f"{type(raised).__name__}: {raised}" if str(raised) else type(raised).__name__
