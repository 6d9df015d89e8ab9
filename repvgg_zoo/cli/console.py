"""What every command prints with: one JSON document or lines of text, tables, colour on a terminal only."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Iterable, List, Mapping, Optional, Sequence, TextIO

_CODES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}


def show(args: Any, data: Any, lines: Iterable[str]) -> None:
    """A command's result: ``data`` as JSON under ``--json``, else ``lines``, which are not even made for JSON."""
    if args.json:
        print_json(data)
    else:
        for line in lines:
            print(line)


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    import json

    # JSON knows no infinity and no NaN; a reader that is strict would refuse the whole document.
    print(json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """Records, mappings, sequences and paths as what JSON knows; what it does not know becomes text."""
    fields = getattr(value, "__dataclass_fields__", None) or getattr(value, "_fields", None)
    if fields is not None and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value) if isinstance(value, Path) else repr(value)


def paint(text: str, colour: str, stream: Optional[TextIO] = None) -> str:
    """The text in a colour (or bold, dim), if the stream, by default stdout, is a terminal that shows it."""
    return f"\033[{_CODES[colour]}m{text}\033[0m" if text and has_colour(stream or sys.stdout) else text


def has_colour(stream: Optional[TextIO]) -> bool:
    """Whether the stream is a terminal, and the user has not said NO_COLOR."""
    return (
        stream is not None and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> List[str]:
    """Lines of aligned columns, two spaces between them; the heads named in ``right`` are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(heads), *cells]) for column in range(len(heads))]
    to_right = set(right)

    def line(row: Sequence[str]) -> str:
        placed = (
            cell.rjust(width) if head in to_right else cell.ljust(width)
            for cell, width, head in zip(row, widths, heads)
        )
        return "  ".join(placed).rstrip()

    return [paint(line(heads), "bold"), *map(line, cells)]


def pairs(facts: Mapping[str, Any], indent: str = "") -> List[str]:
    """Lines of a name and a value, the values one below the other; None is left out."""
    given = {name: value for name, value in facts.items() if value is not None}
    width = max(map(len, given), default=0)
    return [f"{indent}{name:{width}}  {value}" for name, value in given.items()]


def count(number: int, one: str, many: Optional[str] = None) -> str:
    """A number and its noun.

    >>> from repvgg_zoo.cli.console import count
    >>> count(1, "file"), count(2, "file")
    ('1 file', '2 files')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
