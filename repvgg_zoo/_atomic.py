"""atomic_write: a file appears under its name whole, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Callable

from .errors import PathLike

TEMP_SUFFIX = ".tmp"
TEMP_MAX_AGE_S = 3600.0  # a temporary file that is older was left behind by a process that died


def atomic_write(path: PathLike, write: Callable[[BinaryIO], object], *, fsync: bool = True) -> None:
    """Call ``write`` with a new file beside ``path``, then rename that file to ``path``.

    A reader sees the old file or the new one, never a part of it, and a failure leaves the old file untouched and
    nothing beside it. The new file gets the permissions that the umask allows. Without ``fsync`` a power failure may
    leave a file that is too short, which is for callers who can tell and write it again. Raise what ``write`` raises,
    and OSError, also if the path is a folder, a FIFO or a device: root could replace even /dev/null.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it exists and is not a regular file", str(target))
    temp = target.with_name(f".{target.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}")
    stream = temp.open("x+b")  # unlike the tempfile module's, with the permissions that the umask gives
    try:
        with stream:
            write(stream)
            if fsync:
                stream.flush()
                os.fsync(stream.fileno())  # or a power failure could leave the new name on an empty file
        temp.replace(target)
    except BaseException:
        with suppress(OSError):
            temp.unlink()
        raise


def remove_stale_temp_files(folder: Path) -> None:
    """Remove the temporary files of ``atomic_write`` that processes left behind when they were killed."""
    for path in folder.glob(f".*{TEMP_SUFFIX}"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > TEMP_MAX_AGE_S:
                path.unlink()
