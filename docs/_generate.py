"""The reference, made from docstrings: one page for each room, from the public names of its __init__.

Law: this file writes no prose. What a page says stands in the code, and is mended there. `scripts/docs` writes the
pages; `pages()` is what the test compares with those in the repository.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import click
from click.testing import CliRunner

from zerver.cli.main import main as command

FOLDER = Path(__file__).parent / "reference"

#: From the page to the module it is about; a module of `effects` is a section of one page.
ROOMS: Mapping[str, tuple[str, ...]] = {
    "zerver": ("zerver",),
    "effects": tuple(f"zerver.effects.{name}" for name in ("sql", "http", "kv", "queue", "clock", "random")),
    "runtime": ("zerver.runtime",),
    "http": ("zerver.http",),
    "sql": ("zerver.sql",),
    "kv": ("zerver.kv",),
    "journal": ("zerver.journal",),
    "journal-port": ("zerver.runtime.journal",),
    "jobs": ("zerver.jobs",),
    "jobs-port": ("zerver.jobs.port",),
    "trace": ("zerver.trace",),
    "observing": ("zerver.observing",),
    "ui": ("zerver.ui",),
    "edge": ("zerver.edge",),
    "serve": ("zerver.serve",),
    "asgi": ("zerver.asgi",),
    "testing": ("zerver.testing",),
}

_STARS: Mapping[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}

_JOINS = ("all", "settle", "race", "quorum", "hedge")

_MADE = "<!-- Made by scripts/docs from the docstrings; change those. -->\n"


def pages() -> dict[str, str]:
    """Every page of the reference, by file name."""
    made = {f"{page}.md": _room(modules) for page, modules in ROOMS.items()}
    made["errors.md"] = _law("zerver.errors") + "".join(_members("zerver.errors"))
    made["timeline.md"] = _law("zerver.core.timeline") + "".join(_members("zerver.core.timeline"))
    made["cli.md"] = "# The command line\n\n" + "".join(_commands())
    titled = made | {page.name: page.read_text() for page in _written_by_hand()}
    listed = [(name, re.search(r"^# (.*)$", text, re.MULTILINE)) for name, text in sorted(titled.items())]
    links = "".join(f"- [{title[1] if title else name}]({name})\n" for name, title in listed)
    made["README.md"] = f"# Reference\n\n{links}"
    return {name: _MADE + re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n" for name, text in made.items()}


def _written_by_hand() -> list[Path]:
    """Pages beside those made here, as that of the limits, which a test of its own compares with the code."""
    return [page for page in sorted(FOLDER.glob("*.md")) if not page.read_text().startswith(_MADE)]


# ---- modules --------------------------------------------------------------------------------


def _room(modules: tuple[str, ...]) -> str:
    if len(modules) == 1:
        return _law(modules[0]) + "".join(_members(modules[0]))
    package = _law(modules[0].rpartition(".")[0])
    return package + "".join(f"{_law(name)}{''.join(_members(name))}" for name in modules)


def _law(module: str) -> str:
    return f"# {module}\n\n{_prose(importlib.import_module(module).__doc__)}\n\n"


def _members(module: str) -> Iterator[str]:
    """The public names: what an __init__ imports `as` itself, or what a plain module defines."""
    loaded = importlib.import_module(module)
    tree = ast.parse(inspect.getsource(loaded))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and hasattr(loaded, "__path__"):
            for alias in node.names:
                if alias.asname is not None:
                    yield _entry(alias.asname, getattr(loaded, alias.asname), str(node.module))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            yield _entry(node.name, getattr(loaded, node.name), module)


# ---- names ----------------------------------------------------------------------------------


def _entry(name: str, value: Any, module: str) -> str:
    title = f"## {name}\n\n"
    if inspect.ismodule(value):  # zerver.join
        return "".join(_entry(f"{name}.{inner}", getattr(value, inner), value.__name__) for inner in _JOINS)
    if inspect.isclass(value):
        own = "" if (value.__doc__ or "").startswith(f"{name}(") else _prose(value.__doc__)
        return f"{title}{_signature(name, value)}{own}\n\n{''.join(_methods(value))}"
    if inspect.isfunction(value):
        return f"{title}{_signature(name, value)}{_prose(inspect.getdoc(value))}\n\n"
    return f"{title}{_comment(name, module)}\n\n"


def _comment(name: str, module: str) -> str:
    """The `#:` comment of a value, which cannot have a docstring."""
    source = inspect.getsource(importlib.import_module(module))
    found = re.search(rf"((?:^#: ?.*\n)+)^{name}\b", source, re.MULTILINE)
    return re.sub(r"^#: ?", "", found[1], flags=re.MULTILINE).strip() if found else ""


def _methods(class_: type) -> Iterator[str]:
    for name, value in vars(class_).items():
        if name.startswith("_") or not (inspect.isroutine(value) or isinstance(value, property)):
            continue
        function = value.fget if isinstance(value, property) else getattr(class_, name)
        if doc := inspect.getdoc(function):
            word = "async " if inspect.iscoroutinefunction(function) else ""
            shown = f".{name}" if isinstance(value, property) else f"{word}.{name}{_parameters(function)}"
            yield f"**`{shown}`**\n\n{_prose(doc)}\n\n"


def _signature(name: str, value: Any) -> str:
    if inspect.isclass(value) and issubclass(value, Exception):
        return f"```text\nclass {name}({value.__bases__[0].__name__})\n```\n\n"
    word = "class" if inspect.isclass(value) else "async def" if inspect.iscoroutinefunction(value) else "def"
    if word == "def" and _opened(value) is not None:
        word = "async with"
    return f"```text\n{word} {name}{_parameters(value, wide=len(name) + len(word))}\n```\n\n"


def _opened(function: Any) -> str | None:
    """What an async context manager gives to its block; None for a function that makes none."""
    gives = getattr(function, "__annotations__", {}).get("return")
    kinds = "Iterator|Generator" if inspect.isasyncgenfunction(inspect.unwrap(function)) else "ContextManager"
    found = (
        re.fullmatch(rf"(?:Abstract)?Async(?:{kinds})\[(.*?)(?:, None)?\]", gives) if isinstance(gives, str) else None
    )
    return found[1] if found else None


def _parameters(value: Any, wide: int = -1000) -> str:
    """(a: int, *, b: str = "x") -> T. wide: what stands before it; a line that gets too long is broken up."""
    if getattr(value, "_is_protocol", False):
        return ""
    signature = inspect.signature(value)
    shown: list[str] = []
    seen: set[Any] = set()
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not seen & {parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL}:
            shown.append("*")
        if parameter.kind is not parameter.POSITIONAL_ONLY and parameter.POSITIONAL_ONLY in seen and "/" not in shown:
            shown.append("/")
        seen.add(parameter.kind)
        stars = _STARS.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
        shown.append(f"{stars}{parameter.name}{_annotation(': ', parameter.annotation)}{default}")
    opened = None if inspect.isclass(value) or inspect.isasyncgenfunction(value) else _opened(value)
    gives = "" if inspect.isclass(value) else _annotation(" -> ", signature.return_annotation)
    if opened is not None:
        gives = "" if opened == "None" else f" as {opened}"
    line = f"({', '.join(shown)}){gives}"
    return line if wide + len(line) <= 100 else "(\n" + "".join(f"    {one},\n" for one in shown) + f"){gives}"


def _annotation(before: str, annotation: Any) -> str:
    if annotation in (inspect.Signature.empty, None, "None"):
        return ""
    return before + (annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def _default(value: object) -> str:
    """A default as it was written, but for those that have no short form."""
    shown = f'"{value}"' if isinstance(value, str | PurePath) else repr(value)
    return "…" if shown.startswith("<") or " at 0x" in shown or len(shown) > 40 or shown == "NOTHING" else shown


def _commands() -> Iterator[str]:
    with command.make_context("zerver", [], resilient_parsing=True) as context:
        for name in command.list_commands(context):
            yield from _help(name, command.get_command(context, name), context, "##")


def _help(words: str, of: click.Command | None, context: click.Context, heading: str) -> Iterator[str]:
    """What `--help` says of a command, and of those below it."""
    shown = CliRunner().invoke(command, [*words.split(), "--help"], prog_name="zerver", terminal_width=100).output
    yield f"{heading} zerver {words}\n\n```text\n{shown.rstrip()}\n```\n\n"
    if isinstance(of, click.Group):
        for name in of.list_commands(context):
            yield from _help(f"{words} {name}", of.get_command(context, name), context, "###")


# ---- text -----------------------------------------------------------------------------------


def _prose(doc: str | None) -> str:
    """A docstring as Markdown: its examples and tables, indented or wide with blanks, become blocks of text."""
    lines: list[str] = []
    inside = False
    for line in inspect.cleandoc(doc or "").splitlines():
        indented = line.startswith("    ") or re.search(r"\S {3,}\S", line) is not None
        if indented and not inside:
            lines.append("```text")
        elif inside and line and not indented:
            while lines[-1] == "":
                lines.pop()
            lines += ["```", ""]
        inside = indented or (inside and not line)
        lines.append(line[4:] if line.startswith("    ") else line)
    while lines and lines[-1] == "":
        lines.pop()
    return "\n".join([*lines, "```"] if inside else lines)


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; status 1 when a page is out of date.")
def main(check: bool) -> None:
    """Make docs/reference."""
    made = pages()
    FOLDER.mkdir(exist_ok=True)
    stale = [name for name, text in made.items() if not (FOLDER / name).exists() or (FOLDER / name).read_text() != text]
    left = [page for page in FOLDER.glob("*.md") if page.name not in made and page not in _written_by_hand()]
    stale += [page.name for page in left]
    if check:
        print(*(f"out of date: {name}" for name in stale), sep="\n")
        sys.exit(bool(stale))
    for page in left:
        page.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
