"""fetch and fetch_file: from a checkpoint's name, or a file's description, to the path of the verified file."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Hashable, Optional, Sequence, Tuple, Union

from .._arguments import check_flag, check_path
from .._escape import escape
from .._file_state import FileState
from .._files import describe_file_type
from .._log import get_logger
from .._redact import redact
from .._settings import ALLOW_UNVERIFIED_ENV, CACHE_DIRS_ENV, MIRROR_ENV, OFFLINE_ENV, Settings, read_settings
from ..errors import CacheError, DownloadError, IntegrityError, OfflineError, PathLike, UnverifiedError, ZooError
from ..registry.specs import FileSpec
from . import cache
from .cache import VerifiedFile
from .clock import SYSTEM_CLOCK, Clock
from .filenames import cache_filename, cache_key, sanitize_filename
from .verify import expected_digest

# A cached file, by far the most common case, needs none of these.
if TYPE_CHECKING:
    from .download import Limits
    from .http import HttpClient
    from .locks import Lock
    from .partial import PartialFile
    from .progress import Progress
    from .sources import Source

logger = get_logger("repvgg_zoo.hub")

_MAX_LOST_PARTIALS = 3


@dataclass(frozen=True)
class Services:
    """The outside world of a download, for tests to replace; None means the real one."""

    clock: Clock = SYSTEM_CLOCK
    client: Optional[HttpClient] = None
    limits: Optional[Limits] = None
    make_lock: Optional[Callable[[Path], Lock]] = None
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(str(folder)).free


def fetch(
    name: str,
    *,
    to: Optional[PathLike] = None,
    force: bool = False,
    offline: Optional[bool] = None,
    progress: Optional[bool] = None,
) -> Path:
    """Return the path of a checkpoint's file in the cache, after downloading and verifying it if necessary.

    ``name`` is a variant (its default checkpoint) or ``variant.tag``. With ``to``, a folder, the file is also copied
    there under its publisher's name, and the path is that of the copy; an equal file that is there is left alone,
    another one is replaced only with ``force``. None for ``offline`` or ``progress`` means what the environment says;
    by default progress is shown on a terminal and in notebooks. Needs no MegEngine.

    Raises UnknownModelError, NoWeightsError, ArgumentError for another file in ``to``, OSError if the copy cannot be
    written, and what ``fetch_file`` raises: OfflineError, UnverifiedError, DownloadError, IntegrityError, CacheError,
    DiskFullError.

    >>> import repvgg_zoo
    >>> repvgg_zoo.fetch("RepVGG_N0.digits").name
    '...-RepVGG_N0-digits.safetensors'
    """
    from ..registry.api import find_default_checkpoint

    folder, force = None if to is None else check_path("to", to), check_flag("force", force)
    offline = None if offline is None else check_flag("offline", offline)
    progress = None if progress is None else check_flag("progress", progress)
    file = find_default_checkpoint(name).file
    verified = fetch_verified(file, offline=offline, progress=progress)
    if folder is None:
        return verified.path
    from .copy import copy_to_folder

    return copy_to_folder(verified, file, folder, force=force)


def fetch_file(
    file: FileSpec,
    *,
    offline: Optional[bool] = None,
    progress: Union[bool, Progress, None] = None,
    allow_unverified: Optional[bool] = None,
    settings: Optional[Settings] = None,
    services: Optional[Services] = None,
) -> Path:
    """Return the path of a file that :func:`fetch_verified` returns; the arguments and errors are the same."""
    verified = fetch_verified(
        file,
        offline=offline,
        progress=progress,
        allow_unverified=allow_unverified,
        settings=settings,
        services=services,
    )
    return verified.path


def fetch_verified(
    file: FileSpec,
    *,
    offline: Optional[bool] = None,
    progress: Union[bool, Progress, None] = None,
    allow_unverified: Optional[bool] = None,
    settings: Optional[Settings] = None,
    services: Optional[Services] = None,
) -> VerifiedFile:
    """Return the verified file and its digest, from a cache if it is there, else from the first source that has it.

    A cached file is returned without using the network and without writing anything. None for an argument means what
    the environment says (see :mod:`repvgg_zoo._settings`). The file must not be changed: everybody who uses the cache
    reads it.

    Raises OfflineError if the file is not in the cache and the network may not be used, UnverifiedError if no digest of
    the file is known and that was not allowed, DownloadError, IntegrityError, CacheError or DiskFullError; whatever
    happens, no file has its final name before it is verified.
    """
    settings = read_settings() if settings is None else settings
    cache.check_home(settings.cache_dir)
    allow = settings.allow_unverified if allow_unverified is None else allow_unverified
    cached = _find(file, settings, allow)
    if cached is not None:
        return cached
    if file.integrity == "none" and not allow:
        raise _unverified_error(file)
    is_offline = settings.offline if offline is None else offline
    return _fetch_missing(file, settings, is_offline, allow, progress, services or Services())


def _find(file: FileSpec, settings: Settings, allow_unverified: bool) -> Optional[VerifiedFile]:
    home = settings.cache_dir
    for root in (*settings.read_only_cache_dirs, home):
        cached = cache.find(root, file, home=home, allow_unverified=allow_unverified)
        if cached is not None:
            return cached
    return None


def _fetch_missing(
    file: FileSpec,
    settings: Settings,
    offline: bool,
    allow_unverified: bool,
    progress: Union[bool, Progress, None],
    services: Services,
) -> VerifiedFile:
    from .locks import FileLock, download_lock
    from .progress import choose_progress
    from .sources import sources_of

    root, key = settings.cache_dir, cache_key(file)
    sources = sources_of(file, settings)
    refused = _refused_sources(file, sources, root, allow_unverified)
    sources = tuple(source for source in sources if source not in refused)
    not_asked = tuple(
        f"{source.label} could send another file, because only a prefix of the digest is published; "
        f"set {ALLOW_UNVERIFIED_ENV}=1 if you trust it"
        for source in refused
    )
    if offline:
        sources = tuple(source for source in sources if source.path is not None)
        if not sources:
            raise _offline_error(file, settings, allow_unverified, not_asked)
    cache.prepare(root)
    report = choose_progress(progress, settings.progress, clock=services.clock)
    make_lock = services.make_lock or FileLock
    try:
        with download_lock(
            make_lock=lambda: make_lock(root / f"{key}.lock"),
            progress_marker=lambda: _progress_marker(root, key),
            clock=services.clock,
            on_wait=lambda: _send_message(_describe_other_download(root, file), report),
        ):
            for _ in range(_MAX_LOST_PARTIALS):
                verified = _find(file, settings, allow_unverified) or _download(
                    file, settings, sources, report, services
                )
                if verified is not None:
                    return verified
    except DownloadError as error:
        if offline:
            raise _offline_error(file, settings, allow_unverified, (*error.attempts, *not_asked)) from error
        if not_asked:
            error.hint = "; ".join(not_asked)
        raise
    finally:
        report.close()
    raise CacheError(
        f"another program keeps deleting unfinished files from {root}", hint="find and stop that program", path=root
    )


def _refused_sources(
    file: FileSpec, sources: Sequence[Source], root: Path, allow_unverified: bool
) -> Tuple[Source, ...]:
    """Return the mirrors and rewritten URLs that may not serve a file, since a forged one would have its prefix too."""
    if allow_unverified or file.integrity != "sha256_prefix":
        return ()
    if cache.recorded_digest(root, file) is not None:
        return ()
    return tuple(source for source in sources if source.is_substitute)


def _download(
    file: FileSpec, settings: Settings, sources: Sequence[Source], report: Progress, services: Services
) -> Optional[VerifiedFile]:
    """Download into a partial file and publish it; return None if another process took it away in the meantime."""
    from .credentials import read_credentials
    from .download import Limits, Transfer, download
    from .http import RequestsClient
    from .partial import PartialFile
    from .progress import format_size

    root = settings.cache_dir
    target = root / cache_filename(file)
    pinned = cache.recorded_digest(root, file)
    resumable = file.integrity != "none"  # only a digest shows that two pieces belong to one file

    def ensure_free_space(size: int) -> None:
        free = services.free_bytes(root)
        if free < size:
            raise cache.disk_full(root, file.name, size, free)

    client = services.client or RequestsClient(settings.timeout, settings.stall_timeout, read_credentials())
    try:
        partial = PartialFile(root, cache_key(file), resumable=resumable)
    except OSError as error:
        raise cache.write_error(root, error, file.name, file.size or 0) from error
    limits = services.limits or Limits(max_attempts=1 + settings.retries, speed_window=settings.stall_timeout)
    with partial, closing(client):
        try:
            if resumable:
                partial.resume_from_stale(services.clock, file.size, services.free_bytes(root))
            job = Transfer(
                file=file,
                partial=partial,
                client=client,
                clock=services.clock,
                progress=report,
                limits=limits,
                ensure_free_space=ensure_free_space,
                pinned_sha256=pinned,
            )
            sha256, source = download(job, sources)
            size = partial.size
            verified = _publish(file, partial, target, sha256, services)
        except OSError as error:
            if isinstance(error, IntegrityError) and pinned is not None and error.expected == pinned:
                error.hint = (
                    "this is not the file that was recorded at the first download. If its publisher has replaced it, "
                    f"`repvgg-zoo cache rm {target.name}` forgets the recorded digest"
                )
            if isinstance(error, ZooError):
                raise
            missing = max(0, (file.size or 0) - partial.size)
            raise cache.write_error(root, error, file.name, missing, services.free_bytes(root)) from error
    if verified is not None:
        if pinned is None:
            cache.warn_if_weak(file, sha256)
        logger.info("fetched %s from %s, SHA-256 %s, to %s", format_size(size), source, sha256, target)
    return verified


def _publish(
    file: FileSpec, partial: PartialFile, target: Path, sha256: str, services: Services
) -> Optional[VerifiedFile]:
    partial.close()
    try:
        stamp = cache.Stamp(sha256, file.integrity, FileState.of(partial.path.stat()))
        cache.publish(partial.path, target, stamp, services.clock)
    except FileNotFoundError:
        return None
    except PermissionError:
        # Windows, and a reader has the old file open: if that one is intact by now, nothing is missing.
        cached = cache.find(target.parent, file, home=target.parent, allow_unverified=True)
        if cached is None:
            raise
        partial.discard()
        return cached
    return VerifiedFile(target, sha256, file.integrity)


# Other processes ----------------------------------------------------------------------------------------------


def _progress_marker(root: Path, key: str) -> Hashable:
    """Return something that changes whenever any process makes progress with this file."""
    from .partial import partial_files

    marker = []
    for path in partial_files(root, key):
        with suppress(OSError):
            status = path.stat()
            marker.append((path.name, status.st_size, status.st_mtime_ns))
    return tuple(marker)


def _send_message(text: str, report: Progress) -> None:
    logger.info("%s", text)
    report.message(escape(text))


def _describe_other_download(root: Path, file: FileSpec) -> str:
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
    label = sanitize_filename(file.name)
    if not pid:
        return f"waiting for another process that downloads {label}"
    total = f" of {format_size(file.size)}" if file.size else ""
    return f"waiting for process {pid}, which downloads {label} ({format_size(size)}{total} so far)"


# Errors -------------------------------------------------------------------------------------------------------


def _unverified_error(file: FileSpec) -> UnverifiedError:
    return UnverifiedError(
        f"the publisher of {file.name} states no digest, so the file cannot be verified",
        hint=f"pass allow_unverified=True or set {ALLOW_UNVERIFIED_ENV}=1; "
        "its digest is then recorded, and later downloads are compared with it",
        url=redact(file.sources[0]) if file.sources else None,
    )


def _offline_error(
    file: FileSpec, settings: Settings, allow_unverified: bool, attempts: Tuple[str, ...]
) -> OfflineError:
    name = cache_filename(file)
    roots = (*settings.read_only_cache_dirs, settings.cache_dir)
    is_weak = file.integrity == "sha256_prefix" and not allow_unverified
    problems = [_why_unusable(root, file, is_weak and root != settings.cache_dir) for root in roots]
    is_absent = not any(os.path.lexists(root / name) for root in roots)
    searched = (*problems, *attempts)
    listing = "".join(f"\n  - {place}" for place in searched)
    state = "is not in the cache" if is_absent else "is in the cache, but cannot be used from there"
    return OfflineError(
        f"{file.name} {state}, and the network may not be used ({OFFLINE_ENV}, or offline=True){listing}",
        hint=f"copy the file as {name} into one of these folders, name a folder that has it in {CACHE_DIRS_ENV} or "
        f"{MIRROR_ENV}, import a bundle, or go online once",
        attempts=searched,
        path=settings.cache_dir / name,
    )


def _why_unusable(root: Path, file: FileSpec, is_weak: bool) -> str:
    """Return why the file of a cache folder, in which it was not found, cannot be used.

    ``is_weak``: it was not compared with anything, because somebody else could have written it.
    """
    path = root / cache_filename(file)
    try:
        status = path.lstat()
    except FileNotFoundError:
        own_name = root / sanitize_filename(file.name)
        if own_name.is_file():
            return f"{path} does not exist; {own_name.name} does: rename it if it is this file"
        return f"{path} does not exist" + ("" if root.is_dir() else f", nor does the folder {root}")
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is {describe_file_type(status.st_mode)}, which is not followed: put the file itself there"
    if not os.access(str(path), os.R_OK):
        return f"{path} cannot be read: Permission denied"
    if file.size is not None and status.st_size < file.size:
        return f"{path} is cut short: it has {status.st_size} of {file.size} bytes"
    if file.size is not None and status.st_size > file.size:
        return f"{path} is not this file: it has {status.st_size} bytes, not {file.size}"
    if is_weak:
        return f"{path} may be another file, as only a prefix of its digest is published ({ALLOW_UNVERIFIED_ENV}=1)"
    return f"{path} is damaged: its SHA-256 is not {expected_digest(file) or 'the recorded one'}"
