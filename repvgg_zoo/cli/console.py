"""Output of the commands: one JSON document or lines of text, tables, and styles on terminals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable, Iterable, List, Mapping, NamedTuple, Optional, Sequence, TextIO

from .._settings import terminal_styles_allowed

_STYLES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}


class Result(NamedTuple):
    """What a command returns: the data that --json prints, a function that makes it lines of text, the exit code."""

    payload: Any
    render: Callable[[Any], Iterable[str]]
    exit_code: int = 0


def emit(result: Result, *, as_json: bool) -> None:
    """Print a command's result on stdout."""
    if as_json:
        print_json(result.payload)
    else:
        for line in result.render(result.payload):
            print(line)


def print_json(data: Any) -> None:
    """Print one JSON document on stdout."""
    import json

    print(json.dumps(to_jsonable(data), indent=2, ensure_ascii=False, allow_nan=False))


def to_jsonable(value: Any) -> Any:
    """Return records, mappings, sequences and paths as JSON types; infinity, NaN and other objects become text."""
    fields = getattr(value, "__dataclass_fields__", None) or getattr(value, "_fields", None)
    if fields is not None and not isinstance(value, type):
        return {name: to_jsonable(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value) if isinstance(value, Path) else repr(value)


def style(text: str, name: str, stream: Optional[TextIO] = None) -> str:
    """Return the text in a color (or bold, dim) if the stream, by default stdout, is a terminal that shows it."""
    return f"\033[{_STYLES[name]}m{text}\033[0m" if text and supports_styles(stream or sys.stdout) else text


def supports_styles(stream: Optional[TextIO]) -> bool:
    """Return whether the stream is a terminal with styles and NO_COLOR is not set."""
    return stream is not None and terminal_styles_allowed() and stream.isatty()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> List[str]:
    """Return lines of aligned columns; those whose heads are in ``right`` are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(heads), *cells]) for column in range(len(heads))]
    right_aligned = set(right)

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if head in right_aligned else cell.ljust(width)
            for cell, width, head in zip(row, widths, heads)
        )
        return "  ".join(padded).rstrip()

    return [style(line(heads), "bold"), *map(line, cells)]


def key_values(pairs: Mapping[str, Any], indent: str = "") -> List[str]:
    """Return a line for each key and its value, with the values aligned; values that are None are left out."""
    items = [(key, value) for key, value in pairs.items() if value is not None]
    width = max((len(key) for key, _ in items), default=0)
    return [f"{indent}{key:{width}}  {value}" for key, value in items]


def pluralize(count: int, singular: str, plural: Optional[str] = None) -> str:
    """Return a count with its noun.

    >>> from repvgg_zoo.cli.console import pluralize
    >>> pluralize(1, "file"), pluralize(2, "file")
    ('1 file', '2 files')
    """
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
