"""The pictures of the live page: an app is served, does what is worth seeing, and a headless Chromium looks at it."""

from __future__ import annotations

import base64
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click

sys.path.insert(0, str(Path(__file__).parents[2]))  # the app, the server and the browser are those of the tests

from tests.ui import gallery
from tests.ui.browser import Browser, open_browser
from tests.ui.serving import Served, open_served
from tests.ui.workshop import Mail, Workshop, settled
from zerver import Flow
from zerver.jobs import enqueue
from zerver.journal import open_journal

IMAGES = Path(__file__).parents[2] / "docs" / "explanation" / "images"
MOST_BYTES = 150_000


@attrs.frozen
class Picture:
    """hash: of the page, with {names} of runs. ready: what must be there, as CSS. act: a script before the picture."""

    name: str
    hash: str
    ready: str
    scheme: str = "light"
    width: int = 1280
    height: int = 760
    act: str = ""
    acted: str = ""


PICTURES = (
    Picture("list", "#/runs", ".runs tbody tr:nth-child(12)"),
    Picture("waterfall", "#/runs/{soldout}?span=20", ".waterfall [data-kind=undo]", height=790),
    Picture("waterfall-dark", "#/runs/{slow}?span=14", ".waterfall [data-status=failed]", "dark", height=860),
    Picture("graph", "#/runs/{soldout}/graph", ".dag .node", "dark", height=900),
    Picture("slots", "#/runs/{soldout}/slots", "table.table", height=560),
    Picture("replay", "#/runs/{soldout}/replay", "textarea[name=stock]", height=1000,
            act="const one = document.querySelector('textarea[name=stock]'); one.value = '3';"
                "one.dispatchEvent(new Event('input')); document.querySelector('form.replay').requestSubmit()",
            acted=".verdict"),
    Picture("diff", "#/diff?a={clean}&b={soldout}", ".diff li"),
    Picture("admission", "#/admission", "table"),
    Picture("phone", "#/runs/{slow}", ".waterfall [role=treeitem]", width=360, height=740),
)  # fmt: skip


#: Those of an app with jobs and a journal.
WORKING = (
    Picture("jobs", "#/jobs", ".runs tbody tr:nth-child(12)"),
    Picture("cases", "#/cases", ".case:nth-child(2)", height=330),
    Picture("parked", "#/runs/job_{signed}.1", ".waterfall [role=treeitem]", "dark", height=520),
)


@click.command()
@click.argument("directory", default=str(IMAGES), type=click.Path(file_okay=False, path_type=Path))
def main(directory: Path) -> None:
    """Write the pictures as page-*.png."""
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder)) as browser:
        with open_served(gallery.app) as served:
            _draw_all(browser, served, PICTURES, _play(served), directory)
        shop = Workshop()
        journal = partial(open_journal, "sqlite:///shop.journal", keep_secrets=True)
        with chdir(folder), open_served(shop.app, journal) as served:
            _draw_all(browser, served, WORKING, _work(served, shop), directory)


def _play(served: Served) -> dict[str, str]:
    """Something of everything; the ids of the runs that are looked at."""
    runs = {}
    for how in ("clean", "broken", "late", "soldout", "slow"):
        runs[how] = served.run("POST", "/checkout", {"cart": "tea", "how": how})
        served.run("GET", "/home")
    for how in ("clean", "clean", "soldout"):
        served.run("POST", "/checkout", {"cart": "ink", "how": how})
    return runs


def _work(served: Served, shop: Workshop) -> dict[str, str]:
    """Jobs of every fate, and two orders of which the bank takes nothing back; the ids of the jobs."""
    runtime = served.serving.runtime
    ids: dict[str, str] = {}

    def order(name: str, state: str, flow: Flow, body: object = None, **options: Any) -> None:
        ids[name] = served.do(partial(enqueue, runtime, flow, body, **options))
        served.do(settled, runtime, ids[name], state)

    for name in ("grace", "alan", "edsger", "barbara", "niklaus"):
        order(name, "done", shop.letter, Mail(name), tenant="acme")
    order("refused", "dead", shop.letter, Mail("nobody", "refused"))
    order("broken", "dead", shop.letter, Mail("ada", "broken"), tenant="acme")
    order("tokens", "dead", shop.tokens, Mail("bob"))
    order("waits", "running", shop.letter, Mail("donald", "waits"))
    order("signed", "parked", shop.contract)
    for name in ("leslie", "tony", "frances"):
        order(name, "scheduled", shop.letter, Mail(name), delay=86_400.0)
    for number in (41, 42):
        served.ask("POST", f"/orders/{number}", {})
    served.do(runtime.signal, f"job_{ids['signed']}.1", "signed", "Ada")
    served.do(settled, runtime, ids["signed"], "done")
    return ids


def _draw_all(
    browser: Browser, served: Served, pictures: Sequence[Picture], names: dict[str, str], directory: Path
) -> None:
    browser.open(served.url)
    browser.has("#live-word", "live")
    for picture in pictures:
        _draw(browser, picture, names, directory / f"page-{picture.name}.png")
    browser.open("about:blank")


def _draw(browser: Browser, picture: Picture, runs: dict[str, str], place: Path) -> None:
    browser.scheme(picture.scheme)
    browser.size(picture.width, picture.height)
    browser.go(picture.hash.format(**runs))
    browser.has(picture.ready)
    if picture.act:
        browser.script(picture.act)
        browser.has(picture.acted)
    # Two frames: one for the layout, one for what is drawn on it.
    browser.driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 200)))"
    )
    shot = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "optimizeForSpeed": False})
    place.write_bytes(base64.b64decode(shot["data"]))
    size = place.stat().st_size
    click.echo(f"{place.name}  {size:,} bytes")
    if size > MOST_BYTES:
        raise click.ClickException(f"{place.name} has more than {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    main()
