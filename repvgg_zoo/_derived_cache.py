"""The derived cache: results computed from verified files, such as fused weights, so that they are computed once.

An entry is a file in the folder ``derived`` of the cache: a header of fixed size, then the payload. The header holds
the digest of the payload. It is checked whenever the file is not the very one that was checked before (another inode,
size or time of change, which a stamp beside the entry records), and always where others can write in the folder. A
damaged entry is computed again. Entries may be deleted at any time, and failing to write one is not an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Mapping, Optional, cast

from ._atomic import atomic_write, remove_stale_temp_files
from ._buffers import FileRegion, HashingWriter, read_and_hash, read_file
from ._file_state import FileState, foreign_access, only_this_user_writes
from ._files import open_regular_file
from ._log import get_logger

FOLDER = "derived"
SUFFIX = ".derived"
STAMP_SUFFIX = ".stamp"
STAMP_BYTES = 512  # more than five numbers take
FORMAT = "repvgg_zoo derived 1"
HEADER_BYTES = 512  # also the alignment of the payload
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_DAMAGED = (EOFError, ValueError, TypeError, LookupError, RecursionError)

logger = get_logger(__name__)


@dataclass(frozen=True)
class DerivedKey:
    """What an entry depends on: the digest of its source, the step that computed it, its version and parameters.

    ``source`` is the SHA-256 of a verified file, or of what else the result was computed from. ``version`` is raised
    whenever the step would give another result. ``parameters`` are JSON values.
    """

    source: str
    step: str
    version: int
    parameters: Mapping[str, Any]

    def digest(self) -> str:
        """Return 64 hex digits that differ for any other key."""
        fields = [FORMAT, self.source, self.step, self.version, dict(self.parameters)]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class DerivedEntry:
    """One file of the derived cache; ``size`` in bytes, ``mtime`` in seconds since 1970.

    ``source`` is that of its key, or empty if its header is damaged.
    """

    path: Path
    step: str
    size: int
    mtime: float
    source: str = ""


class DerivedCache:
    """The derived data below one cache folder."""

    def __init__(self, cache_dir: Path) -> None:
        self.folder = cache_dir / FOLDER

    def read(self, key: DerivedKey) -> Optional[memoryview]:
        """Return the payload of an entry in private memory, or None if it is missing or damaged."""
        path = self._path(key)
        try:
            descriptor = os.open(path, _OPEN_FLAGS)
        except OSError:
            return None
        try:
            payload = _read_entry(descriptor, key, path)
        except (OSError, *_DAMAGED) as error:
            logger.warning("%s is damaged and will be computed again: %s", path, error)
            return None
        finally:
            os.close(descriptor)
        return payload

    def read_own(self, key: DerivedKey) -> Optional[memoryview]:
        """Return what ``read`` does if nobody else can have written it, else None: for content that will be executed.

        A digest tells damage; it says nothing about who wrote the entry, the digest included.
        """
        with suppress(OSError):
            if self._is_own() and foreign_access(self._path(key).lstat()) is None:
                return self.read(key)
        return None

    def open_checked(self, key: DerivedKey) -> Optional[FileRegion]:
        """Return the payload where it lies, if it was checked before and only this user can write to it, else None."""
        path = self._path(key)
        try:
            region = FileRegion(os.open(path, _OPEN_FLAGS), path, HEADER_BYTES)
            if only_this_user_writes(path.parent) and _read_stamp(path) == region.state:
                _check_header(region.descriptor, key)
                return region
        except (OSError, *_DAMAGED):
            pass  # `read` reports it
        return None

    def write(self, key: DerivedKey, write: Callable[[BinaryIO], object]) -> bool:
        """Store what ``write`` writes to a stream as the entry's payload; return whether that worked."""
        path = self._path(key)
        try:
            self._make_folder()
            remove_stale_temp_files(self.folder)
            # The digest tells a file that a power failure left short; waiting for the disk would take longer than all.
            atomic_write(path, lambda stream: _write_entry(stream, key, write), fsync=False)
            return True
        except OSError as error:
            logger.debug("%s was not written: %s", path, error)
            return False

    def write_own(self, key: DerivedKey, write: Callable[[BinaryIO], object]) -> bool:
        """Do what ``write`` does, but nothing where ``read_own`` would not return it."""
        with suppress(OSError):
            self._make_folder()
            return self._is_own() and self.write(key, write)
        return False

    def _make_folder(self) -> None:
        self.folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o755, exist_ok=True)  # whatever the umask: others must not write here

    def _is_own(self) -> bool:
        return all(only_this_user_writes(folder) for folder in (self.folder.parent, self.folder))

    def entries(self) -> List[DerivedEntry]:
        """Return all entries, whatever their state, sorted by path."""
        entries = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}")) if self.folder.is_dir() else ():
            with suppress(OSError):
                status = path.lstat()
                step, source = path.name.partition("-")[0], _read_source(path)
                entries.append(DerivedEntry(path, step, status.st_size, status.st_mtime, source))
        return entries

    def prune(self) -> List[DerivedEntry]:
        """Delete all entries and return those that were deleted."""
        removed = []
        remove_stale_temp_files(self.folder)
        for entry in self.entries():
            with suppress(OSError):
                entry.path.unlink()
                removed.append(entry)
                _stamp_path(entry.path).unlink()
        return removed

    def _path(self, key: DerivedKey) -> Path:
        return self.folder / f"{key.step}-{key.digest()[:32]}{SUFFIX}"


def _read_entry(descriptor: int, key: DerivedKey, path: Path) -> memoryview:
    header = _check_header(descriptor, key)
    status = os.fstat(descriptor)
    size, state = status.st_size - HEADER_BYTES, FileState.of(status)
    is_private = only_this_user_writes(path.parent)
    if is_private and _read_stamp(path) == state:
        payload = read_file(descriptor, size, HEADER_BYTES)
        if FileState.of(os.fstat(descriptor)) == state:  # nobody wrote to it in the meantime
            return payload
    payload, digest = read_and_hash(descriptor, size, HEADER_BYTES)
    if digest != header["sha256"]:
        raise ValueError(f"the digest of its content is {digest}, not {header['sha256']}")
    if is_private:
        _write_stamp(path, state)
    return payload


def _check_header(descriptor: int, key: DerivedKey) -> Mapping[str, str]:
    """Return the header of an entry; raise what a damaged file raises if it is not one of this key."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ValueError("not a regular file")
    header: Dict[str, str] = json.loads(os.read(descriptor, HEADER_BYTES))
    if header["format"] != FORMAT or header["key"] != key.digest():
        raise ValueError("it is of another format or key")
    return header


def _read_source(path: Path) -> str:
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return str(json.loads(os.read(descriptor, HEADER_BYTES))["source"]) if is_regular else ""
        finally:
            os.close(descriptor)
    except (OSError, *_DAMAGED):
        return ""


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + STAMP_SUFFIX)


def _read_stamp(path: Path) -> Optional[FileState]:
    try:
        with open_regular_file(_stamp_path(path)) as stream:
            return FileState(*json.loads(stream.read(STAMP_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _write_stamp(path: Path, state: FileState) -> None:
    with suppress(OSError):
        atomic_write(_stamp_path(path), lambda stream: stream.write(json.dumps(state).encode()), fsync=False)


def _write_entry(stream: BinaryIO, key: DerivedKey, write: Callable[[BinaryIO], object]) -> None:
    if hasattr(os, "fchmod"):
        with suppress(OSError):  # a file system without modes
            os.fchmod(stream.fileno(), stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & ~0o022)
    stream.write(b" " * HEADER_BYTES)
    with HashingWriter(stream) as payload:
        write(cast(BinaryIO, payload))
        digest = payload.digest()
    fields = {"format": FORMAT, "key": key.digest(), "sha256": digest, "source": key.source}
    header = json.dumps(fields).encode()
    assert len(header) <= HEADER_BYTES
    stream.seek(0)
    stream.write(header.ljust(HEADER_BYTES))
