"""pooled_features: what the head of a network takes, of all images, kept in files until the run is finished."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Checkpoint
from ..data.engine import Output, compute
from ..data.sources import Sample
from ..errors import ArgumentError
from ..inference.cost_model import DEFAULT_CPU_SPEED
from .run_folder import FEATURES, read_arrays, write_arrays

CHUNK = 1024  # images in a file


class Features(NamedTuple):
    """Pooled features (N, channels) float32 of the images that could be read, and which these are, by their indices.

    ``skipped`` are the keys of the others, each with the reason.
    """

    values: NDArray[Any]
    indices: NDArray[Any]
    skipped: Tuple[Tuple[str, str], ...]


def pooled_features(
    folder: Path, part: str, model: Checkpoint, samples: Sequence[Sample], *, threads: Optional[int], on_error: str
) -> Features:
    """Return the features of samples, those from ``folder`` that an earlier call has computed.

    Raises ArgumentError if no image can be read, and what ``data.engine.compute`` raises.
    """
    chunks: List[Any] = []
    starts = range(0, len(samples), CHUNK)
    for start in starts:
        arrays = read_arrays(_path(folder, part, start))
        if arrays is None:
            break
        chunks.append(arrays)
    remaining = samples[len(chunks) * CHUNK :]
    outputs: Iterator[Output] = iter(())
    if remaining:
        # A constant speed gives the same algorithms, and so the same bits, in every process that works on a run.
        outputs = compute(
            model, remaining, threads=threads, output="features", on_error=on_error, speed=DEFAULT_CPU_SPEED
        )
    for start in starts[len(chunks) :]:
        rows = list(itertools.islice(outputs, CHUNK))
        values = [row.values for row in rows if row.values is not None]
        arrays = {
            "values": np.array(values, np.float32),
            "indices": np.array([start + i for i, row in enumerate(rows) if row.values is not None], np.int64),
            "keys": np.array([row.key for row in rows if row.values is None], np.str_),
            "errors": np.array([row.error for row in rows if row.values is None], np.str_),
        }
        write_arrays(_path(folder, part, start), arrays)
        chunks.append(arrays)
    skipped = [(str(key), str(error)) for chunk in chunks for key, error in zip(chunk["keys"], chunk["errors"])]
    if len(skipped) == len(samples):
        raise ArgumentError(
            f"none of the {len(samples)} images can be read, the first one because {skipped[0][1]}",
            actual=skipped[0][0],
            hint="check the files",
        )
    filled = [chunk for chunk in chunks if len(chunk["indices"])]
    return Features(
        np.concatenate([chunk["values"] for chunk in filled]),
        np.concatenate([chunk["indices"] for chunk in filled]),
        tuple(skipped),
    )


def _path(folder: Path, part: str, start: int) -> Path:
    return folder / FEATURES / f"{part}-{start // CHUNK:06d}.npz"
