"""Failures: where an error was raised, and what Python says of it, live or recorded; and a recorded one as an error.

Law: a recorded error says what the live one said, and `except` finds it. One of a class that is known is made without
its `__init__`; any other is of a class made for it, below the nearest base that is known.
"""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, cast

from zerver import errors
from zerver.core.frames import is_users
from zerver.errors import EffectError, InvalidData, JoinFailed
from zerver.trace.inert import PLACE, TRACE, inert_error_class


def said(tell: Callable[[Any], object], value: object) -> str:
    try:
        return str(tell(value))
    except Exception:  # user code, asked about a value that may be broken
        return ""


def shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # its repr is user code
        return f"<{type(value).__name__}>"


def _known_base(cls: type) -> type[Exception]:
    for base in cls.__mro__:
        if base.__module__ in ("builtins", "zerver.errors") and issubclass(base, Exception):
            return base
    return Exception


#: The nearest class of Zerver's or of Python's own: what `except` may have named.
known_base = cast("Callable[[type[Any]], type[Exception]]", lru_cache(maxsize=512)(_known_base))


def place_of(error: BaseException) -> tuple[str, int] | None:
    """File and line of the last line of the user's code in a traceback; None without one."""
    recorded = getattr(error, PLACE, None)
    if recorded is not None:
        return recorded  # type: ignore[no-any-return]  # set by whoever read it
    found = last = None
    at = error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        last = (code.co_filename, at.tb_lineno)
        if is_users(str(at.tb_frame.f_globals.get("__name__", "")), code.co_filename):
            found = last
        at = at.tb_next
    return found or last


def traceback_of(error: BaseException) -> str:
    """The traceback as Python prints it: of a live error, or as it was recorded; "" without one."""
    recorded = getattr(error, TRACE, None)
    if recorded is not None:
        return str(recorded)
    if error.__traceback__ is None:
        return ""
    try:
        return "".join(traceback.format_exception(error, limit=-50))
    except Exception:  # it asks the error, its causes and its notes for their texts
        return "".join(traceback.format_tb(error.__traceback__, limit=-50)) + type(error).__name__


# ---- recorded errors ------------------------------------------------------------------------


def revived_error(
    known: type | None, name: str, base: str, text: str, args: tuple[Any, ...], fields: Mapping[str, Any]
) -> Exception:
    """An error that says what the recorded one said. known: its class, if that is here. name, base: of its class, and
    of the nearest one that anybody knows.
    """
    ours = _OWN_MODULES.get(name.partition(":")[0])
    if known is not None and issubclass(known, Exception):
        made = _made(known, args, fields, called=ours is builtins)
        if made is not None and _is_sound(made) and (ours is None or said(str, made) == text):
            return made
    nearest = getattr(_OWN_MODULES.get(base.partition(":")[0]), base.rpartition(":")[2], None)
    if not isinstance(nearest, type) or not issubclass(nearest, Exception):
        nearest = Exception
    made = _made(inert_error_class(name, nearest), args, fields)
    if made is None or not _is_sound(made):  # a base that wants fields which are not there
        made = inert_error_class(name, Exception)()
        made.args = args
    vars(made)["__zerver_text__"] = text
    return made


_OWN_MODULES: Final = {"builtins": builtins, "zerver.errors": errors}


def _made(
    known: type[Exception], args: tuple[Any, ...], fields: Mapping[str, Any], called: bool = False
) -> Exception | None:
    """called: by its constructor, since a class of Python's keeps what it was given where nobody else gets at it."""
    try:
        made: Exception = known(*args) if called else known.__new__(known)
        made.args = args
        vars(made).update(fields)
    except Exception:  # arguments that the class refuses
        return None
    return made


def _is_sound(error: Exception) -> bool:
    """Whether an error of a class of ours has what its readers count on."""
    held = vars(error)
    if isinstance(error, InvalidData):
        problems = held.get("problems")
        return isinstance(problems, tuple) and all(isinstance(each, tuple) and len(each) == 2 for each in problems)
    if not isinstance(error, EffectError):
        return True
    if not isinstance(held.get("kind"), str) or not isinstance(held.get("reason"), str):
        return False
    if isinstance(error, JoinFailed) and not isinstance(held.get("failures"), tuple):
        return False
    return isinstance(held.setdefault("cause", None), BaseException | None)
