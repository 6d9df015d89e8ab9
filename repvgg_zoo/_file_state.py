"""Tell whether a file is still the very file that was checked before, without reading it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


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
    if not hasattr(os, "getuid"):  # Windows, whose st_ctime is the time of creation as well
        return False
    try:
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022
