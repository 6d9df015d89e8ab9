"""Table: the rows of a shard, and the files that they are written to: CSV with .npy for features, or Parquet."""

from __future__ import annotations

import csv
import io
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DependencyError

FORMATS = ("csv", "parquet")


class Table(NamedTuple):
    """Rows in the order of a shard's images; ``features`` (images, features) has NaN for images with an error."""

    columns: Tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    features: Optional[NDArray[np.float32]] = None


def encode(table: Table, format: str) -> Dict[str, bytes]:
    """Return the content of each file of a table by its suffix."""
    if format == "parquet":
        return {".parquet": encode_parquet(table)}
    files = {".csv": encode_csv(table)}
    if table.features is not None:
        files[".npy"] = encode_npy(table.features)
    return files


def encode_csv(table: Table) -> bytes:
    """Return the rows as UTF-8 with a header; floats have the digits that tell float32 numbers apart."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row])
    return text.getvalue().encode("utf-8", "surrogateescape")  # a path need not be valid UTF-8


def encode_npy(features: NDArray[np.float32]) -> bytes:
    """Return the features as an .npy file."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(features), allow_pickle=False)
    return stream.getvalue()


def encode_parquet(table: Table) -> bytes:
    """Return the rows as Parquet; features are a column of lists, null for images with an error."""
    check_format("parquet")
    import pyarrow
    import pyarrow.parquet

    cells: List[Sequence[Any]] = list(zip(*table.rows)) or [()] * len(table.columns)
    arrays = {name: pyarrow.array(column) for name, column in zip(table.columns, cells)}
    if table.features is not None:
        width = table.features.shape[1]
        values = [None if np.isnan(row).any() else row for row in table.features]
        arrays["features"] = pyarrow.array(values, pyarrow.list_(pyarrow.float32(), width))
    stream = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(arrays), stream)
    return bytes(stream.getvalue())


def check_format(format: str) -> None:
    """Raise DependencyError if a format needs a package that is not installed."""
    if format == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ModuleNotFoundError as error:
            raise DependencyError(
                "Parquet needs pyarrow, which is not installed",
                expected="pyarrow",
                hint="pip install pyarrow, on each node, or pass format='csv'",
            ) from error
