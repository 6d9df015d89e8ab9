"""open_regular_file: open a path for reading without waiting, which opening a FIFO or a device may do for ever.

read_text: the text of such a file.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Callable

from .errors import MissingFileError, PathLike


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


def read_text(path: Path, *, max_bytes: int, purpose: str, error: Callable[..., Exception]) -> str:
    """Return the text of a file that a user wrote: UTF-8, with or without a byte order mark.

    Raises MissingFileError, and what ``error`` returns for a problem in words, with ``expected`` or the ``line`` where
    there is one; ``purpose`` is what the text is for.
    """
    try:
        with io.BufferedReader(open_regular_file(path)) as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist", path=path, hint="check the path") from None
    except (OSError, ValueError) as caught:
        raise error(f"cannot be read: {getattr(caught, 'strerror', None) or caught}") from caught
    if len(data) > max_bytes:
        raise error(f"is too large for {purpose}", expected=f"at most {max_bytes} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as caught:
        raise error("is not UTF-8", line=data.count(b"\n", 0, caught.start) + 1) from None


def describe_file_type(mode: int) -> str:
    """Return what a path is, from the ``st_mode`` of its status, such as "a folder".

    >>> describe_file_type(os.lstat("/").st_mode)
    'a folder'
    """
    names = {stat.S_IFREG: "a regular file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a FIFO"}
    return names.get(stat.S_IFMT(mode), "a device or socket")
