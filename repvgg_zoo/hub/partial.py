"""PartialFile files: bytes on their way into the cache, safe even where file locks lie.

The rule that carries the proof: **the bytes of a part file are written by the one process that made it, and what
was hashed is what is published.** A part that a killed process left is first claimed with one rename (which succeeds
for exactly one claimer) and then *copied* into the claimer's own part while it is hashed anew. So if a claimer is wrong
about a process being dead, that process loses time (its part is gone, it starts again), but no two processes ever write
one file, and nobody holds a published file open for writing.
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
from .clock import Clock

STALE_SECONDS = 600.0  # a part on which no process of this machine can be seen to work is left alone for this long
MIN_RESUMABLE_BYTES = 1 << 16  # less than this is not worth resuming

_PARTIAL = re.compile(r"(?P<key>u?[0-9a-f]{8,16})\.(?:free|(?P<machine>[0-9a-f]{12})-(?P<pid>\d+))\.[0-9a-f]{12}\.part")


class PartialName(NamedTuple):
    """What the name of a part file says; ``machine`` and ``pid`` are None if its maker gave it up in good order."""

    key: str
    machine: Optional[str]
    pid: Optional[int]


def parse_partial_name(name: str) -> Optional[PartialName]:
    """Take a part file's name apart, or None if it is not one."""
    match = _PARTIAL.fullmatch(name)
    if match is None:
        return None
    pid = match.group("pid")
    return PartialName(match.group("key"), match.group("machine"), None if pid is None else int(pid))


def partial_files(root: Path, key: Optional[str] = None) -> List[Path]:
    """The part files in a folder, of one key or of all."""
    try:
        found = sorted((path, parse_partial_name(path.name)) for path in root.iterdir() if path.name.endswith(".part"))
    except OSError:
        return []
    return [path for path, part in found if part is not None and key in (None, part.key)]


class PartialFile:
    """A part file of this process, opened for writing, and the running hash of its bytes."""

    def __init__(self, root: Path, key: str) -> None:
        self._root, self._key = root, key
        self.path = root / _own_name(key)
        # 0o666 leaves the mode to the user's umask, as for any file they make.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        self._descriptor: Optional[int] = os.open(self.path, flags, 0o666)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append bytes."""
        assert self._descriptor is not None
        self._hash.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self.size += len(data)

    def reset(self) -> None:
        """Forget every byte."""
        assert self._descriptor is not None
        self._hash = hashlib.sha256()
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.size = 0

    def touch(self) -> None:
        """Show other processes that this one is alive, though no bytes come."""
        with suppress(OSError):
            os.utime(self.path)

    def digest(self) -> str:
        """The SHA-256 of all bytes so far, as 64 hex digits."""
        return self._hash.hexdigest()

    def head(self, length: int = 512) -> bytes:
        """The first bytes."""
        assert self._descriptor is not None
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        data = os.read(self._descriptor, length)
        os.lseek(self._descriptor, 0, os.SEEK_END)
        return data

    def adopt(self, clock: Clock, limit: Optional[int], free: int) -> int:
        """Take over the bytes of the biggest part that nobody works on; give how many there were.

        ``limit`` is the size of the whole file, if known: a bigger part is thrown away.
        """
        for orphan in sorted(stale_partials(self._root, self._key, self.path, clock), key=_size, reverse=True):
            claimed = self._root / _own_name(self._key)
            try:
                os.utime(orphan)  # before the new name, or its age would invite the next claimer
                orphan.rename(claimed)
            except OSError:  # another process was faster, or may not be disturbed
                continue
            size = _size(claimed)
            try:
                if size <= free and (limit is None or size <= limit):
                    with claimed.open("rb", buffering=0) as stream:
                        for data in iter(lambda: stream.read(CHUNK_BYTES), b""):
                            self.write(data)
            except OSError:  # unreadable, or no room for the copy: the network has the bytes as well
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
        """Close and delete."""
        self.close()
        _unlink(self.path)

    def release(self) -> None:
        """Close, and leave the bytes to whoever comes next, if there are enough of them."""
        self.close()
        with suppress(OSError):  # it is only a convenience
            if self.size >= MIN_RESUMABLE_BYTES:
                self.path.rename(self._root / f"{self._key}.free.{uuid.uuid4().hex[:12]}.part")
            else:
                self.path.unlink()


def stale_partials(root: Path, key: Optional[str], own: Optional[Path], clock: Clock) -> Iterator[Path]:
    """The part files on which nobody works: given up, of a dead process of this machine, or long untouched.

    Age is measured against our own part, which the same file system has just dated, so that a clock that is wrong on
    a network drive does no harm.
    """
    now = clock.time() if own is None else own.stat().st_mtime
    for path in partial_files(root, key):
        part = parse_partial_name(path.name)
        try:
            status = path.lstat()
        except OSError:
            continue
        if path == own or part is None or not stat.S_ISREG(status.st_mode):
            continue
        if part.pid is None or _is_dead(part) or now - status.st_mtime > STALE_SECONDS:
            yield path


def _is_dead(part: PartialName) -> bool:
    # Windows has no signal 0 (there it would end the process), so there only age counts.
    if os.name != "posix" or part.pid is None or part.machine != machine_id():
        return False
    try:
        os.kill(part.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # alive, and another user's
        return False
    return False


def machine_id() -> str:
    """What two processes share exactly if they see each other's process ids: host, boot and pid namespace."""
    import platform

    facts = [platform.node()]
    with suppress(OSError):  # not Linux, or no /proc
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


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
