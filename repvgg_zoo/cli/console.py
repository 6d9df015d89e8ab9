"""The only module that writes to stdout and stderr: text that is escaped and styled, tables, and JSON documents.

Whatever is printed here is escaped, so no command has to remember to. A character that the stream cannot encode is
printed as its escape.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, TextIO, Union

from .._escape import escape
from .._settings import terminal_styles_allowed

_STYLES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}
# Between style() and print_line() a style is this mark and its number. No file can know the mark, so none can style.
_MARK = os.urandom(8).hex()
_MARKED = re.compile(rf"<{_MARK}:(\d+)>")
MAX_INTEGER_BITS = 4096  # Python refuses to print integers that are much longer

_reserved: Optional[TextIO] = None


class Result(NamedTuple):
    """What a command returns: the data that --json prints, a function that makes it lines of text, the exit code.

    A line that is a path is printed by :func:`print_path`. ``failures`` are the errors of some of several names, which
    are reported after the results of the others; the first one has the exit code.
    """

    payload: Any
    render: Callable[[Any], Iterable[Union[str, Path]]]
    exit_code: int = 0
    failures: Sequence[Exception] = ()


def emit(result: Result, *, as_json: bool) -> None:
    """Print a command's result on stdout."""
    if as_json:
        print_json(result.payload)
    else:
        for line in result.render(result.payload):
            if isinstance(line, Path):
                print_path(line)
            else:
                print_line(line)


def print_line(text: str) -> None:
    """Print a line on stdout, escaped except for the styles of :func:`style`."""
    stream = stdout()
    if stream is not None:
        with _named(stream):
            stream.write(_encodable(text, stream) + "\n")


def print_text(text: str) -> None:
    """Print each line of a text of our own on stdout."""
    for line in text.rstrip("\n").split("\n"):
        print_line(line)


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
    """Print a line on stderr, escaped; does nothing if stderr is closed, full or broken."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(_encodable(text, sys.stderr) + "\n")
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


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> List[str]:
    """Return lines of aligned columns; those whose heads are in ``right`` are aligned to the right."""
    cells = [[escape(str(cell)) for cell in row] for row in rows]  # before they are aligned
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
