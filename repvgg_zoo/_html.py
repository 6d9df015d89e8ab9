"""Tables for notebooks, which call an object's ``_repr_html_``."""

from __future__ import annotations

from typing import Any, Iterable, Sequence

from ._escape import escape


def html_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return an HTML table; what a file or a registry says is escaped, for HTML and as it is for a terminal.

    None is an empty cell.
    """
    lines = ["<table>", f"<caption>{_text(caption)}</caption>"]
    if header:
        lines.append(f"<thead>{_row('th', header)}</thead>")
    lines += ["<tbody>", *(_row("td", row) for row in rows), "</tbody>", "</table>"]
    return "\n".join(lines)


def _row(tag: str, cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"


def _text(value: Any) -> str:
    import html  # its table of 2,231 entities is needed in notebooks only

    return "" if value is None else html.escape(escape(str(value)))
