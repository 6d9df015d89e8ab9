"""The one door of the hub loader: a file's description goes in, the path of the verified file comes out."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Hashable, Optional, Sequence, Tuple, Union

from repvgg_zoo.errors import CacheError, DownloadError, IntegrityError, OfflineError, UnverifiedError, ZooError
from repvgg_zoo.registry.specs import FileSpec

from .._settings import ALLOW_UNVERIFIED_ENV, CACHE_DIRS_ENV, MIRROR_ENV, OFFLINE_ENV, Settings, read_settings
from . import cache
from .clock import SYSTEM_CLOCK, Clock
from .filenames import file_key, stored_name

# A hit, by far the most common call, needs none of these.
if TYPE_CHECKING:
    from .download import Limits
    from .http import Web
    from .locks import Lock
    from .partial import Part
    from .progress import Progress
    from .sources import Source

logger = logging.getLogger("repvgg_zoo.hub")

_LOST_PART_TRIES = 3


@dataclass(frozen=True)
class Tools:
    """What the loader works with, to be replaced in tests; None stands for the real thing."""

    clock: Clock = SYSTEM_CLOCK
    web: Optional[Web] = None
    limits: Optional[Limits] = None
    make_lock: Optional[Callable[[Path], Lock]] = None
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(str(folder)).free


def fetch_file(
    file: FileSpec,
    *,
    offline: Optional[bool] = None,
    progress: Union[bool, Progress, None] = None,
    allow_unverified: Optional[bool] = None,
    settings: Optional[Settings] = None,
    tools: Optional[Tools] = None,
) -> Path:
    """The path of the verified file, from a cache if it is there, else from the first source that gives it.

    A file in a cache is given out without network and without any write. None for an argument means what the
    environment says (see :mod:`repvgg_zoo._settings`). The file must not be changed: it belongs to all who use the
    cache.

    Raises OfflineError if the file is not at hand and the network may not be used, UnverifiedError if nothing proves
    the file and that was not allowed, DownloadError, IntegrityError, CacheError or DiskFullError; whatever happens, no
    file stands under its stored name that is not verified.
    """
    settings = read_settings() if settings is None else settings
    allow = settings.allow_unverified if allow_unverified is None else allow_unverified
    hit = _find(file, settings, allow)
    if hit is not None:
        return hit
    if file.integrity == "none" and not allow:
        raise _unverified(file)
    is_offline = settings.offline if offline is None else offline
    return _fetch_missing(file, settings, is_offline, progress, tools or Tools())


def _find(file: FileSpec, settings: Settings, allow: bool) -> Optional[Path]:
    for root in settings.read_only_cache_dirs:
        path = cache.find(root, file, writable=False, allow_unverified=allow)
        if path is not None:
            return path
    return cache.find(settings.cache_dir, file, writable=True, allow_unverified=allow)


def _fetch_missing(
    file: FileSpec, settings: Settings, offline: bool, progress: Union[bool, Progress, None], tools: Tools
) -> Path:
    from .locks import FileLock, turn
    from .progress import choose_progress
    from .sources import sources_of

    root, key = settings.cache_dir, file_key(file)
    sources = sources_of(file, settings)
    if offline:
        sources = tuple(source for source in sources if source.path is not None)
        if not sources:
            raise _offline(file, settings, ())
    cache.prepare(root)
    report = choose_progress(progress, settings.progress)
    make_lock = tools.make_lock or FileLock  # looked up here, so that a hit imports no lock
    try:
        with turn(
            make_lock=lambda: make_lock(root / f"{key}.lock"),
            activity=lambda: _activity(root, key),
            clock=tools.clock,
            tell=lambda: _tell(_who_works(root, file), report),
        ):
            for _ in range(_LOST_PART_TRIES):
                path = _find(file, settings, allow=True) or _download(file, settings, sources, report, tools)
                if path is not None:
                    return path
    except DownloadError as error:
        if offline:
            raise _offline(file, settings, error.attempts) from error
        raise
    finally:
        report.close()
    raise CacheError(
        f"something keeps deleting unfinished files from {root}", hint="stop what cleans this folder up", path=root
    )


def _download(
    file: FileSpec, settings: Settings, sources: Sequence[Source], report: Progress, tools: Tools
) -> Optional[Path]:
    """Fetch into a part file and publish it; None if the part was taken away in the meantime."""
    from .download import Limits, Transfer, fill
    from .http import RequestsWeb
    from .partial import Part

    root = settings.cache_dir
    target = root / stored_name(file)
    old = cache.read_stamp(target)

    def need_room(size: int) -> None:
        free = tools.free_bytes(root)
        if free < size:
            raise cache.disk_full(root, file.name, size, free)

    try:
        part = Part(root, file_key(file))
    except OSError as error:
        raise cache.unusable(root, error) from error
    web = tools.web or RequestsWeb()
    resumable = file.integrity != "none"  # only a digest shows that two pieces belong to one file
    try:
        if resumable:
            part.adopt(tools.clock, file.size, tools.free_bytes(root))
        job = Transfer(
            file=file,
            part=part,
            web=web,
            clock=tools.clock,
            progress=report,
            limits=tools.limits or Limits(),
            need_room=need_room,
            remembered=old.sha256 if old is not None and file.integrity == "none" else None,
        )
        sha256 = fill(job, sources)
        return _publish(file, part, target, sha256, tools)
    except OSError as error:
        # A wrong body was thrown away at once, so what the part holds now came from a source that broke off.
        if isinstance(error, (DownloadError, IntegrityError)) and resumable:
            part.release()
        else:
            part.discard()
        if isinstance(error, ZooError):
            raise
        missing = max(0, (file.size or 0) - part.size)
        raise cache.write_error(root, error, file.name, missing, tools.free_bytes(root)) from error
    except BaseException:  # an interrupt: what came so far serves the next call
        if resumable:
            part.release()
        else:
            part.discard()
        raise
    finally:
        web.close()


def _publish(file: FileSpec, part: Part, target: Path, sha256: str, tools: Tools) -> Optional[Path]:
    part.close()
    try:
        status = part.path.stat()
        cache.publish(part.path, target, tools.clock)
    except FileNotFoundError:
        return None
    except PermissionError:
        # Windows, and a reader holds the old file: if that one is right by now, all is well.
        found = cache.find(target.parent, file, writable=True, allow_unverified=True)
        if found is None:
            raise
        part.discard()
        return found
    cache.write_stamp(target, cache.Stamp(status.st_size, status.st_mtime_ns, sha256, file.integrity))
    return target


def _activity(root: Path, key: str) -> Hashable:
    """Something that changes whenever any process gets on with this file."""
    from .partial import parts_in

    seen = []
    for path in parts_in(root, key):
        with suppress(OSError):
            status = path.stat()
            seen.append((path.name, status.st_size, status.st_mtime_ns))
    return tuple(seen)


def _tell(text: str, report: Progress) -> None:
    logger.info("%s", text)
    report.note(text)


def _who_works(root: Path, file: FileSpec) -> str:
    from .partial import parts_in, read_part_name
    from .progress import size_text

    newest = (0.0, 0, 0)
    for path in parts_in(root, file_key(file)):
        name = read_part_name(path.name)
        if name is not None and name.pid is not None:
            with suppress(OSError):
                status = path.stat()
                newest = max(newest, (status.st_mtime, name.pid, status.st_size))
    _, pid, size = newest
    if not pid:
        return f"waiting for another process that fetches {file.name}"
    total = f" of {size_text(file.size)}" if file.size else ""
    return f"waiting for process {pid}, which fetches {file.name} ({size_text(size)}{total} so far)"


def _unverified(file: FileSpec) -> UnverifiedError:
    from .sources import redact

    return UnverifiedError(
        f"the publisher of {file.name} states no digest, so nothing shows that it is the right file",
        hint=f"pass allow_unverified=True or set {ALLOW_UNVERIFIED_ENV}=1; "
        "its digest is then recorded and checked ever after",
        url=redact(file.sources[0]) if file.sources else None,
    )


def _offline(file: FileSpec, settings: Settings, attempts: Tuple[str, ...]) -> OfflineError:
    name = stored_name(file)
    looked = (
        tuple(f"{root / name}: not there" for root in (*settings.read_only_cache_dirs, settings.cache_dir)) + attempts
    )
    listing = "".join(f"\n  - {place}" for place in looked)
    return OfflineError(
        f"{file.name} is not at hand, and the network may not be used ({OFFLINE_ENV}, or offline=True){listing}",
        hint=f"bring the file as {name} into one of these folders, name a folder that has it in {CACHE_DIRS_ENV} or "
        f"{MIRROR_ENV}, import a bundle, or go online once",
        attempts=looked,
        path=settings.cache_dir / name,
    )
