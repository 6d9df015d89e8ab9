"""Check the cache folder: access, disk space, file locks, and unfinished downloads."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import List

from ..._file_state import foreign_access
from ..._settings import CACHE_DIRS_ENV, HOME_ENV, read_settings
from ..._text import pluralize
from ...errors import CacheError
from ...hub import cache, cache_manager
from ...hub.clock import SYSTEM_CLOCK
from ...hub.partial import stale_partials
from ...hub.progress import format_size
from .finding import FAIL, Finding, fail, ok, warn
from .python import is_frozen

# One small checkpoint, and the largest one together with its derived data.
REQUIRED_BYTES, RECOMMENDED_BYTES = 50_000_000, 2_000_000_000


def check_cache() -> List[Finding]:
    """Check that only this user can write the cache, and that the read-only ones can be read."""
    settings = read_settings()
    findings = []
    for folder in settings.read_only_cache_dirs:
        if not os.access(str(folder), os.R_OK | os.X_OK):
            fix = f"remove it from {CACHE_DIRS_ENV}, or mount it"
            findings.append(warn("cache", f"{folder}, of {CACHE_DIRS_ENV}, cannot be read", fix))
    findings += check_private(settings.cache_dir)
    if any(finding.status == FAIL for finding in findings):
        return findings
    fix = f"export {HOME_ENV}=/a/writable/folder"
    test_file = settings.cache_dir / f"doctor-{uuid.uuid4().hex[:12]}"
    try:
        cache.prepare(settings.cache_dir)
        test_file.write_bytes(b"x")
    except CacheError as error:
        return [*findings, fail("cache", error.message, fix)]
    except OSError as error:
        return [*findings, fail("cache", f"cannot write to {settings.cache_dir}: {error.strerror}", fix)]
    finally:
        with suppress(OSError):
            test_file.unlink()
    return [*findings, ok("cache", str(settings.cache_dir))]


def check_private(root: Path) -> List[Finding]:
    """Check that no other user can put files into the cache, or replace them; without it, the cache is not used."""
    if not hasattr(os, "getuid") or not root.is_dir():  # Windows, where a user's folders are private
        return []
    status = root.stat()
    reason = foreign_access(status)
    if reason is None:
        return []
    fix = f"chmod go-w {shlex.quote(str(root))}"
    if status.st_uid != os.getuid():
        fix = f"export {HOME_ENV}=/a/folder/of/yours; to read this one, export {CACHE_DIRS_ENV}={root}"
    return [fail("cache", f"{root} is not used: {reason}", fix)]


def check_disk() -> List[Finding]:
    """Check the free space on the cache's disk."""
    root = nearest_existing(read_settings().cache_dir)
    free = shutil.disk_usage(str(root)).free
    text = f"{format_size(free)} free at {root}"
    fix = f"export {HOME_ENV}=/a/folder/on/another/disk, or repvgg-zoo cache prune --derived"
    if cache.free_inodes(root) == 0:
        return [fail("disk", f"{text}, but no free inodes: it cannot hold one more file", fix)]
    if free < REQUIRED_BYTES:
        return [fail("disk", text, fix)]
    if free < RECOMMENDED_BYTES:
        return [warn("disk", f"{text}; the largest checkpoints need more", fix)]
    return [ok("disk", text)]


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_locks() -> List[Finding]:
    """Check that a file lock held by this process excludes another process, on the cache's file system."""
    from filelock import FileLock

    if is_frozen():
        return [ok("locks", "not checked, as that takes a second process of Python")]
    root = nearest_existing(read_settings().cache_dir)
    path = root / f"doctor-{uuid.uuid4().hex[:12]}.lock"
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=0)
        answer = try_lock_in_child(path)
    except (OSError, NotImplementedError) as error:
        return [broken_locks(f"cannot be created ({type(error).__name__})")]
    finally:
        with suppress(OSError):
            lock.release()
        with suppress(OSError):
            path.unlink()
    if answer == "excluded":
        return [ok("locks", f"file locks work at {root}")]
    return [broken_locks("do not exclude other processes" if answer == "acquired" else "cannot be tested")]


def try_lock_in_child(path: Path) -> str:
    """Return what another process that tries the lock prints: "excluded" or "acquired"."""
    code = (
        "import sys, filelock\n"
        "try: filelock.FileLock(sys.argv[1]).acquire(timeout=0)\n"
        "except filelock.Timeout: print('excluded')\n"
        "else: print('acquired')\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()


def broken_locks(problem: str) -> Finding:
    """Return a warning: downloads are correct without locks, but may be repeated."""
    text = f"file locks {problem} here: several processes may download the same file"
    return warn("locks", text, f"export {HOME_ENV}=/a/folder/on/a/local/disk")


def check_unfinished_downloads() -> List[Finding]:
    """Report unfinished downloads on which no process works."""
    root = read_settings().cache_dir
    paths = [path for path in stale_partials(root, None, None, SYSTEM_CLOCK) if path.exists()] if root.is_dir() else []
    if not paths:
        return [ok("downloads", "none is unfinished")]
    size = sum(path.stat().st_size for path in paths)
    text = f"{pluralize(len(paths), 'unfinished download')}, {format_size(size)}"
    old = [file for file in cache_manager.prune(root, dry_run=True) if file.kind == "partial"]
    if old:
        return [warn("downloads", f"{text}, {len(old)} of them over a week old", "repvgg-zoo cache prune")]
    return [ok("downloads", f"{text}; the next fetch resumes them")]
