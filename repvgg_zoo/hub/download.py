"""Download a file into a partial file, from the first source that has the right bytes.

Each attempt is one GET, hashed while it streams. A connection that breaks is resumed. Permanent errors are not retried.
A body with the wrong digest is discarded and requested once more, then the next source is tried.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import DownloadError, IntegrityError, ZooError
from ..registry.specs import FileSpec
from .clock import SYSTEM_CLOCK, Clock
from .file_transport import open_file
from .http import (
    HttpClient,
    Response,
    SourceError,
    content_length,
    content_range,
    is_encoded,
    range_validator,
    status_error,
)
from .partial import PartialFile
from .progress import NullProgress, Progress
from .sources import Source
from .verify import digest_matches, expected_digest, sniff_placeholder

# Every read allocates this much, of which TLS fills 16 KiB; from 128 KiB on, malloc may map and unmap pages each time.
READ_BYTES = 96 << 10

logger = logging.getLogger("repvgg_zoo.hub")


@dataclass(frozen=True)
class Limits:
    """When to retry and when to give up; times in seconds, sizes in bytes.

    ``max_attempts`` counts failures in a row at one source; ``reset_after_bytes`` new bytes start the count again. The
    pauses between attempts grow from ``initial_backoff`` to ``max_backoff``. A transfer slower than ``min_speed`` bytes
    a second over ``speed_window`` seconds counts as broken.
    """

    max_attempts: int = 4
    initial_backoff: float = 0.5
    max_backoff: float = 60.0
    reset_after_bytes: int = 1 << 20
    min_speed: float = 512.0
    speed_window: float = 30.0


@dataclass
class Transfer:
    """One file to download, and what the download works with.

    ``ensure_free_space`` is called with the number of bytes still to come before the first of them is read.
    ``pinned_sha256`` is the digest that was recorded when a file without a full published digest was first downloaded.
    """

    file: FileSpec
    partial: PartialFile
    client: HttpClient
    clock: Clock = SYSTEM_CLOCK
    progress: Progress = field(default_factory=NullProgress)
    limits: Limits = Limits()
    ensure_free_space: Callable[[int], None] = lambda size: None
    pinned_sha256: Optional[str] = None


class Downloaded(NamedTuple):
    """The digest of a finished file, and the source that sent its last byte."""

    sha256: str
    source: str


def download(job: Transfer, sources: Sequence[Source]) -> Downloaded:
    """Fill the partial file from the first source that has the right bytes.

    Raises IntegrityError if a source sent a complete file that is another one, else DownloadError; both list every
    attempt.
    """
    attempts: List[str] = []
    mismatch: Optional[Tuple[Source, Any, Any]] = None
    for source in sources:
        try:
            return _download_from(job, _SourceState(source), attempts)
        except SourceError as error:
            logger.info("%s from %s failed: %s", job.file.name, source.label, error)
            if error.mismatch is not None:
                mismatch = (source, *error.mismatch)
    raise _failure(job.file, sources, attempts, mismatch)


@dataclass
class _SourceState:
    """One source while it is tried: what If-Range may hold, and whether the file was requested from its start again.

    ``requests`` counts the requests sent to it.
    """

    source: Source
    validator: Optional[str] = None
    restarted: bool = False
    requests: int = 0


def _download_from(job: Transfer, state: _SourceState, attempts: List[str]) -> Downloaded:
    """Try one source until it has sent the file; raises its last SourceError if that cannot succeed."""
    partial = job.partial
    retries = _Retries(job.limits, job.clock, partial.size)
    while True:
        try:
            if partial.size == 0 or partial.size != job.file.size:
                partial.touch()
                _request(job, state)
            sha256 = _verify(job)
            return Downloaded(sha256, state.source.label if state.requests else "an unfinished download")
        except SourceError as error:
            attempts.append(f"{state.source.label}: {error}")
            if error.mismatch is not None:
                partial.reset()
                if state.restarted:
                    raise
                # An old partial file or a broken HTTP cache may be the cause: request it once more, past all caches.
                state.restarted, state.validator = True, None
                retries.restart()
                continue
            delay = retries.delay(error, partial.size)
            if delay is None:
                raise
            job.clock.sleep(delay)


class _Retries:
    """Counts the failures in a row at one source."""

    def __init__(self, limits: Limits, clock: Clock, size: int) -> None:
        self._limits, self._clock = limits, clock
        self._failures, self._last_size = 0, size

    def restart(self) -> None:
        """Take note that the file is read from its start again."""
        self._last_size = 0

    def delay(self, error: SourceError, size: int) -> Optional[float]:
        """Return how many seconds to wait before the next attempt, or None if there should not be one.

        ``size`` is how many bytes of the file have arrived.
        """
        limits = self._limits
        if size >= self._last_size + limits.reset_after_bytes:
            self._failures, self._last_size = 0, size
        self._failures += 1
        backoff = min(limits.max_backoff, limits.initial_backoff * 2.0 ** (self._failures - 1))
        delay = max(backoff * (0.5 + 0.5 * self._clock.jitter()), error.retry_after or 0.0)
        if not error.retryable or self._failures >= limits.max_attempts or delay > limits.max_backoff:
            return None
        return delay


def _request(job: Transfer, state: _SourceState) -> None:
    """Send one request and append what arrives to the partial file, which keeps it if SourceError is raised."""
    partial, source = job.partial, state.source
    if partial.size and state.validator is None and job.file.integrity == "none":
        partial.reset()  # nothing would show that the two pieces belong to one file
    headers = {}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
        if state.validator is not None:
            headers["If-Range"] = state.validator
    if state.restarted:
        headers["Cache-Control"] = "no-cache"
    state.requests += 1
    response = job.client.get(source, headers) if source.path is None else open_file(source.path, headers)
    try:
        total = _accept(job, response)
        state.validator = range_validator(response)
        if response.status != 416:
            _read_body(job, response, total)
    finally:
        response.close()


def _accept(job: Transfer, response: Response) -> Optional[int]:
    """Check status, range and size before the body; return the size of the whole file if the server states it."""
    partial, file = job.partial, job.file
    if response.status == 200:
        if partial.size:  # the server does not support ranges, or the file has changed (If-Range)
            partial.reset()
        total = content_length(response)
        if file.integrity == "none" and total is None and "Transfer-Encoding" not in response.headers:
            raise SourceError(
                "it states neither length nor digest, so a truncated body would pass for complete", retryable=False
            )
    elif response.status == 206:
        first, total = content_range(response)
        if first != partial.size or is_encoded(response):
            partial.reset()
            raise SourceError("the server sent another range than requested", retryable=True)
    elif response.status == 416 and partial.size:
        total = content_range(response).total
        if total != partial.size:
            partial.reset()
            raise SourceError(f"the server has no bytes after {partial.size}", retryable=True)
    else:
        raise status_error(response, job.clock)
    if file.size is not None and total is not None and total != file.size:
        placeholder = sniff_placeholder(response.read(512))
        partial.reset()
        if placeholder is not None:
            raise SourceError(f"{placeholder} of {total} bytes came instead of the file", retryable=False)
        raise SourceError(f"its size is {total}, not {file.size}", retryable=False, mismatch=(file.size, total))
    return total


def _read_body(job: Transfer, response: Response, total: Optional[int]) -> None:
    """Append the body to the partial file; raises SourceError if it is shorter or longer than the file."""
    partial, name = job.partial, job.file.name
    expected = total if job.file.size is None else job.file.size
    if expected is not None:
        job.ensure_free_space(expected - partial.size)
    job.progress.update(name, partial.size, expected)
    speed = _SpeedGuard(job.limits, job.clock, partial.size)
    while True:
        try:
            # One byte more than expected, to see whether the body ends where it should.
            data = response.read(READ_BYTES if expected is None else min(READ_BYTES, expected - partial.size + 1))
        except SourceError:
            if partial.size == expected:
                return
            raise
        if not data:
            break
        if expected is not None and partial.size + len(data) > expected:
            partial.reset()
            raise SourceError(f"the body is longer than {expected} bytes", retryable=False, mismatch=(expected, "more"))
        partial.write(data)
        job.progress.update(name, partial.size, expected)
        speed.check(partial.size)
    if expected is not None and partial.size < expected:
        placeholder = sniff_placeholder(partial.head())
        if placeholder is not None:
            partial.reset()
            raise SourceError(f"{placeholder} came instead of the file", retryable=False)
        raise SourceError(f"the body ended after {partial.size} of {expected} bytes", retryable=True)


class _SpeedGuard:
    """Ends a transfer that drips: silence is noticed by the client's timeout, a byte now and then is not."""

    def __init__(self, limits: Limits, clock: Clock, size: int) -> None:
        self._limits, self._clock = limits, clock
        self._since, self._size = clock.monotonic(), size

    def check(self, size: int) -> None:
        """Raise SourceError if too few bytes arrived in the last window; ``size`` is how many there are in all."""
        now = self._clock.monotonic()
        seconds, arrived = now - self._since, size - self._size
        if seconds < self._limits.speed_window:
            return
        if arrived < self._limits.min_speed * self._limits.speed_window:
            raise SourceError(f"only {arrived} bytes came in {seconds:.0f} seconds", retryable=True)
        self._since, self._size = now, size


def _verify(job: Transfer) -> str:
    """Return the digest of the complete file; raises SourceError if it is not the expected one."""
    partial, file = job.partial, job.file
    sha256 = partial.digest()
    matches = digest_matches(file, sha256) and job.pinned_sha256 in (None, sha256)
    placeholder = sniff_placeholder(partial.head())
    if placeholder is not None and (file.integrity == "none" or not matches):
        size = partial.size
        partial.reset()
        raise SourceError(f"{placeholder} of {size} bytes came instead of the file", retryable=False)
    if not matches:
        expected = job.pinned_sha256 or expected_digest(file)
        raise SourceError(f"its SHA-256 is {sha256}, not {expected}", retryable=False, mismatch=(expected, sha256))
    return sha256


def _failure(
    file: FileSpec, sources: Sequence[Source], attempts: Sequence[str], mismatch: Optional[Tuple[Source, Any, Any]]
) -> ZooError:
    listing = "".join(
        f"\n  - {attempt}" + (f" ({count} times)" if count > 1 else "") for attempt, count in Counter(attempts).items()
    )
    listing = listing or "\n  - it has no source"
    if mismatch is not None:
        source, expected, actual = mismatch
        return IntegrityError(
            f"{file.name} is not the file that the registry describes: expected {expected}, got {actual}{listing}",
            hint="the publisher may have changed the file, or a proxy on the way changes it; "
            "nothing of it was saved. Try another network or set REPVGG_ZOO_MIRROR",
            url=source.label,
            expected=expected,
            actual=actual,
        )
    return DownloadError(
        f"all sources failed for {file.name}{listing}",
        attempts=attempts,
        url=sources[0].label if len(sources) == 1 else None,
        hint="check the network and proxy settings, or set REPVGG_ZOO_MIRROR to a mirror that is reachable",
    )
