"""Telling: a Story as text.

Law: a pure function of the Story, which is veiled already; nothing is decided here but where a line breaks.

    POST /v2/checkout  failed  [req_7a8f3c2b…]  replayed as recorded
      cart.load  (shop/steps.py:20)
        read     body = CheckoutBody(cart_id='cart_1')
        asked    1 sql.fetch_all lines  gave []
        decided  not_found: cart cart_1
    why
      FAILED not_found: cart cart_1 in cart.load; nothing to undo
    did not happen
      no committed effect in payment.charge (payments.charge): cart.load ended the run before: not_found: cart cart_1
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from zerver.trace.replaying.absent import Absence
from zerver.trace.replaying.story import Deed, Story, Told, ToldEffect, ToldStep
from zerver.trace.veil import escaped

_STATES: Final = {
    "done": "done",
    "kept": "done",
    "undone": "done, and undone",
    "unresolved": "UNRESOLVED",
    "to undo": "done, and to be undone: nobody knows how that goes",
}


def format_story(story: Story) -> str:
    """The text of a story, without a newline at its end."""
    return "\n".join(map(escaped, _lines(story)))


def _lines(story: Story) -> Iterator[str]:
    yield _header(story)
    yield from (f"note: {note}" for note in story.notes)
    if story.departure is not None and not story.changed:
        yield from str(story.departure).splitlines()
    yield from _block("given", _values("", story.given))
    for step in story.steps:
        yield from _step(step)
    if story.departure is not None and story.changed:
        yield "first difference"
        yield from (f"  {line}" for line in str(story.departure).splitlines())
    if story.open_end:
        yield f"the story ends here: {story.open_end}"
    if story.until:
        yield from _block("slots now", _values("", story.slots))
    yield from _block("why", story.causes)
    yield from _block("happened", map(_deed, story.deeds))
    yield from _block("did not happen", _absent(story.absent))


def _header(story: Story) -> str:
    timeline = story.recorded.timeline
    was = story.recorded.status if timeline.ending is not None else "under way"
    return f"{timeline.label or timeline.flow}  {was}  [{timeline.run_id}]  {_how(story, was)}"


def _how(story: Story, was: str) -> str:
    if not story.steps:
        return "nothing has run yet" if story.recorded.timeline.ending is None else "nothing ran"
    if not story.replayed:
        return "told from its record"
    stops = f"told up to {story.until}" if story.until else "nobody knows how it ends"
    if story.changed:
        ends = f"{was} as well" if story.ended == was else f"{story.ended}, and not {was}" if story.ended else stops
        return f"with another {', '.join(story.changed)}: {ends}"
    if story.faithful:
        return "replayed as recorded"
    return f"the code departs from the record: {story.ended or stops}"


def _block(title: str, lines: Iterable[str]) -> Iterator[str]:
    listed = list(lines)
    if listed:
        yield title
        yield from (f"  {line}" for line in listed)


def _values(verb: str, told: Iterable[Told]) -> Iterator[str]:
    for value in told:
        yield f"{verb}{value.name} = {value.text}{'  (changed)' if value.changed else ''}"


def _step(step: ToldStep) -> Iterator[str]:
    yield f"  {step.name}" + (f"  ({step.place})" if step.place else "")
    yield from (f"    {line}" for line in _values("read     ", step.reads))
    yield from (f"    asked    {_effect(effect)}" for effect in step.effects)
    if not step.wrote:
        yield f"    decided  {step.decided}"
    yield from (f"    {line}" for line in _values("wrote    ", step.wrote))


def _effect(effect: ToldEffect) -> str:
    many = f"  attempts {effect.attempts}" if effect.attempts > 1 else ""
    what = f"  [{effect.write}]" if effect.write and effect.write != "done" else ""
    return f"{effect.name} {effect.asked}  {effect.came_to}".rstrip() + many + what


def _absent(absent: Iterable[Absence]) -> Iterator[str]:
    """One line for all that did not happen for one reason."""
    groups: dict[str, list[str]] = {}
    for absence in absent:
        groups.setdefault(absence.text, []).append(f"{absence.step} ({absence.kind})")
    for text, where in groups.items():
        yield f"no committed effect in {', '.join(dict.fromkeys(where))}: {text}"


def _deed(deed: Deed) -> str:
    return f"{deed.step}: {deed.text}: {_STATES[deed.state]}"
