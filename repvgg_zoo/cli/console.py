"""The only module that writes to stdout and stderr: text that is escaped and styled, tables, and JSON documents.

Whatever is printed here is escaped, so no command has to remember to. A character that the stream cannot encode is
printed as its escape.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, TextIO, Union

from .._escape import escape
from .._settings import terminal_styles_allowed

_STYLES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}
# Between style() and print_line() a style is this mark and its number. No file can know the mark, so none can style.
_MARK = os.urandom(8).hex()
_MARKED = re.compile(rf"<{_MARK}:(\d+)>")
# What stands before a value: spaces, a label, and at least two spaces.
_LABEL = re.compile(r" *(?:\S+(?: \S+)*?  +)?")
TEXT_WIDTH = 80  # of prose that does not go to a terminal
MAX_INTEGER_BITS = 4096  # Python refuses to print integers that are much longer

_reserved: Optional[TextIO] = None


class Prose(str):
    """A line of text that is broken between words, everywhere: as wide as the terminal, or ``TEXT_WIDTH``."""


class Verbatim(str):
    """A line that is never broken, such as one of a program, which is copied from the terminal."""


class Result(NamedTuple):
    """What a command returns: the data that --json prints, a function that makes it lines of text, the exit code.

    A line that is a path is printed by :func:`print_path`; any other is broken between words where a terminal is
    narrower, and see :class:`Prose` and :class:`Verbatim`. ``failures`` are the errors of some of several names, which
    are reported after the results of the others; the first one has the exit code. Ctrl-C comes last.
    """

    payload: Any
    render: Callable[[Any], Iterable[Union[str, Path]]]
    exit_code: int = 0
    failures: Sequence[BaseException] = ()


def emit(result: Result, *, as_json: bool) -> None:
    """Print a command's result on stdout."""
    if as_json:
        print_json(result.payload)
    else:
        for line in result.render(result.payload):
            if isinstance(line, Path):
                print_path(line)
            elif isinstance(line, Verbatim):
                print_line(line)
            else:
                for part in wrap(line, terminal_width() or (TEXT_WIDTH if isinstance(line, Prose) else None)):
                    print_line(part)


def print_line(text: str) -> None:
    """Print a line on stdout, escaped except for the styles of :func:`style`."""
    stream = stdout()
    if stream is not None:
        with _named(stream):
            stream.write(_encodable(text, stream) + "\n")


def print_text(text: str) -> None:
    """Print each line of a text of our own on stdout."""
    for line in text.rstrip("\n").split("\n"):
        for part in wrap(line, terminal_width()):
            print_line(part)


def print_path(path: Path) -> None:
    """Print a path on stdout at once: to a terminal escaped, else byte for byte, for scripts that open the file."""
    stream = stdout()
    buffer = getattr(stream, "buffer", None)
    if stream is None or buffer is None or stream.isatty():
        print_line(str(path))
    else:
        with _named(stream):
            stream.flush()
            buffer.write(os.fsencode(path) + os.linesep.encode())
    flush()


def print_json(data: Any) -> None:
    """Print one JSON document on stdout, in ASCII whatever the encoding of stdout is."""
    import json

    text = json.dumps(to_jsonable(data), indent=2, ensure_ascii=True, allow_nan=False)
    stream = stdout()
    if stream is not None:
        with _named(stream):
            stream.write(text.replace("\x7f", "\\u007f") + "\n")


def print_error(text: str) -> None:
    """Print a line on stderr, escaped, broken as on stdout; does nothing if stderr is closed, full or broken."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            for part in wrap(text, terminal_width(sys.stderr)):
                sys.stderr.write(_encodable(part, sys.stderr) + "\n")
            sys.stderr.flush()


def flush() -> None:
    """Write what stdout has buffered; raise OSError if that fails, for example BrokenPipeError."""
    stream = stdout()
    if stream is not None:
        with _named(stream):
            stream.flush()


def stdout() -> Optional[TextIO]:
    """Return the program's stdout, or None if whoever started it has closed it."""
    return sys.stdout if _reserved is None else _reserved


@contextmanager
def reserved_stdout(*, until_exit: bool) -> Iterator[None]:
    """Keep stdout for this module: what plugins, networks and their libraries print goes to stderr.

    Code that is not Python prints to file descriptor 1, which therefore is stderr's in the meantime. With
    ``until_exit`` it remains so, since such code may buffer its output until the process ends.
    """
    global _reserved
    original, before = sys.stdout, _reserved
    descriptor = _move_descriptor(original)
    if descriptor is None:
        _reserved = original
    else:
        _reserved = os.fdopen(descriptor, "w", encoding=original.encoding, closefd=not until_exit)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        for stream in (_reserved, sys.stderr):
            _flush_or_discard(stream)
        if not until_exit:
            sys.stdout = original
            if descriptor is not None:
                _flush_or_discard(original)  # what was printed there went to stderr
                os.dup2(descriptor, 1)
                _reserved.close()
            _reserved = before


def style(text: str, name: str, *, on_stderr: bool = False) -> str:
    """Return the text in a color (or bold, dim) if stdout, or stderr, is a terminal that shows it."""
    styled = text and supports_styles(sys.stderr if on_stderr else stdout())
    return f"<{_MARK}:{_STYLES[name]}>{text}<{_MARK}:0>" if styled else text


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
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= MAX_INTEGER_BITS else f"an integer of {value.bit_length()} bits"
    if isinstance(value, Path):
        return str(value)
    try:
        return repr(value)
    except Exception:  # an object of a plugin
        return f"<{type(value).__name__}>"


def supports_styles(stream: Optional[TextIO]) -> bool:
    """Return whether the stream is a terminal with styles and NO_COLOR is not set."""
    return stream is not None and terminal_styles_allowed() and stream.isatty()


def terminal_width(stream: Optional[TextIO] = None) -> Optional[int]:
    """Return the number of columns of the terminal that a stream, by default stdout, is; None if it is none."""
    stream = stdout() if stream is None else stream
    try:
        return (os.get_terminal_size(stream.fileno()).columns or None) if stream and stream.isatty() else None
    except (OSError, ValueError):  # a stream of a test or a notebook
        return None


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for the letters of Chinese, none for styles."""
    plain = _MARKED.sub("", text)
    if plain.isascii():
        return len(plain)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in plain
    )


def wrap(line: str, width: Optional[int]) -> List[str]:
    """Return a line in several of at most ``width`` columns, if that is not None.

    It is broken between words only. What continues a value stands below it, after the label.
    """
    line = escape(line)
    if width is None or columns(line) <= width:
        return [line]
    match = _LABEL.match(line)
    assert match is not None  # it matches nothing as well
    label = match.group()
    indent = columns(label) if columns(label) <= width // 2 else 0
    lines, is_empty = [label], True
    for word in line[len(label) :].split(" "):
        if not is_empty and columns(lines[-1]) + 1 + columns(word) > width:
            lines.append(" " * indent + word)
        else:
            lines[-1] += word if is_empty else f" {word}"
        is_empty = False
    return lines


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = (), *, width: Optional[int] = None
) -> List[str]:
    """Return lines of aligned columns; those whose heads are in ``right`` are numbers, and aligned to the right.

    Where stdout is a terminal that is too narrow, words of a cell continue on the next line; where even that is too
    wide, each row is a paragraph. ``width`` replaces the terminal's. Otherwise a row is a line, however long.
    """
    cells = [[escape(str(cell)) for cell in row] for row in rows]  # before they are aligned
    width = terminal_width() if width is None else width
    right_aligned = [head in set(right) for head in heads]
    widths = _column_widths([list(heads), *cells], right_aligned, width)
    if widths is None:
        return [line for row in cells for line in _paragraph(heads, row, width or 0)]

    def lines(row: Sequence[str]) -> List[str]:
        parts = [wrap(cell, limit) for cell, limit in zip(row, widths)]
        return [
            "  ".join(
                _pad(part[index] if index < len(part) else "", limit, is_right)
                for part, limit, is_right in zip(parts, widths, right_aligned)
            ).rstrip()
            for index in range(max(map(len, parts)))
        ]

    return [*(style(line, "bold") for line in lines(heads)), *(line for row in cells for line in lines(row))]


def _pad(text: str, width: int, is_right: bool) -> str:
    spaces = " " * (width - columns(text))
    return spaces + text if is_right else text + spaces


def _column_widths(rows: Sequence[Sequence[str]], fixed: Sequence[bool], width: Optional[int]) -> Optional[List[int]]:
    """Return the width of each column so that a line has at most ``width`` columns; None if words would be broken."""
    by_column = list(zip(*rows))
    widths = [max(map(columns, cells)) for cells in by_column]
    least = [
        natural if is_fixed else max(columns(word) for cell in cells for word in cell.split(" "))
        for cells, natural, is_fixed in zip(by_column, widths, fixed)
    ]
    gaps = 2 * (len(widths) - 1)
    if width is not None and sum(least) + gaps > width:
        return None
    while width is not None and sum(widths) + gaps > width:
        widest = max(range(len(widths)), key=lambda index: (widths[index] > least[index], widths[index]))
        widths[widest] -= 1
    return widths


def _paragraph(heads: Sequence[str], row: Sequence[str], width: int) -> Iterator[str]:
    """Yield a row as its first cell, and below it each other one after its head."""
    yield style(row[0], "bold")
    line = ""
    for head, cell in zip(heads[1:], row[1:]):
        pair = f"{head} {cell}"
        if line and columns(line) + 2 + columns(pair) > width:
            yield from wrap(line, width)
            line = ""
        line = f"{line}  {pair}"
    yield from wrap(line, width)


def key_values(pairs: Mapping[str, Any], indent: str = "") -> List[str]:
    """Return a line for each key and its value, with the values aligned; values that are None are left out."""
    items = [(key, value) for key, value in pairs.items() if value is not None]
    width = max((len(key) for key, _ in items), default=0)
    return [f"{indent}{key:{width}}  {value}" for key, value in items]


def _encodable(text: str, stream: TextIO) -> str:
    """Return the line that the stream is to get: escaped, styled, and in characters that its encoding has."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    escaped = escape(text).encode(encoding, "backslashreplace").decode(encoding)
    return _MARKED.sub("\033[\\1m", escaped)


@contextmanager
def _named(stream: TextIO) -> Iterator[None]:
    """Let errors of the body, such as a full disk, say that they are stdout's."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = "stdout"
        raise


def _move_descriptor(stream: Optional[TextIO]) -> Optional[int]:
    """Let file descriptor 1 be stderr's and return another for stdout; None if the stream is not the process's own."""
    try:
        if stream is None or stream.fileno() != 1:
            return None
        os.fstat(2)
        stream.flush()
        descriptor = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):  # a stream of a test or a notebook; a closed stderr; a full disk
        return None
    return descriptor


def _flush_or_discard(stream: Optional[TextIO]) -> None:
    """Write what is buffered; if that fails, discard it, as Python's flush at exit would fail a second time."""
    if stream is not None:
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
