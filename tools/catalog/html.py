"""Pieces of HTML, with labels that Sphinx translates and links to pages that it resolves.

Both are marked by private characters until ``finish`` replaces them, so that the other modules write plain strings.
"""

from __future__ import annotations

import html
import re
from typing import Any, Callable, Iterable, List, Mapping, Match, Sequence

LABEL = re.compile("\ue000([^\ue001\ue004]*)((?:\ue004[^\ue001\ue004]*)*)\ue001")
MARKED = re.compile("(\ue000[^\ue001]*\ue001|\ue002[^\ue003]*\ue003)")
PAGE = re.compile("\ue002([^\ue003]*)\ue003")


def label(text: str, *values: object) -> str:
    """Return text that is translated with the docs; each %s in it stands for a value."""
    return "\ue004".join([f"\ue000{text}", *map(str, values)]) + "\ue001"


def page(name: str) -> str:
    """Return the address of a page of the docs, relative to the page that has this."""
    return f"\ue002{name}\ue003"


def labels(text: str) -> List[str]:
    """Return what is to be translated, each text once."""
    return list(dict.fromkeys(match[1] for match in LABEL.finditer(text)))


def finish(text: str, translations: Mapping[str, str], address: Callable[[str], str]) -> str:
    """Return HTML with its labels translated and its links resolved."""

    def translate(match: Match[str]) -> str:
        values = tuple(match[2].split("\ue004")[1:])
        translated = translations.get(match[1], match[1])
        return html.escape(translated % values if values else translated)

    return PAGE.sub(lambda match: html.escape(address(match[1])), LABEL.sub(translate, text))


def escape(text: object) -> str:
    """Return text as HTML; labels and addresses in it are escaped when they are finished."""
    return "".join(part if MARKED.match(part) else html.escape(part) for part in MARKED.split(str(text)))


def element(tag: str, *content: str, **attributes: Any) -> str:
    """Return an element of this content, which is HTML already.

    ``class_`` stands for class, ``data_x`` for data-x. True is an attribute without a value; None and False are left
    out.
    """
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(value)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    return f"<{tag}{written}>{''.join(content)}</{tag}>"


def void(tag: str, **attributes: Any) -> str:
    """Return an element that has no content."""
    return element(tag, **attributes).replace(f"></{tag}>", ">" if tag == "input" else "/>")


def link(address: str, content: str, **attributes: Any) -> str:
    return element("a", content, href=address, **attributes)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = (), **attributes: Any) -> str:
    """Return a table whose first column names the rows; the columns ``numeric`` are aligned to the right."""
    right = set(numeric)
    lines = []
    for row in rows:
        cells = [
            element("td", cell, class_="number" if column in right else None)
            for column, cell in enumerate(row)
            if column > 0
        ]
        lines.append(element("tr", element("th", row[0], scope="row"), *cells))
    heads = [
        element("th", text, scope="col", class_="number" if column in right else None)
        for column, text in enumerate(head)
    ]
    body = [element("thead", element("tr", *heads))] if head else []
    body.append(element("tbody", "\n".join(lines)))
    attributes["class_"] = f"docutils {attributes.get('class_') or ''}".strip()
    return element("div", element("table", *body, **attributes), class_="table-wrapper")
