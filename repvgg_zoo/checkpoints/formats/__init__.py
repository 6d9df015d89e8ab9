"""Read the files of every publisher (safetensors, MegEngine, PyTorch and PaddlePaddle) with none of them installed."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Optional, Sequence, Tuple

from ..._sniff import content_type_of_suffix
from ...errors import CheckpointFormatError, IntegrityError, PathLike, UnsafePickleError
from . import npz_file, numpy_pickle, safetensors_file, shards, torch_legacy, torch_zip
from .file_buffer import Buffer, MalformedFile, UnsupportedFile, read_buffer
from .pickle_values import NotRead
from .pickles import blocked_names
from .zip_archive import ZIP_ERRORS, Archive

__all__ = ["blocked_names", "check_archive", "read_file", "unsafe_pickle"]

# What is named like this and does not begin like a checkpoint is damaged.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".pdparams", ".npz")
SAVE_AGAIN = (
    "in the program that wrote it, save `model.state_dict()` alone (with megengine: arrays, as its state_dict returns "
    "them; with torch: tensors), or write it as safetensors"
)


def read_file(path: PathLike, sha256: Optional[str] = None) -> Tuple[str, Any]:
    """Return the name of a checkpoint file's format and its payload, without any framework and without running code.

    The format, detected from the content and not from the suffix, is "safetensors", "megengine" (a pickle of NumPy
    arrays), "torch" (zip or legacy), "paddle" or "npz". The index of a sharded checkpoint (``.index.json``) is
    "safetensors", with the tensors of all shards. The payload is what was saved: as a rule a dict of NumPy arrays by
    name, which may be nested in further dicts among scalars, text, lists and tuples. What a pickle makes with other
    globals than those of arrays, such as a training script's options, is never made: a NotRead is in its place. Arrays
    have the file's dtypes in native byte order, but bfloat16 becomes float32. They are read-only views of one private
    buffer with the file's content, where the format allows that, and not always aligned; changing the file afterwards
    does not change them.
    Raises CheckpointFormatError, UnsafePickleError if the whole payload is of such a global, and IntegrityError if
    the bytes that were read do not have the digest ``sha256``, if one is passed.
    """
    try:
        format, payload = _read_path(path, sha256)
        if isinstance(payload, NotRead):
            raise unsafe_pickle([payload.name], path)
        return format, payload
    except UnsafePickleError as error:
        raise unsafe_pickle(error.blocked, path, damaged=error.damaged) from None
    except MalformedFile as error:
        kind = content_type_of_suffix(os.fspath(path))
        if kind is not None:
            message = f"the file is {kind.name} by its name, not a checkpoint"
            raise CheckpointFormatError(message, hint=kind.hint, path=path, damaged=False) from error
        raise CheckpointFormatError(
            f"the file is not a readable checkpoint: {error}",
            hint=error.hint
            or f"if it was downloaded, compare its size and digest with the publisher's; otherwise: {SAVE_AGAIN}",
            path=path,
            damaged=error.damaged,
        ) from error


def check_archive(path: PathLike) -> bool:
    """Return whether a file is a zip archive, after comparing each member with its CRC, which read_file does not do.

    Raises CheckpointFormatError if one is damaged, and what read_file raises for a file that is not read at all.
    """
    data = read_buffer(path)
    if data[:2] != b"PK":
        return False
    try:
        Archive(data).check()
    except (MalformedFile, *ZIP_ERRORS) as error:
        damaged = getattr(error, "damaged", True)
        message = str(error) if isinstance(error, MalformedFile) else f"the zip archive is damaged ({str(error)[:200]})"
        raise CheckpointFormatError(message, hint="download it again", path=path, damaged=damaged) from error
    return True


def unsafe_pickle(blocked: Sequence[str], path: PathLike, *, damaged: bool = False) -> UnsafePickleError:
    """Return the error for a pickle whose weights need globals that are not read."""
    names = ", ".join(blocked[:5]) + (", ..." if len(blocked) > 5 else "")
    return UnsafePickleError(
        f"the pickle holds more than arrays and plain values, so it was not read: {names}",
        blocked=blocked,
        hint=SAVE_AGAIN,
        path=path,
        damaged=damaged,
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


def _read_path(path: PathLike, sha256: Optional[str]) -> Tuple[str, Any]:
    if shards.is_index(path):
        if sha256 is not None:
            raise UnsupportedFile("it is an index, whose digest says nothing about the files that it names")
        return "safetensors", shards.read(path)
    data = read_buffer(path)
    if sha256 is not None:
        _compare_digest(path, data, sha256)
    return _read(data, os.fspath(path))


def _read(data: Buffer, path: str) -> Tuple[str, Any]:
    if data[:2] == b"PK":
        return _read_zip(data)
    if safetensors_file.is_safetensors(data):
        return "safetensors", safetensors_file.read(data)
    if torch_legacy.is_legacy(data):
        return "torch", torch_legacy.read(data)
    # Pickles start with opcode PROTO since protocol 2; a state dict of protocol 0 or 1 with one of the others.
    if data[:1] not in (b"\x80", b"(", b"]", b"}", b"c"):
        message = "its first bytes are those of no known format"
        raise MalformedFile(message) if path.lower().endswith(SUFFIXES) else UnsupportedFile(message)
    return numpy_pickle.read(data)


def _read_zip(data: Buffer) -> Tuple[str, Any]:
    try:
        archive = Archive(data)
        return ("npz", npz_file.read(archive)) if npz_file.is_npz(archive) else ("torch", torch_zip.read(archive))
    except (MalformedFile, UnsafePickleError):
        raise
    except ZIP_ERRORS as error:
        raise MalformedFile(f"the zip archive is damaged ({type(error).__name__}: {str(error)[:200]})") from error
