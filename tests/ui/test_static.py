"""The page's files keep the policy that they are served under: no markup from data, nothing inline, nothing foreign."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import zerver.ui

STATIC = Path(zerver.ui.__file__).parent / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))
NAMES = [path.name for path in SCRIPTS]

#: What makes markup or code of a string.
DANGEROUS = (
    r"\binnerHTML\b", r"\bouterHTML\b", r"\binsertAdjacentHTML\b", r"\bdocument\.write", r"\beval\s*\(",
    r"\bnew\s+Function\b", r"\bsetHTML", r"\bDOMParser\b", r"\bcreateContextualFragment\b", r"\bsrcdoc\b",
    r"javascript:", r"\bset(?:Timeout|Interval)\(\s*[\"'`]", r"\.cookie\b", r"\bimport\s*\(",
)  # fmt: skip


def test_there_is_a_page() -> None:
    assert {"index.html", "app.css", "app.js"} <= {path.name for path in STATIC.iterdir()}


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
@pytest.mark.parametrize("pattern", DANGEROUS)
def test_no_script_makes_code_or_markup_of_text(path: Path, pattern: str) -> None:
    assert re.findall(pattern, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_every_script_says_what_it_is_and_fits_on_a_desk(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("// ")
    assert len(text.splitlines()) <= 500


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_no_attribute_is_set_that_the_policy_forbids(path: Path) -> None:
    """A style attribute is inline style; element.style is not."""
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"[{,]\s*style:|setAttribute\(\s*[\"'](?:style|on\w+)", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_every_import_is_one_of_ours_and_names_what_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    imports = re.findall(r"import (?:\* as \w+|\{([^}]+)\}) from \"\./([\w.]+)\"", text)
    assert len(imports) == len(re.findall(r"^import ", text, re.MULTILINE))
    for names, file in imports:
        exported = set(
            re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", (STATIC / file).read_text(), re.M)
        )
        asked = {name.split(" as ")[0].strip() for name in names.split(",") if name.strip()}
        assert asked <= exported, file
        assert all(len(re.findall(rf"\b{name}\b", text)) > 1 for name in asked), f"unused: {asked} of {file}"


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    found = set(re.findall(r"https?://[\w./-]+", path.read_text(encoding="utf-8")))
    assert found <= {"http://www.w3.org/2000/svg"}


def test_the_document_has_nothing_inline() -> None:
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    assert all("src=" in tag for tag in re.findall(r"<script\b[^>]*>", text))
    assert not re.findall(r"<style\b|\sstyle=|\son\w+=", text)
    assert text.startswith("<!doctype html>")
    assert '<html lang="en">' in text
