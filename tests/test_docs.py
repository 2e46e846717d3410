"""Every block of the README and of docs/ does what the page says: programs run, commands answer as shown, links lead
somewhere, and the reference is what the docstrings say.

A page is one test, in a folder of its own; its blocks run from top to bottom.

    ```python                     a complete program
    ```python title="shop.py"     the same, kept under this name for the blocks after it; so for any language
    ```python title="a/file.py"   an excerpt of this file of the repository, word for word but for lines of `…`
    ```text title="output"        what the program before it prints
    ```console                    commands behind `$ `, and what they print. `zerver serve` goes on serving, and port
                                  8000 stands for the one it got; a block without commands is what it prints next

`…` in what is printed stands for any text, alone on its line for any lines. Times and ids may differ: a run's id that
stood in a line of output is, in the commands after it, the id that stood in the same line here. A command ends with
status 0, or prints `Error: `, or has its status behind it, as `# status 1`. `/tmp/` in a command is the folder's. A
chapter of the tutorial begins with the files of the chapters before it.
"""

from __future__ import annotations

import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from zerver.testing import normal

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "scripts" / "README.md"])
LIMIT = 120.0  # seconds for one command; none comes near

_FENCE = re.compile(r"^```([a-z]*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")

#: Lines of a timeline that are there when something took long enough to be worth one.
_FLEETING = re.compile(
    r"^(?:SLOW |\s*[\d.]+m?s +\S+ +(?:admitted after|request read in|its turn came|OVERRUN) ).*\n", re.MULTILINE
)

#: Commands that the page gives to somebody with a fresh clone, as what they come to once all is installed. The second
#: value: how often they may be tried. The demo's timeouts are real ones, and a machine may be busy with other tests.
_FRESH = {"scripts/demo": (f"{shlex.quote(sys.executable)} -m examples.checkout.demo", 3)}


#: Commands that read what a server keeps, which it writes a moment after it has answered: they may be tried again.
_KEPT = ("zerver trace", "zerver replay", "zerver diff")
_TRIES = 20

_STATUS = re.compile(r" # status (\d)$")
_RUN_ID = re.compile(r"req_[0-9a-f]{6,24}")
_WHOLE_ID = re.compile(r"req_[0-9a-f]{24}")


def _named(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- the tests ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_block_does_what_the_page_says(page: Path, tmp_path: Path) -> None:
    for earlier in _chapters_before(page):
        for block in _blocks(earlier):
            if block.title not in (None, "output") and not block.is_excerpt:
                (tmp_path / block.title).write_text(block.text)
    reader = _Reader(tmp_path)
    try:
        for block in _blocks(page):
            reader.read(block)
    finally:
        reader.close()


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{_named(page)} links to {link}, which is not there"
        assert not anchor or anchor in _anchors(target), f"{_named(page)} links to {link}: no such heading"


def test_the_commands_for_a_fresh_clone_are_what_the_test_takes_them_for() -> None:
    for script, (command, _) in _FRESH.items():
        assert " ".join(shlex.split(command)[1:]) in (ROOT / script).read_text()


def test_the_reference_is_what_the_docstrings_say() -> None:
    done = subprocess.run(
        [sys.executable, "docs/_generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run scripts/docs\n{done.stdout}{done.stderr}"


# ---- pages ----------------------------------------------------------------------------------


@attrs.frozen
class Block:
    """One fenced block. place: page and line, for messages."""

    place: str
    language: str
    title: str | None
    text: str

    @property
    def is_excerpt(self) -> bool:
        return self.title is not None and "/" in self.title


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(f"{_named(page)}:{line}", found[1], found[2], found[3])


def _chapters_before(page: Path) -> list[Path]:
    return [p for p in PAGES if p.parent == page.parent and p < page] if page.parent.name == "tutorial" else []


def _anchors(page: Path) -> set[str]:
    """What GitHub calls the page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# ---- reading a page as its reader would -----------------------------------------------------


class _Reader:
    """Does what one page says, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""  # by the last program
        self.server: _Server | None = None
        self.runs: dict[str, str] = {}  # from the id on the page to that of the run it stands for
        foreign = ("PYTEST_", "COV_", "ZERVER_", "ZER_VER_", "OTEL_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        bin_ = Path(sys.executable).parent
        self.environment = kept | {
            "PATH": f"{bin_}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "PYTHONDEVMODE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
            "COLUMNS": "120",
            "TMPDIR": str(folder),  # the demo leaves a trace file there
        }

    def close(self) -> None:
        if self.server is not None:
            self.server.close()

    def read(self, block: Block) -> None:
        if block.is_excerpt:
            self._excerpt(block)
            return
        if block.title == "output":
            self._compare(block, block.text, self.printed)
            return
        if block.title is not None:
            (self.folder / block.title).write_text(block.text)
        if block.language == "python":
            name = block.title or "program.py"
            (self.folder / name).write_text(block.text)
            self.printed, status = self._run([sys.executable, "-W", "error", name])
            assert status == 0, f"{block.place} ended with status {status}:\n{self.printed}"
        elif block.language == "console":
            self._console(block)

    def _excerpt(self, block: Block) -> None:
        source = (ROOT / str(block.title)).read_text()
        for part in re.split(r"^…\n", block.text, flags=re.MULTILINE):
            assert part in source, f"{block.place}: this is not in {block.title}:\n{part}"

    def _console(self, block: Block) -> None:
        before, commands = _commands(block.text)
        if before:
            assert self.server is not None, f"{block.place}: no server is running that could print this"
            self._compare(block, before, self.server.next_lines(before))
        for command, expected in commands:
            if command.startswith("zerver serve"):
                self._serve(block, command, expected)
                continue
            if command.startswith("curl") and shutil.which("curl") is None:
                pytest.skip("there is no curl on this machine")
            self._command(block, command, expected)

    def _command(self, block: Block, command: str, expected: str) -> None:
        script, tries = next((s for s in _FRESH if command.startswith(s)), ""), 1
        if command.startswith(_KEPT):
            tries = _TRIES
        told = _STATUS.search(command)
        cwd = self.folder
        # What stands on the page, before anything of this machine, as the interpreter's own path, stands in it.
        command = _RUN_ID.sub(lambda found: self._here(found[0]), command).replace("/tmp/", f"{self.folder}/")
        if script:
            replaced, tries = _FRESH[script]
            command, cwd = command.replace(script, replaced, 1), ROOT
        if self.server is not None:
            command = command.replace(":8000", f":{self.server.port}")
        while True:
            tries -= 1
            printed, status = self._run(["bash", "-c", command], cwd)
            try:
                self._compare(block, expected, printed)
            except AssertionError:
                if not tries:
                    raise
                time.sleep(0.0 if script else 0.1)
            else:
                break
        fits = status == int(told[1]) if told else (status != 0) == expected.startswith("Error: ")
        assert fits, f"{block.place}: `{command}` ended with status {status}:\n{printed}"
        self._remember(expected, printed)

    def _remember(self, expected: str, printed: str) -> None:
        """Which run here each run on the page is: by the first line with its id."""
        for line in expected.splitlines():
            for known in _WHOLE_ID.findall(line):
                like = re.compile(_pattern(_plain(line)))
                ours = (_WHOLE_ID.search(other) for other in printed.splitlines() if like.fullmatch(_plain(other)))
                found = next(filter(None, ours), None)
                if found is not None:
                    self.runs.setdefault(known, found[0])

    def _here(self, said: str) -> str:
        """The id, or its beginning, of the run that is meant by one on the page."""
        return next((ours[: len(said)] for page, ours in self.runs.items() if page.startswith(said)), said)

    def _serve(self, block: Block, command: str, expected: str) -> None:
        self.close()
        words = shlex.split(command.replace("--port 8000", "--port 0"))
        assert "--port" in words, f"{block.place}: let it serve on port 8000, which the test replaces"
        self.server = _Server(words, self.folder, self.environment)
        self._compare(block, expected, self.server.next_lines(expected))

    def _run(self, words: Sequence[str], cwd: Path | None = None) -> tuple[str, int]:
        done = subprocess.run(
            words, cwd=cwd or self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        return done.stdout, done.returncode

    def _compare(self, block: Block, expected: str, printed: str) -> None:
        pattern, actual = _pattern(_plain(expected)), _plain(printed)
        assert re.fullmatch(pattern, actual), f"{block.place} says\n{_plain(expected)}\nbut it was\n{printed}\n{actual}"


class _Server:
    """A `zerver serve` in the background."""

    def __init__(self, words: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        words = [str(Path(sys.executable).parent / words[0]), *words[1:]]
        self.process: subprocess.Popen[str] = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.port = "8000"
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def next_lines(self, like: str) -> str:
        """As many lines as there are in `like`, not counting those that may come or not."""
        lines: list[str] = []
        left = len(_FLEETING.sub("", like).splitlines())
        while left:
            line = self._lines.get(timeout=LIMIT)
            assert line, f"the server has ended; it said:\n{''.join(lines)}"
            lines.append(line)
            left -= not _FLEETING.match(line)
            if found := re.match(r"listening on http://127\.0\.0\.1:(\d+)", line):
                self.port = found[1]
        return "".join(lines)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(LIMIT)
        self._thread.join(LIMIT)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _listen(self) -> None:
        output: Any = self.process.stdout
        for line in output:
            if line.strip():  # an empty line ends each timeline; pages have none inside a block of one
                self._lines.put(line)
        self._lines.put("")


# ---- what may differ ------------------------------------------------------------------------


def _commands(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands before the first command, and each command with what it prints."""
    before, *rest = re.split(r"^\$ ", text, flags=re.MULTILINE)
    commands = []
    for part in rest:
        lines = part.splitlines(keepends=True)
        ends = next(i for i, line in enumerate(lines, 1) if not line.endswith("\\\n"))
        commands.append(("".join(lines[:ends]).strip(), "".join(lines[ends:])))
    return before, commands


def _plain(text: str) -> str:
    """Without what differs from run to run, and from folder to folder."""
    text = _FLEETING.sub("", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text.strip("\n"))
    text = re.sub(r"(?:/[\w.-]+)+/([\w-]+\.py)", r"\1", text)
    text = re.sub(r"\b(?:\d{4}-)?\d\d-\d\d \d\d:\d\d(?::\d\d(?:\.\d+)?)?\b", "THEN", text)
    # `normal` counts runs from the first it meets, which on a page need not be the first there was.
    text = re.sub(r"\b(run|uuid)#\d+", r"\1", normal(text, times=False))
    return re.sub(r"^ +_  ", "_  ", text, flags=re.MULTILINE)  # a time that took a digit more


def _pattern(expected: str) -> str:
    """Expected text as a regular expression: `…` is any text, and on a line of its own any lines."""
    lines = []
    for line in expected.splitlines():
        if line.strip() == "…":
            lines.append(r"(?:.*\n)*?")
        else:
            lines.append(r"[^\n]*".join(map(re.escape, line.split("…"))) + r"\n")
    return "".join(lines)
