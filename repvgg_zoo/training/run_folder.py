"""The folder of a fine-tuning run: what it was asked for, where it is, and its results.

Each file is written whole or not at all, so that a run that was killed goes on from the last one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from .._arguments import check_local_path
from .._atomic import atomic_write, remove_stale_temp_files
from .._json import parse_json
from ..checkpoints.formats import safetensors_file
from ..checkpoints.formats.file_buffer import METADATA_KEY, MalformedFile
from ..checkpoints.save import write_safetensors
from ..errors import ArgumentError, CheckpointFormatError
from .recipe import differences

BEST = "best.safetensors"
LAST = "last.safetensors"
CURVES = "curves.png"
REPORT = "report.json"
SETTINGS = "run.json"
STATE = "resume.safetensors"  # weights, momentum and averages after the last epoch; removed at the end
FEATURES = "features"  # of all images, for the head; removed at the end


class State(NamedTuple):
    """Where a run is: arrays by name, and numbers and texts as JSON has them."""

    arrays: Mapping[str, NDArray[Any]]
    progress: Dict[str, Any]


def open_run(output: Any, settings: Mapping[str, Any], *, resume: bool) -> Path:
    """Return the folder of a run, which is new, or of one with these settings.

    Raises ArgumentError for a folder with anything else in it, and for a run with other settings, which are named.
    """
    folder = check_local_path("output", output)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{folder} is a file", path=folder, hint="pass a folder, which is created")
    plain = json.loads(json.dumps(settings))
    previous = read_json(folder / SETTINGS)
    if previous is not None:
        if not resume:
            raise ArgumentError(
                f"{folder} holds a run already", path=folder, hint="pass another output, or resume=True to go on"
            )
        changed = differences(previous, plain)
        if changed:
            raise ArgumentError(
                f"{folder} holds a run with other settings: {', '.join(changed)}",
                path=folder,
                expected=previous,
                actual=plain,
                hint="pass the same settings to go on, or another output for a new run",
            )
    elif folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ArgumentError(
            f"{folder} is not empty, and holds no run",
            path=folder,
            hint="pass another output, a folder that is empty or does not exist",
        )
    (folder / FEATURES).mkdir(parents=True, exist_ok=True)
    for part in (folder, folder / FEATURES):
        remove_stale_temp_files(part)
    write_json(folder / SETTINGS, plain)
    return folder


def write_state(folder: Path, state: State) -> None:
    """Write where the run is, in place of where it was."""
    text = json.dumps(state.progress)
    atomic_write(folder / STATE, lambda stream: write_safetensors(stream, state.arrays, text))


def read_state(folder: Path) -> Optional[State]:
    """Return where the run is, or None if it has not come to the first epoch; raise CheckpointFormatError."""
    try:
        arrays = safetensors_file.read((folder / STATE).read_bytes())
    except FileNotFoundError:
        return None
    except MalformedFile as error:
        raise CheckpointFormatError(
            f"{folder / STATE} is damaged: {error}",
            path=folder / STATE,
            hint="remove it, to train again from the first epoch",
        ) from error
    progress = json.loads(arrays.pop(METADATA_KEY))
    return State({name: np.array(array) for name, array in arrays.items()}, progress)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    atomic_write(path, lambda stream: stream.write(text.encode("ascii")))


def read_json(path: Path) -> Optional[Any]:
    """Return the value of a JSON file of this folder, or None if it does not exist; raise CheckpointFormatError."""
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointFormatError(
            f"{path} is damaged: {error}", path=path, hint="pass another output, to begin again"
        ) from error


def remove_intermediate_files(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    for path in (folder / STATE, *(folder / FEATURES).glob("*")):
        path.unlink(missing_ok=True)
    if (folder / FEATURES).is_dir():
        (folder / FEATURES).rmdir()


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as .npz."""
    atomic_write(path, lambda stream: np.savez(stream, **arrays))


def read_arrays(path: Path) -> Optional[Dict[str, NDArray[Any]]]:
    """Return the arrays of a .npz file, or None if it does not exist."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
