"""Download a file into a partial file, from the first source that has the right bytes.

Each attempt is one GET, hashed while it streams. A connection that breaks is resumed. Permanent errors are not retried.
A body with the wrong digest is discarded and requested once more, then the next source is tried.
"""

from __future__ import annotations

from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from .._escape import escape
from .._log import get_logger
from ..errors import DependencyError, DownloadError, IntegrityError, ZooError
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
)
from .partial import PartialFile
from .progress import LogProgress, NullProgress, Progress, format_size
from .refusal import status_error
from .sources import Source
from .verify import digest_matches, expected_digest, sniff_placeholder

# Every read allocates this much, of which TLS fills 16 KiB; from 128 KiB on, malloc may map and unmap pages each time.
READ_BYTES = 96 << 10

MAX_UNKNOWN_SIZE = 4_000_000_000  # of a file whose size the registry does not state; far more than any checkpoint has
TOUCH_INTERVAL_S = 30.0  # shorter than other processes wait for one that shows no sign of life

logger = get_logger("repvgg_zoo.hub")


@dataclass(frozen=True)
class Limits:
    """When to retry and when to give up; times in seconds, sizes in bytes.

    ``max_attempts`` counts failures in a row at one source; ``reset_after_bytes`` new bytes start the count again. The
    pauses between attempts grow from ``initial_backoff`` to ``max_backoff``; a server may ask for up to
    ``max_retry_after``. A transfer slower than ``min_speed`` bytes a second over ``speed_window`` seconds counts as
    broken; if all transfers from a source are that slow on average, the next source is tried. ``max_unknown_size``
    bounds a file whose size the registry does not state.
    """

    max_attempts: int = 4
    initial_backoff: float = 0.5
    max_backoff: float = 60.0
    max_retry_after: float = 600.0
    reset_after_bytes: int = 1 << 20
    min_speed: float = 1000.0
    speed_window: float = 30.0
    max_unknown_size: int = MAX_UNKNOWN_SIZE


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
    missing: List[DependencyError] = []
    states = deque(_SourceState(source, _Retries(job), _SpeedGuard(job.limits, job.clock)) for source in sources)
    while states:
        state = states.popleft()
        _wait_until_ready(job, state)
        try:
            return _download_from(job, state, attempts)
        except _AskedToWait as asked:
            _tell(job, f"{state.source.label}: {asked}" + ("; other sources are tried first" if states else ""))
            states.append(state)
        except SourceError as error:
            logger.info("%s from %s failed: %s", job.file.name, state.source.label, error)
            if error.mismatch is not None:
                mismatch = (state.source, *error.mismatch)
        except DependencyError as error:  # another source may need nothing that is missing
            attempts.append(f"{state.source.label}: {error.message} ({error.hint})")
            missing.append(error)
    if missing and len(missing) == len(sources):
        raise missing[0]
    raise _failure(job.file, sources, attempts, mismatch)


class _AskedToWait(Exception):
    """A server asks for a longer pause than one between two attempts."""


@dataclass
class _SourceState:
    """One source while it is tried: what If-Range may hold, and whether the file was requested from its start again.

    ``requests`` counts the requests sent to it. It is not tried before ``ready_at``.
    """

    source: Source
    retries: _Retries
    speed: _SpeedGuard
    validator: Optional[str] = None
    restarted: bool = False
    requests: int = 0
    ready_at: Optional[float] = None


def _download_from(job: Transfer, state: _SourceState, attempts: List[str]) -> Downloaded:
    """Try one source until it has sent the file; raises its last SourceError if that cannot succeed."""
    partial = job.partial
    state.retries.begin(partial.size)
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
                state.retries.begin(0)
                continue
            delay = state.retries.delay(error, partial.size)
            if delay is None:
                raise
            state.ready_at = job.clock.monotonic() + delay
            if delay > job.limits.max_backoff:
                raise _AskedToWait(str(error)) from error
            if error.retry_after:
                _tell(job, f"{state.source.label}: {error}")
            _wait_until_ready(job, state)


def _tell(job: Transfer, text: str) -> None:
    # Who has no bar, and has not asked for silence, sees it on stderr even if no logging is configured.
    log = logger.warning if isinstance(job.progress, LogProgress) else logger.info
    log("%s", text)
    job.progress.message(escape(text))


def _wait_until_ready(job: Transfer, state: _SourceState) -> None:
    """Wait as long as it was agreed, and show other processes meanwhile that this one is alive."""
    if state.ready_at is None:
        return
    remaining = state.ready_at - job.clock.monotonic()
    while remaining > 0:
        pause = min(remaining, TOUCH_INTERVAL_S)
        job.partial.touch()
        job.clock.sleep(pause)
        remaining -= pause
    state.ready_at = None


class _Retries:
    """Counts the failures in a row at one source."""

    def __init__(self, job: Transfer) -> None:
        self._limits, self._clock = job.limits, job.clock
        self._failures, self._last_size = 0, 0

    def begin(self, size: int) -> None:
        """Take note that the file is read from byte ``size`` on."""
        self._last_size = size

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
        if not error.retryable or self._failures >= limits.max_attempts or delay > limits.max_retry_after:
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
    state.speed.begin()
    try:
        response = job.client.get(source, headers) if source.path is None else open_file(source.path, headers)
        with closing(response):
            total = _accept(job, response)
            state.validator = range_validator(response)
            if response.status != 416:
                _read_body(job, response, total, state.speed)
    finally:
        state.speed.end()


def _accept(job: Transfer, response: Response) -> Optional[int]:
    """Check status, range and size before the body; return the size of the whole file if the server states it."""
    partial, file = job.partial, job.file
    if response.status in (200, 206) and is_encoded(response):
        # Five kilobytes can be gigabytes of compressed zeros, and no byte range fits the file.
        raise SourceError("it compresses the file although that was not requested", retryable=False)
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
        if first != partial.size:
            partial.reset()
            raise SourceError("the server sent another range than requested", retryable=True)
    elif response.status == 416 and partial.size:
        total = content_range(response).total
        if total != partial.size:
            partial.reset()
            raise SourceError(f"the server has no bytes after {partial.size}", retryable=True)
    else:
        raise status_error(response, job.clock)
    if file.size is None and total is not None and total > job.limits.max_unknown_size:
        raise _too_large(job)
    if file.size is not None and total is not None and total != file.size:
        placeholder = sniff_placeholder(response.read(512))
        partial.reset()
        if placeholder is not None:
            raise SourceError(f"{placeholder} of {total} bytes came instead of the file", retryable=False)
        raise SourceError(f"its size is {total}, not {file.size}", retryable=False, mismatch=(file.size, total))
    return total


def _read_body(job: Transfer, response: Response, total: Optional[int], speed: _SpeedGuard) -> None:
    """Append the body to the partial file; raises SourceError if it is shorter or longer than the file."""
    partial, name = job.partial, job.file.name
    expected = total if job.file.size is None else job.file.size
    limit = job.limits.max_unknown_size if expected is None else expected
    if expected is not None:
        job.ensure_free_space(expected - partial.size)
    job.progress.update(name, partial.size, expected)
    speed.next_window()  # the time before the first byte counts on average only
    while True:
        try:
            # One byte more than expected, to see whether the body ends where it should.
            data = response.read(min(READ_BYTES, limit - partial.size + 1))
        except SourceError:
            if partial.size == expected:
                return
            raise
        if not data:
            break
        if partial.size + len(data) > limit:
            partial.reset()
            if expected is None:
                raise _too_large(job)
            raise SourceError(f"the body is longer than {expected} bytes", retryable=False, mismatch=(expected, "more"))
        partial.write(data)
        job.progress.update(name, partial.size, expected)
        speed.check(len(data))
    if expected is not None and partial.size < expected:
        placeholder = sniff_placeholder(partial.head())
        if placeholder is not None:
            partial.reset()
            raise SourceError(f"{placeholder} came instead of the file", retryable=False)
        raise SourceError(f"the body ended after {partial.size} of {expected} bytes", retryable=True)


def _too_large(job: Transfer) -> SourceError:
    limit = format_size(job.limits.max_unknown_size)
    return SourceError(f"it sends more than {limit}, and the registry states no size", retryable=False)


class _SpeedGuard:
    """Ends transfers that drip: silence is noticed by the client's timeout, a byte now and then is not.

    One guard watches all transfers from a source. A connection that becomes slow is worth another attempt; a source
    that is slow on average is not.
    """

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits, self._clock = limits, clock
        self._seconds, self._bytes = 0.0, 0  # of all windows that ended
        self._since, self._arrived = 0.0, 0  # of the current one

    def begin(self) -> None:
        """Begin a window, with a request or after another window."""
        self._since, self._arrived = self._clock.monotonic(), 0

    def end(self) -> None:
        """End a window; the pause before the next transfer does not count."""
        self._seconds += self._clock.monotonic() - self._since
        self._bytes += self._arrived

    def next_window(self) -> None:
        """End a window and begin the next one at once."""
        self.end()
        self.begin()

    def check(self, size: int) -> None:
        """Take note of ``size`` new bytes; raises SourceError if too few arrived in the last window, or in all."""
        self._arrived += size
        seconds = self._clock.monotonic() - self._since
        if seconds < self._limits.speed_window:
            return
        total = (self._bytes + self._arrived, self._seconds + seconds, False)
        for arrived, duration, retryable in (total, (self._arrived, seconds, True)):
            if arrived < self._limits.min_speed * duration:
                raise SourceError(f"only {arrived} bytes came in {duration:.0f} seconds", retryable=retryable)
        self.next_window()


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
