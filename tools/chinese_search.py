"""Search in the Chinese pages without a dictionary: text is indexed, and a query looked up, by pairs of characters.

Sphinx's own Chinese search finds words with jieba where that is installed, and elsewhere only those in Latin letters.
"""

from __future__ import annotations

import re
from typing import Any, List

from sphinx.search.en import SearchEnglish

RUN = r"[\u4e00-\u9fff]+|[a-zA-Z0-9_]+"  # of Chinese characters, or a word; the same in Python and JavaScript


class SearchChinese(SearchEnglish):
    """English words by their stems, and Chinese text as overlapping pairs."""

    lang = "zh_CN"
    language_name = "Chinese"
    js_splitter_code = f"""
var splitQuery = (query) => (query.match(/{RUN}/g) || []).flatMap((run) =>
  run < "\\u4e00" || run.length < 3 ? [run] : [...run.slice(1)].map((second, index) => run[index] + second));
"""

    def split(self, input: str) -> List[str]:
        return [part for run in re.findall(RUN, input) for part in (pairs(run) if is_chinese(run) else [run])]

    def stem(self, word: str) -> str:
        return word if is_chinese(word) else str(super().stem(word))

    def word_filter(self, word: str) -> bool:
        return is_chinese(word) or super().word_filter(word)


def pairs(run: str) -> List[str]:
    return [run[index : index + 2] for index in range(len(run) - 1)] or [run]


def is_chinese(text: str) -> bool:
    return text[:1] >= "\u4e00"


def setup(app: Any) -> None:
    app.add_search_language(SearchChinese)
