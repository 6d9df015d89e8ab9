"""Looking after a cache folder: list, remove, prune, verify.

Only regular files directly in the folder whose names the loader itself could have made are ever touched; links,
subfolders and other people's files are not even looked at.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Collection, Iterable, List, Optional

from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.registry.specs import FileSpec

from .._digest import hash_file
from . import cache
from .clock import SYSTEM_CLOCK, Clock
from .filenames import cache_filename, is_cache_filename
from .partial import parse_partial_name, stale_partials

MAX_AGE_DAYS = 7.0  # how long an unfinished download may wait to be taken up again

_LEFTOVER = re.compile(r"(?P<name>.+)\.stamp\.[0-9a-f]{12}\.new|u?[0-9a-f]{8,16}\.lock")


@dataclass(frozen=True)
class CachedFile:
    """A file in a cache: ``kind`` is "file", "part" (unfinished) or "leftover"; ``modified`` in seconds since 1970.

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
    """What ``verify`` says of one file: its digest now, and None or what is wrong."""

    entry: CachedFile
    sha256: str
    problem: Optional[str] = None


def list_files(root: Path) -> List[CachedFile]:
    """Everything in a cache folder that is the loader's, by name; an absent folder is an empty one."""
    try:
        paths = sorted(root.iterdir())
    except OSError:
        return []
    entries = (_entry(path) for path in paths)
    return [entry for entry in entries if entry is not None]


def remove(root: Path, names: Iterable[str], *, dry_run: bool = False) -> List[CachedFile]:
    """Remove files, each named by its stored name, its key, or its own name; give what was (or would be) removed.

    Their stamps go too, and with them the recorded digests of unverified files. Raises ArgumentError, and removes
    nothing, if a name fits no file.
    """
    files = [entry for entry in list_files(root) if entry.kind == "file"]
    chosen: List[CachedFile] = []
    for name in names:
        fitting = [entry for entry in files if name in _names_of(entry.path)]
        if not fitting:
            raise ArgumentError(
                f"no file in {root} is called {name!r}; nothing was removed",
                hint="use a name as the listing of the cache shows it",
                expected=[entry.path.name for entry in files],
                actual=name,
            )
        chosen += [entry for entry in fitting if entry not in chosen]
    return _remove(chosen, dry_run)


def prune(
    root: Path,
    *,
    days: float = MAX_AGE_DAYS,
    known: Optional[Collection[FileSpec]] = None,
    dry_run: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> List[CachedFile]:
    """Remove what serves nobody; give what was (or would be) removed.

    That is: unfinished downloads on which no process works and which nobody took up for ``days``, leftovers of that
    age, and, if ``known`` is given, files that belong to none of its specs. A download that runs is left alone.
    """
    before = clock.time() - days * 86400
    idle = set(stale_partials(root, None, None, clock))
    wanted = None if known is None else {cache_filename(file) for file in known}
    chosen = []
    for entry in list_files(root):
        if entry.kind == "file":
            useless = wanted is not None and entry.path.name not in wanted
        elif entry.kind == "part":
            useless = entry.path in idle and entry.modified <= before
        else:
            useless = entry.modified <= before
        if useless:
            chosen.append(entry)
    return _remove(chosen, dry_run)


def verify(root: Path, *, dry_run: bool = False) -> List[VerifyResult]:
    """Read every file and compare its digest with its name and its stamp.

    A damaged file is not removed; its stamp is spoilt, so that the next fetch hashes it, sees the damage and brings it
    anew. A right file with an outdated stamp gets a fresh one. ``dry_run`` only looks.
    """
    findings = []
    for entry in list_files(root):
        if entry.kind != "file":
            continue
        status = entry.path.lstat()
        sha256 = hash_file(entry.path)
        key = entry.path.name.split("-")[0]
        stamp = cache.read_stamp(entry.path)
        problem = None
        if not key.startswith("u") and not sha256.startswith(key):
            problem = f"its SHA-256 is {sha256}, but its name says {key}…"
        elif stamp is not None and stamp.sha256 != sha256:
            problem = f"its SHA-256 is {sha256}, but {stamp.sha256} was recorded"
        findings.append(VerifyResult(entry, sha256, problem))
        if dry_run or stamp is None:
            continue
        if problem is not None:
            cache.write_stamp(entry.path, replace(stamp, mtime_ns=-1))
        elif (stamp.size, stamp.mtime_ns) != (status.st_size, status.st_mtime_ns):
            cache.write_stamp(entry.path, replace(stamp, size=status.st_size, mtime_ns=status.st_mtime_ns))
    return findings


def _entry(path: Path) -> Optional[CachedFile]:
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    kind = _kind(path)
    if kind is None:
        return None
    stamp = cache.read_stamp(path) if kind == "file" else None
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
        return "part"
    if _LEFTOVER.fullmatch(name) is not None:
        return "leftover"
    if name.endswith(cache.STAMP_SUFFIX) and is_cache_filename(name[: -len(cache.STAMP_SUFFIX)]):
        file = path.with_name(name[: -len(cache.STAMP_SUFFIX)])
        stamp = cache.read_stamp(file)
        # The stamp of an unverified file outlives it: it holds the only record of its digest.
        is_record = stamp is not None and stamp.integrity == "none"
        return None if file.exists() or is_record else "leftover"
    return "file" if is_cache_filename(name) else None


def _names_of(path: Path) -> List[str]:
    key, _, own = path.name.partition("-")
    return [path.name, key, own]


def _remove(entries: List[CachedFile], dry_run: bool) -> List[CachedFile]:
    removed = []
    for entry in entries:
        try:
            if not dry_run:
                entry.path.unlink()
                if entry.kind == "file":
                    cache.stamp_path(entry.path).unlink()
        except FileNotFoundError:  # another process was faster, or there was no stamp
            pass
        except OSError as error:
            raise cache.unusable(entry.path.parent, error) from error
        removed.append(entry)
    return removed
