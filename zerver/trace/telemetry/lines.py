"""Lines: an event of the log as one line, for people or for programs.

Law: one event is one line, whatever is in it; only a traceback in a console has more, and each of these is escaped too.
What is masked by name, and every Secret, is a mask. A value that cannot show itself does not spoil the line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

from zerver.core.secret import MASK, Secret
from zerver.trace.describe import cut
from zerver.trace.hidden import Hidden, escaped

Form: TypeAlias = Literal["console", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]

#: What is logged: `event` says what happened, `level` and `time` (seconds since 1970) are there; the rest is free.
Event: TypeAlias = dict[str, Any]

TRACEBACK: Final[str] = "exception"

_FIRST: Final[tuple[str, ...]] = ("time", "level", "event")
_LONGEST: Final = 4_000  # characters of one value
_LONGEST_TRACEBACK: Final = 16_000
_MOST: Final = 50  # fields, and items of one value
_DEEPEST: Final = 4
_BEYOND_ASCII: Final = re.compile(r"[^ -~]")


def harmless(event: Mapping[str, Any], hidden: Hidden) -> Event:
    """The event as plain values, masked and bounded: made where it was logged, as values may change afterwards."""
    made: Event = {}
    for key, value in list(event.items())[:_MOST]:
        name = cut(str(key), 100)
        if name == TRACEBACK and isinstance(value, str):
            made[name] = cut(value.rstrip("\n"), _LONGEST_TRACEBACK)
        else:
            made[name] = MASK if hidden.hides(name) else _plain(value, hidden, 0)
    return made


def _plain(value: Any, hidden: Hidden, deep: int) -> Any:
    if value is None or isinstance(value, bool) or type(value) is int:
        return value if not isinstance(value, int) or value.bit_length() <= 256 else "a very large number"
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if type(value) is str:
        return cut(value, _LONGEST)
    if isinstance(value, Secret):
        return MASK
    if deep < _DEEPEST and type(value) in (list, tuple):
        return [_plain(item, hidden, deep + 1) for item in value[:_MOST]]
    if deep < _DEEPEST and type(value) is dict:
        items = ((cut(str(key), 100), item) for key, item in list(value.items())[:_MOST])
        return {key: MASK if hidden.hides(key) else _plain(item, hidden, deep + 1) for key, item in items}
    try:
        return cut(repr(value), _LONGEST)
    except Exception:  # its repr is user code
        return f"<{type(value).__name__}>"


def line_maker(form: Form, colors: bool = False) -> Callable[[Event], str]:
    """What makes a line of a harmless event, its end included. colors: for a terminal."""
    return _json_line if form == "json" else _console(colors)


def _json_line(event: Event) -> str:
    ordered = {key: event[key] for key in _FIRST if key in event}
    ordered["time"] = _clock(event)
    ordered |= {key: value for key, value in event.items() if key not in _FIRST}
    text = json.dumps(ordered, ensure_ascii=False, separators=(", ", ": "), allow_nan=False)
    return (text if text.isprintable() else _BEYOND_ASCII.sub(_spelled, text)) + "\n"


def _spelled(found: re.Match[str]) -> str:
    """A character that terminals might obey, as JSON may spell it."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def _console(colors: bool) -> Callable[[Event], str]:
    from structlog.dev import ConsoleRenderer, plain_traceback  # here: a process that does not log does not load it

    # The plain traceback: the rich one, structlog's default, shows local variables, and so every secret there is.
    render = ConsoleRenderer(colors=colors, sort_keys=False, exception_formatter=plain_traceback, timestamp_key="time")

    def line(event: Event) -> str:
        shown = {escaped(key): escaped(value) if isinstance(value, str) else value for key, value in event.items()}
        shown["time"] = _clock(event)
        if TRACEBACK in event:
            shown[TRACEBACK] = "\n".join(f"    {escaped(one)}" for one in event[TRACEBACK].split("\n"))
        return f"{render(None, str(event.get('level', 'info')), shown)}\n"

    return line


def _clock(event: Event) -> str:
    at = datetime.fromtimestamp(event.get("time", 0.0), UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
