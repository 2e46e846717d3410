"""Golden texts: what a run looked like once, kept in a file, and compared ever after.

Law: only what differs from run to run is replaced, and the same thing always by the same name, so that a golden text
still tells which run and which key is meant. Nothing is accepted silently: a missing file is a mismatch too.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

from zerver.core.timeline import Timeline
from zerver.runtime.result import Result
from zerver.trace.text import format_timeline

#: Set to "write" to accept what the tests produce.
SWITCH = "ZERVER_GOLDEN"

_CHANGING = {
    "run": re.compile(r"\breq_[0-9a-f]{8,24}(?![0-9a-f])…?"),
    "uuid": re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE),
}
_TIME = re.compile(r"(?<![\w.#])\d+(?:\.\d+)?(?:ms|µs|s)(?!\w)|(?<![\w.#])\d+[hm]\d*m?(?!\w)")
_ACCOUNTS = re.compile(r"^(total .*?)= .*$", re.MULTILINE)
_PADDING = re.compile(r"(?<=\S) {2,}|^ +", re.MULTILINE)


class GoldenMismatch(AssertionError):
    """A text is not what its golden file says; the message holds the difference and how to accept it."""


def normal(shown: str | Timeline | Result, *, times: bool = True) -> str:
    """A text, or a timeline as text, without what differs from run to run. Ends in one newline.

    Ids of runs become run#1, run#2 … in order of appearance, and keys, which begin with the run's id, follow; UUIDs
    become uuid#1 …. times: keep them, since a mock clock makes them exact; False makes each of them `_` and leaves out
    the accounts and the padding of columns, for programs on a real clock.
    """
    if isinstance(shown, Result):
        text = format_timeline(shown.timeline, unresolved=shown.unresolved)
    else:
        text = format_timeline(shown) if isinstance(shown, Timeline) else shown
    for word, pattern in _CHANGING.items():
        text = pattern.sub(_numbered(word), text)
    if not times:
        text = _PADDING.sub("  ", _TIME.sub("_", _ACCOUNTS.sub(r"\1", text)))
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n") + "\n"


def check_golden(actual: str | Timeline | Result, path: str | os.PathLike[str], *, times: bool = True) -> None:
    """Compare with the file at `path`, both made `normal`. With ZERVER_GOLDEN=write, write the file instead.

    Raises GoldenMismatch (an AssertionError) with a unified diff when they differ, or when there is no such file.
    """
    file, text = Path(path), normal(actual, times=times)
    if os.environ.get(SWITCH) == "write":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return
    golden = file.read_text(encoding="utf-8") if file.exists() else None
    if golden == text:
        return
    difference = "\n".join(
        difflib.unified_diff(
            (golden or "").splitlines(), text.splitlines(), f"{file.name} (golden)", f"{file.name} (now)", lineterm=""
        )
    )
    problem = f"there is no golden file {file}" if golden is None else f"this is not what {file} says"
    raise GoldenMismatch(f"{problem}\n{difference}\n  if it is right, accept it: {SWITCH}=write and run the test again")


def _numbered(word: str) -> Callable[[re.Match[str]], str]:
    """Names things in order of appearance; a shortened id is the same thing as the whole one."""
    seen: list[str] = []

    def name(match: re.Match[str]) -> str:
        found = match.group().rstrip("…").lower()
        for number, known in enumerate(seen):
            if known.startswith(found) or found.startswith(known):
                return f"{word}#{number + 1}"
        seen.append(found)
        return f"{word}#{len(seen)}"

    return name
