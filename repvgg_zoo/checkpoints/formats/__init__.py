"""Reads the files of every publisher, safetensors, MegEngine, PyTorch and PaddlePaddle, with none of them installed."""

from __future__ import annotations

from typing import Any, Tuple

from ..._sniff import SNIFF_BYTES, sniff_content_type
from ...errors import CheckpointFormatError, PathLike, UnsafePickleError
from . import numpy_pickle, safetensors_file, torch_legacy, torch_zip
from .mmap_file import Buffer, Damaged, map_file

__all__ = ["read_file"]

SAVE_AGAIN = (
    "In the program that made it, save `model.state_dict()` alone (with megengine: arrays, as its state_dict gives "
    "them; with torch: tensors), or write it as safetensors."
)


def read_file(path: PathLike) -> Tuple[str, Any]:
    """The name of a checkpoint file's format and its raw tree, without any framework and without running its code.

    The format, told from the content and not from the suffix, is "safetensors", "megengine" (a pickle of NumPy arrays),
    "torch" (zip or legacy) or "paddle". The tree is what was saved: as a rule a dict of NumPy arrays by name, which may
    lie in further dicts among scalars, text, lists and tuples. Arrays have the file's dtypes in native byte order, but
    bfloat16 becomes float32; they are read-only views of the mapped file wherever the file allows, not always aligned.
    Raises CheckpointFormatError, and UnsafePickleError with the names that a pickle may not use.
    """
    data = map_file(path)
    kind = sniff_content_type(bytes(data[:SNIFF_BYTES]))
    if kind is not None:
        raise CheckpointFormatError(f"the file is {kind.name}, not a checkpoint", hint=kind.hint, path=path)
    try:
        return _read(data, path)
    except UnsafePickleError as error:
        names = ", ".join(error.blocked[:5]) + (", ..." if len(error.blocked) > 5 else "")
        raise UnsafePickleError(
            f"The pickle holds more than arrays and plain values, so it was not read: {names}.",
            blocked=error.blocked,
            hint=SAVE_AGAIN,
            path=path,
        ) from None
    except Damaged as error:
        raise CheckpointFormatError(
            f"The file is not a checkpoint that can be read: {error}.",
            hint="If it was downloaded, compare its size and digest with the publisher's. Otherwise: " + SAVE_AGAIN,
            path=path,
        ) from error


def _read(data: Buffer, path: PathLike) -> Tuple[str, Any]:
    if data[:2] == b"PK":
        return "torch", torch_zip.read(data)
    if safetensors_file.is_safetensors(data):
        return "safetensors", safetensors_file.read(data, path)
    if torch_legacy.is_legacy(data):
        return "torch", torch_legacy.read(data)
    if data[:1] not in (
        b"\x80",
        b"(",
        b"]",
        b"}",
        b"c",
    ):  # protocol 2 and later; what a state dict of 0 or 1 begins with
        raise Damaged("its first bytes are those of no known format")
    return numpy_pickle.read(data)
