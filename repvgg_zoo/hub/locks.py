"""A lock that only saves bandwidth: one process downloads a file, the others wait for it.

Nothing relies on it. Where it cannot be created, does not exclude anybody, or is held by a process that hangs, the
download goes on without it; partial files and verification keep the cache correct.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Hashable, Iterator, Optional, Protocol

from .._log import get_logger
from .clock import Clock

NOTIFY_AFTER_S = 3.0  # after this long a process says what it waits for
STALL_TIMEOUT_S = 90.0  # longer than any pause between two attempts of a download that is alive

logger = get_logger("repvgg_zoo.hub")


class Lock(Protocol):
    """A lock that one process holds at a time."""

    def try_acquire(self) -> bool:
        """Return whether the lock was free and is now held; raises OSError or NotImplementedError if it cannot work."""

    def release(self) -> None:
        """Release the lock."""


class FileLock:
    """A lock on a file, from filelock; the system releases it when its process dies."""

    def __init__(self, path: Path) -> None:
        import filelock

        self._busy = filelock.Timeout
        self._lock = filelock.FileLock(str(path))

    def try_acquire(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except self._busy:
            return False
        return True

    def release(self) -> None:
        self._lock.release()


@contextmanager
def download_lock(
    make_lock: Callable[[], Lock],
    progress_marker: Callable[[], Hashable],
    clock: Clock,
    on_wait: Callable[[], None],
    stall_timeout: float = STALL_TIMEOUT_S,
) -> Iterator[None]:
    """Wait until no other process downloads the same file, then run the body, with the lock if that is possible.

    ``progress_marker`` returns something that changes while another process makes progress; if it has not changed for
    ``stall_timeout`` seconds, that process hangs and is not waited for. ``on_wait`` is called once, when the wait
    becomes noticeable.
    """
    lock: Optional[Lock] = None
    try:
        lock = make_lock()
        if not _acquire(lock, progress_marker, clock, on_wait, stall_timeout):
            lock = None
    except (OSError, NotImplementedError) as error:
        logger.warning("no file lock (%s); several processes may download the same file at once", error)
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            try:
                lock.release()
            except OSError as error:
                logger.warning("a file lock could not be released: %s", error)


def _acquire(
    lock: Lock,
    progress_marker: Callable[[], Hashable],
    clock: Clock,
    on_wait: Callable[[], None],
    stall_timeout: float,
) -> bool:
    started = last_change = clock.monotonic()
    last_marker = progress_marker()
    notified = False
    while not lock.try_acquire():
        now, marker = clock.monotonic(), progress_marker()
        if marker != last_marker:
            last_marker, last_change = marker, now
        if now - last_change > stall_timeout:
            logger.warning("the process that holds the lock makes no progress; continuing without the lock")
            return False
        if now - started > NOTIFY_AFTER_S and not notified:
            notified = True
            on_wait()
        clock.sleep(0.05 + 0.1 * clock.jitter())
    return True
