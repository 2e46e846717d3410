"""Frames: whose code a line is.

Law: a reader looks for lines of his own. What belongs to Zerver, the standard library or an installed package is not
the user's; when nothing is, the last line there is has to do.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Final

#: Whose frames are not the user's.
_NOT_USERS: Final = frozenset({"zerver"}) | (sys.stdlib_module_names - {"__main__"})


def is_users(module: str, file: str) -> bool:
    """Whether code of this module, in this file, is the user's."""
    return module.partition(".")[0] not in _NOT_USERS and "site-packages" not in file and not file.startswith("<")


def short_place(file: str, line: int) -> str:
    """`shop/steps.py:12`: the file and its folder are enough to find it."""
    return f"{'/'.join(file.replace(chr(92), '/').split('/')[-2:])}:{line}"


def defined_at(code: CodeType) -> str:
    """Where a function begins."""
    return short_place(code.co_filename, code.co_firstlineno)


def at_work(frame: FrameType | None) -> str:
    """The innermost line of the user's that a stack is at; its innermost line at all if there is none."""
    innermost = "" if frame is None else short_place(frame.f_code.co_filename, frame.f_lineno)
    while frame is not None:
        if is_users(str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename):
            return short_place(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return innermost
