"""The output folder of a run, on a disk or at a URL that megfile writes: files appear in it whole, or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Dict, Optional

from .._atomic import atomic_write, remove_stale_temp_files
from .._redact import redact
from ..errors import ArgumentError, PathLike
from .remote import is_url, join, megfile_for, open_binary, read_errors, write_errors


class OutputFolder:
    """A folder of files that are written as a whole: by rename on a disk, by one request in a bucket.

    ``path`` is a path or a URL such as ``s3://bucket/run-1``. Two processes may write the same file: one of them wins.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = str(path)
        self.is_remote = is_url(self.path)

    def prepare(self) -> None:
        """Create the folder, and remove what killed processes left in it.

        Raises ArgumentError, as all methods do, where the folder or a file in it cannot be read or written.
        """
        if self.is_remote:
            megfile_for(self.path)
            return
        folder = Path(self.path)
        if folder.exists() and not folder.is_dir():
            raise ArgumentError(f"{folder} is not a folder", path=folder, expected="a folder", hint="pass another one")
        with write_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            remove_stale_temp_files(folder)

    def write(self, name: str, data: bytes) -> None:
        """Write a file; when this returns, it is on the disk or in the bucket."""
        path = join(self.path, name)
        with write_errors(path):
            if self.is_remote:
                # Not smart_open, which would write what it has when it is interrupted.
                megfile_for(path).smart_save_as(io.BytesIO(data), path)
            else:
                atomic_write(path, lambda stream: stream.write(data))

    def read(self, name: str) -> Optional[bytes]:
        """Return a file's content, or None if it does not exist."""
        path = join(self.path, name)
        with read_errors(path):
            try:
                with open_binary(path) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

    def sizes(self) -> Dict[str, int]:
        """Return the size of each file by its name."""
        with read_errors(self.path):
            if not self.is_remote:
                # Hidden files are temporary: they are renamed while this runs.
                return {entry.name: entry.stat().st_size for entry in os.scandir(self.path) if entry.name[0] != "."}
            try:
                return {entry.name: entry.stat.size for entry in megfile_for(self.path).smart_scandir(self.path)}
            except FileNotFoundError:  # a bucket has no empty folders
                return {}

    def __repr__(self) -> str:
        return f"<OutputFolder {redact(self.path)}>"
