"""save_checkpoint: a network or its arrays to a file, in our layout or in that of a publisher it goes home to."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import struct
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, Dict, Mapping, Optional, Union

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, LayoutError, PathLike
from .layouts import Layout, layout_called, published_array, published_key

if TYPE_CHECKING:
    from megengine.module import Module

SAVED_LAYOUTS = ("native", "official", "timm", "openmmlab", "basecls")
SAFETENSORS_DTYPES = {"float16": "F16", "float32": "F32", "float64": "F64"}
SUFFIXES = {".safetensors": "safetensors", ".pkl": "megengine"}


def save_checkpoint(
    path: PathLike,
    arrays_or_module: Union[Mapping[str, NDArray[Any]], Module],
    *,
    layout: Union[str, Layout] = "native",
    format: Optional[str] = None,
) -> None:
    """Writes native arrays, or those of a network, to ``path``; the file is there whole or not at all.

    ``layout`` is "native" or a publisher's: "official" (torch's shapes; RepVGGplus too), "timm", "openmmlab",
    "basecls", a plug-in's (``acme/name``), or a ``Layout`` of your own. ``format`` is "safetensors" or "megengine" (a
    pickle of NumPy arrays that ``megengine.load`` reads), and otherwise follows from the suffix, ``.safetensors`` or
    ``.pkl``. Values and dtypes are kept exactly. Raises ArgumentError for a layout, format or suffix that cannot be
    written, LayoutError for keys that the publisher has no name for, PluginError, and OSError as the disk does.
    """
    file = Path(os.fspath(path))
    write = WRITERS[_format(file, format)]
    arrays = published(_arrays(arrays_or_module), layout)
    if not file.parent.is_dir():
        raise ArgumentError(f"{file.parent} is not a folder", path=file, hint="make the folder first")
    write_whole(file, lambda stream: write(stream, arrays))


def published(arrays: Mapping[str, NDArray[Any]], layout: Union[str, Layout]) -> Dict[str, NDArray[Any]]:
    """Native arrays under a publisher's keys and in its shapes, not copied where a view will do."""
    if isinstance(layout, str) and "/" not in layout and layout not in SAVED_LAYOUTS:
        known = ", ".join(SAVED_LAYOUTS)
        raise ArgumentError(
            f"layout {layout!r} cannot be written", expected=known, actual=layout, hint=f"choose from {known}"
        )
    if layout == "native":
        return dict(arrays)
    target = layout_called(layout)
    names = {key: published_key(target, key) for key in arrays}
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise LayoutError(
            f"layout {target.name} has no name for {len(unknown)} keys: {', '.join(unknown[:10])}",
            actual=unknown,
            hint='write layout "native", which has room for every network',
        )
    return {str(name): published_array(target, key, arrays[key]) for key, name in names.items()}


def _arrays(source: Union[Mapping[str, NDArray[Any]], Module]) -> Mapping[str, NDArray[Any]]:
    arrays = source if isinstance(source, Mapping) else getattr(source, "state_dict", dict)()  # BN comes out as (C,)
    if not arrays:
        raise ArgumentError(
            f"{type(source).__name__} holds no arrays to save", hint="give a network, or a dict of NumPy arrays"
        )
    other = [
        str(key)
        for key, value in arrays.items()
        if not (isinstance(key, str) and isinstance(value, np.ndarray) and value.dtype.name in SAFETENSORS_DTYPES)
    ]
    if other:
        raise ArgumentError(
            f"only NumPy arrays of float16, float32 or float64 can be saved, unlike {', '.join(other[:10])}",
            actual=other,
            hint="tensor.numpy() makes an array of a tensor; counters and settings belong into a file of their own",
        )
    return arrays


def _format(path: Path, format: Optional[str]) -> str:
    chosen = format or SUFFIXES.get(path.suffix.lower(), "")
    if chosen not in WRITERS:
        raise ArgumentError(
            f"cannot tell the format to write from {path.name!r}",
            path=path,
            expected=sorted(WRITERS),
            actual=chosen,
            hint=f"end the name in {' or '.join(SUFFIXES)}, or give format= {' or '.join(WRITERS)}",
        )
    return chosen


def write_safetensors(stream: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes what the library would, byte for byte, but array by array.

    ``safetensors.numpy.save`` makes two copies of the whole in memory first: on B3, 0.9 GB and three times as long. Its
    ``save_file`` makes none, yet puts a file of its own, of mode 600, in our file's place.
    """
    ordered = sorted(_contiguous(arrays).items(), key=lambda item: (-item[1].itemsize, item[0]))
    header, end = {}, 0
    for key, array in ordered:
        begin, end = end, end + array.nbytes
        header[key] = {
            "dtype": SAFETENSORS_DTYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of their size
    stream.write(struct.pack("<Q", len(text)) + text)
    for _, array in ordered:
        stream.write(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)


def _write_pickle(stream: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    # Protocol 4 and an OrderedDict are what megengine.save writes, on every Python that it runs on.
    pickle.dump(_contiguous(arrays), stream, protocol=4)


def _contiguous(arrays: Mapping[str, NDArray[Any]]) -> Dict[str, NDArray[Any]]:
    # Whatever kind of array came in (a memory map, say), a plain one goes out.
    return OrderedDict((key, np.asarray(array, order="C")) for key, array in arrays.items())


WRITERS: Mapping[str, Callable[[BinaryIO, Mapping[str, NDArray[Any]]], None]] = {
    "safetensors": write_safetensors,
    "megengine": _write_pickle,
}


def write_whole(path: Path, write: Callable[[BinaryIO], None], *, durable: bool = True) -> None:
    """Writes beside ``path``, then renames: a reader sees the old file or the new one, and a crash leaves no half.

    A file that is not ``durable`` may be cut short by a power failure, for a caller who can tell and make it again.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    stream = part.open("xb")  # with the permissions that the umask gives, unlike tempfile's
    try:
        with stream:
            write(stream)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())  # or a power cut could leave the new name on an empty file
        part.replace(path)
    except BaseException:
        part.unlink()
        raise
