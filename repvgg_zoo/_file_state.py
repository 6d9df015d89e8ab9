"""Tell whether a file is still the very file that was checked before, without reading it again."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple, Optional


class FileState(NamedTuple):
    """What changes when a file is written, replaced or restored; no program can set ``ctime_ns`` to a chosen value."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Return the state that ``os.stat`` or ``os.fstat`` reports."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def only_this_user_writes(folder: Path) -> bool:
    """Return whether this user owns a folder and nobody else can write in it; False where the system cannot tell.

    Only in such a folder does a note about a file's state say something: elsewhere anybody could have written it.
    """
    try:
        status = folder.stat()
    except OSError:
        return False
    return hasattr(os, "getuid") and foreign_access(status) is None  # Windows says neither, nor a time of change


def foreign_access(status: os.stat_result) -> Optional[str]:
    """Return why somebody else may write in a folder of this status, or None; for POSIX systems."""
    if status.st_uid != os.getuid():
        return f"it belongs to user {status.st_uid}, not to {os.getuid()}"
    if status.st_mode & 0o022:
        return f"others can write to it ({stat.filemode(status.st_mode)})"
    return None
