"""Open a checkpoint file and read it into private memory, of which its arrays are views."""

from __future__ import annotations

import mmap
import os
import stat
from typing import Any, Optional, Union

from ..._buffers import read_file
from ..._sniff import SNIFF_BYTES, sniff_content_type
from ...errors import CheckpointFormatError, MissingFileError, PathLike

Buffer = Union[bytes, bytearray, mmap.mmap]

# Under which a file of ours says what its weights are, see checkpoints/metadata.py; so does the payload that is read.
METADATA_KEY = "repvgg_zoo_metadata"
MAX_FILE_BYTES = 1 << 34  # a training state of the largest network, in float64, has about 2 GB


class MalformedFile(ValueError):
    """The content is damaged, as far as one can tell; read_file, which knows the path, turns it into its own error."""

    damaged = True

    def __init__(self, message: str, *, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.hint = hint


class UnsupportedFile(MalformedFile):
    """The content may well be whole, but is of a kind or a size that is not read."""

    damaged = False


def read_buffer(path: PathLike) -> Buffer:
    """Return the content of a regular file; what happens to the file afterwards does not change it.

    Raises MissingFileError if the file does not exist, and CheckpointFormatError if it cannot be opened, is not a
    regular file, is larger than any checkpoint, starts like another kind of file, or is truncated while it is read.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointFormatError("not a regular file", hint="pass the checkpoint's file", path=path)
            if status.st_size > MAX_FILE_BYTES:
                raise CheckpointFormatError(
                    f"the file has {status.st_size} bytes, more than any checkpoint of a RepVGG",
                    hint="pass the checkpoint's file",
                    path=path,
                    damaged=False,
                    expected=MAX_FILE_BYTES,
                    actual=status.st_size,
                )
            kind = sniff_content_type(bytes(read_file(descriptor, min(status.st_size, SNIFF_BYTES))))
            if kind is not None:
                message = f"the file is {kind.name}, not a checkpoint"
                raise CheckpointFormatError(message, hint=kind.hint, path=path, damaged=kind.is_placeholder)
            content: Any = read_file(descriptor, status.st_size).obj
            return content  # type: ignore[no-any-return]
        finally:
            os.close(descriptor)
    except CheckpointFormatError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{os.fspath(path)} does not exist", path=path, hint="check the path") from None
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointFormatError(
            f"the checkpoint cannot be read: {getattr(error, 'strerror', None) or error}",
            hint="check the path and its permissions",
            path=path,
        ) from error
