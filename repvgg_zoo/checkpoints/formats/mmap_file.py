"""Opens a checkpoint file as a read-only memory map, which its arrays keep alive."""

from __future__ import annotations

import mmap
import os
import stat
from typing import Tuple, Union

from ...errors import CheckpointFormatError, PathLike


class MappedFile(mmap.mmap):
    """A file's content, which knows where it came from: ``path``, and ``identity`` as device and inode."""

    path: PathLike
    identity: Tuple[int, int]


Buffer = Union[bytes, MappedFile]


class Damaged(ValueError):
    """The content is damaged or beyond a limit; read_file, which knows the path, turns it into its own error."""


def map_file(path: PathLike) -> Buffer:
    """The content of a regular file. Raises CheckpointFormatError where there is none to read.

    Replacing the file later (rename, unlink) is harmless; truncating it in place is not, as with every memory map.
    """
    try:
        # A FIFO would block for ever on opening, and a device has no size.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointFormatError(
                    "This is not a regular file.", hint="Pass the checkpoint's file.", path=path
                )
            if not status.st_size:
                return b""
            mapped = MappedFile(descriptor, 0, access=mmap.ACCESS_READ)
            mapped.path, mapped.identity = path, (status.st_dev, status.st_ino)
            return mapped
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointFormatError):
            raise
        raise CheckpointFormatError(
            f"The checkpoint cannot be opened: {getattr(error, 'strerror', None) or error}.",
            hint="Check the path and its permissions.",
            path=path,
        ) from error
