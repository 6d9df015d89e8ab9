"""SHA-256 of files."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any, Callable

from ._files import open_regular_file

CHUNK_BYTES = 1 << 20


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits; raises OSError, also for what is not a regular file."""
    try:
        stream = open_regular_file(path)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    with stream:
        return hash_descriptor(stream.fileno())


def hash_descriptor(descriptor: int, copy: Callable[[bytes], Any] = lambda data: None) -> str:
    """Return the SHA-256 of what is left to read of an open file as 64 hex digits; raises OSError.

    ``copy`` is called with all that is read, such as the ``write`` of another file.
    """
    digest = hashlib.sha256()
    while True:
        data = os.read(descriptor, CHUNK_BYTES)
        if not data:
            return digest.hexdigest()
        digest.update(data)
        copy(data)
