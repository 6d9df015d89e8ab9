"""copy_to_folder: a verified file of the cache, as a file of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from .._atomic import atomic_write
from .._digest import hash_descriptor, hash_file
from .._files import open_regular_file
from ..errors import ArgumentError, IntegrityError
from ..registry.specs import FileSpec
from .cache import VerifiedFile
from .filenames import sanitize_filename


def copy_to_folder(source: VerifiedFile, file: FileSpec, folder: Path, *, force: bool = False) -> Path:
    """Copy a verified file into a folder, which is created, under its publisher's name; return the copy's path.

    The copy appears whole, with the digest of the verified file, or not at all. A file that is there and equal is left
    alone; another one is replaced only with ``force``. Raises ArgumentError, IntegrityError if the cache's file changes
    meanwhile, and OSError if the copy cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{folder} is not a folder", path=folder, hint="name a folder; the file keeps its own name")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / sanitize_filename(file.name)
    if target.is_file() and hash_file(target) == source.sha256:
        return target
    if target.exists() and not force:
        raise ArgumentError(
            f"{target} exists already and is another file",
            path=target,
            expected=source.sha256,
            hint="choose another folder, or overwrite it (force=True, --force)",
        )
    atomic_write(target, lambda stream: _copy(source, stream))
    return target


def _copy(source: VerifiedFile, stream: BinaryIO) -> None:
    with open_regular_file(source.path) as original:
        digest = hash_descriptor(original.fileno(), stream.write)
    if digest != source.sha256:
        raise IntegrityError(
            f"{source.path} changed while it was copied; nothing was written",
            path=source.path,
            expected=source.sha256,
            actual=digest,
            hint="try again; a damaged file is downloaded again",
        )
