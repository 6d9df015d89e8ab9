"""Reads the files of every publisher, safetensors, MegEngine, PyTorch and PaddlePaddle, with none of them installed."""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

from ...errors import CheckpointFormatError, PathLike, UnsafePickleError
from . import numpy_pickle, safetensors_file, torch_legacy, torch_zip
from .mmap_file import Buffer, Damaged, map_file

__all__ = ["read_file"]

SAVE_AGAIN = (
    "In the program that made it, save `model.state_dict()` alone (with megengine: arrays, as its state_dict gives "
    "them; with torch: tensors), or write it as safetensors."
)

# What the start of a file tells of those that are no checkpoint: (is it, what it is, what to do).
FOREIGN: List[Tuple[Callable[[bytes], bool], str, str]] = [
    (lambda start: not start, "The file is empty.", "Download it again."),
    (
        lambda start: start.lstrip()[:1] == b"<",
        "This is a web page (HTML or XML), not a checkpoint.",
        "A link to a page was downloaded instead of the file itself: look for its direct link.",
    ),
    (
        lambda start: start.startswith(b"version https://git-lfs"),
        "This is a Git LFS pointer, which stands for the file in a repository.",
        "Fetch the content with `git lfs pull`.",
    ),
    (lambda start: start.startswith(b"\x1f\x8b"), "The file is compressed by gzip.", "Unpack it with `gunzip`."),
    (lambda start: start.startswith(b"BZh"), "The file is compressed by bzip2.", "Unpack it with `bunzip2`."),
    (lambda start: start.startswith(b"\xfd7zXZ"), "The file is compressed by xz.", "Unpack it with `unxz`."),
    (
        lambda start: start[257:262] == b"ustar",
        "This is a tar archive.",
        "Unpack it and pass the checkpoint inside. Tar files of torch before 0.1.10 must be saved anew by a later one.",
    ),
    (lambda start: start.startswith(b"\x89HDF"), "This is an HDF5 file.", "Save the network's state as safetensors."),
    (
        lambda start: start.startswith(b"\x93NUMPY"),
        "This is a single NumPy array.",
        "A checkpoint is a dict of arrays by name: save it as safetensors.",
    ),
]


def read_file(path: PathLike) -> Tuple[str, Any]:
    """The name of a checkpoint file's format and its raw tree, without any framework and without running its code.

    The format, told from the content and not from the suffix, is "safetensors", "megengine" (a pickle of NumPy arrays),
    "torch" (zip or legacy) or "paddle". The tree is what was saved: as a rule a dict of NumPy arrays by name, which may
    lie in further dicts among scalars, text, lists and tuples. Arrays have the file's dtypes in native byte order, but
    bfloat16 becomes float32; they are read-only views of the mapped file wherever the file allows, not always aligned.
    Raises CheckpointFormatError, and UnsafePickleError with the names that a pickle may not use.
    """
    data = map_file(path)
    start = bytes(data[:512])
    for matches, message, hint in FOREIGN:
        if matches(start):
            raise CheckpointFormatError(message, hint=hint, path=path)
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
