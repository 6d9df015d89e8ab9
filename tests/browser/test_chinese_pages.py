"""The pages in Chinese: each leads to the same one in English and back, and the catalog and the search work in both."""

from __future__ import annotations

import re

import pytest

from .browser import DESKTOP, PHONE, Browser, needs_browser
from .test_catalog_page import column, fill, names
from .test_pages import SCROLLS_SIDEWAYS

pytestmark = needs_browser

PAGES = ("index", "catalog", "guides/deploying", "catalog/RepVGG_B1g4", "genindex", "search")

ALTERNATES = "return [...document.querySelectorAll('link[hreflang]')].map(one => [one.hreflang, one.href])"


def address(browser: Browser) -> str:
    """The page that is open, relative to the docs."""
    return str(browser.driver.current_url).partition("#")[0][len(browser.docs.as_uri()) + 1 :]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_each_page_leads_to_the_same_page_in_chinese_and_back(browser: Browser, size: tuple[int, int]) -> None:
    with browser.looking(size):
        for page in PAGES:
            browser.open(f"{page}.html")
            for text, language, target in (("中文", "zh-CN", f"zh_CN/{page}.html"), ("English", "en", f"{page}.html")):
                link = browser.one(".other-language a")
                assert link.is_displayed() and link.text == text
                browser.follow(link)
                assert address(browser) == target
                assert browser.run("return document.documentElement.lang") == language
                alternates = browser.run(ALTERNATES)
                base = browser.docs.as_uri()
                assert alternates == [["en", f"{base}/{page}.html"], ["zh-CN", f"{base}/zh_CN/{page}.html"]]


def test_the_chinese_pages_are_in_chinese_and_load_without_errors_on_a_phone(browser: Browser) -> None:
    with browser.looking(PHONE):
        for page in ("index", "catalog", "guides/deploying"):
            browser.open(f"zh_CN/{page}.html")
            assert browser.errors() == [] and browser.run(SCROLLS_SIDEWAYS) == []
            text = browser.one("article").text
            assert len(re.findall("[\u4e00-\u9fff]", text)) > 100
            assert browser.violations() == {}


def test_links_of_the_chinese_pages_stay_in_chinese(browser: Browser) -> None:
    browser.open("zh_CN/index.html")
    browser.follow(next(link for link in browser.all("article a[href='catalog.html']") if link.is_displayed()))
    browser.follow(next(link for link in browser.all("table.catalog a[href^='catalog/RepVGG_N0.html']")))
    assert address(browser) == "zh_CN/catalog/RepVGG_N0.html"
    assert browser.all("#onnx .highlight-python button.copybtn")


def test_the_chinese_catalog_sorts_and_filters(browser: Browser) -> None:
    browser.open("zh_CN/catalog.html")
    every = len(names(browser))
    assert "检查点" in browser.one("table.catalog thead").text
    browser.click(browser.all("table.catalog thead button")[1])
    values = [float(text) for text in column(browser, 1) if text != "–"]
    assert values == sorted(values, reverse=True) and len(values) > 50
    fill(browser, "搜索", "b1g4 timm")
    assert names(browser) == ["RepVGG_B1g4.timm"]
    assert browser.one(".catalog-filter output").text == f"1 行（共 {every} 行）"
    browser.click(browser.one(".catalog-filter button"))
    fill(browser, "发布者", "PaddleClas")
    assert 0 < len(names(browser)) < every
    point = browser.one(".catalog-plot [data-view=macs] a[data-variant=RepVGG_B1g4]")
    browser.run("arguments[0].focus()", point)
    assert browser.one(".catalog-plot output").text.startswith("RepVGG_B1g4：top-1 ")


def test_chinese_words_are_searched_in_the_text(browser: Browser) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.driver.get((browser.docs / "zh_CN" / "search.html").as_uri() + "?q=离线包")
    results = WebDriverWait(browser.driver, 10).until(lambda _: browser.all("#search-results li a"))
    addresses = [str(result.get_attribute("href")) for result in results]
    # From files, a page cannot read the other pages to quote them. What it still tries ends with it.
    browser.driver.get("about:blank")
    browser.errors()
    assert any("/zh_CN/guides/offline.html" in one for one in addresses)
