"""The cache: a flat folder of verified files, each with a stamp that makes the next lookup cheap.

A stamp is a small JSON file beside its file. While the file has the size and modification time that the stamp records,
its digest is trusted and nothing is hashed, written or requested. Nothing in the folder refers to its own path, so it
can be moved, copied to another machine, or served by any web server as a mirror.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from .._atomic import atomic_write
from .._digest import hash_file
from .._settings import HOME_ENV
from ..errors import CacheError, DiskFullError
from ..registry.specs import FileSpec
from .clock import SYSTEM_CLOCK, Clock
from .filenames import cache_filename
from .verify import digest_matches

STAMP_SUFFIX = ".stamp"
STAMP_VERSION = 1
TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache of repvgg_zoo; backup programs may skip it. See https://bford.info/cachedir/
"""
_REPLACE_ATTEMPTS = 20
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no link, and no pipe blocks
_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

logger = logging.getLogger("repvgg_zoo.hub")


class VerifiedFile(NamedTuple):
    """A file in a cache and its SHA-256; ``integrity`` is what the digest was compared with."""

    path: Path
    sha256: str
    integrity: str


@dataclass(frozen=True)
class Stamp:
    """The state of a file when it was last hashed; ``integrity`` is what the digest was compared with."""

    size: int
    mtime_ns: int
    sha256: str
    integrity: str
    version: int = STAMP_VERSION

    def is_current(self, status: os.stat_result) -> bool:
        """Return whether a file with this status has not changed since it was stamped."""
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)


def find(root: Path, file: FileSpec, *, writable: bool, allow_unverified: bool = False) -> Optional[VerifiedFile]:
    """Return the verified file in a cache folder, or None if it is missing or damaged; never raises for what is there.

    With a current stamp this takes two small system calls. Otherwise the file is hashed, and stamped if ``writable``. A
    file of which nothing is known is returned only if its digest was recorded before, or under ``allow_unverified``.
    """
    path = root / cache_filename(file)
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return None
    # A link could point anywhere, and a folder or pipe is not a file.
    if not stat.S_ISREG(status.st_mode) or (file.size is not None and status.st_size != file.size):
        return None
    stamp = read_stamp(path)
    if stamp is not None and stamp.is_current(status):
        return VerifiedFile(path, stamp.sha256, file.integrity) if digest_matches(file, stamp.sha256) else None
    unknown = file.integrity == "none" and stamp is None
    if unknown and not allow_unverified:
        return None
    sha256 = _hash_and_compare(path, file, stamp)
    if sha256 is None:
        return None
    if unknown:
        logger.warning("the digest of %s was not recorded; it is used because unverified files are allowed", path)
    if writable:
        write_stamp(path, Stamp(status.st_size, status.st_mtime_ns, sha256, file.integrity))
    return VerifiedFile(path, sha256, file.integrity)


def _hash_and_compare(path: Path, file: FileSpec, stamp: Optional[Stamp]) -> Optional[str]:
    """Return the digest of a file, or None if it is not the one of the registry, or of the stamp where that is all."""
    try:
        sha256 = hash_file(path)
    except OSError as error:
        logger.warning("cannot read %s: %s", path, error)
        return None
    pinned = stamp.sha256 if stamp is not None and file.integrity == "none" else sha256
    if digest_matches(file, sha256) and sha256 == pinned:
        return sha256
    logger.warning("%s is damaged and will be downloaded again", path)
    return None


def prepare(root: Path) -> None:
    """Create the cache folder; raises CacheError if that is not possible."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tag = root / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_text(TAG, encoding="ascii")
    except (OSError, ValueError) as error:
        raise unusable(root, error) from error


def publish(partial: Path, target: Path, clock: Clock = SYSTEM_CLOCK) -> None:
    """Rename a finished partial file to its name in the cache, so that readers see all of it or none.

    On Windows this fails while a reader or a virus scanner has the old file open, so it is tried again for about two
    seconds. There is no fsync: the common file systems grow a file only when its bytes are on disk, so after a power
    failure the size, which the stamp records, shows the damage; and the fsync of a big file can take very long.
    """
    for attempt in range(1, _REPLACE_ATTEMPTS + 1):
        try:
            partial.replace(target)
            return
        except PermissionError:
            if attempt == _REPLACE_ATTEMPTS:
                raise
            clock.sleep(0.05 + 0.1 * clock.jitter())


# Stamps -------------------------------------------------------------------------------------------------------


def stamp_path(path: Path) -> Path:
    """Return the path of a file's stamp."""
    return path.with_name(path.name + STAMP_SUFFIX)


def read_stamp(path: Path) -> Optional[Stamp]:
    """Return the stamp of a file, or None if it is missing, damaged, or of an unknown version."""
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
    """Write the stamp of a file; if that fails, the file is hashed at each use."""
    text = json.dumps(asdict(stamp)).encode("ascii")
    try:
        atomic_write(stamp_path(path), lambda stream: stream.write(text), fsync=False)
    except OSError as error:
        logger.debug("no stamp for %s: %s", path, error)


# Errors -------------------------------------------------------------------------------------------------------


def unusable(root: Path, error: BaseException) -> CacheError:
    """Return the error for a cache folder that cannot be used."""
    reason = getattr(error, "strerror", None) or str(error)
    return CacheError(
        f"cannot write to the cache folder {root}: {reason}",
        hint=f"set {HOME_ENV} to a folder that you may write to",
        path=root,
    )


def write_error(root: Path, error: OSError, name: str, needed: int, free: Optional[int] = None) -> CacheError:
    """Return the error for a failed write: DiskFullError if the disk or a quota is full, else CacheError."""
    if error.errno not in _NO_SPACE:
        return unusable(root, error)
    return disk_full(root, name, needed, shutil.disk_usage(str(root)).free if free is None else free)


def disk_full(root: Path, name: str, needed: int, free: int) -> DiskFullError:
    """Return the error for a file for which there is no space; ``needed`` and ``free`` in bytes."""
    return DiskFullError(
        f"no space for {name} in {root}: {needed} bytes are needed, {free} are free",
        hint=f"free some space or set {HOME_ENV} to a folder on another disk",
        needed=needed,
        free=free,
        path=root,
    )
