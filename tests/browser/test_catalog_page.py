"""The catalog sorts, filters and leads to the variants, without a server, and is a plain table without JavaScript."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

import repvgg_zoo

from .browser import DESKTOP, PHONE, Browser, needs_browser

pytestmark = needs_browser


@pytest.fixture
def catalog(browser: Browser) -> Browser:
    browser.open("catalog.html")
    return browser


def column(page: Browser, index: int) -> List[str]:
    """The cells of a column in the rows that are visible."""
    script = """
        return [...document.querySelectorAll("table.catalog tbody tr")]
            .filter(row => row.offsetParent !== null).map(row => row.cells[arguments[0]].innerText.trim())"""
    return [str(text) for text in page.run(script, index)]


def names(page: Browser) -> List[str]:
    return [text.split()[0] for text in column(page, 0)]


CHECKPOINTS = [
    checkpoint for name in repvgg_zoo.list_models() for checkpoint in repvgg_zoo.model_info(name).checkpoints
]


def test_it_has_every_checkpoint_and_every_variant(catalog: Browser) -> None:
    without = [name for name in repvgg_zoo.list_models() if not repvgg_zoo.model_info(name).checkpoints]
    assert sorted(names(catalog)) == sorted([*(checkpoint.name for checkpoint in CHECKPOINTS), *without])


def test_a_click_on_a_head_sorts_and_a_second_one_turns_it_round(catalog: Browser) -> None:
    top1 = catalog.all("table.catalog thead button")[1]
    for order, reverse in (("descending", True), ("ascending", False)):
        catalog.click(top1)
        values = [float(text) for text in column(catalog, 1) if text != "–"]
        assert values == sorted(values, reverse=reverse) and len(values) > 50
        assert column(catalog, 1)[-1] == "–", "rows without a value stay at the end"
        assert catalog.one("table.catalog th:nth-child(2)").get_attribute("aria-sort") == order


def test_names_are_in_natural_order(catalog: Browser) -> None:
    catalog.click(catalog.all("table.catalog thead button")[0])
    variants = list(dict.fromkeys(name.split(".")[0] for name in names(catalog)))
    assert variants == repvgg_zoo.list_models()


def fill(page: Browser, label: str, text: str) -> None:
    """Type into the field with this label, or choose from it."""
    script = """
        return [...document.querySelectorAll(".catalog-filter label")]
            .find(one => one.firstChild.textContent.trim() === arguments[0]).querySelector("input, select")"""
    page.run(script, label).send_keys(text)


FILTERS = {
    "Search": ("b1g4 timm", lambda c: c.name == "RepVGG_B1g4.timm"),
    "Top-1 at least": ("80", lambda c: (c.top1 or 0) >= 80),
    "M parameters at most": ("9", lambda c: repvgg_zoo.model_info(c.variant).params.deploy <= 9e6),
    "Digest": ("sha256", lambda c: c.file.integrity == "sha256"),
    "Publisher": ("PaddleClas", lambda c: c.publisher == "PaddleClas"),
}


@pytest.mark.parametrize("label", FILTERS)
def test_a_field_leaves_the_rows_that_pass_it(catalog: Browser, label: str) -> None:
    text, passes = FILTERS[label]
    every = len(names(catalog))
    fill(catalog, label, text)
    expected = sorted(checkpoint.name for checkpoint in CHECKPOINTS if passes(checkpoint))
    assert sorted(names(catalog)) == expected and 0 < len(expected) < every
    assert catalog.one(".catalog-filter output").text == f"{len(expected)} of {every} rows"
    visible = {name.split(".")[0] for name in expected}
    for point in catalog.all(".catalog-plot [data-view=macs] a"):
        is_faded = "faded" in point.get_attribute("class").split()
        assert is_faded == (point.get_attribute("data-variant") not in visible)
    catalog.click(catalog.one(".catalog-filter button"))
    assert len(names(catalog)) == every


def test_the_plot_has_a_view_for_each_axis_and_its_points_are_links(catalog: Browser) -> None:
    choices = catalog.all(".catalog-views input")
    assert len(choices) >= 4 and catalog.one(".catalog-views").is_displayed()
    for choice in choices:
        catalog.click(choice)
        views = [view for view in catalog.all("[data-view]") if view.is_displayed()]
        assert [view.get_attribute("data-view") for view in views] == [choice.get_attribute("value")]
        assert views[0].find_elements("css selector", "a[href*='catalog/RepVGG']")


def test_a_point_tells_its_figures_and_leads_to_its_variant(catalog: Browser) -> None:
    point = catalog.one(".catalog-plot [data-view=macs] a[data-variant=RepVGG_B1g4]")
    catalog.run("arguments[0].focus()", point)
    assert "RepVGG_B1g4: top-1" in catalog.one(".catalog-plot output").text
    catalog.follow(point, "\n")
    assert catalog.driver.title.startswith("RepVGG_B1g4")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_without_javascript_it_is_a_plain_table(browser: Browser, size: tuple[int, int]) -> None:
    with browser.looking(size, script=False):
        browser.open("catalog.html")
        assert browser.one("table.catalog").is_displayed() and browser.one("[data-view=macs] svg").is_displayed()
        assert not any(part.is_displayed() for part in browser.all(".catalog-filter, .catalog-views, output"))
        assert len(browser.all("table.catalog tbody tr")) == len(CHECKPOINTS) + 2


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_does_not_jump_when_its_script_has_run(browser: Browser, size: tuple[int, int]) -> None:
    tops = []
    with browser.looking(size):
        for blocked in (["*catalog.js*"], []):
            browser.driver.execute_cdp_cmd("Network.enable", {})
            browser.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": blocked})
            browser.open("catalog.html")
            has_run = browser.all("table.catalog thead button") != []
            assert has_run == (blocked == [])
            tops.append(browser.run("return document.querySelector('table.catalog').getBoundingClientRect().top"))
    assert tops[0] == tops[1]
    browser.errors()  # forgets that of the script that was not loaded


def test_a_stranger_gets_from_the_first_page_to_an_onnx_file_in_five_clicks(browser: Browser, tmp_path: Path) -> None:
    browser.open("index.html")
    for selector in ("a[href='catalog.html']", "table.catalog a[href^='catalog/RepVGG_N0.html']"):
        browser.follow(next(one for one in browser.all(selector) if one.is_displayed()))
    browser.click(browser.one("#onnx .highlight-python button.copybtn"))
    code = browser.one("#onnx .highlight-python pre").text
    subprocess.run([sys.executable, "-c", code], cwd=str(tmp_path), check=True, timeout=60)
    assert (tmp_path / "RepVGG_N0.onnx").stat().st_size > 500_000
