"""MODULE:APP: a wrong name is one line and status 2; an error of the module itself is its traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import SHOP, zerver


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nosuch:app", "there is no module 'nosuch' here or on PYTHONPATH"),
        ("shop.api:app", "there is no module 'shop.api' here or on PYTHONPATH"),
        ("./shop.py:app", "'./shop.py' is not the name of a module; write MODULE:APP, as shop.api:app"),
        (":app", "'' is not the name of a module; write MODULE:APP, as shop.api:app"),
        ("shop:nosuch", "shop:nosuch does not exist; there is shop:app, shop:other"),
        ("shop:nothing", "shop:nothing is a int, not an App; there is shop:app, shop:other"),
        ("json:app", "json:app does not exist; write MODULE:APP"),
    ],
)
def test_a_wrong_name_is_one_line(name: str, line: str, tmp_path: Path) -> None:
    ended = zerver(tmp_path, "routes", name, shop=SHOP)
    assert (ended.status, ended.out, ended.err) == (2, "", f"Error: {line}\n")


def test_the_attribute_is_app_by_default(tmp_path: Path) -> None:
    assert zerver(tmp_path, "routes", "shop", shop=SHOP).out == zerver(tmp_path, "routes", "shop:app").out != ""


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def app(:\n", "SyntaxError: invalid syntax"),
        ("import nosuch_library\n", "ModuleNotFoundError: No module named 'nosuch_library'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_in_the_module_shows_its_traceback(source: str, error: str, tmp_path: Path) -> None:
    ended = zerver(tmp_path, "check", "bad:app", bad=source)
    assert ended.status == 1
    assert 'bad.py", line 1' in ended.err
    assert ended.err.rstrip().endswith(error)
