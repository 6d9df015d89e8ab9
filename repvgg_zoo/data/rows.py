"""RowFile: a CSV file with a row for each image, which an interrupted run leaves behind and the next one continues.

Until all rows are written they are in ``NAME.partial``, whose first line says what is evaluated. A row that was only
written in part is dropped.
"""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Type

from .._atomic import atomic_write
from .._json import parse_json
from ..errors import ArgumentError
from .counts import Row

SUFFIX = ".partial"
ENCODING, ERRORS = "utf-8", "surrogateescape"  # file names may be any bytes
MAX_HEADER_BYTES = 1 << 16


class RowFile:
    """Rows of the file ``path``; ``rows`` are those that an interrupted run has left, whole batches of them.

    ``identity`` is what the rows are about. Raises ArgumentError if the file exists, if another process writes it, and
    if an interrupted run was about something else.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, batch_size: int, overwrite: bool) -> None:
        if not path.parent.is_dir():
            raise ArgumentError(f"the folder {path.parent} does not exist", path=path, hint="create it")
        if path.is_dir() or (path.exists() and not overwrite):
            raise ArgumentError(f"{path} exists already", path=path, hint="overwrite=True replaces it")
        self._path = path
        self._partial = path.with_name(path.name + SUFFIX)
        self._file: BinaryIO = self._partial.open("a+b")
        try:
            self._lock()
            self.rows: Tuple[Row, ...] = tuple(self._read(identity, batch_size, overwrite))
        except BaseException:
            self._file.close()
            raise

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows, which are then safe from whatever happens to this process."""
        self._file.write(_encode(rows))
        self._file.flush()

    def finish(self) -> None:
        """Move the rows to the final name, below a header."""
        self._file.seek(0)
        self._file.readline()
        header = _encode([Row._fields])
        atomic_write(self._path, lambda stream: _copy(self._file, stream, header))
        self._partial.unlink()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._file.close()

    def _lock(self) -> None:
        with suppress(ImportError):  # Windows
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArgumentError(
                    f"another process writes {self._partial}", path=self._partial, hint="use another output"
                ) from None
            except OSError:  # a file system without locks
                return

    def _read(self, identity: Mapping[str, Any], batch_size: int, overwrite: bool) -> List[Row]:
        """Return the rows of whole batches, and cut off what follows; without any, the file begins with a header."""
        self._file.seek(0)
        header = self._file.readline(MAX_HEADER_BYTES)
        known = _parse_header(header)
        if header.endswith(b"\n") and known is None:
            raise ArgumentError(
                f"{self._partial} is not of an interrupted evaluation", path=self._partial, hint="delete or rename it"
            )
        rows: List[Row] = []
        end = self._file.tell()
        for record, stop in _complete_records(self._file):
            row = _decode(record)
            if row is None:
                break
            rows.append(row)
            if len(rows) % batch_size == 0:
                end = stop
        del rows[len(rows) // batch_size * batch_size :]
        if rows and not (overwrite and known != dict(identity)):
            self._check(known, identity)
            self._file.truncate(end)
        else:
            rows = []
            self._file.truncate(0)
            self._file.write(json.dumps(dict(identity)).encode() + b"\n")
            self._file.flush()
        return rows

    def _check(self, known: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        names = [name for name in identity if known.get(name) != identity[name]]
        if names:
            raise ArgumentError(
                f"{self._partial} is of an interrupted evaluation with another {' and another '.join(names)}",
                path=self._partial,
                expected={name: known.get(name) for name in names},
                actual={name: identity[name] for name in names},
                hint="evaluate the same again, delete the file, or start over with overwrite=True",
            )


def _encode(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(ENCODING, ERRORS)


def _complete_records(file: BinaryIO) -> Iterator[Tuple[List[str], int]]:
    """Yield each record that ends, and where: a quoted text may have line breaks."""
    pending = b""
    for line in file:
        pending += line
        if not line.endswith(b"\n"):
            return
        if pending.count(b'"') % 2 == 0:
            yield next(csv.reader(io.StringIO(pending.decode(ENCODING, ERRORS), newline=""))), file.tell()
            pending = b""


def _decode(record: Sequence[str]) -> Optional[Row]:
    try:
        key, label, index, prediction, prediction_index, probability, rank, error = record
        return Row(key, label, int(index), prediction, int(prediction_index), float(probability), int(rank), error)
    except ValueError:
        return None


def _parse_header(line: bytes) -> Any:
    with suppress(ValueError):
        value = parse_json(line)
        return value if isinstance(value, dict) else None
    return None


def _copy(source: BinaryIO, target: BinaryIO, header: bytes) -> None:
    import shutil

    target.write(header)
    shutil.copyfileobj(source, target)
