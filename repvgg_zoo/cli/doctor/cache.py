"""The doctor's checks of the registry, the settings, the cache folder, and the places that serve files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import List

from ... import _settings
from ..._digest import hash_file
from ..._resources import hub_folder
from ...errors import CacheError, PluginError, ZooError
from ...hub import cache as caches
from ...hub import cache_manager, read_settings
from ...hub.clock import SYSTEM_CLOCK
from ...hub.partial import stale_partials
from ...hub.progress import format_size
from ..console import count
from ..parser import closest
from .finding import Finding, fail, ok, warn

PREFIX = "REPVGG_ZOO_"
KNOWN = (*_settings.VARIABLES, "REPVGG_ZOO_PYTHON")  # the last one is ./dev's
NEEDED, COMFORTABLE = 50_000_000, 2_000_000_000  # bytes: one small checkpoint, and the largest with its native form


def environment(offline: bool) -> List[Finding]:
    """Our variables: what is set, what cannot be meant, and what nobody reads."""
    found = []
    for name in sorted(name for name in os.environ if name.startswith(PREFIX)):
        if name not in KNOWN and not name.startswith(f"{PREFIX}TEST_"):
            close = closest(name, [known.lower() for known in KNOWN])
            fix = f"unset {name}" + (f" (did you mean {close.upper()}?)" if close else "")
            found.append(warn("environment", f"{name} is set, and nothing reads it", fix))
    try:
        read_settings()
    except ZooError as error:
        return [*found, fail("environment", error.message, error.hint)]
    shown = ", ".join(name for name in KNOWN if os.environ.get(name)) or "none of our variables is set"
    return [*found, ok("environment", shown)]


def registry(offline: bool) -> List[Finding]:
    """Whether the registry and others' can be read, and the files that came with this package are whole."""
    from ...registry.api import load_all_registries

    whole, failures = load_all_registries()
    models = whole.models
    published = sum(len(model.checkpoints) for model in models)
    found = [ok("registry", f"{count(len(models), 'variant')}, {count(published, 'checkpoint')}")]
    for failure in failures:
        name = "plug-ins" if isinstance(failure, PluginError) else "registry"
        where = f"{failure.path}: " if failure.path and failure.path not in failure.message else ""
        found.append(fail(name, f"{where}{failure.message}", failure.hint))
    for path in sorted(hub_folder().glob("*.safetensors")):
        if not hash_file(path).startswith(path.name.partition("-")[0]):
            found.append(fail("registry", f"{path} is damaged", "pip install --force-reinstall --no-deps repvgg-zoo"))
    return found


def cache(offline: bool) -> List[Finding]:
    """Whether the cache can be written, and the read-only ones read."""
    chosen = read_settings()
    found = []
    for folder in chosen.read_only_cache_dirs:
        if not os.access(str(folder), os.R_OK | os.X_OK):
            fix = f"take it out of {_settings.CACHE_DIRS_ENV}, or mount it"
            found.append(warn("cache", f"{folder}, of {_settings.CACHE_DIRS_ENV}, cannot be read", fix))
    probe = chosen.cache_dir / f"doctor-{uuid.uuid4().hex[:12]}"
    try:
        caches.prepare(chosen.cache_dir)
        probe.write_bytes(b"x")
    except CacheError as error:
        return [*found, fail("cache", error.message, f"export {_settings.HOME_ENV}=/a/folder/you/may/write")]
    except OSError as error:
        text = f"cannot write to {chosen.cache_dir}: {error.strerror}"
        return [*found, fail("cache", text, f"export {_settings.HOME_ENV}=/a/folder/you/may/write")]
    finally:
        with suppress(OSError):
            probe.unlink()
    return [*found, ok("cache", str(chosen.cache_dir))]


def disk(offline: bool) -> List[Finding]:
    """Free space where the cache is."""
    root = existing(read_settings().cache_dir)
    free = shutil.disk_usage(str(root)).free
    text = f"{format_size(free)} free at {root}"
    fix = f"export {_settings.HOME_ENV}=/a/folder/on/another/disk, or repvgg-zoo cache prune --native"
    if free < NEEDED:
        return [fail("disk", text, fix)]
    return [warn("disk", f"{text}; the largest checkpoints need more", fix) if free < COMFORTABLE else ok("disk", text)]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def locks(offline: bool) -> List[Finding]:
    """Whether a lock that this process holds keeps another one out, on the file system of the cache."""
    from filelock import FileLock

    root = existing(read_settings().cache_dir)
    path = root / f"doctor-{uuid.uuid4().hex[:12]}.lock"
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=0)
        answer = another_process(path)
    except (OSError, NotImplementedError) as error:
        return [locks_do_not_work(f"cannot be made ({type(error).__name__})")]
    finally:
        with suppress(OSError):
            lock.release()
        with suppress(OSError):
            path.unlink()
    if answer == "kept out":
        return [ok("locks", f"honest at {root}")]
    return [locks_do_not_work("let two processes in at once" if answer == "let in" else answer)]


def another_process(path: Path) -> str:
    """What another process says that tries the lock: "kept out" or "let in"."""
    code = (
        "import sys, filelock\n"
        "try: filelock.FileLock(sys.argv[1]).acquire(timeout=0)\n"
        "except filelock.Timeout: print('kept out')\n"
        "else: print('let in')\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() or "break the process that tries them"


def locks_do_not_work(what: str) -> Finding:
    """Nothing depends on locks, so this is a warning."""
    text = f"file locks {what} here: processes may each download the same file"
    return warn("locks", text, f"export {_settings.HOME_ENV}=/a/folder/on/a/local/disk")


def leftovers(offline: bool) -> List[Finding]:
    """Unfinished downloads on which no process works."""
    root = read_settings().cache_dir
    parts = [path for path in stale_partials(root, None, None, SYSTEM_CLOCK) if path.exists()] if root.is_dir() else []
    size = sum(path.stat().st_size for path in parts)
    old = [entry for entry in cache_manager.prune(root, dry_run=True) if entry.kind == "partial"]
    text = f"{count(len(parts), 'unfinished download')}, {format_size(size)}"
    if old:
        return [warn("leftovers", f"{text}, {len(old)} of them over a week old", "repvgg-zoo cache prune")]
    return [ok("leftovers", f"{text}; the next fetch goes on with them" if parts else "none")]


def network(offline: bool) -> List[Finding]:
    """Whether the mirrors and the hosts of the registry's sources answer."""
    from ...registry.api import full_registry
    from . import connectivity

    chosen = read_settings()
    if offline or chosen.offline:
        return [ok("network", "not asked (offline)")]
    files = [checkpoint.file for model in full_registry().models for checkpoint in model.checkpoints]
    answers = connectivity.ask([*connectivity.mirrors(chosen), *connectivity.hosts(files, chosen)])
    mirrors = [one for one in answers if one.place.kind == "mirror"]
    hosts = [one for one in answers if one.place.kind == "host"]
    found = [
        ok("network", f"mirror {one.place.label} {one.text}")
        if one.ok
        else warn("network", f"mirror {one.place.label} {one.text}", f"check {_settings.MIRROR_ENV}")
        for one in mirrors
    ]
    silent = [one for one in hosts if not one.ok]
    if len(silent) == len(hosts):
        fix = "set https_proxy or a mirror, or carry a bundle over (repvgg-zoo bundle)"
        return [*found, warn("network", f"none of the {len(hosts)} hosts that publish checkpoints answers", fix)]
    found += [warn("network", f"{one.place.label} {one.text}") for one in silent]
    return [*found, ok("network", f"{len(hosts) - len(silent)} of {count(len(hosts), 'host')} answer")]
