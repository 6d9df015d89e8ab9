"""assign_labels: which image of a folder has which label, from a CSV file or a mapping.

Files of this kind have no common form: with a header or without one, with commas, tabs, semicolons or spaces, with more
columns than two, with paths, base names, or names without a suffix, as Kaggle's list of ImageNet's validation images.
"""

from __future__ import annotations

import csv
import functools
import posixpath
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from .._arguments import check_local_path
from .._files import read_text
from .._text import pluralize
from ..checkpoints.state_dict import format_keys
from ..errors import ArgumentError, PathLike
from ..registry.model_or_file import IMAGE_SUFFIXES

Labels = Union[PathLike, Mapping[str, Any]]

MAX_BYTES = 1 << 30  # a line for each of ImageNet-21k's 14 million images
# Columns of a header, without case, spaces and underscores; the first one that occurs is used, so that a name comes
# before an index.
FILE_COLUMNS = (
    "filename",
    "filepath",
    "imagepath",
    "file",
    "path",
    "image",
    "imageid",
    "imagename",
    "img",
    "id",
    "name",
)
LABEL_COLUMNS = (
    *("synset", "wnid", "classname", "labelname", "class", "category", "label", "labels", "target", "y"),
    *("classid", "labelid", "classindex", "labelindex", "categoryid", "index", "predictionstring"),
)
BOXES = "predictionstring"  # ImageNet's own column: a synset and a box for each object, all of one class
EXPECTED = "a file name and a label in each line"


class Row(NamedTuple):
    """A line of the file: its number, the image's name, and the label."""

    line: int
    name: str
    label: str


def assign_labels(labels: Labels, images: Sequence[str], root: str) -> Dict[str, str]:
    """Return the label of each image of a folder that the file or the mapping lists, in the order of ``images``.

    ``images`` are paths in the folder ``root``. A name may leave out the folders or the suffix where that is clear.
    Raises ArgumentError, with the line, for names without an image, for those that several images could have, for two
    labels of one image, and for a file that has no names and labels.
    """
    path = None if isinstance(labels, Mapping) else check_local_path("labels", labels)
    rows = _from_mapping(labels) if isinstance(labels, Mapping) else None
    names = _by_name(images)
    if rows is None:
        assert path is not None
        rows = _read_rows(path, names)
    assigned: Dict[str, str] = {}
    missing = [row for row in rows if row.name not in names]
    if missing:
        listed = format_keys([row.name for row in missing], 5)
        raise _error(
            path,
            f"lists {len(missing)} of {len(rows)} images that {root} does not have: {listed}",
            missing[0].line,
            hint=f"names are paths in {root}, such as {images[0]}",
        )
    for row in rows:
        candidates = names[row.name]
        if len(candidates) > 1:
            raise _error(path, f"has {row.name}, which may be {format_keys(candidates, 3)}", row.line)
        if assigned.setdefault(candidates[0], row.label) != row.label:
            raise _error(path, f"has the labels {assigned[candidates[0]]} and {row.label} for {row.name}", row.line)
    return {name: assigned[name] for name in images if name in assigned}


def _by_name(images: Iterable[str]) -> Dict[str, List[str]]:
    """Return the images that each name may stand for: a path, a path without its suffix, and the same without folders.

    A path stands for its own image alone.
    """
    names: Dict[str, List[str]] = {}
    base = posixpath.basename
    for shorten in (lambda name: name, _stem, base, lambda name: _stem(base(name))):
        level: Dict[str, List[str]] = {}
        for image in images:
            level.setdefault(shorten(image), []).append(image)
        names.update((name, candidates) for name, candidates in level.items() if name not in names)
    return names


def _stem(name: str) -> str:
    return name[: name.rindex(".")] if name.lower().endswith(IMAGE_SUFFIXES) else name


def _from_mapping(labels: Mapping[str, Any]) -> List[Row]:
    rows = [Row(0, _normalize(str(name)), str(label).strip()) for name, label in labels.items()]
    if not rows:
        raise _error(None, "are empty")
    return rows


def _read_rows(path: Path, names: Mapping[str, Any]) -> List[Row]:
    text = read_text(path, max_bytes=MAX_BYTES, purpose="labels", error=functools.partial(_error, path))
    lines = text.splitlines(keepends=True)
    records = [(number, record) for number, record in _records(lines, path) if any(cell.strip() for cell in record)]
    if not records:
        raise _error(path, "is empty")
    header = records[0][1]
    columns = _columns_of_header(header)
    is_header = columns is not None and not any(_normalize(cell) in names for cell in header)
    if is_header:
        assert columns is not None
        rows = records[1:]
        if not rows:
            raise _error(path, "has a header and no lines")
    else:
        columns = _columns_of_rows(records, names, path)
        rows = records if _normalize(header[columns[0]]) in names or len(records) == 1 else records[1:]
    return [_row(path, number, record, columns) for number, record in rows]


def _row(path: Path, number: int, record: Sequence[str], columns: Tuple[int, int, bool]) -> Row:
    name, label, has_boxes = columns
    if len(record) <= max(name, label):
        raise _error(path, f"has {len(record)} columns", number)
    text = record[label].strip()
    text = text.split(" ")[0] if has_boxes else text
    if not text:
        raise _error(path, f"has no label for {record[name]}", number)
    return Row(number, _normalize(record[name]), text)


def _columns_of_header(header: Sequence[str]) -> Optional[Tuple[int, int, bool]]:
    """Return the columns of the names and the labels of a header, and whether labels have boxes; None for another."""
    titles = [cell.strip().lower().replace("_", "").replace(" ", "").replace("-", "") for cell in header]
    label = next((titles.index(title) for title in LABEL_COLUMNS if title in titles), None)
    name = next(
        (titles.index(title) for title in FILE_COLUMNS if title in titles and titles.index(title) != label), None
    )
    return None if name is None or label is None else (name, label, titles[label] == BOXES)


def _columns_of_rows(records: Sequence[Any], names: Mapping[str, Any], path: Path) -> Tuple[int, int, bool]:
    """Return the columns of the names and the labels of lines without a known header."""
    number, record = records[min(1, len(records) - 1)]
    if len(record) != 2:
        hint = 'name two columns "filename" and "label" in the first line'
        if len(record) == 1:
            hint = "write the name of the image before each label; ImageNet's ground truth lists indices of its own"
        raise _error(path, f"has {pluralize(len(record), 'column')}", number, expected=EXPECTED, hint=hint)
    return (1, 0, False) if _normalize(record[1]) in names and _normalize(record[0]) not in names else (0, 1, False)


def _records(lines: List[str], path: Path) -> Iterable[Tuple[int, List[str]]]:
    first = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in ("\t", ",", ";") if mark in first), None)
    if delimiter is None:  # Caffe's lists: the label is the last word
        yield from ((number, line.strip().rsplit(None, 1)) for number, line in enumerate(lines, 1))
        return
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _error(path, f"is not valid CSV: {error}", reader.line_num) from None
        yield reader.line_num, record


def _normalize(name: str) -> str:
    name = name.strip().replace("\\", "/")
    return name[2:] if name.startswith("./") else name


def _error(path: Optional[Path], problem: str, line: int = 0, **data: Any) -> ArgumentError:
    where = f"line {line} of {path}" if path is not None and line else "labels" if path is None else str(path)
    return ArgumentError(f"{where} {problem}", path=path, **{"expected": EXPECTED, "hint": f"write {EXPECTED}", **data})
