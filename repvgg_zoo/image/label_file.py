"""read_label_file: class names from a file, in the order of the logits."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from .._files import read_text
from .._json import parse_json
from ..errors import ArgumentError

MAX_BYTES = 16 << 20  # the names of ImageNet-21k, synonyms included, take 1 MB
EXPECTED = "a name on each line, a JSON list of names, or a JSON object {index: name}"


def read_label_file(path: Path) -> Tuple[str, ...]:
    """Return the class names of a file: one on each line, a JSON list, or a JSON object from index to name.

    In JSON a name may also be a pair, after its WordNet synset, as in Keras's ``imagenet_class_index.json``. Raise
    MissingFileError, and ArgumentError, with the line where there is one, for any other file.
    """
    error = functools.partial(_error, path)
    text = read_text(path, max_bytes=MAX_BYTES, purpose="class names", error=error)
    return _from_json(text, path) if text.lstrip()[:1] in ("[", "{") else _from_lines(text, path)


def _from_lines(text: str, path: Path) -> Tuple[str, ...]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    empty = next((number for number, line in enumerate(lines, 1) if not line), None)
    if empty is not None or not lines:
        raise _error(path, "is empty" if empty is None else "has no name", line=empty)
    return tuple(lines)


def _from_json(text: str, path: Path) -> Tuple[str, ...]:
    try:
        value = parse_json(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise _error(path, f"is not valid JSON: {error}") from None
    items: List[Any] = list(_by_index(value, path)) if isinstance(value, dict) else value
    names = [item[1] if isinstance(item, list) and len(item) == 2 else item for item in items]
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise _error(path, f"has no name for class {index}", actual=items[index])
    if not names:
        raise _error(path, "is empty")
    return tuple(name.strip() for name in names)


def _by_index(names: Dict[str, Any], path: Path) -> List[Any]:
    """Return the values of an object whose keys are the numbers from 0."""
    for key in names:
        if not (key.isascii() and key.isdecimal() and str(int(key[:9])) == key):
            raise _error(path, f"has the key {key[:40]!r}, which is not an index", actual=key)
    missing = next((index for index in range(len(names)) if str(index) not in names), None)
    if missing is not None:
        raise _error(path, f"has no name for class {missing}", expected=f"indices from 0 to {len(names) - 1}")
    return [names[str(index)] for index in range(len(names))]


def _error(path: Path, problem: str, line: Optional[int] = None, **data: Any) -> ArgumentError:
    where = "" if line is None else f" in line {line}"
    return ArgumentError(
        f"{path} {problem}{where}", path=path, hint=f"write {EXPECTED}, in the order of the logits", **data
    )
