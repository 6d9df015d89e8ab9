"""open_regular_file: open a path for reading without waiting, which opening a FIFO or a device may do for ever."""

from __future__ import annotations

import io
import os
import stat

from .errors import PathLike


def open_regular_file(path: PathLike) -> io.FileIO:
    """Return the open file, unbuffered; raise ValueError if it is not a regular one, and what ``os.open`` raises."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
        return io.FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def describe_file_type(mode: int) -> str:
    """Return what a path is, from the ``st_mode`` of its status, such as "a folder".

    >>> describe_file_type(os.lstat("/").st_mode)
    'a folder'
    """
    names = {stat.S_IFREG: "a regular file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a FIFO"}
    return names.get(stat.S_IFMT(mode), "a device or socket")
