"""Partial files: bytes on their way into the cache, safe even where file locks do not work.

The invariant that makes them safe: **the bytes of a partial file are written only by the process that created it, and
the bytes that were hashed are the bytes that are published.** A partial file that a killed process left is first
claimed with one rename (which succeeds for exactly one process) and then *copied* into the claimer's own partial file
while it is hashed again. So if a process is taken for dead by mistake, it loses time (its partial file is gone, it
starts again), but no two processes ever write to one file, and nobody has a published file open for writing.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional

from .._digest import CHUNK_BYTES
from ..errors import DownloadError, IntegrityError
from .clock import Clock

STALE_SECONDS = 600.0  # how long a partial file is left alone if its process cannot be seen from this machine
MIN_RESUMABLE_BYTES = 1 << 16  # less than this is not worth resuming

_NAME = re.compile(
    r"(?P<key>u?[0-9a-f]{8,16})\.(?:released|(?P<machine>[0-9a-f]{12})-(?P<pid>\d+))\.[0-9a-f]{12}\.part"
)


class PartialName(NamedTuple):
    """What the name of a partial file says; ``machine`` and ``pid`` are None if its process released it."""

    key: str
    machine: Optional[str]
    pid: Optional[int]


def parse_partial_name(name: str) -> Optional[PartialName]:
    """Return the parts of the name of a partial file, or None if it is not one."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    pid = match.group("pid")
    return PartialName(match.group("key"), match.group("machine"), None if pid is None else int(pid))


def partial_files(root: Path, key: Optional[str] = None) -> List[Path]:
    """Return the partial files in a folder, of one cache key or of all."""
    try:
        paths = sorted(path for path in root.iterdir() if path.name.endswith(".part"))
    except OSError:
        return []
    names = [(path, parse_partial_name(path.name)) for path in paths]
    return [path for path, name in names if name is not None and key in (None, name.key)]


class PartialFile:
    """A partial file of this process, opened for writing, and the running hash of its bytes.

    As a context manager it closes the file, and after an error deletes it or, if it is ``resumable``, keeps it for the
    next download. A file is resumable if a digest shows that bytes of two responses belong to one file.
    """

    def __init__(self, root: Path, key: str, *, resumable: bool = True) -> None:
        self._root, self._key, self._resumable = root, key, resumable
        self.path = root / _own_name(key)
        # 0o666 leaves the mode to the user's umask, as for any file they create.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        self._descriptor: Optional[int] = os.open(self.path, flags, 0o666)
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, kind: object, error: Optional[BaseException], traceback: object) -> None:
        # After a failed write the disk needs the space. After any other the bytes serve the next download: wrong
        # ones were discarded at once, so these came from a source that broke off, or before an interrupt.
        disk_failed = isinstance(error, OSError) and not isinstance(error, (DownloadError, IntegrityError))
        if error is None:
            self.close()
        elif self._resumable and not disk_failed:
            self.keep_for_resume()
        else:
            self.discard()

    def write(self, data: bytes) -> None:
        """Append bytes; raises OSError."""
        assert self._descriptor is not None
        self._hash.update(data)
        remaining = memoryview(data)
        while remaining:
            remaining = remaining[os.write(self._descriptor, remaining) :]
        self.size += len(data)

    def reset(self) -> None:
        """Remove every byte."""
        assert self._descriptor is not None
        self._hash = hashlib.sha256()
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.size = 0

    def touch(self) -> None:
        """Show other processes that this one is alive although no bytes arrive."""
        with suppress(OSError):
            os.utime(self.path)

    def digest(self) -> str:
        """Return the SHA-256 of all bytes so far as 64 hex digits."""
        return self._hash.hexdigest()

    def head(self, length: int = 512) -> bytes:
        """Return the first bytes."""
        assert self._descriptor is not None
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        data = os.read(self._descriptor, length)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        return data

    def resume_from_stale(self, clock: Clock, max_size: Optional[int], free_bytes: int) -> int:
        """Take over the bytes of the biggest stale partial file, and return how many they are.

        ``max_size`` is the size of the whole file, if known: a bigger partial file is deleted.
        """
        for path in sorted(stale_partials(self._root, self._key, self.path, clock), key=_size, reverse=True):
            claimed = self._root / _own_name(self._key)
            try:
                os.utime(path)  # before the new name, or its age would invite the next process to claim it
                path.rename(claimed)
            except OSError:  # another process was faster, or the file may not be renamed
                continue
            size = _size(claimed)
            try:
                if size <= free_bytes and (max_size is None or size <= max_size):
                    with claimed.open("rb", buffering=0) as stream:
                        for data in iter(lambda: stream.read(CHUNK_BYTES), b""):
                            self.write(data)
            except OSError:  # unreadable, or no space for the copy: the network has the bytes as well
                self.reset()
            finally:
                _unlink(claimed)
            if self.size:
                break
        return self.size

    def close(self) -> None:
        """Close the file; its bytes stay."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def discard(self) -> None:
        """Close and delete the file."""
        self.close()
        _unlink(self.path)

    def keep_for_resume(self) -> None:
        """Close the file and release it to the next download, if it has enough bytes; else delete it."""
        self.close()
        with suppress(OSError):  # it is only a convenience
            if self.size >= MIN_RESUMABLE_BYTES:
                self.path.rename(self._root / f"{self._key}.released.{uuid.uuid4().hex[:12]}.part")
            else:
                self.path.unlink()


def stale_partials(root: Path, key: Optional[str], own: Optional[Path], clock: Clock) -> Iterator[Path]:
    """Yield the partial files that no process writes: released, of a dead process of this machine, or long unchanged.

    Age is measured against the partial file ``own``, whose time the same file system has just set, so that a wrong
    clock on a network drive does not matter.
    """
    now = clock.time() if own is None else own.stat().st_mtime
    for path in partial_files(root, key):
        name = parse_partial_name(path.name)
        try:
            status = path.lstat()
        except OSError:
            continue
        if path == own or name is None or not stat.S_ISREG(status.st_mode):
            continue
        if name.pid is None or _is_dead(name) or now - status.st_mtime > STALE_SECONDS:
            yield path


def _is_dead(name: PartialName) -> bool:
    # Windows has no signal 0 (there it would end the process), so there only age counts.
    if os.name != "posix" or name.pid is None or name.machine != machine_id():
        return False
    try:
        os.kill(name.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # alive, and another user's
        return False
    return False


def machine_id() -> str:
    """Return what two processes share exactly if they see each other's process ids: host, boot and pid namespace."""
    import platform

    parts = [platform.node()]
    with suppress(OSError):  # not Linux, or no /proc
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _own_name(key: str) -> str:
    return f"{key}.{machine_id()}-{os.getpid()}.{uuid.uuid4().hex[:12]}.part"


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
