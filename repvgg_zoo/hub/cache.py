"""The cache: a flat folder of verified files, each with a stamp that makes the next lookup cheap.

A stamp is a small JSON file with a digest and the state that the file had when it was hashed (device, inode, size,
times). While the file has that state, nothing is hashed, written or requested. Stamps are read and written only in the
user's own cache folder, and count only while nobody else can write there: beside its files, and in its folder `stamps`
for the files of read-only cache folders, whose owners could write anything. Nothing in the folder refers to its own
path, so it can be moved, copied to another machine, or served by any web server as a mirror; its files are then hashed
once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple, Optional

from .._atomic import atomic_write
from .._digest import hash_descriptor
from .._file_state import FileState, foreign_access, only_this_user_writes
from .._log import get_logger
from .._settings import CACHE_DIRS_ENV, HOME_ENV
from ..errors import CacheError, DiskFullError
from ..registry.specs import FileSpec
from .clock import SYSTEM_CLOCK, Clock
from .filenames import cache_filename
from .verify import digest_matches

STAMP_SUFFIX = ".stamp"
STAMP_VERSION = 2
STAMPS_FOLDER = "stamps"
TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache of repvgg_zoo; backup programs may skip it. See https://bford.info/cachedir/
"""
_REPLACE_ATTEMPTS = 20
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no link, and no pipe blocks
_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

logger = get_logger("repvgg_zoo.hub")


class VerifiedFile(NamedTuple):
    """A file in a cache and its SHA-256; ``integrity`` is what the digest was compared with."""

    path: Path
    sha256: str
    integrity: str


@dataclass(frozen=True)
class Stamp:
    """The digest of a file, and its state when it was hashed; ``integrity`` is what the digest was compared with."""

    sha256: str
    integrity: str
    state: FileState
    version: int = STAMP_VERSION


def find(root: Path, file: FileSpec, *, home: Path, allow_unverified: bool = False) -> Optional[VerifiedFile]:
    """Return the verified file in the cache folder ``root``, or None if it is missing or damaged; never raise for it.

    ``home`` is the user's own cache folder, ``root`` that or a read-only one. With a current stamp this takes a few
    small system calls. Otherwise the file is hashed and stamped. Without a current stamp, a file without a published
    digest is returned only under ``allow_unverified``, and so is one in a read-only folder of which only a prefix of
    the digest is published. The recorded digest of such a file stays valid: with another one it is damaged.
    """
    path = root / cache_filename(file)
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except (OSError, ValueError):
        return None
    try:
        is_vouched_for = file.integrity == "sha256" or (file.integrity == "sha256_prefix" and root == home)
        return _find(path, descriptor, file, home, is_vouched_for or allow_unverified)
    except OSError as error:
        logger.warning("cannot read %s: %s", path, error)
        return None
    finally:
        os.close(descriptor)


def _find(path: Path, descriptor: int, file: FileSpec, home: Path, allowed: bool) -> Optional[VerifiedFile]:
    stamp_file = stamp_path(path, home)
    status = os.fstat(descriptor)
    # A link could point anywhere, and a folder or pipe is not a file.
    if not stat.S_ISREG(status.st_mode) or (file.size is not None and status.st_size != file.size):
        return None
    stamp, state = read_stamp(stamp_file), FileState.of(status)
    if stamp is not None and stamp.state == state and only_this_user_writes(stamp_file.parent):
        return VerifiedFile(path, stamp.sha256, file.integrity) if digest_matches(file, stamp.sha256) else None
    if not allowed:
        return None
    sha256 = hash_descriptor(descriptor)
    pinned = stamp.sha256 if stamp is not None and file.integrity != "sha256" else sha256
    if not digest_matches(file, sha256) or sha256 != pinned or FileState.of(os.fstat(descriptor)) != state:
        logger.warning("%s is damaged and will be downloaded again", path)
        return None
    warn_if_weak(file, sha256)
    with suppress(CacheError):  # then the file is hashed at each use
        prepare(home)
        write_stamp(stamp_file, Stamp(sha256, file.integrity, state))
    return VerifiedFile(path, sha256, file.integrity)


def warn_if_weak(file: FileSpec, sha256: str) -> None:
    """Log what a new file without a full published digest means; ``sha256`` is the digest that is now recorded."""
    if file.integrity == "sha256_prefix":
        logger.warning(
            "only %d digits of the SHA-256 of %s are published, which shows damage but not tampering; from now on it "
            "must be %s",
            len(file.sha256_prefix or ""),
            file.name,
            sha256,
        )
    elif file.integrity == "none":
        logger.warning(
            "no digest of %s is published; it is used because that was allowed, and from now on its SHA-256 must be %s",
            file.name,
            sha256,
        )


def check_home(home: Path) -> None:
    """Raise CacheError if somebody else owns the user's cache folder or can write to it; it need not exist."""
    try:
        status = home.stat()
    except OSError:
        return  # it does not exist yet, or the first use of it says what is wrong
    reason = foreign_access(status) if hasattr(os, "getuid") and stat.S_ISDIR(status.st_mode) else None
    if reason is None:
        return
    raise CacheError(
        f"the cache folder {home} is not used, because {reason}: they could change files after their verification",
        hint=f"run `chmod go-w` on it if it is yours, or set {HOME_ENV} to a new folder, which may be inside this one; "
        f"to share its files, name it in {CACHE_DIRS_ENV}, where it is only read",
        path=home,
        expected=f"a folder of user {os.getuid()} to which nobody else can write",
        actual=reason,
    )


def prepare(root: Path) -> None:
    """Create the cache folder, to which only this user can write; raises CacheError if that is not possible."""
    check_home(root)
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        tag = root / "CACHEDIR.TAG"
        if not tag.exists():
            tag.write_text(TAG, encoding="ascii")
    except (OSError, ValueError) as error:
        raise unusable(root, error) from error


def publish(partial: Path, target: Path, stamp: Stamp, clock: Clock = SYSTEM_CLOCK) -> None:
    """Rename a verified partial file to its name in the cache, so that readers see all of it or none, and stamp it.

    ``stamp.state`` is the partial file's; renaming changes the time of change alone.

    On Windows this fails while a reader or a virus scanner has the old file open, so it is tried again for about two
    seconds. There is no fsync: the common file systems grow a file only when its bytes are on disk, so after a power
    failure the size, which the stamp records, shows the damage; and the fsync of a big file can take very long.
    """
    for attempt in range(1, _REPLACE_ATTEMPTS + 1):
        try:
            partial.replace(target)
            break
        except PermissionError:
            if attempt == _REPLACE_ATTEMPTS:
                raise
            clock.sleep(0.05 + 0.1 * clock.jitter())
    state = FileState.of(target.stat())
    if state[:-1] == stamp.state[:-1]:  # else another process published it as well, and stamps it
        write_stamp(stamp_path(target, target.parent), replace(stamp, state=state))


# Stamps -------------------------------------------------------------------------------------------------------


def stamp_path(path: Path, home: Path) -> Path:
    """Return the path of a file's stamp in the user's own cache folder ``home``."""
    if path.parent == home:
        return path.with_name(path.name + STAMP_SUFFIX)
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return home / STAMPS_FOLDER / f"{key}{STAMP_SUFFIX}"


def read_stamp(stamp_file: Path) -> Optional[Stamp]:
    """Return a stamp, or None if it is missing, damaged, or of an unknown version."""
    try:
        descriptor = os.open(stamp_file, _READ_FLAGS)
        with os.fdopen(descriptor, "rb") as stream:
            fields = json.loads(stream.read(4096))
        stamp = Stamp(**{**fields, "state": FileState(*fields["state"])})
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    is_valid = all(type(number) is int for number in (*stamp.state, stamp.version)) and isinstance(stamp.sha256, str)
    return stamp if is_valid and len(stamp.sha256) == 64 and stamp.version == STAMP_VERSION else None


def recorded_digest(home: Path, file: FileSpec) -> Optional[str]:
    """Return the digest that a file without a whole published one must have, because it had it before; else None."""
    stamp = read_stamp(stamp_path(home / cache_filename(file), home)) if file.integrity != "sha256" else None
    return None if stamp is None else stamp.sha256


def write_stamp(stamp_file: Path, stamp: Stamp) -> None:
    """Write a stamp; if that fails, the file is hashed at each use."""
    text = json.dumps({**asdict(stamp), "state": list(stamp.state)}).encode("ascii")
    try:
        stamp_file.parent.mkdir(mode=0o755, exist_ok=True)
        atomic_write(stamp_file, lambda stream: stream.write(text), fsync=False)
    except OSError as error:
        logger.debug("%s was not written: %s", stamp_file, error)


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
    free = shutil.disk_usage(str(root)).free if free is None else free
    return disk_full(root, name, needed, free, quota=error.errno != errno.ENOSPC)


def disk_full(root: Path, name: str, needed: int, free: int, *, quota: bool = False) -> DiskFullError:
    """Return the error for a file for which there is no space; ``needed`` and ``free`` in bytes.

    ``quota``: the system said that the user's quota is used up, which says nothing about the disk.
    """
    text = f"no space for {name} in {root}: {needed} bytes are needed, {free} are free"
    hint = f"free some space or set {HOME_ENV} to a folder on another disk"
    if quota:
        text = f"no space for {name} in {root}: your disk quota is used up"
    elif free_inodes(root) == 0:
        text = f"no space for {name} in {root}: the disk has no free inodes, so it cannot hold one more file"
        hint = (
            f"delete some files, however small (df -i shows the count), or set {HOME_ENV} to a folder on another disk"
        )
    return DiskFullError(text, hint=hint, needed=needed, free=free, path=root)


def free_inodes(root: Path) -> Optional[int]:
    """Return how many more files a disk can hold, or None if only its bytes limit them."""
    try:
        status = os.statvfs(str(root))
    except (AttributeError, OSError):  # Windows; a network drive that does not say
        return None
    return status.f_favail if status.f_files else None
