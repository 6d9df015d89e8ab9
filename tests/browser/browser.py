"""Headless Chromium, from Debian's packages, and how the tests look at a page."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
HAS_SELENIUM = importlib.util.find_spec("selenium") is not None  # on Python 3.10 only
DESKTOP, PHONE = (1280, 900), (390, 844)

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER and HAS_SELENIUM),
    reason="Chromium or selenium is not installed (apt-get install chromium chromium-driver; Python 3.10)",
)


class Browser:
    """Opens pages of the docs as files, so that nothing depends on a server."""

    def __init__(self, docs: Path) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(argument)
        if os.geteuid() == 0:
            options.add_argument("--no-sandbox")  # which root cannot use
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(executable_path=str(CHROMEDRIVER))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.driver.set_script_timeout(60)
        self.docs = docs
        self.look(DESKTOP)

    def look(self, size: Tuple[int, int], dark: bool = False, script: bool = True) -> None:
        """Use a window of this size, in light or dark mode, with or without JavaScript."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})

    def open(self, page: str) -> None:
        self.driver.get((self.docs / page).as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> List[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def click(self, element: Any) -> None:
        """Scroll to an element and click it; the theme scrolls smoothly, and a click would miss what still moves."""
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def follow(self, link: Any, keys: str = "") -> None:
        """Click a link, or type the keys on it, and wait for the page that it leads to."""
        from selenium.webdriver.support.expected_conditions import staleness_of
        from selenium.webdriver.support.ui import WebDriverWait

        left = self.one("html")
        if keys:
            link.send_keys(keys)
        else:
            self.click(link)
        WebDriverWait(self.driver, 30).until(staleness_of(left))

    def errors(self) -> List[str]:
        """Return what the pages opened since the last call wrote into the console."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def violations(self, *rules: str) -> Dict[str, List[str]]:
        """Return what this page breaks of WCAG 2 A and AA, or of these rules of axe-core, and where.

        Of a table only the first rows are looked at, as the others have the same parts.
        """
        from axe_core_python.selenium import Axe

        context = {"exclude": ["tbody tr:nth-child(n+4)"]}
        only = {"type": "rule", "values": list(rules)} if rules else ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
        report = Axe().run(self.driver, context, {"runOnly": only, "resultTypes": ["violations"]})
        return {
            rule["id"]: [f"{node['target'][0]}: {node['failureSummary']}" for node in rule["nodes"]]
            for rule in report["violations"]
        }

    @contextlib.contextmanager
    def looking(self, size: Tuple[int, int], dark: bool = False, script: bool = True) -> Iterator[None]:
        self.look(size, dark, script)
        try:
            yield
        finally:
            self.look(DESKTOP)
