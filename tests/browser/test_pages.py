"""The docs as a reader gets them: every page loads, fits a phone, and can be read by everybody."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple
from urllib.parse import unquote, urlsplit

import pytest

from .browser import DESKTOP, PHONE, Browser, needs_browser

pytestmark = needs_browser

MAIN = ("index", "catalog", "catalog/RepVGG_B1g4", "performance", "getting-started", "guides/deploying")


# The theme lets the part with the content scroll, which looks to a reader as if the page did.
SCROLLS_SIDEWAYS = """
    const parts = [document.documentElement, document.querySelector(".content")].filter(part => part);
    if (parts.every(part => part.scrollWidth <= part.clientWidth)) return [];
    return [...document.querySelectorAll("article *")].filter(one => one.getBoundingClientRect().right > innerWidth)
        .map(one => `${one.tagName} ${one.className} ${one.textContent.trim().slice(0, 40)}`).slice(0, 5);"""


class Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.hrefs: Set[str] = set()
        self.anchors: Set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        attributes = dict(attrs)
        self.anchors.update(filter(None, (attributes.get("id"), attributes.get("name"))))
        for name in ("href", "src"):
            if attributes.get(name):
                self.hrefs.add(str(attributes[name]))


def pages(docs: Path) -> List[Path]:
    return sorted(path for path in docs.rglob("*.html") if "_static" not in path.parts)


def test_no_link_within_the_docs_is_dead(docs: Path) -> None:
    read = {path: Links(path) for path in pages(docs)}
    dead = []
    for path, links in read.items():
        for href in links.hrefs:
            parts = urlsplit(href)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = read[target].anchors if target in read else set()
            if not target.exists() or (parts.fragment and target in read and unquote(parts.fragment) not in anchors):
                dead.append(f"{path.relative_to(docs)}: {href}")
    assert len(read) > 30 and dead == []


def test_every_page_loads_without_errors_and_fits_a_phone(browser: Browser) -> None:
    problems: Dict[str, Any] = {}
    with browser.looking(PHONE):
        for path in pages(browser.docs):
            name = str(path.relative_to(browser.docs))
            browser.open(name)
            errors = browser.errors()
            too_wide = browser.run(SCROLLS_SIDEWAYS)
            if errors or too_wide:
                problems[name] = (errors, too_wide)
    assert problems == {}, "errors in the console, and what is wider than a phone"


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_main_pages_pass_axe(browser: Browser, size: Tuple[int, int]) -> None:
    problems = {}
    with browser.looking(size):
        for name in MAIN:
            browser.open(f"{name}.html")
            problems[name] = browser.violations()
    assert not any(problems.values()), problems


def test_the_main_pages_have_enough_contrast_in_dark_mode(browser: Browser) -> None:
    problems = {}
    with browser.looking(DESKTOP, dark=True):
        for name in MAIN[1:4]:
            browser.open(f"{name}.html")
            problems[name] = browser.violations("color-contrast")
    assert not any(problems.values()), problems


def test_no_code_is_cut_off_at_1280_pixels_and_all_of_it_can_be_copied(browser: Browser) -> None:
    script = """
        return [...document.querySelectorAll("article pre")].map(pre => [
            pre.scrollWidth > pre.clientWidth, pre.parentElement.querySelector("button.copybtn") !== null,
            pre.textContent.trim().slice(0, 60)])"""
    blocks = []
    for name in ("api", "getting-started", "guides/deploying", "guides/publishing", "catalog/RepVGG_A0"):
        browser.open(f"{name}.html")
        blocks += [(name, *block) for block in browser.run(script)]
    assert len(blocks) > 20
    assert [block for block in blocks if block[1] or not block[2]] == [], "cut off, has a button, its text"
