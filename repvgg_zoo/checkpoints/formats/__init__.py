"""Read the files of every publisher (safetensors, MegEngine, PyTorch and PaddlePaddle) with none of them installed."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Optional, Sequence, Tuple

from ...errors import CheckpointFormatError, IntegrityError, PathLike, UnsafePickleError
from . import numpy_pickle, safetensors_file, torch_legacy, torch_zip
from .file_buffer import Buffer, MalformedFile, read_buffer
from .pickle_values import NotRead
from .pickles import blocked_names

__all__ = ["blocked_names", "read_file", "unsafe_pickle"]

SAVE_AGAIN = (
    "in the program that wrote it, save `model.state_dict()` alone (with megengine: arrays, as its state_dict returns "
    "them; with torch: tensors), or write it as safetensors"
)


def read_file(path: PathLike, sha256: Optional[str] = None) -> Tuple[str, Any]:
    """Return the name of a checkpoint file's format and its payload, without any framework and without running code.

    The format, detected from the content and not from the suffix, is "safetensors", "megengine" (a pickle of NumPy
    arrays), "torch" (zip or legacy) or "paddle". The payload is what was saved: as a rule a dict of NumPy arrays by
    name, which may be nested in further dicts among scalars, text, lists and tuples. What a pickle makes with other
    globals than those of arrays, such as a training script's options, is never made: a NotRead is in its place. Arrays
    have the file's dtypes in native byte order, but bfloat16 becomes float32. They are read-only views of one private
    buffer with the file's content, where the format allows that, and not always aligned; changing the file afterwards
    does not change them.
    Raises CheckpointFormatError, UnsafePickleError if the whole payload is of such a global, and IntegrityError if
    the bytes that were read do not have the digest ``sha256``, if one is passed.
    """
    data = read_buffer(path)
    if sha256 is not None:
        _compare_digest(path, data, sha256)
    try:
        format, payload = _read(data)
        if isinstance(payload, NotRead):
            raise unsafe_pickle([payload.name], path)
        return format, payload
    except UnsafePickleError as error:
        raise unsafe_pickle(error.blocked, path) from None
    except MalformedFile as error:
        raise CheckpointFormatError(
            f"the file is not a readable checkpoint: {error}",
            hint=f"if it was downloaded, compare its size and digest with the publisher's; otherwise: {SAVE_AGAIN}",
            path=path,
        ) from error


def unsafe_pickle(blocked: Sequence[str], path: PathLike) -> UnsafePickleError:
    """Return the error for a pickle whose weights need globals that are not read."""
    names = ", ".join(blocked[:5]) + (", ..." if len(blocked) > 5 else "")
    return UnsafePickleError(
        f"the pickle holds more than arrays and plain values, so it was not read: {names}",
        blocked=blocked,
        hint=SAVE_AGAIN,
        path=path,
    )


def _compare_digest(path: PathLike, data: Buffer, expected: str) -> None:
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise IntegrityError(
            f"{os.fspath(path)} changed after it was verified",
            hint="somebody else can write in its folder; copy the file into a folder of yours",
            path=path,
            expected=expected,
            actual=actual,
        )


def _read(data: Buffer) -> Tuple[str, Any]:
    if data[:2] == b"PK":
        return "torch", torch_zip.read(data)
    if safetensors_file.is_safetensors(data):
        return "safetensors", safetensors_file.read(data)
    if torch_legacy.is_legacy(data):
        return "torch", torch_legacy.read(data)
    # Pickles start with opcode PROTO since protocol 2; a state dict of protocol 0 or 1 with one of the others.
    if data[:1] not in (b"\x80", b"(", b"]", b"}", b"c"):
        raise MalformedFile("its first bytes are those of no known format")
    return numpy_pickle.read(data)
