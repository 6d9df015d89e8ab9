"""List, remove, prune and verify the files of a cache folder.

Only regular files directly in the folder are considered, and only if their names are ones that the hub uses;
links, subfolders and other people's files are ignored.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Collection, Iterable, List, Optional

from .._atomic import TEMP_SUFFIX
from .._digest import hash_file
from .._file_state import FileState
from ..errors import ArgumentError
from ..registry.specs import FileSpec
from . import cache
from .clock import SYSTEM_CLOCK, Clock
from .filenames import cache_filename, is_cache_filename
from .partial import parse_partial_name, stale_partials

MAX_AGE_DAYS = 7.0  # how long an unfinished download may wait to be resumed

_LOCK = re.compile(r"u?[0-9a-f]{8,16}\.lock")
_TEMP_STAMP = re.compile(rf"\..+{re.escape(cache.STAMP_SUFFIX)}\.[0-9a-f]+{re.escape(TEMP_SUFFIX)}")


@dataclass(frozen=True)
class CachedFile:
    """A file in a cache; ``size`` in bytes, ``modified`` in seconds since 1970.

    ``kind`` is "file", "partial" (an unfinished download) or "stale" (a lock, or a stamp without its file).
    ``sha256`` and ``integrity`` are what its stamp says, if it has one.
    """

    path: Path
    kind: str
    size: int
    modified: float
    sha256: Optional[str] = None
    integrity: Optional[str] = None


@dataclass(frozen=True)
class VerifyResult:
    """The current digest of a file, and what is wrong with it, or None."""

    file: CachedFile
    sha256: str
    problem: Optional[str] = None


def list_files(root: Path) -> List[CachedFile]:
    """Return the hub's files in a cache folder, sorted by name; nothing if the folder does not exist."""
    try:
        paths = sorted(root.iterdir())
    except OSError:
        return []
    files = (_cached_file(path) for path in paths)
    return [file for file in files if file is not None]


def remove(root: Path, names: Iterable[str], *, dry_run: bool = False) -> List[CachedFile]:
    """Remove files, each named by its name in the cache, its key, or its own name; return what was removed.

    Their stamps are removed as well, and with them the recorded digests of unverified files. With ``dry_run`` nothing
    is removed. Raises ArgumentError, and removes nothing, if a name matches no file.
    """
    files = [file for file in list_files(root) if file.kind == "file"]
    chosen: List[CachedFile] = []
    for name in names:
        matches = [file for file in files if name in _names_of(file.path)]
        if not matches:
            raise ArgumentError(
                f"no file in {root} is called {name!r}; nothing was removed",
                hint="use a name from the listing of the cache",
                expected=[file.path.name for file in files],
                actual=name,
            )
        chosen += [file for file in matches if file not in chosen]
    return _remove(chosen, dry_run)


def prune(
    root: Path,
    *,
    days: float = MAX_AGE_DAYS,
    known: Optional[Collection[FileSpec]] = None,
    dry_run: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> List[CachedFile]:
    """Remove what is no longer needed, and return what was removed; with ``dry_run`` nothing is.

    That is: partial files that no process writes and that nobody resumed for ``days``, stale files of that age, and,
    if ``known`` is not None, files that belong to none of its specs. Running downloads are left alone.
    """
    oldest = clock.time() - days * 86400
    resumable = set(stale_partials(root, None, None, clock))
    keep = None if known is None else {cache_filename(file) for file in known}
    chosen = []
    for file in list_files(root):
        if file.kind == "file":
            obsolete = keep is not None and file.path.name not in keep
        elif file.kind == "partial":
            obsolete = file.path in resumable and file.modified <= oldest
        else:
            obsolete = file.modified <= oldest
        if obsolete:
            chosen.append(file)
    return _remove(chosen, dry_run)


def verify(root: Path, *, dry_run: bool = False) -> List[VerifyResult]:
    """Hash every file and compare its digest with its name and its stamp.

    A damaged file is not removed; its stamp is invalidated, so that the next fetch hashes it, notices the damage and
    downloads it again. An intact file with an outdated stamp gets a new one. With ``dry_run`` nothing is written.
    """
    results = []
    for file in list_files(root):
        if file.kind != "file":
            continue
        state = FileState.of(file.path.lstat())
        sha256 = hash_file(file.path)
        key = file.path.name.split("-")[0]
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


def _cached_file(path: Path) -> Optional[CachedFile]:
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    kind = _kind(path)
    if kind is None:
        return None
    stamp = cache.read_stamp(cache.stamp_path(path, path.parent)) if kind == "file" else None
    return CachedFile(
        path=path,
        kind=kind,
        size=status.st_size,
        modified=status.st_mtime,
        sha256=None if stamp is None else stamp.sha256,
        integrity=None if stamp is None else stamp.integrity,
    )


def _kind(path: Path) -> Optional[str]:
    name = path.name
    if parse_partial_name(name) is not None:
        return "partial"
    if _LOCK.fullmatch(name) or _TEMP_STAMP.fullmatch(name):
        return "stale"
    if name.endswith(cache.STAMP_SUFFIX) and is_cache_filename(name[: -len(cache.STAMP_SUFFIX)]):
        file = path.with_name(name[: -len(cache.STAMP_SUFFIX)])
        stamp = cache.read_stamp(path)
        # The stamp of a file without a full digest stays although the file is gone: it is the only record of it.
        is_record = stamp is not None and stamp.integrity != "sha256"
        return None if file.exists() or is_record else "stale"
    return "file" if is_cache_filename(name) else None


def _names_of(path: Path) -> List[str]:
    key, _, own = path.name.partition("-")
    return [path.name, key, own]


def _remove(files: List[CachedFile], dry_run: bool) -> List[CachedFile]:
    removed = []
    for file in files:
        try:
            if not dry_run:
                file.path.unlink()
                if file.kind == "file":
                    cache.stamp_path(file.path, file.path.parent).unlink()
        except FileNotFoundError:  # another process was faster, or there was no stamp
            pass
        except OSError as error:
            raise cache.unusable(file.path.parent, error) from error
        removed.append(file)
    return removed
