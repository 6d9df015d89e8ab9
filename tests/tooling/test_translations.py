"""The docs are translated into Chinese: each page as it is now, with its code and its links."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Dict, List

import pytest

from tools.chinese_search import SearchChinese
from tools.messages import (
    LOCALE,
    has_prose,
    markup,
    read_catalogs,
    read_messages,
    read_translations,
    renewed,
    to_po,
    write_translations,
)

TRANSLATIONS = read_translations(LOCALE)
SHARE = 0.95  # of the messages with words, so that a change of an English page does not wait for its translation


@pytest.mark.skipif(sys.version_info < (3, 10), reason="the messages are those of the Sphinx for newer Pythons")
def test_no_page_is_translated_by_less_than_95_percent(tmp_path: Path) -> None:
    """One test: Sphinx takes some ten seconds to read the pages."""
    problems = {}
    messages = read_messages(tmp_path)
    for page, current in messages.items():
        translations = TRANSLATIONS.get(page, {})
        prose = [message for message in current if has_prose(message)]
        missing = [message for message in prose if not translations.get(message)]
        gone = set(translations) - set(current)
        if len(missing) > (1 - SHARE) * len(prose) or len(gone) > (1 - SHARE) * len(current):
            problems[page] = {"not translated": missing, "gone from the page": gone}
    assert len(messages) > 40 and problems == {}, "./dev messages updates docs/locale"
    assert set(TRANSLATIONS) == set(messages)


@pytest.mark.parametrize("page", TRANSLATIONS)
def test_a_translation_keeps_code_links_and_values(page: str) -> None:
    changed = {
        message: {"lost": markup(message) - markup(translation), "added": markup(translation) - markup(message)}
        for message, translation in TRANSLATIONS[page].items()
        if translation and markup(message) != markup(translation)
    }
    assert changed == {}


def test_catalogs_have_nothing_that_changes_with_every_update() -> None:
    lines = re.compile('^(?:#~|#:|#, fuzzy|"POT-Creation-Date|"PO-Revision-Date).*', re.MULTILINE)
    matches = {path.name: lines.findall(path.read_text(encoding="utf-8")) for path in LOCALE.rglob("*.po")}
    assert matches and not any(matches.values()), "dates, places, guesses and obsolete messages"


PROSE = {
    "Accuracy": True,
    "In the shell:": True,
    "**no**": True,
    "[Performance](performance.md#summary)": True,
    "`export` of `.mge` files": True,
    "%s of %s rows": True,
    "re-parameterize": True,
    "": False,
    "296 (3 dB)": False,
    "0.93 GB": False,
    "RepVGG_A0": False,
    "MegEngine Lite": False,
    "top-1, %": False,
    "`./dev test-peers`": False,
    "``repvgg_zoo.create``": False,
    "timm `repvgg_a0.rvgg_in1k`": False,
    "[](guides/networks.md), [](hub.md)": False,
    "`LayoutError` (ValueError)": False,
    "https://example.org/a/page": False,
}


@pytest.mark.parametrize("message", PROSE)
def test_messages_with_words_are_told_from_names_code_and_figures(message: str) -> None:
    assert has_prose(message) == PROSE[message]


MARKUP = {
    ("`a` and `b`", "`b` 和 `a`"): True,
    ("`a` and `a`", "`a`"): False,
    ("[the guide](guide.md#here)", "[指南](guide.md#here)"): True,
    ("[the guide](guide.md#here)", "[指南](guide.md)"): False,
    ("see https://example.org", "见 https://example.org"): True,
    ("``a`` of :class:`B`", ":class:`B` 的 ``a``"): True,
    ("`a\nb`", "`a b`"): True,
    ("%s of %s", "%s（共 %s）"): True,
    ("%s of %s", "%s"): False,
}


@pytest.mark.parametrize(("message", "translation"), MARKUP)
def test_what_a_translation_lost_is_noticed(message: str, translation: str) -> None:
    assert (markup(message) == markup(translation)) == MARKUP[message, translation]


def test_an_update_keeps_what_is_still_there_and_fills_in_what_is_translated_elsewhere() -> None:
    before = {"one": {"Load": "加载", "Gone": "没了"}, "two": {"Size": ""}, "old": {"Other": "其他", "MACs": "次数"}}
    now = {"one": ["New", "Load"], "two": ["Load", "Other", "Size", "MACs"]}
    after = renewed(now, before)
    assert after["one"] == {"New": "", "Load": "加载"}
    assert after["two"] == {"Load": "加载", "Other": "其他", "Size": "", "MACs": ""}
    assert renewed(now, after) == after, "a second update changes nothing"


def test_an_update_writes_the_pages_and_removes_what_is_gone(tmp_path: Path) -> None:
    after = {"index": {"A word.": "一个词。"}, "guides/images": {"Images": ""}}
    (tmp_path / "gone.po").write_bytes(to_po({"Gone": "没了"}))
    write_translations(after, read_translations(tmp_path), tmp_path)
    assert read_translations(tmp_path) == after
    assert b"fuzzy" not in to_po(after["index"]) and b"Date" not in to_po(after["index"])


def test_a_fuzzy_translation_counts_as_none(tmp_path: Path) -> None:
    po = to_po({"Load": "加载", "Size": "大小"}).replace(b'msgid "Load"', b'#, fuzzy\nmsgid "Load"')
    (tmp_path / "index.po").write_bytes(po)
    assert read_catalogs(tmp_path, "po") == {"index": {"Load": "", "Size": "大小"}}


SEARCHED: Dict[str, List[str]] = {
    "离线包": ["离线", "线包"],
    "图": ["图"],
    "用 `compile` 编译推理": ["用", "compile", "编译", "译推", "推理"],
    "int8 量化": ["int8", "量化"],
}


@pytest.mark.parametrize("text", SEARCHED)
def test_chinese_text_is_searched_by_pairs_of_characters(text: str) -> None:
    search = SearchChinese({})
    assert search.split(text) == SEARCHED[text]
    assert all(search.word_filter(word) for word in SEARCHED[text])
    assert search.stem("图像") == "图像" and search.stem("images") == "imag"
