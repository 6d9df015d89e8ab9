"""save_checkpoint: a network or its arrays to a file, in our layout or in that of a publisher it goes home to."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Callable, Dict, Mapping, Optional, Union

import numpy as np

from ..errors import ArgumentError, LayoutError, PathLike
from .layouts import LAYOUTS, published_array, published_key

if TYPE_CHECKING:
    from megengine.module import Module

SAVED_LAYOUTS = ("native", "official", "timm", "openmmlab", "basecls")
SUFFIXES = {".safetensors": "safetensors", ".pkl": "megengine"}


def save_checkpoint(
    path: PathLike,
    arrays_or_module: Union[Mapping[str, np.ndarray], Module],
    *,
    layout: str = "native",
    format: Optional[str] = None,
) -> None:
    """Writes native arrays, or those of a network, to ``path``; the file is there whole or not at all.

    ``layout`` is "native" or a publisher's: "official" (torch's shapes; RepVGGplus too), "timm", "openmmlab",
    "basecls". ``format`` is "safetensors" or "megengine" (a pickle of NumPy arrays that ``megengine.load`` reads), and
    otherwise follows from the suffix, ``.safetensors`` or ``.pkl``. Values and dtypes are kept exactly. Raises
    ArgumentError for a layout, format or suffix that cannot be written, LayoutError for keys that the publisher has no
    name for, and OSError as the disk does.
    """
    file = Path(os.fspath(path))
    write = WRITERS[_format(file, format)]
    arrays = published(_arrays(arrays_or_module), layout)
    _write_whole(file, lambda stream: write(stream, arrays))


def published(arrays: Mapping[str, np.ndarray], layout: str) -> Dict[str, np.ndarray]:
    """Native arrays under a publisher's keys and in its shapes, not copied where a view will do."""
    if layout not in SAVED_LAYOUTS:
        known = ", ".join(SAVED_LAYOUTS)
        raise ArgumentError(
            f"layout {layout!r} cannot be written", expected=known, actual=layout, hint=f"choose from {known}"
        )
    if layout == "native":
        return dict(arrays)
    target = LAYOUTS[layout]
    names = {key: published_key(target, key) for key in arrays}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise LayoutError(
            f"layout {layout} has no name for {len(unknown)} keys: {', '.join(unknown[:10])}",
            actual=unknown,
            hint='write layout "native", which has room for every network',
        )
    return {str(name): published_array(target, key, arrays[key]) for key, name in names.items()}


def _arrays(source: Union[Mapping[str, np.ndarray], Module]) -> Mapping[str, np.ndarray]:
    if isinstance(source, Mapping):
        return source
    return {key: np.asarray(value) for key, value in source.state_dict().items()}  # BN comes out as (C,)


def _format(path: Path, format: Optional[str]) -> str:
    if format is None:
        format = SUFFIXES.get(path.suffix.lower())
    if format not in WRITERS:
        raise ArgumentError(
            f"cannot tell the format to write from {path.name!r}",
            path=path,
            expected=sorted(WRITERS),
            actual=format,
            hint=f"end the name in {' or '.join(SUFFIXES)}, or give format= {' or '.join(WRITERS)}",
        )
    return format


def _write_safetensors(stream: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    stream.write(save({key: np.ascontiguousarray(array) for key, array in arrays.items()}))


def _write_pickle(stream: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    # Protocol 4 and an OrderedDict are what megengine.save writes, on every Python that it runs on.
    plain = OrderedDict((key, np.ascontiguousarray(array)) for key, array in arrays.items())
    pickle.dump(plain, stream, protocol=4)


WRITERS: Mapping[str, Callable[[BinaryIO, Mapping[str, np.ndarray]], None]] = {
    "safetensors": _write_safetensors,
    "megengine": _write_pickle,
}


def _write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes beside ``path``, then renames: a reader sees the old file or the new one, and a crash leaves no half."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_umask())  # mkstemp makes files private, whatever the umask
        os.replace(name, path)
    except BaseException:
        Path(name).unlink()
        raise


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
