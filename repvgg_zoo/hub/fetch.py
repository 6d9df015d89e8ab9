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
from .filenames import cache_filename, cache_key

# A hit, by far the most common call, needs none of these.
if TYPE_CHECKING:
    from .download import Limits
    from .http import HttpClient
    from .locks import Lock
    from .partial import PartialFile
    from .progress import Progress
    from .sources import Source

logger = logging.getLogger("repvgg_zoo.hub")

_LOST_PART_TRIES = 3


@dataclass(frozen=True)
class Services:
    """What the loader works with, to be replaced in tests; None stands for the real thing."""

    clock: Clock = SYSTEM_CLOCK
    web: Optional[HttpClient] = None
    limits: Optional[Limits] = None
    make_lock: Optional[Callable[[Path], Lock]] = None
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(str(folder)).free


def fetch(name: str, *, offline: Optional[bool] = None, progress: Optional[bool] = None) -> Path:
    """Return the path of a checkpoint's file in the cache, after downloading and verifying it if necessary.

    ``name`` is a variant (its default checkpoint) or ``variant.tag``. None for ``offline`` or ``progress`` means what
    the environment says; progress is shown on a terminal only. Needs no MegEngine.

    Raises UnknownModelError, NoWeightsError, and what ``fetch_file`` raises: OfflineError, UnverifiedError,
    DownloadError, IntegrityError, CacheError, DiskFullError.

    >>> import repvgg_zoo
    >>> repvgg_zoo.fetch("RepVGG_N0.digits").name
    '...-RepVGG_N0-digits.safetensors'
    """
    from ..registry.api import find_default_checkpoint

    return fetch_file(find_default_checkpoint(name).file, offline=offline, progress=progress)


def fetch_file(
    file: FileSpec,
    *,
    offline: Optional[bool] = None,
    progress: Union[bool, Progress, None] = None,
    allow_unverified: Optional[bool] = None,
    settings: Optional[Settings] = None,
    services: Optional[Services] = None,
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
    return _fetch_missing(file, settings, is_offline, progress, services or Services())


def _find(file: FileSpec, settings: Settings, allow: bool) -> Optional[Path]:
    for root in settings.read_only_cache_dirs:
        path = cache.find(root, file, writable=False, allow_unverified=allow)
        if path is not None:
            return path
    return cache.find(settings.cache_dir, file, writable=True, allow_unverified=allow)


def _fetch_missing(
    file: FileSpec, settings: Settings, offline: bool, progress: Union[bool, Progress, None], services: Services
) -> Path:
    from .locks import FileLock, turn
    from .progress import choose_progress
    from .sources import sources_of

    root, key = settings.cache_dir, cache_key(file)
    sources = sources_of(file, settings)
    if offline:
        sources = tuple(source for source in sources if source.path is not None)
        if not sources:
            raise _offline(file, settings, ())
    cache.prepare(root)
    report = choose_progress(progress, settings.progress)
    make_lock = services.make_lock or FileLock  # looked up here, so that a hit imports no lock
    try:
        with turn(
            make_lock=lambda: make_lock(root / f"{key}.lock"),
            activity=lambda: _activity(root, key),
            clock=services.clock,
            tell=lambda: _tell(_who_works(root, file), report),
        ):
            for _ in range(_LOST_PART_TRIES):
                path = _find(file, settings, allow=True) or _download(file, settings, sources, report, services)
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
    file: FileSpec, settings: Settings, sources: Sequence[Source], report: Progress, services: Services
) -> Optional[Path]:
    """Fetch into a part file and publish it; None if the part was taken away in the meantime."""
    from .download import Limits, Transfer, fill
    from .http import RequestsClient
    from .partial import PartialFile

    root = settings.cache_dir
    target = root / cache_filename(file)
    old = cache.read_stamp(target)

    def need_room(size: int) -> None:
        free = services.free_bytes(root)
        if free < size:
            raise cache.disk_full(root, file.name, size, free)

    try:
        part = PartialFile(root, cache_key(file))
    except OSError as error:
        raise cache.unusable(root, error) from error
    web = services.web or RequestsClient()
    resumable = file.integrity != "none"  # only a digest shows that two pieces belong to one file
    try:
        if resumable:
            part.adopt(services.clock, file.size, services.free_bytes(root))
        job = Transfer(
            file=file,
            part=part,
            web=web,
            clock=services.clock,
            progress=report,
            limits=services.limits or Limits(),
            need_room=need_room,
            remembered=old.sha256 if old is not None and file.integrity == "none" else None,
        )
        sha256 = fill(job, sources)
        return _publish(file, part, target, sha256, services)
    except OSError as error:
        # A wrong body was thrown away at once, so what the part holds now came from a source that broke off.
        if isinstance(error, (DownloadError, IntegrityError)) and resumable:
            part.release()
        else:
            part.discard()
        if isinstance(error, ZooError):
            raise
        missing = max(0, (file.size or 0) - part.size)
        raise cache.write_error(root, error, file.name, missing, services.free_bytes(root)) from error
    except BaseException:  # an interrupt: what came so far serves the next call
        if resumable:
            part.release()
        else:
            part.discard()
        raise
    finally:
        web.close()


def _publish(file: FileSpec, part: PartialFile, target: Path, sha256: str, services: Services) -> Optional[Path]:
    part.close()
    try:
        status = part.path.stat()
        cache.publish(part.path, target, services.clock)
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
    from .partial import partial_files

    seen = []
    for path in partial_files(root, key):
        with suppress(OSError):
            status = path.stat()
            seen.append((path.name, status.st_size, status.st_mtime_ns))
    return tuple(seen)


def _tell(text: str, report: Progress) -> None:
    logger.info("%s", text)
    report.note(text)


def _who_works(root: Path, file: FileSpec) -> str:
    from .partial import parse_partial_name, partial_files
    from .progress import format_size

    newest = (0.0, 0, 0)
    for path in partial_files(root, cache_key(file)):
        name = parse_partial_name(path.name)
        if name is not None and name.pid is not None:
            with suppress(OSError):
                status = path.stat()
                newest = max(newest, (status.st_mtime, name.pid, status.st_size))
    _, pid, size = newest
    if not pid:
        return f"waiting for another process that fetches {file.name}"
    total = f" of {format_size(file.size)}" if file.size else ""
    return f"waiting for process {pid}, which fetches {file.name} ({format_size(size)}{total} so far)"


def _unverified(file: FileSpec) -> UnverifiedError:
    from .sources import redact

    return UnverifiedError(
        f"the publisher of {file.name} states no digest, so nothing shows that it is the right file",
        hint=f"pass allow_unverified=True or set {ALLOW_UNVERIFIED_ENV}=1; "
        "its digest is then recorded and checked ever after",
        url=redact(file.sources[0]) if file.sources else None,
    )


def _offline(file: FileSpec, settings: Settings, attempts: Tuple[str, ...]) -> OfflineError:
    name = cache_filename(file)
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
