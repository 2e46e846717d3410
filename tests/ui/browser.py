"""A headless Chromium, and what a reader does with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 20.0  # seconds after which something does not come any more


class Browser:
    """One window. What is waited for is a condition, never a time."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def go(self, hash_: str) -> None:
        self.script("location.hash = arguments[0]", hash_)

    @property
    def hash(self) -> str:
        return str(self.script("return location.hash"))

    def script(self, text: str, *args: Any) -> Any:
        return self.driver.execute_script(text, *args)

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Until the condition is true; elements that are drawn again meanwhile are looked for again."""
        waiting = WebDriverWait(self.driver, PATIENCE, 0.02, [StaleElementReferenceException])
        try:
            return waiting.until(lambda _: condition())
        except TimeoutException:
            shown = f"{self.driver.current_url}\n{self.script('return document.body.innerText')}"
        raise AssertionError(f"it did not come; what is shown is {shown}\n{self.complaints()}")

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def texts(self, css: str) -> list[str]:
        """The texts of elements, in one look: a page that is drawn again does not come between."""
        found = self.script("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", css)
        return [str(text) for text in found]

    def find(self, css: str, text: str = "") -> WebElement:
        """The first that fits and contains the text, as soon as there is one."""
        return self.wait(
            lambda: next((one for one in self.all(css) if text in (one.get_property("textContent") or "")), None)
        )

    def click(self, css: str, text: str = "") -> None:
        """Click on the first that fits and contains the text; again on the new one, if it was drawn again meanwhile."""

        def clicked() -> bool:
            self.find(css, text).click()
            return True

        self.wait(clicked)

    def has(self, css: str, text: str = "") -> None:
        self.wait(lambda: any(text in one for one in self.texts(css)))

    def gone(self, css: str, text: str = "") -> None:
        self.wait(lambda: not any(text in one for one in self.texts(css)))

    def press(self, *keys: str) -> None:
        """Keys, one after the other, wherever the focus is."""
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def seen(self) -> dict[str, Any]:
        """What the waterfall says of itself."""
        return self.wait(lambda: self.script("return __zerver.waterfall && __zerver.waterfall()"))

    def scheme(self, word: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": word}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def forget(self, origin: str) -> None:
        """What the page has put by for itself."""
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "local_storage"})

    def complaints(self) -> list[str]:
        """What the console holds since the last look: errors, and what the policy forbade."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def check_installed() -> tuple[str, str]:
    """Chromium and its driver; without them the test is skipped, or fails where they are asked for."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        reason = "chromium and chromedriver are not installed (Debian: chromium chromium-driver)"
        if os.environ.get("NEED_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return chromium, driver


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser of one's own. profile: a directory for it."""
    chromium, chromedriver = check_installed()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
                     "--hide-scrollbars", "--disable-background-networking", f"--user-data-dir={profile}"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        browser = Browser(driver)
        browser.size(1360, 860)
        yield browser
    finally:
        driver.quit()
