"""The veil: keeps secrets, and bytes that terminals obey, out of text.

Law: what a secret slot held, a cookie or an Authorization header, is shown nowhere: whatever contains it is masked
before it is cut, so that no half of it is left. A step whose secret no record knows (it failed before it wrote it)
shows nothing of what it asked for. Over-masking is a nuisance, under-masking is a leak: in doubt, mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, cast
from urllib.parse import quote, quote_plus

import attrs

from zerver.core.plan import StepNode
from zerver.trace.facts import Facts

MASK = "‹secret›"

_SENSITIVE = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"})
_MOST_FORMS = 5_000
_DEEPEST = 8


class Veil:
    """What must not be shown of one run."""

    def __init__(self, facts: Facts) -> None:
        self.run_id = facts.timeline.run_id
        self._hidden: set[str] = set()
        self._known: set[str] = set()
        secret = facts.timeline.secret
        found: list[object] = [*_sensitive_parts(facts)]
        if secret:
            found += self._written(facts, secret)
            self._hide(facts, secret)
        self._pattern = _pattern(found)

    def text(self, text: str) -> str:
        """The text with every secret in it masked."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def hides(self, step: str) -> bool:
        """Whether nothing may be shown of what this step asked for or failed with."""
        return step in self._hidden

    def _written(self, facts: Facts, secret: frozenset[str]) -> Iterator[object]:
        """The values of secret slots: written by steps, or brought by the caller."""
        for record in facts.timeline.records:
            if record[0] == "step" and isinstance(record[2], StepNode):
                writes = record[2].step.signature.writes
                if not any(write.slot.name in secret for write in writes):
                    continue
                answer = record[3][1]
                values = answer if record[2].write == -2 and isinstance(answer, tuple) else (answer,)
                for write, value in zip(writes, values, strict=False):
                    if write.slot.name in secret and facts.step(record[2].name).ok:
                        self._known.add(write.slot.name)
                        yield value
        if facts.plan is not None and facts.inputs:
            for slot, value in zip(facts.plan.takes, facts.inputs[1], strict=False):
                if slot.name in secret:
                    self._known.add(slot.name)
                    yield value

    def _hide(self, facts: Facts, secret: frozenset[str]) -> None:
        """Steps that touch a secret no record knows, and steps of which no record says what they touch."""
        shown = set()
        for node in facts.nodes:
            signature = node.step.signature
            touched = {read.slot.name for read in signature.slots} | {write.slot.name for write in signature.writes}
            if not (touched & secret) - self._known:
                shown.add(node.name)
        self._hidden = set(facts.steps) - shown


def escaped(text: str) -> str:
    """The text on one line of printable characters: newlines, ESC and bidirectional marks are spelled out.

    A tenant, a path or an error message comes from outside; it must neither forge a line nor speak to a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


# ---- what is secret -------------------------------------------------------------------------


def _sensitive_parts(facts: Facts) -> Iterator[object]:
    if facts.plan is None or not facts.inputs:
        return
    for read, value in zip(facts.plan.parts, facts.inputs[0], strict=False):
        if read.part.source == "cookie" or read.name.lower().replace("_", "-") in _SENSITIVE:
            yield value


def _pattern(values: list[object]) -> re.Pattern[str] | None:
    """One pattern for every form in which these values, or what they are made of, may stand in a text."""
    forms: set[str] = set()
    for value in values:
        for leaf in _leaves(value, 0):
            forms.update(_forms(leaf))
            if len(forms) > _MOST_FORMS:
                return re.compile(".+", re.DOTALL)
    # A short form is masked only as a word of its own: a secret "1" must not take every digit along.
    words = [
        re.escape(form) if len(form) >= 4 else rf"(?<!\w){re.escape(form)}(?!\w)"
        for form in sorted(forms, key=lambda form: (-len(form), form))
        if form.strip()
    ]
    return re.compile("|".join(words)) if words else None


def _leaves(value: object, deep: int) -> Iterator[object]:
    if value is None or isinstance(value, bool | Enum) or deep > _DEEPEST:
        return
    yield value
    inner: Any = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        inner = value
    elif attrs.has(type(value)):
        inner = [getattr(value, field.name, None) for field in attrs.fields(cast("Any", type(value)))]
    elif not isinstance(value, str | bytes | int | float):
        inner = list(getattr(value, "__dict__", {}).values())
    for item in inner:
        yield from _leaves(item, deep + 1)


def _forms(leaf: object) -> Iterator[str]:
    if isinstance(leaf, bytes | bytearray):
        yield repr(bytes(leaf))[2:-1]
        leaf = bytes(leaf).decode("utf-8", "replace")
    if isinstance(leaf, str):
        # "Bearer abc" is handed on as "abc".
        for text in (leaf, *(word for word in leaf.split() if len(word) >= 8)):
            yield from (text, repr(text)[1:-1], quote(text), quote(text, safe=""), quote_plus(text), escaped(text))
        return
    for show in (repr, str):
        try:
            yield show(leaf)
        except Exception:  # an object that cannot show itself shows nothing
            continue
