"""List, remove, prune and verify the files of a cache folder.

Only entries directly in the folder are considered, and only if their names are ones that the hub uses; other people's
files are ignored. A link, a folder or a device with such a name is listed with its problem, and never followed.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Collection, Iterable, List, Optional, Tuple

from .._atomic import TEMP_SUFFIX
from .._digest import hash_file
from .._file_state import FileState
from .._files import describe_file_type
from .._settings import HOME_ENV
from ..errors import ArgumentError, CacheError
from ..registry.specs import FileSpec
from . import cache
from .clock import SYSTEM_CLOCK, Clock
from .filenames import cache_filename, is_cache_filename
from .partial import parse_partial_name, stale_partials

MAX_AGE_DAYS = 7.0  # how long an unfinished download may wait to be resumed

_LOCK = re.compile(r"(u?[0-9a-f]{8,16})\.lock")
_TEMP_STAMP = re.compile(rf"\.(.+){re.escape(cache.STAMP_SUFFIX)}\.[0-9a-f]+{re.escape(TEMP_SUFFIX)}")


@dataclass(frozen=True)
class CachedFile:
    """A file in a cache; ``size`` in bytes, ``modified`` in seconds since 1970.

    ``used`` is when it was last read, as far as the file system records that: most of them about once a day, and some
    never, for which it is the time of the download.
    ``kind`` is "file", "partial" (an unfinished download), "record" (the digest of a file that is gone),
    "stale" (a lock, or a stamp of no use), "derived" (computed from a file) or "invalid" (not a regular file).
    ``sha256`` and ``integrity`` are what its stamp says, if it has one; ``problem`` is why it cannot be used, or None.
    """

    path: Path
    kind: str
    size: int
    modified: float
    sha256: Optional[str] = None
    integrity: Optional[str] = None
    problem: Optional[str] = None
    used: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class VerifyResult:
    """The current digest of a file, or None if it cannot be read, and what is wrong with it, or None."""

    file: CachedFile
    sha256: Optional[str]
    problem: Optional[str] = None


def list_files(root: Path) -> List[CachedFile]:
    """Return the hub's files in a cache folder, sorted by name; nothing if the folder does not exist.

    Raises CacheError if the folder cannot be read.
    """
    try:
        paths = sorted(root.iterdir())
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not root.is_symlink():
            return []
        raise CacheError(
            f"cannot read the cache folder {root}: {error.strerror}", hint=f"check {HOME_ENV}", path=root
        ) from error
    files = (_cached_file(path) for path in paths)
    return [file for file in files if file is not None]


def find_names(root: Path, name: str) -> List[str]:
    """Return the names in the cache, or the keys, that ``name`` may stand for: one, if it is unambiguous."""
    return _find(list_files(root), name)


def remove(root: Path, names: Iterable[str], *, dry_run: bool = False) -> List[CachedFile]:
    """Remove files, each named by its name in the cache, its key, or its own name; return what was removed.

    With a file goes all that belongs to it: its stamp and with it the recorded digest of an unverified file, derived
    data, unfinished downloads that no process writes, and its lock. A file that was deleted by hand is named in the
    same ways. With ``dry_run`` nothing is removed. Raises ArgumentError, and removes nothing, if a name matches no
    file, or several files.
    """
    files = list_files(root)
    idle = set(stale_partials(root, None, None, SYSTEM_CLOCK))
    running = {file.path for file in files if file.kind == "partial" and file.path not in idle}
    chosen: List[CachedFile] = []
    for name in names:
        matches = _belonging_to(_find_one(root, files, name), files, running)
        chosen += [file for file in [*matches, *_derived_from(root, matches)] if file not in chosen]
    return _remove(chosen, dry_run)


def prune(
    root: Path, *, days: float = MAX_AGE_DAYS, dry_run: bool = False, clock: Clock = SYSTEM_CLOCK
) -> List[CachedFile]:
    """Remove what is no longer needed, and return what was removed; with ``dry_run`` nothing is.

    That is: partial files that no process writes and that nobody resumed for ``days``, and stale files of that age.
    Running downloads are left alone, and so are all whole files: see ``shrink`` and ``unknown_files``.
    """
    oldest = clock.time() - days * 86400
    resumable = set(stale_partials(root, None, None, clock))
    chosen = [
        file
        for file in list_files(root)
        if (file.kind == "partial" and file.path in resumable) or file.kind == "stale"
        if file.modified <= oldest
    ]
    return _remove(chosen, dry_run)


def shrink(
    root: Path,
    max_bytes: float,
    known: Collection[FileSpec],
    *,
    without: Collection[Path] = (),
    dry_run: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> Tuple[List[CachedFile], int]:
    """Remove what can be had again until a cache has at most ``max_bytes``; return it, and the size of what is left.

    That is, in this order: derived data and partial files that no process writes, the oldest first, and files that
    ``known`` describes, the least recently used first. The recorded digest of a file without a published one stays, so
    the next download must have it. All other files stay whatever their size, see ``unknown_files``. ``without`` are
    files that do not count, as they are removed anyway.
    """
    from .._derived_cache import DerivedCache  # here, as it takes NumPy

    derived = [CachedFile(entry.path, "derived", entry.size, entry.mtime) for entry in DerivedCache(root).entries()]
    files = [file for file in (*derived, *list_files(root)) if file.path not in without]
    idle = set(stale_partials(root, None, None, clock))
    names = {cache_filename(file) for file in known}
    removable = [
        *sorted(
            (file for file in files if file.kind == "derived" or file.path in idle), key=lambda file: file.modified
        ),
        *sorted(
            (file for file in files if file.kind == "file" and file.path.name in names), key=lambda file: file.used
        ),
    ]
    size = sum(file.size for file in files)
    chosen: List[CachedFile] = []
    for file in removable:
        if size <= max_bytes:
            break
        chosen.append(file)
        size -= file.size
    return _remove(chosen, dry_run, keep_records=True), size


def unknown_files(root: Path, known: Collection[FileSpec]) -> List[CachedFile]:
    """Return the files that belong to none of these specs.

    Nothing in a cache says whose a file is. One that today's registries do not know may belong to a plugin that cannot
    be loaded today, or to a registry that another shell names, so it is removed only by name, with ``remove``.
    """
    names = {cache_filename(file) for file in known}
    return [file for file in list_files(root) if file.kind == "file" and file.path.name not in names]


def verify(root: Path, *, dry_run: bool = False) -> List[VerifyResult]:
    """Hash every file and compare its digest with its name and its stamp.

    A damaged file is not removed; its stamp is invalidated, so that the next fetch hashes it, notices the damage and
    downloads it again. An intact file with an outdated stamp gets a new one. With ``dry_run`` nothing is written. A
    file that cannot be read is a result of its own, and does not stop the others.
    """
    results = []
    for file in list_files(root):
        if file.kind == "invalid":
            results.append(VerifyResult(file, None, file.problem))
        if file.kind != "file":
            continue
        try:
            state = FileState.of(file.path.lstat())
            sha256 = hash_file(file.path)
        except FileNotFoundError:  # removed by another process
            continue
        except OSError as error:
            results.append(VerifyResult(file, None, f"cannot be read: {error.strerror}"))
            continue
        key = _key(file.path.name)
        stamp_file = cache.stamp_path(file.path, root)
        stamp = cache.read_stamp(stamp_file)
        problem = None
        if not key.startswith("u") and not sha256.startswith(key):
            problem = f"its SHA-256 is {sha256}, but its name says {key}…"
        elif stamp is not None and stamp.sha256 != sha256:
            problem = f"its SHA-256 is {sha256}, but {stamp.sha256} was recorded"
        results.append(VerifyResult(file, sha256, problem))
        if dry_run or stamp is None:
            continue
        if problem is not None:
            cache.write_stamp(stamp_file, replace(stamp, state=state._replace(ctime_ns=-1)))  # the time of no file
        elif stamp.state != state:
            cache.write_stamp(stamp_file, replace(stamp, state=state))
    return results


# Entries ------------------------------------------------------------------------------------------------------


def _cached_file(path: Path) -> Optional[CachedFile]:
    kind = _kind(path.name)
    if kind is None:
        return None
    try:
        status = path.lstat()
    except FileNotFoundError:  # removed by another process
        return None
    except OSError as error:
        return CachedFile(path, "invalid", 0, 0.0, problem=f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        problem = f"it is {describe_file_type(status.st_mode)}, not a regular file"
        return CachedFile(path, "invalid", 0, status.st_mtime, problem=problem)
    stamp: Optional[cache.Stamp] = None
    is_readable = True
    if kind == "stamp":
        stamp = cache.read_stamp(path)
        if os.path.lexists(path.with_name(_file_name(path.name))):
            return None
        # The stamp of a file without a full digest stays although the file is gone: it is the only record of it.
        kind = "record" if stamp is not None and stamp.integrity != "sha256" else "stale"
    elif kind == "file":
        stamp = cache.read_stamp(cache.stamp_path(path, path.parent))
        is_readable = os.access(path, os.R_OK)
    return CachedFile(
        path=path,
        kind=kind,
        size=status.st_size,
        modified=status.st_mtime,
        sha256=None if stamp is None else stamp.sha256,
        integrity=None if stamp is None else stamp.integrity,
        problem=None if is_readable else "cannot be read: Permission denied",
        used=max(status.st_atime, status.st_mtime),
    )


def _kind(name: str) -> Optional[str]:
    """Return what an entry of this name may be, or None if it is not one of the hub's."""
    if parse_partial_name(name) is not None:
        return "partial"
    if _LOCK.fullmatch(name) or _TEMP_STAMP.fullmatch(name):
        return "stale"
    if name.endswith(cache.STAMP_SUFFIX) and is_cache_filename(name[: -len(cache.STAMP_SUFFIX)]):
        return "stamp"
    return "file" if is_cache_filename(name) else None


def _file_name(name: str) -> str:
    """Return the name of the file that an entry is, or belongs to; of a partial file and a lock only the key of it."""
    partial, lock, temp = parse_partial_name(name), _LOCK.fullmatch(name), _TEMP_STAMP.fullmatch(name)
    if partial is not None:
        return partial.key
    if lock is not None:
        return lock.group(1)
    if temp is not None:
        return temp.group(1)
    return name[: -len(cache.STAMP_SUFFIX)] if name.endswith(cache.STAMP_SUFFIX) else name


def _key(name: str) -> str:
    return _file_name(name).partition("-")[0]


# Removing -----------------------------------------------------------------------------------------------------


def _find(files: List[CachedFile], name: str) -> List[str]:
    """Return the names in the cache, or the keys, that ``name`` may stand for."""
    names = sorted({_file_name(file.path.name) for file in files})
    if any(file.path.name == name for file in files) or name in names:
        name = _file_name(name)
    if "-" in name and name in names:
        return [name]
    matches = [each for each in names if "-" in each and name in each.split("-", 1)]
    # Of a download that never ended there is only the key.
    is_unfinished = (name in names or is_cache_filename(name)) and _key(name) in names
    return matches or ([name] if is_unfinished else [])


def _find_one(root: Path, files: List[CachedFile], name: str) -> str:
    matches = _find(files, name)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ArgumentError(
            f"{name!r} may be any of {len(matches)} files in {root}; nothing was removed",
            hint=f"name one of them in full: {', '.join(matches)}",
            expected=matches,
            actual=name,
        )
    raise ArgumentError(
        f"no file in {root} is called {name!r}; nothing was removed",
        hint="use a name from the listing of the cache",
        expected=[file.path.name for file in files],
        actual=name,
    )


def _belonging_to(name: str, files: List[CachedFile], running: Collection[Path]) -> List[CachedFile]:
    """Return a file and what belongs to it, without what it shares with another file or with a running download."""
    key = _key(name)
    shared = any(file.path in running for file in files if _key(file.path.name) == key) or any(
        "-" in other and other != name and _key(other) == key
        for other in (_file_name(file.path.name) for file in files)
    )
    return [
        file
        for file in files
        if _file_name(file.path.name) == name or (_file_name(file.path.name) == key and not shared)
        if file.path not in running
    ]


def _derived_from(root: Path, files: List[CachedFile]) -> List[CachedFile]:
    """Return the derived data of files."""
    from .._derived_cache import DerivedCache  # here, as it takes NumPy

    keys = [_key(file.path.name) for file in files]
    digests = [file.sha256 or ("" if key.startswith("u") else key) for file, key in zip(files, keys)]
    return [
        CachedFile(entry.path, "derived", entry.size, entry.mtime)
        for entry in DerivedCache(root).entries()
        if any(digest and entry.source.startswith(digest) for digest in digests)
    ]


def _remove(files: List[CachedFile], dry_run: bool, *, keep_records: bool = False) -> List[CachedFile]:
    """Remove files and their stamps, unless these are to be kept and are the only record of a digest."""
    removed = []
    for file in files:
        try:
            if not dry_run:
                file.path.unlink()
                is_record = keep_records and file.integrity not in (None, "sha256")
                if file.kind in ("file", "derived", "invalid") and not is_record:
                    cache.stamp_path(file.path, file.path.parent).unlink()
        except FileNotFoundError:  # another process was faster, or there was no stamp
            pass
        except OSError as error:
            raise CacheError(
                f"cannot remove {file.path}: {error.strerror}", hint="check who owns it and its folder", path=file.path
            ) from error
        removed.append(file)
    return removed
