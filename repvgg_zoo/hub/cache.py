"""The cache: a flat folder of verified files, each with a stamp that makes the next look cheap.

A stamp is a small JSON file beside its file. While the file's size and time of change are those of the stamp, the
digest in the stamp is believed and nothing is read, written or asked. Nothing in the folder names a place, so it can be
moved, copied to another machine, or served by any web server as a mirror.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from repvgg_zoo.errors import CacheError, DiskFullError
from repvgg_zoo.registry.specs import FileSpec

from .._digest import hash_file
from .._settings import HOME_ENV
from .clock import SYSTEM_CLOCK, Clock
from .filenames import cache_filename
from .verify import digest_matches

STAMP_SUFFIX = ".stamp"
STAMP_VERSION = 1
TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache of repvgg_zoo; backup programs may skip it. See https://bford.info/cachedir/
"""
_REPLACE_TRIES = 20
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no link, and no pipe blocks
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

logger = logging.getLogger("repvgg_zoo.hub")


@dataclass(frozen=True)
class Stamp:
    """What was true of a file when it was last hashed; ``integrity`` is what the digest was held against."""

    size: int
    mtime_ns: int
    sha256: str
    integrity: str
    version: int = STAMP_VERSION


def find(root: Path, file: FileSpec, *, writable: bool, allow_unverified: bool = False) -> Optional[Path]:
    """The verified file in a cache folder, or None if it is absent or wrong; never raises for what it finds there.

    A fitting stamp costs two small system calls. Else the file is hashed, and stamped anew if ``writable``. A file of
    which nothing is known is given out only if its digest was recorded before, or under ``allow_unverified``.
    """
    path = root / cache_filename(file)
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return None
    # A link could point anywhere, and a folder or pipe is no file.
    if not stat.S_ISREG(status.st_mode) or (file.size is not None and status.st_size != file.size):
        return None
    stamp = read_stamp(path)
    if stamp is not None and (stamp.size, stamp.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return path if digest_matches(file, stamp.sha256) else None
    if file.integrity == "none" and stamp is None and not allow_unverified:
        return None
    try:
        sha256 = hash_file(path)
    except OSError as error:
        logger.warning("cannot read %s: %s", path, error)
        return None
    if not digest_matches(file, sha256) or (file.integrity == "none" and stamp is not None and stamp.sha256 != sha256):
        logger.warning("%s is damaged; it will be fetched again", path)
        return None
    if file.integrity == "none" and stamp is None:
        logger.warning("%s has no record of its digest; taking it as it is, because unverified files are allowed", path)
    if writable:
        write_stamp(path, Stamp(status.st_size, status.st_mtime_ns, sha256, file.integrity))
    return path


def prepare(root: Path) -> None:
    """Make the cache folder; raises CacheError if that cannot be done."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tag = root / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_text(TAG, encoding="ascii")
    except (OSError, ValueError) as error:
        raise unusable(root, error) from error


def unusable(root: Path, error: BaseException) -> CacheError:
    """The error for a cache folder that cannot be used."""
    reason = getattr(error, "strerror", None) or str(error)
    return CacheError(
        f"cannot write to the cache folder {root}: {reason}",
        hint=f"set {HOME_ENV} to a folder that you may write to",
        path=root,
    )


def write_error(root: Path, error: OSError, name: str, needed: int, free: Optional[int] = None) -> CacheError:
    """The error for a write that failed: DiskFullError if the disk is full (ENOSPC, or a quota), else CacheError."""
    if error.errno not in _NO_ROOM:
        return unusable(root, error)
    return disk_full(root, name, needed, shutil.disk_usage(str(root)).free if free is None else free)


def disk_full(root: Path, name: str, needed: int, free: int) -> DiskFullError:
    """The error for a file that has no room; ``needed`` and ``free`` in bytes."""
    return DiskFullError(
        f"no room for {name} in {root}: {needed} bytes are needed, {free} are free",
        hint=f"free some space or set {HOME_ENV} to a folder on another disk",
        needed=needed,
        free=free,
        path=root,
    )


def publish(part: Path, target: Path, clock: Clock = SYSTEM_CLOCK) -> None:
    """Give a finished part its stored name, in one step that readers see as a whole or not at all.

    On Windows a reader or a virus scanner that holds the old file open makes this fail for a moment, so it is tried
    again for about two seconds. There is no fsync: the common file systems grow a file only when its bytes are down, so
    after a power cut the size, which the stamp holds, tells; and an fsync of a big file can take very long.
    """
    for tries in range(1, _REPLACE_TRIES + 1):
        try:
            part.replace(target)
            return
        except PermissionError:
            if tries == _REPLACE_TRIES:
                raise
            clock.sleep(0.05 + 0.1 * clock.jitter())


def stamp_path(path: Path) -> Path:
    """Where the stamp of a file lies."""
    return path.with_name(path.name + STAMP_SUFFIX)


def read_stamp(path: Path) -> Optional[Stamp]:
    """The stamp of a file, or None if it is missing, damaged, or of a version that is not known."""
    try:
        descriptor = os.open(stamp_path(path), _READ_FLAGS)
        with os.fdopen(descriptor, "rb") as stream:
            stamp = Stamp(**json.loads(stream.read(4096)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    numbers_ok = all(type(number) is int for number in (stamp.size, stamp.mtime_ns, stamp.version))
    digest_ok = isinstance(stamp.sha256, str) and len(stamp.sha256) == 64
    return stamp if numbers_ok and digest_ok and stamp.version == STAMP_VERSION else None


def write_stamp(path: Path, stamp: Stamp) -> None:
    """Write the stamp of a file; failing to is no error, the file is then hashed at each use."""
    target = stamp_path(path)
    draft = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.new")
    try:
        with draft.open("x", encoding="ascii") as stream:
            json.dump(asdict(stamp), stream)
        draft.replace(target)
    except OSError as error:
        logger.debug("no stamp for %s: %s", path, error)
        with suppress(OSError):
            draft.unlink()
