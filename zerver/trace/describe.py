"""Descriptions: an effect, a failure or a length of time, in the few words that fit a row.

Law: short and honest. A statement is named by its verb and tables, an exchange by its method, host and path, anything
else by its arguments, masked first and cut last. What is cut ends in "…".
"""

from __future__ import annotations

import re

from zerver.core.calls import Call
from zerver.core.decisions import Fail
from zerver.core.effects import Effect, EffectKind
from zerver.core.frames import short_place
from zerver.core.joins import Join
from zerver.core.offload import OffloadKind
from zerver.effects.http import Exchange
from zerver.errors import EffectError
from zerver.trace.facts import is_timeout
from zerver.trace.failures import place_of
from zerver.trace.veil import MASK, Veil

_ARGUMENTS = 40
_REASON = 160


def milliseconds(ns: int) -> str:
    """A length of time in a row: `1.9ms`; `12.3s` from ten seconds on, `2h05m` from ten minutes on."""
    if ns < 10_000_000_000:
        return f"{ns / 1e6:.1f}ms"
    if ns < 600_000_000_000:
        return f"{ns / 1e9:.1f}s"
    minutes = ns // 60_000_000_000
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def briefly(ns: int) -> str:
    """The same in a sentence: `88ms`."""
    return f"{ns / 1e6:.0f}ms" if 10_000_000 <= ns < 10_000_000_000 else milliseconds(ns)


# ---- effects --------------------------------------------------------------------------------


def effect(asked: Effect[object], veil: Veil, step: str) -> str:
    """What was asked for: `sql.fetch_one users`, `http.post payments/charges`, `payments.charge(1200, 'user_1')`."""
    kind = asked.kind.name
    if isinstance(asked, Join):
        return _join(asked, veil, step)
    if veil.hides(step):
        return f"{kind}({MASK})"
    room = kind.partition(".")[0]
    if isinstance(asked.kind, OffloadKind):  # its arguments are what the slots held
        return kind
    try:
        if room == "sql":
            return f"{kind} {_statements(asked, veil)}".rstrip()
        first = asked.args[0] if asked.args else None
        if isinstance(first, Exchange):
            return _exchange(first, veil)
        if room == "kv" and isinstance(first, str):
            return f"{kind} {cut(veil.text(first), _ARGUMENTS)}"
    except Exception:  # a user's kind may borrow the room's name, with arguments of its own
        pass
    return f"{kind}({_arguments(asked, veil)})"


def target(asked: Effect[object]) -> str:
    """What the effect talks to, as `payments`."""
    try:
        return asked.target or asked.kind.name
    except Exception:  # a kind's target may be a function of the arguments, and that is user code
        return asked.kind.name


def cut(text: str, length: int) -> str:
    """The text, or its beginning and "…"."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _join(join: Join[object], veil: Veil, step: str) -> str:
    rule = join.rule
    if rule.name == "hedge":
        after = rule.after if isinstance(rule.after, str) else briefly(int(rule.after * 1e9))
        return f"{effect(join.members[0], veil, step)}  hedge after {after}"
    if rule.name == "quorum":
        return f"join.quorum {rule.k} of {len(join.members)}"
    return f"join.{rule.name} of {len(join.members)}"


def _exchange(exchange: Exchange, veil: Veil) -> str:
    rest = exchange.url.partition("://")[2].partition("#")[0]
    rest, _, query = rest.partition("?")
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2]  # never who logs in
    where = cut(veil.text(host + slash + path), 2 * _ARGUMENTS)
    return f"http.{exchange.method.lower()} {where}{'?…' if query else ''}"


_TABLE = re.compile(r"""\b(?:from|into|update|join|table|replace\s+into)\s+([\w."`\[\]‹›]+)""", re.IGNORECASE)
_NOISE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)


def _statements(asked: Effect[object], veil: Veil) -> str:
    if all(isinstance(member, Effect) for member in asked.args) and asked.args:
        return cut(" + ".join(_statement(member, veil, verb=True) for member in asked.args), 2 * _ARGUMENTS)
    return _statement(asked, veil, verb=asked.kind.access == "write")


def _statement(asked: Effect[object], veil: Veil, verb: bool) -> str:
    """`update stock`: the verb and the first table; the text itself stays out, it may be long and is in the code."""
    text = next(arg for arg in asked.args if isinstance(arg, str))
    bare = veil.text(_NOISE.sub(" ", text).strip())
    word = bare.split(None, 1)[0].lower() if bare else ""
    tables = list(dict.fromkeys(_TABLE.findall(bare)))
    return cut(" ".join([word, *tables[:1]] if verb or word != "select" or not tables else tables[:2]), _ARGUMENTS)


def _arguments(asked: Effect[object], veil: Veil) -> str:
    shown = [_shown(arg) for arg in asked.args] + [f"{name}={_shown(value)}" for name, value in asked.kwargs.items()]
    return cut(veil.text(", ".join(shown)).replace(f"{veil.run_id}:", "…:"), _ARGUMENTS)


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # its repr is user code, and the reader wants the rest of the timeline
        return f"<{type(value).__name__}>"


def key(call: Call, run_id: str) -> str:
    """The idempotency key in a row: the run's id, which the header has, is left out."""
    text = call.key
    if isinstance(call.effect, Join):  # a hedge: its one member carries the key
        text = Call(run_id, call.step, f"{call.ordinal}.0", call.effect.members[0]).key
    return text.replace(f"{run_id}:", "…:", 1) if text.startswith(f"{run_id}:") else text


def named(make: object) -> str:
    """The kind that a compensation's constructor makes, as far as can be told without calling it."""
    return make.name if isinstance(make, EffectKind) else ""


# ---- failures -------------------------------------------------------------------------------


def message(error: BaseException, veil: Veil, step: str = "") -> str:
    """What an exception says, on one line."""
    if isinstance(error, EffectError):
        return f"{error.kind}: {reason(error, veil, step)}"
    name = type(error).__name__
    if veil.hides(step):
        return f"{name}: {MASK}"
    try:
        text = str(error)
    except Exception:  # its __str__ is user code
        text = ""
    return cut(veil.text(f"{name}: {text}" if text else name), _REASON)


def reason(error: EffectError, veil: Veil, step: str = "") -> str:
    """Why an effect failed; the first line, as the second one of ours is the cure."""
    if veil.hides(step) and not is_timeout(error):
        return MASK
    return cut(veil.text(error.reason.partition("\n")[0]), _REASON)


def fail(decided: Fail, veil: Veil, step: str = "") -> str:
    """`cart: sold out (conflict cart_soldout)`, or `conflict: cart cart_soldout` when it has no detail."""
    if veil.hides(step):
        return f"{decided.kind}: {decided.what}"
    about = f"{decided.what} {decided.key}" if decided.key is not None else decided.what
    if decided.detail is None:
        return veil.text(f"{decided.kind}: {about}")
    return cut(veil.text(f"{decided.what}: {decided.detail} ({decided.kind} {about})"), _REASON)


def place(error: BaseException) -> str:
    """The last line of the user's code in a traceback: `shop/steps.py:12`; "" when there is none."""
    at = place_of(error)
    return short_place(*at) if at is not None else ""
